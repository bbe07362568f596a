"""The frames that an HTTP/2 client sends, cut, counted and joined before h2 parses them (RFC 9113 section 4.1).

h2 takes some 20 µs for a frame of any size, and copies what follows it. So one frame stands for all DATA of a stream
that arrives at once, and frames that bring nothing have a budget.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from h2.errors import ErrorCodes

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 7, 8, 9
PREFACE = -1
"""The kind of what precedes all frames (section 3.4)."""
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
HEAD = 9
"""Bytes of a frame header."""
MAX_FRAME = 32 * 1024
"""Bytes of the payload of a frame."""
MAX_STREAMS = 128
"""Concurrent streams of a connection, and requests that are turned away on one."""
MAX_WINDOW = 2**31 - 1
MAX_IDLE_FRAMES = 500
"""Frames that bring no part of a request, and may be sent at once: PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
CONTINUATION, those of unknown types, empty or padded DATA, and DATA of streams that have ended."""
IDLE_FRAMES_PER_SECOND = 20.0
"""How fast MAX_IDLE_FRAMES refills; what a client is sent refills it, too."""
SETTINGS_A_FRAME = 6 * 8
"""Bytes of settings that count as a frame; a setting has six."""
SMALL = 256
"""Bytes below which padded DATA, or a frame of a stream that has ended, brings nothing."""


class FrameError(Exception):
    """What was sent ends the connection, with this error code."""

    def __init__(self, message: str, code: ErrorCodes) -> None:
        super().__init__(message)
        self.code = code


class Frame(NamedTuple):
    """A frame, as h2 is given it; HEADERS has its CONTINUATION frames with it."""

    kind: int
    flags: int
    stream: int
    raw: bytes


class FrameReader:
    """Reads the frames of one connection."""

    def __init__(self, max_head: int) -> None:
        """`max_head`: bytes of a compressed request head."""
        self.max_head = max_head
        self.earned = 0
        """What the client was sent since the last read, in idle frames that it may send for it."""
        self._idle_frames, self._counted_at = 0.0, time.monotonic()
        self._preface = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._rest = b""
        self._head: list[bytes] = []
        """The frames of a head that is not complete."""
        self._data: dict[int, list[bytes]] = {}
        self._windows: dict[int, int] = {}

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the whole frames that have arrived. Raises FrameError.

        DATA and WINDOW_UPDATE follow other frames of the same read, but never one that begins or ends a stream.
        """
        now = time.monotonic()
        refilled = (now - self._counted_at) * IDLE_FRAMES_PER_SECOND + self.earned
        self._idle_frames, self._counted_at, self.earned = max(0.0, self._idle_frames - refilled), now, 0
        if self._preface:
            start, data = data[: self._preface], data[self._preface :]
            self._preface -= len(start)
            yield Frame(PREFACE, 0, 0, start)
        yield from self._whole_frames(self._rest + data)
        yield from self._joined()

    def count_idle(self, weight: int = 1) -> None:
        """Count a frame that brings nothing. Raises FrameError."""
        self._idle_frames += weight
        if self._idle_frames > MAX_IDLE_FRAMES:
            raise FrameError("too many frames that bring nothing", ErrorCodes.ENHANCE_YOUR_CALM)

    def _whole_frames(self, buffer: bytes) -> Iterator[Frame]:
        position, end = 0, len(buffer)
        while end - position >= HEAD:
            length = int.from_bytes(buffer[position : position + 3])
            if length > MAX_FRAME:
                raise FrameError("too long a frame", ErrorCodes.FRAME_SIZE_ERROR)
            after = position + HEAD + length
            if after > end:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            if kind == DATA and length and not flags & (END_STREAM | PADDED) and not self._head:
                position = self._take_data(buffer, position, after)
                continue
            stream = int.from_bytes(buffer[position + 5 : position + HEAD]) & MAX_WINDOW
            frame = Frame(kind, flags, stream, buffer[position:after])
            position = after
            if kind == HEADERS or self._head:
                yield from self._take_head(frame)
            elif kind != WINDOW_UPDATE or not self._take_window(frame):
                if kind in (DATA, RST_STREAM, GOAWAY):
                    yield from self._joined()
                if not (kind in (RST_STREAM, GOAWAY) or (kind == DATA and (flags & END_STREAM or length >= SMALL))):
                    self.count_idle(1 + length // SETTINGS_A_FRAME if kind == SETTINGS else 1)
                if kind != DATA or length or flags & END_STREAM:
                    yield frame
        self._rest = buffer[position:]

    def _take_data(self, buffer: bytes, position: int, after: int) -> int:
        """Keep this frame and all that follow it with the same header; return where they end."""
        header, size, end = buffer[position : position + HEAD], after - position, len(buffer)
        parts = self._data.setdefault(int.from_bytes(header[5:]) & MAX_WINDOW, [])
        while True:
            parts.append(buffer[position + HEAD : after])
            position, after = after, after + size
            if after > end or buffer[position : position + HEAD] != header:
                return position

    def _take_window(self, frame: Frame) -> bool:
        """Add to a window, unless the frame, or the sum, is one that h2 has to reject."""
        self.count_idle()
        added = int.from_bytes(frame.raw[HEAD:]) & MAX_WINDOW
        total = self._windows.get(frame.stream, 0) + added
        if len(frame.raw) != HEAD + 4 or not added or total > MAX_WINDOW:
            return False
        self._windows[frame.stream] = total
        return True

    def _take_head(self, frame: Frame) -> Iterator[Frame]:
        """Collect the frames of a head."""
        if not self._head:
            yield from self._joined()
        else:
            self.count_idle()
        self._head.append(frame.raw)
        if sum(len(raw) - HEAD for raw in self._head) > self.max_head:
            raise FrameError("too long a head", ErrorCodes.ENHANCE_YOUR_CALM)
        if frame.flags & END_HEADERS or frame.kind not in (HEADERS, CONTINUATION):  # h2 rejects any other frame here.
            raw, self._head = b"".join(self._head), []
            yield Frame(HEADERS, raw[4], int.from_bytes(raw[5:HEAD]) & MAX_WINDOW, raw)

    def _joined(self) -> Iterator[Frame]:
        """Yield what was joined: first the windows, then the data."""
        windows, self._windows = self._windows, {}
        for stream, added in windows.items():
            yield Frame(WINDOW_UPDATE, 0, stream, frame(WINDOW_UPDATE, 0, stream, added.to_bytes(4)))
        parts, self._data = self._data, {}
        for stream, data in parts.items():
            yield Frame(DATA, 0, stream, frame(DATA, 0, stream, b"".join(data)))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Serialize a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def reset(stream: int, code: ErrorCodes) -> bytes:
    """Serialize RST_STREAM."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def goaway(last_stream: int) -> bytes:
    """Serialize GOAWAY without an error: no stream above `last_stream` was or will be looked at."""
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4) + bytes(4))


def header_block(raw: bytes) -> bytes:
    """Return the compressed head in a HEADERS frame and its CONTINUATION frames. Raises FrameError."""
    block, position = b"", 0
    while position < len(raw):
        after = position + HEAD + int.from_bytes(raw[position : position + 3])
        flags, payload = raw[position + 4] if not position else 0, raw[position + HEAD : after]
        padding = 0
        if flags & PADDED:
            padding, payload = payload[0] if payload else MAX_FRAME, payload[1:]
        start, end = 5 if flags & PRIORITY else 0, len(payload) - padding
        if end < start:
            raise FrameError("a malformed frame", ErrorCodes.PROTOCOL_ERROR)
        block, position = block + payload[start:end], after
    return block
