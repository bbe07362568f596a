"""The short way of a token: whole chunks of a response that streams go to the client as the upstream sent them.

It keeps no state of its own. The layers that read and write HTTP stay in charge, and are passed by only for data of
which they would make the very same bytes: chunks that have all come, each written the way we write them, while the
reader stands between two chunks. Everything else (half a chunk, an extension, the last chunk, what is no chunk at all)
they get themselves, and so does whatever follows until the reader stands between two chunks again.
"""

import os
import re
from collections.abc import Callable

from h11._readers import ChunkedReader
from mitmproxy.proxy.layers.http import HttpStream

from .http1 import Http1Edge, Http1Upstream

ENABLED = os.environ.get("OLLAMA_SPLICE") != "off"
"""For tests and measurements: the long way for everything."""
CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")
"""The head of a chunk (RFC 9112 section 7.1) without extension, as `%x` writes it."""


class Splice:
    """From an upstream's connection to a client's, both in HTTP/1, for one response."""

    def __init__(self, upstream: Http1Upstream, edge: Http1Edge, stream: HttpStream) -> None:
        self.upstream = upstream
        self.edge = edge
        self.stream = stream
        self.response = edge.response
        assert stream.flow.response
        self.content = stream.flow.response.stream
        """Takes what is in the chunks, and changes nothing."""

    @property
    def open(self) -> bool:
        """What comes now would go through all layers, and come out as it is."""
        upstream, stream = self.upstream, self.stream
        reader = upstream.body_reader
        return (
            stream.server_state == stream.state_stream_response_body
            and stream._paused is None
            and isinstance(reader, ChunkedReader)
            and not (reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer or upstream.buf)
            and upstream.state == upstream.read_body
            and self.edge.response is self.response
            and stream.flow.response is not None
            and stream.flow.response.stream is self.content
        )

    def take(self, data: bytes) -> int:
        """Hand the content of the whole chunks at the start of this to who reads it; how many bytes they are."""
        at = 0
        content = self.content
        assert callable(content)
        while head := CHUNK.match(data, at):
            end = head.end() + int(head[1], 16)
            if data[end : end + 2] != b"\r\n":
                break
            content(data[head.end() : end])
            at = end + 2
        return at


def splice(upstream: object, edge: object, stream: HttpStream, content: Callable[[bytes], bytes]) -> Splice | None:
    """Where this response may take the short way: nobody looks at it or changes it, and both sides frame it alike.

    `content`: what counts and reads it, and passes it on unchanged.
    """
    response = stream.flow.response
    if not (ENABLED and isinstance(upstream, Http1Upstream) and isinstance(edge, Http1Edge) and edge.response):
        return None
    if not response or response.stream != content or stream.context.options.store_streamed_bodies:
        return None
    if edge.response.headers.get("transfer-encoding", "").lower() != "chunked":
        return None
    return Splice(upstream, edge, stream)
