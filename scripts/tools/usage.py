"""Sum up who used what, of the gate's ledger or of access logs, by day, month, key, model, client, outcome or reason.

Without FILE, the ledger is the one at OLLAMA_USAGE_DB, in the environment or in .env.local, or else usage.db beside
that. Access logs are the JSON lines that the option ollama_access_log writes: from files, also ones compressed with
gzip or still being written, or from - for standard input.
"""

import argparse
import csv
import gzip
import io
import json
import os
import re
import signal
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from operator import attrgetter
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from ollama_auth.errors import OllamaAuthError
from ollama_auth.ollama_api.model_names import short
from ollama_auth.telemetry import usage_db
from ollama_auth.telemetry.spreadsheet import harmless
from ollama_auth.telemetry.usage_db import Entry
from ollama_auth.telemetry.usage_queries import COLUMNS, FOREVER, PERIODS, Chosen, Sums, first_tokens, sums

from .terminal import ToolError, shown

DEFAULT = ("key", "model", "day")
NUMBERS = (
    "requests", "refused", "failed", "broken_off", "prompt_tokens", "completion_tokens", "estimated",
    "tokens_per_second", "ttft_p50_ms", "ttft_p95_ms", "bytes_in", "bytes_out",
)  # fmt: skip
HEADINGS = (
    "REQUESTS", "REFUSED", "FAILED", "BROKEN OFF", "PROMPT", "COMPLETION", "TOKENS/S", "TTFT P50", "TTFT P95",
    "BYTES IN", "BYTES OUT",
)  # fmt: skip
BATCH = 10_000
"""Lines of a log that are counted at once."""
MAX_LINE = 64 * 1024
"""Bytes of a line; the gateway writes none longer."""
MAX_NAME = 128
"""Characters of a key or a model; clients choose the model."""
MAX_COUNT = 10**12
"""The largest count of bytes or tokens; more is counted as this."""
MAX_MS = 1e10
PERIOD = 0.1
"""Seconds between two updates of the progress."""
EXAMPLES = """\
examples:
  scripts/usage --by month,key
  scripts/usage --by day,key --since 2026-11-01 --timezone Europe/Berlin access.log access.log.1.gz
  scripts/usage --by outcome,reason --key alice
  scripts/usage --format csv --by model > models.csv
  scripts/usage forget alice           take a person out of the ledger; sums stay, without the name
  ssh gpu-box cat /var/log/ollama-auth.log | scripts/usage --key alice -

A ~ marks estimated tokens; CSV and JSON have a field `estimated`.
exit status: 0 done; 1 nothing to count, or a file that can't be read; 2 an invalid command line
"""


class UsageError(OllamaAuthError):
    """What went wrong, and the remedy."""


# Access logs.


def read(line: bytes) -> Entry | None:
    """Parse a line; None is one that is none of a request. Raises ValueError for what the gate did not write so."""
    try:
        found = json.loads(line.decode())
        if type(found) is dict and type(found.get("log")) is str and "stream" in found:  # As Docker keeps it.
            found = json.loads(found["log"]) if found["log"].startswith("{") else {"message": found["log"]}
    except RecursionError:
        raise ValueError("nested too deep") from None
    if type(found) is not dict:
        raise ValueError("not an object")
    get = found.get
    if "message" in found and "outcome" not in found:
        return None
    began, key, model, outcome = get("time"), get("key") or "", get("model") or "", get("outcome")
    client, reason = get("client") or "", get("reason") or ""
    if not type(began) is type(key) is type(model) is type(outcome) is type(client) is type(reason) is str:
        raise ValueError("a time, name or outcome is missing or not a string")
    if began[10:11] != "T":
        raise ValueError("not a valid time")
    moment = datetime.fromisoformat(began)
    prompt, completion = get("prompt_tokens"), get("completion_tokens")
    received, sent = get("bytes_in", 0), get("bytes_out", 0)
    for number in (prompt or 0, completion or 0, received, sent):
        if type(number) is not int or not 0 <= number < 2**63:
            raise ValueError("not a valid count")
    # An answer without tokens has a first byte, and no first token.
    duration, ttft = get("duration_ms", 0), get("ttft_ms") if prompt is not None or completion is not None else None
    for number in (duration, ttft or 0):
        if type(number) not in (int, float) or not 0 <= number < MAX_MS:
            raise ValueError("not a valid duration")
    made = (duration - ttft if get("stream") and ttft else duration) if completion else None
    at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    prompt, completion = prompt and min(prompt, MAX_COUNT), completion and min(completion, MAX_COUNT)
    key, model, client, outcome, reason = map(text, (key, model, client, outcome, reason))
    return Entry(
        at, at + duration / 1000, "", client, "", "", "", None, prompt, completion, bool(get("estimated")),
        min(received, MAX_COUNT), min(sent, MAX_COUNT), ttft, duration, made, "",
        usage_db.UNKNOWN_KEY if key.startswith("unknown:") else key, short(model), outcome, reason,
    )  # fmt: skip


