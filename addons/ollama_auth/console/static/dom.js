// Elements, tables and dialogs. What others chose (names of keys, models, paths) is only ever put in as text.

/** @typedef {Node | string | number | false | null | undefined} Child */
/** @typedef {Record<string, unknown>} Properties */

/** @param {Element} node @param {Properties} properties @param {Child[]} children */
function set(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (name === "value" || name === "checked") Object.assign(node, { [name]: value });
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(.../** @type {(Node | string)[]} */ (children.filter(child => child !== false && child !== null && child !== undefined)));
}

/**
 * An element: its attributes, listeners as `onclick`, and what is in it.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {Properties} [properties] @param {Child[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  set(node, properties, children);
  return node;
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag @param {Properties} [properties] @param {Child[]} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function svg(tag, properties = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, properties, children);
  return node;
}

/** Change a text only where it differs, so that a selection stays. @param {Element} node @param {string} text */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {string} id */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`there is no #${id}`);
  return node;
}

/** Tell people who listen to the page. @param {string} text */
export const announce = text => put(byId("said"), text);

/**
 * A column: its heading, classes of its cells, what a cell shows, its tooltip, and its value in CSV.
 * @template Row
 * @typedef {object} Column
 * @property {string} head
 * @property {string} [style]
 * @property {(row: Row) => Child} cell
 * @property {(row: Row) => string} [title]
 * @property {(row: Row) => unknown} [csv]
 */

/**
 * A table that keeps its rows, and so a selection or the focus in them, when it is filled again.
 * @template Row
 */
export class Table {
  /**
   * @param {string} caption @param {Column<Row>[]} columns @param {string} empty
   * @param {{few?: boolean, id?: string, file?: string, tools?: Child[], open?: (row: Row) => void}} [options]
   */
  constructor(caption, columns, empty, options = {}) {
    this.columns = columns;
    this.empty = empty;
    this.open = options.open;
    /** @type {Row[]} */
    this.rows = [];
    this.note = h("span", { class: "soft" });
    this.body = h("tbody");
    const id = `table-${options.id ?? caption.toLowerCase().replace(/\W+/g, "-")}`;
    const csv = options.file && h("button", { class: "quiet", type: "button", onclick: () => this.download(String(options.file)) }, "CSV");
    const head = h("tr", {}, ...columns.map(column => h("th", { scope: "col", class: column.style }, column.head || h("span", { class: "unseen" }, "Actions"))));
    const table = h("table", { "aria-labelledby": id }, h("thead", {}, head), this.body);
    this.scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": id }, table);
    this.node = h("section", { class: `card table${options.few ? " few" : ""}`, "data-table": options.id },
      h("header", {}, h("h2", { id }, caption), this.note, h("span", { class: "tools" }, ...(options.tools ?? []), csv)), this.scroll);
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
    while (this.body.rows.length < rows.length) this.body.append(this.#row(this.body.rows.length));
    rows.forEach((row, y) => this.columns.forEach((column, x) => this.#fill(this.body.rows[y].cells[x], column, row)));
  }

  /** @param {number} y */
  #row(y) {
    const cells = this.columns.map((column, x) => (x ? h("td", { class: column.style }) : h("th", { scope: "row", class: column.style })));
    return h("tr", { class: this.open && "opens", onclick: this.open && (() => this.open?.(this.rows[y])) }, ...cells);
  }

  /** @param {HTMLTableCellElement} cell @param {Column<Row>} column @param {Row} row */
  #fill(cell, column, row) {
    const shown = column.cell(row);
    if (shown instanceof Node) {
      if (!cell.firstChild?.isEqualNode(shown) || shown instanceof HTMLButtonElement || shown.hasChildNodes()) cell.replaceChildren(shown);
    } else put(cell, String(shown ?? ""));
    const title = column.title?.(row) ?? "";
    if (cell.title !== title) cell.title = title;
  }

  /** @param {string} name */
  download(name) {
    const columns = this.columns.filter(column => column.head);
    const rows = this.rows.map(row => columns.map(column => (column.csv ?? column.cell)(row)));
    save(`${name}.csv`, csv([columns.map(column => column.head), ...rows]));
  }
}

/** RFC 4180; a text that a spreadsheet would run as a formula is quoted. @param {unknown[][]} rows */
export function csv(rows) {
  /** @param {unknown} value */
  const cell = value => {
    const text = value instanceof Node ? String(value.textContent) : String(value ?? "");
    const plain = typeof value === "number" || !/^[=+\-@\t\r]/.test(text) ? text : `'${text}`;
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };
  return rows.map(row => `${row.map(cell).join(",")}\r\n`).join("");
}

/** @param {string} name @param {string} text */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/**
 * A dialog above the page. `act` is called when its form is submitted, and closes it unless it throws.
 * @param {string} title @param {Child[]} content @param {string} verb @param {(form: FormData) => Promise<void>} act
 * @param {{danger?: boolean}} [options]
 */
export function dialog(title, content, verb, act, options = {}) {
  const problem = h("p", { class: "problem", role: "alert" });
  const ok = h("button", { class: options.danger ? "danger" : "primary" }, verb);
  const cancel = h("button", { type: "button", class: "quiet", onclick: () => box.close() }, "Cancel");
  const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), ...content, problem, h("p", { class: "actions" }, cancel, ok));
  const box = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => box.remove() }, form);
  form.addEventListener("submit", async event => {
    event.preventDefault();
    ok.disabled = true;
    put(problem, "");
    try {
      await act(new FormData(form));
      box.close();
    } catch (error) {
      put(problem, error instanceof Error ? error.message : String(error));
    }
    ok.disabled = false;
  });
  document.body.append(box);
  box.showModal();
  return box;
}

/** A text in a box, with a button that copies it. @param {string} text @param {string} [label] */
export function copyable(text, label = "Copy") {
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    await copy(text, code);
    put(button, "Copied");
    announce("Copied");
    setTimeout(() => put(button, label), 1500);
  } }, label);
  const code = h("code", {}, text);
  return h("div", { class: "copy" }, h("pre", { tabindex: 0 }, code), button);
}

/** Without HTTPS only this machine has a clipboard that a page may write to. @param {string} text @param {Node} shown */
async function copy(text, shown) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  getSelection()?.selectAllChildren(shown);
  document.execCommand("copy");
}
