"""mitmproxy's HTTP layers, bounded: the decision falls on the head of a request, before its body and before any
connection upstream; what is refused is answered at once and read no further.

One GateLayer serves a client connection, through a BoundedHttp1Server or a BoundedHttp2Server. Each request is a
GateStream. A BoundedHttp1Client (or mitmproxy's own HTTP/2 client) talks to the upstream. What these lean on inside
mitmproxy is pinned by tests/unit/proxy/test_internals.py.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.net.http import url
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpClient,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)
from mitmproxy.proxy.layers.http._http2 import Http2Client

from ..auth.forwarding import FORWARDED
from ..auth.redaction import KeyLookup, mask_path
from ..exchange import Admission, Exchange, Refusal, UpstreamRequest
from ..http.head import CHUNKED, Head, values
from ..mitmweb.flows import label_refused
from .connections import CONNECT_TIMEOUT, ClientConnection, Drain, Expire, Resume
from .events import (
    MALFORMED_BODY,
    Commands,
    Dead,
    Failure,
    Lifecycle,
    OllamaReserveHook,
    ParsedRequestHeaders,
    Refuse,
    Reservation,
)
from .fast_path import LayerFastPath, SocketFastPath, splice
from .hook_dispatch import FLOW_HOOKS, FlowHook, HookDispatcher
from .http1 import BoundedHttp1Client, BoundedHttp1Server
from .http2 import BoundedHttp2Server, Settle
from .transport import BulkReader

CLIENT_DISCONNECTED = "client disconnected"
"""How mitmproxy words the end of a connection upstream whose client has left."""


class GateLayer(HttpLayer):
    """All HTTP of one client connection."""

    def __init__(
        self, context: Context, lifecycle: Lifecycle, peer: ClientConnection, audience: HookDispatcher
    ) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.lifecycle = lifecycle
        self.peer = peer
        self.audience = audience
        self.uses: dict[Connection, int] = {}
        """How many requests each connection upstream has been given."""
        self.splices: dict[Connection, LayerFastPath] = {}
        """The bodies that take the short way, by the connection they come from."""
        self.turn = 0
        """Counts what these layers were handed: between two of them they stay as they are."""
        self.fault: Exception | None = None
        """What was raised where it could not be handled."""

    def handle_event(self, event: events.Event) -> Commands:
        self.turn += 1
        left: events.Event | None = event
        if isinstance(event, events.DataReceived) and event.connection in self.splices:
            left = yield from self._relay(event, self.splices[event.connection])
        if left:
            yield from super().handle_event(left)

    def _relay(self, event: events.DataReceived, splice: LayerFastPath) -> layer.CommandGenerator[events.Event | None]:
        """Send on what may be sent as it is; what is left of the event."""
        try:
            if self.fault:
                raise self.fault
            taken = splice.take(event.data) if splice.open else 0
        except Exception as error:
            yield from self._crash(error)
            return None
        if not taken:
            return event
        yield commands.SendData(splice.target, event.data[:taken])
        return events.DataReceived(event.connection, event.data[taken:]) if taken < len(event.data) else None

    def _handle_event(self, event: events.Event) -> Commands:
        try:
            yield from self._dispatch(event)
        except Exception as error:
            yield from self._crash(error)

    def _dispatch(self, event: events.Event) -> Commands:
        client = self.context.client
        if isinstance(event, events.Start):
            edge = BoundedHttp2Server if client.alpn == b"h2" else BoundedHttp1Server
            self.connections[client] = edge(self.context.fork(), self.lifecycle, self.peer)
            yield from self.event_to_child(self.connections[client], event)
        elif isinstance(event, (Expire, Drain, Resume)):
            yield from self.event_to_child(self.connections[client], event)
        elif isinstance(event, events.ConnectionEvent) and event.connection not in self.connections:
            # Of a connection that was dropped from the books when it was found closed, or half of it was.
            if isinstance(event, events.ConnectionClosed):
                yield commands.CloseConnection(event.connection)
            return
        else:
            yield from super()._handle_event(event)
        if client.alpn == b"h2":
            yield from self.event_to_child(self.connections[client], Settle())

    def _crash(self, error: Exception) -> Commands:
        """Fail closed: whatever raised, the client gets an answer if none has begun, and the connection ends."""
        self._handle_event = self._dead  # type: ignore[assignment,method-assign]
        self.splices.clear()
        answer = self.lifecycle.internal_error(error)
        protocol = self.connections.get(self.context.client)
        if isinstance(protocol, (BoundedHttp1Server, BoundedHttp2Server)):
            yield from protocol.last_words(answer)
        for connection in list(self.connections):
            yield commands.CloseConnection(connection)

    def _dead(self, _: events.Event) -> Commands:
        yield from ()

    def join(self, stream: "GateStream", message: http.Message, content: Callable[[bytes], bytes]) -> None:
        """A body of a stream begins to pass: let it take the short way if it can."""
        if not stream.unheard:  # Who hears of a request may change it at any time.
            return
        client, server = self.context.client, stream.context.server
        upstream = self.connections.get(server)
        inner = upstream.child_layer if isinstance(upstream, Upstream) else None  # Not so in TLS.
        ends = [(client, self.connections[client]), (server, inner)]
        (conn, source), (_, target) = ends if isinstance(message, http.Request) else reversed(ends)
        if found := splice(source, target, stream, message, content):
            self.splices[conn] = found
            # Not before: what strangers send is kept in small measures.
            reader = BulkReader.take_over(self.peer.handler, conn)
            transport = self.peer.transport(found.target)
            if reader and transport and not client.tls:
                reader.ahead = SocketFastPath(found, self, self.peer, transport)

    @property
    def paused(self) -> bool:
        """These wait for something, and what comes meanwhile is queued."""
        return self._paused is not None

    def splice_from(self, source: Connection) -> LayerFastPath | None:
        """The body from there, if it takes the short way."""
        return self.splices.get(source)

    def part(self, stream: "GateStream") -> None:
        """A stream has ended."""
        for conn in (self.context.client, stream.context.server):
            if conn in self.splices and self.splices[conn].stream is stream:
                del self.splices[conn]
                if reader := BulkReader.take_over(self.peer.handler, conn):
                    reader.ahead = None

    def make_stream(self, stream_id: int) -> Commands:
        self.streams[stream_id] = GateStream(self.context.fork(), stream_id, self)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> Commands:
        """A connection to the one upstream: a kept-alive one of this client, or a new one.

        Unlike mitmproxy's, a failed attempt is not remembered: Ollama may be back for the next request.
        """
        one_request_each = self.context.client.alpn == b"h2"
        for connection in list(self.connections):
            if not event.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                if not one_request_each:
                    self.waiting_for_establishment[connection].append(event)
                    return
            elif not connection.connected:
                # A stream that waits for something may not have heard yet that its connection is gone.
                if not any(stream.context.server is connection for stream in self.streams.values()):
                    del self.connections[connection]
                    self.uses.pop(connection, None)
            elif reuse and not (one_request_each and connection.alpn != b"h2"):
                stream = self.command_sources.pop(event)
                yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))
                return
        context = self.context.fork()
        context.server = Server(address=event.address)
        stack = tunnel.LayerStack()
        if event.tls:
            context.server.sni = self.context.server.sni or event.address[0]
            stack /= tls.ServerTLSLayer(context)
        stack /= Upstream(context)
        self.connections[context.server] = stack[0]
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(stack[0], events.Start())


class GateStream(HttpStream):
    """One request and its response."""

    def __init__(self, context: Context, stream_id: int, gate_layer: GateLayer) -> None:
        super().__init__(context, stream_id)
        self.parent = gate_layer
        self.lifecycle = gate_layer.lifecycle
        self.admission: Admission | None = None
        self.exchange: Exchange
        self.length = CHUNKED
        """Bytes of body that the head of the request announced."""
        self.repeatable = False
        """It has no body, and sending it twice does no harm (RFC 9110 section 9.2.2)."""
        self.wants_continue = self.continued = False
        self.held: tuple[RequestHeaders, Head]
        self.held_body = bytearray()
        self.retriable = False
        self.unheard: bool | None = None

    def handle_event(self, event: events.Event) -> Commands:
        """While this waits for a connection or a hook, the body that comes is queued: then the client has to wait."""
        peer = self.parent.peer
        if self._paused and isinstance(event, RequestData):
            peer.hold(peer.client, self)
        yield from super().handle_event(event)
        if not self._paused:
            peer.release(peer.client, self)

    def _handle_event(self, event: events.Event) -> Commands:
        if self.client_state is over:  # It was queued while a hook was waited for.
            return
        yield from self._without_silent_hooks(super()._handle_event(event))
        if self.admission and not self.flow.live:
            if self.flow.error and not self.exchange.reason:
                killed = self.flow.error.msg == self.flow.error.KILLED_MESSAGE
                self.exchange.reason = "killed" if killed else "client left"
            self.parent.part(self)
            self.lifecycle.finish(self.exchange, self.parent.peer)
        if self.parent.streams.get(self.stream_id) is not self:
            self._let_go()

    def _let_go(self) -> None:
        """It is over and out of the books: hold nothing that holds this, or it stays until garbage is looked for."""
        self.client_state = self.server_state = over
        self.held_body = bytearray()
        self.context.layers.clear()

    def _without_silent_hooks(self, work: Commands) -> Commands:
        """A hook at which nobody does anything is over at once."""
        reply = None
        with suppress(StopIteration):
            while True:
                command = work.send(reply)
                reply = None if isinstance(command, FLOW_HOOKS) and self.is_silent(command) else (yield command)

    def is_silent(self, hook: FlowHook) -> bool:
        """Nobody would do anything at this hook. Decided once a request: who hears its begin hears its end."""
        if self.unheard is None:
            self.unheard = self.parent.audience.silent()
        response = hook.flow.response
        alternatives = isinstance(hook, HttpResponseHeadersHook) and response and "alt-svc" in response.headers
        return self.unheard and not alternatives  # mitmproxy puts the port of the gate into Alt-Svc.

    def state_wait_for_request_headers(self, event: RequestHeaders) -> Commands:
        head = event.head if isinstance(event, ParsedRequestHeaders) and event.head else head_of(event)
        verdict_given = event.verdict_given if isinstance(event, ParsedRequestHeaders) else None
        self.exchange, verdict = verdict_given or self.lifecycle.authorize(head, self.parent.peer)
        if isinstance(verdict, UpstreamRequest):
            yield from self._hold(event, head, verdict)
        else:
            yield from self._follow(verdict, event, head)

    def _follow(self, verdict: Admission | Refusal, event: RequestHeaders, head: Head) -> Commands:
        if isinstance(verdict, Admission):
            self.admission = verdict
            yield from self._go(event, head, verdict)
        else:
            self.exchange.reason, self.exchange.status = verdict.reason, verdict.answer.status
            yield from self._refuse(event, head, verdict)

    def _hold(self, event: RequestHeaders, head: Head, upstream_request: UpstreamRequest) -> Commands:
        """Nothing goes upstream yet: the key may not use every model, or may do only so much."""
        self.held = event, head
        self.held_body = bytearray()
        if not upstream_request.needs_body or event.end_stream:
            yield from self._decide()
            return
        self.client_state = self.state_hold_request_body
        if expects_continue(head):
            yield from self._continue()

    def state_hold_request_body(self, event: Any) -> Commands:
        """The body that is verdict_given is the body that is sent: kept whole, up to a bound, until it is here."""
        upstream_request = self.exchange.upstream_request
        if isinstance(event, RequestEndOfMessage):
            yield from self._decide()
        elif isinstance(event, RequestData):
            self.exchange.bytes_in += len(event.data)
            if (
                upstream_request
                and upstream_request.max_body is not None
                and self.exchange.bytes_in > upstream_request.max_body
            ):
                answer = self.lifecycle.failed(self.exchange, "body too large", 413)
                yield from self._follow(Refusal("body too large", answer), *self.held)
            else:
                self.held_body += event.data

    def _decide(self) -> Commands:
        """The body is here, or none is needed: judge it, wait for a turn, and go or not."""
        whole = self.client_state == self.state_hold_request_body
        verdict = self.lifecycle.authorize_body(self.exchange, bytes(self.held_body), self.parent.peer)
        if isinstance(verdict, UpstreamRequest):
            reservation = Reservation(self.exchange, self.parent.peer)
            yield OllamaReserveHook(reservation)
            verdict = reservation.verdict or Refusal(
                "error", self.lifecycle.internal_error(PermissionError("no verdict"))
            )
        if self.abandoned:
            self._leave()
            return
        body, self.held_body = self.exchange.amended or bytes(self.held_body), bytearray()
        self.exchange.bytes_in = 0  # Counted again as it goes upstream.
        yield from self._follow(verdict, *self.held)
        if whole and self.admission:
            if body:
                yield from self.client_state(RequestData(self.stream_id, body))
            yield from self.client_state(RequestEndOfMessage(self.stream_id))
        self.exchange.amended = None

    def _leave(self) -> None:
        """The client has left before anything went upstream."""
        self.client_state = self.server_state = self.state_errored
        self.exchange.reason = self.exchange.reason or "client left"
        self.lifecycle.finish(self.exchange, self.parent.peer)
        self.parent.streams.pop(self.stream_id, None)

    def _refuse(self, event: RequestHeaders, head: Head, refusal: Refusal) -> Commands:
        self.client_state = self.server_state = self.state_errored
        yield SendHttp(Refuse(self.stream_id, refusal.answer.to(head.method)), self.context.client)
        self.lifecycle.finish(self.exchange, self.parent.peer)
        if self.lifecycle.watched():
            flow = refused_flow(self.context, event.request, head, self.exchange, refusal, self.lifecycle.find_key)
            yield HttpRequestHeadersHook(flow)
            yield HttpResponseHook(flow)
            flow.live = False
        yield DropStream(self.stream_id)

    def _go(self, event: RequestHeaders, head: Head, admission: Admission) -> Commands:
        self.flow = http.HTTPFlow(self.context.client, self.context.server)
        self.flow.live = True
        self.flow.request = request = event.request
        self._readdress(request, admission)
        self.length = head.body
        if self.exchange.amended is not None:
            self.length = len(self.exchange.amended)
            request.headers["content-length"] = str(self.length)
        self.repeatable = event.end_stream and head.method in (b"GET", b"HEAD", b"OPTIONS")
        self.wants_continue = expects_continue(head) and not self.continued
        self.lifecycle.begin(self.exchange, self.flow)
        yield HttpRequestHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        self.server_state = self.state_wait_for_response_headers
        if event.end_stream or self.flow.response:
            self.client_state = self.state_consume_request_body
        else:
            yield from self.start_request_stream()

    def _readdress(self, request: http.Request, admission: Admission) -> None:
        """Make it a request to the upstream: its address, its name, origin form, and the headers that were admitted."""
        host = request.host_header
        request.headers.fields = admission.request.fields
        request.data.path = admission.request.target
        request.data.authority = b""
        server = self.context.server
        assert server.address
        request.data.host, request.data.port = server.address[0], server.address[1]
        request.scheme = "https" if server.tls else "http"
        if not self.context.options.keep_host_header:
            name, port = server.address[0], server.address[1]
            # mitmproxy's hostport leaves an IPv6 address bare; RFC 3986 section 3.2.2 wants brackets.
            host = url.hostport(request.scheme, f"[{name}]" if ":" in name else name, port)
        request.host_header = host

    @property
    def abandoned(self) -> bool:
        """The client has left, or cancelled this, while it waited for something."""
        queue = self._paused_event_queue
        return self.parent.peer.gone or any(isinstance(event, RequestProtocolError) for event in queue)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """The only way upstream, and nobody goes it without an admission."""
        if not isinstance(self.admission, Admission):
            raise PermissionError("a request without an admission was about to go upstream")
        if self.abandoned or not (yield from super().make_server_connection()):
            return False
        if self.abandoned:
            yield commands.CloseConnection(self.context.server)
            return False
        self.retriable = bool(self.parent.uses.get(self.context.server))
        self.parent.uses[self.context.server] = self.parent.uses.get(self.context.server, 0) + 1
        return True

    def start_request_stream(self) -> Commands:
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        if self.wants_continue:
            yield from self._continue()
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=False), self.context.server)
        self.client_state = self.state_stream_request_body
        limit = self.admission.request.max_body if self.admission else 0
        if limit is None or 0 <= self.length <= limit:
            self.parent.join(self, self.flow.request, self.exchange.request_chunk)

    def _continue(self) -> Commands:
        self.continued = True
        go_on = http.Response.make(100)
        go_on.headers.clear()
        yield SendHttp(ResponseHeaders(self.stream_id, go_on), self.context.client)

    def state_stream_request_body(self, event: Any) -> Commands:
        limit = self.admission.request.max_body if self.admission else 0
        limit = None if self.exchange.amended else limit  # What the client sent of it was within the limit.
        if limit is not None and isinstance(event, RequestData) and self.exchange.bytes_in + len(event.data) > limit:
            yield from self._stop("body too large", 413)
        elif isinstance(event, RequestEndOfMessage) and self.length not in (CHUNKED, self.exchange.bytes_in):
            yield from self._stop("malformed body", 400)  # HTTP/2 with trailers in place of what was announced.
        else:
            yield from super().state_stream_request_body(event)

    def _stop(self, reason: str, status: int) -> Commands:
        """The body turned out to be what nobody could know before: over the limit, or not as announced."""
        answer = self.lifecycle.failed(self.exchange, reason, status)
        error = RequestProtocolError(self.stream_id, reason, ErrorCode.REQUEST_TOO_LARGE)
        yield from self.handle_protocol_error(error)
        self.client_state = self.server_state = self.state_errored
        yield SendHttp(Refuse(self.stream_id, answer), self.context.client)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> Commands:
        if not 200 <= event.response.status_code <= 999:  # An upgrade that nobody asked for, or what is no status.
            yield commands.CloseConnection(self.context.server)
            error = ResponseProtocolError(self.stream_id, "no status", ErrorCode.RESPONSE_VALIDATION_FAILED)
            yield from self.handle_protocol_error(error)
            self.client_state = self.state_errored
            return
        yield from super().state_wait_for_response_headers(event)
        if self.server_state == self.state_errored:  # Killed in the hook, or the client left during it.
            gone = RequestProtocolError(self.stream_id, "killed", ErrorCode.CANCEL)
            yield SendHttp(gone, self.context.server)

    def start_response_stream(self) -> Commands:
        assert self.flow.response
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client)
        self.server_state = self.state_stream_response_body
        self.parent.join(self, self.flow.response, self.exchange.response_chunk)

    def state_stream_response_body(self, event: events.Event) -> Commands:
        yield from super().state_stream_response_body(event)
        if isinstance(event, ResponseData) and self.parent.peer.protocol:
            self.parent.peer.protocol.throttle(self.stream_id, self.context.server)

    def send_response(self, already_streamed: bool = False) -> Commands:
        if not already_streamed and (answer := self.lifecycle.rewrite_response(self.exchange, self.flow)):
            self.client_state = self.server_state = self.state_errored
            self.flow.live = False
            yield SendHttp(Refuse(self.stream_id, answer), self.context.client)
            return
        yield from super().send_response(already_streamed)
        if self.server_state == self.state_done and self.client_state == self.state_stream_request_body:
            # Answered before all of the request was sent: the answer is whole, and nobody wants the rest.
            self.client_state = self.state_errored
            self.flow.live = False
            enough = RequestProtocolError(self.stream_id, "answered early", ErrorCode.CANCEL)
            yield SendHttp(enough, self.context.server)
            yield DropStream(self.stream_id)
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """Requests were checked by `head`; a response that could be read in two ways is an error of the upstream."""
        if request:
            return False
        assert self.flow.response
        try:
            validate_headers(self.flow.response)
        except ValueError:
            yield commands.CloseConnection(self.flow.server_conn)
            error = ResponseProtocolError(self.stream_id, "malformed", ErrorCode.RESPONSE_VALIDATION_FAILED)
            yield from self.handle_protocol_error(error)
            self.client_state = self.state_errored
            return True
        self.lifecycle.response_started(self.exchange, self.flow)
        return False

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        if self.admission is None:
            self._leave()
            return
        if isinstance(event, Dead) and self.retriable and self.repeatable and not self.flow.response:
            yield from self._retry()
            return
        if isinstance(event, ResponseProtocolError):
            reason, status = ("client left", 0) if self.abandoned else trouble(event)
            answer = self.lifecycle.failed(self.exchange, reason, status)
            event = Failure(event, answer.to(self.flow.request.data.method))
        elif not self.exchange.reason:
            malformed = event.code is ErrorCode.GENERIC_CLIENT_ERROR and event.message == MALFORMED_BODY
            self.lifecycle.failed(
                self.exchange, "malformed body" if malformed else "client left", 400 if malformed else 0
            )
        yield from super().handle_protocol_error(event)

    def _retry(self) -> Commands:
        """A kept-alive connection proved dead: once more, on another one."""
        self.parent.connections.pop(self.context.server, None)
        if (yield from self.make_server_connection()):
            self.retriable = False
            yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=True), self.context.server)
            yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)


class Upstream(HttpClient):
    """mitmproxy's HttpClient with our HTTP/1 in it."""

    def _handle_event(self, event: events.Event) -> Commands:
        error = None if self.context.server.connected else (yield commands.OpenConnection(self.context.server))
        if not error:
            http2 = self.context.server.alpn == b"h2"
            self.child_layer = Http2Client(self.context) if http2 else BoundedHttp1Client(self.context)
            self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
            yield from self._handle_event(event)
        yield RegisterHttpConnection(self.context.server, error)


