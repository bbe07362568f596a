"""What those see who watch over the gate: metrics, health, and what the status page shows. Off until it has an address.

Names of keys and models, counts and times: no secret, no content. `pages.py` serves it.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..exchange import Exchange
from . import workers
from .history import History, in_flight
from .metrics import Metrics, MetricsError

if TYPE_CHECKING:
    from ..telemetry.status_server import Server

type Address = tuple[str, int]

MAX_SHOWN = 100
"""Requests under way on the status page."""
MAX_GAPS = 64
"""Times between two tokens that are counted at once: that is cheaper than one by one, between a token and the next."""
PROBE = 2.0
"""Seconds that Ollama has to answer when we look whether it does, and for which its answer is good."""


SHARE = 1.0
"""Seconds between two looks at what the other gates on this port know."""


class ListenError(ValueError):
    """An address that can't be listened on, or a library that is missing: one line with the remedy."""


class Observed(Protocol):
    """The gate, as it is looked at."""

    @property
    def state(self) -> str:
        """`open`, `draining` or `closed`."""

    @property
    def upstream(self) -> str:
        """The URL of Ollama, without a path."""

    @property
    def connection_count(self) -> int:
        """Client connections."""

    @property
    def under_way(self) -> list[Exchange]:
        """Requests that have not ended."""

    @property
    def trust(self) -> dict[str, Any]:
        """How the certificate of an https upstream is checked, as Tornado's HTTP client takes it."""


class Monitor:
    """Counts what is asked and used while it has an address, and shows it there."""

    def __init__(self, gate: Observed) -> None:
        self._gate = gate
        self._address: Address | None = None
        self._server: Server | None = None
        self._started = time.time()
        self._history = History()
        self._gaps: list[float] = []
        """Seconds between two tokens, that are still to be counted."""
        self._metrics: Metrics | None = None
        self._answers: bool | None = None
        self._asked_at = 0.0
        self._asking = asyncio.Lock()
        self._folder = workers.folder(os.environ)

    # What happens.

    @property
    def pace(self) -> Callable[[float], None] | None:
        """Who is told the seconds between each two tokens; None while nobody watches."""
        return self._pace if self._server else None

    def _pace(self, seconds: float) -> None:
        self._gaps.append(seconds)
        if len(self._gaps) >= MAX_GAPS:
            self._count_gaps()

    def _count_gaps(self) -> None:
        if not self._gaps:
            return
        gaps, self._gaps = self._gaps, []
        self._history.add_token_intervals(gaps)
        if self._metrics:
            self._metrics.pace(gaps)

    def ended(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        self._count_gaps()
        if self._server and self._metrics:
            self._history.ended(exchange)
            self._metrics.ended(exchange)

    # Where it is shown.

    def take(self, address: Address | None) -> None:
        """Listen there from now on, and nowhere else. Raises ListenError; then all stays as it is."""
        if address == self._address:
            return
        server = self._serve(address) if address else None
        self.close()
        self._server, self._address = server, address

    def close(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.close()
        self._server, self._address = None, None

    def _serve(self, address: Address) -> "Server":
        from ..telemetry.status_server import Server  # It takes a while to import, and most gates need none of it.

        try:
            self._metrics = self._metrics or Metrics()
            return Server(self, *address)
        except MetricsError as fault:
            raise ListenError(str(fault)) from fault
        except OSError as fault:
            raise ListenError(f"can't listen on {address[0]}:{address[1]} ({fault.strerror})") from fault

    # What is shown.

    def measures(self, accept: str) -> tuple[bytes, str]:
        """(the metrics, their media type)."""
        assert self._metrics
        self._count_gaps()
        self._metrics.gauge(len(self._gate.under_way), self._gate.connection_count)
        return self._metrics.render(accept)

    async def trouble(self) -> str | None:
        """Why a request would not be served now, or None."""
        if self._gate.state != "open":
            return f"the gate is {self._gate.state}"
        return None if await self.answers() else "Ollama does not answer"

    async def answers(self) -> bool:
        """Does Ollama answer? Asked at most once in so many seconds, however many want to know."""
        async with self._asking:
            if self._answers is None or time.monotonic() - self._asked_at > PROBE:
                self._answers = await self._ask()
                self._asked_at = time.monotonic()
            return self._answers

    async def _ask(self) -> bool:
        from ..telemetry.status_server import get  # As above.

        return await get(f"{self._gate.upstream}/api/version", PROBE, **self._gate.trust) == 200

    async def status(self) -> dict[str, object]:
        """All that the status page shows."""
        answers = await self.answers()
        now = self._now()
        others = workers.others(self._folder) if self._folder else []
        in_flight = [row for one in (now, *others) for row in one["in_flight"]]
        return {
            "version": __version__,
            "started": self._started,
            "now": time.time(),
            "state": self._gate.state,
            "upstream": self._gate.upstream,
            "ready": answers,
            "connections": sum(one["connections"] for one in (now, *others)),
            "in_flight_total": sum(one["in_flight_total"] for one in (now, *others)),
            "in_flight": sorted(in_flight, key=lambda row: -row["seconds"])[:MAX_SHOWN],
            **self._history.with_others(one["history"] for one in others).shown(),
        }

    def _now(self) -> dict[str, Any]:
        self._count_gaps()
        now = time.monotonic()
        oldest = sorted(self._gate.under_way, key=lambda exchange: exchange.started)
        return {
            "connections": self._gate.connection_count,
            "in_flight_total": len(oldest),
            "in_flight": [in_flight(exchange, now) for exchange in oldest[:MAX_SHOWN]],
        }

    async def share(self) -> None:
        """Let the other gates on this port know, for ever."""
        while self._folder:
            if self._server and self._metrics:
                self._metrics.gauge(len(self._gate.under_way), self._gate.connection_count)
                workers.publish(self._folder, self._now() | {"history": self._history.plain()})
            await asyncio.sleep(SHARE)
