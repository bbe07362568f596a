"""The registry of client connections: how many there may be, how many of one network, and how long each may wait.

One sweep over all connections, four times a second, replaces a timer for each: a deadline costs one float. So does that
of an attempt to connect to the upstream. The sweep also ends clients that take nothing of what they asked for.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from ..settings import Settings
from ..turns import in_parts
from .client_connection import EXPIRY_GRACE_SECONDS, ClientConnection, Outflow
from .transport import unsent

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.25
"""Time between two checks of the deadlines."""
STALLED = "clients that took nothing of their answers were disconnected"
"""A warning: it took ollama_idle_timeout seconds."""
MADE_ROOM = "connections without a request were closed to make room for new ones"
"""A warning."""
WARNING_INTERVAL = 10.0
"""Seconds between two log lines with the same warning."""


class New(Protocol):
    """A NewConnection (proxy/listener.py), which mitmproxy does not know yet."""

    deadline: float

    @property
    def network(self) -> str: ...
    @property
    def transport(self) -> asyncio.Transport: ...
    @property
    def waits(self) -> bool: ...
    @property
    def asks(self) -> bool: ...
    @property
    def queued(self) -> bool: ...
    def expire(self) -> None: ...


class Connections:
    """All client connections, oldest first."""

    def __init__(self) -> None:
        self._by_client: dict[str, ClientConnection] = {}
        self._new: dict[asyncio.Transport, New] = {}
        """Those of which no request head has arrived, oldest first."""
        self._networks: Counter[str] = Counter()
        self._leaving: list[Outflow] = []
        """Connections that have ended, but for what their clients have still to take; they count, too."""
        self._all_at_work: set[str | None] = set()
        """Networks, or None for all of them, in which no connection can be closed for a new one: to look for one again
        would take milliseconds."""
        self._warnings: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._by_client) + len(self._new)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._by_client.values()))

    def get(self, client_id: str) -> ClientConnection | None:
        """Return the connection with that id of mitmproxy's Client."""
        return self._by_client.get(client_id)

    def add(self, peer: ClientConnection, most: int, most_per_network: int) -> bool:
        """Register a new connection; if there are too many, close one without a running request to make room.

        Returns False if all others have running requests. A `most_per_network` of 0 means no limit.
        """
        if new := self.remove_new(peer.outflow.transport):
            peer.deadline, peer.begins = new.deadline, new.asks
        if not self._make_room(peer.network, most, most_per_network):
            return False
        self._by_client[peer.client.id] = peer
        self._networks[peer.network] += 1
        self.note_change(peer.network)
        return True

    def add_new(self, new: New, most: int, most_per_network: int) -> bool:
        """Do as `add` for a connection that mitmproxy does not know yet."""
        if not self._make_room(new.network, most, most_per_network):
            return False
        self._new[new.transport] = new
        self._networks[new.network] += 1
        self.note_change(new.network)
        return True

    def remove_new(self, transport: asyncio.Transport | None) -> New | None:
        """Remove a connection that has ended, or goes to mitmproxy now."""
        new = self._new.pop(transport, None) if transport else None
        if new:
            self._forget(new.network)
        return new

    def close_new(self) -> None:
        """Close the connections of which no request head has arrived."""
        for new in list(self._new.values()):
            if new.waits:
                new.transport.abort()

    @property
    def busy(self) -> bool:
        """Tell whether a request runs or is about to, or the kernel has not all that was written."""
        outflows = [*(peer.outflow for peer in self), *self._leaving]
        begins = any(not new.waits for new in self._new.values())
        return (
            begins
            or any(peer.begins or not peer.idle for peer in self)
            or any(unsent(one.transport) for one in outflows)
        )

    def _make_room(self, of_network: str, most: int, most_per_network: int) -> bool:
        if most_per_network and self._networks[of_network] >= most_per_network and not self._evict(of_network):
            return False
        return len(self) + len(self._leaving) < most or self._evict(None)

    def count_for(self, peer: ClientConnection, network: str, most_per_network: int) -> bool:
        """Count a connection for the network of a client that uses it now; False if that one has too many."""
        if network == peer.network or peer.closed:
            return True
        if most_per_network and self._networks[network] >= most_per_network and not self._evict(network):
            return False
        self._forget(peer.network)
        self._networks[network] += 1
        self.note_change(network)
        peer.network = peer.outflow.network = network
        return True

    def remove(self, client_id: str) -> ClientConnection | None:
        """Remove a connection that has ended, or is about to."""
        peer = self._by_client.pop(client_id, None)
        if peer:
            peer.closed = True
            if unsent(peer.outflow.transport):
                self._leaving.append(peer.outflow)
            else:
                self._forget(peer.network)
        return peer

    def note_change(self, network: str) -> None:
        """Note that a request has ended in this network, or a connection has come or gone: one may be closed now."""
        self._all_at_work -= {network, None}

    def _forget(self, of_network: str) -> None:
        self.note_change(of_network)
        self._networks[of_network] -= 1
        if not self._networks[of_network]:
            del self._networks[of_network]

    def _abort(self, outflow: Outflow) -> None:
        """End a connection that is closed already, but for what its client has not taken."""
        if outflow in self._leaving:
            self._leaving.remove(outflow)
            self._forget(outflow.network)
        if outflow.transport:
            outflow.transport.abort()

    def _evict(self, of_network: str | None) -> bool:
        """Close the oldest idle connection, preferably one that never authenticated; False if there is none.

        One whose client has still to take the end of an answer is no idle one, unless the client takes nothing.
        """
        if of_network in self._all_at_work:
            return False
        if self._evict_new(of_network, queued=False):
            return True
        for spare in (True, False):
            for peer in self._by_client.values():
                idle = peer.idle and not unsent(peer.outflow.transport)
                if of_network in (None, peer.network) and not (spare and peer.authenticated_before) and idle:
                    self._close(peer)
                    return True
        if self._evict_new(of_network, queued=True):
            return True
        now = time.monotonic()
        for peer in self._by_client.values():
            if of_network in (None, peer.network) and peer.idle and peer.outflow.stalled(now) > EXPIRY_GRACE_SECONDS:
                self._close(peer)
                self._abort(peer.outflow)
                return True
        for outflow in self._leaving:
            if of_network in (None, outflow.network) and outflow.stalled(now) > EXPIRY_GRACE_SECONDS:
                self._abort(outflow)
                return True
        self._all_at_work.add(of_network)
        return False

    def _evict_new(self, of_network: str | None, *, queued: bool) -> bool:
        for new in self._new.values():
            if of_network in (None, new.network) and new.waits and new.queued == queued:
                self.remove_new(new.transport)
                new.transport.abort()
                self.warn_rate_limited(MADE_ROOM)
                return True
        return False

    def _close(self, peer: ClientConnection) -> None:
        self.remove(peer.client.id)
        peer.close_now()
        self.warn_rate_limited(MADE_ROOM)

    async def sweep(self, settings: Callable[[], Settings]) -> None:
        """End connections whose deadline has passed, and those that take nothing while they may not be idle for longer.

        Runs until cancelled.
        """
        full_peers_due, now = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            before, now = now, time.monotonic()
            self._all_at_work.clear()
            patience = settings().idle_timeout
            vanished_after = settings().vanished_after if settings().keepalive_idle and now > full_peers_due else 0
            if vanished_after:
                full_peers_due = now + vanished_after / 8
            async for part in in_parts(self):
                for peer in part:
                    self._check(peer, now, before, patience, vanished_after)
            self._check_new(now)
            self._check_leaving(now, patience)
            self._summarize(now)

    def _check(self, peer: ClientConnection, now: float, before: float, patience: float, vanished_after: int) -> None:
        if peer.closed:
            return
        try:
            if peer.connecting:
                peer.check_connects(now)
            if peer.body_deadlines:
                peer.check_bodies(now, before)
            if vanished_after:
                peer.spare_full_peers(vanished_after)
            if peer.deadline is not None and now > peer.deadline and not peer.awaits_turn:
                peer.expire(now)
            if peer.outflow.stalled(now) > patience and peer.outflow.transport:
                peer.outflow.transport.abort()
                self.warn_rate_limited(STALLED)
        except Exception as error:
            self.warn_rate_limited(f"a connection could not be ended: {type(error).__name__}")

    def _check_new(self, now: float) -> None:
        for new in list(self._new.values()):
            if new.transport.is_closing():
                self.remove_new(new.transport)
            elif now > new.deadline and new.waits:
                new.expire()

    def _check_leaving(self, now: float, patience: float) -> None:
        for outflow in list(self._leaving):
            waited = outflow.stalled(now)
            if waited > patience:
                self.warn_rate_limited(STALLED)
            if waited > patience or outflow.waits_since is None:
                self._abort(outflow)  # Of one that has taken all, nothing is left to abort.

    def warn_rate_limited(self, message: str) -> None:
        """Log a warning that may occur a thousand times a second: at once, then as a count per WARNING_INTERVAL."""
        if message in self._warnings:
            since, count = self._warnings[message]
            self._warnings[message] = (since, count + 1)
        else:
            logger.warning("%s", message)
            self._warnings[message] = (time.monotonic(), 0)

    def _summarize(self, now: float) -> None:
        for message, (since, count) in list(self._warnings.items()):
            if now - since >= WARNING_INTERVAL:
                del self._warnings[message]
                if count:
                    logger.warning("%s (%d more times in %d seconds)", message, count, int(WARNING_INTERVAL))
