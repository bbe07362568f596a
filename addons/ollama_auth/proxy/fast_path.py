"""The short way of a body that streams: what came goes on as it came, past the layers that read and write HTTP.

It keeps no state of its own. Those layers stay in charge, and are passed by only for data of which they would make the
very same bytes: whole chunks, each written the way we write them, while their reader stands between two chunks; or
what is surely not the last of a body whose length is known. Everything else (half a chunk, an extension, the end, what
is no chunk at all) they get themselves, and so does whatever follows until the short way is open again.
"""

import os
import re
from asyncio import WriteTransport
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Protocol

from h11._readers import ChunkedReader, ContentLengthReader
from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy.layers.http import HttpStream

from .connections import ClientConnection
from .http1 import BoundedHttp1Client, BoundedHttp1Server

ENABLED = os.environ.get("OLLAMA_SPLICE") != "off"
"""For tests and measurements: the long way for everything."""
CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")
"""The head of a chunk (RFC 9112 section 7.1) without extension, as `%x` writes it."""


@dataclass(frozen=True, slots=True)
class LayerFastPath:
    """From one connection in HTTP/1 to another, for one body."""

    source: BoundedHttp1Server | BoundedHttp1Client
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
            if isinstance(source, BoundedHttp1Client)
            else stream.client_state == stream.state_stream_request_body
        )
        return (
            going
            and stream._paused is None
            and source.state == source.read_body
            and not source.buf
            and self.message.stream == self.content
            and self._between
        )

    @property
    def _between(self) -> bool:
        """The reader stands where what comes next can be told from what it would make of it."""
        reader = self.source.body_reader
        if isinstance(reader, ChunkedReader):
            return self.chunked and not (reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer)
        return isinstance(reader, ContentLengthReader) and not self.chunked

    def take(self, data: bytes) -> int:
        """While this is open: how many bytes at the start of `data` take the short way. Who reads them gets them."""
        if not self.chunked:
            return self._part(data)
        at = 0
        while head := CHUNK.match(data, at):
            start = head.end()
            end = start + int(head[1], 16)
            if data[end : end + 2] != b"\r\n":
                break
            self.content(data[start:end])
            at = end + 2
        return at

    def _part(self, data: bytes) -> int:
        reader = self.source.body_reader
        assert isinstance(reader, ContentLengthReader)
        if len(data) >= reader._remaining:
            return 0
        reader._remaining -= len(data)
        self.content(data)
        return len(data)


class Layers(Protocol):
    """Those of a client connection, as the shortest way has to know them."""

    turn: int
    """Another one whenever they were handed anything, and so may be in another state."""
    fault: Exception | None

    @property
    def paused(self) -> bool:
        """They wait for something, and what comes meanwhile is queued."""

    def splice_from(self, source: Connection) -> LayerFastPath | None:
        """The body from there, if it takes the short way."""


class SocketFastPath:
    """The shortest way of all: from the one socket to the other, while nothing waits before it."""

    __slots__ = ("_descriptor", "_layers", "_peer", "_splice", "_transport", "_turn", "_watchdog")

    def __init__(
        self, splice: LayerFastPath, layers: Layers, peer: ClientConnection, transport: WriteTransport
    ) -> None:
        self._splice = splice
        self._layers = layers
        self._peer = peer
        self._watchdog = peer.handler.timeout_watchdog
        self._transport = transport
        self._turn = -1  # of the layers, in which this was open
        own = transport.get_extra_info("socket") if os.name == "posix" else None
        self._descriptor: int | None = own.fileno() if own else None

    def __call__(self, data: bytes) -> int:
        """How many bytes at the start of this went on. Never raises."""
        layers, transport = self._layers, self._transport
        if layers.turn != self._turn and not self._reopens():
            return 0
        if self._peer.gone or transport.is_closing() or transport.get_write_buffer_size():
            return 0  # mitmproxy waits for who does not read.
        try:
            taken = self._splice.take(data)
            if taken:
                self._watchdog.last_activity = time()  # As its register_activity.
                self._send(data if taken == len(data) else data[:taken])
        except Exception as error:
            layers.fault = error
            layers.turn += 1
            return 0
        return taken

    def _send(self, data: bytes) -> None:
        try:  # At once: uvloop's transport would first read what has come for all the others.
            sent = os.write(self._descriptor, data) if self._descriptor is not None else 0
        except OSError:
            sent = 0  # Full, or broken: the transport finds out itself.
        if sent < len(data):
            self._transport.write(data[sent:])

    def _reopens(self) -> bool:
        """All that is looked at here changes only with an event, so it needs no second look before the next one."""
        layers, splice = self._layers, self._splice
        if layers.paused or layers.fault or layers.splice_from(splice.source.conn) is not splice or not splice.open:
            return False
        self._turn = layers.turn
        return True


def splice(
    source: object, target: object, stream: HttpStream, message: http.Message, content: Callable[[bytes], bytes]
) -> LayerFastPath | None:
    """Where the body of this message may take the short way: nobody looks at it, or changes it."""
    ours = BoundedHttp1Server | BoundedHttp1Client
    if not (ENABLED and isinstance(source, ours) and isinstance(target, ours)):
        return None
    if message.stream != content or stream.context.options.store_streamed_bodies:
        return None
    sent = target.response if isinstance(target, BoundedHttp1Server) else message  # To HTTP/1.0 it is another one.
    coding = sent.headers.get("transfer-encoding", "").lower() if sent else "none"
    if coding not in ("", "chunked"):
        return None
    return LayerFastPath(source, target.conn, coding == "chunked", stream, message, content)
