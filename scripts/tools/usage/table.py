"""The table: its rows, asked of a database, and how they are written, as text, CSV and JSON."""

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from ollama_auth.telemetry.spreadsheet import harmless
from ollama_auth.telemetry.usage_queries import Chosen, Sums, added, first_tokens, sums

from .. import PACKAGE  # noqa: F401, not a script: see there

NUMBERS = (
    "requests", "refused", "failed", "broken_off", "prompt_tokens", "completion_tokens", "estimated",
    "tokens_per_second", "ttft_p50_ms", "ttft_p95_ms", "bytes_in", "bytes_out",
)  # fmt: skip
HEADINGS = (
    "REQUESTS", "REFUSED", "FAILED", "BROKEN OFF", "PROMPT", "COMPLETION", "TOKENS/S", "TTFT P50", "TTFT P95",
    "BYTES IN", "BYTES OUT",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of a table, their total, and lines of logs that were skipped."""

    by: Sequence[str]
    rows: list[tuple[tuple[str, ...], dict[str, Any]]]
    total: dict[str, Any]
    broken: int = 0


def report(connections: Sequence[sqlite3.Connection], by: Sequence[str], chosen: Chosen, zone: tzinfo) -> Report:
    """Ask a ledger, or a database of log lines, on connections that see the same moment. Raises sqlite3.Error."""
    connection, *others = connections
    found = sums(connection, by, chosen, zone, others)
    requests = sum(one.requests - one.refused for one in found.values())
    times, whole = first_tokens(connection, by, chosen, zone, requests, others)
    rows = [(place, numbers(found[place], times.get(place))) for place in sorted(found)]
    return Report(by, rows, numbers(added(found.values()), whole))


def numbers(of: Sums, ttft: Sequence[float] | None) -> dict[str, Any]:
    """The fields NUMBERS for CSV and JSON."""
    median, p95 = ttft or (None, None)
    named = {"tokens_per_second": of.speed, "ttft_p50_ms": median, "ttft_p95_ms": p95, "estimated": bool(of.estimated)}
    found = of.figures | named
    return {name: found[name] for name in NUMBERS}


def printable(text: str) -> str:
    """Escape control and bidirectional characters as \\xNN or \\uNNNN."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_text(report: Report) -> str:
    rows = [[*(printable(name) or "-" for name in names), *in_words(row)] for names, row in report.rows]
    total = ["total", *[""] * (len(report.by) - 1), *in_words(report.total)]
    table = [[*map(str.upper, report.by), *HEADINGS], *rows, total]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [f"{'<' if i < len(report.by) else '>'}{width}" for i, width in enumerate(widths)]
    return "".join("  ".join(map(format, row, aligned)) + "\n" for row in table)


def in_words(row: dict[str, Any]) -> list[str]:
    speed = row["tokens_per_second"]
    return [
        *(f"{row[name]:,}" for name in ("requests", "refused", "failed", "broken_off", "prompt_tokens")),
        f"{'~' if row['estimated'] else ''}{row['completion_tokens']:,}", "-" if speed is None else f"{speed:,.1f}",
        span(row["ttft_p50_ms"]), span(row["ttft_p95_ms"]), size(row["bytes_in"]), size(row["bytes_out"]),
    ]  # fmt: skip


def span(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1000:.2f} s" if ms < 10_000 else f"{ms / 1000:,.0f} s"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def as_csv(report: Report) -> str:
    """CSV without a total, in which a spreadsheet takes no cell for a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*report.by, *NUMBERS])
    for names, row in report.rows:
        cells = (harmless(printable(name)) for name in names)
        writer.writerow([*cells, *(str(v).lower() if isinstance(v, bool) else v for v in row.values())])
    return file.getvalue()


def as_json(report: Report) -> str:
    rows = [{c: name or None for c, name in zip(report.by, names, strict=True)} | row for names, row in report.rows]
    return json.dumps({"rows": rows, "total": report.total, "broken_lines": report.broken}, indent=2) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {"text": as_text, "csv": as_csv, "json": as_json}
