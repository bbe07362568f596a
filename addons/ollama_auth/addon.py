"""The addon: what mitmproxy calls, in the order in which a request meets it. The only module that touches `ctx`.

Two objects. `OllamaAuth` is what the script auth.py holds; mitmproxy removes and loads it again whenever that file
changes. `Gate` is put before all other addons once and stays: while no configured OllamaAuth is there it answers every
request 503. So the unconfigured, the broken, the reloaded and the removed addon all deny.

A request walks: client_connected, next_layer (the edge is put in place), then for each request head judge (credential,
key, route, size, headers -> an Admission or a Refusal), begin, answered, end. The edge calls those four itself, and
lets nothing upstream without the Admission.
"""

import asyncio
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions, http, optmanager, version
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.log import ALERT
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import TlsData
from mitmproxy.utils import asyncio_utils, human

from . import credentials, headers, keys, settings
from .access_log import AccessLog
from .connections import Connections, Link, close_left
from .edge import ClientTls, Farewell, GateLayer
from .exchange import Admission, Exchange, Refusal, keeping
from .head import Bounds, Head, HeadError, check_fields, values
from .responses import Answer, error, render, retry_after, unauthorized
from .routes import Dialect, route

logger = logging.getLogger(__name__)

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
TLS_RECORD = 0x16
"""The first byte of a TLS handshake (RFC 8446 section 5.1); no HTTP method begins with it."""
TLS_ALERT = bytes.fromhex("15 03 01 00 02 02 28")
"""A fatal handshake_failure alert (RFC 8446 section 6): what a TLS client understands."""
UPSTREAM_CONNECTIONS = 256
"""At once for one client connection; mitmproxy's five would let HTTP/2 streams wait for each other."""
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel has a limit of its own."""
RETRY_SECONDS = 5
A_DAY = 24 * 60 * 60

# What makes mitmproxy safe and right as a gate, unless the user set it.
_DEFAULTS: dict[str, Any] = {
    "connection_strategy": "lazy",  # No connection to Ollama before a request was admitted.
    "block_global": False,  # Public clients are what authentication is for.
    "tcp_timeout": A_DAY,  # A model that loads, or an answer that does not stream, may be silent for hours.
    "keep_host_header": False,  # Ollama refuses names it does not know.
}
_MITMDUMP_DEFAULTS: dict[str, Any] = {
    "flow_detail": 0,  # mitmdump's own lines show whole URLs; ours don't.
    "termlog_verbosity": "alert",  # Nor does every TCP connection need a line.
}


class OllamaAuth:
    """What auth.py loads. It holds the gate open: `load` installs it, `configure` opens it, `done` closes it."""

    def __init__(self) -> None:
        self.name = f"ollama_auth_{id(self)}"  # A second script of ours is no error, so names must differ.
        self.gate: Gate | None = None

    def load(self, loader: Loader) -> None:
        self.gate = Gate.installed(loader)

    def configure(self, updated: set[str]) -> None:
        if self.gate:
            self.gate.open(self)

    def done(self) -> None:
        if self.gate:
            self.gate.close(self)


class Gate:
    """The gate itself: one for a run of mitmproxy, before all other addons."""

    name = "ollama_gate"

    def __init__(self) -> None:
        self.holders: set[int] = set()
        self.settings: settings.Settings | None = None
        self.connections = Connections()
        self.log = AccessLog()
        self.draining = False
        self.removed = False
        self.taken: bytes | None = None
        self.bounds = Bounds()
        self.head_timeout: float = 10
        self.idle_timeout: float = 120

    # Starting, being configured, being held open.

    @classmethod
    def installed(cls, loader: Loader) -> "Gate":
        """The gate of this mitmproxy, put there if it is the first time."""
        addons = loader.master.addons
        gate = addons.get(cls.name)
        if gate is None:
            gate = cls()
            try:
                addons.register(gate)
            except exceptions.OptionsError as fault:  # A value on the command line that is not of the option's type.
                logger.error("%s", fault)
            addons.chain.insert(0, gate)
            gate.apply_defaults()
        assert isinstance(gate, cls)
        return gate

    def load(self, loader: Loader) -> None:
        for option in settings.OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.help)

    def apply_defaults(self) -> None:
        """Set what nobody set."""
        options = dict(ctx.options.items())
        wanted = _DEFAULTS | (_MITMDUMP_DEFAULTS if "flow_detail" in options else {})
        ctx.options.update(**{n: v for n, v in wanted.items() if options[n].value is optmanager.unset})

    def configure(self, updated: set[str]) -> None:
        """Options were changed while running: take them, or say what is wrong and keep what was."""
        if self.settings is None:
            return  # Not opened yet: open() reads them all.
        try:
            self.take(self.read())
        except settings.SettingsError as fault:
            raise exceptions.OptionsError(f"ollama_auth: {fault}") from fault

    def open(self, holder: object) -> None:
        """A configured script holds the gate open. A fault at the start ends mitmproxy, which looks for errors."""
        first = self.settings is None
        try:
            self.take(self.read())
        except settings.SettingsError as fault:
            logger.error("ollama_auth: %s", fault)
        if self.settings is None:
            return
        self.holders.add(id(holder))
        if self.removed:
            logger.error("ollama_auth: the gate was removed from mitmproxy and denies everything: restart mitmproxy")
        elif not first:
            logger.log(ALERT, "ollama_auth: auth.py was loaded again; the gate is open to those with a key")

    def close(self, holder: object) -> None:
        """A script that held the gate open is gone."""
        self.holders.discard(id(holder))
        if not self.holders and self.settings and not ctx.master.should_exit.is_set():
            logger.warning(
                "ollama_auth: auth.py is not loaded, so every request is denied: restore the file, and if nothing "
                "follows, restart mitmproxy"
            )

    def read(self) -> settings.Settings:
        check_version(version.VERSION)
        found = settings.read(ctx.options, os.environ, self.taken)
        option = ctx.options.ollama_api_key
        if option not in (None, settings.MASKED):
            self.taken = settings.read_key(ctx.options, os.environ)[0]
            ctx.options.update(ollama_api_key=settings.MASKED)
        return found

    def take(self, new: settings.Settings) -> None:
        """Put settings in force, all of them or none."""
        old = self.settings
        if old is None or old.access_log != new.access_log:
            self.log = self._open_log(new.access_log)
        self.settings = new
        self.bounds, self.head_timeout, self.idle_timeout = new.bounds, new.head_timeout, new.idle_timeout
        for warning in new.warnings:
            if old is None or warning not in old.warnings:
                logger.warning("ollama_auth: %s", warning)

    def _open_log(self, target: str | None) -> AccessLog:
        emit: Callable[[str], None] | None = None
        if ctx.master.addons.get("termlog") is None:  # The full-screen mitmproxy: its event log.
            emit = log_line
        elif ctx.options.termlog_verbosity == "error":  # mitmdump --quiet
            emit = no_line
        try:
            log = AccessLog(target, emit)
        except OSError as fault:
            raise settings.SettingsError(
                f"ollama_access_log: can't write {target!r} ({fault.strerror}); name a file that can be written"
            ) from fault
        self.log.close()
        return log

    def running(self) -> None:
        asyncio_utils.create_task(self.connections.sweep(), name="gate sweep", keep_ref=True)
        raise_file_limit()
        widen_backlog()
        servers = ctx.master.addons.get("proxyserver").servers
        where = " and ".join({human.format_address(address) for server in servers for address in server.listen_addrs})
        upstream = ctx.options.mode[0].removeprefix("reverse:").partition("@")[0]
        logger.log(ALERT, "ollama_auth: guarding %s, listening on %s", upstream, where or "nothing")

    # A connection.

    def client_connected(self, client: Client) -> None:
        """Take a connection in, or end it before a byte of it is read."""
        client.error = "not taken in"
        if client.transport_protocol != "tcp" or not isinstance(client.proxy_mode, ReverseMode):
            return
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler is None:
            return
        link = Link(client, handler, time.monotonic() + self.head_timeout)
        limits = self.settings
        most = limits.max_connections if limits else 100
        if not self.connections.add(link, most, limits.max_connections_per_client if limits else 0):
            self.connections.trouble("a connection was refused: all others are at work")
            if not ctx.options.certs:
                full = error(503, "too many connections; try again later", Dialect.OLLAMA, retry_after(RETRY_SECONDS))
                handler.transports[client].writer.write(render(full))
            return
        handler.max_conns = defaultdict(lambda: asyncio.Semaphore(UPSTREAM_CONNECTIONS))
        client.error = None

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Put the edge in place. Whatever goes wrong here, the connection ends."""
        context = nextlayer.context
        nextlayer.layer = Farewell(context)
        link = self.connections.get(context.client.id)
        mode = context.client.proxy_mode
        if link is None or not isinstance(mode, ReverseMode) or mode.scheme not in ("http", "https"):
            return
        encrypted = nextlayer.data_client()[:1] == bytes([TLS_RECORD])
        if encrypted != bool(ctx.options.certs):
            words = (
                TLS_ALERT if encrypted else render(error(400, "this server speaks HTTPS; write https:// for http://"))
            )
            nextlayer.layer = Farewell(context, words)
            return
        context.server.tls = mode.scheme == "https"
        context.layers.remove(nextlayer.layer)
        if encrypted:
            link.deadline = time.monotonic() + (self.settings.handshake_timeout if self.settings else self.head_timeout)
            outer = ClientTls(context)
            outer.child_layer = GateLayer(context, self, link)
            nextlayer.layer = outer
        else:
            nextlayer.layer = GateLayer(context, self, link)

    def client_disconnected(self, client: Client) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler:
            close_left(handler, *handler.transports)
        link = self.connections.remove(client.id)
        for exchange in list(link.exchanges.values()) if link else ():
            exchange.reason = exchange.reason or "client left"
            self.end(exchange, link)

    # A request.

    def judge(self, head: Head, link: Link) -> tuple[Exchange, Admission | Refusal]:
        """May it go upstream? Whatever raises on the way: no."""
        exchange = Exchange(link.address, head.method.decode("ascii", "replace"))
        try:
            verdict = self._judge(head, exchange, link)
        except Exception as fault:
            answer = self.crashed(fault)
            verdict = Refusal("error", answer)
        if isinstance(verdict, Refusal):
            exchange.reason, exchange.status = verdict.reason, verdict.answer.status
        else:
            link.admitted = True
            link.exchanges[id(exchange)] = exchange
        return exchange, verdict

    def _judge(self, head: Head, exchange: Exchange, link: Link) -> Admission | Refusal:
        known = self.settings.ring.find if self.settings else None
        exchange.take_id(head.fields, known)
        here = origin_form(head.target, link.client.sockname)
        exchange.route = route(head.method, head.target if here is None else here)
        dialect = exchange.route.dialect
        request_id = (b"x-request-id", exchange.id.encode())

        def refuse(reason: str, status: int, message: str, *extra: tuple[bytes, bytes]) -> Refusal:
            return Refusal(reason, error(status, message, dialect, request_id, *extra))

        def challenge(reason: str, message: str) -> Refusal:
            return Refusal(reason, unauthorized(message, dialect, request_id, sent=reason != "missing"))

        limits = self.settings
        exchange.path = headers.mask_path(exchange.route.path, known)
        if limits is None or not self.holders or self.removed:
            return refuse("closed", 503, "the gateway is not ready", retry_after(RETRY_SECONDS))
        fault = unfit(head, limits.bounds)
        if fault:
            return refuse("malformed", fault.status, fault.message)
        if here is None:
            return refuse("malformed", 421, "this is not a proxy: send the path alone as the request target")
        fields, exchange.stripped = headers.split(head.fields, limits.forward, known)
        try:
            secret = credentials.parse(head.fields)
        except credentials.CredentialError as why:
            return challenge(why.reason, why.message)
        principal = limits.ring.find(secret)
        if principal is None:
            exchange.key = f"unknown:{keys.fingerprint(secret)}"
            return challenge("unknown", "the key is not known here")
        exchange.key = principal.name
        max_body = limits.max_body.get(exchange.route.route_class)
        if max_body is not None and head.body > max_body:
            return refuse("body too large", 413, f"the request body is larger than {max_body} bytes")
        try:
            target, removed = headers.clean_target(here, secret)
        except ValueError:
            exchange.path = headers.MASKED_PATH
            return refuse("key in path", 400, "the key is in the path of the URL: take it for known to others")
        exchange.stripped += removed
        return Admission(principal.name, target, headers.without(fields, secret), max_body)

    def malformed(self, fault: HeadError, link: Link | None) -> Answer:
        """The answer to a head that is none, and its line in the log."""
        if link:
            exchange = Exchange(link.address, status=fault.status, reason="malformed")
            self.end(exchange, link)
        return error(fault.status, fault.message)

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """An admitted request is about to go upstream: its body streams, and mitmproxy's viewers know whose it is."""
        flow.metadata["ollama_key"] = exchange.key
        flow.metadata["ollama_id"] = exchange.id
        flow.comment = f"key: {exchange.key}"
        count = exchange.request_chunk
        flow.request.stream = keeping(flow.request, count) if self.watched else count

    def answered(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """The head of the response is here: it goes on at once, and so does every chunk behind it."""
        assert flow.response
        exchange.status = flow.response.status_code
        exchange.first_byte = time.monotonic()
        flow.response.headers["X-Request-Id"] = exchange.id
        count = exchange.response_chunk
        flow.response.stream = keeping(flow.response, count) if self.watched else count

    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer:
        """It went wrong after the admission; the answer is for a client that has seen nothing of one."""
        exchange.reason = exchange.reason or reason
        exchange.status = exchange.status or status or None
        dialect = exchange.route.dialect if exchange.route else Dialect.OLLAMA
        request_id = (b"x-request-id", exchange.id.encode())
        text, extra = FAILURES.get(reason, ("the request failed", ()))
        if reason.startswith("upstream"):
            logger.warning("ollama_auth: %s: %s (request %s)", reason, text, exchange.id)
        return error(status or 502, text, dialect, request_id, *extra)

    def end(self, exchange: Exchange, link: Link | None) -> None:
        """An exchange is over: one line, whatever ended it, and only one."""
        if exchange.ended is not None:
            return
        exchange.ended = time.monotonic()
        if link:
            link.exchanges.pop(id(exchange), None)
        self.log.write(exchange)

    def crashed(self, fault: Exception) -> Answer:
        """One of our own lines raised. The log gets where and what, but no message: it may hold what a client sent."""
        trace = fault.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "somewhere"
        logger.error("ollama_auth: %s at %s: the request was denied", type(fault).__name__, where)
        return error(503, "the gateway failed to decide, so it denies", Dialect.OLLAMA, retry_after(RETRY_SECONDS))

    @property
    def watched(self) -> bool:
        """Somebody looks at flows: mitmweb, mitmproxy, or a file of flows."""
        return ctx.master.addons.get("view") is not None or bool(ctx.options.save_stream_file)

    # The way upstream.

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """The second lock: no client connection has one upstream before a request of it was admitted.

        A connection that mitmproxy's proxy server does not know is an operator's replay.
        """
        link = self.connections.get(data.client.id)
        ours = data.client.id in ctx.master.addons.get("proxyserver").connections
        if ours and not (link and link.admitted):
            data.server.error = "no request of this connection was admitted"
        elif link and self.settings:
            link.connect_within(self.settings.connect_timeout, data.server)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if not data.server.tls:
            self._connect_ended(data.client, data.server)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        link = self.connections.get(data.client.id)
        if link and link.handler.transports.get(data.server):
            close_left(link.handler, data.server)
            link.handler.transports.pop(data.server)
            if data.server.state is not ConnectionState.CLOSED:
                data.server.state = ConnectionState.CLOSED
                link.tell(events.ConnectionClosed(data.server))

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._connect_ended(data.client, data.server)

    def tls_established_server(self, data: TlsData) -> None:
        self._connect_ended(data.context.client, data.context.server)

    def tls_failed_server(self, data: TlsData) -> None:
        self._connect_ended(data.context.client, data.context.server)

    def _connect_ended(self, client: Client, server: Server) -> None:
        link = self.connections.get(client.id)
        if link:
            link.connect_ended(server)

    # The end.

    def done(self) -> Awaitable[None] | None:
        """Either mitmproxy is shutting down, and requests at work may end first; or somebody takes the gate out."""
        addons = ctx.master.addons
        if any(addon is self for addon in addons.chain):
            return self.drain()
        self.removed = True
        addons.chain = [self, *addons.chain]
        addons.lookup[self.name] = self
        logger.error("ollama_auth: the gate was removed from mitmproxy; it denies everything from here on: restart")
        return None

    async def drain(self) -> None:
        """Stop listening, let running requests end within the grace period, close the rest."""
        self.draining = True
        grace = self.settings.grace_period if self.settings else 0
        impatient = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(signum, impatient.set)
        await ctx.master.addons.get("proxyserver").servers.update([])
        for link in self.connections:
            link.drain()
        busy = sum(len(link.exchanges) for link in self.connections)
        if busy:
            logger.log(ALERT, "ollama_auth: stopping; %d requests have up to %d s to end", busy, grace)
        transports = [transport for link in self.connections if (transport := link.transport())]
        until = time.monotonic() + grace
        while time.monotonic() < until and not impatient.is_set():
            if all(link.idle for link in self.connections) and not any(map(unsent, transports)):
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(impatient.wait(), 0.05)
        lost = sum(len(link.exchanges) for link in self.connections)
        if lost:
            logger.warning("ollama_auth: stopped with %d requests at work", lost)
        for link in self.connections:
            for exchange in list(link.exchanges.values()):
                exchange.reason = exchange.reason or "stopped"
                self.end(exchange, link)
        self.log.close()


def log_line(line: str) -> None:
    """A line of the access log for mitmproxy's event log."""
    logger.log(ALERT, "%s", line)


def no_line(_: str) -> None:
    """A line of the access log for nobody."""


FAILURES: dict[str, tuple[str, tuple[tuple[bytes, bytes], ...]]] = {
    "upstream unreachable": ("Ollama is not reachable", (retry_after(RETRY_SECONDS),)),
    "upstream timeout": ("Ollama does not accept connections", (retry_after(RETRY_SECONDS),)),
    "upstream broken": ("Ollama broke off or answered something that is not HTTP", ()),
    "body too large": ("the request body is too large", ()),
}


def unfit(head: Head, bounds: Bounds) -> HeadError | None:
    """What no client may ask of this server, with or without a key."""
    if head.method not in METHODS:
        return HeadError(405, "this method is not served here")
    if {value.strip().lower() for value in values(head.fields, b"upgrade")} - {b"h2c"}:
        # An upgrade to h2c, which Java's client offers with every first request, is ignored: RFC 9113 section 3.1.
        return HeadError(400, "this server upgrades to no other protocol")
    if {value.lower() for value in values(head.fields, b"expect")} - {b"100-continue"}:
        return HeadError(417, "the only expectation met here is 100-continue")
    if head.version == b"HTTP/2.0":
        try:
            check_fields(head.fields, head.target, bounds, ended=head.body == 0)
        except HeadError as fault:
            return fault
    return None


def origin_form(target: bytes, here: tuple[str, int] | None) -> bytes | None:
    """The path and query of a request target (RFC 9112 section 3.2), or None where it is not of this server.

    The absolute form is taken for the address that the client connected to, and for no other name: of more than that
    a gate does not know whether it is its own, and everything else is somebody who takes it for a proxy.
    """
    if target.startswith(b"/"):
        return target
    scheme, _, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if not here or scheme.lower() not in (b"http", b"https"):
        return None
    host = f"[{here[0]}]" if ":" in here[0] else here[0]
    names = {host, "localhost"} if here[0] in ("127.0.0.1", "::1") else {host}
    return slash + path or b"/" if authority.lower() in {f"{name}:{here[1]}".encode() for name in names} else None


def check_version(have: str) -> None:
    """Older versions have holes of their own (CVE-2025-57804), newer ones may have moved what the edge leans on."""
    numbers = tuple(int(part) if part.isdigit() else 0 for part in have.split(".")[:3])
    if not (12, 2, 2) <= numbers < (13,):
        raise settings.SettingsError(
            f"this is mitmproxy {have}, and at least 12.2.2 and less than 13 is needed: "
            "pip install 'mitmproxy>=12.2.2,<13' with Python 3.12 or newer"
        )


def raise_file_limit() -> None:
    """Each request takes two sockets; the limit a shell starts with is often 1024, and may be raised by anyone."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def widen_backlog() -> None:
    """asyncio lets 100 connections wait to be accepted; of a burst, the others would try again after a second."""
    for instance in ctx.master.addons.get("proxyserver").servers:
        for server in instance._servers:
            with suppress(AttributeError, OSError):
                for listener in server.sockets:
                    with listener.dup() as own:
                        own.listen(BACKLOG)


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that were handed to a transport and not yet to the kernel, which sends what it has to the end."""
    return transport.get_write_buffer_size()
