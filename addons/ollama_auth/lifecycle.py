"""What becomes of each request: the edge brings it here, and gets told whether it may go on and what to answer.

`judge` first; `judge_body` and `reserve` where it has to wait for its body or its turn; then `begin`, `answered`,
perhaps `rewrite` or `failed`, and `end`, whatever ended it.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mitmproxy import http
from mitmproxy.utils import asyncio_utils

from .auth import policy
from .auth.cli_signature import REPLAY_GRACE
from .auth.forwarding import KeyLookup, mask_path
from .auth.limits import Exceeded, StorageUnavailableError
from .authorizer import METHODS, RETRY_SECONDS
from .exchange import Admission, Exchange, Refusal, UpstreamRequest, keeping
from .http import cors
from .http.head import Bounds, Fields, Head, HeadError
from .http.responses import Answer, error, retry_after
from .mitmweb.flows import FlowViews
from .ollama_api import include_usage, models
from .ollama_api.include_usage import UsageHider
from .ollama_api.routes import Dialect, RouteClass
from .ollama_api.usage import UsageReader
from .proxy.connections import ClientConnection, Connections
from .proxy.events import Reservation
from .recording import Recording
from .runtime import ActiveConfig
from .settings import Settings
from .telemetry import audit_log

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Counts."""

    @property
    def pace(self) -> Callable[[float], object] | None:
        """Is told the seconds between each two tokens of a stream."""

    def ended(self, exchange: Exchange) -> None:
        """Is shown each exchange when it has ended."""


BYTES_A_TOKEN = 4
"""Of English text, about: to charge a prompt whose tokens Ollama did not tell."""

WINDOWS = {"requests_per_minute": (b"requests", 60), "tokens_per_day": (b"tokens", 24 * 60 * 60)}
"""What a limit counts, and in how many seconds."""
FAILURES: dict[str, tuple[str, tuple[tuple[bytes, bytes], ...]]] = {
    "upstream unreachable": ("Ollama is not reachable", (retry_after(RETRY_SECONDS),)),
    "upstream timeout": ("Ollama does not accept connections", (retry_after(RETRY_SECONDS),)),
    "upstream broken": ("Ollama broke off or answered something that is not HTTP", ()),
    "body too large": ("the request body is too large", ()),
}


