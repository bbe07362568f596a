// Elements and dialogs. What others chose (names of keys, models, paths) is only ever put in as text.

/** @param {Element} node @param {Properties} properties @param {Child[]} children */
function set(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if ((value ?? false) === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (name === "value" || name === "checked") Object.assign(node, { [name]: value });
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(.../** @type {(Node | string)[]} */ (children.filter(child => (child ?? false) !== false)));
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

/** What went wrong, in words. @param {unknown} error */
export const said = error => (error instanceof Error ? error.message : String(error));

/** Names, each with what it stands for. @param {[string, Child][]} pairs */
export const facts = pairs => h("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

/** Something to fill in, with its label above. @param {string} label @param {Child[]} content */
export const field = (label, ...content) => h("label", {}, h("span", {}, label), ...content);

/** @param {string} name @param {[string, string][]} choices Values and words. @param {Properties} [properties] @param {string} [chosen] */
export const select = (name, choices, properties = {}, chosen = "") => h("select", { name, ...properties }, ...choices.map(([value, words]) => h("option", { value, selected: value === chosen }, words)));

/** @param {string} name @param {string} value @param {boolean} checked @param {Child[]} words */
export const check = (name, value, checked, ...words) => h("label", { class: "check" }, h("input", { type: "checkbox", name, value, checked }), h("span", {}, ...words));

/** A button that is not that of a form. @param {string} words @param {() => unknown} act @param {Properties} [properties] */
export const button = (words, act, properties = {}) => h("button", { type: "button", class: "quiet", onclick: act, ...properties }, words);

/** Where to say what went wrong. */
export const alert = () => h("p", { class: "problem", role: "alert" });

/**
 * A form that says why it could not be done. Its buttons are `others` and the one of `verb`.
 * @param {Properties} properties @param {Child[]} content @param {string} verb @param {(form: FormData) => unknown} act
 * @param {{danger?: boolean, others?: Child[]}} [options]
 */
export function form(properties, content, verb, act, { danger = false, others = [] } = {}) {
  const problem = alert();
  const ok = h("button", { class: danger ? "danger" : "primary" }, verb);
  const made = h("form", { ...properties, onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    ok.disabled = true;
    put(problem, "");
    try {
      await act(new FormData(made));
    } catch (error) {
      put(problem, said(error));
    }
    ok.disabled = false;
  } }, ...content, problem, h("p", { class: "actions" }, ...others, ok));
  return made;
}

/**
 * A dialog above the page. `act` is called when it is submitted, and closes it unless it throws; without it there is
 * nothing to cancel.
 * @param {string} title @param {Child[]} content @param {string} verb @param {((form: FormData) => Promise<unknown>) | null} [act]
 * @param {{danger?: boolean, closed?: () => unknown, others?: Child[]}} [options]
 */
export function dialog(title, content, verb, act = null, { danger, closed, others = [] } = {}) {
  const cancel = act && button("Cancel", () => { box.close(); });
  const box = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => { box.remove(); closed?.(); } },
    form({}, [h("h2", { id: "dialog-title" }, title), ...content], verb, async values => { await act?.(values); box.close(); }, { danger, others: [...others, cancel] }));
  document.body.append(box);
  box.showModal();
}

/** What went wrong, said in a dialog. @param {string} title @param {unknown} error */
export const complain = (title, error) => dialog(title, [h("p", { class: "problem" }, said(error))], "Close");

/** A text in a box, with a button that copies it. @param {string} text @param {string} [label] */
export function copyable(text, label = "Copy") {
  const code = h("code", {}, text);
  const copier = button(label, async () => {
    await copy(text, code);
    put(copier, "Copied");
    announce("Copied");
    setTimeout(() => put(copier, label), 1500);
  });
  return h("div", { class: "copy" }, h("pre", { tabindex: 0 }, code), copier);
}

/** Without HTTPS only this machine has a clipboard that a page may write to. @param {string} text @param {Node} shown */
async function copy(text, shown) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  getSelection()?.selectAllChildren(shown);
  document.execCommand("copy");
}
