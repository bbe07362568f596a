"""One line a request: readable text by default, JSON lines when asked for. Never a header value, a query or a body.

Lines are written by a thread of its own: a slow pipe or a full disk costs lines, which are counted, never a request.
"""

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from io import FileIO, TextIOWrapper
from pathlib import Path

from .exchange import Exchange
from .head import MAX_METHOD

logger = logging.getLogger(__name__)

type Line = Callable[[Exchange], str]

MAX_WAITING = 10_000
"""Lines that wait to be written, before further ones are dropped."""
PAUSE = 0.01
"""Seconds between two writes: a thread that is woken for each line would take the interpreter from the requests."""
MAX_PATH = 256
"""Characters of a path in a line."""
MAX_NAMES = 32
"""Names of stripped headers in a line."""
MAX_NAME = 64
"""Characters of one of them."""


def record(exchange: Exchange) -> dict[str, object]:
    """The fields of a request that apply to it, in the order they are written."""
    ended = exchange.ended or exchange.started
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(exchange.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "id": exchange.id,
        "client": exchange.client,
        "key": exchange.key,
        "method": escape_name(exchange.method[:MAX_METHOD]) or None,
        "path": path(exchange),
        "status": exchange.status,
        "reason": exchange.reason,
        "stripped": names(exchange.stripped) or None,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "duration_ms": _ms(ended - exchange.started),
        "ttft_ms": _ms(exchange.first_byte - exchange.started) if exchange.first_byte else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def path(exchange: Exchange) -> str | None:
    """The decoded path without its query, bounded, and escaped: nothing in it can end a line or look like one."""
    if exchange.path is None:
        return None
    text = escape(exchange.path[:MAX_PATH])
    return text + "..." if len(exchange.path) > MAX_PATH else text


def escape(raw: bytes) -> str:
    """Printable ASCII as it is; a space, a backslash and everything else as \\xNN."""
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x5C else f"\\x{byte:02x}" for byte in raw)


def as_json(exchange: Exchange) -> str:
    """A line of JSON."""
    return json.dumps(record(exchange), separators=(",", ":"))


def as_text(exchange: Exchange) -> str:
    """A line to read: time, id, client, key, method, path, status or why not, bytes, times, headers stripped."""
    fields = record(exchange)
    words = [str(fields.get(name, "-")) for name in ("time", "id", "client", "key", "method", "path", "status")]
    if exchange.reason:
        words.append(f"({exchange.reason})")
    words.append(f"in={exchange.bytes_in} out={exchange.bytes_out} {fields['duration_ms']}ms")
    if "ttft_ms" in fields:
        words.append(f"first={fields['ttft_ms']}ms")
    if exchange.stripped:
        words.append("stripped=" + ",".join(map(escape_name, names(exchange.stripped))))
    return " ".join(words)


def names(stripped: Sequence[str]) -> list[str]:
    """The names of stripped headers, bounded: whoever sends them chooses how many there are, and how long."""
    return [name[:MAX_NAME] for name in stripped[:MAX_NAMES]] + (["..."] if len(stripped) > MAX_NAMES else [])


def escape_name(name: str) -> str:
    """The name of a header or a method, escaped as `escape` does."""
    return escape(name.encode("ascii", "replace"))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


class AccessLog:
    """Where lines go: standard output, a file, or any function that takes a line."""

    def __init__(self, target: str | None = None, emit: Callable[[str], None] | None = None) -> None:
        """`target`: None for readable lines, "-" for JSON on standard output, or the path of a file for JSON.

        `emit` takes the readable lines instead of standard output. Raises OSError where a file can't be opened.
        """
        self._line: Line = as_text if target is None else as_json
        self._emit = emit if target is None else None
        self._path = None if target in (None, "-") else Path(str(target)).expanduser()
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._failing = False
        self._thread: threading.Thread | None = None
        # Unbuffered: what a full disk refuses must not wait in a buffer to fail again.
        self._file: FileIO | None = self._path.open("ab", buffering=0) if self._path else None
        self._torn = False
        if self._file is None and self._emit is None and isinstance(sys.stdout, TextIOWrapper):
            # Whole lines only, also with python -u: mitmproxy prints the end of a line by itself.
            sys.stdout.reconfigure(line_buffering=True, write_through=False)

    def write(self, exchange: Exchange) -> None:
        """Log one request. Never blocks, never raises OSError."""
        line = self._line(exchange)
        if self._emit:
            self._emit(line)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most that many seconds."""
        if self._thread:
            try:
                self._lines.put(None, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)
        if self._file:
            self._file.close()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            lines = [line]
            last = False
            while not self._lines.empty():
                more = self._lines.get()
                if more is None:
                    last = True
                    break
                lines.append(more)
            self._put("\n".join(lines) + "\n", len(lines))
            if last:
                return
            time.sleep(PAUSE)

    def _put(self, text: str, count: int) -> None:
        try:
            self._write(text)
        except (OSError, ValueError) as error:
            self._dropped += count
            if not self._failing:
                self._failing = True
                why = getattr(error, "strerror", None) or "it is closed"
                logger.error("the access log can't be written (%s): lines are lost until it can", why)
            return
        if self._dropped:
            logger.warning("the access log is written again; %d lines were lost", self._dropped)
        self._failing, self._dropped = False, 0

    def _write(self, text: str) -> None:
        # Standard output past Python's buffer: mitmproxy's own half-written lines are in there.
        write = self._file.write if self._file else partial(os.write, sys.stdout.fileno())
        rest = (b"\n" if self._torn else b"") + text.encode()
        self._torn = True
        while rest:
            rest = rest[write(rest) :]
        self._torn = False
