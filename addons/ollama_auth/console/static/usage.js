// What was used in a month, or in 30 days, as a file.

import { download, session } from "./api.js";
import { button, check, dialog, field, h, select } from "./dom.js";
import { month } from "./format.js";
import { save } from "./table.js";

/** A button for who is signed in. */
export const usageButton = () => session.me && button("Usage as CSV", choose);

function choose() {
  const now = new Date();
  /** @type {[string, string][]} */
  const periods = Array.from({ length: 13 }, (_, back) => {
    const first = new Date(Date.UTC(now.getFullYear(), now.getMonth() - back));
    return [first.toISOString().slice(0, 7), month(first.getTime() / 1000)];
  });
  const names = session.me?.admin ? ["day", "key", "model"] : ["day", "model"];
  dialog("Usage as CSV", [
    field("Of", select("of", [...periods, ["", "The last 30 days"]], {}, periods[0][0])),
    h("fieldset", {}, h("legend", {}, "A row for each"), ...names.map(name => check("by", name, true, name))),
    h("p", { class: "soft" }, `Of ${session.me?.admin ? "all keys" : "your key"}: requests, how they ended, and tokens.`),
  ], "Download", async form => {
    const of = String(form.get("of")), by = form.getAll("by").join(",");
    if (!by) throw new Error("Choose what a row is for.");
    const since = of || new Date(now.getTime() - 29 * 86400000).toISOString().slice(0, 10);
    save(`usage-${of || "30-days"}`, await download("usage", { by, since, until: of, format: "csv" }));
  });
}
