// The keys that are read most, and the loads that hang.
import { h, heading, keep, say, set } from "./dom.js";
import { keyName, lasting, rate } from "./format.js";
import { Panel, processName } from "./source.js";

/** Return the address of the view of a key's life. */
export function keyAddress(key) {
  return `#/requests/${encodeURIComponent(key.id)}`;
}

/** Return a link to the view of a key's life. */
export function keyLink(key) {
  return h("a", { href: keyAddress(key) }, keyName(key));
}

class Keys extends Panel {
  build() {
    this.hanging = h("ul", { class: "rows hanging" });
    this.hot = h("ol", { class: "rows" });
    this.hangingHead = h("h3", { class: "small is-wrong" }, "Loads that hang");
    this.none = h("div");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-keys" },
      this.hangingHead, this.hanging, h("h3", { class: "small unseen" }, "Read most"), this.none, this.hot);
    this.append(heading("t-keys", "Hottest keys", h("span", { class: "beside" }, "reads a second")), this.scroll);
  }

  show(state) {
    this.hangingHead.hidden = this.hanging.hidden = !state.hanging.length;
    keep(this.hanging, state.hanging, ({ key, process, since }) => `${key.id} ${process} ${since}`,
      ({ key }) => h("li", null, keyLink(key), h("b"), h("small")),
      (item, { seconds, process, timeout }) => {
        say(item.children[1], lasting(seconds));
        say(item.children[2], `in ${processName(process)}; ${timeout === null ? "no time-out ends it" : `cancelled after ${lasting(timeout)}`}`);
      });
    const most = state.hottest[0]?.reads_per_s || 1;
    this.sayNone(state, !state.hottest.length, "No hot keys yet.", "swr samples reads, so keys show here after a few seconds of traffic.");
    keep(this.hot, state.hottest, ({ key }) => key.id,
      ({ key }) => h("li", null, keyLink(key), h("b")),
      (item, { reads_per_s: reads }) => {
        say(item.children[1], rate(reads));
        item.style.setProperty("--share", `${(100 * reads) / most}%`);
      });
    set(this, "class", state.hanging.length ? "has-hanging" : "");
  }
}

customElements.define("swr-keys", Keys);
