"""Access logs: their lines, read and counted in a database that can be asked what the ledger is asked."""

import gzip
import io
import json
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import cast

from ollama_auth.ollama_api.model_names import short
from ollama_auth.telemetry import usage_db
from ollama_auth.telemetry.usage_db import Entry

from .files import check
from .progress import Progress

BATCH = 10_000
"""Lines of a log that are counted at once."""
MAX_LINE = 64 * 1024
"""Bytes of a line; the gateway writes none longer."""
MAX_NAME = 128
"""Characters of a key or a model; clients choose the model."""
MAX_COUNT = 10**12
"""The largest count of bytes or tokens; more is counted as this."""
MAX_MS = 1e10


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
    if not datetime.min.year < moment.year < datetime.max.year:  # In some time zone it may be out of Python's range.
        raise ValueError("not a valid time")
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
    """Count the lines of files and return faults. Raises ToolError, before it reads any, if one can't be read."""
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
