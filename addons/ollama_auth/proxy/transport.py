"""Changes to asyncio's transports and readers under mitmproxy: larger reads, resumed reading, leftover sockets.

The only module that replaces or reads private parts of asyncio; tests/unit/proxy/test_internals.py pins those parts.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from mitmproxy.connection import Connection
from mitmproxy.proxy.server import ConnectionHandler

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

READ_BUFFER = 256 * 1024
"""Bytes kept of a connection before its peer has to wait; about what one read of asyncio brings."""


def transport_of(handler: ConnectionHandler, connection: Connection) -> asyncio.Transport | None:
    """Return asyncio's transport of a connection; None where there is none, or where it is not TCP."""
    io = handler.transports.get(connection)
    return io.writer.transport if io and isinstance(io.writer, asyncio.StreamWriter) else None  # type: ignore[return-value]


def resume_reading(handler: ConnectionHandler, connection: Connection) -> None:
    """Read from a connection again, unless it is closing or its reader is full, which resumes by itself."""
    transport = transport_of(handler, connection)
    if transport and not transport.is_closing() and not handler.transports[connection].reader._paused:  # type: ignore[union-attr]
        transport.resume_reading()


def limit_receive_buffer(handler: ConnectionHandler, connection: Connection, size: int) -> None:
    """Let the kernel keep some `size` bytes of a connection, and a read bring no more; asyncio reads up to 256 KB."""
    if transport := transport_of(handler, connection):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


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

    def data_received(self, data: bytes) -> None:
        """Do as StreamReaderProtocol.data_received."""
        self.bulk.feed_data(data)


class BulkReader(asyncio.StreamReader):
    """The reader of mitmproxy's connections, changed to return all that has arrived, where mitmproxy asks for 64 KB.

    While mitmproxy waits for data, `fast_path` may take what arrives without waking the waiting task.
    """

    fast_path: Callable[[bytes], int] | None = None
    """Forwards as much of the start of the data as it can, and returns its length in bytes."""
    _waiter: asyncio.Future[None] | None
    _buffer: bytearray
    _eof: bool
    _exception: BaseException | None
    _limit: int
    _wait_for_data: Callable[[str], Awaitable[None]]
    _maybe_resume_transport: Callable[[], None]

    @classmethod
    def take_over(cls, handler: ConnectionHandler, connection: Connection) -> "BulkReader | None":
        """Turn the reader of this connection into a BulkReader, and return it; None if it is not one of asyncio's."""
        io = handler.transports.get(connection)
        reader = io.reader if io else None
        if type(reader) is asyncio.StreamReader:
            reader.__class__ = cls
            reader._limit = READ_BUFFER // 2  # type: ignore[attr-defined]
            transport = transport_of(handler, connection)
            protocol = transport.get_protocol() if transport else None
            if transport and type(protocol) is asyncio.StreamReaderProtocol:
                protocol.__class__ = BulkProtocol
                cast(BulkProtocol, protocol).bulk = cast(BulkReader, reader)
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

    async def read(self, n: int = -1) -> bytes:
        """Do as StreamReader.read, but return all there is, whatever `n`."""
        if self._exception is not None:
            raise self._exception
        if not self._buffer and not self._eof:
            await self._wait_for_data("read")
        data = bytes(self._buffer)
        self._buffer.clear()
        self._maybe_resume_transport()
        return data
