// All keys, and what an administrator may do with them.

import { get, send, session } from "./api.js";
import { announce, copyable, dialog, h, Table } from "./dom.js";
import { count, date, known, percent, seconds, whole } from "./format.js";
import { lastSeen } from "./overview.js";
import { LIMITS, SCOPES } from "./words.js";

/** @typedef {import("./api.js").Key} Key */

/** How much of a limit is used. @param {string} name @param {import("./api.js").Limit} limit */
export function meter(name, limit) {
  const [label, unit] = LIMITS[name] ?? [name, ""];
  const text = `${count(limit.limit)}${unit}`;
  if (limit.used === null) return h("span", { class: "limit" }, text);
  const share = Math.min(1, limit.used / limit.limit);
  const until = limit.until && name.startsWith("tokens") ? `, until ${date(Number(seconds(limit.until)))}` : "";
  const title = `${label}: ${whole(limit.used)} of ${whole(limit.limit)} used${until}`;
  const bar = h("meter", { min: 0, max: 1, low: 0.8, high: 0.99, optimum: 0, value: share, "aria-label": title });
  return h("span", { class: "limit", title }, text, bar, h("span", { class: "soft" }, percent(share)));
}

/** @param {Key} key */
export const limits = key => h("span", { class: "limits" }, ...(Object.keys(key.limits).length ? Object.entries(key.limits).map(([name, limit]) => meter(name, limit)) : [h("span", { class: "soft" }, "none")]));

/** @param {Key} key */
export function status(key) {
  const [text, style] = key.disabled ? ["paused", "refused"] : key.expired ? ["expired", "failed"] : key.last_used === null ? ["unused", ""] : ["active", "good"];
  return h("span", { class: `mark ${style}` }, text);
}

/** What tells all of a key's scopes. @param {Key} key */
export const scopes = key => (key.scopes.includes("all") ? ["all", "account", "admin"].filter(scope => key.scopes.includes(scope)) : key.scopes);

