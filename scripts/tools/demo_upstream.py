"""A fake Ollama server, for trying the gateway; for its tests, tests/harness/upstream.py adds paths of their own.

On the wire it is like Ollama: the framing, the order of header fields, the JSON and the errors. It runs no model:
demo_answers.py makes the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Self
from urllib.parse import unquote

from .demo_answers import (
    FORMATS,
    JSON,
    NDJSON,
    Completion,
    Folded,
    Json,
    an_object,
    dump,
    embeddings,
    thinks,
    timestamp,
)  # fmt: skip

type Handler = Callable[[DemoRequest], Awaitable[Json | None]]

PIECE = 64 * 1024
HEAD_LIMIT = KEPT_BODY = 1 << 20
KEPT_REQUESTS = 1000
DRAIN_LIMIT = 256 * 1024  # Go reads away an unused body up to this long, to keep the connection
GO_BUFFER = 2048  # Go gives no Content-Length to more than this
LINGER = 0.5  # seconds, as in Go
TEXT, UTF8 = "text/plain", "; charset=utf-8"
ALL = ["completion", "tools", "thinking", "embedding"]
CAPABILITIES = {"tiny:latest": ["completion"]}
"""Of the models that can't do ALL."""
DIGEST = hashlib.sha256(b"demo").hexdigest()
SIZES = {"size": 4096, "digest": DIGEST}
DETAILS = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
DETAILS |= {"parameter_size": "101K", "quantization_level": "unknown"}
INFO = {"general.architecture": "llama", "llama.context_length": 2048}
TENSORS = [{"name": f"blk.{n}.attn_q.weight", "type": "F32", "shape": [64, 64]} for n in range(40)]
PULLED = {"status": f"pulling {DIGEST[:12]}", "digest": f"sha256:{DIGEST}", "total": 4096}
JOBS: dict[str, list[Json]] = {
    "/api/create": [{"status": "parsing GGUF"}, {"status": f"creating new layer sha256:{DIGEST}"}],
    "/api/pull": [{"status": "pulling manifest"}, PULLED, PULLED | {"completed": 4096}],
    "/api/push": [{"status": "retrieving manifest"}, PULLED | {"status": f"pushing {DIGEST[:12]}", "completed": 4096}],
}


@dataclass
class SeenRequest:
    """A request as received. `body` is its beginning, at most KEPT_BODY bytes, and grows while it is read."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    body_length: int = 0
    complete: bool = False

    @classmethod
    def parse(cls, head: bytes) -> Self:
        """Parse a request head. Raises ValueError."""
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
        fields = [line.split(":", 1) for line in lines]
        return cls(method, target, version, [(name, value.strip()) for name, value in fields])


class ApiError(Exception):
    """An error response, in JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    def json(self, path: str) -> Json:
        """The body, in the format of the API that the path belongs to."""
        if not path.startswith("/v1/"):
            return {"error": self.message}
        kind = "not_found_error" if self.status == 404 else "invalid_request_error"
        if path != "/v1/messages":
            return {"error": {"message": self.message, "type": kind, "param": None, "code": None}}
        error = {"type": kind, "message": self.message}
        return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}


class DemoProtocol(asyncio.StreamReaderProtocol):
    """A connection that cancels its task when the client leaves, even if the task is not reading."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], asyncio.Task[None]]):
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._serving = serve(reader, writer)

        super().__init__(asyncio.StreamReader(HEAD_LIMIT), connected)

    def eof_received(self) -> bool | None:
        """Treat the end of the client's data as its leaving, as Go does."""
        self._serving.cancel()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._serving.cancel()
        super().connection_lost(exc)


