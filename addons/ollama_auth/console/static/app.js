// The frame: who is signed in, which view is shown, and whether the gate answers.

import { get, held, Refused, resume, session, signedIn, signIn, signOut } from "./api.js";
import { announce, byId, h, put } from "./dom.js";
import { clockSeconds, date, span, utc, ZONE } from "./format.js";
import * as keys from "./keys.js";
import * as me from "./me.js";
import * as models from "./models.js";
import * as overview from "./overview.js";
import * as requests from "./requests.js";
import * as chat from "./try.js";
import { STATES, UPSTREAM } from "./words.js";

/**
 * A view makes its content, fills it again every PERIOD, and cleans up when another one is shown.
 * @typedef {object} View
 * @property {HTMLElement} node @property {() => Promise<void>} [update] @property {() => void} [close]
 */
/** @typedef {{view: (query: URLSearchParams) => View, name: string, for: "all" | "admin" | "plain" | "open"}} Place */

const PERIOD = 2000;
/** @type {Record<string, Place>} */
const PLACES = {
  overview: { name: "Overview", for: "open", view: overview.view },
  keys: { name: "Keys", for: "admin", view: keys.view },
  requests: { name: "Requests", for: "all", view: requests.view },
  models: { name: "Models", for: "all", view: models.view },
  try: { name: "Try it", for: "all", view: chat.view },
  me: { name: "My key", for: "all", view: me.view },
};

/** @type {View | null} */
let shown = null;
let place = "", busy = false, due = false, updated = Date.now(), stale = false;
/** @type {any} What the gate said of itself last. */
let facts = null;

/** Which views there are for who is signed in. @param {Place} one */
function isOffered(one) {
  if (session.me) return session.me.admin || one.for !== "admin" && one.for !== "open";
  return !signedIn() && one.for === "open";
}

function navigate() {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const wanted = Object.hasOwn(PLACES, path) ? path : "";
  const first = session.me && !session.me.admin ? "me" : "overview";
  const target = wanted && (isOffered(PLACES[wanted]) || !session.me) ? wanted : first;
  if (target !== path) history.replaceState(null, "", `#/${target}`);
  shown?.close?.();
  place = target;
  draw();
  const open = isOffered(PLACES[target]);
  shown = open ? PLACES[target].view(new URLSearchParams(search)) : gateKeeper();
  byId("main").replaceChildren(shown.node);
  document.title = title();
  announce(PLACES[target].name);
  void poll();
}

/** What is shown in place of a view that needs a key. @returns {View} */
function gateKeeper() {
  const input = h("input", { type: "password", name: "key", required: true, autocomplete: "off", spellcheck: "false", id: "key", "aria-describedby": "key-note" });
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: "primary" }, "Sign in");
  const form = h("form", { class: "card sign-in", onsubmit: async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await signIn(input.value);
      navigate();
    } catch (error) {
      put(problem, error instanceof Error ? error.message : String(error));
      input.select();
    }
    button.disabled = false;
  } }, h("h2", {}, "Sign in with a key"), h("label", { for: "key" }, "Key"), input,
  h("p", { class: "soft", id: "key-note" }, "The key that you use for Ollama, such as sk-ollama-…. It stays in this tab and is forgotten when you close it. A key with the scope admin sees and changes everything here; any other key sees itself."),
  problem, button);
  queueMicrotask(() => input.focus());
  return { node: form };
}

function draw() {
  const links = Object.entries(PLACES).filter(([, one]) => isOffered(one) || (!session.me && !signedIn()));
  byId("nav").replaceChildren(...links.map(([id, one]) => h("a", { href: `#/${id}`, "aria-current": id === place ? "page" : null }, one.name)));
  const { me } = session;
  byId("who").replaceChildren(...(me
    ? [h("span", {}, me.name), h("button", { class: "quiet", onclick: () => { signOut(); navigate(); } }, "Sign out")]
    : [h("a", { class: "button", href: "#/me" }, "Sign in")]));
}

const title = () => `${facts?.in_flight_total ? `(${facts.in_flight_total}) ` : ""}${PLACES[place].name} · Ollama gate${stale ? " – no answer" : facts && (facts.state !== "open" || facts.ready === false) ? " – problem" : ""}`;

/** @param {Element} node @param {[string, string]} words @param {number | null} since */
function chip(node, [text, style], since) {
  put(node, since === null ? text : `${text} since ${clockSeconds(since)}`);
  node.className = `chip ${style}`;
  /** @type {HTMLElement} */ (node).hidden = false;
}

/** Show what the gate says of itself. @param {any} said */
export function state(said) {
  if (facts && facts.version !== said.version) location.reload(); // Another gate, perhaps with another page.
  facts = said;
  chip(byId("gate"), STATES[said.state] ?? [said.state, "warn"], said.state === "open" ? null : said.state_since);
  const problem = said.ready === false ? said.ready_since : null;
  chip(byId("ollama"), UPSTREAM[String(said.ready)], problem);
  byId("ollama").title = said.ready === false ? `Look whether Ollama runs at ${said.upstream}: ollama serve, or systemctl status ollama` : "";
  const zone = h("span", { title: utc(said.now) }, ZONE === "UTC" ? "times are UTC, as in the log" : `times are those of ${ZONE}, the log's are UTC`);
  byId("about").replaceChildren(`${said.upstream ?? "Ollama"} · up ${span(Math.floor(said.now - said.started))}, since ${date(said.started)} · version ${said.version} · `, zone);
  document.title = title();
}

/** @param {string | null} why */
function problem(why) {
  const box = byId("problem"), [head, rest] = [...box.children];
  stale = why !== null;
  box.hidden = !stale;
  document.body.classList.toggle("stale", stale);
  put(head, why ?? "");
  if (!stale) return;
  put(rest, `${facts ? `The figures below are ${span(Math.floor((Date.now() - updated) / 1000))} old. ` : ""}Trying again every ${PERIOD / 1000} seconds.`);
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
      await resume();
      navigate();
    }
    const asked = shown;
    await asked?.update?.();
    if (place !== "overview" && session.me) state(await get("state"));
    updated = Date.now();
    problem(null);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      if (error.key === held()) {
        signOut();
        show(gateKeeper());
      } else due = true; // Somebody has signed in meanwhile.
      problem(null);
    } else problem(words(error));
  }
  busy = false;
  if (due) void poll();
}

/** What went wrong: in the gate, on the way, or in this page. @param {any} error */
const words = error => (error.constructor === Error || error instanceof Refused ? error.message : "This page does not understand what the gate says. Reload it.");

/** @param {View} view */
function show(view) {
  if (byId("main").querySelector(".sign-in")) return;
  shown?.close?.();
  shown = view;
  draw();
  byId("main").replaceChildren(view.node);
}

addEventListener("hashchange", navigate);
document.addEventListener("visibilitychange", poll);
setInterval(poll, PERIOD);
navigate();
