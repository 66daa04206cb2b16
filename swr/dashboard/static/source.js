// What the server says: one stream of events, the history at the beginning, and what the reader has chosen to see.
import { empty, fill } from "./dom.js";

export const RANGES = [60, 300, 900];
const KEPT = 900;
const MOST_EVENTS = 200;
const SILENT_AFTER = 2400;

const COUNTS = ["fresh", "stale", "missing", "waited", "loads", "failed"];

/** Return points whose counts are per second. A server without an open page looks seldom. */
function rates(points) {
  return points.map((point) => {
    const seconds = Math.max(0.5, point.seconds);
    return { ...point, seconds, ...Object.fromEntries(COUNTS.map((name) => [name, point[name] / seconds])) };
  });
}

/** Return whether no process can be seen: the server is none of the fleet, and cannot ask Redis. */
export function isBlind({ fleet, served_by: served }) {
  return !fleet && served === null;
}

class Source extends EventTarget {
  constructor() {
    super();
    // What is shown: the newest, or what was there when the reader paused.
    this.state = null;
    this.points = [];
    this.marks = [];
    this.events = [];
    this.seconds = 60;
    this.paused = null;
    this.heard = performance.now();
    this.silent = false;
    this.refused = null;
    this.listens = false;
  }

  start() {
    this.open();
    setInterval(() => this.watch(), 500);
  }

  async open() {
    this.stream?.close();
    this.stream = null;
    this.opened = performance.now();
    try {
      const answer = await fetch(`history?seconds=${KEPT}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
      const { points, marks } = await answer.json();
      this.points = rates(points);
      this.marks = marks;
      this.refused = null;
    } catch (error) {
      this.refused = error.message;
      this.tell();
      return;
    }
    this.connect();
  }

  connect() {
    this.stream?.close();
    // A new stream begins with the events before it; one that the browser connects again goes on where it was.
    this.events = [];
    this.stream = new EventSource(this.listens ? "stream?calls=1" : "stream");
    this.stream.addEventListener("state", (message) => this.take(JSON.parse(message.data)));
    this.stream.addEventListener("events", (message) => this.takeEvents(JSON.parse(message.data)));
    this.stream.addEventListener("calls", (message) => this.dispatchEvent(new CustomEvent("calls", { detail: JSON.parse(message.data) })));
  }

  /** Ask for each request and call, too, or no longer: the fleet collects them only while somebody watches. */
  listen(wanted) {
    if (wanted === this.listens) return;
    this.listens = wanted;
    if (this.stream) this.connect();
  }

  take({ state, points, marks }) {
    this.heard = performance.now();
    this.silent = false;
    this.live = state;
    for (const { id, host, pid } of state.processes) names.set(id, `${host}:${pid}`);
    const last = this.points.at(-1) ?? null;
    this.points = [...this.points, ...rates(points.filter(({ t }) => !last || t > last.t))].slice(-KEPT);
    const known = new Set(this.marks.map((mark) => `${mark.t} ${mark.text}`));
    const added = marks.filter((mark) => !known.has(`${mark.t} ${mark.text}`));
    this.marks = [...this.marks, ...added].sort((one, other) => one.t - other.t).slice(-500);
    this.tell();
  }

  takeEvents({ events }) {
    // Each process tells of its own: they come in the order in which their digests do.
    this.events = [...[...events].reverse(), ...this.events].sort((one, other) => other.t - one.t).slice(0, MOST_EVENTS);
    this.tell();
  }

  /** Look whether the server still speaks; a stream that was refused does not come back by itself. */
  watch() {
    const now = performance.now();
    const silent = now - this.heard > SILENT_AFTER;
    if (silent !== this.silent) {
      this.silent = silent;
      this.tell();
    }
    const ended = !this.stream || this.stream.readyState === EventSource.CLOSED;
    if (ended && now - this.opened > 2000) this.open();
  }

  tell() {
    if (!this.paused && this.live) this.state = this.live;
    this.dispatchEvent(new Event("change"));
  }

  pause(wanted) {
    const { points, marks, events } = this;
    this.paused = wanted && this.state ? { points, marks, events } : null;
    this.tell();
  }

  choose(seconds) {
    this.seconds = seconds;
    this.tell();
  }

  /** What the plots show: points and marks of the chosen time, and its bounds. */
  get shown() {
    const { points, marks } = this.paused ?? this;
    // While no process can be seen there are no points, and the plots go on.
    const to = Math.max(points.at(-1)?.t ?? 0, this.state?.now ?? 0);
    const from = to - this.seconds;
    return { points: points.filter((point) => point.t >= from), marks: marks.filter((mark) => mark.t <= to), range: [from, to] };
  }

  get shownEvents() {
    return (this.paused ?? this).events;
  }
}

export const source = new Source();

/** An element that draws itself whenever something has changed. Subclasses have `build()` and `show(state)`. */
export class Panel extends HTMLElement {
  /** Say in `none` that there is nothing to show, and why. What cannot be seen may be there all the same. */
  sayNone(state, isNone, title, next) {
    this.none.hidden = !isNone;
    fill(this.none, isBlind(state) ? empty("No process can be seen.", "This server cannot read from Redis what they report. The processes themselves go on.") : empty(title, next));
  }

  connectedCallback() {
    if (this.built) return;
    this.built = true;
    this.build();
    source.addEventListener("change", () => this.refresh());
    this.refresh();
  }

  refresh() {
    if (source.state && this.checkVisibility()) this.show(source.state);
  }
}

// While Redis is unreachable the state has one process, and the events those of all.
const names = new Map();

/** Return the name of a process as people know it: host and process id, or the id of its cache. */
export function processName(id) {
  return names.get(id) ?? id ?? "";
}
