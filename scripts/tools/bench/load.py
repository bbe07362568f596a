"""The HTTP clients of scripts/bench. They are fast, so that they limit no proxy, and check every answer completely."""

import asyncio
import ipaddress
import json
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self, cast

from ollama_auth.errors import OllamaAuthError

CONNECTIONS = 16
STREAMS = 100
PACE = 0.02  # seconds between the tokens of one of many streams: 50 a second
BEGUN = 150
"""Slow streams that begin in a second: few enough that what is measured is not their beginning."""
PIECE = bytes(1 << 18)
MODEL = b'{"model":"demo"}'


class WrongAnswerError(OllamaAuthError):
    """An answer that is not as expected. It ends the run, since no figure would count."""


@dataclass(frozen=True)
class Address:
    """A proxy's or the upstream's loopback address, and the key for it. Others raise WrongAnswerError."""

    host: str
    port: int
    key: str

    def __post_init__(self) -> None:
        if not ipaddress.ip_address(self.host).is_loopback:
            raise WrongAnswerError(f"{self.host} is not this machine: the bench measures loopback addresses alone")

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(self, method: str, path: str, body: bytes = b"", length: int = 0, key: str | None = None) -> bytes:
        """A request head with its body, or for a body of `length` bytes that follows."""
        key = self.key if key is None else key
        fields = {"Host": f"{self.host}:{self.port}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        if method == "POST":
            fields |= {"Content-Type": "application/json", "Content-Length": str(length or len(body))}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Client(asyncio.Protocol):
    """One connection for one request at a time. Checks the status, length and framing of each answer."""

    def __init__(self, status: int, content: Callable[[bytes], None]) -> None:
        self.status = status
        self.content = content
        """Called with each piece of the body, without framing."""
        self.buffer = b""
        self.in_body = self.chunked = self.last = False
        self.left = 0
        self.whole = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()

    @classmethod
    async def to(cls, at: Address, status: int, content: Callable[[bytes], None]) -> Self:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: cls(status, content), at.host, at.port))[1]

    def ask(self, request: bytes) -> asyncio.Future[None]:
        """Send a request. The future is done when its answer is complete, or raises WrongAnswerError."""
        self.whole = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.whole

    def close(self) -> None:
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it.

    def connection_lost(self, _: Exception | None) -> None:
        self.writable.set()
        if not self.whole.done():
            self._end(WrongAnswerError("the answer was cut off"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._read(data)
        except (WrongAnswerError, ValueError) as error:
            self._end(WrongAnswerError(f"a wrong answer: {error}"))
            self.transport.abort()

    def _read(self, data: bytes) -> None:
        if not self.in_body:
            head, found, data = (self.buffer + data).partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            self._head(head)
        if self.chunked:
            self._chunks(data)
            return
        if len(data) > self.left:
            raise WrongAnswerError("more than was announced")
        self.left -= len(data)
        if data:
            self.content(data)
        if not self.left:
            self._end(None)

    def _head(self, head: bytes) -> None:
        self.in_body, self.buffer = True, b""
        if int(head[9:12]) != self.status:
            raise WrongAnswerError(f"not {self.status}, but {head.partition(b'\r\n')[0].decode()}")
        lower = head.lower()
        self.chunked = b"\r\ntransfer-encoding: chunked" in lower
        self.left = 0 if self.chunked else int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])

    def _chunks(self, data: bytes) -> None:
        """Read chunks, `left` bytes of one of which are still to come, with the line end behind it."""
        data, at = self.buffer + data if self.buffer else data, 0
        while at < len(data):
            if self.left:
                piece = data[at : at + max(0, self.left - 2)]
                if piece:
                    self.content(piece)
                    self.left -= len(piece)
                    at += len(piece)
                if self.left > 2 or len(data) < at + 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise WrongAnswerError("broken chunks")
                self.left, at = 0, at + 2
                if self.last:
                    self._end(None)
                    break
            if (line := data.find(b"\r\n", at)) < 0:
                break
            self.left, at = int(data[at:line], 16) + 2, line + 2
            self.last = self.left == 2
        self.buffer = data[at:]

    def _end(self, error: WrongAnswerError | None) -> None:
        self.in_body = False
        if self.whole.done():
            return
        if error:
            self.whole.set_exception(error)
        else:
            self.whole.set_result(None)