/** @param {URLSearchParams} query @returns {import("./app.js").View} */
export function view(query) {
  let file = /** @type {string | null} */ (null), now = 0;
  const adding = h("button", { class: "primary", type: "button", onclick: () => edit(null) }, "Add a key");
  const why = h("p", { class: "soft note" });
  /** @type {Table<Key>} */
  const table = new Table("Keys", [
    { head: "Name", style: "k", cell: key => h("span", {}, h("a", { href: `#/requests?key=${encodeURIComponent(key.name)}` }, key.name), key.admin && h("span", { class: "tag" }, "admin"), key.note && h("span", { class: "soft block" }, key.note)), csv: key => key.name },
    { head: "State", cell: status, csv: key => status(key).textContent },
    { head: "Scopes", style: "w wide", cell: key => scopes(key).join(" ") },
    { head: "Models", style: "w wide", cell: key => key.models?.join(" ") ?? "all" },
    { head: "Limits", cell: limits, csv: key => Object.entries(key.limits).map(([name, limit]) => `${name}=${limit.limit}`).join(" ") },
    { head: "Tokens, 30 days", style: "n", cell: key => count(key.month && key.month.prompt_tokens + key.month.completion_tokens), csv: key => key.month && key.month.prompt_tokens + key.month.completion_tokens },
    { head: "Expires", style: "n wide", cell: key => known(seconds(key.expires), date), csv: key => key.expires ?? "" },
    { head: "Last used", style: "n", cell: key => lastSeen(key.last_used, now), csv: key => known(key.last_used, t => new Date(t * 1000).toISOString()) },
    { head: "", style: "n acts", cell: key => menu(key) },
  ], "There are no keys.", { id: "keys", file: "keys", tools: [adding] });

  async function update() {
    const data = await get("keys");
    file = data.file;
    now = data.now;
    adding.disabled = file === null;
    why.textContent = file === null ? "No key can be added without a keys file: set OLLAMA_KEYS_FILE to a file, such as keys.toml, and restart the gate." : `Changes are written to ${file}, which keeps its comments, and hold at once.`;
    // A menu that is open, or has the focus, stays as it is.
    if (!table.body.querySelector("details[open]") && !table.body.contains(document.activeElement)) table.fill(data.keys, `${data.keys.length}`);
  }

  /** @param {Key} key */
  function menu(key) {
    if (key.kind === "environment") return h("span", { class: "soft wide" }, "environment");
    const act = (/** @type {string} */ name, /** @type {() => void} */ done, danger = false) => h("button", { type: "button", class: danger ? "danger" : "quiet", onclick: () => { box.open = false; done(); } }, name);
    const box = h("details", { class: "menu" }, h("summary", { "aria-label": `Actions for ${key.name}` }, "⋯"),
      h("div", {}, act("Edit", () => edit(key)), act(key.disabled ? "Resume" : "Pause", () => pause(key)), key.kind === "key" && act("Rotate", () => rotate(key)), act("Revoke", () => revoke(key), true)));
    box.addEventListener("keydown", event => { if (event.key === "Escape") box.open = false; });
    box.addEventListener("focusout", event => { if (!box.contains(/** @type {Node | null} */ (event.relatedTarget))) box.open = false; });
    return box;
  }

  /** @param {string} said */
  async function changed(said) {
    announce(said);
    await update();
  }

  /** @param {string} title @param {string} key @param {string} words */
  function showKey(title, key, words) {
    dialog(title, [h("p", {}, words), copyable(key, "Copy the key"), h("p", { class: "soft" }, "It is shown only now: the gate keeps a digest.")], "I have it", async () => {});
  }

  /** @param {Key | null} key */
  function edit(key) {
    const field = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ value, /** @type {Record<string, unknown>} */ more = {}) =>
      h("label", {}, h("span", {}, label), h("input", { name, value, autocomplete: "off", ...more }));
    const chosen = key?.scopes ?? ["infer", "embed", "list"];
    const may = h("fieldset", {}, h("legend", {}, "May"), ...Object.entries(SCOPES).map(([scope, words]) => h("label", { class: "check" },
      h("input", { type: "checkbox", name: "scope", value: scope, checked: chosen.includes(scope) }), h("span", {}, h("b", {}, scope), ` ${words}`))));
    const numbers = Object.entries(LIMITS).map(([name, [label]]) => field(name, label, String(key?.limits[name]?.limit ?? ""), { type: "number", min: 1, placeholder: "no limit" }));
    dialog(key ? `Edit ${key.name}` : "Add a key", [
      !key && field("name", "Name: a person or a program", "", { required: true, maxlength: 64, placeholder: "alice" }),
      field("note", "Note", key?.note ?? "", { placeholder: "for people, such as a room or a purpose" }),
      may,
      field("models", "Models, separated by spaces; * stands for anything", key?.models?.join(" ") ?? "", { placeholder: "all" }),
      h("div", { class: "columns" }, ...numbers),
      field("expires", "Expires: a date, or a time from now", key?.expires ?? "", { placeholder: "never; 90d, 2027-01-01" }),
      key && warnOwn(key),
    ], key ? "Save" : "Add", async form => {
      /** @type {Record<string, unknown>} */
      const fields = { note: text(form, "note"), scopes: form.getAll("scope"), models: text(form, "models")?.split(/[\s,]+/) ?? null };
      for (const name of Object.keys(LIMITS)) fields[name] = text(form, name) === null ? null : Number(form.get(name));
      const expires = text(form, "expires");
      if (!key || expires !== key.expires) fields.expires = expires;
      if (key) await send("PATCH", `keys/${encodeURIComponent(key.name)}`, fields);
      else {
        const made = await send("POST", "keys", { ...fields, name: text(form, "name") ?? "" });
        showKey(`The key for ${made.name}`, made.key, `Give it to ${made.name} now.`);
      }
      await changed(key ? `${key.name} was changed` : "The key was added");
    });
  }

  /** @param {Key} key */
  function pause(key) {
    if (key.disabled) return void act(key, "POST", "/enable", `${key.name} is let in again`);
    confirm(`Pause ${key.name}?`, `Requests with this key get 401 until you resume it. What runs goes on.`, "Pause", false, key, () => act(key, "POST", "/disable", `${key.name} is paused`));
  }

  /** @param {Key} key */
  function revoke(key) {
    confirm(`Revoke ${key.name}?`, "The key is taken out of the keys file and can't be brought back. Its next request gets 401. To stop it for a while, pause it.", "Revoke", true, key, () => act(key, "DELETE", "", `${key.name} was revoked`));
  }

  /** @param {Key} key */
  function rotate(key) {
    const grace = h("select", { name: "grace" }, ...[["24h", "24 hours"], ["1h", "1 hour"], ["7d", "7 days"], ["0", "not at all: it ends now"]].map(([value, words]) => h("option", { value }, words)));
    dialog(`A new key for ${key.name}`, [h("label", {}, h("span", {}, "The old key goes on working for"), grace), warnOwn(key)], "Rotate", async form => {
      const made = await send("POST", `keys/${encodeURIComponent(key.name)}/rotate`, { grace: form.get("grace") });
      showKey(`The new key for ${key.name}`, made.key, made.old_key_until ? `The old one works until ${date(Number(seconds(made.old_key_until)))}.` : "The old one works no more.");
      await changed(`${key.name} has a new key`);
    });
  }

  /** @param {Key} key */
  const warnOwn = key => key.name === session.me?.name && h("p", { class: "warning" }, "This is the key that you are signed in with.");

  /** @param {string} title @param {string} words @param {string} verb @param {boolean} danger @param {Key} key @param {() => Promise<void>} done */
  function confirm(title, words, verb, danger, key, done) {
    dialog(title, [h("p", {}, words), warnOwn(key)], verb, done, { danger });
  }

  /** @param {Key} key @param {"POST" | "DELETE"} method @param {string} what @param {string} said */
  async function act(key, method, what, said) {
    await send(method, `keys/${encodeURIComponent(key.name)}${what}`);
    await changed(said);
  }

  return { node: h("div", {}, table.node, why), update };
}

/** What is in a field, or null. @param {FormData} form @param {string} name */
const text = (form, name) => String(form.get(name) ?? "").trim() || null;
