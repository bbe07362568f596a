"""Write each conversation as one JSON line, for operators who must keep prompts and answers. Off by default.

Lines are evidence, so no client may push those of others out: a body takes at most MAX_KEPT bytes of a line, the
conversations that wait to be written leave room for further ones, and old files are deleted only if the operator wants
it. A line is made in the thread that writes it, piece by piece, so that no request waits for a long one.
"""

import codecs
import json
import time
from functools import partial

from ..bounded_copy import MAX_KEPT, BoundedCopy, Recording
from ..exchange import Exchange
from ..ollama_api.routes import RouteClass
from . import access_log
from .line_writer import LineWriter

PIECE = 64 * 1024
"""Bytes that are made JSON at once; Python's other threads wait meanwhile."""
KEPT_WHEN_FULL = 8 * 1024
"""Bytes of a body that are kept where too much waits to be written."""
FIELDS = ("time", "id", "key", "path", "status", "reason", "model")
_UNSAFE = frozenset(map(chr, (*range(0x7F, 0xA0), 0x2028, 0x2029)))
"""What terminals obey, or take for the end of a line, besides what JSON escapes."""


class AuditLog:
    """A file that only its owner may read."""

    def __init__(self, path: str, rotate_at: int, keep: int | None) -> None:
        """`rotate_at` is in bytes; `keep` is a number of old files or None. Raises OSError when it can't be opened."""
        self._writer = LineWriter("the audit log", path, private=True, rotate_at=rotate_at, keep=keep)
        self.reopen = self._writer.reopen
        self.close = self._writer.close

    def write(self, exchange: Exchange) -> None:
        """Queue a conversation that has ended. Never blocks."""
        if (recording := exchange.recording) is None:
            return
        if recording.size > self._writer.room // 2:
            recording.request.cut(KEPT_WHEN_FULL)
            recording.answer.cut(KEPT_WHEN_FULL)
        self._writer.write(partial(line, fields(exchange), recording), recording.size)


def fields(exchange: Exchange) -> dict[str, object]:
    """The fields of a line that apply, besides the bodies; `id` is that of the access log."""
    found = access_log.record(exchange) | {"path": (exchange.path or b"").decode("utf-8", "replace")}
    return {name: found[name] for name in FIELDS if name in found}


def line(found: dict[str, object], recording: Recording) -> bytes:
    """Return the JSON of a conversation."""
    request, response = as_json(recording.request), as_json(recording.answer)
    truncated = b',"truncated":true' if recording.request.truncated or recording.answer.truncated else b""
    start = escaped(json.dumps(found, separators=(",", ":"), ensure_ascii=False))[:-1]
    return b'%s,"request":"%s","response":"%s"%s}' % (start, request, response, truncated)


def as_json(body: BoundedCopy) -> bytes:
    """Return a body as text between the quotes of a JSON string, of at most MAX_KEPT bytes; mark it if it is cut."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[bytes] = []
    room = MAX_KEPT
    for start in range(0, len(body.data), PIECE):
        text = decoder.decode(bytes(body.data[start : start + PIECE]), final=start + PIECE >= len(body.data))
        piece = escaped(json.dumps(text, ensure_ascii=False)[1:-1])
        if len(piece) > room:
            body.truncated = True
            break
        room -= len(piece)
        pieces.append(piece)
        time.sleep(0)  # Lets the event loop have the interpreter.
    return b"".join(pieces)


def escaped(text: str) -> bytes:
    """Encode JSON, of which half a surrogate pair may be a part."""
    if not text.isascii() or "\x7f" in text:
        for one in _UNSAFE.intersection(text):
            text = text.replace(one, f"\\u{ord(one):04x}")
    return text.encode("utf-8", "backslashreplace")


def concerns(exchange: Exchange) -> bool:
    """Whether it is a conversation."""
    return exchange.route is not None and exchange.route.route_class in (RouteClass.INFER, RouteClass.EMBED)
