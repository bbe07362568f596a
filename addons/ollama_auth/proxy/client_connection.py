"""One client connection: what is known of it, its deadlines, and the events that tell its layers of them."""

import asyncio
import math
import socket
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol

from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.utils import asyncio_utils

from ..auth.client_ip import network_of, normal
from ..exchange import Exchange
from .pacer import Pacer
from .transport import bytes_taken, pause_reading, resume_reading, spare_full_peer, transport_of, unsent

EXPIRY_GRACE_SECONDS = 2.0
"""Time a connection has to end by itself after an Expire event, before it is cancelled."""
A_TURN = 8
"""Further requests that begin in a turn of the event loop: as many as strangers' connections that are accepted."""
CONNECT_TIMEOUT = "connect timeout"
"""The error that mitmproxy then reports for a connection to the upstream that was given up."""


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


@dataclass(eq=False, kw_only=True, slots=True)
class Peer:
    """What deciding on a request needs of its connection: a ClientConnection, or a NewConnection."""

    address: str = "unknown"
    network: str = ""
    """What it counts for: that of its address, or behind a trusted proxy that of the client of its latest request."""
    sockname: tuple[str, int] | None = None
    """The local address that the client connected to."""
    closed: bool = False
    """It has ended, or is about to: nothing more goes upstream for it."""
    begins: bool = False
    """Its first request has arrived, and is not decided yet."""
    admitted: bool = False
    """A request of this connection was admitted; until then it may have no connection to the upstream."""
    authenticated_before: bool = False
    """A request of this connection had a valid credential, even if it was refused for another reason."""
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    """Requests that were not refused and have not ended, by Python's id; the ids of clients are not unique."""


class BoundedServer(Protocol):
    """What a client connection needs of BoundedHttp1Server and BoundedHttp2Server, which import this module."""

    @property
    def idle(self) -> bool: ...


@dataclass(eq=False, slots=True)
class ClientConnection(Peer):
    """One client connection."""

    client: Client
    handler: ConnectionHandler
    deadline: float | None
    """In terms of `time.monotonic`; None while a request is running."""
    pacer: Pacer
    """Of further requests, of all connections."""
    awaits_turn: bool = False
    """What has arrived is not read yet, because others begin before."""
    expiry_sent: bool = False
    """The deadline has passed, and an Expire event was sent."""
    http_server: BoundedServer | None = None
    """None until the first byte has arrived, or the TLS handshake is done."""
    shared: bool = False
    """It belongs to a trusted proxy, so one client of it must not cost the others the connection."""
    awaits_proxy_header: bool = False
    """Its first bytes name the client: see proxy/proxy_protocol.py."""
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
        self.network, self.sockname = network_of(self.address), self.client.sockname
        self.outflow = Outflow(transport_of(self.handler, self.client), self.network)

    def stand_for(self, address: str) -> None:
        """Count and log it as a connection of that address, for which the console made it."""
        self.address = address
        self.network = self.outflow.network = network_of(address)

    @property
    def idle(self) -> bool:
        """Tell whether no request is running, so that nothing is lost by closing the connection."""
        return not (self.exchanges or self.awaits_turn) and (self.http_server is None or self.http_server.idle)

    def turn(self) -> Awaitable[None] | None:
        """Return what is to be waited for before a further request is read, if anything."""
        if not (self.authenticated_before and self.http_server and self.idle) or self.pacer.take():
            return None
        return self.await_turn()

    async def await_turn(self) -> None:
        self.awaits_turn = True
        try:
            await self.pacer.turn()
        finally:
            self.awaits_turn = False

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
        if self.begins or self.awaits_turn:
            return  # Its next request is its last.
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
