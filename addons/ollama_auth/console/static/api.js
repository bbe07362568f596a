// The JSON of the gate, asked for with the key of who signed in. The key is kept until this tab is closed.

const KEY = "gate-key", TIMEOUT = 10000;

/** An answer of the gate that is an error. */
export class Refused extends Error {
  /** @param {number} status @param {string} message @param {string | null} key The one that was sent. */
  constructor(status, message, key) {
    super(message);
    this.status = status;
    this.key = key;
  }
}

/** @type {{me: Me | null}} */
export const session = { me: null };

/** Whether who is signed in has a scope. @param {string} scope */
export const may = scope => !!session.me?.scopes.some(held => held === scope || held === "all");

export const held = () => sessionStorage.getItem(KEY);
export const signedIn = () => held() !== null;

export function signOut() {
  sessionStorage.removeItem(KEY);
  session.me = null;
}

/** Ask who the key is for, and keep it if it is good. @param {string} key */
export async function signIn(key) {
  session.me = await get("me", {}, key.trim());
  sessionStorage.setItem(KEY, key.trim());
}

/** @param {string} path @param {RequestInit} [options] */
async function ask(path, options = {}, key = held()) {
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...(options.body ? { "Content-Type": "application/json" } : {}) };
  const answer = await fetch(`console/${path}`, { cache: "no-store", ...options, headers }).catch(error => {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Error(`The gate has not answered within ${TIMEOUT / 1000} seconds.`);
    throw new Error("The gate does not answer: it was stopped, or the network is down.");
  });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = `The gate answers with status ${answer.status}.`;
  try {
    const error = JSON.parse(text).error;
    message = typeof error === "string" ? error : error.message;
  } catch { /* It was not the gate that answered. */ }
  throw new Refused(answer.status, message, key);
}

/** @param {string} path @param {Query} query */
const asked = (path, query, key = held()) => ask(`${path}${search(query)}`, { signal: AbortSignal.timeout(TIMEOUT) }, key);

/** @param {string} path @param {Query} [query] @returns {Promise<any>} */
export async function get(path, query = {}, key = held()) {
  return (await asked(path, query, key)).json().catch(() => {
    throw new Error("The answer is not valid JSON: does another program listen on this address?");
  });
}

/** A file. @param {string} path @param {Query} query */
export const download = async (path, query) => (await asked(path, query)).text();

/** @param {"POST" | "PATCH" | "DELETE"} method @param {string} path @param {unknown} [body] @returns {Promise<any>} */
export async function send(method, path, body) {
  return (await ask(path, { method, body: JSON.stringify(body) })).json();
}

/** @param {Query} query */
export function search(query) {
  const given = Object.entries(query).filter(([, value]) => (value ?? "") !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}

/**
 * The lines of an answer as they come.
 * @param {string} path @param {RequestInit} options
 */
export async function* lines(path, options) {
  const answer = await ask(path, options);
  if (!answer.body) return;
  let rest = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const found = (rest + piece.value).split("\n");
    rest = found.pop() ?? "";
    yield* found.filter(Boolean);
  }
  if (rest) yield rest;
}
