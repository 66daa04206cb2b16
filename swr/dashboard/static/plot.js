// A plot: a canvas with axes, marks and a cross-hair that the pointer or the arrow keys move.
import { h, say } from "./dom.js";
import { clock, minute } from "./format.js";

const LEFT = 52;
const RIGHT = 10;
const TOP = 12;
const BOTTOM = 20;
const BOTTOM_BARE = 5;
// A line or area joins two points if at most this many seconds between them belong to neither.
const LONGEST_GAP = 3;
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Return the least number of the form 1, 2, 2.5 or 5 times a power of ten that is not below `value`. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/**
 * One plot.
 *
 * `series` lists the series from the bottom up: {name, label, color, kind: "area" | "bar" | "line"}.
 * `unit` formats a value of the axis. `show` takes points {t, ...} in order of time.
 */
export class Plot {
  constructor({ name, series, unit, stacked = true, compact = false, bare = false }) {
    this.series = series;
    this.unit = unit;
    this.stacked = stacked;
    this.compact = compact;
    this.bare = bare;
    this.bottom = bare ? BOTTOM_BARE : BOTTOM;
    this.name = name;
    this.points = [];
    this.marks = [];
    this.range = [0, 1];
    this.at = null;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.surface = h("div", { class: "surface", tabindex: "0", role: "img" }, this.canvas);
    this.readout = h("p", { class: "unseen", "aria-live": "polite" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.surface.append(this.tip);
    this.element = h("div", { class: "plot" }, this.surface, this.readout);
    this.surface.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.surface.addEventListener("pointerleave", () => this.point(null));
    this.surface.addEventListener("blur", () => this.point(null));
    this.surface.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.surface);
    dark.addEventListener("change", () => this.draw());
  }

  /** Draw points from `range[0]` to `range[1]`, in seconds since 1970. */
  show(points, range, marks) {
    this.points = points;
    this.range = range;
    this.marks = marks;
    this.draw();
    this.surface.setAttribute("aria-label", `${this.name}. ${this.words(points.length - 1)} Arrow keys read other moments.`);
  }

  words(index) {
    const point = this.points[index];
    if (!point) return "Nothing is measured yet.";
    const values = [...this.series].reverse().map(({ name, label }) => `${label} ${this.unit(point[name])}`);
    const marks = this.near(point.t).map((mark) => mark.text);
    return `${clock(point.t)}: ${[...values, ...marks].join(", ")}.`;
  }

  near(t) {
    const slack = Math.max(1, (this.range[1] - this.range[0]) / 150);
    return this.marks.filter((mark) => Math.abs(mark.t - t) <= slack);
  }

  step(event) {
    const last = this.points.length - 1;
    const now = this.at === null ? last : this.points.findLastIndex((point) => point.t <= this.at);
    const wanted = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last, PageUp: now - 30, PageDown: now + 30 }[event.key];
    if (event.key === "Escape") this.point(null);
    if (wanted === undefined || last < 0) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, wanted));
    this.at = this.points[index].t;
    say(this.readout, this.words(index));
    this.draw();
  }

  point(x) {
    const { width } = this.surface.getBoundingClientRect();
    const [from, to] = this.range;
    this.at = x === null ? null : from + ((x - LEFT) / (width - LEFT - RIGHT)) * (to - from);
    this.draw();
  }

  /** Return the upper end of the axis: a round number that no shown value exceeds. */
  highest() {
    let most = 0;
    for (const point of this.points) {
      const values = this.series.map(({ name }) => point[name] ?? 0);
      most = Math.max(most, this.stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values));
    }
    return ceiling(most);
  }

  draw() {
    const { width, height } = this.surface.getBoundingClientRect();
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.surface);
    const color = (name) => style.getPropertyValue(`--${name}`);
    const top = this.highest();
    const [from, to] = this.range;
    const frame = {
      pen, color, width, height, top,
      x: (t) => LEFT + ((t - from) / (to - from)) * (width - LEFT - RIGHT),
      y: (value) => height - this.bottom - (value / top) * (height - this.bottom - TOP),
    };
    pen.font = `11px ${style.fontFamily}`;
    this.drawAxes(frame);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT - RIGHT, height - this.bottom + 1);
    pen.clip();
    this.drawOutages(frame);
    if (this.series.some(({ kind }) => kind === "line")) this.drawLines(frame);
    else this.drawStack(frame);
    this.drawMarks(frame);
    pen.restore();
    this.drawCross(frame);
  }

  drawAxes({ pen, color, width, height, top, x, y }) {
    pen.fillStyle = color("muted");
    pen.strokeStyle = color("grid");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const steps = height < 110 ? 1 : height < 190 ? 2 : 4;
    for (let step = 0; step <= steps; step += 1) {
      const value = (top * step) / steps;
      const line = Math.round(y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(LEFT, line);
      pen.lineTo(width - RIGHT, line);
      pen.stroke();
      pen.fillText(this.unit(value), LEFT - 6, line);
    }
    if (this.bare) return;
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    const [from, to] = this.range;
    const room = (width - LEFT - RIGHT) / 90;
    const every = [10, 15, 30, 60, 120, 180, 300, 600].find((seconds) => (to - from) / seconds <= Math.max(2, room)) ?? 900;
    for (let t = Math.ceil(from / every) * every; t <= to; t += every) {
      if (x(t) < LEFT + 16 || x(t) > width - RIGHT - 14) continue;
      pen.fillText(every < 60 ? clock(t) : minute(t), x(t), height - 6);
    }
  }

  /** Return runs of points without a gap between them. */
  runs() {
    const found = [];
    let run = [];
    for (const point of this.points) {
      if (run.length && point.t - point.seconds - run.at(-1).t > LONGEST_GAP) {
        found.push(run);
        run = [];
      }
      run.push(point);
    }
    return run.length ? [...found, run] : found;
  }

  drawStack({ pen, color, x, y }) {
    const bars = this.series[0].kind === "bar";
    for (const run of this.runs()) {
      const base = run.map(() => 0);
      for (const { name, color: ink } of this.series) {
        const upper = run.map((point, index) => base[index] + (point[name] ?? 0));
        pen.fillStyle = color(ink);
        if (bars) {
          run.forEach((point, index) => {
            const step = (x(1) - x(0)) * point.seconds;
            const gap = step > 4 ? 1 : 0;
            if (upper[index] > base[index])
              pen.fillRect(x(point.t) - step + gap, y(upper[index]), Math.max(1, step - gap), Math.max(1, y(base[index]) - y(upper[index])));
          });
        } else {
          pen.beginPath();
          run.forEach((point, index) => pen.lineTo(x(point.t), y(upper[index])));
          for (let index = run.length - 1; index >= 0; index -= 1) pen.lineTo(x(run[index].t), y(base[index]));
          pen.closePath();
          pen.fill();
        }
        upper.forEach((value, index) => { base[index] = value; });
      }
    }
  }

  drawLines({ pen, color, x, y }) {
    for (const { name, color: ink, dash = [] } of this.series) {
      pen.strokeStyle = color(ink);
      pen.lineWidth = 1.75;
      pen.lineJoin = "round";
      pen.setLineDash(dash);
      for (const run of this.runs()) {
        pen.beginPath();
        let drawn = 0;
        for (const point of run) {
          if (point[name] === null || point[name] === undefined) continue;
          drawn += 1;
          pen.lineTo(x(point.t), y(point[name]));
        }
        if (drawn) pen.stroke();
      }
      pen.setLineDash([]);
    }
  }

  /** Shade the time between the loss of Redis and its return. */
  drawOutages({ pen, color, height, x }) {
    let begun = null;
    const shade = (from, to) => {
      pen.fillStyle = color("wrong-tint");
      pen.fillRect(x(from), 0, Math.max(2, x(to) - x(from)), height - this.bottom);
    };
    for (const mark of this.marks) {
      if (mark.kind === "outage") begun ??= mark.t;
      if (mark.kind === "reachable" && begun !== null) {
        shade(begun, mark.t);
        begun = null;
      }
    }
    if (begun !== null) shade(begun, this.range[1]);
  }

  drawMarks({ pen, color, width, height, x }) {
    if (this.compact) return;
    let labelled = -Infinity;
    for (const mark of this.marks) {
      const at = Math.round(x(mark.t)) + 0.5;
      if (at < LEFT) continue;
      const wrong = mark.kind === "outage" || mark.kind === "gone";
      pen.strokeStyle = pen.fillStyle = color(wrong ? "wrong" : "text");
      pen.globalAlpha = wrong ? 1 : 0.55;
      pen.lineWidth = 1;
      pen.setLineDash(mark.kind === "invalidation" ? [2, 3] : wrong ? [] : [5, 3]);
      pen.beginPath();
      pen.moveTo(at, 12);
      pen.lineTo(at, height - this.bottom);
      pen.stroke();
      pen.setLineDash([]);
      pen.globalAlpha = 1;
      const words = { deploy: "deploy", process: "process", ended: "process ended", gone: "process gone", outage: "outage", reachable: "reachable", invalidation: "invalidated" }[mark.kind] ?? mark.kind;
      const taken = pen.measureText(words).width;
      // At the right edge, the name is to the left of its mark.
      const start = at + 3 + taken > width ? at - 3 - taken : at + 3;
      if (start > labelled) {
        pen.textAlign = "left";
        pen.textBaseline = "top";
        pen.fillText(words, start, 1);
        labelled = Math.max(at, start + taken) + 5;
      }
    }
  }

  drawCross({ pen, color, width, height, x }) {
    const [from, to] = this.range;
    const index = this.at === null || this.at < from || this.at > to ? -1 : this.nearest(this.at);
    this.tip.hidden = index < 0;
    if (index < 0) return;
    const point = this.points[index];
    const at = Math.round(x(point.t)) + 0.5;
    pen.strokeStyle = color("text");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(at, TOP);
    pen.lineTo(at, height - this.bottom);
    pen.stroke();
    this.tip.replaceChildren(
      h("strong", null, clock(point.t)),
      ...[...this.series].reverse().map(({ name, label, color: ink }) =>
        h("span", null, h("i", { class: `dot ${ink}` }), `${label} `, h("b", null, this.unit(point[name])))),
      ...this.near(point.t).map((mark) => h("em", null, mark.text)),
    );
    this.tip.style.left = `${at > width / 2 ? at - 12 - this.tip.offsetWidth : at + 12}px`;
  }

  nearest(t) {
    let best = -1;
    this.points.forEach((point, index) => {
      if (best < 0 || Math.abs(point.t - t) < Math.abs(this.points[best].t - t)) best = index;
    });
    return best;
  }
}

/** Return a legend with the name and the newest value of each series. */
export function legend(series) {
  const values = new Map();
  const element = h("ul", { class: "legend" }, ...series.map(({ name, label, color }) => {
    const value = h("b");
    values.set(name, value);
    return h("li", null, h("i", { class: `dot ${color}` }), `${label} `, value);
  }));
  return { element, show: (texts) => values.forEach((value, name) => say(value, texts[name] ?? "")) };
}
