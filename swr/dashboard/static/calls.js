// A table of requests and calls as they come, with the reasons why they were not cached.
import { empty, fill, h, heading, keep, link, say, set } from "./dom.js";
import { clock, count, took } from "./format.js";
import { keyAddress, keyLink } from "./keys.js";
import { Panel, processName, source } from "./source.js";

const KEPT = 500;
const SHOWN = 120;
const STATES = ["fresh", "stale", "missing", "bypass"];
const LAYERS = { l1: "local cache", redis: "Redis", load: "own load", flight: "another reader's load", app: "the app" };

class Calls extends Panel {
  build() {
    this.calls = [];
    this.dropped = 0;
    this.given = 0;
    this.states = new Set(STATES);
    this.only = false;
    this.filter = h("input", { type: "search", placeholder: "Path, loader or key", "aria-label": "Filter by path, loader or key", oninput: () => this.draw() });
    this.chips = STATES.map((state) =>
      h("button", { type: "button", class: `chip ${state}`, "aria-pressed": "true", onclick: () => this.toggle(state) }, state));
    this.uncached = h("ul", { class: "uncached" });
    this.lost = h("span", { class: "beside" });
    this.body = h("tbody");
    this.table = h("table", null, h("caption", { class: "unseen" }, "Requests and calls, the newest first"),
      h("thead", null, h("tr", null, ...["Time", "State", "Request or call", "Answered by", "Took", "Why not cached"].map((name) => h("th", { scope: "col" }, name)))),
      this.body);
    this.none = h("div");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-calls" }, this.none, this.table);
    source.addEventListener("calls", ({ detail }) => this.take(detail));
    this.append(heading("t-calls", "Requests and calls", this.lost),
      h("div", { class: "filters", role: "group", "aria-label": "Filter" }, this.filter, ...this.chips),
      h("div", { class: "uncached-line" }, h("h3", { class: "small" }, "Why not cached"), this.uncached), this.scroll);
  }

  take({ calls, dropped }) {
    for (const call of calls) call.order = this.given += 1;
    this.calls = [...calls, ...this.calls].sort((one, other) => other.t - one.t).slice(0, KEPT);
    this.dropped += dropped;
    if (!source.paused) this.draw();
  }

  toggle(state) {
    if (!this.states.delete(state)) this.states.add(state);
    this.draw();
  }

  show({ uncached }) {
    this.uncached.parentElement.hidden = !uncached.length;
    keep(this.uncached, uncached.slice(0, 8), ({ why }) => why.code,
      ({ why }) => h("li", { title: why.text }, h("b"), " ", link(why.link, why.code)),
      (item, { count: times }) => say(item.firstElementChild, count(times)));
    if (!source.paused) this.draw();
  }

  draw() {
    const words = this.filter.value.trim().toLowerCase();
    const matches = (call) => this.states.has(call.state) && (!words || `${call.what} ${call.key?.text ?? ""} ${call.why?.code ?? ""}`.toLowerCase().includes(words));
    const found = this.calls.filter(matches).slice(0, SHOWN);
    this.chips.forEach((chip, index) => set(chip, "aria-pressed", String(this.states.has(STATES[index]))));
    say(this.lost, this.dropped ? `${count(this.dropped)} not shown, because too many came` : "newest first");
    this.table.hidden = !found.length;
    this.none.hidden = found.length > 0;
    fill(this.none, this.calls.length
      ? empty("No request matches.", "Clear the filter, or choose more states.")
      : empty("Nothing has come since you opened this view.", "Send a request to the app, for example with ", h("code", null, "curl -i"), ". It shows here with its state, and with the reason if it was not cached."));
    keep(this.body, found, ({ order }) => order, (call) => this.row(call), () => {});
  }

  row(call) {
    const { key } = call;
    // A response's key repeats the URL. So it has its own line only if it says more, because it has hashed parts.
    const says = key && (call.kind === "call" || key.parts.some(([, hashed]) => hashed));
    const what = key && !says ? h("a", { class: "what", href: keyAddress(key), title: key.text }, call.what) : call.what;
    return h("tr", null,
      h("td", { class: "time" }, clock(call.t)),
      h("td", null, h("span", { class: `state ${call.state}` }, call.state)),
      h("td", { class: "call" }, h("span", { class: "what" }, what, call.status !== null && h("small", null, ` ${call.status}`)), says && keyLink(key)),
      h("td", { title: processName(call.process) }, LAYERS[call.layer] ?? ""),
      h("td", { class: "number" }, call.seconds === null ? "" : took(call.seconds)),
      h("td", { class: "why" }, call.why && [link(call.why.link, call.why.code), h("small", null, call.why.text)]));
  }
}

customElements.define("swr-calls", Calls);