class DemoRequest:
    """One request on a connection, with the methods that read its body and send the response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: SeenRequest) -> None:
        fields = {name.lower(): value.lower() for name, value in seen.headers}
        self.seen, self.path = seen, unquote(seen.target.partition("?")[0])
        self.parent, _, self.tail = self.path.rpartition("/")
        self.headers: dict[str, str] = {}
        self.close = seen.version == "HTTP/1.0" or "close" in fields.get("connection", "")
        self._reader, self._writer, self._head, self._chunked = reader, writer, b"", False
        self._expects = fields.get("expect") == "100-continue"
        self._body_in_chunks = "chunked" in fields.get("transfer-encoding", "")
        self._length = int(fields.get("content-length", 0))
        seen.complete = not (self._body_in_chunks or self._length)

    async def body(self) -> AsyncIterator[bytes]:
        """Read the rest of the request body, in pieces."""
        if self.seen.complete:
            return
        if self._expects:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for piece in self._take_chunks() if self._body_in_chunks else self._take(self._length):
            self.seen.body += piece[: KEPT_BODY - len(self.seen.body)]
            self.seen.body_length += len(piece)
            yield piece
        self.seen.complete = True

    async def read_json(self) -> Json:
        """Read a JSON object. Raises ApiError."""
        text = b"".join([piece async for piece in self.body()]).decode(errors="replace").rstrip()
        if not text:
            raise ApiError(400, "missing request body")
        try:
            return an_object(json.loads(text, object_pairs_hook=Folded))
        except RecursionError:
            raise ApiError(400, "exceeded max depth") from None
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text) - 1 or "Unterminated" in error.msg
            wrong = f"invalid character {text[error.pos : error.pos + 1]!r} looking for beginning of value"
            raise ApiError(400, "unexpected EOF" if cut else wrong) from None

    def start(self, status: int, *, length: int | None = None, chunked: bool = False) -> None:
        """Prepare the response head, with its fields in Go's order. It is sent with the first piece of the body."""
        modern = self.seen.version != "HTTP/1.0"
        self._chunked = chunked and modern
        stuck = self._expects or self._body_in_chunks or self._length > DRAIN_LIMIT
        self.close |= stuck and not self.seen.complete
        if self.close:
            self.headers.pop("Connection", None)
        fields = [*sorted(self.headers.items()), ("Date", formatdate(usegmt=True))]
        fields += [("Content-Length", str(length))] * (length is not None)
        fields += [("Connection", "close")] * (self.close and modern)
        fields += [("Transfer-Encoding", "chunked")] * self._chunked
        first = f"{self.seen.version} {status} {HTTPStatus(status).phrase}"
        self._head = "\r\n".join([first, *map(": ".join, fields), "", ""]).encode("latin-1")

    async def send(self, data: bytes) -> None:
        """Send a piece of the body; in chunked encoding an empty piece is the end."""
        await self.send_raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes without framing."""
        self._writer.write(self._head + (b"" if self.seen.method == "HEAD" else data))
        self._head = b""
        await self._writer.drain()

    async def answer(self, status: int, body: bytes = b"", content_type: str = "") -> None:
        """Send a whole response."""
        if content_type:
            self.headers["Content-Type"] = content_type
        long = len(body) > GO_BUFFER
        self.start(status, length=None if long else len(body), chunked=long)
        await self.send(body)
        if long:
            await self.send(b"")

    async def json(self, body: bytes, status: int = 200) -> None:
        """Send JSON. On /v1 it ends with a newline, except in a 400."""
        line = self.path.startswith("/v1/") and status != 400
        await self.answer(status, body + b"\n" * line, JSON if line else JSON + UTF8)

    async def stream(self, pieces: AsyncIterator[bytes]) -> None:
        """Send a chunked response, each piece when it comes."""
        self.start(200, chunked=True)
        async for piece in pieces:
            await self.send(piece)
        await self.send(b"")

    async def settle(self) -> None:
        """Discard what is left of the request body."""
        if not self.close:
            async for _ in self.body():
                pass
        elif not self.seen.complete:  # closing at once would reset the connection under the answer
            self._writer.write_eof()
            await asyncio.sleep(LINGER)

    async def _take(self, length: int) -> AsyncIterator[bytes]:
        while length > 0:
            piece = await self._reader.read(min(length, PIECE))
            if not piece:
                raise EOFError
            length -= len(piece)
            yield piece

    async def _take_chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readuntil(b"\n")).partition(b";")[0], 16):
            async for piece in self._take(size):
                yield piece
            await self._reader.readexactly(2)
        while (await self._reader.readuntil(b"\n")).strip():
            pass


def full_name(name: object) -> str:
    """Spell out a model's name, whichever of its forms is given."""
    short = str(name).lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short else f"{short}:latest"


