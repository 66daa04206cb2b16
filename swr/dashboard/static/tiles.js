// Tiles with the present figures.
import { h, say, set } from "./dom.js";
import { NONE, bytes, count, duration, number, rate, share } from "./format.js";
import { Panel, isBlind } from "./source.js";

const TILES = ["Without waiting", "Reads", "Loads", "Load time", "Failing", "Processes", "Redis", "Local cache"];
const MEAN_OVER = 10;

/** Return means over the last seconds, because the figures of single seconds vary too much to read. */
export function recent(points, seconds = MEAN_OVER) {
  const last = points.at(-1)?.t ?? 0;
  const taken = points.filter((point) => point.t > last - seconds);
  const all = taken.reduce((sum, point) => sum + point.seconds, 0) || 1;
  const mean = (name) => taken.reduce((sum, point) => sum + point[name] * point.seconds, 0) / all;
  return Object.fromEntries(["fresh", "stale", "missing", "waited", "loads", "failed"].map((name) => [name, mean(name)]));
}

/** Return whether a loader or route is failing now: keys back off, or loads failed in the last seconds. */
export function isFailing(row) {
  return row.backoff_keys > 0 || row.failed > 0;
}

class Tiles extends Panel {
  build() {
    this.tiles = TILES.map((name) => {
      const value = h("dd", { class: "value" });
      const more = h("dd", { class: "more" });
      const tile = h("div", { class: "tile" }, h("dt", null, name), value, more);
      return { tile, value, more };
    });
    this.append(h("dl", null, ...this.tiles.map(({ tile }) => tile)));
  }

  show(state) {
    const { totals, processes, nodes, rows } = state;
    const { reads_per_s: reads, loads_per_s: loads, without_waiting: free, stale } = totals;
    const alive = processes.filter(({ gone, silent }) => !gone && silent === null);
    const lost = processes.filter(({ gone, ended }) => gone && !ended).length;
    const unheard = processes.filter(({ gone }) => !gone).length - alive.length;
    const failing = rows.filter(isFailing).length;
    const sum = (name) => alive.reduce((all, process) => all + process[name], 0);
    this.put(0, share(free, reads ? 1 : 0), reads ? `${share(1 - free, 1)} waited` : "no reads yet");
    this.put(1, `${rate(reads)} /s`, reads ? `${share(stale, 1)} stale` : "");
    this.put(2, `${rate(loads)} /s`, `${count(totals.in_flight)} under way`);
    this.put(3, duration(totals.p50), `p99 ${duration(totals.p99)}`);
    this.put(4, count(failing), failing ? number(totals.backoffs, "key waits", "keys wait") : "nothing fails", failing > 0);
    const missed = processes.some(({ gone }) => gone) && state.problems.some(({ kind }) => kind === "process");
    this.put(5, count(alive.length), !state.fleet ? "others unseen" : [unheard && `${unheard} silent`, lost && `${lost} gone`].filter(Boolean).join(", ") || "all alive", missed || !state.fleet);
    this.put(6, ...this.redis(state));
    this.put(7, bytes(sum("l1_bytes")), number(sum("l1_entries"), "entry", "entries"));
    if (isBlind(state)) for (const index of [0, 1, 2, 3, 4, 5, 7]) this.put(index, NONE, "unseen", index === 5);
  }

  redis({ nodes, problems, totals: { redis_p50: p50, redis_p99: p99 } }) {
    if (!nodes.length) return ["none", "memory only"];
    const down = nodes.filter(({ reachable }) => !reachable).length;
    if (!down && problems.some(({ kind }) => kind === "refused")) return ["refuses", "commands", true];
    if (down) return ["down", nodes.length === 1 ? "unreachable" : `${down} of ${nodes.length} unreachable`, true];
    return [p50 === null ? "up" : duration(p50), p99 === null ? `${number(nodes.length, "node")} up` : `up, p99 ${duration(p99)}`];
  }

  put(index, value, more, wrong = false) {
    const tile = this.tiles[index];
    say(tile.value, value);
    say(tile.more, more);
    set(tile.tile, "class", `tile${wrong ? " is-wrong" : ""}`);
  }
}

customElements.define("swr-tiles", Tiles);
