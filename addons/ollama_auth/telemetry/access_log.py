"""Write one line per request: text by default, JSON on demand. Never a header value, a query or a body."""

import json
import re
from collections.abc import Callable, Sequence

from ..clock import utc
from ..exchange import Exchange
from ..http.head import MAX_METHOD
from .figures import completion, stream_speed
from .line_writer import LineWriter

MAX_PATH, MAX_MODEL, MAX_NAME = 256, 128, 64
"""Characters of a path, of the name of a model and of that of a stripped header in a line."""
MAX_NAMES = 32
"""Names of stripped headers in a line."""
PLAIN, PLAIN_NAME = re.compile(rb"[!-\[\]-~]*"), re.compile(r"[!-\[\]-~]*")
to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes an encoder for each line.


def record(exchange: Exchange) -> dict[str, object]:
    """The fields of a line that apply, in their order; those on tokens are of a successful answer."""
    method, where, _, took, first = shown(exchange)
    used = exchange.used
    fields: dict[str, object] = {
        "time": utc(exchange.time),
        "id": exchange.id,
        "client": exchange.client,
        "key": exchange.key,
        "method": method or None,
        "path": where or None,
        "status": exchange.status,
        "outcome": exchange.outcome,
        "reason": exchange.reason,
        "model": exchange.model[:MAX_MODEL] if exchange.model else None,
        "stream": exchange.stream if exchange.status == 200 else None,
        "stripped": names(exchange.stripped) or None,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "duration_ms": took,
        "ttft_ms": first,
        "prompt_tokens": used and used.prompt_tokens,
        "completion_tokens": used and used.completion_tokens,
        "complete": used and used.complete,
        "estimated": (used and used.estimated) or None,
        "compressed": (used and used.compressed) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def shown(exchange: Exchange) -> tuple[str, str, str, float, float | None]:
    """(method, path, stripped headers, milliseconds, those to the first token) of what has ended, for log and ledger.

    Made once: it takes half the time that a row of the ledger takes.
    """
    if exchange.shown is None:
        ttft = exchange.ttft
        exchange.shown = (
            escape_name(exchange.method[:MAX_METHOD]),
            path(exchange) or "",
            names_in_one(exchange.stripped),
            as_ms((exchange.ended or exchange.started) - exchange.started),
            None if ttft is None else as_ms(ttft),
        )
    return exchange.shown


def path(exchange: Exchange) -> str | None:
    """The decoded path without its query, bounded, and escaped so that nothing in it can end a line or imitate one."""
    if exchange.path is None:
        return None
    text = escape(exchange.path[:MAX_PATH])
    return text + "..." if len(exchange.path) > MAX_PATH else text


def escape(raw: bytes) -> str:
    """Keep printable ASCII; write a space, a backslash and everything else as \\xNN."""
    if PLAIN.fullmatch(raw):
        return raw.decode("ascii")
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x5C else f"\\x{byte:02x}" for byte in raw)


def as_json(exchange: Exchange) -> str:
    return to_json(record(exchange))


def as_text(exchange: Exchange) -> str:
    """A line of text: time, id, client, key, method, path, status, reason, bytes, times, tokens, stripped headers."""
    method, where, stripped, took, first = shown(exchange)
    status = "-" if exchange.status is None else str(exchange.status)
    words = [utc(exchange.time), exchange.id, exchange.client, exchange.key or "-", method or "-", where or "-", status]
    if exchange.reason:
        words.append(f"({exchange.reason})")
    words.append(f"in={exchange.bytes_in} out={exchange.bytes_out} {took}ms")
    if first is not None:
        words.append(f"first={first}ms")
    if exchange.model:
        words.append("model=" + escape_name(exchange.model[:MAX_MODEL]))
    used = exchange.used
    if used and used.completion_tokens is not None:  # ~ marks an estimate
        words.append(f"tokens={'?' if used.prompt_tokens is None else used.prompt_tokens}+{completion(used)}")
    if used and (speed := stream_speed(exchange)):
        words.append(f"speed={speed}/s")
    if used and not used.complete:
        words.append("incomplete")
    if exchange.stripped:
        words.append("stripped=" + stripped)
    return " ".join(words)


def names(stripped: Sequence[str]) -> list[str]:
    """The names of stripped headers; bounded, because the client chooses how many there are, and how long."""
    return [name[:MAX_NAME] for name in stripped[:MAX_NAMES]] + (["..."] if len(stripped) > MAX_NAMES else [])


def names_in_one(stripped: Sequence[str]) -> str:
    """The same, escaped, with commas between them."""
    all_ = ",".join(stripped)
    if len(stripped) <= MAX_NAMES and len(all_) <= MAX_NAME and PLAIN_NAME.fullmatch(all_):
        return all_
    return ",".join(map(escape_name, names(stripped)))


def escape_name(name: str) -> str:
    """Escape the name of a header or a method."""
    return name if PLAIN_NAME.fullmatch(name) else escape(name.encode("ascii", "replace"))


def as_ms(seconds: float) -> float:
    """Milliseconds, to one decimal; round() takes several times as long."""
    return int(seconds * 10_000 + 0.5) / 10


class AccessLog:
    """Send lines to standard output, a file or a function."""

    def __init__(self, target: str | None = None, emit: Callable[[str], None] | None = None) -> None:
        """`target` is None for text, "-" for JSON on standard output, or the path of a file for JSON.

        `emit` takes the lines of text instead of standard output. Raises OSError when the file can't be opened.
        """
        self._line = as_text if target is None else as_json
        self._emit, self._writer = emit, None
        if target is not None or emit is None:
            self._writer = LineWriter("the access log", None if target == "-" else target)
            self._emit = self._writer.write

    def write(self, exchange: Exchange) -> None:
        """Never blocks, never raises OSError."""
        assert self._emit
        self._emit(self._line(exchange))

    def reopen(self) -> None:
        if self._writer:
            self._writer.reopen()

    def close(self, timeout: float = 2.0) -> None:
        """Write the waiting lines, for at most so many seconds."""
        if self._writer:
            self._writer.close(timeout)
