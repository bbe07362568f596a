"""mitmproxy's hooks: load and configure the gateway, set up each connection, drain at the end.

This module and mitmweb/ are the only ones that use mitmproxy's `ctx`.

There are two addons. `OllamaAuth` is what the script auth.py contains; mitmproxy removes it and loads it again whenever
that file changes. `Gate` is inserted before all other addons once and stays: while no configured `OllamaAuth` is
loaded, it answers every request 503. So an unconfigured, broken, reloaded or removed script always means "deny".

Requests do not pass this module: the layers that `next_layer` puts in place call RequestLifecycle (lifecycle.py), whose
Admission lets a request go upstream; `server_connect` below is a second, independent lock.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mitmproxy import ctx, exceptions, options, optmanager, version
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.log import ALERT
from mitmproxy.net.http import url
from mitmproxy.proxy import events, layer, tunnel
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.utils import asyncio_utils

from . import process, settings
from .exchange import Exchange, new_id
from .http.responses import error, render
from .lifecycle import RequestLifecycle
from .mitmweb.flows import COLUMNS, FlowViews
from .ollama_api import strict_json
from .option_table import OPTIONS
from .proxy.client_connection import A_TURN, ClientConnection
from .proxy.connections import Connections
from .proxy.events import Reservation
from .proxy.hook_dispatch import HookDispatcher
from .proxy.layer import GateLayer
from .proxy.listener import TLS_RECORD, TOO_MANY, Listener, too_many
from .proxy.option_cache import CachedOptions
from .proxy.pacer import Pacer
from .proxy.proxy_protocol import ProxyHeaderLayer
from .proxy.teardown import take_apart_at_end
from .proxy.tls import ClientTls, CloseConnectionLayer
from .proxy.transport import BulkReader, close_sockets, keep_alive, limit_receive_buffer
from .runtime import ANYWHERE, ActiveConfig, say
from .telemetry.monitor import Monitor

if TYPE_CHECKING:
    from .telemetry.status_server import Site

logger = logging.getLogger(__name__)

TLS_ALERT = bytes.fromhex("15 03 01 00 02 02 28")
"""A fatal handshake_failure alert (RFC 8446 section 6), which a TLS client understands."""
UPSTREAM_CONNECTIONS = 256
"""Upstream connections of one client connection; with mitmproxy's five, HTTP/2 streams would wait for each other."""
STREAM_BUFFER = 32 * 1024
"""Bytes that the kernel keeps of the upstream's response to an HTTP/2 stream, of which a connection may have 128."""
TLS_BUFFER = 96 * 1024
"""The same over TLS in HTTP/1.1: a client that reads slowly holds at most 256 KB then, and downloads cost 40 % more."""
WEB_DEFAULTS = {"web_columns": COLUMNS, "web_port": 8082}
"""Of mitmweb, whose page would take the Caddyfile's port."""


