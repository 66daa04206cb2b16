// The data of the page: the history at the beginning, one stream of events, and the user's choice of range and pause.
import { empty, fill } from "./dom.js";

export const RANGES = [60, 300, 900];
const KEPT = 900;
const MOST_EVENTS = 200;
const SILENT_AFTER = 2400;

const COUNTS = ["fresh", "stale", "missing", "waited", "loads", "failed"];

/** Return points with counts per second. Points are longer than a second if no page was open. */
function rates(points) {
  return points.map((point) => {
    const seconds = Math.max(0.5, point.seconds);
    return { ...point, seconds, ...Object.fromEntries(COUNTS.map((name) => [name, point[name] / seconds])) };
  });
}

/** Return whether no process can be seen, because the server is not part of the fleet and cannot reach Redis. */
export function isBlind({ fleet, served_by: served }) {
  return !fleet && served === null;
}

class Source extends EventTarget {
  constructor() {
    super();
    // The state that panels show: the newest, or that of the moment when the user paused.
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
    // A new stream begins with earlier events. If the browser itself reconnects a stream, it continues where it was.
    this.events = [];
    this.stream = new EventSource(this.listens ? "stream?calls=1" : "stream");
    this.stream.addEventListener("state", (message) => this.take(JSON.parse(message.data)));
    this.stream.addEventListener("events", (message) => this.takeEvents(JSON.parse(message.data)));
    this.stream.addEventListener("calls", (message) => this.dispatchEvent(new CustomEvent("calls", { detail: JSON.parse(message.data) })));
  }

  /** Choose whether the stream has each request and call, too. */
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
    // Events arrive in the order of the processes' digests, which is not the order of their times.
    this.events = [...[...events].reverse(), ...this.events].sort((one, other) => other.t - one.t).slice(0, MOST_EVENTS);
    this.tell();
  }

  /** Check whether messages still arrive. Reopen a stream that the server refused: the browser does not retry that. */
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

  /** The points and marks of the chosen time range, and its bounds, for the plots. */
  get shown() {
    const { points, marks } = this.paused ?? this;
    // While no process can be seen there are no points, but time goes on in the plots.
    const to = Math.max(points.at(-1)?.t ?? 0, this.state?.now ?? 0);
    const from = to - this.seconds;
    return { points: points.filter((point) => point.t >= from), marks: marks.filter((mark) => mark.t <= to), range: [from, to] };
  }

  get shownEvents() {
    return (this.paused ?? this).events;
  }
}

export const source = new Source();

/** An element that draws itself again whenever the data changes. Subclasses have `build()` and `show(state)`. */
export class Panel extends HTMLElement {
  /** Say in `none` that there is nothing to show, and why: no data, or no connection to Redis. */
  sayNone(state, isNone, title, next) {
    this.none.hidden = !isNone;
    fill(this.none, isBlind(state) ? empty("No process can be seen.", "This server cannot read their reports from Redis. The processes themselves work on.") : empty(title, next));
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

// Names of processes by id. It keeps old names: while Redis is unreachable, events name processes that the state lacks.
const names = new Map();

/** Return the readable name of a process: host and process id, or its id if these are unknown. */
export function processName(id) {
  return names.get(id) ?? id ?? "";
}
