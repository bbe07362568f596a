"""All HTTP of a client connection: mitmproxy's layers, bounded.

One GateLayer serves a client connection, through a BoundedHttp1Server or a BoundedHttp2Server. Each request is a
GateStream (stream.py), and each connection to the upstream an Upstream (upstream.py). The parts of mitmproxy that these
depend on are pinned by tests/unit/proxy/test_internals.py.

An exception in any of them ends in GateLayer._crash: an answer if none has begun, then all connections close.
"""

from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import commands, events, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    RegisterHttpConnection,
)

from .client_connection import BodyTimeout, ClientConnection, ConnectLost, Drain, Expire, Resume
from .events import Commands, Lifecycle, ignore_event
from .fast_path import FastPaths
from .hook_dispatch import HookDispatcher
from .http1_server import BoundedHttp1Server
from .http2 import BoundedHttp2Server, EventHandled
from .stream import GateStream
from .upstream import OllamaServer, Upstream, http1_of

MAX_FREE = 32
"""Connections to the upstream that stay open for the next streams of a client's HTTP/2 connection."""
JOINED = 64 * 1024
"""Bytes from which on pieces are sent without waiting for more."""


class GateLayer(HttpLayer):
    """All HTTP of one client connection."""

    def __init__(self, context: Context, lifecycle: Lifecycle, peer: ClientConnection, hooks: HookDispatcher) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.lifecycle = lifecycle
        self.peer = peer
        self.hooks = hooks
        self.fast_paths = FastPaths(self, peer)

    def handle_event(self, event: events.Event) -> Commands:
        self.fast_paths.event_count += 1
        if isinstance(event, events.DataReceived) and (fast_path := self.fast_paths.by_source.get(event.connection)):
            try:
                if self.fast_paths.deferred_error:
                    raise self.fast_paths.deferred_error
                taken, forwarded = fast_path.take(event.data) if fast_path.open else (0, b"")
            except Exception as error:
                yield from self._crash(error)
                return
            if taken:
                yield commands.SendData(fast_path.target.conn, forwarded)
                if taken == len(event.data):
                    return
                event = events.DataReceived(event.connection, event.data[taken:])
        yield from joined(super().handle_event(event))

    def _handle_event(self, event: events.Event) -> Commands:
        try:
            yield from self._dispatch(event)
        except Exception as error:
            yield from self._crash(error)

    def _dispatch(self, event: events.Event) -> Commands:
        client, running = self.context.client, len(self.streams)
        if isinstance(event, events.Start):
            server = BoundedHttp2Server if client.alpn == b"h2" else BoundedHttp1Server
            self.connections[client] = server(fork(self.context), self.lifecycle, self.peer)
            yield from self.event_to_child(self.connections[client], event)
        elif isinstance(event, (Expire, Drain, Resume)):
            yield from self.event_to_child(self.connections[client], event)
        elif isinstance(event, BodyTimeout):
            if stream := self.streams.get(event.stream_id):
                yield from self.event_to_child(stream, event)
        elif isinstance(event, ConnectLost):
            opening = [c for c in self.command_sources if isinstance(c, commands.OpenConnection)]
            for command in [one for one in opening if one.connection is event.server]:
                event.server.state = ConnectionState.CLOSED
                yield from super()._handle_event(events.OpenConnectionCompleted(command, "the connection was lost"))
        elif isinstance(event, events.ConnectionEvent) and event.connection not in self.connections:
            # get_connection has already forgotten this connection, because it was closed or half-closed.
            if isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)
            return
        else:
            yield from super()._handle_event(event)
        if client.alpn == b"h2":
            yield from self.event_to_child(self.connections[client], EventHandled())
            if len(self.streams) < running:
                yield from self._close_spare()

    def _close_spare(self) -> Commands:
        """Close free connections to the upstream beyond those that may stay open."""
        most = min(MAX_FREE, self.lifecycle.most_free)
        if len(self.connections) - 1 > most:  # One is the client's.
            taken = self._taken()
            for connection in [one for one in self.connections if self._is_free(one, taken)][most:]:
                yield commands.CloseConnection(connection)

    def _crash(self, error: Exception) -> Commands:
        """Fail closed: answer the client if no answer has begun, and close all connections."""
        self._handle_event = ignore_event  # type: ignore[assignment,method-assign]
        self.fast_paths.by_source.clear()
        answer = self.lifecycle.internal_error(error, next(iter(self.peer.exchanges.values()), None))
        protocol = self.connections.get(self.context.client)
        if isinstance(protocol, BoundedHttp1Server):  # In HTTP/2 it is not known which stream the answer would be for.
            yield from protocol.answer_crash(answer)
        for connection in list(self.connections):
            yield commands.CloseConnection(connection)

    def make_stream(self, stream_id: int) -> Commands:
        context = fork(self.context)
        stream = GateStream(context, stream_id, self.lifecycle, self.peer, self.hooks, self.fast_paths, self.streams)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> Commands:
        """Provide a connection to the upstream: a kept-alive one of this client, or a new one.

        Unlike mitmproxy, do not remember a failed attempt: Ollama may be back for the next request.
        """
        multiplexed = self.context.client.alpn == b"h2"
        taken = self._taken() if multiplexed else set()
        stream = self.command_sources[event]
        assert isinstance(stream, GateStream)
        reuse &= not stream.retried
        for connection in list(self.connections):
            if not event.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                if not multiplexed:
                    self.waiting_for_establishment[connection].append(event)
                    return
            elif not connection.connected:
                # A paused stream may not know yet that its connection is closed: keep it until it does.
                if not any(stream.context.server is connection for stream in self.streams.values()):
                    del self.connections[connection]
            elif reuse and (not multiplexed or connection.alpn == b"h2" or self._is_free(connection, taken)):
                stream.on_reused_connection = True
                del self.command_sources[event]
                yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))
                return
        context = fork(self.context)
        context.server = OllamaServer(address=event.address)
        stack = tunnel.LayerStack()
        if event.tls:
            context.server.sni = self.context.server.sni or event.address[0]
            stack /= tls.ServerTLSLayer(context)
        stack /= Upstream(context, kept=not event.tls)
        self.connections[context.server] = stack[0]
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(stack[0], events.Start())

    def register_connection(self, command: RegisterHttpConnection) -> Commands:
        self.peer.connecting.pop(command.connection, None)  # type: ignore[call-overload]
        yield from super().register_connection(command)

    def _taken(self) -> set[int]:
        """Return the connections that streams have, by Python's id."""
        return {id(stream.context.server) for stream in self.streams.values()}

    def _is_free(self, connection: Connection, taken: set[int]) -> bool:
        """Tell whether a connection of HTTP/1 has answered its last request, and no stream is to send it another."""
        if id(connection) in taken or not connection.connected or connection in self.peer.read_holds:
            return False
        client = http1_of(self.connections.get(connection))
        return client is not None and client.stream_id is None


def fork(context: Context) -> Context:
    """Do as Context.fork, which makes a Server and drops it."""
    forked = Context.__new__(Context)
    forked.client, forked.server, forked.options = context.client, context.server, context.options
    forked.layers = context.layers.copy()
    return forked


def joined(work: Commands) -> Commands:
    """Send in one piece what one event has for a connection, such as the head and the body of a response.

    Each piece costs a call of the system, and with TLS a record; HTTP/2 makes one for each frame.
    """
    first: commands.SendData | None = None
    pieces: list[bytes] = []
    size = 0
    for command in work:
        if (
            isinstance(command, commands.SendData)
            and first
            and command.connection is first.connection
            and size < JOINED
        ):
            pieces.append(command.data)
            size += len(command.data)
            continue
        if first:
            first.data = b"".join(pieces)
            yield first
            first = None
        if isinstance(command, commands.SendData):
            first, pieces, size = command, [command.data], len(command.data)
        else:
            yield command
    if first:
        first.data = b"".join(pieces)
        yield first
