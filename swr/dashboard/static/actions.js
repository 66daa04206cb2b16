// What the reader does to the cache: one request each, and a question first where something is lost.
import { h, say, set } from "./dom.js";

/** Carry out an action; return what came of it, as {done} or {error}. */
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

/** Return whether the reader says yes. */
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

/** Return a line that says what came of the last action; screen readers hear it. */
export function outcome() {
  const line = h("p", { class: "outcome", role: "status" });
  line.tell = ({ done, error }) => {
    say(line, error ? `Not done: ${error}` : done);
    set(line, "class", `outcome${error ? " is-wrong" : ""}`);
  };
  return line;
}

/** Return a button that carries out an action and tells `line` what came of it. `targetOf` is asked when it is pressed. */
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
