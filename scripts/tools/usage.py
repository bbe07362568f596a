"""Summarize access logs by key, model and day.

Reads the JSON lines that the option ollama_access_log writes: from files, also ones compressed with gzip or still
being written, or from - for standard input. Days are in UTC. Only sums are kept in memory, so a log may have any size;
times to the first token are exact within 3 %.
"""

import argparse
import csv
import gzip
import io
import json
import os
import re
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, cast

from ollama_auth.errors import OllamaAuthError
from ollama_auth.telemetry.log_histogram import MAX_MS, LogHistogram

from .terminal import shown

COLUMNS = ("key", "model", "day")
SUMS = ("prompt_tokens", "completion_tokens", "bytes_in", "bytes_out")
NUMBERS = (
    "requests", "refused", "prompt_tokens", "completion_tokens", "estimated", "ttft_p50_ms", "ttft_p95_ms",
    "bytes_in", "bytes_out",
)  # fmt: skip
HEADINGS = ("REQUESTS", "REFUSED", "PROMPT", "COMPLETION", "TTFT P50", "TTFT P95", "BYTES IN", "BYTES OUT")
MAX_LINE = 64 * 1024
"""Bytes of a line; the gateway writes none longer."""
MAX_NAME = 128
"""Characters of a key or a model; clients choose the model."""
MAX_ROWS = 100_000
"""Rows of a table; further ones are merged into one."""
OTHER, UNKNOWN = "(other)", "(unknown)"
"""Labels that are no valid key names: for rows beyond MAX_ROWS, for unknown keys."""
MAX_COUNT = 2**63
PERIOD = 0.1
"""Seconds between two updates of the progress."""
EXAMPLES = """\
examples:
  scripts/usage access.log
  scripts/usage --by day,key --since 2026-11-01 access.log access.log.1.gz
  scripts/usage --format csv --by model access.log > models.csv
  ssh gpu-box cat /var/log/ollama-auth.log | scripts/usage --key alice -

A ~ marks estimated tokens; CSV and JSON have a field `estimated`.
exit status: 0 done; 1 nothing to count, or a file that can't be read; 2 an invalid command line
"""


class UsageError(OllamaAuthError):
    """What went wrong, and the remedy."""


class Entry(NamedTuple):
    """The fields of a line that are counted."""

    day: str
    key: str
    model: str
    outcome: str
    counts: tuple[int, int, int, int]
    """In the order of SUMS."""
    ttft: float | None
    """Milliseconds."""
    estimated: bool


def read(line: bytes) -> Entry:
    """Parse a line. Raises ValueError for anything but a line of an access log."""
    try:
        found = json.loads(line.decode())
    except RecursionError:
        raise ValueError("nested too deep") from None
    if type(found) is not dict:
        raise ValueError("not an object")
    get = found.get
    moment, key, model, outcome = get("time"), get("key") or "", get("model") or "", get("outcome")
    counts = get("prompt_tokens", 0), get("completion_tokens", 0), get("bytes_in", 0), get("bytes_out", 0)
    ttft = get("ttft_ms")
    if not type(moment) is type(key) is type(model) is type(outcome) is str:
        raise ValueError("a time, name or outcome is missing or not a string")
    if moment[10:11] != "T" or not is_day(moment[:10]):
        raise ValueError("not a valid time")
    for number in counts:
        if type(number) is not int or not 0 <= number < MAX_COUNT:
            raise ValueError("not a valid count")
    if ttft is not None and not (type(ttft) in (int, float) and 0 <= ttft < MAX_MS):
        raise ValueError("not a valid duration")
    return Entry(moment[:10], key, model, outcome, counts, ttft, bool(get("estimated")))


