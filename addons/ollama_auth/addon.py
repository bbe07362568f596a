"""The addon: what mitmproxy calls, in the order in which a request meets it. It and `viewing` alone touch `ctx`.

Two objects. `OllamaAuth` is what the script auth.py holds; mitmproxy removes and loads it again whenever that file
changes. `Gate` is put before all other addons once and stays: while no configured OllamaAuth is there it answers every
request 503. So the unconfigured, the broken, the reloaded and the removed addon all deny.

A request walks: client_connected, next_layer (which puts the layers in place); then each request head goes to
`RequestLifecycle`: authorize (an UpstreamRequest, an Admission or a Refusal), begin, response_started, finish. The
layers call those themselves, and let nothing upstream without the Admission; server_connect is the second lock.

A body that streams takes the short way of `splice`, past mitmproxy's layers, where nobody looks at it or changes it.
`hooks` has mitmproxy ask only the addons that listen, `options` remembers what was set, `garbage` says when to look for
it, `observatory` counts what has ended, `viewing` is for mitmweb.
"""

import asyncio
import atexit
import logging
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from mitmproxy import ctx, exceptions, options, optmanager, version
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.log import ALERT
from mitmproxy.net.http import url
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import TlsData
from mitmproxy.utils import asyncio_utils, human

from . import process, settings
from .exchange import Exchange
from .http.responses import error, render, retry_after
from .lifecycle import RETRY_SECONDS, RequestLifecycle
from .mitmweb.flows import COLUMNS, FlowViews
from .ollama_api.routes import Dialect
from .option_table import OPTIONS
from .proxy.connections import BulkReader, ClientConnection, Connections, close_left
from .proxy.events import Reservation
from .proxy.hook_dispatch import HookDispatcher
from .proxy.layer import ClientTls, CloseConnectionLayer, GateLayer
from .proxy.option_cache import CachedOptions
from .runtime import ActiveConfig, say
from .telemetry.monitor import Monitor

logger = logging.getLogger(__name__)

