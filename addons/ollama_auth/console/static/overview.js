// What happens now, and what happened in a period: tiles, requests under way, plots, keys, models, reasons.

import { get, session } from "./api.js";
import { state } from "./app.js";
import { h, put, Table } from "./dom.js";
import { ago, count, date, known, many, ms, NONE, span, speed, utc, whole } from "./format.js";
import { Plots, shortUnit, timeUnit } from "./plot.js";
import { FOLDED, OUTCOMES, why } from "./words.js";

/** @type {Record<string, [string, string]>} A period: its name, and words for "in that time". */
const RANGES = {
  now: ["Now", "the last 10 minutes"], hour: ["1 hour", "the last hour"], day: ["24 hours", "the last 24 hours"],
  week: ["7 days", "the last 7 days"], month: ["30 days", "the last 30 days"],
};

const pair = (/** @type {string} */ of, /** @type {number} */ i) => (/** @type {any} */ bucket) => (bucket[of] ? bucket[of][i] : null);

/** @type {(per: string) => import("./plot.js").Plot[]} */
const plots = per => [
  { name: `Requests ${per}`, kind: "bars", words: count, unit: shortUnit, nothing: "No requests in this time.", series: [
    ["answered", "answered", m => m.answered], ["refused", "refused", m => m.refused], ["failed", "failed", m => m.failed], ["broken off", "broken", m => m.broken_off]] },
  { name: `Tokens out ${per}`, kind: "bars", words: count, unit: shortUnit, nothing: "No tokens were made in this time.", series: [["out", "out", m => m.completion_tokens]] },
  { name: `Tokens in ${per}`, kind: "bars", words: count, unit: shortUnit, nothing: "No tokens were read in this time.", series: [["in", "in", m => m.prompt_tokens]] },
  { name: "Time to first token", kind: "log", words: ms, unit: timeUnit, nothing: "No streamed answers in this time.", series: [["median", "wait", pair("ttft_ms", 0)], ["95 % below", "wait", pair("ttft_ms", 1)]] },
  { name: "Tokens per second of an answer", kind: "lines", words: speed, unit: v => count(v), nothing: "No answers in this time.", series: [["median", "pace", pair("speed", 0)], ["95 % above", "pace", pair("speed", 1)]] },
  { name: "Requests at once", kind: "bars", words: speed, unit: v => count(v), nothing: "Nothing was under way in this time.", series: [["average", "answered", m => m.at_once]] },
];

/** A name that others chose, which may be cut; its tooltip is not. @param {string | null | undefined} name */
export const named = name => (name ? (Object.hasOwn(FOLDED, name) ? FOLDED[name] : name) : "");

/** @param {string} key */
const keyLink = key => (session.me && !Object.hasOwn(FOLDED, key) ? h("a", { href: `#/requests?key=${encodeURIComponent(key)}` }, key) : key);

/** @returns {Table<any>} */
const flightTable = () => new Table("Under way", [
  { head: "Key", style: "k", cell: r => r.key, title: r => named(r.key) },
  { head: "Model", style: "k", cell: r => r.model ?? NONE, title: r => named(r.model) },
  { head: "State", cell: progress, csv: r => progress(r).textContent },
  figure("For", "seconds", span), figure("Tokens", "tokens"),
  { head: "Tokens/s, now", style: "n", cell: r => (r.first_token ? speed(r.speed) : NONE), csv: r => r.speed },
  figure("First token", "ttft_ms", ms, "n wide"),
  { head: "From", style: "wide k", cell: r => r.client },
  { head: "Request", style: "wide k", cell: r => `${r.method} ${r.path ?? ""}`, title: r => `id ${r.id}` },
], "Nothing is under way. A request shows here while it runs.", { id: "flight", file: "under-way" });

/** @param {any} r */
function progress(r) {
  if (r.stalled) return h("span", { class: "mark failed" }, r.first_token ? `stalled: no token for ${span(Math.floor(r.idle))}` : `waits for its first token for ${span(Math.floor(r.seconds))}`);
  if (r.stream === false) return h("span", { class: "mark" }, "is answered in one piece");
  return h("span", { class: "mark" }, r.first_token ? "streams" : r.admitted ? "waits for Ollama" : "sends its body");
}

/**
 * A column of numbers. @param {string} head @param {string} name @param {(value: any) => string} [words] @param {string} [style]
 * @returns {import("./dom.js").Column<any>}
 */
export const figure = (head, name, words = count, style = "n") => ({ head, style, cell: r => words(r[name]), title: r => (words === count ? whole(r[name]) : ""), csv: r => r[name] });
const orNone = (/** @type {number} */ value) => (value ? count(value) : NONE);

/** @type {(head: string, of: string) => import("./dom.js").Column<any>[]} */
const totals = (head, of) => [
  { head, style: "k", cell: r => (of === "key" ? keyLink(r.key) : r[of]), title: r => named(r[of]), csv: r => r[of] },
  figure("Requests", "requests"), figure("Refused", "refused", orNone), figure("Failed", "failed", orNone),
  figure("Tokens in", "prompt_tokens"), figure("Tokens out", "completion_tokens"), figure("Tokens/s", "speed", speed),
];

