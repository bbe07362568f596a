"""The client connections: how many, whose, and until when each may wait.

One sweep over all of them, four times a second, instead of a timer for each: a connection costs a float.
"""

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.utils import asyncio_utils

from ..exchange import Exchange
from . import transport

logger = logging.getLogger(__name__)

SWEEP = 0.25
"""Seconds between two looks at the deadlines."""
LAST_WORD = 2.0
"""Seconds a connection has to end by itself once it was told to, before it is cut."""
CONNECT_TIMEOUT = "connect timeout"
"""What mitmproxy then says is wrong with a connection to a server that was given up."""
QUIET = 10.0
"""Seconds between two lines of the log about the same trouble."""


class Expire(events.Event):
    """For the layer that speaks to the client: your deadline has passed."""


class Drain(events.Event):
    """For the layer that speaks to the client: the gate is being stopped, begin nothing new."""


class Resume(events.Event):
    """For the layer that speaks to the client: go on with what has come already."""


class ClientProtocol(Protocol):
    """The layer that speaks to the client, as its connection needs to know it."""

    @property
    def idle(self) -> bool:
        """No request is under way."""

    def throttle(self, stream_id: int, server: Connection) -> None:
        """Something of the answer to that request came from `server`: enough for now?"""


class ClientConnection:
    """One client connection."""

    __slots__ = (
        "address",
        "admitted",
        "client",
        "connecting",
        "deadline",
        "exchanges",
        "gone",
        "handler",
        "holders",
        "known",
        "network",
        "protocol",
        "told",
    )

    def __init__(self, client: Client, handler: ConnectionHandler, deadline: float) -> None:
        self.client = client
        self.handler = handler
        self.address = str(client.peername[0]) if client.peername else "unknown"
        self.network = network(self.address)
        self.deadline: float | None = deadline
        """By `time.monotonic`; None while a request is under way."""
        self.protocol: ClientProtocol | None = None
        self.admitted = False
        """A request of this connection was admitted: without that it may not have a connection upstream."""
        self.known = False
        """A request of this connection came from somebody with a key, whatever became of it: no stranger."""
        self.exchanges: dict[int, Exchange] = {}
        """Admitted requests that have not ended, by Python's id: a client may give two of them the same of its own."""
        self.told = False
        self.gone = False
        """It has ended, or is about to: nothing more goes upstream for it."""
        self.holders: dict[Connection, set[object]] = {}
        self.connecting: dict[str, asyncio.TimerHandle] = {}
        """What ends an attempt to connect upstream, by server id."""

    @property
    def idle(self) -> bool:
        """No request is under way, so that nothing is lost if it is closed."""
        return not self.exchanges and (self.protocol is None or self.protocol.idle)

    @property
    def sockname(self) -> tuple[str, int] | None:
        """The address of ours that the client connected to."""
        return self.client.sockname

    def tell(self, event: events.Event) -> None:
        """Hand an event to the layers of this connection."""
        asyncio_utils.create_task(
            self.handler.server_event(event), name="gate event", keep_ref=True, client=self.client.peername
        )

    def hold(self, connection: Connection, who: object) -> None:
        """Read nothing more from `connection`, the client or a server of it, until `who` releases it."""
        self.holders.setdefault(connection, set()).add(who)
        transport.pause_reading(self.handler, connection)

    def release(self, connection: Connection, who: object) -> None:
        """Take back a hold, if there is one."""
        holders = self.holders.get(connection)
        if holders is None or who not in holders:
            return
        holders.discard(who)
        if not holders:
            del self.holders[connection]
            transport.resume_reading(self.handler, connection)

    def transport(self, connection: Connection | None = None) -> asyncio.Transport | None:
        """Return asyncio's transport of the client or of a server of it, while there is one."""
        return transport.transport_of(self.handler, connection or self.client)

    def connect_within(self, seconds: float, server: Server) -> None:
        """Give up a connection to `server` that has not been made by then, in TLS if it is one."""
        timer = asyncio.get_running_loop().call_later(seconds, self._give_up, server)
        self.connecting[server.id] = timer

    def connect_ended(self, server: Server) -> None:
        """It was made, or came to nothing."""
        timer = self.connecting.pop(server.id, None)
        if timer:
            timer.cancel()

    def _give_up(self, server: Server) -> None:
        del self.connecting[server.id]
        io = self.handler.transports.get(server)
        if io and io.handler:
            io.handler.cancel(CONNECT_TIMEOUT)

    def cut(self) -> None:
        """Close it now, whatever it does: mitmproxy's own way to end an inactive connection."""
        transport = self.handler.transports.get(self.client)
        if transport and transport.handler:
            transport.handler.cancel("closed by the gate")

    def reset(self) -> None:
        """End it with a TCP reset, so that the client sees an error and not an end."""
        if own := self.transport():
            transport.reset(own)

    def drain(self) -> None:
        """Begin nothing new: end it where nothing has begun, or tell the layers."""
        if self.protocol is None:
            self.cut()
        else:
            self.tell(Drain())

    def expire(self, now: float) -> None:
        """End it: with a word where somebody can say it, the hard way where not, or where the word did not help."""
        if self.protocol is None or self.told:
            self.deadline = None
            self.cut()
        else:
            self.told = True
            self.deadline = now + LAST_WORD
            self.tell(Expire())


