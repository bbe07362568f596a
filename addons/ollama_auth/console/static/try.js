// A chat with a model through the gate, and the same request for programs.

import { get, lines, session, signedIn } from "./api.js";
import { announce, copyable, h, put } from "./dom.js";
import { count, known, ms, NONE, speed } from "./format.js";
import { snippets } from "./snippets.js";

/** @typedef {{role: string, content: string}} Message */

/** @param {URLSearchParams} query @returns {import("./app.js").View} */
export function view(query) {
  /** @type {Message[]} */
  let messages = [];
  /** @type {AbortController | null} */
  let running = null;
  let asked = false;
  const model = h("input", { name: "model", list: "models", required: true, value: query.get("model") ?? "", autocomplete: "off", placeholder: "llama3.2", onchange: () => show() });
  const known_models = h("datalist", { id: "models" });
  const prompt = h("textarea", { name: "prompt", rows: 3, required: true, placeholder: "Why is the sky blue?", "aria-label": "Message" });
  const log = h("div", { class: "chat", role: "log", "aria-label": "Chat", tabindex: 0 });
  const figures = h("dl", { class: "figures" });
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: "primary" }, "Send");
  const fresh = h("button", { type: "button", class: "quiet", onclick: () => { messages = []; log.replaceChildren(); measure(null, null, null, null); } }, "New chat");
  const form = h("form", { class: "card prompt", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); void (running ? running.abort() : chat()); } },
    h("label", {}, h("span", {}, "Model"), model, known_models), log, prompt, problem, h("p", { class: "actions" }, figures, fresh, button));
  prompt.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  const code = h("div", { class: "code" });
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Program" });
  const node = h("div", { class: "try" }, form, h("section", { class: "card snippets" }, h("header", {}, h("h2", {}, "The same from a program")), tabs, code));
  let chosen = "curl";

  function show() {
    const found = snippets(session.me?.gate ?? null, model.value || "llama3.2", messages.find(message => message.role === "user")?.content || "Why is the sky blue?");
    tabs.replaceChildren(...Object.keys(found).map(name => h("button", { type: "button", "aria-pressed": String(name === chosen), onclick: () => { chosen = name; show(); } }, name)));
    code.replaceChildren(copyable(found[chosen].code), h("p", { class: "soft" }, found[chosen].note));
  }

  /** @param {number | null} first @param {number | null} pace @param {number | null} tokens @param {number | null} read */
  function measure(first, pace, tokens, read) {
    /** @type {[string, string][]} */
    const facts = [["First token", ms(first)], ["Tokens/s", speed(pace)], ["Tokens", tokens === null ? NONE : `${known(read, count)} in, ${count(tokens)} out`]];
    figures.replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  /** @param {string} role @param {string} text */
  function bubble(role, text) {
    const said = h("p", { class: "text" }, text), thought = h("p", { class: "thought soft" });
    log.append(h("div", { class: `bubble ${role}` }, h("b", { class: "unseen" }, role === "user" ? "You: " : "Model: "), thought, said));
    log.scrollTop = log.scrollHeight;
    return { said, thought };
  }

  async function chat() {
    const text = prompt.value.trim();
    if (!text) return;
    prompt.value = "";
    put(problem, "");
    messages.push({ role: "user", content: text });
    bubble("user", text);
    show();
    const { said, thought } = bubble("assistant", "");
    running = new AbortController();
    put(button, "Stop");
    const begun = performance.now();
    let first = /** @type {number | null} */ (null), tokens = 0, answer = "";
    try {
      const body = JSON.stringify({ model: model.value.trim(), messages });
      for await (const line of lines("chat", { method: "POST", body, signal: running.signal })) {
        const event = JSON.parse(line);
        if (event.error) throw new Error(event.error);
        const { content = "", thinking = "" } = event.message ?? {};
        if (content || thinking) {
          tokens++;
          first ??= performance.now() - begun;
          answer += content;
          put(said, answer);
          if (thinking) put(thought, (thought.textContent ?? "") + thinking);
          if (log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
        }
        const took = first === null ? 0 : performance.now() - begun - first;
        measure(first, took > 0 && tokens > 1 ? (1000 * (tokens - 1)) / took : null, event.done ? event.eval_count ?? tokens : tokens, event.prompt_eval_count ?? null);
      }
      messages.push({ role: "assistant", content: answer });
      announce(answer);
    } catch (error) {
      if (!answer) messages.pop();
      if (!running.signal.aborted) put(problem, error instanceof Error ? error.message : String(error));
      else put(said, `${answer} (stopped)`);
    }
    running = null;
    put(button, "Send");
    prompt.focus();
  }

  async function update() {
    if (asked || !signedIn()) return;
    asked = true;
    show();
    try {
      const { models } = await get("models");
      known_models.replaceChildren(...models.map((/** @type {any} */ m) => h("option", { value: m.name })));
      const best = models.find((/** @type {any} */ m) => m.loaded) ?? models[0];
      if (!model.value && best) model.value = best.name;
    } catch { /* A key that may not list models may still name one. */ }
    show();
  }
  measure(null, null, null, null);
  show();
  return { node, update, close: () => running?.abort() };
}
