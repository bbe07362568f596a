// Numbers, sizes and times as people read them, in the format of the browser's language.

const LANGUAGES = navigator.languages.length ? [...navigator.languages] : undefined;
const WHOLE = new Intl.NumberFormat(LANGUAGES, { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat(LANGUAGES, { notation: "compact", maximumSignificantDigits: 3 });
const PERCENT = new Intl.NumberFormat(LANGUAGES, { style: "percent", maximumFractionDigits: 0 });
const CLOCK = new Intl.DateTimeFormat(LANGUAGES, { hour: "2-digit", minute: "2-digit" });
const SECONDS = new Intl.DateTimeFormat(LANGUAGES, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(LANGUAGES, { month: "short", day: "numeric" });
const DATE = new Intl.DateTimeFormat(LANGUAGES, { dateStyle: "medium", timeStyle: "short" });
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const NONE = "–";

/** @param {number} value @param {number} digits */
const fixed = (value, digits) => new Intl.NumberFormat(LANGUAGES, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

/**
 * The words for a value, or a dash where there is none.
 * @template T @param {T | null | undefined} value @param {(value: T) => string} words
 */
export const known = (value, words) => (value === null || value === undefined ? NONE : words(value));

/** @param {number | null | undefined} value */
export const whole = value => known(value, v => WHOLE.format(v));
/** Exact up to 99,999, and three digits with a suffix above. @param {number | null | undefined} value */
export const count = value => known(value, v => (Math.abs(v) < 100000 ? WHOLE : SHORT).format(v));
/** @param {number} share */
export const percent = share => PERCENT.format(share);
/** @param {number} value @param {string} word */
export const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
/** Tokens per second. @param {number | null | undefined} value */
export const speed = value => known(value, v => (v && v < 100 ? fixed(v, 1) : WHOLE.format(v)));

/** @param {number | null | undefined} value Milliseconds. */
export const ms = value => known(value, v => (v < 10 ? `${fixed(v, 1)} ms` : v < 1000 ? `${WHOLE.format(v)} ms` : v < 100000 ? `${fixed(v / 1000, v < 10000 ? 2 : 1)} s` : span(v / 1000)));

/** @param {number | null | undefined} value Bytes. */
export const bytes = value => known(value, v => {
  const power = v < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(v) / 3));
  return `${power ? fixed(v / 1000 ** power, v / 1000 ** power < 100 ? 1 : 0) : WHOLE.format(v)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
});

/** A length of time in its two largest units. @param {number} seconds */
export function span(seconds) {
  const s = Math.max(0, seconds);
  const [d, h, m] = [s / 86400, (s / 3600) % 24, (s / 60) % 60].map(Math.floor);
  if (s < 60) return `${s < 10 && s % 1 ? fixed(s, 1) : Math.floor(s)} s`;
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : `${m} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
}

/** @param {number} seconds */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

/** @param {number} time Seconds since 1970, as in all functions below. */
export const clock = time => CLOCK.format(time * 1000);
/** @param {number} time */
export const clockSeconds = time => SECONDS.format(time * 1000);
/** @param {number} time */
export const day = time => DAY.format(time * 1000);
/** @param {number} time */
export const date = time => DATE.format(time * 1000);
/** As the log has it. @param {number} time */
export const utc = time => `${new Date(time * 1000).toISOString().slice(0, 19)}Z, as in the log`;
/** Today's time alone, and the date of another day. @param {number} time */
export const when = time => (new Date(time * 1000).toDateString() === new Date().toDateString() ? clockSeconds(time) : date(time));
/** @param {string | null | undefined} text A time in RFC 3339. */
export const seconds = text => (text ? Date.parse(text) / 1000 : null);
