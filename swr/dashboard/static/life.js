// The life of one key: its entry and deadlines, its last reads and events, and buttons for actions.
import { actionButton, outcome } from "./actions.js";
import { empty, fill, h, heading, say, set } from "./dom.js";
import { bytes, clock, duration, keyName, lasting, number } from "./format.js";
import { LifeLine } from "./lifeline.js";
import { Panel, source } from "./source.js";

const EVERY = 1000;

/** Return moments, the newest first. Consecutive equal moments become one, with their number in `times`. */
function runs(moments) {
  const found = [];
  for (const moment of moments) {
    const last = found.at(-1);
    if (last?.kind === moment.kind && last.text === moment.text) Object.assign(last, { t: moment.t, times: last.times + 1 });
    else found.push({ ...moment, times: 1 });
  }
  return found.reverse();
}

class Life extends Panel {
  build() {
    this.field = h("input", { type: "search", id: "key-field", placeholder: "ranking:ATL", autocomplete: "off", spellcheck: "false" });
    this.form = h("form", { class: "find", onsubmit: (event) => this.find(event) },
      h("label", { for: "key-field" }, "Key"), this.field, h("button", { type: "submit" }, "Show"));
    this.name = h("p", { class: "life-key" });
    this.said = h("p", { class: "life-state" });
    this.line = new LifeLine();
    this.facts = h("dl", { class: "facts" });
    this.moments = h("ol", { class: "rows log" });
    this.result = outcome();
    this.buttons = h("div", { class: "actions" });
    this.found = h("div", { class: "found", hidden: true }, this.name, this.said, this.line.element, this.facts,
      this.buttons, this.result, h("h3", { class: "small" }, "What happened to it"), this.moments);
    this.none = h("div");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-life" }, this.none, this.found);
    this.append(heading("t-life", "A key’s life"), this.form, this.scroll);
    this.tell(empty("Choose a key.", "Press a key in the list, or write one above, to see how long it is fresh, stale and kept for errors."));
  }

  tell(words) {
    this.found.hidden = true;
    this.none.hidden = false;
    fill(this.none, words);
  }

  find(event) {
    event.preventDefault();
    const text = this.field.value.trim();
    if (text) location.hash = `#/requests/key/${encodeURIComponent(text)}`;
  }

  /** Show the key that a query like `id=…` or `key=…` names; null: none. */
  choose(query) {
    if (query === this.query) return;
    this.query = query;
    clearTimeout(this.timer);
    if (query) this.ask(query);
  }

  async ask(query) {
    let life = null;
    let error = null;
    try {
      const answer = await fetch(`key?${query}`, { cache: "no-store" });
      const said = await answer.json();
      if (answer.ok) life = said;
      else error = said.error ?? `the server answers ${answer.status}`;
    } catch (problem) {
      error = problem.message;
    }
    if (query !== this.query) return;
    if (error) this.tell(empty("This key cannot be shown.", error));
    else if (!source.paused) this.draw(life);
    this.timer = setTimeout(() => this.ask(query), EVERY);
  }

  show() {}

  draw(life) {
    this.none.hidden = true;
    this.found.hidden = false;
    this.life = life;
    if (document.activeElement !== this.field) this.field.value = life.key.text;
    fill(this.name, keyName(life.key), life.row && [" ", h("small", null, `of ${life.row}`)]);
    this.sayState(life);
    this.line.show(life);
    const { entry, now } = life;
    const fact = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
    this.facts.hidden = !entry;
    if (entry) {
      fill(this.facts,
        fact("Loaded", `${clock(entry.loaded_at)}, ${duration(now - entry.loaded_at)} ago`),
        fact("Found in", entry.layer === "l1" ? "local cache" : "Redis"), fact("Size", bytes(entry.bytes)), fact("Version", entry.version),
        fact("Tags", entry.tags.length ? entry.tags.join(", ") : "none"), fact("Marked stale", entry.marked_stale ? "yes" : "no"));
    }
    this.drawButtons(life);
    const moments = runs(life.moments).map(({ kind, text, t, times }) =>
      h("li", { class: kind === "failed" && "is-wrong" }, h("time", null, clock(t)),
        h("span", null, h("b", null, kind), text !== kind && ` ${text}`, times > 1 && h("small", null, ` ${number(times, "time")}`))));
    fill(this.moments, ...(moments.length ? moments : [h("li", { class: "quiet" }, "No reads or events since this page was opened.")]));
  }

  sayState({ entry, lease, now, note }) {
    const words = [];
    if (!entry) words.push("Nothing is stored: the next reader waits for a load.");
    else if (entry.state === "fresh") words.push(`Served without a load for ${lasting(entry.fresh_until - now)} more.`);
    else if (entry.state === "stale") words.push(`Served at once for ${lasting(entry.stale_until - now)} more; the next read refreshes it.`);
    else if (entry.state === "error") words.push(`Kept for ${lasting(entry.error_until - now)} more, and served only if a load fails.`);
    else words.push("Too old to be served.");
    if (lease?.kind === "loading") words.push("A load is under way.");
    if (lease?.kind === "backoff") words.push(`Backs off after ${number(lease.failures, "failure")}: the next try in ${lasting(lease.until - now)}.`);
    if (note) words.push(note);
    fill(this.said, h("span", { class: `state ${entry?.state ?? "missing"}` }, entry?.state ?? "missing"), " ", words.join(" "));
    set(this.said, "data-state", entry?.state ?? "missing");
  }

  drawButtons(life) {
    const { actions, simulate } = source.state ?? {};
    const kind = `${actions} ${simulate} ${Boolean(life.row)}`;
    if (this.buttonsFor === kind) return;
    this.buttonsFor = kind;
    const key = () => ({ id: this.life.key.id });
    const row = () => ({ row: this.life.row });
    this.buttons.replaceChildren();
    if (!actions) {
      this.buttons.append(h("p", { class: "quiet" }, "This page is read-only. With ", h("code", null, "actions=True"), " it has buttons to refresh and invalidate."));
      return;
    }
    this.buttons.append(
      actionButton("Refresh", "refresh", key, this.result, { title: "Load it again: now, or with the next read" }),
      actionButton("Mark stale", "mark-stale", key, this.result, { title: "The next read gets the old value at once, and refreshes it" }),
      actionButton("Invalidate", "invalidate", key, this.result, { title: "Remove it in every process" }));
    if (simulate && life.row) {
      this.buttons.append(
        actionButton("Fail the next load", "fail-next", row, this.result, { danger: true, title: "Let the next load fail, and see what stale-if-error does" }),
        actionButton("Hang the loader", "hang", () => ({ ...row(), seconds: 15 }), this.result, { danger: true, title: "Let loads hang for 15 seconds, and see what time-outs do" }));
    }
  }
}

customElements.define("swr-life", Life);
