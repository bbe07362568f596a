// The key of who is signed in: what it may do, what it used, and what is left.

import { get, session } from "./api.js";
import { h, put, Table } from "./dom.js";
import { count, date, known, many, percent, seconds, span, speed, whole } from "./format.js";
import { meter, scopes, status } from "./keys.js";
import { figure, fillTiles } from "./overview.js";
import { LIMITS, SCOPES } from "./words.js";

/** @typedef {import("./api.js").Me} Me */

/** @returns {import("./app.js").View} */
export function view() {
  const name = h("h2", {}), about = h("p", { class: "soft" }), tiles = h("dl", { class: "tiles" }), may = h("dl", { class: "facts" });
  const limits = h("div", { class: "meters" });
  const table = new Table("Day by day", /** @type {import("./dom.js").Column<any>[]} */ ([
    { head: "Day", cell: r => r.day },
    { head: "Model", style: "k", cell: r => r.model || "–" },
    ...["requests", "refused", "failed"].map(name => figure(name[0].toUpperCase() + name.slice(1), name)),
    figure("Tokens in", "prompt_tokens"), figure("Tokens out", "completion_tokens"), figure("Tokens/s", "speed", speed),
  ]), "Nothing was used in the last 30 days.", { id: "mine", file: "usage" });
  const node = h("div", {}, h("section", { class: "card me" }, name, about, limits, may), tiles, table.node, h("p", { class: "note soft" }, "Every request of this key is under ", h("a", { href: "#/requests" }, "Requests"), "."));

  async function update() {
    /** @type {Me} */
    const me = session.me = await get("me");
    const since = new Date(Date.now() - 29 * 86400000).toISOString().slice(0, 10);
    const usage = await get("usage", { by: "day,model", key: me.name, since });
    put(name, me.name);
    const until = seconds(me.expires);
    put(about, [me.note, me.expired ? "It has expired." : until === null ? "It does not expire." : `It expires on ${date(until)}, in ${span(Math.floor(until - Date.now() / 1000))}.`, known(me.old_key_until, text => `The one before it works until ${date(Number(seconds(text)))}.`)].filter(text => text && text !== "–").join(" · "));
    name.append(" ", status({ ...me, last_used: 1 }));
    fillLimits(me);
    /** @type {[string, string][]} */
    const facts = [
      ["May", scopes(me).map(scope => SCOPES[scope]).join("; ")],
      ["Models", me.models?.join(" ") ?? "all"],
    ];
    may.replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    fillTiles(tiles, [["today", me.today], ["30 days", me.month]].flatMap(([when, used]) => {
      const t = /** @type {import("./api.js").Totals | undefined} */ (used);
      return /** @type {[string, string, string, string][]} */ ([
        [`Requests, ${when}`, count(t?.requests), known(t, t => `${count(t.refused)} refused, ${count(t.failed)} failed`), ""],
        [`Tokens, ${when}`, known(t, t => count(t.prompt_tokens + t.completion_tokens)), known(t, t => `${count(t.prompt_tokens)} in, ${count(t.completion_tokens)} out`), ""],
      ]);
    }));
    table.fill(usage.rows.reverse(), many(usage.rows.length, "row"));
  }

  /** @param {Me} me */
  function fillLimits(me) {
    limits.replaceChildren(...Object.entries(me.limits).map(([name, limit]) => {
      const left = limit.left === null ? "" : `${whole(limit.left)} left${limit.used ? ` (${percent(limit.used / limit.limit)} used)` : ""}`;
      const until = limit.until && name.startsWith("tokens") ? `until ${date(Number(seconds(limit.until)))}` : "";
      return h("div", {}, h("b", {}, LIMITS[name][0]), meter(name, limit), h("span", { class: "soft" }, [left, until].filter(Boolean).join(" ")));
    }));
  }
  return { node, update };
}