class DemoUpstream:
    """The server. Tests look at `requests` and `connections`, and may stop its streams with `hold`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, token_delay: float = 0.0) -> None:
        self.host, self.port, self.token_delay = host, port, token_delay
        self.connections = 0
        self.requests: list[SeenRequest] = []
        self.hold = asyncio.Event()  # while it is cleared, no response gets further than its first item
        self.hold.set()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._blobs: set[str] = set()
        self._models = dict.fromkeys(("demo:latest", "tiny:latest"), time.time_ns())
        self.routes: dict[str, tuple[str, Handler]] = {
            "/": ("GET HEAD", self._root),
            "/api/version": ("GET HEAD", self._version),
            "/api/tags": ("GET HEAD", self._tags),
            "/api/ps": ("GET", self._ps),
            "/api/show": ("POST", self._show),
            "/api/blobs/*": ("HEAD POST", self._blob),
            "/api/copy": ("POST", self._copy),
            "/api/delete": ("DELETE", self._delete),
            "/v1/models": ("GET", self._openai_models),
            "/v1/models/*": ("GET", self._openai_model),
            **dict.fromkeys(("/api/embed", "/api/embeddings", "/v1/embeddings"), ("POST", self._embed)),
            **dict.fromkeys(FORMATS, ("POST", self._generate)),
            **dict.fromkeys(JOBS, ("POST", self._job)),
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        """Start to listen. From now on `port` is the real one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: DemoProtocol(self._serve), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop, and end the open connections at once."""
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        self.connections += 1
        task = asyncio.create_task(self._answer_all(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)
        return task

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # the client is gone, or does not send HTTP
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        seen = SeenRequest.parse(await reader.readuntil(b"\r\n\r\n"))
        self.requests.append(seen)
        del self.requests[:-KEPT_REQUESTS]
        request = DemoRequest(reader, writer, seen)
        try:
            await self._route(request)
        except ApiError as error:
            await request.json(dump(error.json(request.path)), error.status)
        await request.settle()
        return not request.close

    async def _route(self, request: DemoRequest) -> None:
        route = self.routes.get(request.path) or self.routes.get(f"{request.parent}/*")
        if not route:
            await request.answer(404, b"404 page not found", TEXT)
        elif request.seen.method not in route[0].split():
            request.headers["Allow"] = route[0].replace(" ", ", ")
            await request.answer(405, b"405 method not allowed", TEXT)
        elif value := await route[1](request):
            await request.json(dump(value))

    async def _paced[T](self, items: Iterable[T]) -> AsyncIterator[T]:
        for number, item in enumerate(items):
            if number:
                await self.hold.wait()
                await asyncio.sleep(self.token_delay)
            yield item

    def _find(self, name: object, complaint: str = "model '{}' not found") -> str:
        if (full := full_name(name)) not in self._models:
            raise ApiError(404, complaint.format(name))
        return full

    async def _generate(self, request: DemoRequest) -> None:
        ask = await request.read_json()
        completion = Completion(request.path, ask)
        answer, headers = FORMATS[request.path]
        request.headers |= headers if completion.stream else {}
        can = CAPABILITIES.get(self._find(completion.model), ALL)
        if ask.get("tools") and "tools" not in can:
            raise ApiError(400, f"registry.ollama.ai/library/{full_name(completion.model)} does not support tools")
        if thinks(ask) and "thinking" not in can:
            raise ApiError(400, f"{json.dumps(completion.model)} does not support thinking")
        if completion.stream:
            return await request.stream(self._paced(answer(completion)))
        async for _ in self._paced(completion.tokens):
            pass
        await request.json(next(answer(completion)))

    async def _job(self, request: DemoRequest) -> None:
        ask = await request.read_json()
        pushes, name = request.path == "/api/push", full_name(ask.get("model") or ask.get("name"))
        steps = [
            *JOBS[request.path],
            {"status": f"{'pushing' if pushes else 'writing'} manifest"},
            {"status": "success"},
        ]
        if pushes and name not in self._models:
            steps = [steps[0], {"status": "couldn't retrieve manifest"}, {"error": f"open {name}: no such file"}]
        lines = self._paced(dump(step) + b"\n" for step in steps)
        if ask.get("stream") is False:
            await request.answer(200, [line.strip() async for line in lines][-1], JSON)
        else:
            request.headers["Content-Type"] = NDJSON
            await request.stream(lines)
        if not pushes:
            self._models[name] = time.time_ns()

    async def _embed(self, request: DemoRequest) -> Json:
        ask = await request.read_json()
        self._find(ask.get("model"), 'model "{}" not found, try pulling it first')
        return embeddings(request.path, ask)

    async def _blob(self, request: DemoRequest) -> None:
        wanted, known, digest = request.tail, request.tail in self._blobs, hashlib.sha256()
        if not re.fullmatch("sha256:[0-9a-f]{64}", wanted):
            raise ApiError(400, "invalid digest format")
        if request.seen.method == "HEAD":
            if not known:
                raise ApiError(404, f'blob "{wanted}" not found')
            request.start(200)
            return await request.send(b"")
        if known:
            request.close = True
            return await request.answer(200)
        async for piece in request.body():
            digest.update(piece)
        if (found := f"sha256:{digest.hexdigest()}") != wanted:
            raise ApiError(400, f'digest mismatch, expected "{wanted}", got "{found}"')
        self._blobs.add(found)
        await request.answer(201)

    async def _copy(self, request: DemoRequest) -> None:
        ask = await request.read_json()
        self._find(ask.get("source"), 'model "{}" not found')
        self._models[full_name(ask.get("destination"))] = time.time_ns()
        await request.answer(200)

    async def _delete(self, request: DemoRequest) -> None:
        ask = await request.read_json()
        del self._models[self._find(ask.get("model") or ask.get("name"))]
        await request.answer(200)

    async def _show(self, request: DemoRequest) -> Json:
        ask = await request.read_json()
        name = self._find(full_name(ask.get("model") or ask.get("name")))
        head = {"modelfile": f"FROM {name}\n", "parameters": "num_ctx 2048", "template": "{{ .Prompt }}"}
        tail = {"capabilities": CAPABILITIES.get(name, ALL), "modified_at": timestamp(self._models[name])}
        return head | {"details": DETAILS, "model_info": INFO, "tensors": TENSORS} | tail

    async def _root(self, request: DemoRequest) -> None:
        await request.answer(200, b"Ollama is running", TEXT + UTF8)

    async def _version(self, request: DemoRequest) -> Json:
        return {"version": "0.33.0-demo"}

    async def _tags(self, request: DemoRequest) -> Json:
        details = DETAILS | {"context_length": 2048, "embedding_length": 32}
        tail = SIZES | {"details": details}
        models = [
            {"name": name, "model": name, "modified_at": timestamp(at)}
            | tail
            | {"capabilities": CAPABILITIES.get(name, ALL)}
            for name, at in self._models.items()
        ]
        return {"models": models}

    async def _ps(self, request: DemoRequest) -> Json:
        expires = {"expires_at": timestamp(time.time_ns() + 300 * 10**9)}
        tail = SIZES | {"details": DETAILS} | expires | {"size_vram": 0, "context_length": 2048}
        return {"models": [{"name": name, "model": name} | tail for name in self._models]}

    async def _openai_models(self, request: DemoRequest) -> Json:
        return {"object": "list", "data": [self._openai(name) for name in self._models] or None}

    async def _openai_model(self, request: DemoRequest) -> Json:
        return self._openai(self._find(full_name(request.tail))) | {"id": request.tail}

    def _openai(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": self._models[name] // 10**9, "owned_by": "library"}


async def serve(host: str, port: int, token_delay: float) -> None:
    """Serve until a signal says to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with DemoUpstream(host, port, token_delay) as upstream:
        print(f"Demo upstream (a fake Ollama server) on {upstream.url}", flush=True)
        await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A fake Ollama server, without any model.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=11434, help="port, 0 for any free one (%(default)s)")
    parser.add_argument("--token-delay", type=float, default=0.04, help="seconds a token (%(default)s)")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.host, options.port, options.token_delay))
    except OSError as error:
        sys.exit(f"cannot listen on {options.host}:{options.port} ({error.strerror}): choose another --port")


if __name__ == "__main__":
    main()
