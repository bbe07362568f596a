// Plots over time that share what is pointed at, each with its figures in a table for who can't see it.

import { announce, h, svg } from "./dom.js";
import { clock, clockSeconds, count, day, known, NONE } from "./format.js";

/** @typedef {Record<string, any> & {time: number}} Bucket */
/**
 * @typedef {object} Plot
 * @property {string} name @property {"bars" | "lines" | "log"} kind @property {string} nothing
 * @property {(value: number | null | undefined) => string} words
 * @property {(value: number, most: number) => string} unit What stands at the axis: one unit for all of it.
 * @property {[string, string, (bucket: Bucket) => number | null][]} series Name, colour class, value.
 */
/** @typedef {{buckets: Bucket[], step: number, first: number, started: number}} Data */

const HEIGHT = 168, BOTTOM = 20, TOP = 12, LEFT = 52;

export class Plots {
  /** @param {Plot[]} plots @param {string} label */
  constructor(plots, label) {
    /** @type {Data} */
    this.data = { buckets: [], step: 60, first: 0, started: 0 };
    /** @type {number | null} The bucket that is pointed at, in all plots. */
    this.at = null;
    this.drawn = plots.map(plot => this.#frame(plot));
    this.node = h("section", { class: "plots", "aria-label": label }, ...this.drawn.map(one => one.figure));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.node);
  }

