"""Changes to asyncio's transports and readers under mitmproxy: bounded buffers, larger reads, leftover sockets.

The only module that replaces or reads private parts of asyncio; tests/unit/proxy/test_internals.py pins those parts.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy.server import ConnectionHandler

from ..settings import Settings

READ_BUFFER = 16 * 1024
"""Bytes kept of a connection while mitmproxy is busy, before its peer has to wait. The read that exceeds it is kept as
well: at most 256 KB."""
PIECE = 16 * 1024
"""Bytes of a connection that are handled before others have their turn: to read so much JSON takes up to 20 ms."""
WRITE_BUFFER = 4 * 1024
"""Bytes that a peer has not taken yet before mitmproxy waits for it."""
FAST_AFTER = 16 * 1024 * 1024
"""Bytes that a peer has to take without being waited for, before it is a fast one."""
_ACKNOWLEDGED = 120
"""The offset of `tcpi_bytes_acked` in Linux's struct tcp_info, an unsigned integer of 64 bits."""


def transport_of(handler: ConnectionHandler, connection: Connection) -> asyncio.Transport | None:
    """Return asyncio's transport of a connection; None where there is none, or where it is not TCP."""
    io = handler.transports.get(connection)
    return io.writer.transport if io and isinstance(io.writer, asyncio.StreamWriter) else None  # type: ignore[return-value]


def pause_reading(handler: ConnectionHandler, connection: Connection) -> None:
    """Read nothing more from a connection, until resume_reading."""
    if transport := transport_of(handler, connection):
        cast(BulkReader, handler.transports[connection].reader).held = True
        if transport.is_reading():
            transport.pause_reading()


def resume_reading(handler: ConnectionHandler, connection: Connection) -> None:
    """Read from a connection again, unless it is closing or its reader is full, which resumes by itself."""
    if transport := transport_of(handler, connection):
        reader = cast(BulkReader, handler.transports[connection].reader)
        reader.held = False
        if not transport.is_closing() and not reader._paused:
            transport.resume_reading()


def unsent(transport: asyncio.Transport | None) -> int:
    """Return how many bytes a transport has still to give to the kernel; 0 if it has ended."""
    with suppress(RuntimeError):
        return transport.get_write_buffer_size() if transport else 0
    return 0


def hung_up(handler: ConnectionHandler, connection: Connection) -> bool:
    """Tell whether a peer whose data is not read has closed its side; False where the system (not Linux) can't tell."""
    with suppress(AttributeError, OSError, ValueError):
        if transport := transport_of(handler, connection):
            poll = select.poll()
            poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
            return bool(poll.poll(0))
    return False


def bytes_taken(transport: asyncio.Transport) -> int:
    """Return a number that grows whenever the peer takes something.

    On Linux it counts the bytes that the peer has acknowledged; elsewhere it grows only while nothing is written.
    """
    with suppress(AttributeError, OSError, struct.error):
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("Q", info, _ACKNOWLEDGED)[0])
    return -unsent(transport)


def limit_receive_buffer(handler: ConnectionHandler, connection: Connection, size: int) -> None:
    """Let the kernel keep some `size` bytes of a connection, and a read bring no more; asyncio reads up to 256 KB."""
    if transport := transport_of(handler, connection):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def keep_alive(handler: ConnectionHandler, connection: Connection, settings: Settings) -> None:
    """Have the kernel ask a silent peer whether it is still there, and end the connection if nothing answers in time.

    Systems lack some of the options: macOS has another name for the first, and only Linux has the last.
    """
    if not (settings.keepalive_idle and (transport := transport_of(handler, connection))):
        return
    own, known = transport.get_extra_info("socket"), vars(socket)
    with suppress(OSError):  # It has just ended.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE" if "TCP_KEEPIDLE" in known else "TCP_KEEPALIVE", settings.keepalive_idle),
            ("TCP_KEEPINTVL", settings.keepalive_interval),
            ("TCP_KEEPCNT", settings.keepalive_probes),
            ("TCP_USER_TIMEOUT", settings.vanished_after * 1000),
        ):
            if name in known:
                own.setsockopt(socket.IPPROTO_TCP, known[name], value)


def spare_full_peer(transport: asyncio.Transport, seconds: int) -> None:
    """Suspend TCP_USER_TIMEOUT while a peer answers, but has no room for data: Linux would end that one as well.

    In the kernel, tcp_probe_timer() counts the time in which the window is closed, and every answer of the peer clears
    the probes, but not their backoff.
    """
    with suppress(AttributeError, OSError, struct.error):
        own = transport.get_extra_info("socket")
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        probes, backoff, unacknowledged = struct.unpack_from("3xBB19xI", info)
        full = backoff and not unacknowledged and probes < 2
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0 if full else seconds * 1000)


def close_sockets(handler: ConnectionHandler, *connections: Connection) -> None:
    """Close the sockets of connections that have ended.

    mitmproxy does so itself, unless its task is cancelled while it waits to hand an event to the layers.
    """
    for connection in connections:
        if writer := handler.transports[connection].writer:
            writer.close()


