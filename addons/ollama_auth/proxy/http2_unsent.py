"""Responses that wait for an HTTP/2 client to open its flow control windows."""

from collections import defaultdict, deque

from mitmproxy.connection import Connection
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection, SendH2Data

from .client_connection import ClientConnection

PART_OVERHEAD = 128
"""Bytes that a part of a response takes beside its data."""
MAX_UNSENT = 1 << 20
"""Bytes of responses that may wait; with more, the upstream of a stream that waits is not read any further."""


class PartQueue(deque[SendH2Data]):
    """The parts of a response that wait, and how many bytes they take."""

    size = 0

    def append(self, part: SendH2Data) -> None:
        self.size += len(part.data) + PART_OVERHEAD
        super().append(part)

    def appendleft(self, part: SendH2Data) -> None:
        self.size += len(part.data) + PART_OVERHEAD
        super().appendleft(part)

    def popleft(self) -> SendH2Data:
        part = super().popleft()
        self.size -= len(part.data) + PART_OVERHEAD
        return part


class WindowedH2Connection(BufferedH2Connection):
    """mitmproxy's, which sends too much once a client has made a window negative (RFC 9113 section 6.9.2)."""

    def send_data(self, stream_id: int, data: bytes, end_stream: bool = False, pad_length: None = None) -> None:  # type: ignore[override]
        """Do as BufferedH2Connection.send_data; keep all of it while the window is negative."""
        if self.local_flow_control_window(stream_id) >= 0 or len(data) > self.max_outbound_frame_size:
            super().send_data(stream_id, data, end_stream, pad_length)  # If it is long, in parts that come here.
        else:
            self.stream_buffers[stream_id].append(SendH2Data(data, end_stream))


class UnsentResponses:
    """What waits on one connection, and since when nothing of it was taken."""

    def __init__(self, conn: BufferedH2Connection, peer: ClientConnection) -> None:
        conn.stream_buffers = defaultdict(PartQueue)
        self._conn = conn
        self._peer = peer
        self._paused_servers: dict[int, Connection] = {}
        """Upstream connections that are not read, by the stream whose response waits for the client."""
        self._size_before = 0
        self.taken_at: float | None = None
        """When the client last took a part; None if nothing waits."""

    @property
    def size(self) -> int:
        """How many bytes wait."""
        return sum(parts.size for parts in self._conn.stream_buffers.values())  # type: ignore[attr-defined]

    def apply_backpressure(self, stream_id: int, server: Connection) -> None:
        """Stop reading from `server` if the client opens no window, so that we need not buffer the whole response."""
        if self._conn.stream_buffers.get(stream_id) and self.size > MAX_UNSENT:
            self._paused_servers[stream_id] = server
            self._peer.hold_reading(server, stream_id)

    def resume_reading(self) -> None:
        """Read again from the servers whose responses the client has caught up with."""
        if not self._paused_servers:
            return
        room = self.size <= MAX_UNSENT // 2
        for stream_id, server in list(self._paused_servers.items()):
            if room or not self._conn.stream_buffers.get(stream_id):
                del self._paused_servers[stream_id]
                self._peer.release_reading(server, stream_id)

    def note_taken(self, now: float) -> None:
        """Note whether the client has taken a part of what waits for it."""
        size = self.size
        if not size:
            self.taken_at = None
        elif self.taken_at is None or size < self._size_before:
            self.taken_at = now
        self._size_before = size
