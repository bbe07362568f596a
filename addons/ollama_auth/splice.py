"""The short way of a body that streams: what came goes on as it came, past the layers that read and write HTTP.

It keeps no state of its own. Those layers stay in charge, and are passed by only for data of which they would make the
very same bytes: whole chunks, each written the way we write them, while their reader stands between two chunks; or
what is surely not the last of a body whose length is known. Everything else (half a chunk, an extension, the end, what
is no chunk at all) they get themselves, and so does whatever follows until the short way is open again.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from h11._readers import ChunkedReader, ContentLengthReader
from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy.layers.http import HttpStream

from .http1 import Http1Edge, Http1Upstream

ENABLED = os.environ.get("OLLAMA_SPLICE") != "off"
"""For tests and measurements: the long way for everything."""
CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")
"""The head of a chunk (RFC 9112 section 7.1) without extension, as `%x` writes it."""


@dataclass(frozen=True, slots=True)
class Splice:
    """From one connection in HTTP/1 to another, for one body."""

    source: Http1Edge | Http1Upstream
    target: Connection
    chunked: bool
    """How the target is told where the body ends; else it has a length."""
    stream: HttpStream
    message: http.Message
    content: Callable[[bytes], bytes]
    """What counts and reads the body, and passes it on unchanged."""

    @property
    def open(self) -> bool:
        """What comes now would go through all layers, and come out as it is."""
        source, stream = self.source, self.stream
        going = (
            stream.server_state == stream.state_stream_response_body
            if isinstance(source, Http1Upstream)
            else stream.client_state == stream.state_stream_request_body
        )
        return (
            going
            and stream._paused is None
            and source.state == source.read_body
            and not source.buf
            and self.message.stream == self.content
        )

    def take(self, data: bytes) -> int:
        """How many bytes at the start of this take the short way; what is in them is handed to who reads it."""
        if not self.open:
            return 0
        reader = self.source.body_reader
        if isinstance(reader, ChunkedReader):
            between = not (reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer)
            return self._whole_chunks(data) if between and self.chunked else 0
        if self.chunked or not isinstance(reader, ContentLengthReader):
            return 0
        if len(data) >= reader._remaining:
            return 0
        reader._remaining -= len(data)
        self.content(data)
        return len(data)

    def _whole_chunks(self, data: bytes) -> int:
        at = 0
        while head := CHUNK.match(data, at):
            end = head.end() + int(head[1], 16)
            if data[end : end + 2] != b"\r\n":
                break
            self.content(data[head.end() : end])
            at = end + 2
        return at


def splice(
    source: object, target: object, stream: HttpStream, message: http.Message, content: Callable[[bytes], bytes]
) -> Splice | None:
    """Where the body of this message may take the short way: nobody looks at it, or changes it."""
    ours = Http1Edge | Http1Upstream
    if not (ENABLED and isinstance(source, ours) and isinstance(target, ours)):
        return None
    if message.stream != content or stream.context.options.store_streamed_bodies:
        return None
    sent = target.response if isinstance(target, Http1Edge) else message  # To HTTP/1.0 it is another one.
    coding = sent.headers.get("transfer-encoding", "").lower() if sent else "none"
    if coding not in ("", "chunked"):
        return None
    return Splice(source, target.conn, coding == "chunked", stream, message, content)