class BulkProtocol(asyncio.StreamReaderProtocol):
    """asyncio's StreamReaderProtocol, with a direct reference to its reader."""

    bulk: "BulkReader"
    pauses = 0
    """How often the peer took less than was written."""

    def pause_writing(self) -> None:
        """Do as StreamReaderProtocol.pause_writing."""
        self.pauses += 1
        super().pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Do as StreamReaderProtocol.connection_lost, and end reference cycles of the reader."""
        if exc:
            exc.__traceback__ = None  # It would keep the frames of the functions that wrote.
        super().connection_lost(exc)
        self.bulk.fast_path = self.bulk.target = self.bulk.turn = None

    def data_received(self, data: bytes) -> None:
        """Do as StreamReaderProtocol.data_received."""
        self.bulk.feed_data(data)


class BulkReader(asyncio.StreamReader):
    """The reader of mitmproxy's connections, changed so that little is kept, and nobody waits for long.

    While mitmproxy is busy, it reads little from its socket. Of data that is there already, it returns a piece at a
    time, and lets other tasks run between; or all of it, for a fast `target`. While mitmproxy waits for data,
    `fast_path` may take what arrives without waking the waiting task.
    """

    fast_path: Callable[[bytes], int] | None = None
    """Forwards as much of the start of the data as it can, and returns its length in bytes."""
    target: BulkProtocol | None = None
    """The connection that the data goes on to, if all there is may be read in one piece while its peer is fast."""
    turn: Callable[[], Awaitable[None] | None] | None = None
    """What to wait for before data is returned, if anything."""
    _pauses = 0
    _taken = 0  # bytes that went to the target since it was last waited for
    held = False
    """Somebody has paused the transport: see ClientConnection.hold_reading."""
    _connection: Connection | None = None
    _drain: Callable[[], Awaitable[None]]
    _drain_first = False
    _waiter: asyncio.Future[None] | None
    _buffer: bytearray
    _eof: bool
    _exception: BaseException | None
    _limit: int
    _paused: bool
    _transport: asyncio.Transport
    _wait_for_data: Callable[[str], Awaitable[None]]
    _wakeup_waiter: Callable[[], None]

    @classmethod
    def take_over(cls, handler: ConnectionHandler, connection: Connection) -> "BulkReader | None":
        """Turn the reader of this connection into a BulkReader, and return it; None if it is not one of asyncio's."""
        io = handler.transports.get(connection)
        reader = io.reader if io else None
        if type(reader) is asyncio.StreamReader:
            reader.__class__ = cls
            taken = cast(BulkReader, reader)
            taken._limit, taken._connection, taken._drain = READ_BUFFER // 2, connection, handler.drain_writers
            transport = transport_of(handler, connection)
            if transport:
                transport.set_write_buffer_limits(high=WRITE_BUFFER)
            protocol = transport.get_protocol() if transport else None
            if transport and type(protocol) is asyncio.StreamReaderProtocol:
                protocol.__class__ = BulkProtocol
                cast(BulkProtocol, protocol).bulk = taken
                transport.set_protocol(protocol)  # The transport may have cached a bound method of the old class.
        return reader if isinstance(reader, cls) else None

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # Transports hand bytes on.
        """Do as StreamReader.feed_data, with what the fast path leaves."""
        if self.fast_path and self._waiter and not self._waiter.done() and not self._buffer:
            taken = self.fast_path(data)
            if taken == len(data):
                return
            data = data[taken:]
        super().feed_data(data)

    def drain_first(self) -> None:
        """Let mitmproxy wait, before it reads more, until what the fast path has written is taken."""
        self._drain_first = True
        self._wakeup_waiter()
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    async def read(self, n: int = -1) -> bytes:
        """Do as StreamReader.read, in the way that is said above. Notes at a Server that it broke off."""
        if self._buffer:
            await asyncio.sleep(0)
        while not (self._buffer or self._eof or self._exception):
            if self._drain_first:
                self._drain_first = False
                await self._drain()
                continue
            if self._paused and (self.held or self._transport.is_closing()):
                self._paused = False  # _wait_for_data is not to resume it.
            try:
                await self._wait_for_data("read")
            except OSError as error:  # It is noted as the exception, and would refer to this frame.
                error.__traceback__ = None
        if self._exception is not None:
            if isinstance(self._connection, Server):
                self._connection.error = str(self._exception) or type(self._exception).__name__
            raise OSError(str(self._exception))
        if self.turn and (due := self.turn()):
            await due
        n = min(n, PIECE)
        if 0 <= n < len(self._buffer) and not (self.target and self._target_is_fast(self.target, n)):
            data = bytes(self._buffer[:n])
            del self._buffer[:n]
        else:
            data = bytes(self._buffer)
            self._buffer.clear()
        return data

    def _target_is_fast(self, target: BulkProtocol, size: int) -> bool:
        """Tell whether the peer of the target has read more than buffers of the kernel hold, and was not waited for.

        Counts `size` more bytes.
        """
        if self._pauses != target.pauses:
            self._pauses, self._taken = target.pauses, 0
        self._taken += size
        return self._taken > FAST_AFTER
