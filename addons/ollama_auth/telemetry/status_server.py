"""Serve the status listener with Tornado, which mitmproxy brings with it.

`/metrics` is for Prometheus, `/healthz` says that the process is alive (for a supervisor) and `/readyz` that the
gateway is open and Ollama answers (for a load balancer). `console/` adds the page and what it asks for.
"""

import ipaddress
import json
import logging
import os
import socket
from asyncio import get_running_loop
from contextlib import suppress
from typing import Any, Protocol

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from ..errors import RefusedError, place_of
from ..http.responses import RETRY_SECONDS
from . import workers

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
MAX_HEAD, MAX_BODY = 8 * 1024, 1024
"""Bytes; of a body, before somebody has signed in."""
IDLE = 30.0
"""Seconds between two requests of a connection, and for one of them."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The content security policy of every answer: the page runs its own files and nothing else, and is never framed."""


class Problem(RefusedError):
    """A request that can't be answered: the status, and what is wrong with it. The log has no word for it."""

    def __init__(self, status: int, message: str, *fields: tuple[bytes, bytes]) -> None:
        super().__init__("", status, message, *fields)


class Watch(Protocol):
    """What is told of the gate: the Monitor, which makes this server."""

    def render_metrics(self, accept: str) -> tuple[bytes, str]: ...
    async def unready_reason(self) -> str | None: ...


class Site(Protocol):
    """What console/, which is layers above, adds to this listener."""

    def routes(self) -> list[tuple[Any, ...]]: ...  # As a Tornado Application takes them.
    def check_metrics(self, request: HTTPServerRequest) -> None: ...  # Raises RefusedError.


class StatusServer:
    def __init__(self, host: str, port: int, watch: Watch, site: Site) -> None:
        """Listen. Raises OSError where the address can't be listened on."""
        address = address_of(host)
        application = Application(
            [
                ("/metrics", MetricsHandler),
                ("/healthz", HealthHandler),
                ("/readyz", ReadinessHandler),
                *site.routes(),
            ],
            default_handler_class=Handler,
            log_function=lambda _: None,
            watch=watch,
            site=site,
            local=address.is_loopback if address else host == "localhost",
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

    SUPPORTED_METHODS: tuple[str, ...] = ("GET", "HEAD")

    def initialize(self) -> None:
        self.watch: Watch = self.settings["watch"]
        self.local: bool = self.settings["local"]
        """Only this machine can connect."""
        self.server: BoundedServer = self.settings["server"]
        self.stream: IOStream = self.request.connection.stream  # type: ignore[union-attr]

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
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
            raise Problem(421, "open this page as localhost or by IP address: no other name is answered here")

    def write_error(self, status_code: int, **more: Any) -> None:
        error = more.get("exc_info", (None, None))[1]
        if isinstance(error, RefusedError):
            self.set_status(error.status)
            for name, value in error.fields:
                self.set_header(name.decode().title(), value.decode())
        self.send_json({"error": error.message if isinstance(error, RefusedError) else self._reason})

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, RefusedError | HTTPError):
            logger.error("ollama_auth: %s at %s: the status listener answered 500", kind.__name__, place_of(error))

    def send_json(self, content: object) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, separators=(",", ":")) + "\n")

    async def get(self, *_: str) -> None:
        raise HTTPError(404)

    async def head(self, *rest: str) -> None:
        await self.get(*rest)  # Tornado leaves out the body.


class MetricsHandler(Handler):
    async def get(self, *_: str) -> None:
        site: Site = self.settings["site"]
        site.check_metrics(self.request)
        content, media_type = self.watch.render_metrics(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", media_type)
        self.finish(content)


class HealthHandler(Handler):
    async def get(self, *_: str) -> None:
        self.send_json({"alive": True})


class ReadinessHandler(Handler):
    async def get(self, *_: str) -> None:
        reason = await self.watch.unready_reason()
        if reason:
            self.set_status(503)
            self.set_header("Retry-After", str(RETRY_SECONDS))
        self.send_json({"ready": False, "reason": reason} if reason else {"ready": True})


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is written as, in brackets or without; None for a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]"))
    return None
