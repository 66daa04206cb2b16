// A table of loaders and routes: reads, states, load times, failures and bytes, and the last error of failing ones.
import { fill, h, heading, say } from "./dom.js";
import { bytes, clock, count, duration, number, rate, share } from "./format.js";
import { Panel } from "./source.js";
import { SortedTable } from "./table.js";
import { isFailing } from "./tiles.js";

const STATES = ["fresh", "stale", "missing"];

function reads(row) {
  return row.fresh + row.stale + row.missing;
}

/** Return a text about a failing row: its backoff, the next try, and its last error. The page cuts it if it is long. */
function trouble(row, now) {
  const parts = [];
  if (row.backoff_keys) parts.push(`${number(row.backoff_keys, "key waits", "keys wait")}`);
  if (row.retry_at) parts.push(row.retry_at > now ? `next try in ${duration(Math.ceil(row.retry_at - now))}` : "next try now");
  if (row.last_error) parts.push(`${clock(row.last_error.at)} ${row.last_error.type}${row.last_error.text && `: ${row.last_error.text}`}`);
  return parts.join(" · ");
}

function bar(cell, row) {
  const all = reads(row);
  let graph = cell.querySelector("svg");
  if (!graph) {
    const make = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
    graph = make("svg");
    graph.setAttribute("viewBox", "0 0 100 10");
    graph.setAttribute("preserveAspectRatio", "none");
    graph.setAttribute("aria-hidden", "true");
    graph.append(...STATES.map((state) => {
      const part = make("rect");
      part.setAttribute("class", `fill-${state}`);
      part.setAttribute("height", "10");
      return part;
    }));
    cell.append(graph, h("span", { class: "shares" }));
  }
  let from = 0;
  STATES.forEach((state, index) => {
    const width = all ? (100 * row[state]) / all : 0;
    graph.children[index].setAttribute("x", from);
    graph.children[index].setAttribute("width", width);
    from += width;
  });
  const words = STATES.filter((state) => row[state]).map((state) => `${share(row[state], all)} ${state}`);
  say(cell.lastElementChild, words.join(", ") || "no reads");
}

class Loaders extends Panel {
  build() {
    this.over = h("span", { class: "beside" });
    this.table = new SortedTable({
      caption: "Loaders and routes. Press a column's name to sort by it.",
      sortBy: "trouble",
      keyOf: (row) => `${row.kind} ${row.name}`,
      rowClass: (row) => (isFailing(row) ? "is-wrong" : ""),
      columns: [
        { name: "name", label: "Loader or route", start: "ascending", value: (row) => row.name, cell: (cell, row) => this.name(cell, row) },
        { name: "reads", label: "Reads /s", value: (row) => row.reads_per_s, cell: (cell, row) => say(cell, rate(row.reads_per_s)) },
        { name: "states", label: "Fresh, stale, missing", title: "Sort by the share of missing", value: (row) => row.missing / (reads(row) || 1), cell: bar },
        { name: "loads", label: "Loads", value: (row) => row.loads, cell: (cell, row) => say(cell, count(row.loads)) },
        { name: "p50", label: "p50", value: (row) => row.p50, cell: (cell, row) => say(cell, duration(row.p50)) },
        { name: "p99", label: "p99", value: (row) => row.p99, cell: (cell, row) => say(cell, duration(row.p99)) },
        { name: "trouble", label: "Failing", value: (row) => row.failed * 1e9 + row.backoff_keys * 1e6 + row.reads_per_s, cell: (cell, row) => say(cell, row.failed ? `${count(row.failed)} failed` : isFailing(row) ? number(row.backoff_keys, "waits", "wait") : "no") },
        { name: "bytes", label: "Bytes", value: (row) => row.bytes, cell: (cell, row) => say(cell, bytes(row.bytes)) },
      ],
    });
    this.none = h("div");
    this.scroll = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of loaders and routes" }, this.none, this.table.element);
    this.append(heading("t-table", "Loaders and routes", this.over), this.scroll);
  }

  name(cell, row) {
    const more = isFailing(row) && trouble(row, this.now);
    fill(cell, h("span", { class: "row-name" }, h("code", null, row.name || "(no name)"), " ", h("small", null, row.kind)), more && h("span", { class: "reason", title: more }, more));
  }

  show(state) {
    this.now = state.now;
    say(this.over, state.window ? `over ${duration(state.window)}` : "");
    this.sayNone(state, !state.rows.length, "No reads yet.", "Send a request through the middleware, or call a loader with @cache.cached.");
    this.table.element.hidden = !state.rows.length;
    this.table.show(state.rows);
  }
}

customElements.define("swr-loaders", Loaders);
