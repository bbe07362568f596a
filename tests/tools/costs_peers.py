"""What tests/tools/costs.py runs beside a server: its upstream, and a probe, each in a process of its own.

    python costs_peers.py upstream PORT
    python costs_peers.py probe PORT KEY [CERT]

The upstream knows as much HTTP as proxies send, so that it limits none. The probe asks what is refused without the
upstream, on new connections, and what the upstream answers, on a kept one, until its standard input ends. Then it
prints JSON: for both, (when the answer was there by time.monotonic, seconds that it took) of each request.
"""

import asyncio
import json
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress
from typing import cast

HOST = "127.0.0.1"
EVERY = 0.04
"""Seconds between an answer and the next request of the probe."""
PATIENCE = 15.0
CHUNK = b"5\r\ntoken\r\n"
TOKENS, PAUSE = 10, 0.2
"""Of /demo/tokens."""
PIECE = bytes(1 << 18)


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Upstream(asyncio.Protocol):
    """One connection; requests come one at a time."""

    open = 0
    """Connections of all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Upstream.open += 1
        self.transport = cast(asyncio.Transport, transport)
        self.head = b""
        self.received = 0
        self.left: int | None = 0
        """Bytes of the body that are to come; None: it is chunked."""
        self.tail = b""
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        Upstream.open -= 1
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.left == 0:
            self.head, found, data = (self.head + data).partition(b"\r\n\r\n")
            if not found:
                return
            lower = self.head.lower()
            length = lower.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.left = None if b"transfer-encoding: chunked" in lower else int(length or 0)
            self.received, self.tail = 0, b""
        self.received += len(data)
        if self.left is None:
            self.tail = (self.tail + data[-5:])[-5:]
            if self.tail != b"0\r\n\r\n":
                return
        elif self.left > len(data):
            self.left -= len(data)
            return
        path, self.head, self.left = self.head.split(b" ", 2)[1], b"", 0
        self.answering = asyncio.ensure_future(self.answer(path))

    async def answer(self, path: bytes) -> None:
        kind, _, count = path.removeprefix(b"/demo/").partition(b"/")
        if kind == b"bytes":
            await self.send_bytes(int(count))
        elif kind == b"ones":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n" * int(count) + answer(b"{}"))
        elif kind == b"tokens":
            await self.send_tokens()
        elif kind == b"cut":  # The end of the connection would end the body, but it is reset.
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of it")
            await asyncio.sleep(0.05)
            own = self.transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.transport.abort()
        elif kind == b"open":
            self.transport.write(answer(b"%d" % (Upstream.open - 1)))
        else:
            self.transport.write(answer(b'{"bytes":%d}' % self.received))

    async def send_bytes(self, size: int) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size and not self.transport.is_closing():
            self.transport.write(PIECE[:size])
            size -= min(size, len(PIECE))
            await self.writable.wait()

    async def send_tokens(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for left in reversed(range(TOKENS)):
            if not self.transport.is_closing():
                self.transport.write(CHUNK if left else b"0\r\n\r\n")
            await asyncio.sleep(PAUSE)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, HOST, port, backlog=4096)
    await server.serve_forever()


def connect(port: int, cert: str | None) -> socket.socket:
    plain = socket.create_connection((HOST, port), PATIENCE)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not cert:
        return plain
    context = ssl.create_default_context(cafile=cert)
    context.set_alpn_protocols(["http/1.1"])
    return context.wrap_socket(plain, server_hostname="localhost")


def ask(connection: socket.socket, key: str) -> bytes:
    """Return the status of a small request."""
    credential = f"Authorization: Bearer {key}\r\n" if key else "Connection: close\r\n"
    connection.sendall(f"GET /api/version HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n".encode())
    got = b""
    while b"\r\n\r\n" not in got:
        if not (piece := connection.recv(65536)):
            raise OSError("closed")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head[9:12]


def probe(port: int, key: str, cert: str | None) -> None:
    stop = threading.Event()
    found: dict[str, list[tuple[float, float]]] = {"refused": [], "answered": []}

    def go_on(name: str, key: str) -> None:
        kept: socket.socket | None = None
        while not stop.is_set():
            begun = time.monotonic()
            try:
                kept = kept or connect(port, cert)
                good = ask(kept, key) == (b"200" if key else b"401")
            except OSError:
                good = False
            ended = time.monotonic()
            found[name].append((ended, ended - begun if good else PATIENCE))
            if kept and not (good and key):
                kept.close()
                kept = None
            stop.wait(EVERY)

    threads = [threading.Thread(target=go_on, args=pair) for pair in (("refused", ""), ("answered", key))]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(found))


if __name__ == "__main__":
    what, port, *rest = sys.argv[1:]
    if what == "upstream":
        with suppress(ImportError):
            import uvloop

            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(int(port)))
    else:
        probe(int(port), rest[0], rest[1] if len(rest) > 1 else None)