@lru_cache(1024)
def is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(slots=True)
class Tally:
    """Sums over some requests."""

    counts: Counter[str] = field(default_factory=Counter)
    estimated: bool = False
    ttft: LogHistogram = field(default_factory=LogHistogram)

    def add(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        self.estimated |= other.estimated
        self.ttft.counts.update(other.ttft.counts)

    def numbers(self) -> dict[str, Any]:
        """The fields NUMBERS for CSV and JSON."""
        median, p95 = self.ttft.percentiles(0.5, 0.95) or (None, None)
        others = {"estimated": self.estimated, "ttft_p50_ms": median, "ttft_p95_ms": p95}
        return {name: others[name] if name in others else self.counts[name] for name in NUMBERS}


class Report:
    """The rows of a table."""

    def __init__(self, by: Sequence[str], since: str, until: str, key: str | None) -> None:
        """Count lines from the day `since` to the day `until`, both included; of `key` alone, if given."""
        self.by = by
        self.rows: dict[tuple[str, ...], Tally] = {}
        self.read = 0
        self.broken = 0
        self.folded = False
        self._since, self._until, self._key = since, until, key
        pick = itemgetter(*map(COLUMNS.index, by))
        self._pick: Callable[[tuple[str, str, str]], tuple[str, ...]] = (
            pick if len(by) > 1 else lambda row: (pick(row),)
        )

    def count(self, entry: Entry) -> None:
        self.read += 1
        if not self._since <= entry.day <= self._until or (self._key is not None and entry.key != self._key):
            return
        key = UNKNOWN if entry.key.startswith("unknown:") else entry.key
        tally = self._tally(self._pick((key[:MAX_NAME], entry.model[:MAX_NAME], entry.day)))
        counts = tally.counts
        counts["requests"] += 1
        counts["refused"] += entry.outcome == "refused"
        for name, number in zip(SUMS, entry.counts, strict=True):
            counts[name] += number
        if entry.estimated:
            tally.estimated = True
        if entry.ttft is not None:
            tally.ttft.add(entry.ttft)

    def sorted(self) -> list[tuple[tuple[str, ...], Tally]]:
        return sorted(self.rows.items())

    def total(self) -> Tally:
        total = Tally()
        for tally in self.rows.values():
            total.add(tally)
        return total

    def _tally(self, names: tuple[str, ...]) -> Tally:
        if (found := self.rows.get(names)) is not None:
            return found
        if len(self.rows) >= MAX_ROWS:
            self.folded, names = True, (OTHER,) * len(self.by)
        return self.rows.setdefault(names, Tally())


# The files.


class Progress:
    """Show progress on a terminal: a share of the bytes, or the number of lines when the total is unknown."""

    def __init__(self, names: Sequence[str]) -> None:
        self._shown = sys.stderr.isatty()
        self._sizes = [0 if name == "-" else os.path.getsize(name) for name in names]
        self._total = 0 if "-" in names else sum(self._sizes)
        self._before = 0
        self._due = time.monotonic() + 5 * PERIOD
        self._width = 0

    def tell(self, position: int, lines: int) -> None:
        if self._shown and time.monotonic() >= self._due:
            self._due = time.monotonic() + PERIOD
            share = min(99, 100 * (self._before + position) // self._total) if self._total else 0
            self._write(f"{share} %" if self._total else f"{lines:,} lines")

    def next_file(self) -> None:
        self._before += self._sizes.pop(0)

    def done(self) -> None:
        if self._width:
            self._write("")
            self._write("")

    def _write(self, text: str) -> None:
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)


def count(names: Sequence[str], report: Report) -> list[str]:
    """Count the lines of files and return faults. Raises UsageError, before it reads any, if one can't be read."""
    for name in names:
        if name != "-":
            check(name)
    faults = []
    progress = Progress(names)
    try:
        for name in names:
            try:
                with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
                    count_file(cast(io.BufferedReader, file), report, progress)
            except (OSError, EOFError, zlib.error):
                faults.append(f"{name} could not be read to its end: what came before that was counted")
            progress.next_file()
    finally:
        progress.done()
    return faults


def check(name: str) -> None:
    """Raise UsageError if that is not a readable file."""
    if not os.path.exists(name):
        raise UsageError(f"there is no {name}: name the file that the option ollama_access_log names")
    if os.path.isdir(name):
        raise UsageError(f"{name} is a directory: name the files in it")
    if not os.access(name, os.R_OK):
        raise UsageError(f"{name} can't be read: run this as a user who may")


def count_file(file: io.BufferedReader, report: Report, progress: Progress) -> None:
    packed = file.peek(2)[:2] == b"\x1f\x8b"
    seekable = file.seekable()
    for number, line in enumerate(lines(gzip.GzipFile(fileobj=file) if packed else file)):
        if number % 1000 == 0:
            progress.tell(file.tell() if seekable else 0, report.read)
        try:
            report.count(read(line))
        except ValueError:
            # A line without an end is still being written.
            report.broken += line.endswith(b"\n") and not line.isspace()


def lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The lines with their ends; one longer than MAX_LINE becomes a broken one."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            line = b"too long\n"
        yield line


# The table.


def printable(text: str) -> str:
    """Escape control and bidirectional characters as \\xNN or \\uNNNN."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_text(report: Report) -> str:
    rows = [[*(printable(name) or "-" for name in names), *in_words(tally)] for names, tally in report.sorted()]
    total = ["total", *[""] * (len(report.by) - 1), *in_words(report.total())]
    table = [[*map(str.upper, report.by), *HEADINGS], *rows, total]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [f"{'<' if i < len(report.by) else '>'}{width}" for i, width in enumerate(widths)]
    return "".join("  ".join(map(format, row, aligned)) + "\n" for row in table)


def in_words(tally: Tally) -> list[str]:
    row = tally.numbers()
    completion = f"{'~' if tally.estimated else ''}{row['completion_tokens']:,}"
    return [
        f"{row['requests']:,}", f"{row['refused']:,}", f"{row['prompt_tokens']:,}", completion,
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
    for names, tally in report.sorted():
        writer.writerow([*map(harmless, names), *cells(tally)])
    return file.getvalue()


def cells(tally: Tally) -> list[object]:
    return [str(value).lower() if isinstance(value, bool) else value for value in tally.numbers().values()]


def harmless(name: str) -> str:
    text = printable(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def as_json(report: Report) -> str:
    rows = [
        {column: name or None for column, name in zip(report.by, names, strict=True)} | tally.numbers()
        for names, tally in report.sorted()
    ]
    return json.dumps({"rows": rows, "total": report.total().numbers(), "broken_lines": report.broken}, indent=2) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {"text": as_text, "csv": as_csv, "json": as_json}


# The command line.


def columns(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(COLUMNS):
        raise argparse.ArgumentTypeError("write it as key,model,day: some of them or all, in the order you like")
    return names


def day(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII) or not is_day(text):
        raise argparse.ArgumentTypeError("it is not a valid day; write it as 2026-11-30")
    return text


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=shown("scripts/usage"), description=__doc__, epilog=shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="an access log, also a compressed one; - is standard input"
    )
    parser.add_argument("--by", metavar="COLUMNS", type=columns, default=COLUMNS,
                        help="what makes a row, such as model or day,key; default: key,model,day")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--since", metavar="DAY", type=day, default="0001-01-01", help="the first day, such as 2026-11-01"
    )
    parser.add_argument("--until", metavar="DAY", type=day, default="9999-12-31", help="the last day")
    parser.add_argument("--key", metavar="NAME", help="count this key alone")
    arguments = parser.parse_args(command_line)
    if arguments.files.count("-") > 1:
        parser.error("standard input can be read once: name - once")
    if arguments.since > arguments.until:
        parser.error("--since is after --until: no day is left")
    return arguments


def main() -> int:
    arguments = parse(sys.argv[1:])
    report = Report(arguments.by, arguments.since, arguments.until, arguments.key)
    try:
        notes = count(arguments.files, report)
        status = 1 if notes else 0
        if not report.read:
            raise UsageError("there is no line of an access log: the gate writes one with --set ollama_access_log=PATH")
        if not report.rows:
            raise UsageError("no request has that key and those days: leave out --key, --since or --until to see all")
    except UsageError as error:
        say(str(error))
        status = 1
    except KeyboardInterrupt:
        return 130
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(FORMATS[arguments.format](report))
        for note in notes:
            say(note)
    if report.folded:
        say(f"there are more than {MAX_ROWS:,} rows: the others are in {OTHER}; ask for fewer with --by or --key")
    if report.broken:
        say(f"skipped {report.broken:,} line{'' if report.broken == 1 else 's'} that the gate did not write so")
    return status


def say(text: str) -> None:
    print(f"ollama-auth: {printable(text)}", file=sys.stderr)


if __name__ == "__main__":
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As in a pipe to head.
    sys.exit(main())
