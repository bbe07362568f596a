"use strict";
// What others chose (names of keys, models, paths) is only ever put in as text: there is no innerHTML in here.
const PERIOD = 2000, TIMEOUT = 5000, SVG = "http://www.w3.org/2000/svg";
const REASONS = {
  "missing": "No key was sent",
  "malformed": "The request, or the key in it, was not well-formed",
  "duplicate": "More than one key was sent",
  "unknown": "An unknown key",
  "disabled": "The key is disabled",
  "expired": "The key has expired",
  "stale": "The signature is too old, or a clock is wrong",
  "bad signature": "The signature does not match",
  "replayed": "The signature was used before",
  "scope": "The key may not do this kind of request",
  "model": "The key may not use this model",
  "wrong path": "A path or method that Ollama does not have",
  "websocket": "A WebSocket was asked for; clients go on without one",
  "requests_per_minute": "The key is over its requests per minute",
  "concurrent_requests": "The key has too many requests at once",
  "tokens_per_day": "The key has used up its tokens of the day",
  "throttled": "Many different wrong keys came from one address",
  "limits unavailable": "The storage that counts limits does not answer",
  "malformed body": "The request body could not be read",
  "body timeout": "The request body stopped coming",
  "connections": "Too many connections of one client behind a proxy",
  "held bodies": "Too many large requests at once",
  "body too large": "The request body was too large",
  "key in path": "The key was in the URL, where others can read it",
  "closed": "The gate had no valid configuration",
  "error": "A fault in the gate; it refuses rather than guess",
};
const STATES = {
  open: ["Open", "good"], draining: ["Draining: ends what runs, takes nothing new", "warn"], closed: ["Closed: refuses everything", "bad"],
};
const UPSTREAM = { true: ["Ollama is ready", "good"], false: ["Ollama does not answer", "bad"], null: ["Ollama not asked yet", ""] };

const $ = id => document.getElementById(id);
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const show = (node, yes) => { if (node.hidden === yes) node.hidden = !yes; };
function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function square(colour) {
  const node = make("i");
  node.style.background = `var(${colour})`;
  return node;
}