def over(_: events.Event) -> Commands:
    """The state of a stream that gets no more events."""
    yield from ()


def expects_continue(head: Head) -> bool:
    """The client waits for 100 Continue before it sends the body."""
    return head.version != b"HTTP/1.0" and bool(values(head.fields, b"expect"))


def head_of(event: RequestHeaders) -> Head:
    """The head of an HTTP/2 request."""
    request = event.request
    length = request.headers.get("content-length", "")
    body = 0 if event.end_stream else int(length) if length.isascii() and length.isdigit() else CHUNKED
    return Head(
        request.data.method, request.data.path, request.data.http_version, request.headers.fields, body, close=False
    )


def refused_flow(
    context: Context, request: http.Request, head: Head, exchange: Exchange, refusal: Refusal, known: KeyLookup | None
) -> http.HTTPFlow:
    """A refused request as mitmweb and files of flows show it: without the headers that may hold a credential."""
    flow = http.HTTPFlow(context.client, context.server)
    flow.request = request
    request.headers.fields = tuple((n, mask_path(v, known)) for n, v in head.fields if n.lower() in FORWARDED)
    request.data.path = quote(exchange.path or b"/", safe="/:@!$&'()*+,;=~").encode()
    request.data.method = exchange.method.encode("ascii", "replace")
    request.data.content = b""
    request.data.authority = b""  # It is what a stranger sent.
    address = context.server.address
    if address:
        request.data.host, request.data.port = address[0], address[1]
    request.scheme = "https" if context.server.tls else "http"
    answer = refusal.answer
    flow.response = http.Response.make(answer.status, answer.body, http.Headers(answer.fields))
    label_refused(flow, exchange, refusal.reason)
    flow.live = True
    return flow


def trouble(event: ResponseProtocolError) -> tuple[str, int]:
    """(reason for the log, status for the client) of an error on the way to the upstream."""
    if event.message == CLIENT_DISCONNECTED:
        return "client left", 0
    if event.code is ErrorCode.CONNECT_FAILED:
        return ("upstream timeout", 504) if event.message == CONNECT_TIMEOUT else ("upstream unreachable", 503)
    if event.code is ErrorCode.KILL:
        return "killed", 502
    return "upstream broken", 502
