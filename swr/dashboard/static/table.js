// A table that the user can sort by its columns.
import { h, keep, set } from "./dom.js";

/**
 * Columns are {name, label, title, value, cell, start}: `value` returns the sort key of a row, `cell` fills a cell,
 * `start` is the order after the first press, "ascending" or "descending".
 */
export class SortedTable {
  constructor({ caption, columns, sortBy, keyOf, rowClass }) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.rowClass = rowClass;
    this.sortBy = sortBy;
    this.direction = columns.find(({ name }) => name === sortBy).start ?? "descending";
    this.rows = [];
    this.heads = columns.map((column) =>
      h("th", { scope: "col", class: column.name },
        column.value ? h("button", { type: "button", title: column.title ?? false, onclick: () => this.sort(column) }, column.label) : column.label));
    this.body = h("tbody");
    this.element = h("table", null, h("caption", { class: "unseen" }, caption), h("thead", null, h("tr", null, ...this.heads)), this.body);
  }

  sort(column) {
    const other = { ascending: "descending", descending: "ascending" };
    this.direction = this.sortBy === column.name ? other[this.direction] : column.start ?? "descending";
    this.sortBy = column.name;
    this.show(this.rows);
  }

  show(rows) {
    this.rows = rows;
    const { value } = this.columns.find(({ name }) => name === this.sortBy);
    const sign = this.direction === "ascending" ? 1 : -1;
    const compare = (one, other) => (typeof one === "string" ? one.localeCompare(other) : (one ?? -1) - (other ?? -1));
    const sorted = [...rows].sort((one, other) => sign * compare(value(one), value(other)));
    this.heads.forEach((head, index) => set(head, "aria-sort", this.columns[index].name === this.sortBy && this.direction));
    keep(this.body, sorted, this.keyOf,
      () => h("tr", null, ...this.columns.map(({ name }, index) => h(index ? "td" : "th", { class: name, scope: index ? false : "row" }))),
      (line, row) => {
        set(line, "class", this.rowClass?.(row) ?? "");
        this.columns.forEach(({ cell }, index) => cell(line.children[index], row));
      });
  }
}
