"""Collect what the status listener shows: metrics, readiness, and the counts of the status page. Off by default.

It counts only while it has an address. What it shows are names of keys and models, counts and times: no secret, no
content. `status_server.py` serves it.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..errors import OllamaAuthError
from ..exchange import Exchange
from . import workers
from .history import History, in_flight
from .metrics import Metrics

if TYPE_CHECKING:
    from .status_server import Site, StatusServer

MAX_SHOWN = 100
"""Requests in flight that the status page lists."""
MAX_INTERVALS = 64
"""Token intervals that are counted in one go, because one by one would delay the next token."""
PROBE_SECONDS = 2.0
"""How long Ollama has to answer the readiness probe, and how long that answer is reused."""
PUBLISH_SECONDS = 1.0
"""Between two states published for the other workers on the port."""


class ListenError(OllamaAuthError):
    """An address that can't be listened on, or a missing library: one line with the remedy."""


class Gate(Protocol):
    """What the monitor reads of `addon.Gate`, which is layers above and made it."""

    @property
    def state(self) -> str: ...
    @property
    def upstream(self) -> str: ...
    @property
    def connection_count(self) -> int: ...
    @property
    def under_way(self) -> list[Exchange]: ...
    @property
    def trust(self) -> dict[str, Any]: ...  # The last arguments of `readiness.status_of`.


class Monitor:
    """The counts of one process, and the server that shows them."""

    def __init__(self, gate: Gate, make_site: Callable[[], "Site"]) -> None:
        self._gate = gate
        self._make_site = make_site
        self._address: tuple[str, int] | None = None
        self._server: StatusServer | None = None
        self._started = time.time()
        self._history = History()
        self._metrics: Metrics | None = None
        self._intervals: list[float] = []
        """Seconds between two tokens that are still to be counted."""
        self._upstream_answers: bool | None = None
        self._probed_at = 0.0
        self._probing = asyncio.Lock()
        self._folder = workers.folder(os.environ)

    # Counting.

    @property
    def on_token_interval(self) -> Callable[[float], None] | None:
        """Takes the seconds between two tokens of a stream; None while the monitor is off."""
        return self._add_interval if self._server else None

    def _add_interval(self, seconds: float) -> None:
        self._intervals.append(seconds)
        if len(self._intervals) >= MAX_INTERVALS:
            self._count_intervals()

    def _count_intervals(self) -> None:
        if self._intervals and self._metrics:
            self._history.add_token_intervals(self._intervals)
            self._metrics.add_token_intervals(self._intervals)
            self._intervals = []

    def ended(self, exchange: Exchange) -> None:
        self._count_intervals()
        if self._server and self._metrics:
            self._history.ended(exchange)
            self._metrics.ended(exchange)

    # Listening.

    def listen(self, address: tuple[str, int] | None) -> None:
        """Listen on this address only; None turns the monitor off. Raises ListenError and then changes nothing."""
        if address == self._address:
            return
        server = self._serve(*address) if address else None
        self.close()
        self._server, self._address = server, address

    def close(self) -> None:
        if self._server:
            self._server.close()
        self._server, self._address = None, None

    def _serve(self, host: str, port: int) -> "StatusServer":
        from .status_server import StatusServer  # Slow to import, and most gateways never need it.

        try:
            self._metrics = self._metrics or Metrics()
            return StatusServer(host, port, self, self._make_site())
        except ImportError as missing:
            raise ListenError("metrics need prometheus-client: pip install 'prometheus-client>=0.22'") from missing
        except OSError as fault:
            raise ListenError(f"can't listen on {host}:{port} ({fault.strerror})") from fault

    # Showing.

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their media type, as an Accept header prefers it."""
        assert self._metrics
        self._count_intervals()
        self._metrics.gauge(len(self._gate.under_way), self._gate.connection_count)
        return self._metrics.render(accept)

    async def unready_reason(self) -> str | None:
        """Why a request would not be served now; None when it would."""
        if self._gate.state != "open":
            return f"the gate is {self._gate.state}"
        return None if await self.upstream_answers() else "Ollama does not answer"

    async def upstream_answers(self) -> bool:
        """Whether Ollama answers: asked at most once in PROBE_SECONDS, however many want to know."""
        from .readiness import status_of  # Slow to import, too.

        async with self._probing:
            if self._upstream_answers is None or time.monotonic() - self._probed_at > PROBE_SECONDS:
                url = f"{self._gate.upstream}/api/version"
                self._upstream_answers = await status_of(url, PROBE_SECONDS, **self._gate.trust) == 200
                self._probed_at = time.monotonic()
            return self._upstream_answers

    async def status(self) -> dict[str, object]:
        """The JSON of the status page: this process and the other workers on the port."""
        ready = await self.upstream_answers()
        others = workers.others(self._folder) if self._folder else []
        states = [self._now(), *others]
        rows = [row for one in states for row in one["in_flight"]]
        return {
            "version": __version__,
            "started": self._started,
            "now": time.time(),
            "state": self._gate.state,
            "upstream": self._gate.upstream,
            "ready": ready,
            "connections": sum(one["connections"] for one in states),
            "in_flight_total": sum(one["in_flight_total"] for one in states),
            "in_flight": sorted(rows, key=lambda row: -row["seconds"])[:MAX_SHOWN],
            **self._history.with_others(one["history"] for one in others).shown(),
        }

    def _now(self) -> dict[str, Any]:
        self._count_intervals()
        now = time.monotonic()
        oldest = sorted(self._gate.under_way, key=lambda exchange: exchange.started)
        return {
            "connections": self._gate.connection_count,
            "in_flight_total": len(oldest),
            "in_flight": [in_flight(exchange, now) for exchange in oldest[:MAX_SHOWN]],
        }

    async def publish(self) -> None:
        """Publish the state of this process for the other workers on the port, until cancelled."""
        while self._folder:
            if self._server and self._metrics:
                self._metrics.gauge(len(self._gate.under_way), self._gate.connection_count)
                workers.publish(self._folder, self._now() | {"history": self._history.plain()})
            await asyncio.sleep(PUBLISH_SECONDS)
