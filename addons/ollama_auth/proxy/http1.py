"""HTTP/1 with the client and with the upstream: mitmproxy's, with bounds, strict heads and a lingering close."""

import re
import time
from copy import copy

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.net.http.http1.read import _read_headers, _read_response_line
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server, make_body_reader

from ..exchange import Exchange, Refusal
from ..http.head import CHUNKED, Head, HeadError, bare, late, listed, parse_head, take_head
from ..http.responses import Answer, error, render
from .connections import ClientConnection, Drain, Expire, Resume
from .events import MALFORMED_BODY, ClosedBeforeResponse, Commands, Failure, Lifecycle, ParsedRequestHeaders, Refuse

LINGER_SECONDS = 2.0
LINGER_MOST_SECONDS = 6.0
LINGER_BYTES = 1024 * 1024
"""How long to read and drop what comes after the last answer of a connection, since the client sent something and in
all, and how many bytes: if data were left unread at the end, the kernel would reset the connection, and the client
might lose the answer (RFC 9112 section 9.6)."""
LINGER_UNREAD_SECONDS = 1.0
"""How long to wait then, and read nothing: the client can't send more, but has time to read the answer."""
MAX_LINE = 16 * 1024
"""Bytes of a chunk header, or of trailers; h11 has no such bound."""
MAX_PIPELINED = 64 * 1024
"""Bytes kept of further requests that arrive before the running one is answered."""
MAX_RESPONSE_HEAD = 256 * 1024
"""Bytes of the head of a response of the upstream."""
MAX_INFORMATIONAL = 100
"""Informational responses of the upstream to one request."""
WHOLE_CHUNK = re.compile(rb"([0-9a-fA-F]{1,20})(?:;(?:[^\r\n]|\r(?!\n))*+|[ \t]*+)\r\n")
"""The header of a chunk, with what h11 takes for an extension (RFC 9112 section 7.1.1)."""


class Unchecked:
    """Omits the type check of each field, which took a tenth of the time of a request (cProfile)."""

    def __post_init__(self) -> None:
        pass


class RequestData(Unchecked, http.RequestData):
    pass


class ResponseData(Unchecked, http.ResponseData):
    pass


class JoiningReader(ChunkedReader):
    """h11's reader of chunks, which returns the content of all whole chunks that are there as one piece."""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if not self._bytes_in_chunk and not self._reading_trailer and (content := self._whole_chunks(buf)):
            return h11.Data(data=content)
        return super().__call__(buf)

    def _whole_chunks(self, buf: ReceiveBuffer) -> bytes:
        data, at, parts = bytes(buf), len(self._bytes_to_discard), []
        if data[:at] != self._bytes_to_discard:
            return b""
        while found := WHOLE_CHUNK.match(data, at):
            start = found.end()
            end = start + int(found[1], 16)
            if end == start or data[end : end + 2] != b"\r\n":
                break
            parts.append(data[start:end])
            at = end + 2
        if parts:
            buf.maybe_extract_at_most(at)
            self._bytes_to_discard = b""
        return b"".join(parts)


class Body(Http1Connection):
    """The reading of a body; mitmproxy's own crashes on trailers, and keeps a chunk header of any length."""

    stream_id: int

    def expect_body(self, size: int | None) -> None:
        """Read a body of that many bytes; None: in chunks, -1: until the connection ends."""
        self.body_reader = JoiningReader() if size is None else make_body_reader(size)
        self.state = self.read_body

    def read_body(self, event: events.Event) -> Commands:
        closed = isinstance(event, events.ConnectionClosed)
        try:
            if closed and (self.conn.error or not self.conn.state & ConnectionState.CAN_WRITE):
                raise h11.RemoteProtocolError("the connection was reset, or given up")
            while True:
                part = self.body_reader.read_eof() if closed else self.body_reader(self.buf)
                if part is None:
                    if len(self.buf) > MAX_LINE or bare(bytes(self.buf)):
                        raise h11.RemoteProtocolError("a line of the chunked framing is too long, or has no CRLF")
                    return
                if isinstance(part, h11.EndOfMessage):
                    break
                if part.data:
                    yield ReceiveHttp(self.ReceiveData(self.stream_id, bytes(part.data)))
        except h11.ProtocolError:
            yield from self.broken_body(event)
            return
        server = isinstance(self, Http1Server)  # Trailers of a request are dropped: RFC 9110 section 6.5.1.
        if part.headers and self.response and not server:
            self.response.trailers = http.Headers(list(part.headers.raw_items()))
        yield ReceiveHttp(self.ReceiveEndOfMessage(self.stream_id))
        yield from self.mark_done(request=server, response=not server)

    def broken_body(self, event: events.Event) -> Commands:
        """Handle broken framing, or a peer that closed the connection before the end of the body."""
        yield commands.CloseConnection(self.conn)
        yield ReceiveHttp(self.ReceiveProtocolError(self.stream_id, "broken body", self.ReceiveProtocolError.code))


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
            yield from self.next_request()

    def next_request(self) -> Commands:
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
        yield from ()

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
            yield from self.next_request()
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