def text(name: str) -> str:
    """A bounded name that a database takes."""
    return name[:MAX_NAME].encode("utf-8", "backslashreplace").decode()


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


class Counting:
    """Puts lines of logs into a database, to ask it what the ledger is asked."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.read = self.broken = 0
        self._connection = connection
        self._rows: list[Entry] = []
        usage_db.prepare(connection)

    def count(self, line: bytes) -> None:
        try:
            entry = read(line)
        except (ValueError, OverflowError):
            # A line without an end is still being written.
            self.broken += line.endswith(b"\n") and not line.isspace()
            return
        if entry:
            self.read += 1
            self._rows.append(entry)
            if len(self._rows) >= BATCH:
                self.write()

    def write(self) -> None:
        totals: usage_db.Sums = {}
        for entry in self._rows:
            usage_db.add_to(totals, entry)
        usage_db.write(self._connection, self._rows, totals)
        self._rows = []


def count(names: Sequence[str], counting: Counting) -> list[str]:
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
                    count_file(cast(io.BufferedReader, file), counting, progress)
            except (OSError, EOFError, zlib.error):
                faults.append(f"{name} could not be read to its end: what came before that was counted")
            progress.next_file()
    finally:
        progress.done()
    counting.write()
    return faults


def check(name: str) -> None:
    """Raise UsageError if that is not a readable file."""
    if not os.path.exists(name):
        raise UsageError(f"there is no {name}: name the file that the option ollama_access_log names")
    if os.path.isdir(name):
        raise UsageError(f"{name} is a directory: name the files in it")
    if not os.access(name, os.R_OK):
        raise UsageError(f"{name} can't be read: run this as a user who may")


def count_file(file: io.BufferedReader, counting: Counting, progress: Progress) -> None:
    packed = file.peek(2)[:2] == b"\x1f\x8b"
    seekable = file.seekable()
    for number, line in enumerate(lines(gzip.GzipFile(fileobj=file) if packed else file)):
        if number % 1000 == 0:
            progress.tell(file.tell() if seekable else 0, counting.read)
        counting.count(line)


def lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The lines with their ends; one longer than MAX_LINE becomes a broken one."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            line = b"too long\n"
        yield line


# The ledger.


def ledger_file() -> str:
    """The ledger of this folder, or of the environment. Raises UsageError if there is none."""
    name = "OLLAMA_USAGE_DB"
    from .serve import read_env_file  # It needs mitmproxy, and --help does not.

    found = os.environ.get(name) or read_env_file().get(name) or "usage.db"
    if not Path(found).expanduser().is_file():
        raise UsageError(
            f"there is no {found}: name the file of the ledger (ollama_usage_db), or access logs; "
            "scripts/serve keeps usage.db in the folder in which it is started"
        )
    return found


def is_ledger(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return file.read(15) == b"SQLite format 3"
    except OSError:
        return False


def open_ledger(name: str, *, write: bool = False) -> sqlite3.Connection:
    """Open a ledger. Raises UsageError."""
    check(name)
    connection = usage_db.connect(Path(name).expanduser(), write=write)
    try:
        if not write:
            connection.execute("BEGIN")  # All of a report is of one moment.
        found = usage_db.version(connection)
    except sqlite3.Error as error:
        connection.close()
        raise UsageError(f"{name} can't be read: {error}") from error
    if found != usage_db.NEWEST:
        connection.close()
        raise UsageError(
            f"{name} is the ledger of another release (version {found}): run the scripts/usage of that one"
            if found
            else f"{name} is the database of another program: name the file of the ledger"
        )
    return connection


def forget(command_line: Sequence[str]) -> None:
    """Take a name out of the ledger. Raises UsageError."""
    parser = argparse.ArgumentParser(
        prog=shown("scripts/usage forget"), allow_abbrev=False,
        description="Take a person out of the ledger. Requests are deleted; sums stay, without the name. Access logs "
        "are files of their own: delete them yourself. While the key is in use, its name comes back.",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the name of the key")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the ledger; default: as for scripts/usage")
    arguments = parser.parse_args(command_line)
    file = arguments.file or ledger_file()
    with closing(open_ledger(file, write=True)) as connection:
        requests = usage_db.forget(connection, arguments.name)
    if not requests:
        raise UsageError(f"{file} has no request of {arguments.name}: see the names with scripts/usage --by key")
    print(f"{arguments.name} is taken out of {file}: {requests:,} requests count for nobody now")


# The table.


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of a table, their total, and lines of logs that were skipped."""

    by: Sequence[str]
    rows: list[tuple[tuple[str, ...], dict[str, Any]]]
    total: dict[str, Any]
    broken: int = 0


