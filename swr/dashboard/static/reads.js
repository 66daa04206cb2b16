// Plots of reads over time by state, of loads, and of how long loads took.
import { h, heading } from "./dom.js";
import { duration, rate } from "./format.js";
import { Plot, legend } from "./plot.js";
import { Panel, isBlind, source } from "./source.js";
import { recent } from "./tiles.js";

const READS = [
  { name: "fresh", label: "fresh", color: "fresh" },
  { name: "stale", label: "stale", color: "stale" },
  { name: "missing", label: "missing", color: "missing" },
];
const LOADS = [
  { name: "loads", label: "loaded", color: "accent", kind: "bar" },
  { name: "failed", label: "failed", color: "wrong", kind: "bar" },
];
const TIMES = [
  { name: "p50", label: "p50", color: "accent", kind: "line" },
  { name: "p99", label: "p99", color: "text", kind: "line", dash: [4, 3] },
];

class Reads extends Panel {
  build() {
    this.legend = legend(READS);
    this.plot = new Plot({ name: "Reads a second by state", series: READS, unit: rate });
    this.append(heading("t-reads", "Reads a second", this.legend.element), this.plot.element);
  }

  show(state) {
    const { points, marks, range } = source.shown;
    const now = isBlind(state) ? {} : recent(points);
    this.legend.show(Object.fromEntries(READS.map(({ name }) => [name, rate(now[name])])));
    this.plot.show(points, range, marks);
  }
}

class Loads extends Panel {
  build() {
    this.legend = legend(LOADS);
    this.timesLegend = legend(TIMES);
    this.loads = new Plot({ name: "Loads a second", series: LOADS, unit: rate, compact: true, bare: true });
    this.times = new Plot({ name: "Seconds that loads take", series: TIMES, unit: duration, stacked: false, compact: true });
    this.append(heading("t-loads", "Loads a second", this.legend.element), this.loads.element,
      h("div", { class: "head" }, h("h3", null, "How long they take"), this.timesLegend.element), this.times.element);
  }

  show(state) {
    const { totals } = state;
    const { points, marks, range } = source.shown;
    const now = isBlind(state) ? {} : recent(points);
    this.legend.show({
      loads: rate(now.loads), failed: rate(now.failed),
    });
    this.timesLegend.show({ p50: duration(totals.p50), p99: duration(totals.p99) });
    this.loads.show(points, range, marks);
    this.times.show(points, range, marks);
  }
}

customElements.define("swr-reads", Reads);
customElements.define("swr-loads", Loads);
