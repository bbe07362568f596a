// The frame: who is signed in, which view is shown, and whether the gate answers.

import { get, held, may, Refused, session, signedIn, signIn, signOut } from "./api.js";
import { announce, button, byId, field, form, h, put, said } from "./dom.js";
import { clockSeconds, date, span, utc, ZONE } from "./format.js";
import * as keys from "./keys.js";
import * as me from "./me.js";
import * as models from "./models.js";
import * as overview from "./overview.js";
import * as requests from "./requests.js";
import * as chat from "./try.js";
import { STATES, UPSTREAM } from "./words.js";
// Of those above, asked for at the same time.
import "./plot.js";
import "./snippets.js";
import "./table.js";
import "./usage.js";

const PERIOD = 2000;
/** The views by their address, each with who gets it. @type {Record<string, [(query: URLSearchParams) => View, () => unknown]>} */
const PLACES = {
  overview: [overview.view, () => (session.me ? session.me.admin : !signedIn())],
  keys: [keys.view, () => session.me?.admin],
  requests: [requests.view, () => session.me],
  models: [models.view, () => session.me?.admin || may("list")],
  try: [chat.view, () => may("infer")],
  me: [me.view, () => session.me],
};

/** @type {View | null} */
let shown = null;
let place = "", busy = false, due = false, updated = Date.now(), stale = false;
/** @type {any} What the gate said of itself last. */
let facts = null;

/** @param {string} id */
const isOffered = id => !!PLACES[id][1]();
/** @param {string} id */
const name = id => LINKS[id].textContent;
/** @type {Record<string, HTMLAnchorElement>} */
const LINKS = Object.fromEntries([...byId("nav").querySelectorAll("a")].map(link => [link.hash.slice(2), link]));

function navigate() {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const known = Object.hasOwn(PLACES, path) && (isOffered(path) || !session.me);
  place = known ? path : session.me && !session.me.admin ? "me" : "overview";
  if (place !== path) history.replaceState(null, "", `#/${place}`);
  show(isOffered(place) ? PLACES[place][0](new URLSearchParams(search)) : signedIn() ? { node: h("p", {}) } : gateKeeper());
  document.title = title();
  announce(name(place));
  void poll();
}

/** @param {View} view */
function show(view) {
  shown?.close?.();
  shown = view;
  draw();
  byId("main").replaceChildren(view.node);
}

/** What is shown in place of a view that needs a key. @returns {View} */
function gateKeeper() {
  const input = h("input", { type: "password", required: true, autocomplete: "off", id: "key", "aria-describedby": "key-note" });
  queueMicrotask(() => input.focus());
  return { node: form({ class: "card sign-in" }, [
    h("h2", {}, "Sign in with a key"), field("Key", input),
    h("p", { class: "soft", id: "key-note" }, "The key that you use for Ollama, such as sk-ollama-…. It stays in this tab and is forgotten when you close it. A key with the scope admin sees and changes everything here; any other key sees itself."),
  ], "Sign in", async () => {
    input.select();
    await signIn(input.value);
    navigate();
  }) };
}

function draw() {
  const { me } = session;
  for (const [id, link] of Object.entries(LINKS)) {
    link.hidden = !!me && !isOffered(id);
    link.ariaCurrent = id === place ? "page" : null;
  }
  byId("who").replaceChildren(...(me
    ? [h("span", {}, me.name), button("Sign out", () => { signOut(); navigate(); })]
    : [h("a", { class: "button", href: "#/me" }, "Sign in")]));
}

const title = () => `${facts?.in_flight_total ? `(${facts.in_flight_total}) ` : ""}${name(place)} · Ollama gate${stale ? " – no answer" : facts && (facts.state !== "open" || facts.ready === false) ? " – problem" : ""}`;

/** @param {HTMLElement} node @param {[string, string]} words @param {number | null} since */
function chip(node, [text, style], since) {
  put(node, since === null ? text : `${text} since ${clockSeconds(since)}`);
  node.className = `chip ${style}`;
  node.hidden = false;
}

/** Show what the gate says of itself. @param {any} now */
export function state(now) {
  if (facts && facts.version !== now.version) location.reload(); // Another gate, perhaps with another page.
  facts = now;
  chip(byId("gate"), STATES[now.state] ?? [now.state, "warn"], now.state === "open" ? null : now.state_since);
  const down = now.ready === false;
  chip(byId("ollama"), UPSTREAM[String(now.ready)], down ? now.ready_since : null);
  byId("ollama").title = down ? `Look whether Ollama runs at ${now.upstream}: ollama serve, or systemctl status ollama` : "";
  const zone = h("span", { title: utc(now.now) }, ZONE === "UTC" ? "times are UTC, as in the log" : `times are those of ${ZONE}, the log's are UTC`);
  byId("about").replaceChildren(`${now.upstream ?? "Ollama"} · up ${span(Math.floor(now.now - now.started))}, since ${date(now.started)} · version ${now.version} · `, zone);
  document.title = title();
}

/** Say what is wrong, until nothing is. @param {string | null} why @param {boolean} [answered] Whether it is the gate that says so. */
function problem(why, answered = false) {
  const box = byId("problem"), [head, rest] = [...box.children];
  stale = why !== null && !answered;
  box.hidden = why === null;
  document.body.classList.toggle("stale", stale);
  put(head, why ?? "");
  put(rest, `${stale && facts ? `The figures below are ${span(Math.floor((Date.now() - updated) / 1000))} old. ` : ""}Trying again every ${PERIOD / 1000} seconds.`);
  if (!stale) return;
  chip(byId("gate"), ["No answer", "bad"], null);
  byId("ollama").hidden = true;
  document.title = title();
}

async function poll() {
  due = busy;
  if (busy || document.hidden) return;
  busy = true;
  try {
    if (signedIn() && !session.me) {
      session.me = await get("me");
      navigate();
    }
    const asked = shown;
    await asked?.update?.();
    if (place !== "overview" && session.me) state(await get("state"));
    updated = Date.now();
    problem(null);
  } catch (error) {
    const refused = error instanceof Refused ? error : null;
    if (refused?.status === 401) {
      if (refused.key !== held()) due = true; // Somebody has signed in meanwhile.
      else if (refused.key) {
        signOut();
        navigate();
      } else show(gateKeeper());
      problem(null);
    } else if (refused?.status === 403 && session.me?.admin) session.me = null; // It may do less than it did: which views?
    else problem(refused || Object(error).constructor === Error ? said(error) : "This page does not understand what the gate says. Reload it.", !!refused && refused.status < 500);
  }
  busy = false;
  if (due) void poll();
}

addEventListener("hashchange", navigate);
document.addEventListener("visibilitychange", poll);
setInterval(poll, PERIOD);
navigate();
