// All keys, and what an administrator may do with them.

import { get, send, session } from "./api.js";
import { announce, button, check, complain, copyable, dialog, field, h, put, select } from "./dom.js";
import { count, dateOf, NONE, percent, whole } from "./format.js";
import { keyLink } from "./overview.js";
import { iso, lastSeen, mark, Table } from "./table.js";
import { usageButton } from "./usage.js";

/** The fields of keys that can be set. @returns {Field[]} */
const fields = () => session.me?.fields ?? [];

/** Those that have no column of their own, as far as a key has them. @param {Key} key */
export const others = key => fields().filter(field => !field.column && key[field.name]);

/** The words of a value. @param {unknown} value */
export const plain = value => [value ?? []].flat().join(" ");

/** How much of a limit is used. @param {Field} field @param {Limit} limit */
export function meter({ label, unit }, limit) {
  const text = `${count(limit.limit)}${unit}`;
  const share = Math.min(1, limit.used / limit.limit);
  const title = `${label}: ${whole(limit.used)} of ${whole(limit.limit)} used${limit.until ? `, until ${dateOf(limit.until)}` : ""}`;
  const bar = h("meter", { min: 0, max: 1, low: 0.8, high: 0.99, optimum: 0, value: share, "aria-label": title });
  return h("span", { class: "limit", title }, text, bar, h("span", { class: "soft" }, percent(share)));
}

/** @param {Key} key */
const limits = key => h("span", { class: "limits" }, ...others(key).map(field => (key.limits[field.name] ? meter(field, key.limits[field.name]) : h("span", { title: field.meaning }, `${field.label} ${plain(key[field.name])}`))), !others(key).length && NONE);

/** @param {Key} key */
export function status(key) {
  const [text, style] = key.disabled ? ["paused", "refused"] : key.expired ? ["expired", "failed"] : key.last_used === null ? ["unused", ""] : ["active", "good"];
  return mark(text, style);
}

/** What tells all of a key's scopes. @param {Key} key */
export const scopes = key => (key.scopes.includes("all") ? ["all", "account", "admin"].filter(scope => key.scopes.includes(scope)) : key.scopes);

