"""What is under way, how fast at this moment, and which of it stands still."""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..exchange import Exchange
from .figures import current_model, key_of

RECENT = 5
"""Seconds of which the speed of now is the average."""
STALLED = 10.0
"""Seconds without a token after which a stream counts as stalled."""
FIRST_TOKEN = 60.0
"""The same before the first token: the model may have to be loaded."""


class Pace:
    """The speeds of streams, by what each had made in the last seconds. `sample` is called every second."""

    def __init__(self) -> None:
        self._samples: dict[int, tuple[Exchange, deque[tuple[float, int]]]] = {}

    def sample(self, exchanges: Iterable[Exchange], now: float | None = None) -> None:
        """Note the tokens of what is under way; forget the others."""
        now, before = time.monotonic() if now is None else now, self._samples
        self._samples = {}
        for exchange in exchanges:
            if exchange.first_token is not None:
                known = before.get(id(exchange), (exchange, deque([(exchange.first_token, 1)], RECENT + 1)))
                known[1].append((now, exchange.tokens))
                self._samples[id(exchange)] = known

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
        first, waits_since = exchange.first_token, exchange.last_token or exchange.first_token or exchange.started
        idle = now - waits_since
        streams = exchange.usage is not None and exchange.stream is not False
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
            "idle": round(idle, 1),
            "stalled": (streams and idle > STALLED) if first else exchange.admitted and idle > FIRST_TOKEN,
        }
