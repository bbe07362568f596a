"""Write each conversation as one JSON line, for operators who must keep prompts and answers. Off by default."""

import json

from ..bounded_copy import Recording
from ..exchange import Exchange
from ..ollama_api.routes import RouteClass
from .access_log import utc
from .line_writer import LineWriter


class AuditLog:
    """A file that only its owner may read."""

    def __init__(self, path: str, rotate_at: int) -> None:
        """`rotate_at` is in bytes. Raises OSError when the file can't be opened."""
        self._writer = LineWriter("the audit log", path, private=True, rotate_at=rotate_at, keep=5)
        self.reopen = self._writer.reopen
        self.close = self._writer.close

    def write(self, exchange: Exchange) -> None:
        """Queue a conversation that has ended. Never blocks."""
        if exchange.recording:
            self._writer.write(json.dumps(record(exchange, exchange.recording), separators=(",", ":")))


def record(exchange: Exchange, recording: Recording) -> dict[str, object]:
    """The fields of a line that apply; `id` is that of the access log."""
    fields = {
        "time": utc(exchange.time),
        "id": exchange.id,
        "key": exchange.key,
        "path": (exchange.path or b"").decode("utf-8", "replace"),
        "status": exchange.status,
        "reason": exchange.reason,
        "model": exchange.model,
        "request": recording.request.data.decode("utf-8", "replace"),
        "response": recording.answer.data.decode("utf-8", "replace"),
        "truncated": (recording.request.truncated or recording.answer.truncated) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def concerns(exchange: Exchange) -> bool:
    """Whether it is a conversation."""
    return exchange.route is not None and exchange.route.route_class in (RouteClass.INFER, RouteClass.EMBED)
