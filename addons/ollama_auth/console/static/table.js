// Tables, each with a button that saves it as CSV.

import { button, complain, h, put } from "./dom.js";
import { ago, count, date, NONE, utc, whole } from "./format.js";
import { FOLDED } from "./words.js";

/**
 * A table that keeps its rows, and so a selection or the focus in them, when it is filled again. In CSV it has the rows
 * that it shows, or those that `all` gets.
 * @template [Row=any]
 */
export class Table {
  /**
   * @param {string} id @param {string} caption @param {Column<Row>[]} columns @param {string} empty
   * @param {{file?: string, tools?: Child[], all?: () => Promise<Row[]>}} [options]
   */
  constructor(id, caption, columns, empty, { file = id, tools = [], all } = {}) {
    this.columns = columns;
    this.empty = empty;
    /** @type {Row[]} */
    this.rows = [];
    this.note = h("span", { class: "soft" });
    this.body = h("tbody");
    const name = { "aria-labelledby": `table-${id}` };
    const told = columns.filter(column => column.head);
    const csv = csvButton(caption, file, async () => [told.map(column => column.head), ...(await all?.() ?? this.rows).map(row => told.map(column => (column.csv ?? column.cell)(row)))]);
    const heads = columns.map(column => h("th", { scope: "col", class: column.style }, column.head || h("span", { class: "unseen" }, "Actions")));
    const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", ...name }, h("table", name, h("thead", {}, h("tr", {}, ...heads)), this.body));
    this.node = h("section", { class: "card table", "data-table": id },
      h("header", {}, h("h2", { id: `table-${id}` }, caption), this.note, h("span", { class: "tools" }, ...tools, csv)), scroll);
  }

  /** @param {Row[]} rows @param {string} [note] */
  fill(rows, note = "") {
    this.rows = rows;
    put(this.note, note);
    if (!rows.length) {
      this.body.replaceChildren(h("tr", { class: "empty" }, h("td", { colspan: this.columns.length }, this.empty)));
      return;
    }
    if (this.body.querySelector(".empty")) this.body.replaceChildren();
    while (this.body.rows.length > rows.length) this.body.lastElementChild?.remove();
    while (this.body.rows.length < rows.length) {
      this.body.append(h("tr", {}, ...this.columns.map((column, x) => h(x ? "td" : "th", { scope: x ? null : "row", class: column.style }))));
    }
    rows.forEach((row, y) => this.columns.forEach((column, x) => fillCell(this.body.rows[y].cells[x], column, row)));
  }
}

/** @template Row @param {HTMLTableCellElement} cell @param {Column<Row>} column @param {Row} row */
function fillCell(cell, column, row) {
  const shown = column.cell(row);
  if (shown instanceof Element) {
    // A button is of this row; one that has the focus keeps it.
    const acts = (shown.matches("button") || shown.querySelector("button")) && !cell.contains(document.activeElement);
    if (acts || !cell.firstChild?.isEqualNode(shown)) cell.replaceChildren(shown);
  } else put(cell, String(shown ?? ""));
  const title = column.title?.(row) ?? "";
  if (cell.title !== title) cell.title = title;
}

// Columns that several tables have.

/**
 * Numbers. @param {string} head @param {string} name @param {(value: any) => string} [words] @param {string} [style]
 * @returns {Column}
 */
export const figure = (head, name, words = count, style = "n") => ({ head, style, cell: r => words(r[name]), title: r => (words === count ? whole(r[name]) : ""), csv: r => r[name] });

/** Names that others chose, which may be cut; their tooltips are not. @param {string} head @param {string} name @param {string} [style] @returns {Column} */
export const named = (head, name, style = "k") => ({ head, style, cell: r => r[name] || NONE, title: r => meant(r[name]), csv: r => r[name] });

/** A word in the colour of what it says. @param {string} words @param {string} [colour] @param {string} [title] */
export const mark = (words, colour = "", title) => h("span", { class: `mark ${colour}`, title }, words);

/** What a name stands for. @param {string | null | undefined} name */
export const meant = name => (name ? (Object.hasOwn(FOLDED, name) ? FOLDED[name] : name) : "");

/** @param {Known} time @param {number} now */
export const lastSeen = (time, now) => (time ? h("span", { title: `${date(time)} (${utc(time)})` }, ago(now - time)) : NONE);

/** @param {Known} time Seconds since 1970. */
export const iso = time => (time ? new Date(time * 1000).toISOString() : "");

// CSV.

/** A button that saves a table. @param {string} of @param {string} file @param {() => unknown[][] | Promise<unknown[][]>} rows Headings first. */
export const csvButton = (of, file, rows) => button("CSV", async () => {
  try {
    save(file, csv(await rows()));
  } catch (error) {
    complain("There is no CSV", error);
  }
}, { "aria-label": `CSV of ${of}` });

/** RFC 4180; what a spreadsheet would run as a formula is made text, as in telemetry/spreadsheet.py. @param {unknown[][]} rows */
function csv(rows) {
  const cell = (/** @type {unknown} */ value) => {
    const text = value instanceof Node ? String(value.textContent) : String(value ?? "");
    const plain = typeof value === "number" ? text : text.replace(/((?:^|[;\t\r\n])\s*)(?=[-=+@\uff0b\uff0d\uff1d\uff20])/g, "$1'");
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };
  return rows.map(row => `${row.map(cell).join(",")}\r\n`).join("");
}

/** Have the browser save a file. @param {string} name @param {string} text */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  h("a", { href: url, download: `${name}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