class OllamaAuth:
    """The addon in auth.py: keeps the gate open while it is loaded and configured."""

    def __init__(self) -> None:
        self.name = f"ollama_auth_{id(self)}"  # Loading the script twice is allowed, so names must differ.
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
    """The gateway itself: one for each run of mitmproxy, before all other addons."""

    name = "ollama_gate"

    def __init__(self, hooks: HookDispatcher) -> None:
        self.hooks = hooks
        self.loaded_scripts: set[int] = set()
        """The configured OllamaAuth addons, by Python's id."""
        self.opening = False
        """`open` is running, and may change options, so that mitmproxy configures the scripts again."""
        self.monitor = Monitor(self, self._console)
        self.config = ActiveConfig(access_log_output, self.monitor)
        self.connections = Connections()
        self.other_files = process.open_files()
        """Those that are no connections, as counted once it was ready."""
        self.removed = False
        """The gate was taken out of mitmproxy's addons: it denies everything for the rest of the run."""
        views = FlowViews(self.config, hooks.options)
        self.addons = [views]  # mitmproxy calls their hooks after the gate's own, before those of other addons.
        self.lifecycle = RequestLifecycle(self.config, self.connections, self.is_open, views)
        self.on_behalf: dict[tuple[str, int], str] = {}
        """Addresses of clients that the console asks the gate for, by its own end of the connection."""
        self.pacer = Pacer(A_TURN, 1)
        """Of further requests on open connections; the listener has one for new connections."""
        self.listener = Listener(self.lifecycle, self.connections, self.most_connections, self.is_direct)

    # Start and configuration.

    @classmethod
    def installed(cls, loader: Loader) -> "Gate":
        """Return the gate of this mitmproxy, inserted into its addons the first time."""
        addons = loader.master.addons
        gate = addons.get(cls.name)
        if gate is None:
            gate = cls(HookDispatcher(addons, CachedOptions(loader.master.options)))
            try:
                addons.register(gate)
            except exceptions.OptionsError as error:  # A value on the command line does not have the option's type.
                logger.error("%s", error)
            addons.chain.insert(0, gate)
            gate.hooks.guarded = gate
            gate.hooks.install()
            gate.apply_defaults()
        assert isinstance(gate, cls)
        return gate

    def is_open(self) -> bool:
        """Tell whether requests may be admitted: a configured script is loaded, and the gate is in its place."""
        return self.settings is not None and bool(self.loaded_scripts) and not self.removed

    def load(self, loader: Loader) -> None:
        for option in OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.help)

    def apply_defaults(self) -> None:
        """Set our defaults of mitmproxy's options, except those the user has set."""
        known = dict(ctx.options.items())
        ours = process.DEFAULTS | (process.MITMDUMP_DEFAULTS if "flow_detail" in known else WEB_DEFAULTS)
        ctx.options.update(**{n: v for n, v in ours.items() if n in known and known[n].value is optmanager.unset})

    def configure(self, updated: set[str]) -> None:
        """Apply options that were changed at run time. Raises OptionsError for invalid ones; the old stay in force."""
        ctx.master.event_loop.call_soon(self.hooks.set_log_level)  # Once the other addons are configured, too.
        if self.settings is None:
            return  # At the start open() reads all options.
        try:
            self.config.configure(ctx.options)
        except settings.SettingsError as error:
            raise exceptions.OptionsError(f"ollama_auth: {error}") from error
        if "ollama_max_connections" in updated:
            self._say_few_files()

    def open(self, script: object) -> None:
        """Open the gate for as long as `script` is loaded. An error at the start ends mitmproxy: see its errorcheck."""
        if id(script) in self.loaded_scripts or self.opening:
            return  # An option was changed, which is the concern of configure(), or is being changed below.
        first = self.settings is None
        self.opening = True
        try:
            process.check_version(version.VERSION)
            settings.check_names(ctx.options.deferred, ctx.options.keys())
            self.config.configure(ctx.options)
        except settings.SettingsError as error:
            say(error)
        finally:
            self.opening = False
        if self.settings is None:
            process.force_exit_status(1)
            return
        self.loaded_scripts.add(id(script))
        if self.removed:
            logger.error("ollama_auth: the gate was removed from mitmproxy and denies everything: restart mitmproxy")
        elif not first:
            logger.log(ALERT, "ollama_auth: auth.py was loaded again; the gate is open to those with a key")

    def close(self, script: object) -> None:
        """Close the gate if `script`, which was removed from mitmproxy, was the last one loaded."""
        self.loaded_scripts.discard(id(script))
        if not self.loaded_scripts and self.settings and not ctx.master.should_exit.is_set():
            logger.warning(
                "ollama_auth: auth.py is not loaded, so every request is denied: restore the file, and if nothing "
                "follows, restart mitmproxy"
            )

    @property
    def settings(self) -> settings.Settings | None:
        """The settings in force."""
        return self.config.settings

    async def running(self) -> None:
        start = partial(asyncio_utils.create_task, keep_ref=True)
        start(self.connections.sweep(lambda: self.lifecycle.settings), name="gate sweep")
        start(self.monitor.publish(), name="gate workers")
        start(self.config.watch(ctx.options), name="gate keys")
        start(self.config.renew(), name="gate leases")
        with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # Windows has none of this.
            stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or not process.has_terminal()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.hang_up, stays)
        process.raise_file_limit()
        self.other_files = process.open_files()
        self._say_few_files()
        servers = ctx.master.addons.get("proxyserver").servers
        await self.listener.take_over(servers)
        self._announce(servers)
        if self.lifecycle.settings.keys_file:  # Bodies will be read.
            threading.Thread(target=strict_json.prepare, name="gate patterns", daemon=True).start()
        process.freeze_startup_objects()
        collecting = process.collect_when_idle(lambda: not self.lifecycle.under_way, lambda: len(self.connections))
        start(collecting, name="gate garbage collection")

    def _announce(self, servers: Iterable[ServerInstance[Any]]) -> None:
        """Say where the gate listens, now that it does."""
        addresses = [address[:2] for server in servers for address in server.listen_addrs]
        where = process.listening(addresses)
        if self.settings and self.settings.metrics_listen:
            status_page = url.hostport("http", *self.settings.metrics_listen)
            logger.log(ALERT, "ollama_auth: the status page is at http://%s/", status_page)
        if ctx.options.mode[0].count("@") == 0 and ctx.options.listen_port is None:
            where += " (mitmproxy's port; that of the Caddyfile is 8081: --listen-port 8081)"
        logger.log(ALERT, "ollama_auth: guarding %s, listening on %s", self.upstream, where or "nothing")
        everywhere = any(host in ANYWHERE for host, _ in addresses)
        if everywhere and not ctx.options.certs and os.environ.get("OLLAMA_WORKER", "1") == "1":
            logger.warning(
                "ollama_auth: it listens on all addresses without TLS: keys and chats cross the network in clear text; "
                "add --certs cert.pem, or --listen-host 127.0.0.1 to listen for this machine alone"
            )

    def _console(self) -> "Site":
        from .console.api import console  # Slow to import, and only needed where there is a status listener.

        return console(self.config, self.monitor, self)

    def _say_few_files(self) -> None:
        wanted = self.lifecycle.settings.max_connections
        if (most := process.most_connections(wanted, self.other_files)) < wanted:
            logger.warning(
                "ollama_auth: ollama_max_connections is %d, but there are file descriptors for %d: no more are taken; "
                "raise the limit of open files (ulimit -n, LimitNOFILE=) to %d",
                wanted,
                most,
                2 * wanted + self.other_files + process.SPARE_FILES,
            )

    async def reload_keys(self) -> None:
        """Read the keys file at once: it was changed from here."""
        await self.config.reload(ctx.options)

    def hang_up(self, stays: bool) -> None:
        """Handle SIGHUP: read the keys file again and reopen the logs; end if the terminal of the start was closed."""
        if not stays and not process.has_terminal():
            ctx.master.shutdown()
            return
        asyncio_utils.create_task(self.config.hang_up(ctx.options), name="gate hang-up", keep_ref=True)

    # Read by the monitor: see monitor.Gate for each.

    @property
    def state(self) -> str:
        return "draining" if self.lifecycle.draining else "open" if self.is_open() else "closed"

    @property
    def upstream(self) -> str:
        """The URL of Ollama, with its base path."""
        base = self.settings.base_path.decode() if self.settings else ""
        return str(ctx.options.mode[0]).removeprefix("reverse:").partition("@")[0].rstrip("/") + base

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the gate can be reached from this machine."""
        for server in ctx.master.addons.get("proxyserver").servers:
            for host, port, *_ in server.listen_addrs:
                return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104, not listened on here
        return None

    @property
    def connection_count(self) -> int:
        return len(self.connections)

    @property
    def under_way(self) -> list[Exchange]:
        return list(self.lifecycle.under_way.values())

    @property
    def trust(self) -> dict[str, Any]:
        return {
            "insecure": ctx.options.ssl_insecure,
            "ca_file": ctx.options.ssl_verify_upstream_trusted_ca,
            "ca_folder": ctx.options.ssl_verify_upstream_trusted_confdir,
            "client_certs": ctx.options.client_certs,
        }

    # A client connection.

    def is_direct(self) -> bool:
        """Tell whether mitmproxy is to have a connection before its first request: it is encrypted, or is shown."""
        self.hooks.set_log_level()
        return self.lifecycle.settings.tls or self.lifecycle.watched() or self.hooks.connections_shown()

    def most_connections(self) -> tuple[int, int]:
        """Return (client connections that there may be, those of one network or 0)."""
        limits = self.lifecycle.settings
        return process.most_connections(limits.max_connections, self.other_files), limits.max_connections_per_client

    def client_connected(self, client: Client) -> None:
        """Register a connection, or close it before a byte of it is read if there are too many."""
        client.error = "not registered"  # mitmproxy closes a connection with an error; removed at the end.
        if client.peername is None:  # It was closed before it was accepted (seen on uvloop); addons expect an address.
            client.peername = ("0.0.0.0", 0)  # noqa: S104, a placeholder
            return
        self.hooks.set_log_level()
        if client.transport_protocol != "tcp" or not isinstance(client.proxy_mode, ReverseMode):
            return
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler is None:
            return
        deadline = time.monotonic() + self.lifecycle.settings.head_timeout
        peer = ClientConnection(client, handler, deadline, self.pacer)
        if behalf := self.on_behalf.pop(client.peername[:2], None):
            peer.stand_for(behalf)
        if not self.connections.add(peer, *self.most_connections()):
            self.connections.warn_rate_limited(TOO_MANY)
            if not ctx.options.certs:
                handler.transports[client].writer.write(too_many())
            return
        peer.shared = peer.authenticated_before = not behalf and peer.address in self.lifecycle.settings.proxies
        peer.awaits_proxy_header = peer.shared and self.lifecycle.settings.proxy_protocol
        take_apart_at_end(handler)
        if reader := BulkReader.take_over(handler, client):
            reader.turn = peer.turn
        keep_alive(handler, client, self.lifecycle.settings)
        handler.max_conns = defaultdict(lambda: asyncio.Semaphore(UPSTREAM_CONNECTIONS))
        client.error = None

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Put our layers in place. Until that has succeeded, the layer in place is one that closes the connection."""
        context = nextlayer.context
        nextlayer.layer = CloseConnectionLayer(context)
        peer = self.connections.get(context.client.id)
        mode = context.client.proxy_mode
        if peer is None or not isinstance(mode, ReverseMode) or mode.scheme not in ("http", "https"):
            return
        if peer.awaits_proxy_header:
            context.layers.remove(nextlayer.layer)
            answer = b"" if ctx.options.certs else too_many()
            nextlayer.layer = ProxyHeaderLayer(context, peer, self.connections, self.lifecycle.settings, answer)
            return
        encrypted = nextlayer.data_client().startswith(TLS_RECORD)
        if encrypted != bool(ctx.options.certs):
            plain = render(error(new_id(), 400, "this server speaks HTTPS; write https:// for http://"))
            nextlayer.layer = CloseConnectionLayer(context, TLS_ALERT if encrypted else plain)
            return
        context.options = cast(options.Options, self.hooks.options)
        context.server.tls = mode.scheme == "https"
        context.layers.remove(nextlayer.layer)
        stack = tunnel.LayerStack()
        if encrypted:
            peer.deadline = time.monotonic() + self.lifecycle.settings.handshake_timeout
            stack /= ClientTls(context)
        stack /= GateLayer(context, self.lifecycle, peer, self.hooks)
        nextlayer.layer = stack[0]

    def client_disconnected(self, client: Client) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler:
            close_sockets(handler, *handler.transports)
        if peer := self.connections.remove(client.id):
            self._finish_exchanges(peer, "client left")

    def _finish_exchanges(self, peer: ClientConnection, reason: str) -> None:
        for exchange in list(peer.exchanges.values()):
            exchange.reason = exchange.reason or reason
            self.lifecycle.finish(exchange, peer)

    async def ollama_reserve(self, reservation: Reservation) -> None:
        """Let the lifecycle decide on a request that must wait for a limit: a hook of our own, see proxy/events.py."""
        await self.lifecycle.reserve(reservation)

    # A connection to the upstream.

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse a connection to the upstream for a client none of whose requests was admitted.

        This is the second lock; GateStream.make_server_connection is the first. Exempt are connections of clients that
        mitmproxy's proxy server does not know: they replay a request on behalf of the operator.
        """
        peer = self.connections.get(data.client.id)
        ours = data.client.id in ctx.master.addons.get("proxyserver").connections
        if ours and not (peer and peer.admitted):
            data.server.error = "no request of this connection was admitted"
        elif peer and self.settings:
            peer.connecting[data.server] = time.monotonic() + self.settings.connect_timeout

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if peer := self.connections.get(data.client.id):
            BulkReader.take_over(peer.handler, data.server)
            keep_alive(peer.handler, data.server, self.lifecycle.settings)
            if data.client.tls:
                size = STREAM_BUFFER if data.client.alpn == b"h2" else TLS_BUFFER
                limit_receive_buffer(peer.handler, data.server, size)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        peer = self.connections.get(data.client.id)
        if peer and peer.handler.transports.get(data.server):
            close_sockets(peer.handler, data.server)
            peer.handler.transports.pop(data.server)
            # Its task was cancelled while it waited to tell the layers, as by another one that found it broken.
            data.server.state = ConnectionState.CLOSED
            peer.send_event(events.ConnectionClosed(data.server))

    # Shutdown.

    def done(self) -> Awaitable[None] | None:
        """Drain if mitmproxy is shutting down; if something removed the gate from the addons, stay and deny all."""
        addons = ctx.master.addons
        if any(addon is self for addon in addons.chain):
            return self.drain()
        self.removed = True
        addons.chain = [self, *addons.chain]
        addons.lookup[self.name] = self
        logger.error("ollama_auth: the gate was removed from mitmproxy; it denies everything from here on: restart")
        return None

    async def drain(self) -> None:
        """Report not ready, stop listening, wait for running requests up to the grace period, end the others."""
        self.lifecycle.draining = True
        grace, delay = (self.settings.grace_period, self.settings.drain_delay) if self.settings else (0, 0)
        impatient = asyncio.Event()  # Set by a further SIGTERM or SIGINT: the operator does not want to wait.
        for signum in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(signum, impatient.set)
        servers = ctx.master.addons.get("proxyserver").servers
        if any(server.mode.transport_protocol != "tcp" for server in servers):
            process.force_exit_status(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(impatient.wait(), delay)
        await servers.update([])
        self.connections.close_new()
        for peer in self.connections:
            peer.drain()
        if self.under_way:
            logger.log(ALERT, "ollama_auth: stopping; %d requests have up to %d s to end", len(self.under_way), grace)
        await self._requests_end(impatient, grace)
        if self.under_way:
            logger.warning("ollama_auth: stopped with %d requests at work", len(self.under_way))
        for peer in self.connections:
            self._finish_exchanges(peer, "stopped")
        self.config.close()

    async def _requests_end(self, impatient: asyncio.Event, seconds: float) -> None:
        """Wait until no request is running and the kernel has all that was written; it sends that by itself."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not impatient.is_set():
            if not self.connections.busy:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(impatient.wait(), 0.05)


def access_log_output() -> Callable[[str], None] | None:
    """Return what takes readable lines of the access log; None means standard output.

    The full-screen mitmproxy, which has no addon termlog, owns the terminal, so its event log takes them.
    `mitmdump --quiet` shows none.
    """
    if ctx.master.addons.get("termlog") is None:
        return lambda line: logger.log(ALERT, "%s", line)
    return (lambda _: None) if ctx.options.termlog_verbosity == "error" else None
