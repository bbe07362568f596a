"""HTTP/1 with the upstream: mitmproxy's, with bounds."""

from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestEndOfMessage, RequestHeaders, ResponseHeaders
from mitmproxy.proxy.layers.http._http1 import Http1Client

from .events import ClosedBeforeResponse, Commands
from .http1_messages import Body, as_http1, closes, response_of

MAX_RESPONSE_HEAD = 256 * 1024
"""Bytes of the head of a response of the upstream."""
MAX_INFORMATIONAL = 100
"""Informational responses of the upstream to one request."""


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
