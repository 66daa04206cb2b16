// The life of a key as a line: when it is fresh, stale and kept for errors, and the present time.
import { h, say } from "./dom.js";
import { clock, lasting } from "./format.js";

const PHASES = [
  ["fresh", "fresh", "loaded_at", "fresh_until"],
  ["stale", "stale", "fresh_until", "stale_until"],
  ["error", "kept for errors", "stale_until", "error_until"],
];

/** Return a function from a time to a place on the line, 0 to 1. The scale is logarithmic: minutes show beside days. */
function scaleOf({ loaded_at: from, error_until: kept, stale_until: stale, fresh_until: fresh }, now) {
  const to = Math.max(kept, stale, fresh, now, from + 1);
  const unit = Math.max(0.5, fresh - from);
  const log = (t) => Math.log1p(Math.max(0, t - from) / unit);
  return (t) => log(t) / log(to);
}

export class LifeLine {
  constructor() {
    this.phases = PHASES.map(([name, label]) => h("span", { class: `phase ${name}` }, h("b", null, label), h("small")));
    this.now = h("span", { class: "now" }, h("b", null, "now"));
    this.track = h("div", { class: "track" }, ...this.phases, this.now);
    this.element = h("div", { class: "lifeline", role: "img" }, this.track);
  }

  show({ entry, now }) {
    this.element.hidden = !entry;
    if (!entry) return;
    const at = scaleOf(entry, now);
    const words = [];
    PHASES.forEach(([, label, from, until], index) => {
      const phase = this.phases[index];
      const [begin, end] = [at(entry[from]), at(entry[until])];
      phase.hidden = end <= begin;
      phase.style.left = `${100 * begin}%`;
      phase.style.width = `${100 * (end - begin)}%`;
      const rest = entry[until] - now;
      const until_words = rest > 86400 ? `${lasting(rest)} more` : `until ${clock(entry[until])}`;
      say(phase.lastElementChild, until_words);
      if (!phase.hidden) words.push(`${label} until ${clock(entry[until])}`);
    });
    this.now.style.left = `${100 * Math.min(1, at(now))}%`;
    this.element.setAttribute("aria-label", `Loaded at ${clock(entry.loaded_at)}; ${words.join("; ")}; now it is ${clock(now)}.`);
  }
}