TLS_RECORD = 0x16
"""The first byte of a TLS handshake (RFC 8446 section 5.1); no HTTP method begins with it."""
TLS_ALERT = bytes.fromhex("15 03 01 00 02 02 28")
"""A fatal handshake_failure alert (RFC 8446 section 6): what a TLS client understands."""
UPSTREAM_CONNECTIONS = 256
"""At once for one client connection; mitmproxy's five would let HTTP/2 streams wait for each other."""
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel has a limit of its own."""
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
_MITMWEB_DEFAULTS: dict[str, Any] = {"web_columns": COLUMNS}


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

    def __init__(self, audience: HookDispatcher) -> None:
        self.audience = audience
        self.holders: set[int] = set()
        self.opening = False
        self.observatory = Monitor(self)
        self.config = ActiveConfig(where_lines_go, self.observatory)
        self.connections = Connections()
        self.removed = False
        viewing = FlowViews(self.config, audience.options)
        self.addons = [viewing]  # mitmproxy calls their hooks after the gate's own, before those of other addons.
        self.lifecycle = RequestLifecycle(self.config, self.connections, self.is_open, viewing, self.observatory)

    # Starting, being configured, being held open.

    @classmethod
    def installed(cls, loader: Loader) -> "Gate":
        """The gate of this mitmproxy, put there if it is the first time."""
        addons = loader.master.addons
        gate = addons.get(cls.name)
        if gate is None:
            gate = cls(HookDispatcher(addons, CachedOptions(loader.master.options)))
            try:
                addons.register(gate)
            except exceptions.OptionsError as fault:  # A value on the command line that is not of the option's type.
                logger.error("%s", fault)
            addons.chain.insert(0, gate)
            gate.audience.guard = gate
            gate.audience.install()
            gate.apply_defaults()
        assert isinstance(gate, cls)
        return gate

    def is_open(self) -> bool:
        """A configured script of ours is loaded, and nobody has taken the gate out."""
        return self.settings is not None and bool(self.holders) and not self.removed

    def load(self, loader: Loader) -> None:
        for option in OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.help)

    def apply_defaults(self) -> None:
        """Set what nobody set."""
        there = dict(ctx.options.items())
        wanted = _DEFAULTS | (_MITMDUMP_DEFAULTS if "flow_detail" in there else {})
        wanted |= _MITMWEB_DEFAULTS if "web_columns" in there else {}
        ctx.options.update(**{n: v for n, v in wanted.items() if there[n].value is optmanager.unset})

    def configure(self, updated: set[str]) -> None:
        """Options were changed while running: take them, or say what is wrong and keep what was."""
        ctx.master.event_loop.call_soon(self.audience.quieten)  # When the others have been configured, too.
        if self.settings is None:
            return  # Not opened yet: open() reads them all.
        try:
            self.config.configure(ctx.options)
        except settings.SettingsError as fault:
            raise exceptions.OptionsError(f"ollama_auth: {fault}") from fault

    def open(self, holder: object) -> None:
        """A configured script holds the gate open. A fault at the start ends mitmproxy, which looks for errors."""
        if id(holder) in self.holders or self.opening:
            return  # An option was changed, which configure() has seen, or is being changed below.
        first = self.settings is None
        self.opening = True
        try:
            check_version(version.VERSION)
            self.config.configure(ctx.options)
        except settings.SettingsError as fault:
            say(fault)
        finally:
            self.opening = False
        if self.settings is None:
            leave_with(1)
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

    @property
    def settings(self) -> settings.Settings | None:
        """Those in force."""
        return self.config.settings

    def running(self) -> None:
        asyncio_utils.create_task(self.connections.sweep(), name="gate sweep", keep_ref=True)
        asyncio_utils.create_task(self.observatory.share(), name="gate workers", keep_ref=True)
        asyncio_utils.create_task(self.config.watch(ctx.options), name="gate keys", keep_ref=True)
        asyncio_utils.create_task(self.config.renew(), name="gate leases", keep_ref=True)
        if hasattr(signal, "SIGHUP"):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.hang_up)
        raise_file_limit()
        widen_backlog()
        servers = ctx.master.addons.get("proxyserver").servers
        where = " and ".join({human.format_address(address) for server in servers for address in server.listen_addrs})
        if self.settings and self.settings.metrics_listen:
            watch = url.hostport("http", *self.settings.metrics_listen)
            logger.log(ALERT, "ollama_auth: who uses it, and how fast it is, is shown at http://%s/", watch)
        logger.log(ALERT, "ollama_auth: guarding %s, listening on %s", self.upstream, where or "nothing")
        process.freeze()
        asyncio_utils.create_task(process.tidy(lambda: not self.under_way), name="gate tidy", keep_ref=True)

    def hang_up(self) -> None:
        """SIGHUP: read the keys file and open the logs anew."""
        asyncio_utils.create_task(self.config.hang_up(ctx.options), name="gate hang-up", keep_ref=True)

    # What the observatory shows.

    @property
    def state(self) -> str:
        """`open`, `draining` or `closed`."""
        return "draining" if self.lifecycle.draining else "open" if self.is_open() else "closed"

    @property
    def upstream(self) -> str:
        """The URL of Ollama."""
        return str(ctx.options.mode[0]).removeprefix("reverse:").partition("@")[0].rstrip("/")

    @property
    def connection_count(self) -> int:
        """Client connections."""
        return len(self.connections)

    @property
    def under_way(self) -> list[Exchange]:
        """Requests that have not ended."""
        return [exchange for peer in self.connections for exchange in peer.exchanges.values()]

    @property
    def trust(self) -> dict[str, Any]:
        """How the certificate of an https upstream is checked: as mitmproxy does."""
        return {
            "validate_cert": not ctx.options.ssl_insecure,
            "ca_certs": ctx.options.ssl_verify_upstream_trusted_ca,
        }

    # A connection.

    def client_connected(self, client: Client) -> None:
        """Take a connection in, or end it before a byte of it is read."""
        client.error = "not taken in"
        if client.peername is None:  # It had left before it was accepted (seen on uvloop); addons expect an address.
            client.peername = ("0.0.0.0", 0)  # noqa: S104, nobody's
            return
        self.audience.quieten()
        if client.transport_protocol != "tcp" or not isinstance(client.proxy_mode, ReverseMode):
            return
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler is None:
            return
        peer = ClientConnection(client, handler, time.monotonic() + self.lifecycle.head_timeout)
        limits = self.settings
        most = limits.max_connections if limits else 100
        if not self.connections.add(peer, most, limits.max_connections_per_client if limits else 0):
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
        nextlayer.layer = CloseConnectionLayer(context)
        peer = self.connections.get(context.client.id)
        mode = context.client.proxy_mode
        if peer is None or not isinstance(mode, ReverseMode) or mode.scheme not in ("http", "https"):
            return
        encrypted = nextlayer.data_client()[:1] == bytes([TLS_RECORD])
        if encrypted != bool(ctx.options.certs):
            words = (
                TLS_ALERT if encrypted else render(error(400, "this server speaks HTTPS; write https:// for http://"))
            )
            nextlayer.layer = CloseConnectionLayer(context, words)
            return
        context.options = cast(options.Options, self.audience.options)
        context.server.tls = mode.scheme == "https"
        context.layers.remove(nextlayer.layer)
        if encrypted:
            peer.deadline = time.monotonic() + (
                self.settings.handshake_timeout if self.settings else self.lifecycle.head_timeout
            )
            outer = ClientTls(context)
            outer.child_layer = GateLayer(context, self.lifecycle, peer, self.audience)
            nextlayer.layer = outer
        else:
            nextlayer.layer = GateLayer(context, self.lifecycle, peer, self.audience)

    def client_disconnected(self, client: Client) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler:
            close_left(handler, *handler.transports)
        peer = self.connections.remove(client.id)
        for exchange in list(peer.exchanges.values()) if peer else ():
            exchange.reason = exchange.reason or "client left"
            self.lifecycle.finish(exchange, peer)

    # A request. The edge takes it to the desk: judge, begin, answered, end.

    async def ollama_reserve(self, reservation: Reservation) -> None:
        """A hook of our own: a UpstreamRequest of a principal who may do only so much takes its turn."""
        await self.lifecycle.reserve(reservation)

    # The way upstream.

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """The second lock: no client connection has one upstream before a request of it was admitted.

        A connection that mitmproxy's proxy server does not know is an operator's replay.
        """
        peer = self.connections.get(data.client.id)
        ours = data.client.id in ctx.master.addons.get("proxyserver").connections
        if ours and not (peer and peer.admitted):
            data.server.error = "no request of this connection was admitted"
        elif peer and self.settings:
            peer.connect_within(self.settings.connect_timeout, data.server)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if peer := self.connections.get(data.client.id):
            BulkReader.take_over(peer.handler, data.server)
        if not data.server.tls:
            self._connect_ended(data.client, data.server)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        peer = self.connections.get(data.client.id)
        if peer and peer.handler.transports.get(data.server):
            close_left(peer.handler, data.server)
            peer.handler.transports.pop(data.server)
            if data.server.state is not ConnectionState.CLOSED:
                data.server.state = ConnectionState.CLOSED
                peer.tell(events.ConnectionClosed(data.server))

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._connect_ended(data.client, data.server)

    def tls_established_server(self, data: TlsData) -> None:
        self._connect_ended(data.context.client, data.context.server)

    def tls_failed_server(self, data: TlsData) -> None:
        self._connect_ended(data.context.client, data.context.server)

    def _connect_ended(self, client: Client, server: Server) -> None:
        peer = self.connections.get(client.id)
        if peer:
            peer.connect_ended(server)

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
        """Say so, stop listening, let running requests end within the grace period, close the rest."""
        self.lifecycle.draining = True
        grace, delay = (self.settings.grace_period, self.settings.drain_delay) if self.settings else (0, 0)
        impatient = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(signum, impatient.set)
        servers = ctx.master.addons.get("proxyserver").servers
        if any(server.mode.transport_protocol != "tcp" for server in servers):
            leave_with(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(impatient.wait(), delay)
        await servers.update([])
        for peer in self.connections:
            peer.drain()
        busy = sum(len(peer.exchanges) for peer in self.connections)
        if busy:
            logger.log(ALERT, "ollama_auth: stopping; %d requests have up to %d s to end", busy, grace)
        transports = [transport for peer in self.connections if (transport := peer.transport())]
        until = time.monotonic() + grace
        while time.monotonic() < until and not impatient.is_set():
            if all(peer.idle for peer in self.connections) and not any(map(unsent, transports)):
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(impatient.wait(), 0.05)
        lost = sum(len(peer.exchanges) for peer in self.connections)
        if lost:
            logger.warning("ollama_auth: stopped with %d requests at work", lost)
        for peer in self.connections:
            for exchange in list(peer.exchanges.values()):
                exchange.reason = exchange.reason or "stopped"
                self.lifecycle.finish(exchange, peer)
        self.config.close()


def where_lines_go() -> Callable[[str], None] | None:
    """Who takes readable lines of the access log; None: standard output."""
    if ctx.master.addons.get("termlog") is None:  # The full-screen mitmproxy: its event log.
        return log_line
    return no_line if ctx.options.termlog_verbosity == "error" else None  # mitmdump --quiet


def log_line(line: str) -> None:
    """A line of the access log for mitmproxy's event log."""
    logger.log(ALERT, "%s", line)


def no_line(_: str) -> None:
    """A line of the access log for nobody."""


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


def leave_with(status: int) -> None:
    """End with this status when Python ends, and before its modules are taken down.

    For an https endpoint mitmproxy listens on UDP too, by threads that are not Python's: on their way out they crash
    the interpreter in a good part of all runs (mitmproxy_rs 0.12; seen without this addon as well).
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)


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
