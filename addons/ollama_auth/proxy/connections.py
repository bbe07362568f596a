"""The registry of client connections: how many there may be, how many of one network, and how long each may wait.

One sweep over all connections, four times a second, replaces a timer for each: a deadline costs one float. So does that
of an attempt to connect to the upstream. The sweep also ends clients that take nothing of what they asked for.
"""

import asyncio
import logging
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.utils import asyncio_utils

from ..auth.client_ip import network_of, normal
from ..exchange import Exchange
from ..settings import Settings
from .transport import bytes_taken, pause_reading, resume_reading, spare_full_peer, transport_of, unsent

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.25
"""Time between two checks of the deadlines."""
EXPIRY_GRACE_SECONDS = 2.0
"""Time a connection has to end by itself after an Expire event, before it is cancelled."""
CONNECT_TIMEOUT = "connect timeout"
"""The error that mitmproxy then reports for a connection to the upstream that was given up."""
STALLED = "clients that took nothing of their answers were disconnected"
"""A warning: it took ollama_idle_timeout seconds."""
MADE_ROOM = "connections without a request were closed to make room for new ones"
"""A warning."""
WARNING_INTERVAL = 10.0
"""Seconds between two log lines with the same warning."""


class Expire(events.Event):
    """Tells the layer that serves the client that its deadline has passed."""


class Drain(events.Event):
    """Tells the layer that serves the client to begin nothing new, because the gateway is being stopped."""


@dataclass
class BodyTimeout(events.Event):
    """Tells the layer that serves the client that a body that is awaited has paused for too long."""

    stream_id: int


@dataclass
class ConnectLost(events.Event):
    """Tells the layer that serves the client that an attempt to connect to the upstream has ended."""

    server: Server


class Resume(events.Event):
    """Tells the layer that serves the client to continue with what it has already received."""


@dataclass(eq=False, slots=True)
class Outflow:
    """What goes to a client, and when it was last seen to take something."""

    transport: asyncio.Transport | None
    network: str
    taken: int = 0
    waits_since: float | None = None
    """None: the client has taken all there is."""

    def stalled(self, now: float) -> float:
        """Return for how many seconds the client has taken nothing, though there is something for it."""
        if self.transport is None or not unsent(self.transport):
            self.waits_since = None
            return 0.0
        taken = bytes_taken(self.transport)
        if self.waits_since is None or taken > self.taken:
            self.taken, self.waits_since = taken, now
        return now - self.waits_since


