"""The paths of the console on the status listener: its page, and JSON under /console/.

Each row of ROUTES says who may: a key is asked for before the path is looked up, and before a body is read. What is not
in the table does not exist. The page's own files hold nothing of anybody and need no key.
"""

import asyncio
import json
import sqlite3
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import tzinfo
from enum import Enum, auto
from functools import cache, cached_property, partial
from hashlib import sha256
from pathlib import Path
from re import fullmatch
from typing import Any, Protocol
from urllib.parse import unquote

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from ..auth.keys import KeyRing, Principal
from ..errors import RefusedError
from ..runtime import ActiveConfig
from ..settings import Settings
from ..telemetry.ledger import Ledger
from ..telemetry.monitor import Monitor
from ..telemetry.status_server import POLICY, Handler, Problem
from . import access
from .cache import Cache

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a request, once somebody has signed in."""
STATIC = Path(__file__).with_name("static")
STYLE_LINK = b'<link rel="stylesheet" href="static/style.css">'
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Need(Enum):
    """Who may ask."""

    OVERVIEW = auto()
    """Administrators; on an address of this machine alone, everybody."""
    KEY = auto()
    """Whoever has a key; what is shown is of that key."""
    ADMIN = auto()
    """Administrators, who change something: so it is in the access log, with who did it."""


@dataclass(slots=True)
class Call:
    """A request to the console. `who` is None where the overview is open."""

    console: "Console"
    who: Principal | None
    request: HTTPServerRequest
    query: Mapping[str, str]
    body: Any
    name: str
    """The part of the path that names a key."""
    logged: str = ""
    """What the access log shows in place of the path, if it is not empty."""

    raw_name: str = ""
    """That part as it stands in the path."""

    @property
    def admin(self) -> bool:
        return self.who is None or access.is_admin(self.who)

    @property
    def signed_in(self) -> Principal:
        assert self.who
        return self.who

    @property
    def settings(self) -> Settings:
        assert self.console.config.settings
        return self.console.config.settings

    @property
    def zone(self) -> tzinfo:
        """The time zone of days and months."""
        return self.settings.timezone

    @property
    def ledger(self) -> Ledger:
        assert self.console.config.ledger
        return self.console.config.ledger

    def ask_ledger[T](self, ask: Callable[[sqlite3.Connection], T]) -> Awaitable[T]:
        """What a query of the ledger finds, asked in a thread."""
        return asyncio.to_thread(self.ledger.query, ask)

    def asked[T](self, name: Hashable, ask: Callable[[sqlite3.Connection], T]) -> Awaitable[T]:
        """The same, or what it found not long ago under that name."""
        return self.console.cache.get(name, partial(self.ledger.query, ask))

    def may_go_on(self) -> bool:
        """Whether the key may still do what it was let in for: it may have been revoked, rotated or narrowed since."""
        try:
            now = access.sign_in(self.request, self.console.config)
        except RefusedError:
            return False
        return now.name == self.signed_in.name and access.is_admin(now) == self.admin

    @property
    def ring(self) -> KeyRing:
        return self.settings.ring


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is not an object for JSON: a table as CSV, or a stream."""

    media_type: str
    content: str | AsyncGenerator[bytes]
    fields: Mapping[str, str] = field(default_factory=dict)
    status: int = 200

    async def close(self) -> None:
        """End a stream that nobody wants."""
        if not isinstance(self.content, str):
            await anext(self.content, None)  # One that has not begun would clean up nothing.
            await self.content.aclose()


@dataclass(frozen=True, slots=True)
class Row:
    """A path of the console: who may ask, and the function that answers."""

    method: str
    pattern: str
    need: Need
    answer: Callable[[Call], Awaitable[object]]


class Gate(Protocol):
    """What the console asks of `addon.Gate`, which made it."""

    @property
    def upstream(self) -> str: ...
    @property
    def trust(self) -> dict[str, Any]: ...  # See monitor.Gate.
    @property
    def address(self) -> tuple[str, int] | None: ...  # Where the gate can be reached from here.
    async def reload_keys(self) -> None: ...  # Puts a keys file in force that was changed just now.
    @property
    def on_behalf(self) -> dict[tuple[str, int], str]: ...  # The client's address, by our end of a connection to there.


@dataclass
class Console:
    """What the pages are made of."""

    config: ActiveConfig
    monitor: Monitor
    gate: Gate
    rows: tuple[Row, ...]
    cache: Cache = field(default_factory=Cache)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    listings: tuple[float, bytes, bytes] | None = None
    """What Ollama said of its models, and when."""

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of all paths."""
        return frozenset(word for row in self.rows for word in row.pattern.split("/"))

    def routes(self) -> list[tuple[Any, ...]]:
        return [("/", StaticHandler), ("/static/(.*)", StaticHandler), ("/console/.*", ApiHandler, {"console": self})]

    def check_metrics(self, request: HTTPServerRequest) -> None:
        """Ask for an administrator's key where /metrics is not for everybody. Raises RefusedError."""
        if self.config.settings and not self.config.settings.metrics_public:
            access.check_admin(access.sign_in(request, self.config))


