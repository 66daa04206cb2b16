// The queues of refreshers: leader, round, backlog, dead letters.
import { actionButton, outcome } from "./actions.js";
import { fill, h, heading, keep, say, set } from "./dom.js";
import { clock, count, keyName, lasting, number } from "./format.js";
import { Panel } from "./source.js";

class Queues extends Panel {
  build() {
    this.list = h("div", { class: "queues" });
    this.line = outcome();
    this.none = h("div");
    this.old = h("p", { class: "small is-wrong" }, "Redis does not answer. These are the last known numbers.");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-queue" }, this.none, this.line, this.old, this.list);
    this.append(heading("t-queue", "Queue"), this.scroll);
  }

  show(state) {
    this.sayNone(state, !state.queues.length, "No queue.", "A Refresher with strategy=\"queue\" loads groups in rounds before anyone asks; its queue shows here.");
    this.old.hidden = state.fleet || !state.queues.length;
    keep(this.list, state.queues, ({ name }) => name, (queue) => this.make(queue, state.actions), (section, queue) => this.update(section, queue, state));
  }

  make({ name }, actions) {
    const section = h("section", { class: "one-queue", "aria-label": `Queue ${name}` },
      h("h3", null, h("code", null, name), " ", h("small")), h("div", { class: "letters" }), h("dl", { class: "facts inline" }));
    const all = actions && h("div", { class: "buttons" },
      actionButton("Retry all", "retry-dead", () => ({ queue: name }), this.line),
      actionButton("Purge all", "purge-dead", () => ({ queue: name }), this.line, {
        danger: true, question: () => `Purge all dead letters of ${name}? Their groups are loaded again only by a later round.`,
      }));
    section.children[1].append(h("h4", null, h("span"), all), h("ul", { class: "rows" }));
    return section;
  }

  update(section, queue, state) {
    const [title, letters, facts] = section.children;
    say(title.querySelector("small"), queue.strategy);
    const fact = (name, value, wrong) => h("div", { class: wrong && "is-wrong" }, h("dt", null, name), h("dd", null, value));
    fill(facts,
      fact("Leader", queue.leader ? "yes" : "none", !queue.leader),
      fact("Last round", queue.round_at === null ? "none yet" : `${lasting(state.now - queue.round_at)} ago`),
      fact("Backlog", count(queue.backlog)), fact("In hand", count(queue.in_hand)), fact("Tried again later", count(queue.waiting)),
      fact("Consumers", count(queue.consumers), queue.consumers === 0));
    letters.hidden = !queue.dead;
    set(letters, "class", "letters is-wrong");
    say(letters.firstElementChild.firstElementChild, number(queue.dead, "dead letter"));
    keep(letters.lastElementChild, queue.letters, ({ key }) => key.id,
      (letter) => h("li", null, keyName(letter.key), h("span", { class: "reason" }), state.actions && h("div", { class: "buttons" },
        actionButton("Retry", "retry-dead", () => ({ queue: queue.name, id: letter.key.id }), this.line, { title: `Retry ${letter.key.text}` }),
        actionButton("Purge", "purge-dead", () => ({ queue: queue.name, id: letter.key.id }), this.line, { title: `Purge ${letter.key.text}` }))),
      (item, letter) => say(item.children[1], `${letter.error} · ${number(letter.attempts, "try", "tries")}, given up at ${clock(letter.at)}`));
  }
}

customElements.define("swr-queues", Queues);
