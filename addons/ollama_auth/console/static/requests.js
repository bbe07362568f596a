// Requests that have ended: filtered, live, and each in detail. Never what was said in them.

import { get, lines, search, session } from "./api.js";
import { copyable, csv, h, save, Table } from "./dom.js";
import { bytes, count, known, ms, NONE, speed, utc, when, whole } from "./format.js";
import { figure, named } from "./overview.js";
import { OUTCOMES, why } from "./words.js";

const FILTERS = ["key", "model", "outcome", "reason", "client"], PAGE = 100;

/** @param {any} r */
const pace = r => (r.completion_tokens && r.generation_ms ? (1000 * r.completion_tokens) / r.generation_ms : null);
/** @param {any} r */
const outcome = r => {
  const bad = r.status >= 400 && r.outcome === "answered"; // Such as a model that Ollama does not have.
  return h("span", { class: `mark ${bad ? "" : r.outcome}`, title: r.reason ? why(r.reason) : "" }, r.status ?? NONE, " ", r.reason || (bad ? "by Ollama" : OUTCOMES[r.outcome]));
};

/** @type {import("./dom.js").Column<any>[]} */
const COLUMNS = [
  { head: "Ended", cell: r => h("button", { type: "button", class: "link", title: utc(r.ended), onclick: () => show(r) }, when(r.ended)), csv: r => new Date(r.ended * 1000).toISOString() },
  { head: "Key", style: "k", cell: r => r.key, title: r => named(r.key) },
  { head: "Model", style: "k", cell: r => r.model || NONE },
  { head: "Outcome", cell: outcome, csv: r => `${r.status ?? ""} ${r.reason || r.outcome}`.trim() },
  figure("Tokens in", "prompt_tokens"),
  { head: "Tokens out", style: "n", cell: r => (r.estimated ? "~" : "") + count(r.completion_tokens), csv: r => r.completion_tokens },
  figure("First token", "ttft_ms", ms, "n wide"),
  { head: "Tokens/s", style: "n wide", cell: r => speed(pace(r)), csv: r => known(pace(r), v => v.toFixed(1)) },
  figure("Took", "duration_ms", ms),
  { head: "From", style: "k wide", cell: r => r.client },
  { head: "Request", style: "k wide", cell: r => `${r.method} ${r.path}` },
];

/** @param {URLSearchParams} query @returns {import("./app.js").View} */
export function view(query) {
  /** @type {Record<string, string>} */
  const filter = Object.fromEntries(FILTERS.map(name => [name, query.get(name) ?? ""]));
  let follows = query.get("live") === "1";
  /** @type {any[]} */
  let rows = [];
  let more = true, loaded = false;
  const stop = new AbortController();
  const form = h("form", { class: "filters", "aria-label": "Filters", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); go(); } },
    ...FILTERS.filter(name => name !== "key" || session.me?.admin).map(name => h("label", {}, h("span", {}, { key: "Key", model: "Model", outcome: "Outcome", reason: "Reason", client: "From" }[name]),
      name === "outcome"
        ? h("select", { name, onchange: () => go() }, h("option", { value: "" }, "any"), ...Object.entries(OUTCOMES).map(([value, words]) => h("option", { value, selected: filter[name] === value }, words)))
        : h("input", { name, value: filter[name], placeholder: "any", autocomplete: "off", size: 12 }))),
    h("button", {}, "Filter"), h("a", { class: "button quiet", href: "#/requests" }, "Clear"));
  const live = h("button", { type: "button", "aria-pressed": String(follows), onclick: () => go(!follows) }, "Live");
  const older = h("button", { type: "button", class: "quiet", onclick: () => load() }, "Older");
  const table = new Table("Requests", COLUMNS, "No request that fits was recorded.", { id: "requests", tools: [live, h("button", { type: "button", class: "quiet", onclick: () => everything() }, "CSV")] });
  const node = h("div", {}, form, table.node, h("p", { class: "actions" }, older));

  function go(live = follows) {
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value).trim()]));
    location.hash = `#/requests${search({ ...values, live: live ? 1 : undefined })}`;
  }

  function fill() {
    table.fill(rows, follows ? "as they end" : "newest first");
    older.hidden = !more;
  }

  async function load() {
    const page = (await get("requests", { ...filter, before: rows[rows.length - 1]?.number, limit: PAGE })).requests;
    more = page.length === PAGE;
    rows = [...rows, ...page];
    fill();
  }

  async function everything() {
    /** @type {any[]} */
    let all = [];
    for (let page = rows; page.length; page = (await get("requests", { ...filter, before: page[page.length - 1].number, limit: 1000 })).requests) all = [...all, ...page];
    save("requests.csv", csv([COLUMNS.map(column => column.head), ...all.map(row => COLUMNS.map(column => (column.csv ?? column.cell)(row)))]));
  }

  async function follow() {
    while (!stop.signal.aborted) {
      try {
        for await (const line of lines(`requests/live${search(filter)}`, { signal: stop.signal })) {
          if (!line.startsWith("data: ")) continue;
          rows = [JSON.parse(line.slice(6)), ...rows].slice(0, 1000);
          fill();
        }
      } catch {
        if (stop.signal.aborted) return;
      }
      await new Promise(done => setTimeout(done, 2000));
    }
  }

  async function update() {
    if (loaded) return;
    loaded = true;
    try {
      await load();
    } catch (error) {
      loaded = false;
      throw error;
    }
    if (follows) void follow();
  }
  return { node, update, close: () => stop.abort() };
}

/** One request in detail. @param {any} r */
function show(r) {
  /** @type {[string, unknown][]} */
  const facts = [
    ["Began", `${when(r.time)} (${utc(r.time)})`], ["Key", r.key], ["From", r.client], ["Request", `${r.method} ${r.path}`], ["Kind", r.class || NONE],
    ["Outcome", `${r.status ?? "no answer"}, ${OUTCOMES[r.outcome]}${r.reason || r.outcome !== "answered" ? `: ${why(r.reason)}` : ""}`],
    ["Model", r.model || NONE],
    ["Charged", r.prompt_tokens === null && r.completion_tokens === null ? "nothing" : `${whole(r.prompt_tokens)} tokens in, ${whole(r.completion_tokens)} out${r.estimated ? ", an estimate: the answer told no figures" : ""}`],
    ["Taken out", r.stripped.replaceAll(",", ", ") || NONE],
    ["First token", ms(r.ttft_ms)], ["Tokens per second", speed(pace(r))], ["Took", ms(r.duration_ms)],
    ["Size", `${bytes(r.bytes_in)} in, ${bytes(r.bytes_out)} out`],
  ];
  const box = h("dialog", { "aria-labelledby": "request-title", onclose: () => box.remove() },
    h("h2", { id: "request-title" }, "A request"), h("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
    h("p", { class: "soft" }, "The logs have this id, and clients get it in X-Request-Id:"), copyable(r.id, "Copy the id"),
    h("form", { method: "dialog", class: "actions" }, h("button", { class: "primary" }, "Close")));
  document.body.append(box);
  box.showModal();
}
