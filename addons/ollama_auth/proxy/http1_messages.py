"""Messages of HTTP/1 in mitmproxy's types: their heads, without checks that were made already, and their bodies."""

import re
import time
from copy import copy

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http.http1.read import _read_headers, _read_response_line
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server, make_body_reader

from ..http.head import Head, bare, listed
from .events import Commands

MAX_LINE = 16 * 1024
"""Bytes of a chunk header, or of trailers; h11 has no such bound."""
WHOLE_CHUNK = re.compile(rb"([0-9a-fA-F]{1,20})(?:;(?:[^\r\n]|\r(?!\n))*+|[ \t]*+)\r\n")
"""The header of a chunk, with what h11 takes for an extension (RFC 9112 section 7.1.1)."""

UNSAFE = re.compile(rb"\r\n[ \t]|[\r\n\0]")
"""What no field may hold: each is replaced by a space (RFC 9110 section 5.5, RFC 9112 section 5.2)."""
SUSPECT = re.compile(rb"\n[ \t]|[\r\0]")
"""The same in a head whose lines end in LF."""


class Unchecked:
    """Omits the type check of each field, which took a tenth of the time of a request (cProfile)."""

    def __post_init__(self) -> None:
        pass


class RequestData(Unchecked, http.RequestData):
    pass


class ResponseData(Unchecked, http.ResponseData):
    pass


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
    if SUSPECT.search(b"\n".join(lines)):
        reason = UNSAFE.sub(b" ", reason)
        headers.fields = tuple((name, UNSAFE.sub(b" ", value)) for name, value in headers.fields)
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


def closes(message: http.Message) -> bool:
    """Tell whether the connection ends with a message (RFC 9112 section 9.3)."""
    options = listed(message.headers.fields, b"connection")
    if message.data.http_version in (b"HTTP/1.1", b"HTTP/2.0"):
        return b"close" in options
    return b"keep-alive" not in options or b"close" in options


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
