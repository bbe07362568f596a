// Plots over time that share what is pointed at, each with its figures in a table for who can't see it.

import { announce, h, svg } from "./dom.js";
import { clock, clockSeconds, count, day, NONE, rough } from "./format.js";
import { iso, Table } from "./table.js";

const NOTHING = "Nothing in this time.";
const HEIGHT = 168, BOTTOM = 20, TOP = 12, LEFT = 52;

export class Plots {
  /** @param {Plot[]} plots @param {string} label */
  constructor(plots, label) {
    /** @type {Plotted} */
    this.data = { buckets: [], step: 60, first: 0, started: 0 };
    /** @type {number | null} The bucket that is pointed at, in all plots. */
    this.at = null;
    this.drawn = plots.map((plot, number) => this.#frame(plot, number));
    this.node = h("section", { class: "plots", "aria-label": label }, ...this.drawn.map(one => one.figure));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.node);
  }

  /** @param {Plotted} data */
  fill(data) {
    this.data = data;
    this.draw();
    for (const { details, table } of this.drawn) if (details.open) table.fill(data.buckets);
  }

  /** @param {Plot} plot @param {number} number */
  #frame(plot, number) {
    const legend = h("p", { class: "legend" });
    const image = svg("svg", { role: "img", tabindex: 0, class: "plot" });
    /** @type {Table<Bucket>} */
    const table = new Table(`plot-${number}`, plot.name, [
      { head: "Time", cell: bucket => this.#time(bucket.time), csv: bucket => iso(bucket.time) },
      ...plot.series.map(([head, , read]) => ({ head, style: "n", cell: (/** @type {Bucket} */ bucket) => plot.words(read(bucket)), csv: read })),
    ], NOTHING, { file: plot.name.toLowerCase().replaceAll(" ", "-") });
    const details = h("details", { ontoggle: () => this.fill(this.data) }, h("summary", {}, "As a table"), table.node);
    const figure = h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, plot.name), legend), image, details);
    const index = (/** @type {PointerEvent} */ event) => {
      const box = image.getBoundingClientRect();
      return Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - 2)) * this.data.buckets.length);
    };
    image.onpointermove = image.onpointerdown = event => this.point(index(event));
    image.onpointerleave = event => event.pointerType !== "touch" && this.point(null);
    image.onblur = () => this.point(null);
    image.onkeydown = event => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) {
        event.preventDefault();
        this.point((this.at ?? this.data.buckets.length) + by);
        announce(String(legend.textContent));
      }
      if (event.key === "Escape") this.point(null);
    };
    return { plot, figure, legend, image, details, table };
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
    const { step } = this.data;
    return step >= 86400 ? day(time) : step >= 3600 ? `${day(time)} ${clock(time)}` : (step < 60 ? clockSeconds : clock)(time);
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
    this.#legend(plot, legend, values, this.at ?? (bars ? buckets.length - 1 : values[0].findLastIndex(value => value !== null)));
    const width = image.clientWidth || 400;
    image.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    image.setAttribute("aria-label", most ? `${plot.name}: at most ${plot.words(most)}. Arrow keys tell single times.` : NOTHING);
    image.replaceChildren();
    if (!most) {
      image.append(svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, NOTHING));
      return;
    }
    const base = HEIGHT - BOTTOM, right = width - 2, step = (right - LEFT) / buckets.length;
    const scale = plot.kind === "log" ? decades(least, most) : ticks(most, bars);
    const low = scale[0], high = scale[scale.length - 1];
    const share = (/** @type {number} */ value) => (plot.kind === "log" ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : value / high);
    /** @type {Places} */
    const places = { values, scale, x: i => LEFT + step * i, y: value => base - (base - TOP) * share(value), step, right, base };
    this.#axes(image, plot, places);
    if (this.at !== null) image.append(svg("rect", { x: places.x(this.at), width: step, y: TOP, height: base - TOP, class: "pointed" }));
    (bars ? drawBars : drawLines)(image, plot, places);
  }

  /** @param {Plot} plot @param {Element} legend @param {(number | null)[][]} values @param {number} shown */
  #legend(plot, legend, values, shown) {
    const bucket = this.data.buckets[shown];
    const parts = plot.series.map(([name, colour], i) =>
      h("span", {}, svg("svg", { class: `swatch ${colour}${i && plot.kind !== "bars" ? " second" : ""}`, viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2 })),
        `${name} `, h("b", {}, bucket ? plot.words(values[i][shown]) : NONE)));
    legend.replaceChildren(h("span", {}, bucket ? this.#time(bucket.time) : ""), ...parts);
  }

  /** @param {SVGElement} image @param {Plot} plot @param {Places} places */
  #axes(image, plot, { scale, x, y, step, right, base }) {
    const { buckets, first, started } = this.data;
    /** @type {(ends: number[], style: string, ...title: Node[]) => void} */
    const line = ([x1, x2, y1, y2], style, ...title) => image.append(svg("line", { x1, x2, y1, y2, class: style }, ...title));
    /** @type {(x: number, y: number, anchor: string, words: string) => void} */
    const label = (x, y, anchor, words) => image.append(svg("text", { x, y, "text-anchor": anchor }, words));
    const unknown = buckets.findIndex(bucket => bucket.time + this.data.step > first);
    if (unknown > 0) {
      const width = x(unknown) - LEFT;
      image.append(svg("rect", { x: LEFT, width, y: TOP, height: base - TOP, class: "unknown" }, svg("title", {}, "Nothing is known of this time: the gate had not been started, or kept no ledger.")));
      if (width > 110) label(LEFT + width / 2, (TOP + base) / 2, "middle", "nothing known");
    }
    scale.forEach((value, i) => {
      line([LEFT, right, y(value), y(value)], i ? "grid" : "base");
      label(LEFT - 6, y(value) + 4, "end", plot.unit(value, scale[scale.length - 1]));
    });
    let free = LEFT;
    buckets.forEach(({ time }, i) => {
      const words = this.#tick(time, right - LEFT);
      const middle = x(i) + (this.data.step >= 86400 ? step / 2 : 0), half = words.length * 3.2;
      if (!words || middle - half < free || middle + half > right) return;
      free = middle + half + 14;
      line([middle, middle, base, base + 4], "base");
      label(middle, HEIGHT - 4, "middle", words);
    });
    const start = buckets.findIndex(({ time }) => started >= time && started < time + this.data.step);
    if (start > 0 && start !== unknown) line([x(start), x(start), TOP - 8, base], "started", svg("title", {}, `The gate was started at ${clock(started)}`));
  }

  /** The label of a round time, or nothing. @param {number} time @param {number} width */
  #tick(time, width) {
    const { step } = this.data, at = new Date(time * 1000);
    if (step >= 3600) return step >= 86400 || at.getHours() < step / 3600 ? day(time) : "";
    const minutes = step >= 900 ? 180 : step < 60 ? 2 : width > 700 ? 5 : 10;
    return (at.getHours() * 60 + at.getMinutes()) % minutes || at.getSeconds() ? "" : clock(time);
  }
}