/** @param {URLSearchParams} query @returns {import("./app.js").View} */
export function view(query) {
  let range = query.get("range") ?? "hour";
  if (!Object.hasOwn(RANGES, range)) range = "hour";
  const choice = h("div", { class: "ranges", role: "group", "aria-label": "Period" }, ...Object.entries(RANGES).map(([id, [name]]) =>
    h("a", { href: `#/overview?range=${id}`, "aria-current": id === range ? "true" : null }, name)));
  const tiles = h("dl", { class: "tiles" });
  const flight = flightTable();
  const held = new Table(/** @type {string} */ ("Held back now"), /** @type {import("./dom.js").Column<any>[]} */ ([
    { head: "Who", style: "k", cell: r => r.key ?? "strangers" },
    { head: "From", style: "k", cell: r => r.client },
    { head: "Why", style: "w", cell: r => why(r.reason) },
    { head: "Refused", style: "n", title: () => "in the last minute", cell: r => count(r.requests) },
  ]), "Nobody is over a limit, and no address is throttled.", { id: "held", file: "held", few: true });
  const words = RANGES[range][1];
  const chart = new Plots(plots({ now: "in 10 seconds", hour: "per minute", day: "in 15 minutes", week: "in 2 hours", month: "per day" }[range] ?? ""), words);
  const keys = new Table("Keys", totals("Key", "key"), "No key was used in this time. Send a request with a key, and it shows here.", { id: "keys", file: "keys" });
  const models = new Table("Models", totals("Model", "model"), "No model was asked for in this time.", { id: "models", file: "models" });
  const reasons = new Table("Why requests did not succeed", /** @type {import("./dom.js").Column<any>[]} */ ([
    { head: "Why", style: "w", cell: r => h("span", {}, why(r.reason), why(r.reason) !== r.reason && h("span", { class: "soft block" }, r.reason)), csv: r => r.reason },
    { head: "Outcome", cell: r => h("span", { class: `mark ${r.outcome}` }, OUTCOMES[r.outcome] ?? r.outcome) },
    { head: "Whose", style: "k", cell: r => r.keys.join(", "), title: r => r.keys.map(named).join(", ") },
    { head: "Model", style: "k wide", cell: r => r.models.join(", ") || NONE },
    figure("Times", "requests"),
  ]), "Everything was answered.", { id: "reasons", file: "reasons", few: true });
  const plotted = h("div", {}, chart.node);
  const node = h("div", { class: "overview" }, choice, tiles, held.node, flight.node, plotted, h("div", { class: "pair" }, keys.node, h("div", { class: "stack" }, models.node, reasons.node)));

  async function update() {
    const data = await get("overview", { range, offset: -new Date().getTimezoneOffset() * 60 });
    state(data);
    const { sums } = data;
    fillTiles(tiles, [
      ["Under way", count(data.in_flight_total), data.stalled ? `${many(data.stalled, "request")} stalled` : `${many(data.connections, "connection")} open`, data.stalled ? "failed" : ""],
      ["Tokens per second", speed(data.tokens_per_second), "in the last 5 seconds, of all answers", ""],
      ["Requests", count(sums.requests), `${count(sums.refused)} refused, ${count(sums.failed)} failed`, ""],
      ["Tokens out", count(sums.completion_tokens), `${count(sums.prompt_tokens)} in`, ""],
      ["Time to first token", known(sums.ttft_ms, v => ms(v[0])), known(sums.ttft_ms, v => `95 % below ${ms(v[1])}`), ""],
    ]);
    flight.fill(data.in_flight, data.in_flight_total > data.in_flight.length ? `the oldest ${data.in_flight.length} of ${whole(data.in_flight_total)}` : data.in_flight.length > 1 ? "oldest first" : "");
    chart.fill({ ...data, buckets: data.buckets.slice(youth(data)) });
    const since = `busiest first, in ${words}`;
    keys.fill(data.keys, since);
    models.fill(data.models, since);
    reasons.fill(data.reasons, `in ${words}`);
    held.fill(data.held, "");
    held.node.hidden = !data.held.length;
    flight.node.classList.toggle("none", !data.in_flight.length);
  }
  return { node, update, close: () => chart.observer.disconnect() };
}

/** How many of the first steps are left out: of a gate that is young, the plots begin with it. @param {any} data */
const youth = ({ buckets, first, step }) => Math.max(0, Math.min(buckets.findIndex((/** @type {any} */ one) => one.time + step > first), buckets.length - 12));

/** @param {HTMLElement} box @param {[string, string, string, string][]} facts Name, figure, more, and a colour. */
export function fillTiles(box, facts) {
  while (box.children.length < facts.length) box.append(h("div", { class: "card" }, h("dt"), h("dd"), h("dd")));
  facts.forEach(([name, figure, more, colour], i) => {
    const [head, large, small] = box.children[i].children;
    put(head, name);
    put(large, figure);
    put(small, more);
    small.className = colour ? `mark ${colour}` : "";
  });
}

/** @param {number | null | undefined} time @param {number} now */
export const lastSeen = (time, now) => (time ? h("span", { title: `${date(time)} (${utc(time)})` }, ago(now - time)) : NONE);