class Peer(Protocol):
    """What deciding on a request needs of its connection: a ClientConnection, or a NewConnection."""

    @property
    def address(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def sockname(self) -> tuple[str, int] | None:
        """The local address that the client connected to."""
        ...

    admitted: bool
    """A request of this connection was admitted; until then it may have no connection to the upstream."""
    authenticated_before: bool
    """A request of this connection had a valid credential, even if it was refused for another reason."""
    exchanges: dict[int, Exchange]
    """Requests that were not refused and have not ended, by Python's id; the ids of clients are not unique."""


class New(Protocol):
    """A NewConnection (proxy/listener.py), which mitmproxy does not know yet."""

    deadline: float

    @property
    def network(self) -> str: ...
    @property
    def transport(self) -> asyncio.Transport: ...
    @property
    def waits(self) -> bool: ...
    def expire(self) -> None: ...


class BoundedServer(Protocol):
    """What a client connection needs of BoundedHttp1Server and BoundedHttp2Server, which import this module."""

    @property
    def idle(self) -> bool: ...


@dataclass(eq=False, slots=True)
class ClientConnection:
    """One client connection."""

    client: Client
    handler: ConnectionHandler
    deadline: float | None
    """In terms of `time.monotonic`; None while a request is running."""
    address: str = "unknown"
    network: str = ""
    """What it counts for: that of its address, or behind a trusted proxy that of the client of its latest request."""
    expiry_sent: bool = False
    """The deadline has passed, and an Expire event was sent."""
    http_server: BoundedServer | None = None
    """None until the first byte has arrived, or the TLS handshake is done."""
    admitted: bool = False
    authenticated_before: bool = False
    shared: bool = False
    """It belongs to a trusted proxy, so one client of it must not cost the others the connection."""
    awaits_proxy_header: bool = False
    """Its first bytes name the client: see proxy/proxy_protocol.py."""
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    closed: bool = False
    """It has ended, or is about to: nothing more goes upstream for it."""
    read_holds: dict[Connection, set[object]] = field(default_factory=dict)
    """The objects that have paused reading from the client or a server of it."""
    connecting: dict[Server, float] = field(default_factory=dict)
    """When to give up connecting to the upstream, by `time.monotonic`, until its layer is told of the result. The TLS
    handshake is part of it."""
    body_deadlines: dict[int, float] = field(default_factory=dict)
    """When to give up waiting for more of a body that is inspected, by `time.monotonic`, by stream."""
    outflow: Outflow = field(init=False)

    def __post_init__(self) -> None:
        if self.client.peername:
            self.address = normal(str(self.client.peername[0]))
        self.network = network_of(self.address)
        self.outflow = Outflow(transport_of(self.handler, self.client), self.network)

    def stand_for(self, address: str) -> None:
        """Count and log it as a connection of that address, for which the console made it."""
        self.address = address
        self.network = self.outflow.network = network_of(address)

    @property
    def idle(self) -> bool:
        """Tell whether no request is running, so that nothing is lost by closing the connection."""
        return not self.exchanges and (self.http_server is None or self.http_server.idle)

    @property
    def sockname(self) -> tuple[str, int] | None:
        return self.client.sockname

    def await_request(self, head_timeout: float, idle_timeout: float) -> None:
        """Set the deadline for the next request; a client that never authenticated gets no more time than at first."""
        self.deadline = time.monotonic() + (idle_timeout if self.authenticated_before else head_timeout)

    def send_event(self, event: events.Event) -> None:
        """Hand an event to the layers of this connection, from a task of its own."""
        asyncio_utils.create_task(
            self.handler.server_event(event), name="gate event", keep_ref=True, client=self.client.peername
        )

    def hold_reading(self, connection: Connection, holder: object) -> None:
        """Read nothing more from `connection`, the client or a server of it, until all holders have released it."""
        self.read_holds.setdefault(connection, set()).add(holder)
        pause_reading(self.handler, connection)

    def release_reading(self, connection: Connection, holder: object) -> None:
        """Undo hold_reading, if this holder called it."""
        holders = self.read_holds.get(connection)
        if holders is None or holder not in holders:
            return
        holders.discard(holder)
        if not holders:
            del self.read_holds[connection]
            resume_reading(self.handler, connection)

    def cancel(self, connection: Connection, error: str) -> None:
        """Close a connection, or give up to open it, as mitmproxy ends an inactive one."""
        io = self.handler.transports.get(connection)
        if io and io.handler:
            io.handler.cancel(error)

    def close_now(self) -> None:
        """Close it whatever it is doing."""
        self.cancel(self.client, "closed by the gate")

    def check_connects(self, now: float) -> None:
        """Give up attempts to connect to the upstream that take too long, or of which the layers would never hear.

        A task ends without a word if another one, which finds its connection broken, cancels it before it has told.
        """
        for server, deadline in list(self.connecting.items()):
            io = self.handler.transports.get(server)
            if io is None or io.handler is None or io.handler.done():
                del self.connecting[server]
                self.handler.transports.pop(server, None)
                if io and io.writer:
                    io.writer.close()
                self.send_event(ConnectLost(server))
            elif now > deadline:
                self.connecting[server] = math.inf
                self.cancel(server, CONNECT_TIMEOUT)

    def check_bodies(self, now: float, before: float) -> None:
        """Give up bodies that pause for too long. While nothing is read of the client, its time stands still.

        `before` is the time of the last check.
        """
        reads = self.client not in self.read_holds and all(map(self.flushed, self.handler.transports))
        for stream_id, deadline in list(self.body_deadlines.items()):
            if not reads:
                self.body_deadlines[stream_id] = deadline + now - before
            elif now > deadline:
                del self.body_deadlines[stream_id]
                self.send_event(BodyTimeout(stream_id))

    def spare_full_peers(self, vanished_after: int) -> None:
        """Let no peer count as vanished that is there and takes nothing."""
        for connection in self.handler.transports:
            if transport := transport_of(self.handler, connection):
                spare_full_peer(transport, vanished_after)

    def flushed(self, connection: Connection) -> bool:
        """Tell whether all that was written to a connection has left this process."""
        return not unsent(transport_of(self.handler, connection))

    def reset(self) -> None:
        """End it with a TCP reset, so that the client sees an error and not an end."""
        if own := transport_of(self.handler, self.client):
            linger_for_0_seconds = struct.pack("ii", 1, 0)
            own.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_0_seconds)
            own.abort()

    def drain(self) -> None:
        """Let running requests end, and begin no new ones; close it if none has begun."""
        if self.http_server is None:
            self.close_now()
        else:
            self.send_event(Drain())

    def expire(self, now: float) -> None:
        """Act on a passed deadline: let the HTTP layer end the connection, or close it if that is not possible."""
        if self.http_server is None or self.expiry_sent:
            self.deadline = None
            self.close_now()
        else:
            self.expiry_sent = True
            self.deadline = now + EXPIRY_GRACE_SECONDS
            self.send_event(Expire())