@cache
def static_files() -> dict[str, tuple[str, bytes]]:
    """(media type, content) of the files of the page, by name."""
    return {path.name: (TYPES[path.suffix], path.read_bytes()) for path in STATIC.iterdir() if path.suffix in TYPES}


@cache
def page() -> tuple[bytes, str]:
    """The page with its style in it, so that it is painted without another request, and the policy that allows it.

    To name the modules for a preload as well made Chromium paint later on a busy machine: it then compiles them first.
    """
    style = static_files()["style.css"][1]
    digest = b64encode(sha256(style).digest()).decode()
    content = static_files()["index.html"][1].replace(STYLE_LINK, b"<style>%b</style>" % style)
    return content, POLICY.replace("style-src 'self'", f"style-src 'sha256-{digest}'")


class StaticHandler(Handler):
    """These files may be kept, and are asked for again each time: their Etag says whether they have changed."""

    async def get(self, *names: str) -> None:
        media_type, content = static_files().get(names[0] if names else "index.html", ("", b""))
        if not media_type:
            raise HTTPError(404)
        if not names:
            content, policy = page()
            self.set_header("Content-Security-Policy", policy)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Content-Type", f"{media_type}; charset=utf-8")
        self.finish(content)


@stream_request_body
class ApiHandler(Handler):
    """Asks who it is, finds the row, reads the body, answers. Changes and refusals are logged."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")

    def initialize(self, console: Console) -> None:  # type: ignore[override]
        super().initialize()
        self.console = console
        self.received = bytearray()
        self.who: Principal | None = None
        self.row: Row | None = None
        self.call: Call | None = None
        self.refusal: RefusedError | None = None
        self.task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        super().prepare()
        method = "GET" if self.request.method == "HEAD" else self.request.method
        found = [(row, match) for row in self.console.rows if (match := fullmatch(row.pattern, self.request.path))]
        fitting = next((one for one in found if one[0].method == method), None)
        is_open = self.local and fitting and fitting[0].need is Need.OVERVIEW
        if not is_open or "Authorization" in self.request.headers:
            self.who = access.sign_in(self.request, self.console.config)
        if fitting is None:
            served = ", ".join(row.method for row, _ in found)
            if served:
                raise Problem(405, f"this path is served with {served}", (b"allow", served.encode()))
            raise Problem(404, "there is no such path: scripts/docs/console.md lists them")
        self.row, match = fitting
        self.check_need(self.row)
        query = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        raw = match.groupdict().get("name") or ""
        self.call = Call(self.console, self.who, self.request, query, None, unquote(raw), raw_name=raw)
        self.request.connection.set_max_body_size(MAX_BODY)  # type: ignore[union-attr]

    def check_need(self, row: Row) -> None:
        """Raises RefusedError where an administrator's key is needed and it is another one."""
        if self.who and row.need is not Need.KEY:
            access.check_admin(self.who)

    def data_received(self, chunk: bytes) -> None:
        self.received += chunk

    async def get(self, *_: str) -> None:
        assert self.row and self.call
        if self.received:
            if self.who:  # The key may have been revoked or narrowed while the body came.
                self.call.who = self.who = access.sign_in(self.request, self.console.config)
                self.check_need(self.row)
            try:
                self.call.body = json.loads(self.received)
            except (ValueError, RecursionError):
                raise Problem(400, "the body is not JSON") from None
        self.task = asyncio.current_task()
        try:
            await self._send(await self.row.answer(self.call))
        except (asyncio.CancelledError, StreamClosedError):
            if not self.stream.closed():
                raise
        except sqlite3.Error:
            raise Problem(503, "the ledger can't be read now; the log of the gate says why") from None

    post = patch = delete = get

    async def _send(self, content: object) -> None:
        if not isinstance(content, Text):
            return self.send_json(content)
        self.set_status(content.status)
        self.set_header("Content-Type", content.media_type)
        for name, value in content.fields.items():
            self.set_header(name, value)
        if isinstance(content.content, str):
            self.finish(content.content)
            return None
        async with aclosing(content.content) as pieces:
            if self.request.method == "HEAD":
                return None
            async for piece in pieces:
                self.write(piece)
                await self.flush()
        return None

    def on_connection_close(self) -> None:
        """The client has left: end what is done for it."""
        if self.task:
            self.task.cancel()

    def write_error(self, status_code: int, **more: Any) -> None:
        error = more.get("exc_info", (None, None))[1]
        self.refusal = error if isinstance(error, RefusedError) and error.reason else None
        super().write_error(status_code, **more)

    def on_finish(self) -> None:
        super().on_finish()
        refusal = self.refusal
        if (refusal or (self.row and self.row.need is Need.ADMIN)) and not (refusal and refusal.suppress_log):
            path = (self.call and self.call.logged) or access.shown_path(self.request.path, self.console.words)
            key = self.who.name if self.who else refusal.key if refusal else None
            reason = refusal.reason if refusal else None
            access.log(self.console.config, self.request, path, key, self.get_status(), reason)
