// A list of events as they come.
import { empty, h, heading, keep } from "./dom.js";
import { clock } from "./format.js";
import { keyLink } from "./keys.js";
import { Panel, processName, source } from "./source.js";

const SHOWN = 100;
const names = new WeakMap();
let given = 0;

/** Return a stable name for an event object, because events have no id. */
function nameOf(event) {
  if (!names.has(event)) names.set(event, (given += 1));
  return names.get(event);
}

class Events extends Panel {
  build() {
    this.list = h("ol", { class: "rows log" });
    this.none = empty("Nothing has happened yet.", "Loads, invalidations, failures and outages show here as they come.");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-events" }, this.none, this.list);
    this.append(heading("t-events", "Events", h("span", { class: "beside" }, "newest first")), this.scroll);
  }

  show() {
    const events = source.shownEvents.slice(0, SHOWN);
    this.none.hidden = events.length > 0;
    keep(this.list, events, nameOf,
      (event) => h("li", { class: event.bad && "is-wrong" },
        h("time", null, clock(event.t)),
        h("span", null, event.bad && h("b", null, "wrong: "), event.text, " ", event.key ? keyLink(event.key) : event.row && h("code", null, event.row), " ", h("small", null, processName(event.process)))),
      () => {});
  }
}

customElements.define("swr-events", Events);
