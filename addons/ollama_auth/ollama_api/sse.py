"""Streams of lines (NDJSON) and of server-sent events (HTML Living Standard, 9.2), split as they come. Pure, total.

Memory is bounded: a line longer than `max_size` bytes is not held but passed on in pieces.
Lines end in LF or CRLF, those of server-sent events also in CR.
"""

from collections.abc import Callable
from typing import Protocol

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py


class Pieces(Protocol):
    """Takes in pieces a line or the data of an event that is not held."""

    def feed(self, data: bytes) -> None: ...
    def end(self) -> None: ...


class _Skipped:
    def feed(self, data: bytes) -> None: ...
    def end(self) -> None: ...


class Lines:
    """Calls `on_line` for each line, without its line feed; the lines of NDJSON are its events.

    `on_long` opens what takes a line of more than `max_size` bytes.
    """

    def __init__(self, on_line: Callable[[bytes], object], on_long: Callable[[], Pieces], max_size: int) -> None:
        self._on_line = on_line
        self._on_long = on_long
        self._max_size = max_size
        self._held = bytearray()  # the start of a line
        self._long: Pieces | None = None

    def feed(self, data: bytes) -> None:
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if self._held or self._long or len(line) > self._max_size:
                self._hold(line)
                self._end_line()
            else:
                self._on_line(line)
        if rest:
            self._hold(rest)

    def finish(self) -> None:
        """End the stream; its last line needs no line feed."""
        self._end_line()

    def _hold(self, data: bytes) -> None:
        if self._long:
            self._long.feed(data)
            return
        self._held += data
        if len(self._held) > self._max_size:
            self._long = self._open(bytes(self._held))
            self._held.clear()

    def _open(self, start: bytes) -> Pieces:
        pieces = self._on_long()
        pieces.feed(start)
        return pieces

    def _end_line(self) -> None:
        line, long = bytes(self._held), self._long
        self._held.clear()
        self._long = None
        if long:
            self._end_long(long)
        else:
            self._on_line(line)

    def _end_long(self, pieces: Pieces) -> None:
        pieces.end()


class Events(Lines):
    """Calls `on_event(data, name)` for each server-sent event that has data.

    `on_long` opens what takes data of several lines, which LF joins, or of a line of more than `max_size` bytes. What
    follows the last empty line is not an event.
    """

    def __init__(
        self, on_event: Callable[[bytes, bytes], object], on_long: Callable[[], Pieces], max_size: int
    ) -> None:
        super().__init__(self._line, on_long, max_size)
        self._on_event = on_event
        self._name = b""
        self._data: bytes | None = None
        self._pieces: Pieces | None = None
        self._after_cr = False

    def feed(self, data: bytes) -> None:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        if data:
            self._after_cr = data.endswith(b"\r")
            super().feed(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data)

    def finish(self) -> None:
        """End the stream, and an event that has not ended with it: it is passed on in pieces."""
        if self._held and not self._long:
            self._open(bytes(self._held))
        elif self._data and not self._pieces:
            self._pieces = super()._open(self._data)
        if self._pieces:
            self._pieces.end()
        self._pieces = self._data = None

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            if self._data is None and not self._pieces:
                self._data = line[5:].strip()
            else:
                self._extend(line[5:])
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif not line:
            name, data, pieces = self._name, self._data, self._pieces
            self._name, self._data, self._pieces = b"", None, None
            if pieces:
                pieces.end()
            elif data:
                self._on_event(data, name)

    def _extend(self, data: bytes) -> Pieces:
        if not self._pieces:
            self._pieces = super()._open(self._data or b"")
        self._pieces.feed(b"\n" + data)
        return self._pieces

    def _open(self, start: bytes) -> Pieces:
        # Anything but data is a comment, or a field that is not read.
        return self._extend(start[5:]) if start.startswith(b"data:") else _Skipped()

    def _end_long(self, pieces: Pieces) -> None:
        """The event goes on to the next empty line."""