def report(connection: sqlite3.Connection, by: Sequence[str], chosen: Chosen, zone: tzinfo) -> Report:
    """Ask a ledger, or a database of log lines. Raises sqlite3.Error."""
    found = sums(connection, by, chosen, zone)
    times, whole = first_tokens(connection, by, chosen, zone, sum(one.requests - one.refused for one in found.values()))
    rows = [(place, numbers(found[place], times.get(place))) for place in sorted(found)]
    return Report(by, rows, numbers(added(found.values()), whole))


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of all of these together."""
    return Sums(*map(sum, zip(*map(attrgetter(*Sums.__slots__), parts), strict=True)))


def numbers(of: Sums, ttft: Sequence[float] | None) -> dict[str, Any]:
    """The fields NUMBERS for CSV and JSON."""
    median, p95 = ttft or (None, None)
    return {
        "requests": of.requests, "refused": of.refused, "failed": of.failed, "broken_off": of.broken_off,
        "prompt_tokens": of.prompt_tokens, "completion_tokens": of.completion_tokens, "estimated": bool(of.estimated),
        "tokens_per_second": of.speed, "ttft_p50_ms": median, "ttft_p95_ms": p95, "bytes_in": of.bytes_in,
        "bytes_out": of.bytes_out,
    }  # fmt: skip


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


# The command line.


def columns(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(COLUMNS) or len({*PERIODS} & {*names}) > 1:
        raise argparse.ArgumentTypeError(
            "write it as key,model,day: some of " + ", ".join(COLUMNS) + ", with at most one of the first three"
        )
    return names


def day(text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("it is not a valid day; write it as 2026-11-30")


def zone(text: str) -> tzinfo:
    try:
        return UTC if text == "UTC" else ZoneInfo(text)
    except (OSError, ValueError, KeyError):  # A name of no zone, a folder of them, no path.
        raise argparse.ArgumentTypeError("it is not known here; write it as UTC or Europe/Berlin") from None


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=shown("scripts/usage"), description=__doc__, epilog=shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("files", metavar="FILE", nargs="*", help="a ledger, or access logs, also compressed; - is standard input")
    add("--by", metavar="COLUMNS", type=columns, default=DEFAULT,
        help=f"what makes a row, such as month,key; default: {','.join(DEFAULT)}")  # fmt: skip
    add("--format", choices=FORMATS, default="text", help="default: text, a table")
    add("--since", metavar="DAY", type=day, help="the first day, such as 2026-11-01")
    add("--until", metavar="DAY", type=day, help="the last day")
    add("--timezone", metavar="ZONE", type=zone, default=UTC, help="of days and months; default: UTC")
    for column in ("key", "model", "client", "outcome", "reason"):
        add(f"--{column}", metavar="NAME", help=f"count this {column} alone")
    arguments = parser.parse_args(command_line)
    if arguments.files.count("-") > 1:
        parser.error("standard input can be read once: name - once")
    if arguments.since and arguments.until and arguments.since > arguments.until:
        parser.error("--since is after --until: no day is left")
    return arguments


def chosen_by(arguments: argparse.Namespace) -> Chosen:
    """The requests that the options choose."""

    def midnight(of: date) -> float:
        return datetime(of.year, of.month, of.day, tzinfo=arguments.timezone).timestamp()

    names = {column: vars(arguments)[column] for column in ("key", "model", "client", "outcome", "reason")}
    if names["model"]:
        names["model"] = short(names["model"])
    last = arguments.until
    return Chosen(
        midnight(arguments.since) if arguments.since else 0,
        midnight(last + timedelta(days=1)) if last and last < date.max else FOREVER,
        {column: [name] for column, name in names.items() if name is not None},
    )


def run(command_line: Sequence[str]) -> int:
    """Write the table. Raises UsageError, ToolError and sqlite3.Error."""
    if command_line[:1] == ["forget"]:
        forget(command_line[1:])
        return 0
    arguments = parse(command_line)
    files = arguments.files or [ledger_file()]
    ledger = len(files) == 1 and is_ledger(files[0])
    if not ledger and any(map(is_ledger, files)):
        raise UsageError("name one ledger, or access logs: what is in both would count twice")
    faults: list[str] = []
    broken = 0
    # Lines of logs go into a database in a temporary file.
    with closing(open_ledger(files[0]) if ledger else sqlite3.connect("", isolation_level=None)) as connection:
        if not ledger:
            counting = Counting(connection)
            faults, broken = count(files, counting), counting.broken
        found = replace(report(connection, arguments.by, chosen_by(arguments), arguments.timezone), broken=broken)
        empty = not found.rows and not sums(connection, ())
    if not empty and found.rows:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(FORMATS[arguments.format](found))
    for fault in faults:
        say(fault)
    if broken:
        say(f"skipped {broken:,} line{'' if broken == 1 else 's'} that the gate did not write so")
    if empty:
        raise UsageError("there is no request in it: the gate writes access logs with --set ollama_access_log=PATH")
    if not found.rows:
        raise UsageError("no request has those names and days: leave out --key, --since or --until to see all")
    return 1 if faults else 0


def main() -> int:
    try:
        return run(sys.argv[1:])
    except (UsageError, ToolError) as error:
        say(str(error))
    except sqlite3.Error as error:
        say(f"the ledger can't be read: {error}")
    except KeyboardInterrupt:
        return 130
    return 1


def say(text: str) -> None:
    print(f"ollama-auth: {printable(shown(text))}", file=sys.stderr)


if __name__ == "__main__":
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As in a pipe to head.
    sys.exit(main())
