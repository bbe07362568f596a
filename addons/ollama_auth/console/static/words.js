// What the words of the log mean, for people.

/** Why requests are refused, where the reason alone says too little. @type {Record<string, string>} */
export const REASONS = {
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
  "tokens_per_day": "The key has used up its tokens of the day, or runs what may use them up",
  "tokens_per_month": "The key has used up its tokens of the month, or runs what may use them up",
  "throttled": "Many different wrong keys came from one address",
  "limits unavailable": "The storage that counts limits does not answer",
  "body timeout": "The request body stopped coming",
  "connections": "Too many connections of one client behind a proxy",
  "held bodies": "Too many large requests at once",
  "key in path": "The key was in the URL, where others can read it",
  "closed": "The gate had no valid configuration",
  "error": "A fault in the gate; it refuses rather than guess",
};

/** Why requests fail or are broken off. @type {Record<string, string>} */
export const FAILURES = {
  "upstream unreachable": "Ollama could not be reached",
  "upstream timeout": "Ollama did not accept a connection in time",
  "upstream broken": "Ollama broke off its answer",
  "upstream error": "Ollama answered with an error",
  "client left": "The client left before the answer was whole",
  "killed": "It was ended by hand",
  "stopped": "The gate was stopped",
};

/** @param {string} reason */
export const why = reason => {
  for (const words of [REASONS, FAILURES]) if (Object.hasOwn(words, reason)) return words[reason];
  return reason || "Ollama answered with an error";
};

/** @type {Record<string, string>} */
export const OUTCOMES = { answered: "answered", refused: "refused", failed: "failed", broken_off: "broken off" };

/** @type {Record<string, [string, string]>} */
export const STATES = {
  open: ["Guarding", "good"],
  draining: ["Draining: ends what runs, takes nothing new", "warn"],
  closed: ["Closed: refuses everything", "bad"],
};
/** @type {Record<string, [string, string]>} */
export const UPSTREAM = { true: ["Ollama is ready", "good"], false: ["Ollama does not answer", "bad"], null: ["Ollama not asked yet", ""] };

/** Names that stand for something else. @type {Record<string, string>} */
export const FOLDED = {
  "(none)": "requests without a known key", "(other)": "all further names together", "(unknown)": "keys that are not known, answers that named no model",
};
