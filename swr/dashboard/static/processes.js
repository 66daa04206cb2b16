// Lists of processes and Redis nodes: which are alive or reachable, and since when others are not.
import { fill, h, heading, keep, set } from "./dom.js";
import { bytes, clock, count, lasting, number, rate } from "./format.js";
import { Panel } from "./source.js";

function wordsOf(process, now, missed) {
  if (process.gone) return `${missed ? "gone" : "ended"}, last heard ${clock(process.seen)}`;
  if (process.silent !== null) return `silent for ${lasting(process.silent)}`;
  if (!process.reachable) return `no Redis since ${clock(process.unreachable_since)}, ${lasting(now - process.unreachable_since)} ago`;
  return "alive";
}

class Processes extends Panel {
  build() {
    this.nodes = h("ul", { class: "rows nodes" });
    this.list = h("ul", { class: "rows procs-list" });
    this.none = h("div");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": "t-procs" },
      h("h3", { class: "unseen" }, "Nodes of Redis"), this.nodes, h("h3", { class: "unseen" }, "Processes"), this.none, this.list);
    this.append(heading("t-procs", "Processes and Redis"), this.scroll);
  }

  show(state) {
    const { nodes, processes, problems, now, served_by: served } = state;
    keep(this.nodes, nodes, ({ name }) => name, () => h("li"), (item, node) => {
      set(item, "class", node.reachable ? "is-fine" : "is-wrong");
      fill(item, h("span", { class: "what" }, "Redis ", h("code", null, node.name)),
        h("b", null, node.reachable ? "reachable" : "unreachable"),
        !node.reachable && h("small", null,
          [node.since !== null && `since ${clock(node.since)}, ${lasting(now - node.since)} ago`,
            node.unreachable_from.length > 0 && `from ${number(node.unreachable_from.length, "process", "processes")}`, node.reason].filter(Boolean).join(" · ")));
    });
    this.sayNone(state, !processes.length, "No process reports.", "Give the caches of the fleet Cache(reports=True), or set SWR_REPORTS=1 for Cache.from_env().");
    const ended = problems.filter(({ kind }) => kind === "process").map(({ target }) => target);
    // If many processes died at once, the problems at the top name only some; one without a target counts the rest.
    const missed = new Set(ended.includes(null) ? processes.filter(({ gone, ended: stopped, seen }) => gone && !stopped && now - seen < 60).map(({ id }) => id) : ended);
    const classOf = (process) => (process.gone ? (missed.has(process.id) ? "is-gone" : "is-ended") : process.reachable && process.silent === null ? "is-fine" : "is-wrong");
    const ORDER = ["is-gone", "is-wrong", "is-fine", "is-ended"];
    const order = (process) => `${ORDER.indexOf(classOf(process))} ${process.host}:${process.pid}`;
    const sorted = [...processes].sort((one, other) => order(one).localeCompare(order(other), "en", { numeric: true }));
    keep(this.list, sorted, ({ id }) => id, () => h("li"), (item, process) => {
      set(item, "class", classOf(process));
      fill(item, h("span", { class: "what" }, h("code", null, `${process.host}:${process.pid}`), process.id === served && h("small", null, " serves this page")),
        h("b", null, wordsOf(process, now, missed.has(process.id))),
        !process.gone && h("small", null, [
          `${rate(process.reads_per_s)} reads /s`, number(process.loads_in_flight, "load"), process.backoffs > 0 && `${count(process.backoffs)} back off`,
          `${bytes(process.l1_bytes)} of ${bytes(process.l1_max_bytes)}`, process.version && `version ${process.version}`, `up ${lasting(now - process.started)}`,
        ].filter(Boolean).join(" · ")));
    });
  }
}

customElements.define("swr-processes", Processes);
