// What happens now, and what happened in a period: tiles, requests under way, plots, keys, models, reasons.

import { get, search, session } from "./api.js";
import { state } from "./app.js";
import { h, put } from "./dom.js";
import { count, known, many, ms, NONE, percent, span, speed, whole } from "./format.js";
import { Plots, shortUnit, timeUnit } from "./plot.js";
import { figure, mark, meant, named, Table } from "./table.js";
import { usageButton } from "./usage.js";
import { FOLDED, OUTCOMES, why } from "./words.js";

/** @type {Record<string, [string, string, string]>} A period: its name, words for "in that time", and for one step of the plots. */
const RANGES = {
  now: ["Now", "the last 10 minutes", "every 10 seconds"], hour: ["1 hour", "the last hour", "per minute"], day: ["24 hours", "the last 24 hours", "every 15 minutes"],
  week: ["7 days", "the last 7 days", "every 2 hours"], month: ["30 days", "the last 30 days", "per day"],
};

/** @type {(per: string) => Plot[]} */
const plots = per => [
  { name: `Requests ${per}`, kind: "bars", words: count, unit: shortUnit, series: [
    ["answered", "answered", m => m.answered], ["refused", "refused", m => m.refused], ["failed", "failed", m => m.failed], ["broken off", "broken", m => m.broken_off]] },
  { name: `Tokens out ${per}`, kind: "bars", words: count, unit: shortUnit, series: [["out", "out", m => m.completion_tokens]] },
  { name: `Tokens in ${per}`, kind: "bars", words: count, unit: shortUnit, series: [["in", "in", m => m.prompt_tokens]] },
  { name: "Time to first token", kind: "log", words: ms, unit: timeUnit, series: [["median", "wait", m => m.ttft_ms?.[0] ?? null], [`${percent(0.95)} below`, "wait", m => m.ttft_ms?.[1] ?? null]] },
  { name: "Tokens per second of an answer", kind: "lines", words: speed, unit: count, series: [["median", "pace", m => m.speed?.[0] ?? null], [`${percent(0.95)} above`, "pace", m => m.speed?.[1] ?? null]] },
  { name: "Requests at once", kind: "bars", words: speed, unit: count, series: [["average", "answered", m => m.at_once]] },
];

/** A link to the requests of a key. @param {string} key */
export const keyLink = key => (session.me && !Object.hasOwn(FOLDED, key) ? h("a", { href: `#/requests${search({ key })}` }, key) : key);

const flightTable = () => new Table("flight", "Under way", [
  named("Key", "key"), named("Model", "model"),
  { head: "State", cell: progress },
  figure("For", "seconds", span), figure("Tokens", "tokens"),
  { head: "Tokens/s, now", style: "n", cell: r => (r.first_token ? speed(r.speed) : NONE), csv: r => r.speed },
  figure("First token", "ttft_ms", ms, "n wide"),
  named("From", "client", "wide k"),
  { head: "Request", style: "wide k", cell: r => `${r.method} ${r.path ?? ""}`, title: r => `id ${r.id}` },
], "Nothing is under way. A request shows here while it runs.", { file: "under-way" });

/** @param {any} r */
function progress(r) {
  if (r.stalled) return mark(r.first_token ? `stalled: no token for ${span(Math.floor(r.idle))}` : `waits for its first token for ${span(Math.floor(r.seconds))}`, "failed");
  if (r.stream === false) return mark("is answered in one piece");
  return mark(r.first_token ? "streams" : r.admitted ? "waits for Ollama" : "sends its body");
}

const orNone = (/** @type {number} */ value) => (value ? count(value) : NONE);

/** @param {string} head @param {string} of */
const totals = (head, of) => [
  { ...named(head, of), ...(of === "key" ? { cell: (/** @type {any} */ r) => keyLink(r.key) } : {}) },
  figure("Requests", "requests"), figure("Refused", "refused", orNone), figure("Failed", "failed", orNone),
  figure("Tokens in", "prompt_tokens"), figure("Tokens out", "completion_tokens"), figure("Tokens/s", "speed", speed),
];