/** @param {URLSearchParams} query @returns {View} */
export function view(query) {
  let file = /** @type {string | null} */ (null), now = 0;
  const adding = button("Add a key", () => edit(null), { class: "primary" });
  const why = h("p", { class: "soft" });
  const tokens = (/** @type {Key} */ { month }) => month && month.prompt_tokens + month.completion_tokens;
  /** @type {Table<Key>} */
  const table = new Table("keys", "Keys", [
    { head: "Name", style: "k", cell: key => h("span", {}, keyLink(key.name), key.admin && h("span", { class: "tag" }, "admin"), key.note && h("span", { class: "soft block" }, key.note)), csv: key => key.name },
    { head: "State", cell: status },
    { head: "Scopes", style: "w wide", cell: key => scopes(key).join(" ") },
    { head: "Models", style: "w wide", cell: key => key.models?.join(" ") ?? "all" },
    { head: "Limits", cell: limits, csv: key => others(key).map(({ name }) => `${name}=${plain(key[name])}`).join(" ") },
    { head: "Tokens, 30 days", style: "n", cell: key => count(tokens(key)), csv: tokens },
    { head: "Expires", style: "n wide", cell: key => dateOf(key.expires), csv: key => key.expires },
    { head: "Last used", style: "n", cell: key => lastSeen(key.last_used, now), csv: key => iso(key.last_used) },
    { head: "", style: "n acts", cell: menu },
  ], "There are no keys.", { tools: [adding, usageButton()] });

  async function update() {
    const data = await get("keys");
    file = data.file;
    now = data.now;
    adding.disabled = file === null;
    put(why, file === null ? "No key can be added without a keys file: set OLLAMA_KEYS_FILE to a file, such as keys.toml, and restart the gate." : `Changes are written to ${file}, which keeps its comments, and hold at once.`);
    // A menu that is open stays as it is.
    if (!table.body.querySelector("details[open]")) table.fill(data.keys, `${data.keys.length}`);
  }

  /** @param {Key} key */
  function menu(key) {
    if (key.kind === "environment") return h("span", { class: "soft wide" }, "environment");
    /** @type {(name: string, done: () => void, style?: string) => Node} */
    const act = (name, done, style = "quiet") => button(name, () => { close(); done(); }, { class: style });
    const summary = h("summary", { "aria-label": `Actions for ${key.name}` }, "⋯");
    const close = () => { box.open = false; summary.focus(); };
    const box = h("details", { class: "menu" }, summary,
      h("div", {}, act("Edit", () => edit(key)), act(key.disabled ? "Resume" : "Pause", () => pause(key)), key.kind === "key" && act("Rotate", () => rotate(key)), act("Revoke", () => revoke(key), "danger")));
    box.onkeydown = event => event.key === "Escape" && close();
    box.addEventListener("focusout", event => { if (!box.contains(/** @type {Node | null} */ (event.relatedTarget))) box.open = false; });
    return box;
  }

  /** @param {string} words */
  async function changed(words) {
    announce(words);
    await update().catch(() => {}); // It was changed; what is wrong now, the page says by itself.
  }

  /** @param {string} title @param {string} key @param {string} words */
  function showKey(title, key, words) {
    dialog(title, [h("p", {}, words), copyable(key, "Copy the key"), h("p", { class: "soft" }, "It is shown only now: the gate keeps a digest.")], "I have it");
  }

  /** @param {Key | null} key */
  function edit(key) {
    const inputs = fields().map(one => input(one, key?.[one.name])), before = new FormData(h("form", {}, ...inputs));
    dialog(key ? `Edit ${key.name}` : "Add a key", [
      !key && field("Name: a person or a program", h("input", { name: "name", required: true, maxlength: 64, placeholder: "alice", autocomplete: "off" })),
      h("div", { class: "columns" }, ...inputs),
      key && warnOwn(key),
    ], key ? "Save" : "Add", async form => {
      const edited = fields().filter(one => JSON.stringify(given(one, form)) !== JSON.stringify(given(one, before)));
      const values = Object.fromEntries(edited.map(one => [one.name, given(one, form)]));
      if (key) await send("PATCH", `keys/${encodeURIComponent(key.name)}`, values);
      else {
        const made = await send("POST", "keys", { ...values, name: text(form, "name") ?? "" });
        showKey(`The key for ${made.name}`, made.key, `Give it to ${made.name} now.`);
      }
      await changed(key ? `${key.name} was changed` : "The key was added");
    });
  }

  /** @param {Key} key */
  function pause(key) {
    if (key.disabled) return void act(key, "POST", "/enable", "is let in again").catch(error => complain("Nothing was changed", error));
    confirm(key, "Pause", "Requests with this key get 401 until you resume it. What runs goes on.", () => act(key, "POST", "/disable", "is paused"));
  }

  /** @param {Key} key */
  function revoke(key) {
    confirm(key, "Revoke", "The key is taken out of the keys file and can't be brought back. Its next request gets 401. To stop it for a while, pause it.", () => act(key, "DELETE", "", "was revoked"), true);
  }

  /** @param {Key} key */
  function rotate(key) {
    const grace = select("grace", [["24h", "24 hours"], ["1h", "1 hour"], ["7d", "7 days"], ["0", "not at all: it ends now"]]);
    dialog(`A new key for ${key.name}`, [field("The old key goes on working for", grace), warnOwn(key)], "Rotate", async form => {
      const made = await act(key, "POST", "/rotate", "has a new key", { grace: form.get("grace") });
      showKey(`The new key for ${key.name}`, made.key, made.old_key_until ? `The old one works until ${dateOf(made.old_key_until)}.` : "The old one works no more.");
    });
  }

  /** @param {Key} key */
  const warnOwn = key => key.name === session.me?.name && h("p", { class: "mark refused" }, "This is the key that you are signed in with.");

  /** @param {Key} key @param {string} verb @param {string} words @param {() => Promise<void>} done @param {boolean} [danger] */
  const confirm = (key, verb, words, done, danger) => dialog(`${verb} ${key.name}?`, [h("p", {}, words), warnOwn(key)], verb, done, { danger });

  /** @param {Key} key @param {"POST" | "DELETE"} method @param {string} what @param {string} done @param {unknown} [body] */
  async function act(key, method, what, done, body) {
    const made = await send(method, `keys/${encodeURIComponent(key.name)}${what}`, body);
    await changed(`${key.name} ${done}`);
    return made;
  }

  return { node: h("div", {}, table.node, why), update };
}

/** Something to fill in for a field, with the value that it has. @param {Field} field @param {unknown} value */
function input({ name, kind, label, meaning, choices, default: otherwise }, value) {
  if (kind === "choices") {
    const chosen = plain(value ?? otherwise).split(" ");
    return h("fieldset", {}, h("legend", {}, `${label}: ${meaning}`), ...Object.entries(choices).map(([one, words]) => check(name, one, chosen.includes(one), h("b", {}, one), ` ${words}`)));
  }
  const number = kind === "number", words = `${label}${kind === "words" ? ", separated by spaces" : ""}: ${meaning}`;
  return field(number ? label : words, h("input", { name, value: plain(value), placeholder: otherwise, autocomplete: "off", ...(number && { type: "number", min: 1 }) }));
}

/** What was filled in for a field. @param {Field} field @param {FormData} form */
function given({ name, kind, choices, default: otherwise }, form) {
  const typed = text(form, name), chosen = form.getAll(name);
  // Nothing is chosen where nothing was, except if the default is a choice: who takes that away may not get it.
  if (kind === "choices") return chosen.length || Object.hasOwn(choices, otherwise.split(" ")[0]) ? chosen : null;
  return kind === "words" ? typed?.split(/[\s,]+/) ?? null : kind === "number" ? typed && Number(typed) : typed;
}

/** What is in an input, or null. @param {FormData} form @param {string} name */
const text = (form, name) => String(form.get(name) ?? "").trim() || null;
