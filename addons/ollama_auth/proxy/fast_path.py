"""The fast path of a streaming body: forward received bytes as they are, past the layers that parse and write HTTP.

There are two stages. `LayerFastPath` skips mitmproxy's HTTP layers: GateLayer forwards the bytes it is handed.
`SocketFastPath` also skips asyncio's reader task, and the layer of TLS: it writes what one socket received straight to
the other.

Neither keeps state of its own. The layers stay in charge and are skipped only for data of which they would forward the
same content: chunks, framed exactly as we frame them; or, if the length of the body is known, anything that is not its
end. A part of a chunk is forwarded as a chunk, as the layers do, and their body reader is told how much of it is still
to come. To a client of HTTP/2, what arrives at once goes as one frame. All else (a chunk extension, the end, broken
framing, more than the client has room for) goes through the layers, and so does everything after it until the fast path
is open again.
"""

import os
import re
from asyncio import WriteTransport
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time

from h11._readers import ChunkedReader, ContentLengthReader
from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream
from mitmproxy.proxy.server import TimeoutWatchdog

from .client_connection import ClientConnection
from .http1_client import BoundedHttp1Client
from .http1_server import BoundedHttp1Server
from .http2 import BoundedHttp2Server
from .tls import ClientTls
from .transport import BulkProtocol, BulkReader, transport_of
from .upstream import http1_of

CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n")
"""The header of a chunk (RFC 9112 section 7.1) without extension, as `%x` writes it."""


@dataclass(frozen=True, slots=True)
class LayerFastPath:
    """The fast path of one body, from one connection to another. The source speaks HTTP/1."""

    source: BoundedHttp1Server | BoundedHttp1Client
    target: BoundedHttp1Server | BoundedHttp1Client | BoundedHttp2Server
    chunked: bool
    """The body is framed in chunks; otherwise its length is known."""
    stream: HttpStream
    message: http.Message
    on_data: Callable[[bytes], bytes]
    """Counts and inspects the content, and returns it unchanged."""

    @property
    def open(self) -> bool:
        """Tell whether data that comes now would pass all layers unchanged."""
        source, stream = self.source, self.stream
        streaming = (
            stream.server_state == stream.state_stream_response_body
            if isinstance(source, BoundedHttp1Client)
            else stream.client_state == stream.state_stream_request_body
        )
        return (
            streaming
            and stream._paused is None
            and source.state == source.read_body
            and not source.buf
            and self.message.stream == self.on_data  # No addon has replaced it.
            and self._at_boundary
        )

    @property
    def _at_boundary(self) -> bool:
        """Tell whether the body reader's position allows us to parse what comes next without it."""
        reader = self.source.body_reader
        if isinstance(reader, ChunkedReader):
            return self.chunked and not (reader._bytes_to_discard or reader._reading_trailer)
        return isinstance(reader, ContentLengthReader) and not self.chunked

    def take(self, data: bytes) -> tuple[int, bytes]:
        """Return how many bytes at the start of `data` are taken, and the bytes that they are forwarded as.

        Passes their content to `on_data`. To be called only while this is open. Raises what `on_data` raises.
        """
        target, stream_id = self.target, self.stream.stream_id
        if isinstance(target, BoundedHttp2Server) and len(data) > target.room(stream_id):
            return 0, b""
        taken, content, forwarded = self._read(data)
        if content:
            self.on_data(content)
            if isinstance(target, BoundedHttp2Server):
                forwarded = target.data_frame(stream_id, content)
        return taken, forwarded

    def _read(self, data: bytes) -> tuple[int, bytes, bytes]:
        """Return how many bytes are taken, their content, and the bytes that HTTP/1 forwards them as."""
        reader = self.source.body_reader
        if isinstance(reader, ContentLengthReader):
            if len(data) >= reader._remaining:
                return 0, b"", b""
            reader._remaining -= len(data)
            return len(data), data, data
        assert isinstance(reader, ChunkedReader)
        at, parts, before, after, left = 0, [], b"", b"", reader._bytes_in_chunk
        if left > len(data):
            reader._bytes_in_chunk -= len(data)
            return len(data), data, as_chunk(data)
        if left:
            if data[left : left + 2] != b"\r\n":
                return 0, b"", b""
            at, parts, before = left + 2, [data[:left]], b"%x\r\n" % left
        left = 0
        while head := CHUNK.match(data, at):
            start = head.end()
            end = start + int(head[1], 16)
            if data[end : end + 2] != b"\r\n":
                if start < len(data) < end:
                    parts.append(data[start:])
                    after, left = as_chunk(parts[-1]), end - len(data)
                break
            parts.append(data[start:end])
            at = end + 2
        reader._bytes_in_chunk = left
        whole = data if at == len(data) else data[:at]
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        return (len(data) if left else at), content, before + whole + after if before or after else whole


