"""What is under way, how fast at this moment, and which of it stands still."""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..exchange import Exchange
from ..turns import in_parts
from .figures import current_model, key_of

RECENT = 5
"""Seconds of which the speed of now is the average."""
STALLED = 10.0
"""Seconds without a token after which a stream counts as stalled."""
FIRST_TOKEN = 60.0
"""The same before the first token: the model may have to be loaded."""


class Pace:
    """The speeds of streams, by what each had made in the last seconds. `sample` is awaited every second."""

    def __init__(self) -> None:
        self._samples: dict[int, tuple[Exchange, deque[tuple[float, int]]]] = {}

    async def sample(self, exchanges: Iterable[Exchange], now: float | None = None) -> None:
        """Note the tokens of what is under way; forget the others."""
        now, found = time.monotonic() if now is None else now, {}
        async for part in in_parts(exchanges):
            for one in part:
                if one.first_token is not None:
                    known = self._samples.get(id(one)) or (one, deque([(one.first_token, 1)], RECENT + 1))
                    known[1].append((now, one.tokens))
                    found[id(one)] = known
        self._samples = found

    def speed(self, exchange: Exchange, now: float) -> float:
        """Tokens per second of the last RECENT seconds."""
        if exchange.first_token is None:
            return 0.0
        _, samples = self._samples.get(id(exchange), (exchange, [(exchange.first_token, 1)]))
        recent = [one for one in samples if now - one[0] <= RECENT + 1]
        since, tokens = recent[0] if recent else (now - RECENT, exchange.tokens)
        return max(0.0, (exchange.tokens - tokens) / max(now - since, 0.5))

    def row(self, exchange: Exchange, now: float) -> dict[str, Any]:
        """A request under way; `now` is by `time.monotonic`."""
        first = exchange.first_token
        return {
            "id": exchange.id,
            "key": key_of(exchange),
            "client": exchange.client,
            "method": exchange.method,
            "path": (exchange.path or b"").decode("ascii", "replace")[:256],
            "model": current_model(exchange),
            "stream": exchange.stream,
            "admitted": exchange.admitted,
            "seconds": round(now - exchange.started, 1),
            "ttft_ms": round((first - exchange.started) * 1000, 1) if first else None,
            "first_token": first is not None,
            "tokens": exchange.tokens,
            "speed": round(self.speed(exchange, now), 1),
            "idle": round(now - _waits_since(exchange), 1),
            "stalled": stalled(exchange, now),
        }


def stalled(exchange: Exchange, now: float) -> bool:
    """Whether its next token is overdue."""
    idle = now - _waits_since(exchange)
    if exchange.first_token is None:
        return exchange.admitted and idle > FIRST_TOKEN
    return exchange.usage is not None and exchange.stream is not False and idle > STALLED


def _waits_since(exchange: Exchange) -> float:
    return exchange.last_token or exchange.first_token or exchange.started