/** @param {URLSearchParams} query @returns {View} */
export function view(query) {
  const asked = query.get("range") ?? "", range = Object.hasOwn(RANGES, asked) ? asked : "hour";
  const choice = h("div", { class: "ranges", role: "group", "aria-label": "Period" }, ...Object.entries(RANGES).map(([id, [name]]) =>
    h("a", { href: `#/overview?range=${id}`, "aria-current": id === range ? "true" : null }, name)));
  const tiles = h("dl", { class: "tiles" });
  const flight = flightTable();
  const held = new Table("held", "Held back now", [
    { ...named("Who", "key"), cell: r => r.key ?? "strangers" }, named("From", "client"),
    { head: "Why", style: "w", cell: r => why(r.reason) },
    { ...figure("Refused", "requests"), title: () => "in the last minute" },
  ], "Nobody is over a limit, and no address is throttled.");
  const [, words, per] = RANGES[range];
  const chart = new Plots(plots(per), words);
  const keys = new Table("keys", "Keys", totals("Key", "key"), "No key was used in this time. Send a request with a key, and it shows here.", { tools: [usageButton()] });
  const models = new Table("models", "Models", totals("Model", "model"), "No model was asked for in this time.");
  const reasons = new Table("reasons", "Why requests did not succeed", [
    { head: "Why", style: "w", cell: r => h("span", {}, why(r.reason), why(r.reason) !== r.reason && h("span", { class: "soft block" }, r.reason)), csv: r => r.reason },
    { head: "Outcome", cell: r => mark(OUTCOMES[r.outcome] ?? r.outcome, r.outcome) },
    { head: "Whose", style: "k", cell: r => r.keys.join(", "), title: r => r.keys.map(meant).join(", ") },
    { head: "Model", style: "k wide", cell: r => r.models.join(", ") || NONE },
    figure("Times", "requests"),
  ], "Everything was answered.");
  const node = h("div", { class: "overview" }, choice, tiles, held.node, flight.node, chart.node, h("div", { class: "pair" }, keys.node, h("div", { class: "stack" }, models.node, reasons.node)));

  async function update() {
    const data = await get("overview", { range, offset: -new Date().getTimezoneOffset() * 60 });
    state(data);
    const { sums } = data;
    fillTiles(tiles, [
      ["Under way", count(data.in_flight_total), data.stalled ? `${many(data.stalled, "request")} stalled` : `${many(data.connections, "connection")} open`, data.stalled ? "failed" : ""],
      ["Tokens per second", speed(data.tokens_per_second), "in the last 5 seconds, of all answers"],
      ["Requests", count(sums.requests), `${count(sums.refused)} refused, ${count(sums.failed)} failed`],
      ["Tokens out", count(sums.completion_tokens), `${count(sums.prompt_tokens)} in`],
      ["Time to first token", known(sums.ttft_ms, v => ms(v[0])), known(sums.ttft_ms, v => `${percent(0.95)} below ${ms(v[1])}`)],
    ]);
    flight.fill(data.in_flight, data.in_flight_total > data.in_flight.length ? `the oldest ${data.in_flight.length} of ${whole(data.in_flight_total)}` : data.in_flight.length > 1 ? "oldest first" : "");
    chart.fill({ ...data, buckets: data.buckets.slice(youth(data)) });
    const since = `busiest first, in ${words}`;
    keys.fill(data.keys, since);
    models.fill(data.models, since);
    reasons.fill(data.reasons, `in ${words}`);
    held.fill(data.held);
    held.node.hidden = !data.held.length;
  }
  return { node, update, close: () => chart.observer.disconnect() };
}

/** How many of the first steps are left out: of a gate that is young, the plots begin with it. @param {any} data */
const youth = ({ buckets, first, step }) => Math.max(0, Math.min(buckets.findIndex((/** @type {any} */ one) => one.time + step > first), buckets.length - 12));

/** @param {HTMLElement} box @param {Tile[]} tiles */
export function fillTiles(box, tiles) {
  while (box.children.length < tiles.length) box.append(h("div", { class: "card" }, h("dt"), h("dd"), h("dd")));
  tiles.forEach(([name, figure, more, colour], i) => {
    const [head, large, small] = box.children[i].children;
    put(head, name);
    put(large, figure);
    put(small, more);
    small.className = colour ? `mark ${colour}` : "";
  });
}