class RequestLifecycle:
    """One for a gate."""

    def __init__(
        self,
        config: ActiveConfig,
        connections: Connections,
        ready: Callable[[], bool],
        viewing: FlowViews,
        observer: Observer,
    ) -> None:
        """`ready`: somebody holds the gate open."""
        self.config = config
        self.connections = connections
        self.ready = ready
        self.viewing = viewing
        self.watched = viewing.watched
        self.observer = observer
        self.draining = False

    @property
    def settings(self) -> Settings | None:
        """Those in force."""
        return self.config.settings

    @property
    def bounds(self) -> Bounds:
        """Of request heads."""
        return self.settings.bounds if self.settings else Bounds()

    @property
    def head_timeout(self) -> float:
        """Seconds for a request head."""
        return self.settings.head_timeout if self.settings else 10

    @property
    def idle_timeout(self) -> float:
        """Seconds between two requests."""
        return self.settings.idle_timeout if self.settings else 10

    @property
    def find_key(self) -> KeyLookup | None:
        """Says whose a secret is, to mask it."""
        return self.settings.ring.find if self.settings else None

    # A request.

    def authorize(self, head: Head, peer: ClientConnection) -> tuple[Exchange, Admission | UpstreamRequest | Refusal]:
        """May it go upstream? A UpstreamRequest waits for its body or its turn. Whatever raises on the way: no."""
        method = head.method if head.method in METHODS else mask_path(head.method, self.find_key)  # It may be a key.
        exchange = Exchange(peer.address, method.decode("ascii", "replace"))
        try:
            verdict = self._authorize(head, exchange, peer)
        except Exception as fault:
            verdict = Refusal("error", self.internal_error(fault))
        if isinstance(verdict, Refusal):
            exchange.reason, exchange.status = verdict.reason, verdict.answer.status
        else:
            peer.exchanges[id(exchange)] = exchange
        return exchange, verdict

    def _authorize(
        self, head: Head, exchange: Exchange, peer: ClientConnection
    ) -> Admission | UpstreamRequest | Refusal:
        if self.config.authorizer is None or not self.ready():
            return self._not_ready(exchange)
        upstream_request = self.config.authorizer.head(head, exchange, peer)
        peer.known |= exchange.identified
        if isinstance(upstream_request, Refusal):
            return upstream_request
        exchange.upstream_request = upstream_request
        return (
            upstream_request
            if upstream_request.needs_body or upstream_request.needs_lease
            else self._admit(exchange, upstream_request, peer)
        )

    def authorize_body(
        self, exchange: Exchange, body: bytes, peer: ClientConnection
    ) -> Admission | UpstreamRequest | Refusal:
        """The body of a UpstreamRequest that waited for it is here."""
        try:
            upstream_request = exchange.upstream_request
            if upstream_request is None or self.config.authorizer is None:
                return self._not_ready(exchange)
            refusal = (
                self.config.authorizer.body(exchange, upstream_request, body) if upstream_request.reads_body else None
            )
            exchange.amended = include_usage.asking(body) if upstream_request.asks_usage else None
            exchange.hides_usage = exchange.amended is not None
            return refusal or (
                upstream_request if upstream_request.needs_lease else self._admit(exchange, upstream_request, peer)
            )
        except Exception as fault:
            return Refusal("error", self.internal_error(fault))

    async def reserve(self, reservation: Reservation) -> None:
        """A UpstreamRequest takes its turn, where it has to."""
        exchange, peer = reservation.exchange, reservation.peer
        upstream_request, judging, limits = exchange.upstream_request, self.config.authorizer, self.settings
        if upstream_request is None or judging is None or limits is None or self.config.limiter is None:
            return
        limiter, window = self.config.limiter, limits.signature_window
        try:
            if (
                upstream_request.single_use_signature
                and await limiter.age(upstream_request.single_use_signature, window) > REPLAY_GRACE
            ):
                reservation.verdict = judging.replayed(exchange)
                return
            granted = await limiter.enter(upstream_request.principal, exchange.lease)
        except StorageUnavailableError as fault:
            self.connections.trouble(f"the storage of limits does not answer ({fault})")
            if limits.limits_unavailable == "closed":
                away = retry_after(RETRY_SECONDS)
                reservation.verdict = judging.refuse(
                    exchange, "limits unavailable", 503, "limits can't be counted now", away
                )
                return
        else:
            if isinstance(granted, Exceeded):
                exchange.response_fields = limit_fields(granted.name, granted.limit, 0, granted.retry_after)
                text = f"the limit of this key is used up: {granted.name} is {granted.limit}"
                fields = (retry_after(granted.retry_after), *exchange.response_fields)
                reservation.verdict = judging.refuse(exchange, granted.name, 429, text, *fields)
                return
            exchange.holds_lease = True
            if exchange.ended is not None:  # The client has left meanwhile.
                await self._settle(exchange)
                return
            exchange.response_fields = (
                limit_fields("requests_per_minute", *granted.requests) if granted.requests else ()
            )
        reservation.verdict = self._admit(exchange, upstream_request, peer)

    def _admit(
        self, exchange: Exchange, upstream_request: UpstreamRequest, peer: ClientConnection
    ) -> Admission | Refusal:
        if not self.ready():  # It may have waited for its body, or its turn.
            return self._not_ready(exchange)
        peer.admitted = exchange.admitted = True
        return Admission(upstream_request)

    def _not_ready(self, exchange: Exchange) -> Refusal:
        fields = (b"x-request-id", exchange.id.encode()), retry_after(RETRY_SECONDS)
        return Refusal("closed", error(503, "the gateway is not ready", Dialect.OLLAMA, *fields))

    def refuse_malformed(self, fault: HeadError, peer: ClientConnection | None) -> Answer:
        """The answer to a head that is none, and its line in the log."""
        if peer:
            exchange = Exchange(peer.address, status=fault.status, reason="malformed")
            self.finish(exchange, peer)
        return error(fault.status, fault.message)

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """An admitted request is about to go upstream: its body streams, and mitmproxy's viewers know whose it is."""
        if self.config.audit and audit_log.concerns(exchange):
            exchange.recording = Recording()
        count = exchange.request_chunk
        flow.request.stream = count
        if self.watched():
            flow.request.stream = keeping(flow.request, count)
            self.viewing.begin(exchange, flow)

    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """The head of the response is here: it goes on at once, and so does every chunk behind it."""
        assert flow.response
        exchange.status = flow.response.status_code
        exchange.first_byte = time.monotonic()
        fields = cors.strip(flow.response.headers.fields) if self.settings and self.settings.cors_origins else None
        if fields is not None:
            flow.response.headers.fields = (*fields, *exchange.cors)
        flow.response.headers["X-Request-Id"] = exchange.id
        flow.response.headers.fields += exchange.response_fields
        if exchange.upstream_request and exchange.upstream_request.filtered and exchange.status == 200:
            if exchange.method == "HEAD":
                flow.response.headers.pop("content-length", None)  # It tells how much there is besides.
            return  # It is read whole, and rewritten: see rewrite().
        if exchange.route and exchange.route.route_class in (RouteClass.INFER, RouteClass.EMBED):
            get = flow.response.headers.get
            kinds = get("content-type", ""), get("content-encoding", "")
            exchange.usage = UsageReader(exchange.route, *kinds, exchange.status)
            exchange.pace = self.observer.pace
        passing = self.viewing.response_started(exchange, flow)
        # What says how long it is has to be so long.
        hides = exchange.hides_usage and exchange.stream and "content-length" not in flow.response.headers
        flow.response.stream = hiding(passing) if hides else passing

    def rewrite_response(self, exchange: Exchange, flow: http.HTTPFlow) -> Answer | None:
        """Take out of a list what its reader may not use; an Answer in its place where it can't be read."""
        upstream_request = exchange.upstream_request
        if not (
            upstream_request
            and upstream_request.filtered
            and flow.response
            and exchange.status == 200
            and exchange.route
        ):
            return None
        if exchange.method == "HEAD":
            return None
        try:
            body = models.filter_listing(
                exchange.route.path, flow.response.raw_content or b"", policy.usable(upstream_request.principal)
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

    def finish(self, exchange: Exchange, peer: ClientConnection | None) -> None:
        """An exchange is over: one line, whatever ended it, and only one."""
        if exchange.ended is not None:
            return
        exchange.finish()
        if peer:
            peer.exchanges.pop(id(exchange), None)
        self.viewing.end(exchange)
        self._tell(exchange)
        charged = (
            exchange.used
            and exchange.upstream_request
            and exchange.upstream_request.principal.tokens_per_day is not None
        )
        if exchange.holds_lease or charged:
            asyncio_utils.create_task(self._settle(exchange), name="limits", keep_ref=True)
        if exchange.suppress_log:
            self.connections.trouble(f"wrong keys from {exchange.client} are not looked at any more")
        else:
            self.config.log.write(exchange)

    def _tell(self, exchange: Exchange) -> None:
        """A fault in those who only look on costs nobody a request."""
        try:
            self.observer.ended(exchange)
            if self.config.audit:
                self.config.audit.write(exchange)
        except Exception as fault:
            logger.error("ollama_auth: a request was not counted: %s", type(fault).__name__)

    async def _settle(self, exchange: Exchange) -> None:
        """Count what an exchange used, and give back its place."""
        upstream_request, limiter = exchange.upstream_request, self.config.limiter
        if upstream_request is None or limiter is None:
            return
        try:
            if used := exchange.used:
                # Who leaves before the figures come must not get the prompt for nothing.
                prompt = exchange.bytes_in // BYTES_A_TOKEN if used.prompt_tokens is None else used.prompt_tokens
                await limiter.spend(upstream_request.principal, prompt + (used.completion_tokens or 0))
        except StorageUnavailableError as fault:
            self.connections.trouble(f"the storage of limits does not answer ({fault})")
        finally:
            with suppress(StorageUnavailableError):
                await limiter.leave(upstream_request.principal, exchange.lease)

    def internal_error(self, fault: Exception) -> Answer:
        """One of our own lines raised. The log gets where and what, but no message: it may hold what a client sent."""
        trace = fault.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "somewhere"
        logger.error("ollama_auth: %s at %s: the request was denied", type(fault).__name__, where)
        return error(503, "the gateway failed to decide, so it denies", Dialect.OLLAMA, retry_after(RETRY_SECONDS))


def hiding(pass_on: Callable[[bytes], bytes]) -> Callable[[bytes], list[bytes]]:
    """As `pass_on`, for the client without what it did not ask for."""
    hider = UsageHider()
    return lambda data: hider.feed(pass_on(data))


def limit_fields(name: str, limit: int, remaining: int, reset: int) -> Fields:
    """The RateLimit fields of draft-ietf-httpapi-ratelimit-headers, for a limit that has a window."""
    if name not in WINDOWS:
        return ()
    unit, seconds = WINDOWS[name]
    return (
        (b"ratelimit-policy", b'"%s";q=%d;w=%d' % (unit, limit, seconds)),
        (b"ratelimit", b'"%s";r=%d;t=%d' % (unit, remaining, reset)),
    )
