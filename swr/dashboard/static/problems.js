// The list of problems at the top of the page.
import { fill, h, keep, plain, say, set } from "./dom.js";
import { clock, lasting, number } from "./format.js";
import { source } from "./source.js";

// The most characters of a problem. A long text, with a whole SQL statement for example, would hide the others.
const LONGEST = 240;
const OLD = "What you see below is old.";

/** Return the problems of the page itself, which keep it from showing the present state. */
function own() {
  const told = { level: "error", kind: "page", remedy: "", since: null, target: null };
  if (source.refused) return [{ ...told, text: `The page cannot read the dashboard: ${source.refused}. It tries again by itself. ${source.state ? OLD : ""}` }];
  if (source.silent) return [{ ...told, text: `The page no longer hears from the server. It connects again by itself. ${OLD}` }];
  return [];
}

class Problems extends HTMLElement {
  connectedCallback() {
    this.fine = h("p", { class: "fine" });
    this.count = h("h2", { class: "alarms-count" });
    this.list = h("ul", { class: "problems" });
    this.wrong = h("section", { class: "alarms", tabindex: "0", "aria-label": "What is wrong", hidden: true }, this.count, this.list);
    this.said = h("p", { class: "unseen", role: "status" });
    this.append(this.said, this.fine, this.wrong);
    source.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { state } = source;
    const problems = [...own(), ...(state?.problems ?? [])];
    keep(this.list, problems, ({ kind, target }) => `${kind} ${target}`,
      () => h("li", null, h("b", { class: "level" }), h("span", { class: "told" }, h("span"), " ", h("small")), h("span", { class: "since" })),
      (item, problem) => {
        const [level, told, since] = item.children;
        const [text, remedy] = told.children;
        set(item, "class", `is-${problem.level}`);
        say(level, problem.level === "error" ? "Error" : "Warning");
        const isLong = problem.text.length > LONGEST;
        say(text, isLong ? `${problem.text.slice(0, LONGEST)}…` : problem.text);
        set(text, "title", isLong && problem.text);
        say(remedy, problem.remedy);
        say(since, problem.since === null ? "" : `since ${clock(problem.since)}, ${lasting(state.now - problem.since)} ago`);
      });
    this.wrong.hidden = !problems.length;
    set(this.wrong, "class", `alarms${problems.some(({ level }) => level === "error") ? " is-error" : ""}`);
    const things = problems.length === 1 ? "1 thing is wrong" : `${problems.length} things are wrong`;
    // Some systems show no scroll bar until the user scrolls.
    fill(this.count, things, this.wrong.scrollHeight > this.wrong.clientHeight + 1 && h("small", null, "scroll to see all"));
    this.fine.hidden = problems.length > 0;
    say(this.fine, state ? `Nothing is wrong. ${this.summary(state)}` : "Connecting to the server …");
    // A screen reader announces problems when they change, and not when their seconds count up.
    const wrong = problems.map(({ kind, target }) => `${kind} ${target}`).join();
    if ((state || problems.length) && wrong !== this.wrongBefore) {
      this.wrongBefore = wrong;
      say(this.said, problems.map(({ text, remedy }) => `${text} ${remedy}`).join(" ") || "Nothing is wrong.");
    }
    document.title = `${problems.length ? `(${problems.length}) ` : ""}swr${state?.namespace ? ` · ${plain(state.namespace)}` : ""}`;
  }

  summary({ processes, nodes, fleet, note }) {
    const heard = processes.filter(({ gone, silent }) => !gone && silent === null).length;
    const silent = processes.filter(({ gone }) => !gone).length - heard;
    const store = nodes.length ? `Redis answers at ${nodes.map(({ name }) => name).join(", ")}` : "there is no Redis";
    return fleet || !note ? `${number(heard, "process", "processes")} alive${silent ? `, ${silent} silent` : ""}; ${store}.` : `This page shows one process: ${note}.`;
  }
}

customElements.define("swr-problems", Problems);
