// Actions on the cache: each is one request, after a question to the user if the action loses something.
import { h, say, set } from "./dom.js";

/** Carry out an action; return its result, as {done} or {error}. */
export async function act(name, target) {
  try {
    const answer = await fetch(`actions/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-SWR-Action": "1" },
      body: JSON.stringify(target),
    });
    const said = await answer.json();
    return answer.ok ? said : { error: said.error ?? `the server answers ${answer.status}` };
  } catch (error) {
    return { error: `The server did not answer: ${error.message}` };
  }
}

/** Ask the user a question; return whether the user confirms. */
export function confirmed(question, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("p", { id: "question" }, question),
      h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, yes)));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Return a line with the result of the last action, which screen readers announce. */
export function outcome() {
  const line = h("p", { class: "outcome", role: "status" });
  line.tell = ({ done, error }) => {
    say(line, error ? `Not done: ${error}` : done);
    set(line, "class", `outcome${error ? " is-wrong" : ""}`);
  };
  return line;
}

/** Return a button that does an action and shows the result in `line`. On a press, `targetOf` returns the target. */
export function actionButton(label, name, targetOf, line, { question, danger = false, title } = {}) {
  const button = h("button", { type: "button", class: danger && "danger", title: title ?? false, onclick: async () => {
    const target = targetOf();
    if (question && !(await confirmed(question(target), label))) return;
    set(button, "aria-busy", "true");
    line.tell(await act(name, target));
    set(button, "aria-busy", false);
  } }, label);
  return button;
}