class Count:
    """Counts the bytes of a body."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, data: bytes) -> None:
        self.bytes += len(data)


async def repeated(seconds: float, asks: Sequence[Callable[[], Awaitable[object]]]) -> tuple[int, float]:
    """Do each of `asks` again and again, all at once; return (how often they were done, how often a second)."""
    begun = time.perf_counter()

    async def one(ask: Callable[[], Awaitable[object]]) -> int:
        asked = 0
        while time.perf_counter() < begun + seconds:
            await ask()
            asked += 1
        return asked

    done = sum(await asyncio.gather(*map(one, asks)))
    return done, done / (time.perf_counter() - begun)


async def requests(at: Address, seconds: float, method: str = "GET", path: str = "/api/version") -> float:
    """Requests a second, on kept-alive connections."""
    request, body = at.request(method, path, MODEL if method == "POST" else b""), Count()
    clients = [await Client.to(at, 200, body) for _ in range(CONNECTIONS)]
    await clients[0].ask(request)
    size = body.bytes
    asked, rate = await repeated(seconds, [partial(client.ask, request) for client in clients])
    for client in clients:
        client.close()
    if not size or body.bytes != (asked + 1) * size:
        raise WrongAnswerError(f"{body.bytes} bytes in {asked + 1} answers of {size}")
    return rate


async def refusals(at: Address, seconds: float) -> float:
    """Refusals a second, each on a connection of its own."""
    request = at.request("GET", "/api/version", key="wrong")

    async def ask() -> None:
        client = await Client.to(at, 401, Count())
        await client.ask(request)
        client.close()

    return (await repeated(seconds, [ask] * CONNECTIONS))[1]


class Token(NamedTuple):
    """The times of one token."""

    sent: float  # seconds of the monotonic clock
    late: float  # ms


class Chat:
    """The answer to one chat. Called with each piece of it; raises WrongAnswerError if a token is missing."""

    def __init__(self) -> None:
        self._found: list[Token] = []
        self._rest, self._done = b"", False

    def __call__(self, data: bytes) -> None:
        now = time.monotonic_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._done = said["done"]
            if self._done:
                continue
            number, _, sent = said["message"]["content"].partition("@")
            if int(number) != len(self._found):
                raise WrongAnswerError("a token is missing, or out of order")
            self._found.append(Token(int(sent) / 1e9, (now - int(sent)) / 1e6))

    def tokens(self, count: int) -> list[Token]:
        """All of them. Raises WrongAnswerError if there are not so many, or the answer has not ended."""
        if len(self._found) != count or not self._done or self._rest:
            raise WrongAnswerError(f"{len(self._found)} tokens of {count}")
        return self._found


def chat_body(tokens: int, pause: float) -> bytes:
    return json.dumps({"model": "demo", "messages": [], "tokens": tokens, "pause": pause}).encode()


async def stream(at: Address, tokens: int, pause: float) -> list[Token]:
    """The tokens of one chat, all there and in order. Raises WrongAnswerError."""
    client = await Client.to(at, 200, chat := Chat())
    await client.ask(at.request("POST", "/api/chat", chat_body(tokens, pause)))
    client.close()
    return chat.tokens(tokens)


async def streams(
    at: Address, within: float, tokens: int, count: int = STREAMS, pause: float = PACE
) -> list[list[Token]]:
    """The tokens of `count` chats that begin evenly spread over `within` seconds, one every `pause` seconds."""

    async def one(number: int) -> list[Token]:
        await asyncio.sleep(within * number / count)
        return await stream(at, tokens, pause)

    return await asyncio.gather(*(one(number) for number in range(count)))


class Lateness(NamedTuple):
    """Percentiles, in ms."""

    p50: float
    p99: float


def lateness(tokens: list[Token]) -> Lateness:
    """The percentiles over tokens of the time from the upstream's stamp to the arrival."""
    if not tokens:
        raise WrongAnswerError("the streams were never all at work at once: this machine is too busy to measure")
    late = [token.late for token in tokens]
    return Lateness(statistics.median(late), p99(late))


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


