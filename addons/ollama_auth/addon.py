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

from . import cors, keys_file, models, policy, settings
from .access_log import AccessLog
from .cli_signature import Replays
from .connections import Connections, Link, close_left
from .edge import ClientTls, Farewell, GateLayer
from .exchange import Admission, Claim, Exchange, Refusal, keeping
from .head import Bounds, Head, HeadError
from .judge import RETRY_SECONDS, Judge, Memory
from .limits import LEASE, Exceeded, Limiter, LimitsFault, StorageAway, limited
from .messages import Reservation
from .responses import Answer, error, render, retry_after
from .routes import Dialect
from .throttle import Throttle
from .usage import UsageReader

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
MAX_FAULTS = 20
"""Lines of the log about one keys file."""
WATCH = 0.5
"""Seconds between two looks at the keys file."""

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
        self.judging: Judge | None = None
        self.memory = Memory(Throttle(), Replays())
        self.limiter: Limiter | None = None
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
            for line in str(fault).splitlines()[:MAX_FAULTS]:
                logger.error("ollama_auth: %s", line)
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
        limiter = self._limiter_for(new)
        if old is None or old.access_log != new.access_log:
            self.log = self._open_log(new.access_log)
        self.settings, self.limiter = new, limiter
        self.bounds, self.head_timeout, self.idle_timeout = new.bounds, new.head_timeout, new.idle_timeout
        self.memory.throttle.most = new.max_wrong_keys
        self.judging = Judge(new, self.memory)
        for warning in new.warnings:
            if old is None or warning not in old.warnings:
                logger.warning("ollama_auth: %s", warning)

    def _limiter_for(self, new: settings.Settings) -> Limiter | None:
        old = self.settings
        if old and self.limiter and old.limits_storage == new.limits_storage:
            return self.limiter
        if new.limits_storage is None and not any(map(limited, new.ring.principals.values())):
            return None
        try:
            return Limiter(new.limits_storage)
        except LimitsFault as fault:
            raise settings.SettingsError(str(fault)) from fault

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
        asyncio_utils.create_task(self.watch_keys(), name="gate keys", keep_ref=True)
        if hasattr(signal, "SIGHUP"):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.hang_up)
        raise_file_limit()
        widen_backlog()
        servers = ctx.master.addons.get("proxyserver").servers
        where = " and ".join({human.format_address(address) for server in servers for address in server.listen_addrs})
        upstream = ctx.options.mode[0].removeprefix("reverse:").partition("@")[0]
        logger.log(ALERT, "ollama_auth: guarding %s, listening on %s", upstream, where or "nothing")

    async def watch_keys(self) -> None:
        """Read the keys file again when it was changed, however that was done; renew what running requests hold."""
        taken, seen, renewed = self.keys_stamp(), self.keys_stamp(), time.monotonic()
        while True:
            last, seen = seen, self.keys_stamp()
            if seen == last != taken:  # Changed, and not being written any more.
                taken = seen
                await self.reload_keys()
            if self.limiter and time.monotonic() - renewed > LEASE / 3:
                renewed = time.monotonic()
                with suppress(StorageAway):
                    await self.limiter.renew()
            await asyncio.sleep(WATCH)

    def keys_stamp(self) -> object:
        """What changes when the keys file does."""
        path = self.settings.keys_file if self.settings else None
        return path, keys_file.stamp(path) if path else None

    def hang_up(self) -> None:
        """SIGHUP: read the keys file now."""
        asyncio_utils.create_task(self.reload_keys(), name="gate keys", keep_ref=True)

    async def reload_keys(self) -> None:
        """Take the keys file as it is now; where it is faulty, keep the old keys and say so."""
        if self.settings is None or self.settings.keys_file is None:
            return
        try:
            # In a thread: 10,000 keys take half a second.
            self.take(await asyncio.to_thread(settings.read, ctx.options, os.environ, self.taken))
        except settings.SettingsError as fault:
            for line in str(fault).splitlines()[:MAX_FAULTS]:
                logger.error("ollama_auth: the keys stay as they were: %s", line)
        except Exception as fault:
            self.crashed(fault)
        else:
            logger.log(ALERT, "ollama_auth: the keys file was read again: %d keys", len(self.settings.ring))

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

    def judge(self, head: Head, link: Link) -> tuple[Exchange, Admission | Claim | Refusal]:
        """May it go upstream? A Claim waits for its body or its turn. Whatever raises on the way: no."""
        exchange = Exchange(link.address, head.method.decode("ascii", "replace"))
        try:
            verdict = self._judge(head, exchange, link)
        except Exception as fault:
            verdict = Refusal("error", self.crashed(fault))
        if isinstance(verdict, Refusal):
            exchange.reason, exchange.status = verdict.reason, verdict.answer.status
        else:
            link.exchanges[id(exchange)] = exchange
        return exchange, verdict

    def _judge(self, head: Head, exchange: Exchange, link: Link) -> Admission | Claim | Refusal:
        if self.settings is None or self.judging is None or not self.holders or self.removed:
            return self._not_ready(exchange)
        claim = self.judging.head(head, exchange, link)
        if isinstance(claim, Refusal):
            return claim
        exchange.claim = claim
        return claim if claim.reads_body or claim.limited else self._admit(claim, link)

    def judge_body(self, exchange: Exchange, body: bytes, link: Link) -> Admission | Claim | Refusal:
        """The body of a Claim that waited for it is here."""
        try:
            claim = exchange.claim
            if claim is None or self.judging is None:
                return self._not_ready(exchange)
            refusal = self.judging.body(exchange, claim, body) if claim.reads_body else None
            return refusal or (claim if claim.limited else self._admit(claim, link))
        except Exception as fault:
            return Refusal("error", self.crashed(fault))

    async def ollama_reserve(self, reservation: Reservation) -> None:
        """A hook of our own: a Claim of a principal who may do only so much takes its turn."""
        exchange, link = reservation.exchange, reservation.link
        claim, judging, limits = exchange.claim, self.judging, self.settings
        if claim is None or judging is None or limits is None or self.limiter is None:
            return
        try:
            granted = await self.limiter.enter(claim.principal, str(id(exchange)))
        except StorageAway as fault:
            self.connections.trouble(f"the storage of limits does not answer ({fault})")
            if not limits.open_without_limits:
                away = retry_after(RETRY_SECONDS)
                reservation.verdict = judging.refuse(exchange, "limits away", 503, "limits can't be counted now", away)
                return
        else:
            if isinstance(granted, Exceeded):
                exchange.extra = limit_fields(granted.limit, 0, granted.retry_after)
                text = f"the limit of this key is used up: {granted.name} is {granted.limit}"
                fields = (retry_after(granted.retry_after), *exchange.extra)
                reservation.verdict = judging.refuse(exchange, granted.name, 429, text, *fields)
                return
            exchange.entered = True
            exchange.extra = limit_fields(*granted.requests) if granted.requests else ()
        reservation.verdict = self._admit(claim, link)

    def _admit(self, claim: Claim, link: Link) -> Admission:
        link.admitted = True
        return Admission(claim)

    def _not_ready(self, exchange: Exchange) -> Refusal:
        fields = (b"x-request-id", exchange.id.encode()), retry_after(RETRY_SECONDS)
        return Refusal("closed", error(503, "the gateway is not ready", Dialect.OLLAMA, *fields))

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
        fields = cors.strip(flow.response.headers.fields) if self.settings and self.settings.cors_origins else None
        if fields is not None:
            flow.response.headers.fields = (*fields, *exchange.cors)
        flow.response.headers["X-Request-Id"] = exchange.id
        flow.response.headers.fields += exchange.extra
        if exchange.claim and exchange.claim.filtered and exchange.status == 200:
            return  # It is read whole, and rewritten: see rewrite().
        if exchange.claim and exchange.claim.principal.tokens_per_day is not None and exchange.route:
            get = flow.response.headers.get
            kinds = get("content-type", ""), get("content-encoding", "")
            exchange.usage = UsageReader(exchange.route, *kinds, exchange.status)
        count = exchange.response_chunk
        flow.response.stream = keeping(flow.response, count) if self.watched else count

    def rewrite(self, exchange: Exchange, flow: http.HTTPFlow) -> Answer | None:
        """Take out of a list what its reader may not use; an Answer in its place where it can't be read."""
        claim = exchange.claim
        if not (claim and claim.filtered and flow.response and exchange.status == 200 and exchange.route):
            return None
        try:
            body = models.filter_listing(
                exchange.route.path, flow.response.raw_content or b"", policy.usable(claim.principal)
            )
        except models.BodyError as fault:
            exchange.status = None
            return self.failed(exchange, "upstream broken", fault.status)
        headers = flow.response.headers
        headers.pop("transfer-encoding", None)
        headers["content-length"] = str(len(body))
        flow.response.raw_content = body
        exchange.bytes_out = len(body)
        return None

    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer:
        """It went wrong after the admission; the answer is for a client that has seen nothing of one."""
        exchange.reason = exchange.reason or reason
        exchange.status = exchange.status or status or None
        fields = ((b"x-request-id", exchange.id.encode()), *exchange.cors)
        text, extra = FAILURES.get(reason, ("the request failed", ()))
        if reason.startswith("upstream"):
            logger.warning("ollama_auth: %s: %s (request %s)", reason, text, exchange.id)
        return error(status or 502, text, exchange.dialect, *fields, *extra)

    def end(self, exchange: Exchange, link: Link | None) -> None:
        """An exchange is over: one line, whatever ended it, and only one."""
        if exchange.ended is not None:
            return
        exchange.ended = time.monotonic()
        if link:
            link.exchanges.pop(id(exchange), None)
        if exchange.entered or exchange.usage:
            asyncio_utils.create_task(self.settle(exchange), name="limits", keep_ref=True)
        if exchange.noise:
            self.connections.trouble(f"wrong keys from {exchange.client} are not looked at any more")
        else:
            self.log.write(exchange)

    async def settle(self, exchange: Exchange) -> None:
        """Count what an exchange used, and give back its place."""
        claim, limiter = exchange.claim, self.limiter
        if claim is None or limiter is None:
            return
        try:
            if exchange.usage:
                used = exchange.usage.finish(clean=exchange.reason is None)
                await limiter.spend(claim.principal, (used.prompt_tokens or 0) + (used.completion_tokens or 0))
        except StorageAway as fault:
            self.connections.trouble(f"the storage of limits does not answer ({fault})")
        finally:
            with suppress(StorageAway):
                await limiter.leave(claim.principal, str(id(exchange)))

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


def limit_fields(limit: int, remaining: int, reset: int) -> tuple[tuple[bytes, bytes], ...]:
    """The RateLimit fields of draft-ietf-httpapi-ratelimit-headers: of requests, in a window of a minute."""
    return (
        (b"ratelimit-policy", b'"requests";q=%d;w=60' % limit),
        (b"ratelimit", b'"requests";r=%d;t=%d' % (remaining, reset)),
    )


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