  /** @param {Data} data */
  fill(data) {
    this.data = data;
    this.draw();
    for (const { plot, body } of this.drawn) {
      if (!body.closest("details")?.open) continue;
      body.replaceChildren(...data.buckets.map(bucket => h("tr", {}, h("th", { scope: "row" }, this.#time(bucket.time)),
        ...plot.series.map(([, , read]) => h("td", { class: "n" }, plot.words(read(bucket)))))));
    }
  }

  /** @param {Plot} plot */
  #frame(plot) {
    const legend = h("p", { class: "legend", "aria-live": "off" });
    const image = svg("svg", { role: "img", tabindex: 0, class: "plot" });
    const body = h("tbody");
    const heads = h("tr", {}, h("th", { scope: "col" }, "Time"), ...plot.series.map(([name]) => h("th", { scope: "col", class: "n" }, name)));
    const table = h("details", { ontoggle: () => this.fill(this.data) }, h("summary", {}, "As a table"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${plot.name}, as a table` }, h("table", {}, h("thead", {}, heads), body)));
    const figure = h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, plot.name), legend), image, table);
    const index = (/** @type {PointerEvent} */ event) => {
      const box = image.getBoundingClientRect();
      return Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - 2)) * this.data.buckets.length);
    };
    image.addEventListener("pointermove", event => this.point(index(event)));
    image.addEventListener("pointerdown", event => this.point(index(event)));
    image.addEventListener("pointerleave", event => event.pointerType !== "touch" && this.point(null));
    image.addEventListener("blur", () => this.point(null));
    image.addEventListener("keydown", event => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) {
        event.preventDefault();
        this.point((this.at ?? this.data.buckets.length) + by);
        announce(String(legend.textContent));
      }
      if (event.key === "Escape") this.point(null);
    });
    return { plot, figure, legend, image, body };
  }

  /** @param {number | null} index */
  point(index) {
    const most = this.data.buckets.length - 1;
    const at = index === null || most < 0 ? null : Math.max(0, Math.min(most, index));
    if (at !== this.at) {
      this.at = at;
      this.draw();
    }
  }

  /** @param {number} time */
  #time(time) {
    if (this.data.step >= 86400) return day(time);
    return this.data.step >= 3600 ? `${day(time)} ${clock(time)}` : this.data.step < 60 ? clockSeconds(time) : clock(time);
  }

  draw() {
    for (const one of this.drawn) this.#draw(one);
  }

  /** @param {{plot: Plot, legend: Element, image: SVGSVGElement}} one */
  #draw({ plot, legend, image }) {
    const { buckets } = this.data;
    const values = plot.series.map(([, , read]) => buckets.map(read));
    const bars = plot.kind === "bars";
    const heights = bars ? buckets.map((_, i) => values.reduce((all, series) => all + (series[i] ?? 0), 0)) : values.flat();
    const numbers = heights.filter(value => value !== null && value > 0).map(Number);
    const most = Math.max(0, ...numbers), least = Math.min(most, ...numbers);
    const last = bars ? buckets.length - 1 : values[0].findLastIndex(value => value !== null);
    const shown = this.at ?? last;
    this.#legend(plot, legend, values, shown);
    const width = image.clientWidth || 400;
    image.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    image.setAttribute("aria-label", most ? `${plot.name}: at most ${plot.words(most)}. Arrow keys tell single times.` : plot.nothing);
    image.replaceChildren();
    if (!most) {
      image.append(svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "empty" }, plot.nothing));
      return;
    }
    const base = HEIGHT - BOTTOM, right = width - 2, step = (right - LEFT) / buckets.length;
    const scale = plot.kind === "log" ? decades(least, most) : ticks(most, bars);
    const [low, high] = [scale[0], scale[scale.length - 1]];
    const y = plot.kind === "log"
      ? (/** @type {number} */ value) => base - ((base - TOP) * Math.log(Math.max(value, low) / low)) / Math.log(high / low)
      : (/** @type {number} */ value) => base - ((base - TOP) * value) / high;
    const x = (/** @type {number} */ i) => LEFT + step * i;
    this.#axes(image, plot, scale, y, x, step, right, base);
    if (this.at !== null) image.append(svg("rect", { x: x(this.at), width: step, y: TOP, height: base - TOP, class: "pointed" }));
    if (bars) drawBars(image, plot, values, x, y, step);
    else drawLines(image, plot, values, (i) => x(i) + step / 2, y);
  }

  /** @param {Plot} plot @param {Element} legend @param {(number | null)[][]} values @param {number} shown */
  #legend(plot, legend, values, shown) {
    const bucket = this.data.buckets[shown];
    const parts = plot.series.map(([name, colour], i) =>
      h("span", {}, svg("svg", { class: `swatch ${colour}${i && plot.kind !== "bars" ? " second" : ""}`, viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2 })),
        `${name} `, h("b", {}, bucket ? plot.words(values[i][shown]) : NONE)));
    legend.replaceChildren(h("span", {}, bucket ? this.#time(bucket.time) : ""), ...parts);
  }

  /**
   * @param {SVGElement} image @param {Plot} plot @param {number[]} scale @param {(v: number) => number} y
   * @param {(i: number) => number} x @param {number} step @param {number} right @param {number} base
   */
  #axes(image, plot, scale, y, x, step, right, base) {
    const { buckets, first, started } = this.data;
    const unknown = buckets.findIndex(bucket => bucket.time + this.data.step > first);
    if (unknown > 0) {
      const width = x(unknown) - LEFT;
      image.append(svg("rect", { x: LEFT, width, y: TOP, height: base - TOP, class: "unknown" }, svg("title", {}, "Nothing is known of this time: the gate had not been started, or kept no ledger.")));
      if (width > 110) image.append(svg("text", { x: LEFT + width / 2, y: (TOP + base) / 2, "text-anchor": "middle" }, "nothing known"));
    }
    scale.forEach((value, i) => {
      image.append(svg("line", { x1: LEFT, x2: right, y1: y(value), y2: y(value), class: i ? "grid" : "base" }));
      image.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, plot.unit(value, scale[scale.length - 1])));
    });
    let free = LEFT;
    buckets.forEach(({ time }, i) => {
      const text = this.#tick(time, right - LEFT);
      const middle = x(i) + (this.data.step >= 86400 ? step / 2 : 0), half = text.length * 3.2;
      if (!text || middle - half < free || middle + half > right) return;
      free = middle + half + 14;
      image.append(svg("line", { x1: middle, x2: middle, y1: base, y2: base + 4, class: "base" }), svg("text", { x: middle, y: HEIGHT - 4, "text-anchor": "middle" }, text));
    });
    const start = buckets.findIndex(({ time }) => started >= time && started < time + this.data.step);
    if (start > 0 && start !== unknown) {
      image.append(svg("line", { x1: x(start), x2: x(start), y1: TOP - 8, y2: base, class: "started" }, svg("title", {}, `The gate was started at ${clock(started)}`)));
    }
  }

  /** The label of a round time, or nothing. @param {number} time @param {number} width */
  #tick(time, width) {
    const { step } = this.data, at = new Date(time * 1000);
    if (step >= 86400) return day(time);
    if (step >= 3600) return at.getHours() < step / 3600 && width > 0 ? day(time) : "";
    const minutes = at.getHours() * 60 + at.getMinutes();
    if (step >= 900) return minutes % 180 === 0 ? clock(time) : "";
    if (step >= 60) return minutes % (width > 700 ? 5 : 10) === 0 ? clock(time) : "";
    return at.getSeconds() === 0 && minutes % 2 === 0 ? clock(time) : "";
  }
}

/** @param {number} most @param {boolean} wholes */
export function ticks(most, wholes) {
  const rough = Math.max(most / 3, wholes ? 1 : 0), ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * (/** @type {number} */ ([1, 2, 5, 10].find(times => ten * times >= rough * 0.999)));
  return Array.from({ length: Math.ceil(most / step - 0.001) + 1 }, (_, i) => i * step);
}

/** @param {number} least @param {number} most */
function decades(least, most) {
  const low = Math.floor(Math.log10(least)), high = Math.max(Math.ceil(Math.log10(most)), low + 1);
  return Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
}

/** One unit for the whole axis. @param {number} value @param {number} most */
export const shortUnit = (value, most) => (most < 10000 ? count(value) : count(value / (most < 1e7 ? 1000 : 1e6)) + (most < 1e7 ? " k" : " M"));
/** Milliseconds, or seconds for all. @param {number} value @param {number} most */
export const timeUnit = (value, most) => (most < 1000 ? `${+value.toPrecision(2)} ms` : `${(value / 1000).toLocaleString(navigator.language, { maximumSignificantDigits: 2 })} s`);

/** @param {SVGElement} image @param {Plot} plot @param {(number | null)[][]} values @param {(i: number) => number} x @param {(v: number) => number} y @param {number} step */
function drawBars(image, plot, values, x, y, step) {
  const gap = step > 5 ? step * 0.15 : 0, most = values[0].length - 1;
  for (let i = 0; i <= most; i++) {
    let from = 0;
    plot.series.forEach(([, colour], s) => {
      const to = from + (values[s][i] ?? 0);
      // What is not over yet is paler.
      if (to > from) image.append(svg("rect", { x: x(i) + gap / 2, width: Math.max(1, step - gap), y: y(to), height: Math.max(1, y(from) - y(to)), class: colour, opacity: i === most ? 0.55 : 1 }));
      from = to;
    });
  }
}

/** @param {SVGElement} image @param {Plot} plot @param {(number | null)[][]} values @param {(i: number) => number} middle @param {(v: number) => number} y */
function drawLines(image, plot, values, middle, y) {
  const dot = (/** @type {(number | null)[]} */ series, /** @type {number} */ i) => `${middle(i).toFixed(1)} ${y(/** @type {number} */ (series[i])).toFixed(1)}`;
  if (values.length === 2) {
    for (const [from, to] of runs(values[0])) {
      const all = Array.from({ length: to - from }, (_, i) => from + i);
      const there = all.map(i => dot(values[1], i)).join("L"), back = all.reverse().map(i => dot(values[0], i)).join("L");
      image.append(svg("path", { d: `M${there}L${back}Z`, class: `band ${plot.series[0][1]}` }));
    }
  }
  plot.series.forEach(([, colour], s) => {
    const d = runs(values[s]).map(([from, to]) => `M${dot(values[s], from)}h.01${Array.from({ length: to - from - 1 }, (_, i) => `L${dot(values[s], from + 1 + i)}`).join("")}`).join("");
    image.append(svg("path", { d, class: `line ${colour}${s ? " second" : ""}` }));
  });
}

/** [from, to) of what has no gap. @param {(number | null)[]} series */
function runs(series) {
  /** @type {[number, number][]} */
  const found = [];
  series.forEach((value, i) => {
    if (value === null || value === undefined) return;
    const last = found[found.length - 1];
    if (last && last[1] === i) last[1]++;
    else found.push([i, i + 1]);
  });
  return found;
}