async def one_stream(at: Address, tokens: int) -> Lateness:
    """The lateness in one chat at 100 tokens a second."""
    return lateness(await stream(at, tokens, PACE / 2))


async def running(at: Address, seconds: float, *, in_step: bool = False) -> tuple[Lateness, int]:
    """(lateness in STREAMS chats while all of them run, the number of all tokens).

    The tokens of the chats are either evenly spread, as those of independent users, or simultaneous, as those of one
    batch. Anything between would depend on chance.
    """
    apart = PACE if in_step else PACE / 2 + PACE / STREAMS  # So that the tokens are evenly spread.
    chats = await streams(at, apart * STREAMS, int((seconds + 5.0) / PACE))
    return while_all_run(chats), sum(map(len, chats))


def while_all_run(chats: Sequence[Sequence[Token]]) -> Lateness:
    """The lateness from the time at which the last chat has begun until the first one ends."""
    begun, ended = max(chat[0].sent for chat in chats) + 0.2, min(chat[-1].sent for chat in chats)
    return lateness([token for chat in chats for token in chat if begun <= token.sent <= ended])


async def arriving(at: Address, bursts: int) -> Lateness:
    """The lateness in STREAMS chats while they begin, until the last one's first token; pooled over the bursts."""
    pool: list[Token] = []
    for _ in range(bursts):
        chats = await streams(at, 0.2, int(1.0 / PACE))
        last = max(chat[0].sent for chat in chats)
        pool += [token for chat in chats for token in chat if token.sent <= last]
    return lateness(pool)


async def begun(at: Address, seconds: float) -> float:
    """Chats of one token a second, each on a new connection."""
    return (await repeated(seconds, [partial(stream, at, 1, 0)] * CONNECTIONS))[1]


async def slow_streams(at: Address, count: int, seconds: float) -> list[Token]:
    """The tokens of so many chats of one token a second, while all of them run: BEGUN of them begin in a second."""
    within = max(2.0, count / BEGUN)
    chats = await streams(at, within, int(within + seconds), count, 1.0)
    last = max(chat[0].sent for chat in chats)
    return [token for chat in chats for token in chat if token.sent >= last]


async def waited(at: Address, count: int) -> float:
    """The longest delay in ms of a token of one chat, of 200 a second, while `count` others begin and wait."""
    within = max(1.0, count / 500)
    probe = asyncio.ensure_future(stream(at, int(within * 200), 0.005))
    await streams(at, within, 2, count, within)
    return max(token.late for token in await probe)


async def idle(at: Address, count: int) -> list[Client]:
    """So many connections on which one request was answered. The caller closes them."""
    request, clients = at.request("GET", "/api/version"), []
    for _ in range(count):
        clients.append(await Client.to(at, 200, Count()))
        await clients[-1].ask(request)
    return clients


async def upload(at: Address, size: int) -> float:
    """Seconds to send so many bytes."""
    said: list[bytes] = []
    begun = time.perf_counter()
    client = await Client.to(at, 200, said.append)
    whole = client.ask(at.request("POST", "/demo/sink", length=size))
    for _ in range(size // len(PIECE)):
        await client.writable.wait()
        client.transport.write(PIECE)
    await whole
    client.close()
    if json.loads(b"".join(said)) != {"bytes": size}:
        raise WrongAnswerError("not all bytes arrived")
    return time.perf_counter() - begun


async def embeddings(at: Address, size: int) -> float:
    """Seconds to receive embeddings of about so many bytes."""
    request = at.request("POST", "/api/embed", b'{"model":"demo","bytes":%d}' % size)
    return await received(at, request, range(size * 9 // 10, size + 101))


async def download(at: Address, size: int) -> float:
    """Seconds to receive so many bytes."""
    return await received(at, at.request("GET", f"/demo/bytes/{size}"), range(size, size + 1))


async def received(at: Address, request: bytes, sizes: range) -> float:
    """Seconds to receive an answer. Raises WrongAnswerError if it has none of these sizes."""
    count = Count()
    begun = time.perf_counter()
    client = await Client.to(at, 200, count)
    await client.ask(request)
    client.close()
    if count.bytes not in sizes:
        raise WrongAnswerError(f"{count.bytes} bytes of {sizes[0]} to {sizes[-1]}")
    return time.perf_counter() - begun