class Connections:
    """All client connections, the oldest first."""

    def __init__(self) -> None:
        self._by_client: dict[str, ClientConnection] = {}
        self._networks: Counter[str] = Counter()
        self._warnings: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._by_client.values()))

    def get(self, client_id: str) -> ClientConnection | None:
        """The connection of that mitmproxy client id."""
        return self._by_client.get(client_id)

    def add(self, peer: ClientConnection, most: int, most_per_network: int) -> bool:
        """Take a new connection in; where there are too many, one that waits with no request makes room for it.

        Returns False where all others are at work. `most_per_network` 0 is no limit.
        """
        if most_per_network and self._networks[peer.network] >= most_per_network and not self._evict(peer.network):
            return False
        if len(self._by_client) >= most and not self._evict(None):
            return False
        self._by_client[peer.client.id] = peer
        self._networks[peer.network] += 1
        return True

    def remove(self, client_id: str) -> ClientConnection | None:
        """Forget a connection that has ended, or is about to."""
        peer = self._by_client.pop(client_id, None)
        if peer:
            peer.gone = True
            self._networks[peer.network] -= 1
            if not self._networks[peer.network]:
                del self._networks[peer.network]
        return peer

    def _evict(self, of_network: str | None) -> bool:
        """Close the oldest connection without a request; those that were never let in go first."""

        def oldest(*, strangers: bool) -> ClientConnection | None:
            return next(
                (
                    peer
                    for peer in self._by_client.values()
                    if (not strangers or not peer.known)
                    and (of_network is None or peer.network == of_network)
                    and peer.idle
                ),
                None,
            )

        victim = oldest(strangers=True) or oldest(strangers=False)
        if victim is None:
            return False
        self.remove(victim.client.id)
        victim.cut()
        self.warn_rate_limited("connections without a request were closed to make room for new ones")
        return True

    async def sweep(self) -> None:
        """End what is overdue, for ever."""
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for peer in self:
                if peer.deadline is not None and now > peer.deadline:
                    try:
                        peer.expire(now)
                    except Exception as error:
                        self.warn_rate_limited(f"a connection could not be ended: {type(error).__name__}")
            self._summarize(now)

    def warn_rate_limited(self, what: str) -> None:
        """Log a trouble that may come a thousand times a second: at once, then as a count every QUIET seconds."""
        now = time.monotonic()
        since, count = self._warnings.get(what, (0.0, 0))
        if not since:
            logger.warning("%s", what)
            self._warnings[what] = (now, 0)
        else:
            self._warnings[what] = (since, count + 1)

    def _summarize(self, now: float) -> None:
        for what, (since, count) in list(self._warnings.items()):
            if now - since >= QUIET:
                del self._warnings[what]
                if count:
                    logger.warning("%s (%d more times in %d seconds)", what, count, int(QUIET))


def network(address: str) -> str:
    """Whose connections count together: one IPv4 address, one /64 network in IPv6, where a host owns all of it."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
