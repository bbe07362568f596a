// The key of who is signed in: what it may do, what it used, and what is left.

import { get, session } from "./api.js";
import { facts, h, put } from "./dom.js";
import { count, date, dateOf, percent, seconds, span, speed, whole } from "./format.js";
import { meter, others, plain, scopes, status } from "./keys.js";
import { fillTiles } from "./overview.js";
import { figure, named, Table } from "./table.js";
import { usageButton } from "./usage.js";

/** @param {string} when @param {Totals} t @returns {Tile[]} */
const sums = (when, t) => [
  [`Requests, ${when}`, count(t.requests), `${count(t.refused)} refused, ${count(t.failed)} failed`],
  [`Tokens, ${when}`, count(t.prompt_tokens + t.completion_tokens), `${count(t.prompt_tokens)} in, ${count(t.completion_tokens)} out`],
];

/** @returns {View} */
export function view() {
  const name = h("h2"), about = h("p", { class: "soft" }), tiles = h("dl", { class: "tiles" }), may = h("div");
  const limits = h("div", { class: "meters" });
  const table = new Table("mine", "Day by day", [
    { head: "Day", cell: r => r.day }, named("Model", "model"),
    figure("Requests", "requests"), figure("Refused", "refused"), figure("Failed", "failed"),
    figure("Tokens in", "prompt_tokens"), figure("Tokens out", "completion_tokens"), figure("Tokens/s", "speed", speed),
  ], "Nothing was used in the last 30 days.", { file: "days", tools: [usageButton()] });
  const node = h("div", {}, h("section", { class: "card me" }, name, about, limits, may), tiles, table.node, h("p", { class: "soft" }, "Every request of this key is under ", h("a", { href: "#/requests" }, "Requests"), "."));

  async function update() {
    /** @type {Me} */
    const me = session.me = await get("me");
    const since = new Date(Date.now() - 29 * 86400000).toISOString().slice(0, 10);
    const usage = await get("usage", { by: "day,model", key: me.name, since });
    put(name, me.name);
    const until = seconds(me.expires);
    put(about, [me.note, me.expired ? "It has expired." : until === null ? "It does not expire." : `It expires on ${date(until)}, in ${span(Math.floor(until - Date.now() / 1000))}.`, me.old_key_until && `The one before it works until ${dateOf(me.old_key_until)}.`].filter(Boolean).join(" · "));
    name.append(" ", status({ ...me, last_used: 1 }));
    limits.replaceChildren(...me.fields.filter(field => me.limits[field.name]).map(field => {
      const limit = me.limits[field.name], used = limit.used ? ` (${percent(limit.used / limit.limit)} used)` : "";
      return h("div", {}, h("b", {}, field.label), meter(field, limit), h("span", { class: "soft" }, `${whole(limit.left)} left${used}${limit.until ? ` until ${dateOf(limit.until)}` : ""}`));
    }));
    const meanings = me.fields.find(field => field.name === "scopes")?.choices ?? {};
    const more = others(me).filter(field => !me.limits[field.name]).map(field => /** @type {[string, string]} */ ([field.label, plain(me[field.name])]));
    may.replaceChildren(facts([["May", scopes(me).map(scope => meanings[scope]).join("; ")], ["Models", me.models?.join(" ") ?? "all"], ...more]));
    fillTiles(tiles, [...sums("today", me.today), ...sums("30 days", me.month)]);
    table.fill(usage.rows.reverse());
  }
  return { node, update };
}