/** @param {number} most @param {boolean} wholes */
function ticks(most, wholes) {
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
export const timeUnit = (value, most) => (most < 1000 ? `${rough(value)} ms` : `${rough(value / 1000)} s`);

/** @param {SVGElement} image @param {Plot} plot @param {Places} places */
function drawBars(image, plot, { values, x, y, step }) {
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

/** @param {SVGElement} image @param {Plot} plot @param {Places} places */
function drawLines(image, plot, { values, x, y, step }) {
  /** @type {(s: number, from: number, to: number) => string[]} */
  const line = (s, from, to) => values[s].slice(from, to).map((value, i) => `${(x(from + i) + step / 2).toFixed(1)} ${y(Number(value)).toFixed(1)}`);
  for (const [from, to] of values.length === 2 ? runs(values[0]) : []) {
    image.append(svg("path", { d: `M${[...line(1, from, to), ...line(0, from, to).reverse()].join("L")}Z`, class: `band ${plot.series[0][1]}` }));
  }
  plot.series.forEach(([, colour], s) => {
    const d = runs(values[s]).map(([from, to]) => `M${line(s, from, to).join("L")}${to - from > 1 ? "" : "m-3 0h6"}`).join("");
    image.append(svg("path", { d, class: `line ${colour}${s ? " second" : ""}` }));
  });
}

/** [from, to) of what has no gap. @param {(number | null)[]} series */
function runs(series) {
  /** @type {[number, number][]} */
  const found = [];
  series.forEach((value, i) => {
    const last = found.at(-1);
    if (value !== null && last?.[1] === i) last[1]++;
    else if (value !== null) found.push([i, i + 1]);
  });
  return found;
}
