"""Upstream servers: the demo upstream with paths for tests, it in a thread, and one that plays a script."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from scripts.tools.demo_answers import JSON, Json
from scripts.tools.demo_upstream import PIECE, DemoRequest, DemoUpstream, SeenRequest
from tests.harness.base import PATIENCE, free_port
from tests.harness.wire import Line

type Script = Callable[["Line"], object]


class OddUpstream(DemoUpstream):
    """A DemoUpstream with paths below /demo/ whose answers are of any length, of any status, late, or never whole."""

    def __init__(self, token_delay: float = 0.0) -> None:
        super().__init__(token_delay=token_delay)
        self.routes |= {
            "/demo/bytes/*": ("GET", self._bytes),
            "/demo/sink": ("POST", self._sink),
            "/demo/silent/*": ("GET", self._silent),
            "/demo/break/*": ("GET", self._break),
            "/demo/status/*": ("GET", self._status),
            "/demo/trailers": ("GET", self._trailers),
        }

    async def _bytes(self, request: DemoRequest) -> None:
        left = int(request.tail)
        request.headers["Content-Type"] = "application/octet-stream"
        request.start(200, length=left)
        for size in [PIECE] * (left // PIECE) + [left % PIECE]:
            await request.send(bytes(size))

    async def _sink(self, request: DemoRequest) -> Json:
        async for _ in request.body():
            pass
        return {"bytes": request.seen.body_length}

    async def _silent(self, request: DemoRequest) -> None:
        await asyncio.sleep(float(request.tail))
        await request.answer(200, b"{}", JSON)

    async def _break(self, request: DemoRequest) -> None:
        chunked = request.tail == "chunked"
        request.start(200, length=None if chunked else 1000, chunked=chunked)
        await request.send(b"the first of many")
        request.close = True

    async def _status(self, request: DemoRequest) -> None:
        request.start(int(request.tail))
        await request.send(b"")

    async def _trailers(self, request: DemoRequest) -> None:
        request.headers["Trailer"] = "X-Demo-Trailer"
        request.start(200, chunked=True)
        await request.send(b"a body and its trailer")
        await request.send_raw(b"0\r\nX-Demo-Trailer: here\r\n\r\n")


class Upstream:
    """An OddUpstream in a thread of its own."""

    def __init__(self, token_delay: float = 0.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.demo: OddUpstream = self._call(self._make(token_delay))

    async def _make(self, token_delay: float) -> OddUpstream:
        demo = OddUpstream(token_delay)
        await demo.start()
        return demo

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    @property
    def port(self) -> int:
        return self.demo.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.demo.port}"

    @property
    def connections(self) -> int:
        return self.demo.connections

    @property
    def open_connections(self) -> int:
        return self.demo.open_connections

    @property
    def requests(self) -> list[SeenRequest]:
        return list(self.demo.requests)

    @property
    def last(self) -> SeenRequest:
        return self.demo.requests[-1]

    def hold(self) -> None:
        """Streams stop after their first item."""
        self._loop.call_soon_threadsafe(self.demo.hold.clear)

    def go_on(self) -> None:
        self._loop.call_soon_threadsafe(self.demo.hold.set)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Nothing is seen upstream, and no connection is made, in this block."""
        before = self.connections, len(self.demo.requests)
        yield
        time.sleep(0.02)  # What was on its way would have arrived.
        assert (self.connections, len(self.demo.requests)) == before

    def reset(self) -> None:
        self.go_on()
        self.demo.requests.clear()

    def restart(self) -> None:
        """End all connections, listen no more for half a second, and then on the same port again."""
        self._call(self.demo.close())
        time.sleep(0.5)
        self._call(self.demo.start())

    def stop(self) -> None:
        self._call(self.demo.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class Scripted:
    """An upstream on one port that does what the test says: each connection is given to `play`, and closed after it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.play: Script = lambda _: None
        self.accepted = 0
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._running = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, play: Script | None = None) -> Self:
        """Listen."""
        self.play = play or self.play
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Listen no more, and end all connections."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    @contextmanager
    def plays(self, play: Script) -> Iterator[None]:
        """Do this on each new connection, in this block; connections of before end."""
        self.stop()
        self.accepted = 0
        self.start(play)
        yield
        self.stop()

    @property
    def busy(self) -> bool:
        """A connection is open."""
        return self._running > 0

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                self.accepted += 1
                self._running += 1
                self._open.append(accepted)
                threading.Thread(target=self._run, args=(Line(accepted), self.play), daemon=True).start()

    def _run(self, peer: Line, play: Script) -> None:
        with suppress(OSError, AssertionError):
            play(peer)
        with suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        peer.close()
        self._running -= 1


def cut_off(more: threading.Event) -> Script:
    """A body that only the end of its connection ends, and a reset in place of that, once `more` is set."""

    def play(peer: Line) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        more.wait(PATIENCE)
        peer.reset()

    return play
