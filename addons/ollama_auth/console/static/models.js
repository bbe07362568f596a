// Ollama's models: what is loaded, how it does, and loading and unloading.

import { get, may, search, send, session } from "./api.js";
import { alert, announce, button, h, put, said } from "./dom.js";
import { ago, bytes, count, date, known, ms, NONE, percent, seconds, span, speed } from "./format.js";
import { figure, mark, Table } from "./table.js";

/** @returns {View} */
export function view() {
  let now = 0;
  const problem = alert();
  /** @type {Set<string>} */
  const working = new Set();
  /** @type {Column[]} */
  const columns = [
    { head: "Model", style: "k", cell: m => h("span", {}, h("a", { href: `#/try${search({ model: m.name })}`, title: "Try it" }, m.name), m.parameters && h("span", { class: "soft block" }, [m.parameters, m.quantization].filter(Boolean).join(", "))), csv: m => m.name },
    { head: "State", style: "w", cell: state, csv: m => (m.loaded ? "loaded" : "") },
    { head: "Memory", style: "n", cell: m => (m.memory === null ? NONE : h("span", { title: `${bytes(m.memory_gpu)} of it on the GPU` }, bytes(m.memory), m.memory_gpu < m.memory && h("span", { class: "mark refused block" }, `${percent(m.memory_gpu / m.memory)} on the GPU`))), csv: m => m.memory },
    figure("On disk", "size", bytes, "n wide"),
  ];
  if (session.me?.admin) columns.push(
    figure("Requests, 24 h", "requests"),
    { head: "Failed", style: "n", cell: m => (m.failed ? h("a", { class: "mark failed", href: `#/requests${search({ outcome: "failed", model: m.name })}` }, count(m.failed)) : NONE), csv: m => m.failed },
    { head: "First token", style: "n", cell: m => ms(m.ttft_ms?.[0]), title: m => known(m.ttft_ms, v => `${percent(0.95)} below ${ms(v[1])}`), csv: m => m.ttft_ms?.[0] },
    figure("Tokens/s", "speed", speed),
  );
  if (may("infer")) columns.push({ head: "", style: "n acts", cell: actions });
  const table = new Table("models", "Models", columns, "No model that this key may use. Pull one: ollama pull llama3.2");

  /** @param {any} m */
  function state(m) {
    if (working.has(m.name)) return mark(m.loaded ? "unloads …" : "loads …");
    if (!m.loaded) return h("span", { class: "soft" }, m.cloud ? "in the cloud" : "on disk");
    const until = seconds(m.until);
    const left = until === null ? "" : until - now > 86400 * 365 ? "stays" : until > now ? `for ${span(Math.floor(until - now))} more` : "ends now";
    return mark(`loaded${left && `, ${left}`}`, "good", known(until, date));
  }

  /** @param {any} m */
  function actions(m) {
    const verb = m.loaded ? "Unload" : "Load";
    return !m.cloud && button(verb, () => act(m), { disabled: working.has(m.name), "aria-label": `${verb} ${m.name}` });
  }

  /** @param {any} m */
  async function act(m) {
    working.add(m.name);
    put(problem, "");
    try {
      await send("POST", `models/${m.loaded ? "unload" : "load"}`, { model: m.name });
      announce(`${m.name} is ${m.loaded ? "unloaded" : "loaded"}`);
    } catch (error) {
      put(problem, `${m.name}: ${said(error)}`);
    }
    working.delete(m.name);
    await update();
  }

  async function update() {
    const data = await get("models");
    now = data.now;
    /** @type {any[]} */
    const loaded = data.models.filter((/** @type {any} */ m) => m.loaded);
    const memory = loaded.reduce((sum, m) => sum + (m.memory ?? 0), 0);
    table.fill(data.models, `${loaded.length} loaded${memory ? `, ${bytes(memory)}` : ""}${data.asked ? `, asked ${ago(now - data.asked)}` : ""}`);
  }
  return { node: h("div", {}, problem, table.node), update };
}
