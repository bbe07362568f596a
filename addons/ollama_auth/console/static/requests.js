// Requests that have ended: filtered, live, and each in detail. Never what was said in them.

import { get, lines, search, session } from "./api.js";
import { button, copyable, dialog, facts, field, h, select } from "./dom.js";
import { bytes, count, ms, NONE, speed, utc, when, whole } from "./format.js";
import { csvButton, figure, iso, mark, named, Table } from "./table.js";
import { OUTCOMES, why } from "./words.js";

/** @type {Record<string, string>} */
const FILTERS = { key: "Key", model: "Model", outcome: "Outcome", reason: "Reason", client: "From" }, PAGE = 100;

/** @param {any} r */
const pace = r => (r.completion_tokens && r.generation_ms ? (1000 * r.completion_tokens) / r.generation_ms : null);
/** @param {any} r */
const outcome = r => {
  const bad = r.status >= 400 && r.outcome === "answered"; // Such as a model that Ollama does not have.
  return mark(`${r.status ?? NONE} ${r.reason || (bad ? "by Ollama" : OUTCOMES[r.outcome])}`, bad ? "" : r.outcome, r.reason && why(r.reason));
};

/** @param {URLSearchParams} query @returns {View} */
export function view(query) {
  const filter = Object.fromEntries(Object.keys(FILTERS).map(name => [name, query.get(name) ?? ""]));
  const follows = query.get("live") === "1";
  /** @type {any[]} */
  let rows = [];
  let more = true, loaded = false;
  const stop = new AbortController();
  const inputs = Object.entries(FILTERS).filter(([name]) => name !== "key" || session.me?.admin).map(([name, label]) => field(label, name === "outcome"
    ? select(name, [["", "any"], ...Object.entries(OUTCOMES)], { onchange: () => go() }, filter[name])
    : h("input", { name, value: filter[name], placeholder: "any", autocomplete: "off" })));
  const form = h("form", { class: "filters", "aria-label": "Filters", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); go(); } },
    ...inputs, h("button", {}, "Filter"), h("a", { class: "button quiet", href: "#/requests" }, "Clear"));
  const live = button("Live", () => go(!follows), { class: null, "aria-pressed": String(follows) });
  const older = button("Older", load);
  const table = new Table("requests", "Requests", [
    { head: "Ended", cell: r => button(when(r.ended), () => detail(r), { class: "link", title: utc(r.ended) }), csv: r => iso(r.ended) },
    named("Key", "key"), named("Model", "model"),
    { head: "Outcome", cell: outcome, csv: r => `${r.status ?? ""} ${r.reason || r.outcome}`.trim() },
    figure("Tokens in", "prompt_tokens"),
    { head: "Tokens out", style: "n", cell: r => (r.estimated ? "~" : "") + count(r.completion_tokens), csv: r => r.completion_tokens },
    figure("First token", "ttft_ms", ms, "n wide"),
    { head: "Tokens/s", style: "n wide", cell: r => speed(pace(r)), csv: r => pace(r)?.toFixed(1) },
    figure("Took", "duration_ms", ms),
    named("From", "client", "k wide"),
    { head: "Request", style: "k wide", cell: r => `${r.method} ${r.path}` },
  ], "No request that fits was recorded.", { tools: [live], all: everything });
  const node = h("div", {}, form, table.node, h("p", { class: "actions" }, older));

  /** @param {string | number} [number] The request that is shown in detail. */
  const address = (live = follows, number) => `#/requests${search({ ...filter, live: live ? 1 : undefined, number })}`;

  function go(live = follows) {
    for (const [name, value] of new FormData(form)) filter[name] = String(value).trim();
    location.hash = address(live);
  }

  /** Show one, at an address of its own. @param {any} r */
  function detail(r) {
    const here = address(follows, r.number);
    history.replaceState(null, "", here);
    show(r, () => location.hash === here && history.replaceState(null, "", address()));
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
    const all = [...rows];
    for (let page = rows; page.length; all.push(...page)) page = (await get("requests", { ...filter, before: page[page.length - 1].number, limit: 1000 })).requests;
    return all;
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
    const number = Number(query.get("number"));
    if (!number) return;
    const [found] = (await get("requests", { before: number + 1, limit: 1 })).requests;
    if (found?.number === number) detail(found);
  }
  return { node, update, close: () => stop.abort() };
}

/** One request in detail. @param {any} r @param {() => unknown} closed */
function show(r, closed) {
  dialog("A request", [
    facts([
      ["Began", `${when(r.time)} (${utc(r.time)})`], ["Key", r.key], ["From", r.client], ["Request", `${r.method} ${r.path}`], ["Kind", r.class || NONE],
      ["Outcome", `${r.status ?? "no answer"}, ${OUTCOMES[r.outcome]}${r.reason || r.outcome !== "answered" ? `: ${why(r.reason)}` : ""}`],
      ["Model", r.model || NONE],
      ["Charged", r.prompt_tokens === null && r.completion_tokens === null ? "nothing" : `${whole(r.prompt_tokens)} tokens in, ${whole(r.completion_tokens)} out${r.estimated ? ", an estimate: the answer told no figures" : ""}`],
      ["Taken out", r.stripped.replaceAll(",", ", ") || NONE],
      ["First token", ms(r.ttft_ms)], ["Tokens per second", speed(pace(r))], ["Took", ms(r.duration_ms)],
      ["Size", `${bytes(r.bytes_in)} in, ${bytes(r.bytes_out)} out`],
    ]),
    h("p", { class: "soft" }, "The logs have this id, and clients get it in X-Request-Id:"), copyable(r.id, "Copy the id"),
  ], "Close", null, { closed, others: [csvButton("this request", `request-${Number(r.number)}`, () => [Object.keys(r), Object.values(r)])] });
}
