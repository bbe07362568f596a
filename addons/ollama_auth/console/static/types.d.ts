// Types that several modules name in their JSDoc. The browser does not load this file.

/** What stands in an element. */
type Child = Node | string | number | false | null | undefined;
/** Attributes, and listeners such as `onclick`. */
type Properties = Record<string, unknown>;
/** What there may be none of. */
type Known = number | null | undefined;
type Query = Record<string, string | number | undefined>;

/** A view makes its content, fills it again at each look at the gate, and cleans up when another one is shown. */
interface View {
  node: HTMLElement;
  update?: () => Promise<void>;
  close?: () => void;
}

/** A column: its heading, classes of its cells, what a cell shows, its tooltip, and its value in CSV. */
interface Column<Row = any> {
  head: string;
  style?: string;
  cell: (row: Row) => Child;
  title?: (row: Row) => string;
  csv?: (row: Row) => unknown;
}

/** A figure in large type. */
type Tile = [name: string, figure: string, more: string, colour?: string];

/** What the gate tells of a key. */
interface Key {
  name: string;
  kind: "key" | "ssh" | "environment";
  admin: boolean;
  scopes: string[];
  models: string[] | null;
  limits: Record<string, Limit>;
  expires: string | null;
  expired: boolean;
  disabled: boolean;
  note: string | null;
  old_key_until: string | null;
  last_used: number | null;
  today: Totals;
  month: Totals;
  [field: string]: unknown;
}
/** A field of a key that can be set, as FORM of console/keys.py tells it; `kind` is text, number, words or choices. */
type Field = Record<"name" | "label" | "kind" | "meaning" | "default" | "unit", string> & { choices: Record<string, string>; column: boolean };
interface Limit {
  limit: number;
  used: number;
  left: number;
  until: string | null;
}
interface Totals {
  requests: number;
  refused: number;
  failed: number;
  prompt_tokens: number;
  completion_tokens: number;
}
/** The key that is signed in, and where programs find the gate. */
type Me = Key & { gate: { scheme: string; port: number }; fields: Field[] };

/** A step of the plots. */
type Bucket = Record<string, any> & { time: number };
interface Plot {
  name: string;
  kind: "bars" | "lines" | "log";
  words: (value: Known) => string;
  /** What stands at the axis: one unit for all of it. */
  unit: (value: number, most: number) => string;
  /** Name, colour class, value. */
  series: [string, string, (bucket: Bucket) => number | null][];
}
interface Plotted {
  buckets: Bucket[];
  step: number;
  first: number;
  started: number;
}
/** Where things are drawn: `x` is where a bucket begins, `scale` the values that have a line. */
interface Places {
  values: (number | null)[][];
  scale: number[];
  x: (i: number) => number;
  y: (value: number) => number;
  step: number;
  right: number;
  base: number;
}
