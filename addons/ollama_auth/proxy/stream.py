"""One request and its response: decided on by its head, before its body and before any connection to the upstream.

Rules
1. Only GateStream.make_server_connection opens a connection to the upstream, and it raises without an Admission.
2. Until a request is admitted, what is kept of it is bounded: its head by Bounds, its body by the limits of the key.
3. `finish` of the lifecycle is called once for each exchange, however it ends.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
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
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpResponseHeadersHook, HttpResponseHook

from ..exchange import Admission, Exchange, Refusal, UpstreamRequest, Verdict
from ..http.head import CHUNKED, Head, listed
from ..mitmweb.flows import address_request, refused_flow
from .client_connection import CONNECT_TIMEOUT, BodyTimeout, ClientConnection
from .events import (
    MALFORMED_BODY,
    ClosedBeforeResponse,
    Commands,
    Failure,
    Lifecycle,
    OllamaReserveHook,
    ParsedRequestHeaders,
    Refuse,
    Reservation,
    ignore_event,
)
from .fast_path import FastPaths
from .hook_dispatch import FLOW_HOOKS, FlowHook, HookDispatcher
from .http2 import BoundedHttp2Server
from .transport import hung_up

HELD_BLOCK = 256 * 1024
"""Bytes of a held body that go upstream in one event."""


class GateStream(HttpStream):
    """One request and its response."""

    def __init__(
        self,
        context: Context,
        stream_id: int,
        lifecycle: Lifecycle,
        peer: ClientConnection,
        hooks: HookDispatcher,
        fast_paths: FastPaths,
        running: Mapping[int, HttpStream],
    ) -> None:
        """`running` has the requests of the connection that have not ended."""
        super().__init__(context, stream_id)
        self.lifecycle = lifecycle
        self.peer = peer
        self.hooks = hooks
        self.fast_paths = fast_paths
        self.running = running
        self.admission: Admission | None = None
        self.exchange: Exchange
        self.head: Head
        self.headers: RequestHeaders
        """The event that brought the head."""
        self.on_reused_connection = False
        self.retried = False
        """It is sent once more, on a connection that no request was sent on before."""
        self.continued = False
        """The client waits for no 100 Continue, or has been sent it."""
        self.pending_body: deque[bytearray] = deque()
        """Blocks of a body that is held."""
        self.hooks_idle: bool | None = None
        """No addon would do anything at the hooks of this request. None until its first hook."""

    def handle_event(self, event: events.Event) -> Commands:
        """Handle an event; while body data is queued (for a connection or a hook), read no more from the client."""
        if self._paused and isinstance(event, RequestData):
            self.peer.hold_reading(self.peer.client, self)
        yield from super().handle_event(event)
        if not self._paused or not any(isinstance(queued, RequestData) for queued in self._paused_event_queue):
            self.peer.release_reading(self.peer.client, self)

    def _handle_event(self, event: events.Event) -> Commands:
        if self.client_state is ignore_event:  # The event was queued while a hook ran.
            return
        work = self._body_timed_out() if isinstance(event, BodyTimeout) else super()._handle_event(event)
        yield from self._skip_idle_hooks(work)
        if self.admission and not self.flow.live:
            if self.flow.error and not self.exchange.reason:
                killed = self.flow.error.msg == self.flow.error.KILLED_MESSAGE
                self.exchange.reason = "killed" if killed else "client left"
            self.fast_paths.end(self)
            self.lifecycle.finish(self.exchange, self.peer)
        if self.running.get(self.stream_id) is not self:
            # It has ended. Break its reference cycles, so that it is freed without a garbage collection.
            self.client_state = self.server_state = ignore_event
            self.pending_body.clear()
            self.context.layers.clear()

    def _skip_idle_hooks(self, work: Commands) -> Commands:
        """Run `work`, but answer a hook at which no addon does anything here, without passing it to mitmproxy.

        `yield from` would pass every command up, where a hook pauses the stream and costs a task. So the generator is
        driven by hand: an idle hook gets None, the reply of every hook; all other commands go up, their replies down.
        """
        reply = None
        with suppress(StopIteration):
            while True:
                command = work.send(reply)
                reply = None if isinstance(command, FLOW_HOOKS) and self.is_idle(command) else (yield command)

    def is_idle(self, hook: FlowHook) -> bool:
        """Tell whether no addon would do anything at this hook.

        Decided once per request, so that an addon never sees a response without its request.
        """
        if self.hooks_idle is None:
            self.hooks_idle = self.hooks.request_hooks_idle()
        response = hook.flow.response
        alternatives = isinstance(hook, HttpResponseHeadersHook) and response and "alt-svc" in response.headers
        return self.hooks_idle and not alternatives  # An addon of mitmproxy puts the gateway's port into Alt-Svc.

    def state_wait_for_request_headers(self, event: RequestHeaders) -> Commands:
        self.headers = event
        verdict: Verdict | None
        if isinstance(event, ParsedRequestHeaders):
            self.head, (self.exchange, verdict) = event.head, event.decision
        else:
            self.head = head_of(event)
            self.exchange, verdict = self.lifecycle.authorize(self.head, self.peer)
        self.continued = self.head.version == b"HTTP/1.0" or not listed(self.head.fields, b"expect")
        if isinstance(verdict, UpstreamRequest) and verdict.needs_lease:
            verdict = yield from self._reserve()  # Before the body, so that it counts first.
        if not isinstance(verdict, UpstreamRequest):
            yield from self._apply_verdict(verdict)
        elif event.end_stream:
            yield from self._judge_body()
        else:
            self.client_state = self.state_hold_request_body
            self._await_body()
            yield from self._continue()

    def _reserve(self) -> layer.CommandGenerator[Verdict | None]:
        """Ask the limits, which may take a while; None if the client left meanwhile."""
        self.peer.body_deadlines.pop(self.stream_id, None)
        reservation = Reservation(self.exchange, self.peer)
        yield OllamaReserveHook(reservation)
        if self.abandoned:
            yield from self._abandon()
            return None
        return reservation.verdict or Refusal(
            "error", self.lifecycle.internal_error(PermissionError("no verdict"), self.exchange)
        )

    def _judge_body(self) -> Commands:
        """Decide on a request whose body was read."""
        verdict: Verdict | None = self.lifecycle.authorize_body(self.exchange, self.peer)
        if isinstance(verdict, UpstreamRequest):
            verdict = yield from self._reserve()
        yield from self._apply_verdict(verdict)

    def _body_timed_out(self) -> Commands:
        if self.client_state == self.state_hold_request_body:
            yield from self._apply_verdict(self.lifecycle.body_timed_out(self.exchange))

    def _await_body(self) -> None:
        self.peer.body_deadlines[self.stream_id] = monotonic() + self.lifecycle.settings.body_timeout

    def _apply_verdict(self, verdict: Verdict | None) -> Commands:
        self.peer.body_deadlines.pop(self.stream_id, None)
        if isinstance(verdict, Admission):
            yield from self._start_upstream(verdict)
        elif isinstance(verdict, Refusal):
            yield from self._refuse(verdict)
        elif verdict:
            raise PermissionError("a request that still has to wait was about to be answered")

    def state_hold_request_body(self, event: Any) -> Commands:
        """Keep the body up to the limit of the request: the body that is inspected is the body that is sent."""
        if isinstance(event, RequestEndOfMessage):
            yield from self._decide_body()
        elif isinstance(event, RequestData):
            if refusal := self.lifecycle.hold(self.exchange, event.data):
                self.pending_body.clear()
                yield from self._apply_verdict(refusal)
            else:
                if not self.pending_body or len(self.pending_body[-1]) > HELD_BLOCK:
                    self.pending_body.append(bytearray())
                self.pending_body[-1] += event.data
                self._await_body()

    def _decide_body(self) -> Commands:
        """Decide on a request whose body is here; then send it or refuse it."""
        body, self.pending_body = self.pending_body, deque()
        yield from self._judge_body()
        if self.admission:  # Handle the body as if it arrived now.
            received, self.exchange.bytes_in = self.exchange.bytes_in, 0  # Counted again, if it is sent.
            while body:
                yield from self.client_state(RequestData(self.stream_id, bytes(body.popleft())))
            self.exchange.bytes_in = received
            held = self.exchange.state.held_body
            if held and self.context.server.alpn != b"h2":  # Or it may still wait for Ollama to open its window.
                held.sent = partial(self.peer.flushed, self.context.server)
            yield from self.client_state(RequestEndOfMessage(self.stream_id))

    def _abandon(self) -> Commands:
        """End a request whose client left before anything went upstream."""
        self.client_state = self.server_state = self.state_errored
        self.peer.body_deadlines.pop(self.stream_id, None)
        self.exchange.reason = self.exchange.reason or "client left"
        self.lifecycle.finish(self.exchange, self.peer)
        yield DropStream(self.stream_id)

    def _refuse(self, refusal: Refusal) -> Commands:
        self.exchange.reason, self.exchange.status = refusal.reason, refusal.answer.status
        self.client_state = self.server_state = self.state_errored
        keep_alive = refusal.keep_alive and self.head.body == 0
        yield SendHttp(Refuse(self.stream_id, refusal.answer.to(self.head.method), keep_alive), self.context.client)
        self.lifecycle.finish(self.exchange, self.peer)
        if self.lifecycle.watched():
            flow = refused_flow(self.context, self.headers.request, self.exchange, refusal)
            yield HttpRequestHeadersHook(flow)
            yield HttpResponseHook(flow)
            flow.live = False
        yield DropStream(self.stream_id)

    def _start_upstream(self, admission: Admission) -> Commands:
        self.admission = admission
        self.flow = http.HTTPFlow(self.context.client, self.context.server)
        self.flow.live = True
        self.flow.request = self.headers.request
        self._readdress(self.flow.request, admission)
        self.lifecycle.begin(self.exchange, self.flow)
        yield HttpRequestHeadersHook(self.flow)
        if (yield from self.check_killed(True)):
            return
        self.server_state = self.state_wait_for_response_headers
        if self.headers.end_stream or self.flow.response:
            self.client_state = self.state_consume_request_body
        else:
            yield from self.start_request_stream()

    def _readdress(self, request: http.Request, admission: Admission) -> None:
        """Address the request to the upstream: host and port, target in origin form, the admitted header fields."""
        host = request.host_header
        request.headers.fields = admission.request.fields
        request.data.path = admission.request.target
        if base := self.lifecycle.settings.base_path:
            request.data.path = base + request.data.path
            self.flow.metadata["ollama_base_path"] = base.decode()
        address_request(request, self.context.server)
        if not self.context.options.keep_host_header:
            name = request.data.host
            # mitmproxy's hostport leaves an IPv6 address bare; RFC 3986 section 3.2.2 wants brackets.
            host = url.hostport(request.scheme, f"[{name}]" if ":" in name else name, request.data.port)
        request.host_header = host

    @property
    def abandoned(self) -> bool:
        """Tell whether the client left, or cancelled the request, while the request waited for something."""
        peer, queue = self.peer, self._paused_event_queue
        if peer.closed or any(isinstance(event, RequestProtocolError) for event in queue):
            return True
        return self in peer.read_holds.get(peer.client, ()) and hung_up(peer.handler, peer.client)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Get a connection to the upstream; nothing else does. Raises PermissionError without an admission."""
        if not isinstance(self.admission, Admission):
            raise PermissionError("a request without an admission was about to go upstream")
        if self.abandoned or not (yield from super().make_server_connection()):
            return False
        if self.abandoned:
            yield commands.CloseConnection(self.context.server)
            return False
        return True

    def start_request_stream(self) -> Commands:
        if not (yield from self.make_server_connection()):
            self.client_state = self.state_errored
            return
        yield from self._continue()
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=False), self.context.server)
        self.client_state = self.state_stream_request_body
        limit = self.admission.request.max_body if self.admission else 0
        if limit is None or 0 <= self.head.body <= limit:
            self._start_fast_path(self.flow.request, self.exchange.request_chunk)

    def _continue(self) -> Commands:
        """Send 100 Continue, once, if the client waits for it before it sends the body."""
        if not self.continued:
            self.continued = True
            response = http.Response.make(100)
            response.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, response), self.context.client)

    def _start_fast_path(self, message: http.Message, on_data: Callable[[bytes], bytes]) -> None:
        """Let a body that begins to stream take the fast path, if possible."""
        if self.hooks_idle:  # An addon that sees a request may change it at any time.
            self.fast_paths.start(self, message, on_data)

    def state_stream_request_body(self, event: Any) -> Commands:
        limit = self.admission.request.max_body if self.admission else 0
        if limit is not None and isinstance(event, RequestData) and self.exchange.bytes_in + len(event.data) > limit:
            yield from self._stop("body too large", 413)
        elif isinstance(event, RequestEndOfMessage) and self.head.body not in (CHUNKED, self.exchange.bytes_in):
            yield from self._stop("malformed body", 400)  # HTTP/2 with trailers in place of the rest of the body.
        else:
            yield from super().state_stream_request_body(event)

    def _stop(self, reason: str, status: int) -> Commands:
        """End an admitted request whose body turned out to be over the limit, or not as announced."""
        answer = self.lifecycle.failed(self.exchange, reason, status)
        error = RequestProtocolError(self.stream_id, reason, ErrorCode.REQUEST_TOO_LARGE)
        yield from self.handle_protocol_error(error)
        self.client_state = self.server_state = self.state_errored
        yield SendHttp(Refuse(self.stream_id, answer), self.context.client)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> Commands:
        if not 200 <= event.response.status_code <= 999:  # An upgrade, for which no request asks, or an invalid status.
            yield from self._reject_response()
            return
        yield from super().state_wait_for_response_headers(event)
        if self.server_state == self.state_errored:  # The flow was killed in the hook, or the client left during it.
            cancelled = RequestProtocolError(self.stream_id, "killed", ErrorCode.CANCEL)
            yield SendHttp(cancelled, self.context.server)

    def start_response_stream(self) -> Commands:
        assert self.flow.response
        yield SendHttp(ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client)
        self.server_state = self.state_stream_response_body
        self._start_fast_path(self.flow.response, self.exchange.response_chunk)

    def state_stream_response_body(self, event: events.Event) -> Commands:
        yield from super().state_stream_response_body(event)
        if isinstance(event, ResponseData) and isinstance(self.peer.http_server, BoundedHttp2Server):
            self.peer.http_server.unsent.apply_backpressure(self.stream_id, self.context.server)

    def send_response(self, already_streamed: bool = False) -> Commands:
        answer = None if already_streamed else self.lifecycle.rewrite_response(self.exchange, self.flow)
        if not answer:
            yield from super().send_response(already_streamed)
        early = self.client_state == self.state_stream_request_body
        if answer or (early and self.server_state == self.state_done):
            self.client_state = self.server_state = self.state_errored
            self.flow.live = False
            if early:  # The upstream answered before it had all of the request: it does not want the rest.
                cancelled = RequestProtocolError(self.stream_id, "answered early", ErrorCode.CANCEL)
                yield SendHttp(cancelled, self.context.server)
            yield DropStream(self.stream_id)
            last = Refuse(self.stream_id, answer) if answer else ResponseEndOfMessage(self.stream_id)
            yield SendHttp(last, self.context.client)

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """Treat a response with ambiguous framing as an error of the upstream. Requests are checked in http/head.py."""
        if request:
            return False
        assert self.flow.response
        try:
            validate_headers(self.flow.response)
        except ValueError:
            yield from self._reject_response()
            return True
        self.lifecycle.response_started(self.exchange, self.flow)
        return False

    def _reject_response(self) -> Commands:
        """Close the connection to an upstream that sends no valid HTTP, and answer its client."""
        yield commands.CloseConnection(self.context.server)
        error = ResponseProtocolError(self.stream_id, "malformed", ErrorCode.RESPONSE_VALIDATION_FAILED)
        yield from self.handle_protocol_error(error)
        self.client_state = self.state_errored

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        if self.admission is None:
            yield from self._abandon()
            return
        # It has no body, and sending it twice does no harm (RFC 9110 section 9.2.2).
        resendable = self.headers.end_stream and self.head.method in (b"GET", b"HEAD", b"OPTIONS")
        reused = isinstance(event, ClosedBeforeResponse) and self.on_reused_connection and not self.retried
        if reused and resendable and not self.flow.response:
            yield from self._retry()
            return
        if isinstance(event, ResponseProtocolError):
            reason, status = ("client left", 0) if self.abandoned else describe_failure(event)
            answer = self.lifecycle.failed(self.exchange, reason, status).to(self.flow.request.data.method)
            event = Failure(self.stream_id, event.message, event.code, answer=answer)
        elif not self.exchange.reason:
            malformed = event.code is ErrorCode.GENERIC_CLIENT_ERROR and event.message == MALFORMED_BODY
            self.lifecycle.failed(self.exchange, *(("malformed body", 400) if malformed else ("client left", 0)))
        yield from super().handle_protocol_error(event)

    def _retry(self) -> Commands:
        """Send the request once more, on another connection: the kept-alive one turned out to be closed."""
        self.retried = True  # Others that are kept may have been closed at the same time.
        if (yield from self.make_server_connection()):
            yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=True), self.context.server)
            yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)


def head_of(event: RequestHeaders) -> Head:
    """Return the head of an HTTP/2 request, as parse_head does for HTTP/1."""
    request = event.request
    length = request.headers.get("content-length", "")
    body = 0 if event.end_stream else int(length) if length.isascii() and length.isdigit() else CHUNKED
    return Head(
        request.data.method, request.data.path, request.data.http_version, request.headers.fields, body, close=False
    )


def describe_failure(event: ResponseProtocolError) -> tuple[str, int]:
    """Return (reason for the log, status for the client) of an error with the upstream; status 0 means no answer."""
    if event.message == "client disconnected":  # mitmproxy's error of a connection whose client has left.
        return "client left", 0
    if event.code is ErrorCode.CONNECT_FAILED:
        return ("upstream timeout", 504) if event.message == CONNECT_TIMEOUT else ("upstream unreachable", 503)
    if event.code is ErrorCode.KILL:
        return "killed", 502
    return "upstream broken", 502
