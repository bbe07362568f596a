"""Collect what the status listener shows of this moment: metrics, readiness, what is under way. Off by default.

It counts only while it has an address. What it shows are names of keys and models, counts and times: no secret, no
content. `status_server.py` serves it.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..errors import OllamaAuthError
from ..exchange import Exchange
from ..turns import in_parts
from . import workers
from .figures import key_of
from .metrics import Metrics
from .pace import Pace, stalled

if TYPE_CHECKING:
    from .status_server import Site, StatusServer

MAX_SHOWN = 100
"""Requests under way that are listed."""
_TOTALS = ("connections", "in_flight_total", "stalled", "tokens_per_second")
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
        self.started = time.time()
        self._pace = Pace()
        self._since: dict[str, tuple[object, float]] = {}
        """The state and whether Ollama answers, and since when."""
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
            self._metrics.add_token_intervals(self._intervals)
            self._intervals = []

    def ended(self, exchange: Exchange) -> None:
        self._count_intervals()
        if self._server and self._metrics:
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
        from .readiness import fetch  # Slow to import, too.

        async with self._probing:
            if self._upstream_answers is None or time.monotonic() - self._probed_at > PROBE_SECONDS:
                url = f"{self._gate.upstream}/api/version"
                self._upstream_answers = (await fetch(url, PROBE_SECONDS, **self._gate.trust))[0] == 200
                self._probed_at = time.monotonic()
            return self._upstream_answers

    async def state(self) -> dict[str, Any]:
        """What the gate is and whether Ollama answers, and since when."""
        ready = await self.upstream_answers()
        now, known = time.time(), {"state": self._gate.state, "ready": ready}
        for name, value in known.items():
            if name not in self._since or self._since[name][0] != value:
                self._since[name] = value, now
        return {
            "version": __version__,
            "started": self.started,
            "now": now,
            **known,
            **{f"{name}_since": since for name, (_, since) in self._since.items()},
            "upstream": self._gate.upstream,
        }

    async def now(self) -> dict[str, Any]:
        """What is under way at this moment, in this process and the other workers on the port.

        `running` is the number of requests of each key; `in_flight` has the MAX_SHOWN oldest.
        """
        states = [await self._own(), *(workers.others(self._folder) if self._folder else ())]
        rows = [row for one in states for row in one["in_flight"]]
        totals = {name: sum(one[name] for one in states) for name in _TOTALS}
        running = sum((Counter(one["running"]) for one in states), Counter())
        return totals | {"running": running, "in_flight": sorted(rows, key=lambda row: -row["seconds"])[:MAX_SHOWN]}

    async def _own(self) -> dict[str, Any]:
        self._count_intervals()
        now, under_way = time.monotonic(), self._gate.under_way
        running, stopped, speed = Counter[str](), 0, 0.0
        async for part in in_parts(under_way):
            running.update(map(key_of, part))
            stopped += sum(stalled(one, now) for one in part)
            speed += sum(self._pace.speed(one, now) for one in part)
        return {
            "connections": self._gate.connection_count,
            "in_flight_total": len(under_way),
            "stalled": stopped,
            "tokens_per_second": round(speed, 1),
            "in_flight": [self._pace.row(one, now) for one in under_way[:MAX_SHOWN]],
            "running": running,
        }

    async def publish(self) -> None:
        """Measure the streams, and publish the state of this process for the other workers, until cancelled."""
        while True:
            if self._server:
                await self._pace.sample(self._gate.under_way)
            if self._server and self._metrics and self._folder:
                self._metrics.gauge(len(self._gate.under_way), self._gate.connection_count)
                workers.publish(self._folder, await self._own())
            await asyncio.sleep(PUBLISH_SECONDS)