def as_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class FastPaths:
    """The fast paths of one client connection: at most one from the client, and one from each upstream connection."""

    def __init__(self, layer: HttpLayer, peer: ClientConnection) -> None:
        """`layer` handles all events of the client connection."""
        self._layer = layer
        self._peer = peer
        self.by_source: dict[Connection, LayerFastPath] = {}
        self.event_count = 0
        """Incremented per event of the layers. The fast path re-validates only when this has changed."""
        self.deferred_error: Exception | None = None
        """Raised in SocketFastPath, outside of the layers; they handle it with the next data."""

    @property
    def paused(self) -> bool:
        """Tell whether the layers wait for something, so that events are queued."""
        return self._layer._paused is not None

    def start(self, stream: HttpStream, message: http.Message, on_data: Callable[[bytes], bytes]) -> None:
        """Let a body that begins to stream take the fast path, past the reader task as well, where that is possible."""
        upstream = http1_of(self._layer.connections.get(stream.context.server))
        if message is stream.flow.response and upstream and upstream.all_is_here:
            return
        ends = [self._layer.connections[self._peer.client], upstream]
        reader_side, writer_side = ends if isinstance(message, http.Request) else reversed(ends)
        fast_path = find_fast_path(reader_side, writer_side, stream, message, on_data)
        if not fast_path:
            return
        source = fast_path.source.conn
        self.by_source[source] = fast_path
        reader = BulkReader.take_over(self._peer.handler, source)
        transport = transport_of(self._peer.handler, fast_path.target.conn)
        protocol = transport.get_protocol() if transport else None
        if reader and isinstance(protocol, BulkProtocol) and not isinstance(fast_path.target, BoundedHttp2Server):
            reader.target = protocol  # In HTTP/2 a fast connection says nothing about the stream.
        encrypts = None
        if self._peer.client.tls:
            encrypts = next((one for one in self._layer.context.layers if isinstance(one, ClientTls)), None)
            if encrypts is None or message is stream.flow.request:
                return
        if reader and transport:
            reader.fast_path = SocketFastPath(fast_path, self, self._peer, transport, reader, encrypts)

    def end(self, stream: HttpStream) -> None:
        """Remove the fast paths of a stream that has ended."""
        for source in (stream.context.client, stream.context.server):
            if source in self.by_source and self.by_source[source].stream is stream:
                del self.by_source[source]
                if reader := BulkReader.take_over(self._peer.handler, source):
                    reader.fast_path = reader.target = None


@dataclass(eq=False, slots=True)
class SocketFastPath:
    """The fast path from socket to socket, taken while nothing received earlier is still unsent."""

    _fast_path: LayerFastPath
    _paths: FastPaths
    _peer: ClientConnection
    _transport: WriteTransport
    """That of the target."""
    _reader: BulkReader
    """That of its source."""
    _tls: ClientTls | None
    """What encrypts for the client."""
    _checked_at: int = -1
    """The event count of the layers at which the fast path was last found open."""
    _descriptor: int | None = None
    _watchdog: TimeoutWatchdog = field(init=False)

    def __post_init__(self) -> None:
        own = self._transport.get_extra_info("socket") if os.name == "posix" else None
        self._descriptor = own.fileno() if own else None
        self._watchdog = self._peer.handler.timeout_watchdog

    def __call__(self, data: bytes) -> int:
        """Forward as much of the start of `data` as possible, and return its length in bytes. Never raises."""
        paths, transport = self._paths, self._transport
        if paths.event_count != self._checked_at and not self._recheck():
            return 0
        if self._peer.closed or transport.is_closing() or transport.get_write_buffer_size():
            return 0  # mitmproxy waits for a target that does not read.
        if self._tls and not self._tls.sends:
            return 0
        try:
            taken, data = self._fast_path.take(data)
            if self._tls and data and not (data := self._tls.encrypt(data)):
                transport.close()  # The client has broken TLS.
                return taken
            if taken:
                self._watchdog.last_activity = time()  # As its register_activity.
                try:  # At once: uvloop's transport would first read from all other sockets.
                    sent = os.write(self._descriptor, data) if self._descriptor is not None else 0
                except OSError:
                    sent = 0  # Full or broken: the transport finds out itself.
                if sent < len(data):
                    transport.write(data[sent:])
                    self._reader.drain_first()
        except Exception as error:
            paths.deferred_error = error
            paths.event_count += 1
            return 0
        return taken

    def _recheck(self) -> bool:
        """Tell whether the fast path is open. What this reads changes only with an event, so check once an event."""
        paths, fast_path = self._paths, self._fast_path
        if paths.paused or paths.deferred_error:
            return False
        if paths.by_source.get(fast_path.source.conn) is not fast_path or not fast_path.open:
            return False
        self._checked_at = paths.event_count
        return True


def find_fast_path(
    source: object, target: object, stream: HttpStream, message: http.Message, on_data: Callable[[bytes], bytes]
) -> LayerFastPath | None:
    """Return the fast path of the body of `message`, or None where something inspects or reframes it.

    `source` and `target` are the layers that read and write it.
    """
    if not isinstance(source, BoundedHttp1Server | BoundedHttp1Client):
        return None
    if not isinstance(target, BoundedHttp1Server | BoundedHttp1Client | BoundedHttp2Server):
        return None
    if message.stream != on_data or stream.context.options.store_streamed_bodies:
        return None
    sent = target.response if isinstance(target, BoundedHttp1Server) else message  # To HTTP/1.0 it is another one.
    coding = sent.headers.get("transfer-encoding", "").lower() if sent else "none"
    chunked = coding == "chunked"
    return LayerFastPath(source, target, chunked, stream, message, on_data) if chunked or not coding else None