class BoundedHttp1Client(Body, Http1Client):
    """HTTP/1 with the upstream."""

    informational = 0
    """Informational responses to the request."""
    kept = False
    """The connection stays open after a request of HTTP/2, as it does after others."""
    without_body = False
    """The request has no body."""
    size: int | None = None
    """Bytes of the body of the response, as `expect_body` takes them."""

    @property
    def all_is_here(self) -> bool:
        """Tell whether the body of the response, whose head has been read, has arrived."""
        return self.size is not None and 0 <= self.size <= len(self.buf)

    def send(self, event: HttpEvent) -> Commands:
        if isinstance(event, RequestHeaders):
            self.informational = 0
            self.without_body = event.end_stream
            headers = event.request.headers
            if not event.end_stream and "content-length" not in headers and "transfer-encoding" not in headers:
                # An HTTP/2 client need not announce the length of a body; in HTTP/1 its end must be marked.
                headers["Transfer-Encoding"] = "chunked"
            if self.kept and event.request.is_http2:
                event = RequestHeaders(event.stream_id, as_http1(event.request), event.end_stream)
        if isinstance(event, RequestEndOfMessage) and self.without_body:
            yield from self.mark_done(request=True)
        else:
            yield from super().send(event)

    def mark_done(self, *, request: bool = False, response: bool = False) -> Commands:
        """Do as Http1Connection.mark_done, with the size of the response as it was read."""
        self.request_done |= request
        self.response_done |= response
        if not (self.request_done and self.response_done):
            return
        assert self.request
        assert self.response
        multiplexed = self.request.is_http2 and not self.kept
        if self.size == -1 or multiplexed or closes(self.request) or closes(self.response):
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        self.request_done = self.response_done = False
        self.request = self.response = None
        self.stream_id = None  # type: ignore[assignment]
        self.state = self.read_headers
        if self.buf:
            yield from self.state(events.DataReceived(self.conn, b""))

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.DataReceived) and self.request:
            self.skip_informational()
            data = bytes(self.buf)
            unlike = data[:5] != b"HTTP/"[: len(data)]
            endless = len(data) > MAX_RESPONSE_HEAD and b"\r\n\r\n" not in data
            if unlike or endless or self.informational > MAX_INFORMATIONAL:
                yield from self.broken_body(event)
            else:
                yield from self.read_head(event)
        elif isinstance(event, events.ConnectionClosed) and self.stream_id and not self.buf:
            if self.conn.state & ConnectionState.CAN_WRITE:
                yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                ClosedBeforeResponse(self.stream_id, "closed before it answered", ErrorCode.GENERIC_SERVER_ERROR)
            )
        else:
            yield from super().read_headers(event)

    def read_head(self, event: events.DataReceived) -> Commands:
        """Do as Http1Client.read_headers when a response is due, once its head is complete."""
        lines = self.buf.maybe_extract_lines()
        if not lines:
            return
        assert self.request
        try:
            self.response = response_of([bytes(line) for line in lines])
            self.size = http1.expected_http_body_size(self.request, self.response)
        except ValueError:
            yield from self.broken_body(event)
            return
        yield ReceiveHttp(ResponseHeaders(self.stream_id, self.response, self.size == 0))
        self.expect_body(self.size)
        yield from self.state(event)

    def skip_informational(self) -> None:
        """Drop 1xx responses except 101: they precede the final one (RFC 9110 section 15.2), and nothing needs them."""
        data, at = bytes(self.buf), 0
        while data.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1"), at) and data[at + 10 : at + 12] != b"01":
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                break
            self.informational += 1
            at = end + 4
        self.buf.maybe_extract_at_most(at)


def closes(message: http.Message) -> bool:
    """Tell whether the connection ends with a message (RFC 9112 section 9.3)."""
    options = listed(message.headers.fields, b"connection")
    if message.data.http_version in (b"HTTP/1.1", b"HTTP/2.0"):
        return b"close" in options
    return b"keep-alive" not in options or b"close" in options


def as_http1(request: http.Request) -> http.Request:
    """Return a request of HTTP/2 as one of HTTP/1.1 (RFC 9113 section 8.2.3).

    mitmproxy would do it later, and close the connection after the response.
    """
    data = copy(request.data)  # Request.copy checks the type of each field.
    data.headers = headers = request.headers.copy()
    data.http_version = b"HTTP/1.1"
    if "Host" not in headers and request.authority:
        headers.insert(0, "Host", request.authority)
    data.authority = b""
    if len(cookies := headers.get_all("Cookie")) > 1:
        headers["Cookie"] = "; ".join(cookies)
    made = http.Request.__new__(http.Request)
    made.data = data
    return made


def request_of(head: Head) -> http.Request:
    """Return mitmproxy's Request for a head; host and port are filled in once it is admitted."""
    request = http.Request.__new__(http.Request)
    request.data = RequestData(
        host="",
        port=0,
        method=head.method,
        scheme=b"http",
        authority=b"",
        path=head.target,
        http_version=head.version,
        headers=http.Headers(head.fields),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )
    return request


def response_of(lines: list[bytes]) -> http.Response:
    """Return mitmproxy's Response for the lines of a head. Raises ValueError."""
    version, status, reason = _read_response_line(lines[0])
    headers = _read_headers(lines[1:])
    lengths = headers.get("Content-Length", "").split(",")
    if len(lengths) > 1 and len(same := {length.strip(" \t") for length in lengths}) == 1:
        headers["Content-Length"] = same.pop()  # One length, sent more than once: RFC 9112 section 6.3.
    if "Connection" in headers:  # mitmproxy looks for `close` in this case alone.
        headers["Connection"] = headers["Connection"].lower()
    response = http.Response.__new__(http.Response)
    response.data = ResponseData(
        http_version=version,
        status_code=status,
        reason=reason,
        headers=headers,
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )
    return response
