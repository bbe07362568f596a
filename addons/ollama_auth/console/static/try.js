// A chat with a model through the gate, and the same request for programs.

import { get, lines, search, session } from "./api.js";
import { alert, announce, button, copyable, field, h, put, said } from "./dom.js";
import { count, known, ms, speed } from "./format.js";
import { snippets } from "./snippets.js";

/** @param {URLSearchParams} query @returns {View} */
export function view(query) {
  /** @type {{role: string, content: string}[]} */
  let messages = [];
  /** @type {AbortController | null} */
  let running = null;
  let asked = false;
  const model = h("input", { name: "model", list: "models", required: true, value: query.get("model") ?? "", autocomplete: "off", placeholder: "llama3.2", onchange: () => { history.replaceState(null, "", `#/try${search({ model: model.value })}`); show(); } });
  const choices = h("datalist", { id: "models" });
  const prompt = h("textarea", { name: "prompt", rows: 3, required: true, placeholder: "Why is the sky blue?", "aria-label": "Message" });
  const log = h("div", { class: "chat", role: "log", "aria-label": "Chat", tabindex: 0 });
  const figures = h("dl", { class: "figures" });
  const problem = alert();
  const send = h("button", { class: "primary" }, "Send");
  const fresh = button("New chat", () => { messages = []; log.replaceChildren(); measure(); });
  const form = h("form", { class: "card prompt", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); void (running ? running.abort() : chat()); } },
    field("Model", model, choices), log, prompt, problem, h("p", { class: "actions" }, figures, fresh, send));
  prompt.onkeydown = event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  };
  const code = h("div", { class: "code" });
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Program" });
  const node = h("div", { class: "try" }, form, h("section", { class: "card snippets" }, h("header", {}, h("h2", {}, "The same from a program")), tabs, code));
  let chosen = "curl";

  function show() {
    const found = snippets(session.me?.gate ?? { scheme: "http", port: 8081 }, model.value || "llama3.2", messages.find(message => message.role === "user")?.content || "Why is the sky blue?");
    tabs.replaceChildren(...Object.keys(found).map(name => button(name, () => { chosen = name; show(); }, { class: null, "aria-pressed": String(name === chosen) })));
    code.replaceChildren(copyable(found[chosen].code), h("p", { class: "soft" }, found[chosen].note));
  }

  /** @param {Known} [first] @param {Known} [pace] @param {Known} [tokens] @param {Known} [read] */
  function measure(first, pace, tokens, read) {
    const shown = [["First token", ms(first)], ["Tokens/s", speed(pace)], ["Tokens", known(tokens, made => `${known(read, count)} in, ${count(made)} out`)]];
    figures.replaceChildren(...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  /** @param {string} role @param {string} text */
  function bubble(role, text) {
    const words = h("p", {}, text), thought = h("p", { class: "thought soft" });
    log.append(h("div", { class: `bubble ${role}` }, h("b", { class: "unseen" }, role === "user" ? "You: " : "Model: "), thought, words));
    log.scrollTop = log.scrollHeight;
    return { words, thought };
  }

  async function chat() {
    const text = prompt.value.trim();
    if (!text) return;
    prompt.value = "";
    put(problem, "");
    messages.push({ role: "user", content: text });
    bubble("user", text);
    show();
    const { words, thought } = bubble("assistant", "");
    running = new AbortController();
    put(send, "Stop");
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
          put(words, answer);
          if (thinking) put(thought, (thought.textContent ?? "") + thinking);
          if (log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
        }
        const took = first === null ? 0 : performance.now() - begun - first;
        measure(first, took > 0 && tokens > 1 ? (1000 * (tokens - 1)) / took : null, event.done ? event.eval_count ?? tokens : tokens, event.prompt_eval_count);
      }
      messages.push({ role: "assistant", content: answer });
      announce(answer);
    } catch (error) {
      if (!answer) messages.pop();
      if (!running.signal.aborted) put(problem, said(error));
      else put(words, `${answer} (stopped)`);
    }
    running = null;
    put(send, "Send");
    prompt.focus();
  }

  async function update() {
    if (asked) return;
    asked = true;
    try {
      /** @type {any[]} */
      const models = (await get("models")).models;
      choices.replaceChildren(...models.map(m => h("option", { value: m.name })));
      const best = models.find(m => m.loaded) ?? models[0];
      if (!model.value && best) model.value = best.name;
    } catch { /* A key that may not list models may still name one. */ }
    show();
  }
  measure();
  show();
  return { node, update, close: () => running?.abort() };
}