// Numbers as people read them.
const exact = new Intl.NumberFormat("en"), short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const none = "–", known = (value, words) => value === null || value === undefined ? none : words(value);
const count = value => known(value, v => v < 100000 ? exact.format(v) : short.format(v));
const whole = value => known(value, v => exact.format(v));
const speed = value => known(value, v => v && v < 100 ? v.toFixed(1) : exact.format(Math.round(v)));
const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
const ms = value => known(value, v => v < 10 ? `${v.toFixed(1)} ms` : v < 1000 ? `${Math.round(v)} ms` : v < 100000 ? `${(v / 1000).toFixed(v < 10000 ? 2 : 1)} s` : span(v / 1000));
function span(seconds) {
  const s = Math.max(0, seconds), [d, h, m] = [s / 86400, s / 3600 % 24, s / 60 % 60].map(Math.floor);
  if (s < 60) return `${s < 10 && s % 1 ? s.toFixed(1) : Math.floor(s)} s`;
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : `${m} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
}
const ago = s => s < 5 ? "just now" : s < 60 ? `${Math.floor(s)} s ago` : s < 3600 ? `${Math.floor(s / 60)} min ago` : s < 86400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86400)} d ago`;
const clock = (time, more = {}) => new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...more });
const date = time => new Date(time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
const sum = (rows, of) => rows.reduce((total, row) => total + (row[of] || 0), 0);

const FOLDED = { "(none)": "requests without a known key", "(other)": "all further names together", "(unknown)": "answers that named no model" };
const named = name => name ? [name, Object.hasOwn(FOLDED, name) ? FOLDED[name] : name] : none; // a name may be cut, its tooltip is not

// Tables: a column is [its heading, classes, row -> text or [text, tooltip]]. Cells are reused, so that a selection stays.
const TABLES = {
  flight: [["Key", "k", r => named(r.key)], ["Model", "k", r => named(r.model)], ["Elapsed", "n", r => span(r.seconds)],
    ["Tokens", "n", r => [count(r.tokens), whole(r.tokens)]], ["Tokens/s", "n", r => speed(r.speed)],
    ["First token", "n", r => r.ttft_ms === null && r.stream === false ? ["not streamed", "it is answered in one piece"] : r.ttft_ms === null ? "waits" : ms(r.ttft_ms)],
    ["Request", "k", r => [`${r.method} ${r.path ?? ""}`, `${r.path ?? ""}\nid ${r.id}`]]],
  keys: [["Key", "k", r => named(r.key)], ["Requests", "n", r => [count(r.requests), whole(r.requests)]],
    ["Refused", "n", r => r.refused ? [count(r.refused), whole(r.refused)] : none],
    ["Tokens in", "n", r => [count(r.prompt_tokens), whole(r.prompt_tokens)]], ["Tokens out", "n", r => [count(r.completion_tokens), whole(r.completion_tokens)]],
    ["Tokens/s", "n", r => speed(r.speed)], ["Last seen", "n", (r, now) => known(r.last, v => [ago(now - v), date(v)])]],
  models: [["Model", "k", r => named(r.model)], ["Requests", "n", r => [count(r.requests), whole(r.requests)]],
    ["Tokens in", "n", r => [count(r.prompt_tokens), whole(r.prompt_tokens)]], ["Tokens out", "n", r => [count(r.completion_tokens), whole(r.completion_tokens)]],
    ["Tokens/s", "n", r => speed(r.speed)]],
  refusals: [["Why", "w", r => Object.hasOwn(REASONS, r.reason) ? REASONS[r.reason] : r.reason], ["In the log", "w soft", r => r.reason], ["Times", "n", r => [count(r.times), whole(r.times)]]],
};
const EMPTY = {
  flight: "Nothing is under way. A request shows here while it runs.",
  keys: "No key was used since the gate started. Send a request with a key, and it shows here.",
  models: "No model was asked for yet. They show here with the first chat, completion or embedding.",
  refusals: "Nothing was refused since the gate started.",
};
function fill(id, rows, now, note) {
  const table = $(id), columns = TABLES[id];
  if (!table.tHead) {
    table.createTHead().append(make("tr", {}, ...columns.map(([head, style]) => make("th", { scope: "col", class: style }, head))));
    table.createTBody();
  }
  put(table.caption.lastElementChild, note);
  const body = table.tBodies[0], empty = !rows.length;
  if (body.classList.toggle("empty", empty)) return body.replaceChildren(make("tr", {}, make("td", { colspan: columns.length }, EMPTY[id])));
  if (body.firstElementChild?.cells.length === 1) body.replaceChildren();
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  while (body.rows.length < rows.length) body.append(make("tr", {}, ...columns.map(([, style], i) => make(i ? "td" : "th", i ? { class: style } : { scope: "row", class: style }))));
  rows.forEach((row, y) => columns.forEach(([, , read], x) => {
    const [text, title = ""] = [read(row, now)].flat(), cell = body.rows[y].cells[x];
    put(cell, text);
    if (cell.title !== title) cell.title = title;
  }));
}

// Plots of the last hour. A series is [name, colour, minute -> number or null].
const pair = (of, i) => minute => minute[of] ? minute[of][i] : null;
const PLOTS = [
  { name: "Requests per minute", kind: "bars", words: count, nothing: "No requests in the last hour.", series: [
    ["answered", "--one", m => m.answered], ["refused", "--two", m => m.refused], ["failed", "--three", m => m.failed], ["broken off", "--soft", m => m.broken_off]] },
  { name: "Tokens per minute", kind: "bars", words: count, nothing: "No tokens in the last hour.", series: [
    ["out", "--one", m => m.completion_tokens], ["in", "--two", m => m.prompt_tokens]] },
  { name: "Time to first token", kind: "band", words: ms, nothing: "No streamed answers in the last hour.", series: [
    ["median", "--one", pair("ttft_ms", 0)], ["p95", "--two", pair("ttft_ms", 1)]] },
  { name: "Time between tokens", kind: "band", words: ms, nothing: "No streamed answers in the last hour.", series: [
    ["median", "--one", pair("token_ms", 0)], ["p95", "--two", pair("token_ms", 1)]] },
];
let minutes = [], at = null; // `at`: the minute that is pointed at, in all plots at once
function point(index) {
  at = index === null || !minutes.length ? null : Math.max(0, Math.min(minutes.length - 1, index));
  PLOTS.forEach(draw);
}
for (const plot of PLOTS) {
  plot.legend = make("p", { class: "legend" });
  plot.svg = make("svg:svg", { role: "img", tabindex: 0 });
  plot.index = event => Math.floor((event.clientX - plot.svg.getBoundingClientRect().left - plot.left) / plot.step);
  plot.svg.addEventListener("pointermove", event => point(plot.index(event)));
  plot.svg.addEventListener("pointerdown", event => point(plot.index(event)));
  plot.svg.addEventListener("pointerleave", event => event.pointerType === "touch" || point(null));
  plot.svg.addEventListener("blur", () => point(null));
  plot.svg.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); point((at ?? minutes.length) + by); }
    if (event.key === "Escape") point(null);
  });
  $("plots").append(make("figure", { class: "card" }, make("figcaption", {}, make("h2", {}, plot.name), plot.legend), plot.svg));
}
function ticks(most, whole) {
  const rough = Math.max(most / 3, whole ? 1 : 0), ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * [1, 2, 5, 10].find(times => ten * times >= rough * .999);
  return Array.from({ length: Math.ceil(most / step - .001) + 1 }, (_, i) => i * step);
}
function draw(plot) {
  const W = plot.svg.clientWidth || 400, H = 150, bottom = H - 20, top = 10, bars = plot.kind === "bars", right = W - 2;
  const values = plot.series.map(([, , read]) => minutes.map(read));
  const heights = bars ? minutes.map((_, i) => values.reduce((all, series) => all + series[i], 0)) : values.flat();
  const most = Math.max(0, ...heights.filter(Number.isFinite));
  const last = values[0].findLastIndex(value => value !== null), shown = at ?? (bars ? minutes.length - 1 : last);
  plot.legend.replaceChildren(minutes[shown] ? `${clock(minutes[shown].time)}` : "", ...plot.series.map(([name, colour], i) =>
    make("span", {}, square(colour), `${name} `, make("b", {}, plot.words(values[i][shown])))));
  plot.svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  plot.svg.setAttribute("aria-label", most ? `${plot.name}, last hour: at most ${plot.words(most)}; ` +
    plot.series.map(([name], i) => `${name} ${plot.words(values[i][shown])}`).join(", ") + ` at ${clock(minutes[shown].time)}` : plot.nothing);
  const put = (tag, attributes, ...children) => plot.svg.append(make(`svg:${tag}`, attributes, ...children));
  plot.svg.replaceChildren();
  if (!most) { plot.left = 0; plot.step = W / 60; return put("text", { x: W / 2, y: H / 2, "text-anchor": "middle", class: "empty" }, plot.nothing); }

  const scale = ticks(most, bars), highest = scale.at(-1), y = value => bottom - (bottom - top) * value / highest;
  const unit = bars ? count : highest < 2000 ? value => `${+value.toFixed(1)} ms` : value => `${+(value / 1000).toFixed(2)} s`;
  const left = plot.left = 46, step = plot.step = (right - left) / minutes.length;
  const x = i => left + step * i, middle = i => (x(i) + step / 2).toFixed(1);
  for (const value of scale) {
    put("line", { x1: left, x2: right, y1: y(value), y2: y(value), stroke: value ? "var(--grid)" : "var(--soft)" });
    put("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, unit(value));
  }
  const every = right - left < 300 ? 20 : right - left > 900 ? 5 : 10;
  minutes.forEach((minute, i) => {
    if (new Date(minute.time * 1000).getMinutes() % every || x(i) > right - 16 || i < 2) return;
    put("line", { x1: middle(i), x2: middle(i), y1: bottom, y2: bottom + 4, stroke: "var(--soft)" });
    put("text", { x: middle(i), y: H - 4, "text-anchor": "middle" }, clock(minute.time));
  });
  if (at !== null) put("rect", { x: x(at), width: step, y: top, height: bottom - top, fill: "var(--grid)" });
  if (bars) minutes.forEach((_, i) => plot.series.reduce((from, [, colour], s) => {
    const to = from + values[s][i];
    // The minute that is not over yet is paler.
    if (to > from) put("rect", { x: x(i) + step * .1, width: step * .8, y: y(to), height: Math.max(.8, y(from) - y(to)), fill: `var(${colour})`, opacity: i === minutes.length - 1 ? .55 : 1 });
    return to;
  }, 0));
  else {
    const dots = (series, i) => `${middle(i)} ${y(series[i]).toFixed(1)}`;
    for (const [from, to] of runs(values[0])) {
      const all = Array.from({ length: to - from }, (_, i) => from + i);
      put("path", { d: `M${all.map(i => dots(values[1], i)).join("L")}L${all.reverse().map(i => dots(values[0], i)).join("L")}Z`, fill: "var(--band)" });
    }
    plot.series.forEach(([, colour], s) => put("path", {
      d: runs(values[s]).map(([from, to]) => `M${dots(values[s], from)}h.01` + values[s].slice(from + 1, to).map((_, i) => `L${dots(values[s], from + 1 + i)}`).join("")).join(""),
      fill: "none", stroke: `var(${colour})`, "stroke-width": s ? 1.4 : 2, "stroke-linecap": "round", "stroke-linejoin": "round" }));
  }
}
function runs(series) { // [[from, to)] of what has no gap
  const found = [];
  series.forEach((value, i) => {
    if (value === null || value === undefined) return;
    if (found.length && found.at(-1)[1] === i) found.at(-1)[1]++; else found.push([i, i + 1]);
  });
  return found;
}

function tiles(facts) {
  const box = $("tiles");
  while (box.children.length < facts.length) box.append(make("div", { class: "card" }, make("dt", { class: "soft" }), make("dd"), make("dd")));
  facts.forEach((words, i) => words.forEach((text, j) => put(box.children[i].children[j], text)));
}
function chip(node, [text, style], key) {
  // The page knows when a state began only where it saw that happen.
  if (node.dataset.key !== key) node.dataset.since = node.dataset.key === undefined ? "" : ` since ${clock(Date.now() / 1000, { second: "2-digit" })}`;
  node.dataset.key = key;
  put(node, text + node.dataset.since);
  node.className = `chip ${style}`;
  show(node, true);
}
let version = null;
function render(data) {
  if (version !== null && data.version && version !== data.version) return location.reload(); // another gate, perhaps with another page
  version = data.version;
  const now = data.now, flight = data.in_flight, newest = data.minutes.findLast(minute => minute.ttft_ms);
  minutes = data.minutes;
  chip($("gate"), STATES[data.state] || [data.state, "warn"], data.state);
  chip($("ollama"), UPSTREAM[data.ready], String(data.ready));
  put($("about"), `${data.upstream} · up ${span(Math.floor(now - data.started))}, since ${date(data.started)} · version ${data.version}`);
  document.title = `${data.in_flight_total ? `(${data.in_flight_total}) ` : ""}Ollama gate${data.state === "open" && data.ready !== false ? "" : " – problem"}`;
  const [requests, refused, failed] = ["requests", "refused", "failed"].map(of => sum(minutes, of));
  tiles([
    ["In flight", count(data.in_flight_total), `${many(data.connections, "connection")} open`],
    ["Tokens per second", speed(sum(flight, "speed")), "now, all answers together"],
    ["Requests, last hour", count(requests), `${count(refused)} refused, ${count(failed)} failed`],
    ["Tokens out, last hour", count(sum(minutes, "completion_tokens")), `${count(sum(minutes, "prompt_tokens"))} in`],
    ["Time to first token", newest ? ms(newest.ttft_ms[0]) : none, newest ? `p95 ${ms(newest.ttft_ms[1])} · at ${clock(newest.time)}` : "no streamed answer yet"],
  ]);
  fill("flight", flight, now, data.in_flight_total > flight.length ? `the oldest ${flight.length} of ${whole(data.in_flight_total)}` : flight.length > 1 ? "oldest first" : "");
  fill("keys", data.keys, now, "busiest first, since the gate started");
  fill("models", data.models, now, "busiest first, since the gate started");
  fill("refusals", Object.entries(data.refusals).map(([reason, times]) => ({ reason, times })).filter(row => row.times).sort((a, b) => b.times - a.times), now, "since the gate started");
  PLOTS.forEach(draw);
}

let busy = false, updated = Date.now();
function showProblem(why) {
  show($("problem"), why !== null);
  document.body.classList.toggle("offline", why !== null);
  if (why === null) return put($("problem").firstElementChild, "");
  put($("problem").firstElementChild, why);
  put($("problem").lastElementChild, `${minutes.length ? `The figures below are ${span(Math.floor((Date.now() - updated) / 1000))} old. ` : ""}Trying again every ${PERIOD / 1000} seconds.`);
  document.title = "Ollama gate – no answer";
  chip($("gate"), ["No answer", "bad"], "offline");
  show($("ollama"), false);
}
function messageOf(error) {
  if (error instanceof SyntaxError) return "The answer is not valid JSON: is another program listening on this address?";
  if (error.name === "TimeoutError") return `The gate has not answered within ${TIMEOUT / 1000} seconds.`;
  return error.message;
}
async function poll() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    const answer = await fetch("console/overview", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) })
      .catch(error => { throw error.name === "TimeoutError" ? error : new Error("The gate does not answer: it was stopped, or the network is down."); });
    if (!answer.ok) throw new Error(`The gate answers with status ${answer.status}.`);
    const data = await answer.json();
    updated = Date.now();
    try { render(data); } catch { throw new Error("This page does not understand what the gate says. Reload it."); }
    showProblem(null);
  } catch (error) { showProblem(messageOf(error)); }
  busy = false;
}
document.addEventListener("visibilitychange", poll);
addEventListener("resize", () => PLOTS.forEach(draw));
setInterval(poll, PERIOD);
poll();
