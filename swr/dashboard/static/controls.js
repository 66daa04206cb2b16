// The name of the cache, the buttons for time range and pause, and whether the page is connected to the server.
import { h, say, set } from "./dom.js";
import { clock } from "./format.js";
import { RANGES, Panel, source } from "./source.js";

class Name extends Panel {
  build() {}

  show(state) {
    say(this, state.namespace);
  }
}

class Controls extends Panel {
  build() {
    this.ranges = RANGES.map((seconds) =>
      h("button", { type: "button", onclick: () => source.choose(seconds) }, `${seconds / 60} min`));
    this.pause = h("button", { type: "button", class: "pause", onclick: () => source.pause(!source.paused) });
    this.live = h("span", { class: "live" });
    this.append(
      this.live,
      h("div", { class: "segments", role: "group", "aria-label": "Time range" }, ...this.ranges),
      this.pause,
    );
    this.mark();
    source.addEventListener("change", () => this.mark());
  }

  mark() {
    this.ranges.forEach((button, index) => set(button, "aria-pressed", String(RANGES[index] === source.seconds)));
    set(this.pause, "aria-pressed", String(Boolean(source.paused)));
    say(this.pause, source.paused ? "Resume" : "Pause");
    const connected = source.state && !source.silent && !source.refused;
    say(this.live, source.paused ? `paused at ${clock(source.state.now)}` : connected ? "live" : source.state ? "not connected" : "connecting …");
    set(this.live, "class", `live ${source.paused ? "is-paused" : connected ? "is-live" : "is-lost"}`);
  }

  show() {}
}

customElements.define("swr-name", Name);
customElements.define("swr-controls", Controls);
