"""A client with many streams on one HTTP/2 connection (RFC 9113), for scripts/bench.

It reads frames itself: a library for HTTP/2 would take more time for each token than what is measured.
"""

import asyncio
import ssl
import struct
from typing import cast

from hpack import Decoder, Encoder

from .load import PACE, STREAMS, Address, Chat, Lateness, WrongAnswerError, chat_body, while_all_run

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
IGNORED = (2, WINDOW_UPDATE)
"""PRIORITY, and room for what is sent, of which there is little."""
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
WINDOW = (1 << 31) - 1
"""Bytes that may come without being asked for: the most there is, so that none have to be."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


class Connection(asyncio.Protocol):
    """Chats, each on a stream of its own. Checks the status and the framing of each answer."""

    def __init__(self, at: Address) -> None:
        self.at = at
        self.encoder, self.decoder = Encoder(), Decoder()
        self.buffer = bytearray()
        self.chats: dict[int, Chat] = {}
        self.running = 0
        self.ended = asyncio.get_running_loop().create_future()
        """Done when all that were asked for have ended; raises WrongAnswerError."""

    @classmethod
    async def to(cls, at: Address) -> "Connection":
        """Connect, whatever certificate there is. Raises OSError."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        return (
            await loop.create_connection(lambda: cls(at), at.host, at.port, ssl=context, server_hostname="localhost")
        )[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        settings = frame(SETTINGS, 0, 0, struct.pack("!HI", INITIAL_WINDOW_SIZE, WINDOW))
        more = frame(WINDOW_UPDATE, 0, 0, (WINDOW - 65535).to_bytes(4))
        self.transport.write(PREFACE + settings + more)

    def ask(self, body: bytes) -> Chat:
        """Begin a chat."""
        stream = 2 * len(self.chats) + 1
        self.chats[stream] = chat = Chat()
        self.running += 1
        fields = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": "/api/chat"}
        fields |= {"authorization": f"Bearer {self.at.key}", "content-length": str(len(body))}
        head = self.encoder.encode(list(fields.items()))
        self.transport.write(frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, body))
        return chat

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 9 and len(self.buffer) >= (end := 9 + int.from_bytes(self.buffer[:3])):
            kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9])
            payload = bytes(self.buffer[9:end])
            del self.buffer[:end]
            try:
                self.read(kind, flags, stream, payload)
            except (WrongAnswerError, ValueError, KeyError) as error:
                self.fail(f"a wrong answer: {error}")

    def read(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self.chats[stream](payload)
        elif kind == HEADERS and flags & ~END_STREAM == END_HEADERS:
            if dict(self.decoder.decode(payload, raw=True)).get(b":status") != b"200":
                raise WrongAnswerError("the status is not 200")
        elif kind in (SETTINGS, PING):
            if not flags & ACK:
                self.transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
            return
        elif kind not in IGNORED:
            raise WrongAnswerError(f"a frame of kind {kind} with flags {flags}")
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.running -= 1
            if not self.running and not self.ended.done():
                self.ended.set_result(None)

    def fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(WrongAnswerError(why))
        self.transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.fail("the connection was cut off")


async def running(at: Address, seconds: float) -> Lateness:
    """The lateness of tokens in STREAMS chats on one connection, evenly spread, while all of them run."""
    connection, tokens = await Connection.to(at), int((seconds + 5.0) / PACE)
    chats = []
    for _ in range(STREAMS):
        chats.append(connection.ask(chat_body(tokens, PACE)))
        await asyncio.sleep(PACE / 2 + PACE / STREAMS)
    await connection.ended
    connection.transport.close()
    return while_all_run([chat.tokens(tokens) for chat in chats])
