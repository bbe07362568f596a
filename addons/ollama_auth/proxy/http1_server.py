"""HTTP/1 with the client: mitmproxy's, with bounds, strict heads and a lingering close."""

import time

from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server

from ..exchange import Exchange, Refusal
from ..http.head import CHUNKED, Head, HeadError, late, parse_head, take_head
from ..http.responses import Answer, error, render
from .client_connection import ClientConnection, Drain, Expire, Resume
from .events import MALFORMED_BODY, Commands, Failure, Lifecycle, ParsedRequestHeaders, Refuse
from .http1_messages import Body, closes, request_of

LINGER_SECONDS = 2.0
LINGER_MOST_SECONDS = 6.0
LINGER_BYTES = 1024 * 1024
"""How long to read and drop what comes after the last answer of a connection, since the client sent something and in
all, and how many bytes: if data were left unread at the end, the kernel would reset the connection, and the client
might lose the answer (RFC 9112 section 9.6)."""
LINGER_UNREAD_SECONDS = 1.0
"""How long to wait then, and read nothing: the client can't send more, but has time to read the answer."""
MAX_PIPELINED = 64 * 1024
"""Bytes kept of further requests that arrive before the running one is answered."""


class BoundedHttp1Server(Body, Http1Server):
    """HTTP/1 with the client."""

    def __init__(self, context: Context, lifecycle: Lifecycle, peer: ClientConnection) -> None:
        super().__init__(context)
        self.lifecycle = lifecycle
        self.peer = peer
        self.head: Head | None = None
        self.closing = False
        """The connection ends with the response to the current request."""
        self.resuming = False
        """A Resume event is on its way; until then what arrives is only added to the buffer."""
        self.linger_budget = LINGER_BYTES
        self.linger_until = 0.0
        self.trailers: http.Headers | None = None
        self.response_size: int | None = None
        """Bytes of body that the response head announced; None: chunked, -1: until the connection ends."""
        peer.http_server = self

    @property
    def idle(self) -> bool:
        """Tell whether no request is running."""
        return self.state in (self.start, self.read_headers, self.linger, self.done)

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, Expire):
            yield from self.expire()
        elif isinstance(event, Drain):
            self.closing = True
            if self.state == self.read_headers and not self.buf:
                yield from self.close()
        elif isinstance(event, Resume):
            yield from self.resume()
        elif self.state in (self.linger, self.done):
            yield from self.state(event)
        elif isinstance(event, events.DataReceived) and (self.resuming or self.state == self.wait):
            if self.state == self.wait and len(self.buf) + len(event.data) > MAX_PIPELINED:
                self.closing = True  # Once something was dropped, the rest can't be parsed.
            else:
                self.buf += event.data
        else:
            yield from super()._handle_event(event)

    # Reading a head.

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.ConnectionClosed):
            yield from self.close()
            return
        bounds = self.lifecycle.settings.bounds
        try:
            raw = take_head(self.buf, bounds)
            if raw is None:
                if self.buf and self.peer.deadline is not None and self.head:
                    self.head = None  # The first bytes of a further request: its head has a deadline of its own.
                    self.peer.deadline = time.monotonic() + self.lifecycle.settings.head_timeout
                return
            head = parse_head(raw, bounds)
        except HeadError as error:
            self.head = None
            yield from self.send_final_answer(self.lifecycle.refuse_malformed(error, self.peer))
            return
        yield from self.handle_head(head)

    def handle_head(self, head: Head) -> Commands:
        """Decide on a request head; unless it is refused, create a stream for it and read its body."""
        self.head = head
        self.closing = head.close or self.lifecycle.draining
        self.peer.deadline, self.peer.expiry_sent = None, False
        exchange, verdict = decision = self.lifecycle.authorize(head, self.peer)
        if isinstance(verdict, Refusal) and not self.lifecycle.watched():
            yield from self.refuse(verdict.answer.to(head.method), verdict.keep_alive and head.body == 0)
            self.lifecycle.finish(exchange, self.peer)
            return
        self.request = request_of(head)
        stream_id = self.stream_id
        yield ReceiveHttp(ParsedRequestHeaders(stream_id, self.request, head.body == 0, head=head, decision=decision))
        if self.state == self.read_headers and self.stream_id == stream_id:  # The request has not been refused.
            self.expect_body(None if head.body == CHUNKED else head.body)
            yield from self.state(events.DataReceived(self.conn, b""))

    def broken_body(self, event: events.Event) -> Commands:
        if isinstance(event, events.ConnectionClosed):
            yield from super().broken_body(event)
            return
        running = next(iter(self.peer.exchanges.values()), None) or Exchange(self.peer.address)
        answer = error(running.id, 400, "the chunked framing of the body is broken", running.dialect)
        yield ReceiveHttp(RequestProtocolError(self.stream_id, MALFORMED_BODY, ErrorCode.GENERIC_CLIENT_ERROR))
        yield from self.close() if self.response else self.send_final_answer(answer)

    # Answering.

    def send(self, event: HttpEvent) -> Commands:
        if event.stream_id != self.stream_id:
            return  # It belongs to an earlier request, which has been answered.
        if isinstance(event, (Refuse, Failure)) and not self.response:
            yield from self.refuse(event.answer, event.keep_alive if isinstance(event, Refuse) else self.request_done)
        elif isinstance(event, (Refuse, ResponseProtocolError)):
            if self.response and self.response_size == -1:
                self.peer.reset()  # An orderly end of the connection would look like the end of the body.
            yield from self.close()
        elif isinstance(event, ResponseHeaders):
            yield from self.send_head(event)
        elif isinstance(event, ResponseTrailers):
            self.trailers = event.trailers
        elif isinstance(event, ResponseEndOfMessage):
            if self.response_size is None:
                yield commands.SendData(self.conn, b"0\r\n" + bytes(self.trailers or b"") + b"\r\n")
            yield from self.mark_done(response=True)
        else:
            yield from super().send(event)

    def send_head(self, event: ResponseHeaders) -> Commands:
        if event.response.status_code == 100:
            yield commands.SendData(self.conn, b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        response = event.response
        if self.head and self.head.version == b"HTTP/1.0" and "transfer-encoding" in response.headers:
            response = response.copy()  # HTTP/1.0 has no chunks: the end of the connection ends the body.
            del response.headers["transfer-encoding"]
        if self.closing:
            response = response.copy()
            response.headers["Connection"] = "close"
        assert self.request
        self.response_size = http1.expected_http_body_size(self.request, response)
        yield from super().send(ResponseHeaders(event.stream_id, response, event.end_stream))

    def mark_done(self, *, request: bool = False, response: bool = False) -> Commands:
        self.request_done |= request
        self.response_done |= response
        if self.state in (self.linger, self.done):
            return  # The request was refused after its body had been read.
        if not self.response_done:
            self.state = self.wait
            if len(self.buf) > MAX_PIPELINED:
                self.closing = True
                self.buf = ReceiveBuffer()
            return
        assert self.response
        close = self.closing or self.response_size == -1
        if not self.request_done:
            yield from self.end_connection()
        elif close or closes(self.response):
            yield from self.end_connection(read_on=bool(self.buf))
        else:
            self.next_request()

    def next_request(self) -> None:
        self.request_done = self.response_done = False
        self.request = self.response = self.trailers = None
        self.stream_id += 2
        self.state = self.read_headers
        self.peer.await_request(self.lifecycle.settings.head_timeout, self.lifecycle.settings.idle_timeout)
        if self.buf:
            # Not now: the layer of the upstream may still be handling the event that ended the response. Read no more
            # meanwhile, so that a client that sends faster than it is answered fills its own buffers, and not ours.
            self.resuming = True
            self.peer.hold_reading(self.peer.client, self)
            self.peer.send_event(Resume())

    def resume(self) -> Commands:
        """Read the next request from what has already arrived, one per event."""
        self.resuming = False
        if self.state == self.read_headers and self.buf:
            yield from self.state(events.DataReceived(self.conn, b""))
        if not self.resuming:
            self.peer.release_reading(self.peer.client, self)

    def refuse(self, answer: Answer, keep_alive: bool) -> Commands:
        """Send an answer of our own; then close the connection, or go on if all of the request was read."""
        if keep_alive and not self.closing:
            yield commands.SendData(self.conn, render(answer, close=False))
            self.next_request()
        else:
            yield from self.send_final_answer(answer)

    # Ending.

    def send_final_answer(self, answer: Answer) -> Commands:
        """Send an answer of our own, and close the connection."""
        yield commands.SendData(self.conn, render(answer))
        unread = bool(self.buf) or self.head is None or (self.head.body != 0 and not self.request_done)
        yield from self.end_connection(read_on=unread)

    def answer_crash(self, answer: Answer) -> Commands:
        """Send the answer to an internal error, if no other has begun. The caller closes the connection."""
        if not self.response and self.state not in (self.linger, self.done):
            yield commands.SendData(self.conn, render(answer))
        self.state = self.done

    def end_connection(self, *, read_on: bool = True) -> Commands:
        """Close the connection; if the client may still be sending, close our half first and linger."""
        self.buf = ReceiveBuffer()
        if not read_on:
            yield from self.close()
            return
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        self.state = self.linger
        self.linger_until = time.monotonic() + LINGER_MOST_SECONDS
        self.linger_on(LINGER_SECONDS)

    def linger(self, event: events.Event) -> Commands:
        """Drop what still arrives, up to the budget, until the client closes."""
        if isinstance(event, events.ConnectionClosed):
            yield from self.close()
        elif isinstance(event, events.DataReceived) and self.linger_budget >= 0:
            self.linger_budget -= len(event.data)
            if self.linger_budget < 0:
                self.peer.hold_reading(self.peer.client, self)
            self.linger_on(LINGER_SECONDS if self.linger_budget >= 0 else LINGER_UNREAD_SECONDS)

    def linger_on(self, seconds: float) -> None:
        self.peer.deadline = min(self.linger_until, time.monotonic() + seconds)

    def done(self, _: events.Event) -> Commands:
        yield from ()

    def expire(self) -> Commands:
        """Act on a passed deadline: that of a request head, an idle connection or a lingering close."""
        if self.state == self.read_headers and self.buf:
            self.head = None
            yield commands.SendData(self.conn, render(self.lifecycle.refuse_malformed(late(), self.peer)))
        if self.state in (self.read_headers, self.linger):
            yield from self.close()

    def close(self) -> Commands:
        yield commands.CloseConnection(self.conn)
        self.state = self.done
