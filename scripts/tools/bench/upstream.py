"""The upstream of scripts/bench. It knows only as much HTTP as the bench's clients send, so that it limits no proxy.

GET /api/version and POST /api/show answer a few bytes of JSON, POST /demo/sink answers the length of its body, GET
/demo/bytes/N sends N bytes. POST /api/embed answers embeddings of {"bytes": N} in all. POST /api/chat
streams {"tokens": N} lines like Ollama, one each {"pause": S} seconds. The content of a line is its number and the time
at which it was sent, in ns of the monotonic clock, which all processes of a machine share.
"""

import asyncio
import gc
import json
import sys
import time
from contextlib import suppress
from typing import cast

HOST = "127.0.0.1"
VERSION = b'{"version":"0.12.6"}'
EMBEDDING = b"[" + b",".join(b"%.7f" % (number / 1e4 - 0.05) for number in range(1024)) + b"],"
PIECE = bytes(1 << 18)
START = '{"model":"demo","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"'
LAST = (START + '"},"done":true}\n').encode()


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Server(asyncio.Protocol):
    """One connection; requests come one at a time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.head = bytearray()
        self.body = bytearray()
        self.path = b""
        self.length = self.left = 0
        self.writable = asyncio.Event()
        self.writable.set()
        self.next: asyncio.TimerHandle | None = None
        self.sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it.

    def connection_lost(self, _: Exception | None) -> None:
        self.writable.set()
        if self.next:
            self.next.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if not self.left:
            self.head += data
            head, found, rest = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.path = bytes(head.split(b" ", 2)[1])
            _, _, length = head.lower().partition(b"content-length:")
            self.length = self.left = int(length.partition(b"\r\n")[0] or 0)
            self.head.clear()
            self.body.clear()
            data = bytes(rest)
        self.left -= len(data)
        if self.path in (b"/api/chat", b"/api/embed"):
            self.body += data
        if not self.left:
            self.answer()

    def answer(self) -> None:
        if self.path == b"/api/chat":
            wanted = json.loads(self.body)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.token(head, 0, wanted["tokens"], wanted["pause"], self.loop.time())
        elif self.path == b"/api/embed":
            self.sending = asyncio.ensure_future(self.embed(json.loads(self.body)["bytes"]))
        elif self.path.startswith(b"/demo/bytes/"):
            self.sending = asyncio.ensure_future(self.send(int(self.path.rpartition(b"/")[2])))
        elif self.path == b"/demo/sink":
            self.transport.write(answer(b'{"bytes":%d}' % self.length))
        else:
            self.transport.write(answer(VERSION))

    def token(self, before: bytes, number: int, tokens: int, pause: float, due: float) -> None:
        if number == tokens:
            self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST), LAST))
            return
        line = f'{START}{number}@{time.monotonic_ns()}"}},"done":false}}\n'.encode()
        self.transport.write(b"%s%x\r\n%s\r\n" % (before, len(line), line))
        self.next = self.loop.call_at(due + pause, self.token, b"", number + 1, tokens, pause, due + pause)

    async def embed(self, size: int) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        some = EMBEDDING * (len(PIECE) // len(EMBEDDING))
        pieces = [b'{"model":"demo","embeddings":[', *[some] * (size // len(some)), b'[]],"prompt_eval_count":8}']
        self.transport.write(b"%x\r\n" % sum(map(len, pieces)))  # One chunk, as Ollama sends it.
        for piece in (*pieces, b"\r\n0\r\n\r\n"):
            await self.writable.wait()
            self.transport.write(piece)

    async def send(self, size: int) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size and not self.transport.is_closing():
            await self.writable.wait()
            self.transport.write(PIECE[:size])
            size -= min(size, len(PIECE))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Server, HOST, port, backlog=1024)
    gc.freeze()
    gc.disable()  # Its pauses would count as the proxy's.
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(int(sys.argv[1])))
