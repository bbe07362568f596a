"""Serve the status listener with Tornado, which mitmproxy brings with it.

`/` is the status page, `/status.json` what it shows, `/metrics` is for Prometheus, `/healthz` says that the process is
alive (for a supervisor) and `/readyz` that the gateway is open and Ollama answers (for a load balancer). Nothing here
changes anything, and no request from here reaches Ollama.
"""

import base64
import hashlib
import ipaddress
import json
import os
import re
import socket
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from ..http.responses import RETRY_SECONDS
from . import workers

MAX_CONNECTIONS = 64
MAX_HEAD, MAX_BODY = 8 * 1024, 1024
"""Bytes."""
IDLE = 30.0
"""Seconds between two requests of a connection, and for one of them."""
_FILE = Path(__file__).with_name("status.html")
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class StatusServer:
    def __init__(
        self,
        host: str,
        port: int,
        status: Callable[[], Awaitable[dict[str, object]]],
        metrics: Callable[[str], tuple[bytes, str]],
        unready_reason: Callable[[], Awaitable[str | None]],
    ) -> None:
        """`status` gives the JSON of the page, `metrics` a body and its media type for an Accept header.

        Raises OSError where the address can't be listened on.
        """
        address = address_of(host)
        local = {"local": address.is_loopback if address else host == "localhost"}
        application = Application(
            [
                ("/", StatusHandler, local),
                ("/status.json", StatusJsonHandler, local | {"source": status}),
                ("/metrics", MetricsHandler, local | {"source": metrics}),
                ("/healthz", HealthHandler, local),
                ("/readyz", ReadinessHandler, local | {"source": unready_reason}),
            ],
            default_handler_class=Handler,
            default_handler_args=local,
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
        application.settings["server"] = self._server
        self._server.add_sockets(sockets)

    def close(self) -> None:
        """Stop listening and close all connections."""
        self._server.stop()
        get_running_loop().create_task(self._server.close_all_connections())


class BoundedServer(HTTPServer):
    """Make room for a new connection beyond MAX_CONNECTIONS, so that silent ones keep nobody out."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self.open: dict[IOStream, None] = {}
        """Connections, the one first that has been without a request for longest."""
        self.answering: set[IOStream] = set()

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.open = {one: None for one in self.open if not one.closed()}
        self.answering.intersection_update(self.open)
        if len(self.open) >= MAX_CONNECTIONS:
            idle = [one for one in self.open if one not in self.answering]
            oldest = next((one for one in idle if not has_sent(one)), [*idle, *self.open][0])
            oldest.close()
        self.open[stream] = None
        super().handle_stream(stream, address)

    def begin(self, stream: IOStream) -> None:
        """Note that a request of this connection is being answered."""
        self.answering.add(stream)

    def end(self, stream: IOStream) -> None:
        """Note that it was answered."""
        self.answering.discard(stream)
        if stream in self.open:
            del self.open[stream]
            self.open[stream] = None


def has_sent(stream: IOStream) -> bool:
    """Whether something has come that was not read yet."""
    with suppress(OSError):
        return bool(stream.socket.recv(1, socket.MSG_PEEK))
    return False


class Handler(RequestHandler):
    """Answers 404. Its subclasses answer GET and HEAD: never cached, never framed."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, local: bool, source: Any = None) -> None:
        self.local = local
        self.source = source
        self.server: BoundedServer = self.settings["server"]
        self.stream: IOStream = self.request.connection.stream  # type: ignore[union-attr]

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", page()[1])
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")

    def on_finish(self) -> None:
        self.server.end(self.stream)

    def prepare(self) -> None:
        self.server.begin(self.stream)
        # A web page elsewhere may point its own name at 127.0.0.1 and so read what is here (DNS rebinding).
        # No DNS can point localhost or an IP address elsewhere.
        name = self.request.host_name
        if self.local and name != "localhost" and address_of(name) is None:
            raise HTTPError(421)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.send_json({"error": self._reason})

    def send_json(self, content: dict[str, object]) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, separators=(",", ":")) + "\n")

    async def get(self) -> None:
        raise HTTPError(404)

    async def head(self) -> None:
        await self.get()  # Tornado leaves out the body.


class StatusHandler(Handler):
    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(page()[0])


class StatusJsonHandler(Handler):
    async def get(self) -> None:
        self.send_json(await self.source())


class MetricsHandler(Handler):
    async def get(self) -> None:
        content, media_type = self.source(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", media_type)
        self.finish(content)


class HealthHandler(Handler):
    async def get(self) -> None:
        self.send_json({"alive": True})


class ReadinessHandler(Handler):
    async def get(self) -> None:
        reason = await self.source()
        if reason:
            self.set_status(503)
            self.set_header("Retry-After", str(RETRY_SECONDS))
        self.send_json({"ready": False, "reason": reason} if reason else {"ready": True})


@cache
def page() -> tuple[bytes, str]:
    """The status page, and the content security policy that lets its own script run and nothing else."""
    content = _FILE.read_bytes()
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(content))
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        content,
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is written as, in brackets or without; None for a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]"))
    return None
