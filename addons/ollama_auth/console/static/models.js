// Ollama's models: what is loaded, how it does, and loading and unloading.

import { get, send, session } from "./api.js";
import { announce, h, Table } from "./dom.js";
import { ago, bytes, count, date, known, ms, NONE, percent, seconds, span, speed } from "./format.js";
import { figure } from "./overview.js";

/** @returns {import("./app.js").View} */
export function view() {
  let now = 0;
  const problem = h("p", { class: "problem", role: "alert" });
  /** @type {Set<string>} */
  const working = new Set();
  /** @type {import("./dom.js").Column<any>[]} */
  const columns = [
    { head: "Model", style: "k", cell: m => h("span", {}, h("a", { href: `#/try?model=${encodeURIComponent(m.name)}`, title: "Try it" }, m.name), m.parameters && h("span", { class: "soft block" }, [m.parameters, m.quantization].filter(Boolean).join(", "))), csv: m => m.name },
    { head: "State", style: "w", cell: state, csv: m => (m.loaded ? "loaded" : "") },
    { head: "Memory", style: "n", cell: m => (m.memory === null ? NONE : h("span", { title: `${bytes(m.memory_gpu)} of it on the GPU` }, bytes(m.memory), m.memory_gpu < m.memory && h("span", { class: "mark refused block" }, `${percent(m.memory_gpu / m.memory)} on the GPU`))), csv: m => m.memory },
    figure("On disk", "size", bytes, "n wide"),
  ];
  if (session.me?.admin) columns.push(
    figure("Requests, 24 h", "requests"),
    { head: "Failed", style: "n", cell: m => (m.failed ? h("a", { class: "mark failed", href: `#/requests?outcome=failed&model=${encodeURIComponent(m.name)}` }, count(m.failed)) : NONE), csv: m => m.failed },
    { head: "First token", style: "n", cell: m => ms(m.ttft_ms?.[0]), title: m => known(m.ttft_ms, v => `95 % below ${ms(v[1])}`), csv: m => m.ttft_ms?.[0] },
    figure("Tokens/s", "speed", speed),
  );
  if (session.me?.admin || session.me?.scopes.some(scope => ["infer", "all"].includes(scope))) columns.push({ head: "", style: "n acts", cell: actions });
  const table = new Table("Models", columns, "No model that this key may use. Pull one: ollama pull llama3.2", { id: "models", file: "models" });

  /** @param {any} m */
  function state(m) {
    if (working.has(m.name)) return h("span", { class: "mark" }, m.loaded ? "unloads …" : "loads …");
    if (!m.loaded) return h("span", { class: "soft" }, m.cloud ? "in the cloud" : "on disk");
    const until = seconds(m.until);
    const left = until === null ? "" : until - now > 86400 * 365 ? "stays" : until > now ? `for ${span(Math.floor(until - now))} more` : "ends now";
    return h("span", { class: "mark good", title: known(until, date) }, `loaded${left && `, ${left}`}`);
  }

  /** @param {any} m */
  function actions(m) {
    if (m.cloud) return "";
    return h("button", { type: "button", class: "quiet", disabled: working.has(m.name), onclick: () => act(m) }, m.loaded ? "Unload" : "Load");
  }

  /** @param {any} m */
  async function act(m) {
    working.add(m.name);
    problem.textContent = "";
    try {
      await send("POST", `models/${m.loaded ? "unload" : "load"}`, { model: m.name });
      announce(`${m.name} is ${m.loaded ? "unloaded" : "loaded"}`);
    } catch (error) {
      problem.textContent = `${m.name}: ${error instanceof Error ? error.message : error}`;
    }
    working.delete(m.name);
    await update();
  }

  async function update() {
    const data = await get("models");
    now = data.now;
    const loaded = data.models.filter((/** @type {any} */ m) => m.loaded);
    const memory = loaded.reduce((/** @type {number} */ sum, /** @type {any} */ m) => sum + (m.memory ?? 0), 0);
    table.fill(data.models, `${loaded.length} loaded${memory ? `, ${bytes(memory)}` : ""}${data.asked ? `, asked ${ago(now - data.asked)}` : ""}`);
  }
  return { node: h("div", {}, problem, table.node), update };
}
