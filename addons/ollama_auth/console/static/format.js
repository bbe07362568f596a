// Numbers, sizes and times as people read them, in the format of the browser's language.

const LANGUAGES = navigator.languages.length ? [...navigator.languages] : undefined;
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const NONE = "–";

/** @param {Intl.NumberFormatOptions} options @returns {(value: number) => string} */
const number = options => new Intl.NumberFormat(LANGUAGES, options).format;
/** Of seconds since 1970. @param {Intl.DateTimeFormatOptions} options @returns {(time: number) => string} */
const timed = options => {
  const { format } = new Intl.DateTimeFormat(LANGUAGES, options);
  return time => format(time * 1000);
};
const exact = number({ maximumFractionDigits: 0 }), short = number({ notation: "compact", maximumSignificantDigits: 3 });
const [one, two] = [1, 2].map(digits => number({ minimumFractionDigits: digits, maximumFractionDigits: digits }));

/**
 * The words for a value, or a dash where there is none.
 * @template T @param {T | null | undefined} value @param {(value: T) => string} words
 */
export const known = (value, words) => (value === null || value === undefined ? NONE : words(value));

/** @param {Known} value */
export const whole = value => known(value, exact);
/** Exact up to 99,999, and three digits with a suffix above. @param {Known} value */
export const count = value => known(value, v => (Math.abs(v) < 100000 ? exact : short)(v));
export const rough = number({ maximumSignificantDigits: 2 });
export const percent = number({ style: "percent", maximumFractionDigits: 0 });
/** @param {number} value @param {string} word */
export const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
/** Tokens per second. @param {Known} value */
export const speed = value => known(value, v => (v && v < 100 ? one : exact)(v));
/** @param {Known} value Milliseconds. */
export const ms = value => known(value, v => (v < 10 ? `${one(v)} ms` : v < 1000 ? `${exact(v)} ms` : v < 100000 ? `${(v < 10000 ? two : one)(v / 1000)} s` : span(v / 1000)));
/** @param {Known} value Bytes. */
export const bytes = value => known(value, v => {
  const power = v < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(v) / 3)), scaled = v / 1000 ** power;
  return `${(power && scaled < 100 ? one : exact)(scaled)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
});

/** A length of time in its two largest units. @param {number} seconds */
export function span(seconds) {
  const s = Math.max(0, seconds);
  const [d, h, m] = [s / 86400, (s / 3600) % 24, (s / 60) % 60].map(Math.floor);
  if (s < 60) return `${s < 10 && s % 1 ? one(s) : Math.floor(s)} s`;
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : `${m} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
}

/** @param {number} seconds */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  const [size, unit] = seconds < 60 ? [1, "s"] : seconds < 3600 ? [60, "min"] : seconds < 86400 ? [3600, "h"] : [86400, "d"];
  return `${Math.floor(seconds / Number(size))} ${unit} ago`;
}

export const clock = timed({ hour: "2-digit", minute: "2-digit" });
export const clockSeconds = timed({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const day = timed({ month: "short", day: "numeric" });
export const date = timed({ dateStyle: "medium", timeStyle: "short" });
/** Of its first second, UTC. */
export const month = timed({ month: "long", year: "numeric", timeZone: "UTC" });
/** As the log has it. @param {number} time */
export const utc = time => `${new Date(time * 1000).toISOString().slice(0, 19)}Z, as in the log`;
/** Today's time alone, and the date of another day. @param {number} time */
export const when = time => (new Date(time * 1000).toDateString() === new Date().toDateString() ? clockSeconds : date)(time);
/** @param {string | null} text A time in RFC 3339. */
export const seconds = text => (text ? Date.parse(text) / 1000 : null);
/** @param {string | null} text */
export const dateOf = text => known(seconds(text), date);