class Connections:
    """All client connections, oldest first."""

    def __init__(self) -> None:
        self._by_client: dict[str, ClientConnection] = {}
        self._new: dict[asyncio.Transport, New] = {}
        """Those of which no request head has arrived, oldest first."""
        self._networks: Counter[str] = Counter()
        self._leaving: list[Outflow] = []
        """Connections that have ended, but for what their clients have still to take; they count, too."""
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
            peer.deadline = new.deadline
        if not self._make_room(peer.network, most, most_per_network):
            return False
        self._by_client[peer.client.id] = peer
        self._networks[peer.network] += 1
        return True

    def add_new(self, new: New, most: int, most_per_network: int) -> bool:
        """Do as `add` for a connection that mitmproxy does not know yet."""
        if not self._make_room(new.network, most, most_per_network):
            return False
        self._new[new.transport] = new
        self._networks[new.network] += 1
        return True

    def remove_new(self, transport: asyncio.Transport | None) -> New | None:
        """Remove a connection that has ended, or goes to mitmproxy now."""
        new = self._new.pop(transport, None) if transport else None
        if new:
            self._forget(new.network)
        return new

    def close_new(self) -> None:
        """Close the connections that mitmproxy does not know yet."""
        for transport in list(self._new):
            transport.abort()

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

    def _forget(self, of_network: str) -> None:
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
        for new in self._new.values():
            if of_network in (None, new.network) and new.waits:
                self.remove_new(new.transport)
                new.transport.abort()
                self.warn_rate_limited(MADE_ROOM)
                return True
        for spare in (True, False):
            for peer in self._by_client.values():
                idle = peer.idle and not unsent(peer.outflow.transport)
                if of_network in (None, peer.network) and not (spare and peer.authenticated_before) and idle:
                    self._close(peer)
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
            patience = settings().idle_timeout
            vanished_after = settings().vanished_after if settings().keepalive_idle and now > full_peers_due else 0
            if vanished_after:
                full_peers_due = now + vanished_after / 8
            for peer in self:
                try:
                    peer.check_connects(now)
                    peer.check_bodies(now, before)
                    if vanished_after:
                        peer.spare_full_peers(vanished_after)
                    if peer.deadline is not None and now > peer.deadline:
                        peer.expire(now)
                    if peer.outflow.stalled(now) > patience and peer.outflow.transport:
                        peer.outflow.transport.abort()
                        self.warn_rate_limited(STALLED)
                except Exception as error:
                    self.warn_rate_limited(f"a connection could not be ended: {type(error).__name__}")
            self._check_new(now)
            self._check_leaving(now, patience)
            self._summarize(now)

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
