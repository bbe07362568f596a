"""Listen in mitmproxy's place, and refuse requests without a known credential before mitmproxy makes anything for them.

For each connection mitmproxy makes a handler, a task, a context and layers, which costs several times as much as the
refusal. A `NewConnection` waits for the first request head. If no principal can be behind it, the lifecycle refuses it,
by the same rules and with the same bytes as later; else all that has arrived goes to mitmproxy, as if it came just now.
If much arrives at once, it waits for its turn (pacer.py).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy.mode_servers import ServerInstance

from ..auth.client_ip import network_of, normal
from ..exchange import new_id
from ..http.head import HeadError, late, parse_head, take_head
from ..http.responses import RETRY_SECONDS, error, render, retry_after
from ..ollama_api.routes import Dialect
from .client_connection import Peer
from .connections import Connections
from .events import Lifecycle
from .pacer import Pacer

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel's own limit (`net.core.somaxconn`) may be lower. With asyncio's
100, others in a burst retry after a second."""
ACCEPTED = 2
"""Connections that asyncio accepts in a turn of the event loop. While the queue is full, each of them starts one that
waits; with eight, all tokens were 70 ms late."""
TURNS = 6
"""Turns of the event loop from one connection that goes to mitmproxy to the next; a beginning takes about as many."""
MOST_WAITING = 128
"""Connections that may wait for their turn, and at most an eighth of those that there may be; if there are more, the
first has its turn at once. So nobody can have more accepted than is served, and have others closed for it."""
TLS_RECORD = b"\x16"
"""The first byte of a TLS handshake (RFC 8446 section 5.1); no HTTP method begins with it."""
TOO_MANY = "a connection was refused: all others are at work"

LINGER_SECONDS = 0.1
"""Time in which the request of such a connection may come. With data unread at the end, the kernel would reset the
connection, and the client might lose the answer (RFC 9112 section 9.6)."""

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Listener:
    """What its connections share."""

    lifecycle: Lifecycle
    connections: Connections
    most: Callable[[], tuple[int, int]]
    """(connections that there may be, those of one network or 0)."""
    direct: Callable[[], bool]
    """Whether connections go to mitmproxy at once: with TLS, or if somebody wants to see them."""
    pacer: Pacer = field(default_factory=partial(Pacer, 1, TURNS))

    async def take_over(self, instances: Iterable[ServerInstance[Any]]) -> None:
        """Take the listening sockets of mitmproxy's servers; those of UDP stay."""
        loop = asyncio.get_running_loop()
        for instance in instances:
            servers = cast(list[Any], instance._servers)  # type: ignore[attr-defined]
            for server in [one for one in servers if hasattr(one, "sockets")]:
                for listening in server.sockets:
                    own = listening.dup()
                    made = partial(NewConnection, self, instance.handle_stream)
                    servers.append(await loop.create_server(made, sock=own, backlog=ACCEPTED))
                    with suppress(OSError):
                        own.listen(BACKLOG)
                servers.remove(server)
                server.close()


class NewConnection(asyncio.Protocol, Peer):
    """A client connection, up to the end of its first request head."""

    def __init__(self, listener: Listener, serve: Serve) -> None:
        super().__init__()
        self.listener, self.serve = listener, serve
        self.received = ReceiveBuffer()
        self.refused = False
        """It is one too many, and not counted; it was told so."""
        self.queued = False
        """It waits for its turn to go to mitmproxy."""
        self.arrived = b""
        """What mitmproxy is to get then."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peername, self.sockname = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        if peername is None:  # Its client has left already.
            self.transport.abort()
            return
        settings, self.address = self.listener.lifecycle.settings, normal(str(peername[0]))
        self.network = network_of(self.address)
        self.deadline = time.monotonic() + settings.head_timeout
        counted = self.listener.connections.add_new(self, *self.listener.most())
        if self.listener.direct() or (settings.proxy_protocol and self.address in settings.proxies):
            self.hand_over() if counted else self.answer_for(self.begin)
        elif not counted:
            self.listener.connections.warn_rate_limited(TOO_MANY)
            self.refused = True
            self.transport.write(too_many())
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.close)

    @property
    def waits(self) -> bool:
        """Nothing that may be a request has arrived, and mitmproxy does not have it."""
        return not self.arrived and self.transport.get_protocol() is self

    @property
    def asks(self) -> bool:
        """A request has arrived; with TLS that can't be known."""
        return bool(self.arrived) and not self.arrived.startswith(TLS_RECORD)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            self.transport.close()
        elif self.queued:  # uvloop reads once, though it was told to pause in connection_made.
            self.arrived += data
            self.listener.pacer.held += len(data)
            self.transport.pause_reading()
        else:
            self.received += data
            self.answer_for(self.read_head)

    def answer_for(self, step: Callable[[], bytes | None]) -> None:
        """Take a step, and end the connection with the answer that it returns, or with that to an internal error."""
        try:
            answer = step()
        except Exception as failure:
            answer = render(self.listener.lifecycle.internal_error(failure))
        if answer:
            self.end(answer)

    def read_head(self) -> bytes | None:
        """Return the refusal of the request that has arrived; None if it has not, or is not for here to decide."""
        bounds, arrived = self.listener.lifecycle.settings.bounds, bytes(self.received)
        head = None
        with suppress(HeadError):
            raw = take_head(self.received, bounds)
            if raw is None and not arrived.startswith(TLS_RECORD):
                return None
            head = parse_head(raw, bounds) if raw is not None else None
        alone = head is not None and head.body == 0 and not self.received
        refusal = self.listener.lifecycle.refuse_stranger(head, self) if head and alone else None
        if refusal is None:
            self.hand_over(arrived)
            return None
        return render(refusal)

    def hand_over(self, arrived: bytes = b"") -> None:
        """Let mitmproxy serve the connection when it has its turn, and read nothing until then."""
        self.arrived, self.queued = arrived, True
        self.listener.pacer.held += len(arrived)
        most, most_per_network = self.listener.most()
        most_waiting = min(MOST_WAITING, most // 8, (most_per_network or most) // 8)
        self.listener.pacer.begin(partial(self.answer_for, self.begin), most_waiting)
        if self.queued:
            self.received, self.deadline = ReceiveBuffer(), math.inf
            self.transport.pause_reading()

    def begin(self) -> None:
        """Let mitmproxy serve the connection, as asyncio.start_server would have."""
        if self.queued:
            self.queued = False
            self.listener.pacer.held -= len(self.arrived)
        if self.transport.is_closing():
            return
        self.deadline = time.monotonic() + self.listener.lifecycle.settings.head_timeout
        loop = asyncio.get_running_loop()
        serve = partial(serve_until_cancelled, self.serve)
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), serve, loop=loop)
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()
        protocol.connection_made(self.transport)
        if self.arrived:
            protocol.data_received(self.arrived)

    def expire(self) -> None:
        """Act on the deadline of the head."""
        self.end(render(self.listener.lifecycle.refuse_malformed(late(), self)) if self.received else b"")

    def end(self, answer: bytes = b"") -> None:
        """Send the last bytes of the connection, and close it."""
        self.transport.write(answer)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.listener.connections.remove_new(self.transport)


async def serve_until_cancelled(serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a connection in a task that never ends as cancelled: asyncio of Python 3.12.1 logs a traceback then."""
    with suppress(asyncio.CancelledError):
        await serve(reader, writer)


def too_many() -> bytes:
    """Return the answer to a connection that is one too many."""
    message = "too many connections; try again later"
    return render(error(new_id(), 503, message, Dialect.OLLAMA, retry_after(RETRY_SECONDS)))
