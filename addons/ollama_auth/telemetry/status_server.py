"""What is served to those who watch over the gate, by Tornado, which mitmproxy brings with it.

`/` the status page, `/status.json` what it shows, `/metrics` for Prometheus, `/healthz` (alive) and `/readyz` (the gate
is open, and Ollama answers). Nothing here changes anything, and no request of a client reaches Ollama from here.
"""

import asyncio
import base64
import hashlib
import ipaddress
import json
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from . import workers

MAX_CONNECTIONS = 64
MAX_HEAD = 8 * 1024
MAX_BODY = 1024
IDLE = 30.0
"""Seconds between two requests of a connection, and for one of them."""
RETRY_SECONDS = 5
_FILE = Path(__file__).with_name("status.html")
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class Monitor(Protocol):
    """What is to be seen."""

    async def status(self) -> dict[str, object]:
        """All that the status page shows."""

    async def trouble(self) -> str | None:
        """Why a request would not be served now, or None."""

    def measures(self, accept: str) -> tuple[bytes, str]:
        """(the metrics, their media type)."""


class Server:
    """Listens at one address."""

    def __init__(self, observatory: Monitor, host: str, port: int) -> None:
        """Raises OSError where that can't be listened on."""
        what = {"observatory": observatory, "local": is_loopback(host)}
        handlers = {"/": Status, "/status.json": StatusJson, "/metrics": Measures, "/healthz": Alive, "/readyz": Ready}
        application = Application(
            [(path, handler, what) for path, handler in handlers.items()],
            default_handler_class=Nothing,
            default_handler_args=what,
            log_function=lambda _: None,
        )
        sockets = bind_sockets(port, host, reuse_port=workers.count(os.environ) > 1)
        self._server = BoundedServer(
            application,
            max_header_size=MAX_HEAD,
            max_body_size=MAX_BODY,
            idle_connection_timeout=IDLE,
            body_timeout=IDLE,
        )
        self._server.add_sockets(sockets)

    def close(self) -> None:
        """Listen no more, and answer no more."""
        self._server.stop()
        asyncio.get_running_loop().create_task(self._server.close_all_connections())


class BoundedServer(HTTPServer):
    """Takes so many connections at once, and closes further ones unread."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            stream.close()
        else:
            super().handle_stream(stream, address)


class Page(RequestHandler):
    """Whatever it is, it can be read and not changed, is new each time, and is framed by nobody."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, observatory: Monitor, local: bool) -> None:
        self.observatory = observatory
        self.local = local

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", page().policy)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        # A page from elsewhere may let its own name mean 127.0.0.1, and so read what is here (DNS rebinding).
        if self.local and not is_local(self.request.host_name):
            raise HTTPError(421)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.answer({"error": self._reason})

    def answer(self, what: dict[str, object]) -> None:
        """Send that as JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(what, separators=(",", ":")) + "\n")

    async def get(self) -> None:
        raise HTTPError(404)

    async def head(self) -> None:
        await self.get()  # Of which Tornado sends the head alone.


class Nothing(Page):
    """Anywhere else."""


class Status(Page):
    """For people."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(page().content)


class StatusJson(Page):
    """What the status page shows."""

    async def get(self) -> None:
        self.answer(await self.observatory.status())


class Measures(Page):
    """For Prometheus."""

    async def get(self) -> None:
        content, media_type = self.observatory.measures(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", media_type)
        self.finish(content)


class Alive(Page):
    """For who restarts what hangs."""

    async def get(self) -> None:
        self.answer({"alive": True})


class Ready(Page):
    """For who sends requests to this gate or to another one."""

    async def get(self) -> None:
        trouble = await self.observatory.trouble()
        if trouble:
            self.set_status(503)
            self.set_header("Retry-After", str(RETRY_SECONDS))
        self.answer({"ready": trouble is None} | ({"reason": trouble} if trouble else {}))


class StatusPage(NamedTuple):
    """The status page, and the policy that lets its own script run and nothing else."""

    content: bytes
    policy: str


@cache
def page() -> StatusPage:
    """Read once."""
    content = _FILE.read_bytes()
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(content))
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return StatusPage(
        content,
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )


async def get(url: str, seconds: float, **trust: Any) -> int:
    """The status that a GET of that URL is answered with in that time; 0 where there is none."""
    with suppress(OSError, HTTPClientError):
        client = AsyncHTTPClient()
        fetch = client.fetch(
            url,
            raise_error=False,
            connect_timeout=seconds,
            request_timeout=seconds,
            follow_redirects=False,
            decompress_response=False,
            user_agent="ollama-auth",
            **trust,
        )
        return (await fetch).code
    return 0


def is_loopback(host: str) -> bool:
    """Only this machine can reach it."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_local(name: str) -> bool:
    """A name of this machine that no DNS can give to another one, as a Host header has it: localhost, or an address."""
    with suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return name == "localhost"
