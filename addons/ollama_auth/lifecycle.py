"""The life of a request: authorized, begun, answered, finished. The layers call this; it calls the rooms below.

In order: `authorize` with the head; `reserve` if a lease is needed; `hold` and `authorize_body` if the body is; `begin`
before it goes upstream; `response_started`, perhaps `rewrite_response` or `failed`; `finish`, whatever ended it. The
one line that constructs an Admission is here.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence

from mitmproxy import http
from mitmproxy.utils import asyncio_utils

from . import process
from .auth import client_ip
from .auth.held_bodies import HeldBodies, HeldBody
from .auth.identity import may_be_known
from .auth.redaction import MASKED_PATH, MAX_SEARCHED, mask_path
from .auth.throttle import WINDOW
from .authorizer import KEY_IN_PATH, Authorizer, Decision, shown_method
from .bounded_copy import Recording, keeping
from .errors import RefusedError, place_of
from .exchange import Admission, Exchange, Refusal, UpstreamRequest, Verdict, new_id
from .http import cors, responses
from .http.head import Head, HeadError
from .http.responses import RETRY_SECONDS, Answer, retry_after
from .leases import Leases
from .mitmweb.flows import FlowViews
from .ollama_api.prompt import Prompt
from .ollama_api.request_models import BodyError
from .ollama_api.routes import Dialect
from .ollama_api.usage import UsageReader
from .proxy.client_connection import ClientConnection, Peer
from .proxy.connections import Connections
from .proxy.events import Reservation
from .response_filter import filter_response, is_filtered
from .runtime import ActiveConfig
from .settings import UNCONFIGURED, Settings
from .telemetry import audit_log
from .telemetry.ledger import entry_of

logger = logging.getLogger(__name__)


TOO_MANY = "too many connections; try again later"
MAX_SAID = 16
"""Proxies that are not trusted and told about."""
CLIENTS_FOR_ONE_FREE = 16
"""Of so many clients that there may be, one may keep one more connection to Ollama: see process.most_connections."""
FAILURES: dict[str, tuple[str, tuple[tuple[bytes, bytes], ...]]] = {
    "upstream unreachable": ("Ollama is not reachable", (retry_after(RETRY_SECONDS),)),
    "upstream timeout": ("Ollama does not accept connections", (retry_after(RETRY_SECONDS),)),
    "upstream broken": ("Ollama broke off or answered something that is not HTTP", ()),
    "body too large": ("the request body is too large", ()),
}


class RequestLifecycle:
    """What happens to requests, one object for all of them."""

    def __init__(
        self, config: ActiveConfig, connections: Connections, ready: Callable[[], bool], flow_views: FlowViews
    ) -> None:
        """`ready` says whether a configured script holds the gate open."""
        self.config = config
        self.connections = connections
        self.ready = ready
        self.flow_views = flow_views
        self.watched = flow_views.watched
        self.draining = False
        self.self_check = os.environ.get("OLLAMA_AUTH_SELF_CHECK")
        """The id of the request with which scripts/serve asks whether strangers are kept out: see mitmdump.py there."""
        self.held_bodies = HeldBodies()
        self.leases = Leases(connections.warn_rate_limited)
        self.under_way: dict[int, Exchange] = {}
        """Requests of all connections that were not refused and have not ended, by Python's id."""
        self._said: set[str] = set()
        """Addresses of proxies that are not trusted, once it was told."""

    @property
    def settings(self) -> Settings:
        """Those in force; before there are any, the defaults, with which nobody is let in."""
        return self.config.settings or UNCONFIGURED

    @property
    def most_free(self) -> int:
        """Connections to Ollama that a client of HTTP/2 may keep for its next requests; all together take few files."""
        clients = process.most_connections(self.settings.max_connections, 0)
        return max(1, clients // CLIENTS_FOR_ONE_FREE // max(1, len(self.connections)))

    # A request.

    def refuse_stranger(self, head: Head, peer: Peer) -> Answer | None:
        """Refuse a request without a known credential, which has no body; for any other do nothing, and return None."""
        if not self.config.authorizer or not self.ready() or head.method == b"OPTIONS":
            return None  # OPTIONS may be a preflight, after which the connection goes on.
        if may_be_known(head, self.settings.ring):
            return None
        exchange, verdict = self.authorize(head, peer)
        self.finish(exchange, peer)
        if not isinstance(verdict, Refusal):
            raise PermissionError("a request without a credential was about to be admitted")
        return verdict.answer.to(head.method)

    def authorize(self, head: Head, peer: Peer) -> tuple[Exchange, Verdict]:
        """Decide by the head. An UpstreamRequest waits for its lease, or its body, or both. An exception refuses."""
        exchange, authorizer = Exchange(peer.address, shown_method(head.method)), self.config.authorizer
        peer.begins = False
        try:
            exchange.client = self.settings.proxies.client_of(peer.address, head.fields)
            if peer.closed:  # Nobody would finish it.
                raise client_left()
            if authorizer is None or not self.ready():
                verdict: Verdict = self._not_ready(exchange)
            else:
                authorizer.parse(head, exchange, peer.sockname)
                network = self._network(exchange.client, peer)
                decision = authorizer.authorize(head, exchange, network, peer.sockname)
                verdict = self._apply(decision, exchange, peer)
                if isinstance(verdict, UpstreamRequest) and verdict.inspects_body:
                    exchange.state.held_body = HeldBody(verdict.principal.name)
                    self.held_bodies.check(verdict.principal.name, max(0, head.body), *self._most_held)
        except Exception as error:
            verdict = self._refuse(exchange, error)
        if isinstance(verdict, Refusal):
            exchange.reason, exchange.status = verdict.reason, verdict.answer.status
        else:
            peer.exchanges[id(exchange)] = self.under_way[id(exchange)] = exchange
        return exchange, verdict

    def _network(self, client: str, peer: Peer) -> str:
        """Return what a client is counted by. A connection of a proxy counts for the client of its latest request.

        Raises RefusedError if that client has too many.
        """
        if not self.settings.proxies.networks:
            return peer.network
        network, most = client_ip.network_of(client), self.settings.max_connections_per_client
        if isinstance(peer, ClientConnection) and not self.connections.count_for(peer, network, most):
            raise RefusedError("connections", 503, TOO_MANY, retry_after(RETRY_SECONDS))
        return network

    def _say_untrusted(self, stripped: Sequence[str], address: str) -> None:
        """Tell once that a neighbour sends what a proxy sends, and is not believed."""
        header, proxies = client_ip.names_client(stripped), self.settings.proxies
        if header is None or address in proxies or address in self._said or not client_ip.is_private(address):
            return
        if len(self._said) < MAX_SAID:
            self._said.add(address)
            more = f" and ollama_client_ip_header={header}" if header != proxies.header else ""
            where = f"{address} sends {header}, which is not believed, so all its clients count as one"
            logger.warning("ollama_auth: %s: for your proxy, set ollama_trusted_proxies=%s%s", where, address, more)

    def _apply(self, decision: Decision, exchange: Exchange, peer: Peer) -> Verdict:
        """Record a decision."""
        exchange.key, exchange.stripped, exchange.suppress_log = decision.key, decision.stripped, decision.suppress_log
        peer.authenticated_before |= exchange.identified
        if not client_ip.HEADER_NAMES.isdisjoint(decision.stripped):
            self._say_untrusted(decision.stripped, peer.address)
        if exchange.identified:
            exchange.path = mask_path(exchange.state.decoded_path, self.settings.ring.holds, MAX_SEARCHED)
        if isinstance(decision.verdict, Refusal):
            if decision.verdict.reason == KEY_IN_PATH:
                exchange.path = MASKED_PATH
            return decision.verdict
        exchange.state.upstream_request, exchange.state.body_reader = decision.verdict, decision.body_reader
        if exchange.route and exchange.route.prompts:
            exchange.prompt = Prompt(exchange.route.path)
        return decision.verdict if decision.verdict.waits else self._admit(exchange, decision.verdict, peer)

    @property
    def _most_held(self) -> tuple[int, int]:
        """(of all keys, of one key) in bytes: at least one body of the largest size that is inspected."""
        one = self.settings.max_inspected_body
        return max(one, self.settings.max_held_bodies), max(one, self.settings.max_held_bodies_per_key)

    def hold(self, exchange: Exchange, data: bytes) -> Refusal | None:
        """Count and read a piece of a body that is kept until all of it was inspected; a refusal if it is too large.

        It is read as it comes, because at its end nobody may wait while it is read as a whole.
        """
        exchange.bytes_in += len(data)
        try:
            state = exchange.state
            request, held, reader = state.upstream_request, state.held_body, state.body_reader
            if exchange.ended is not None:  # Nobody would release it.
                raise client_left()
            if request is None or held is None or reader is None:
                return self._not_ready(exchange)
            if request.max_body is not None and exchange.bytes_in > request.max_body:
                raise RefusedError("body too large", 413, f"the request body is larger than {request.max_body} bytes")
            self.held_bodies.add(held, len(data), *self._most_held)
            reader.feed(data)
            if exchange.prompt:
                exchange.prompt.add(data)
        except Exception as error:
            return self._refuse(exchange, error)
        return None

    def body_timed_out(self, exchange: Exchange) -> Refusal:
        """Refuse a request whose body is awaited and does not come."""
        message = f"nothing came of the request body for {self.settings.body_timeout} s"
        return Authorizer.refuse(exchange, RefusedError("body timeout", 408, message))

    def authorize_body(self, exchange: Exchange, peer: Peer) -> Verdict:
        """Decide about an UpstreamRequest that waited for its body, which its reader has got. An exception refuses.

        It is an UpstreamRequest again if tokens have to be reserved for it now.
        """
        try:
            authorizer, request = self.config.authorizer, exchange.state.upstream_request
            if authorizer is None or request is None or exchange.route is None:
                return self._not_ready(exchange)
            if request.inspects_body:
                if exchange.state.body_reader is None:
                    raise PermissionError("a body was not read")
                asked = exchange.state.asked = exchange.state.body_reader.finish()
                exchange.model = exchange.shown_model(asked.names[0]) if asked.names else None
            if exchange.reserves_tokens:
                return request
            return self._admit(exchange, request, peer)
        except Exception as error:
            return self._refuse(exchange, error)

    async def reserve(self, reservation: Reservation) -> None:
        """Take the lease of an UpstreamRequest, and once its body is here, reserve its tokens; a storage may be asked.

        Without a verdict it is refused. The request is counted from the lease on, whatever its body turns out to be;
        the lease is given back at its end.
        """
        exchange, peer = reservation.exchange, reservation.peer
        request, limiter = exchange.state.upstream_request, exchange.state.limiter or self.config.limiter
        if request is None or limiter is None:
            return
        try:
            begun = exchange.state.reserved
            await self.leases.ask(exchange, request, limiter, self.settings)
            exchange.state.reserved, exchange.state.tokens_reserved = True, begun
            waits = request.inspects_body and not begun
            if exchange.ended is None:
                reservation.verdict = request if waits else self._admit(exchange, request, peer)
        except RefusedError as error:
            reservation.verdict = Authorizer.refuse(exchange, error)
        finally:
            if exchange.ended is not None:  # The client has left meanwhile.
                await self.leases.give_back(exchange)

    def _admit(self, exchange: Exchange, request: UpstreamRequest, peer: Peer) -> Admission | Refusal:
        authorizer = self.config.authorizer
        if authorizer is None or exchange.route is None or not self.ready():
            return self._not_ready(exchange)
        if exchange.ended is not None:
            raise client_left()
        if request.needs_lease and not exchange.state.reserved:
            raise PermissionError("a request without its lease was about to be admitted")
        if exchange.reserves_tokens:
            raise PermissionError("a request without its tokens was about to be admitted")
        if request.waits:
            authorizer.check_again(request, exchange.route, exchange.state.asked)
        peer.admitted = exchange.admitted = True
        return Admission(request)

    def _refuse(self, exchange: Exchange, error: Exception) -> Refusal:
        """Make a refusal of what was raised, whether a rule refused or something failed."""
        if isinstance(error, RefusedError):
            return Authorizer.refuse(exchange, error)
        return Refusal("error", self.internal_error(error, exchange))

    def _not_ready(self, exchange: Exchange) -> Refusal:
        again = retry_after(RETRY_SECONDS)
        return Refusal("closed", responses.error(exchange.id, 503, "the gateway is not ready", exchange.dialect, again))

    def refuse_malformed(self, error: HeadError, peer: Peer) -> Answer:
        """Log a head that could not be parsed, and return the answer to it."""
        exchange = Exchange(peer.address, status=error.status, reason="malformed")
        peer.begins = False
        self.finish(exchange, peer)
        return responses.error(exchange.id, error.status, error.message)

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """Have the body of an admitted request streamed, and show the request in mitmproxy's viewers."""
        if self.config.audit and audit_log.concerns(exchange):
            exchange.recording = Recording()
        count = exchange.request_chunk
        flow.request.stream = count
        if self.watched():
            flow.request.stream = keeping(flow.request, count)
            self.flow_views.begin(exchange, flow)

    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """Add the gate's header fields to a response, and have its body streamed and read as it passes."""
        assert flow.response
        exchange.status = flow.response.status_code
        exchange.first_byte = time.monotonic()
        self._release_body(exchange)
        fields = cors.strip(flow.response.headers.fields) if self.settings.cors_origins else None
        if fields is not None:
            flow.response.headers.fields = (*fields, *exchange.state.cors)
        for name, value in responses.id_fields(exchange.id, exchange.dialect):
            flow.response.headers[name.title()] = value
        flow.response.headers.fields += exchange.state.limit_fields
        if is_filtered(exchange):
            if exchange.method == "HEAD":
                flow.response.headers.pop("content-length", None)  # The length of the unfiltered list.
            return  # It is read whole: see rewrite_response().
        if exchange.route and exchange.prompt and exchange.status == 200:
            get = flow.response.headers.get
            kinds = get("content-type", ""), get("content-encoding", "")
            exchange.usage = UsageReader(exchange.route.usage, *kinds, exchange.status)
            exchange.on_token_interval = self.config.monitor.on_token_interval
        flow.response.stream = self.flow_views.response_started(exchange, flow)

    def rewrite_response(self, exchange: Exchange, flow: http.HTTPFlow) -> Answer | None:
        """Take out of a response what the principal may not see. Return an answer in its place if it can't be read."""
        if exchange.method == "HEAD" or not (flow.response and exchange.route and is_filtered(exchange)):
            return None
        try:
            filter_response(exchange, exchange.route, flow.response)
        except BodyError as error:
            exchange.status = None
            return self.failed(exchange, "upstream broken", error.status)
        return None

    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer:
        """Record what went wrong after the admission, and return an answer for a client that has seen nothing yet."""
        exchange.reason = exchange.reason or reason
        exchange.status = exchange.status or status or None
        text, extra = FAILURES.get(reason, ("the request failed", ()))
        if reason.startswith("upstream"):
            logger.warning("ollama_auth: %s: %s (request %s)", reason, text, exchange.id)
        return responses.error(exchange.id, status or 502, text, exchange.dialect, *exchange.state.cors, *extra)

    def finish(self, exchange: Exchange, peer: Peer | None) -> None:
        """End an exchange: count it, log it, charge it. A second call changes nothing."""
        if exchange.ended is not None:
            return
        exchange.finish()
        self.under_way.pop(id(exchange), None)
        if peer and peer.exchanges.pop(id(exchange), None):
            self.connections.note_change(peer.network)
        self._release_body(exchange)
        if exchange.id == self.self_check and not exchange.admitted:
            return
        self.flow_views.end(exchange)
        self._count(exchange)
        if exchange.state.holds_lease:
            asyncio_utils.create_task(self.leases.give_back(exchange), name="limits", keep_ref=True)
        if exchange.suppress_log:
            where = client_ip.network_of(exchange.client)
            self.connections.warn_rate_limited(
                f"many different wrong keys come from {where}: for up to {WINDOW:.0f} s they get 429 and no line here; "
                "right keys are accepted. If a program of yours sends them, give it its key; the limit is "
                "ollama_max_wrong_keys"
            )
        else:
            self.config.log.write(exchange)

    def _release_body(self, exchange: Exchange) -> None:
        """Count its body no more among those in memory: Ollama has it, or nobody wants it."""
        if exchange.state.held_body:
            self.held_bodies.release(exchange.state.held_body)

    def _count(self, exchange: Exchange) -> None:
        """Count and record it. An exception here must not cost a request."""
        try:
            if self.config.ledger:
                self.config.ledger.add(entry_of(exchange), row=not exchange.suppress_log)
            self.config.monitor.ended(exchange)
            if self.config.audit:
                self.config.audit.write(exchange)
        except Exception as error:
            logger.error("ollama_auth: a request was not counted: %s", type(error).__name__)

    def internal_error(self, error: Exception, exchange: Exchange | None = None) -> Answer:
        """Log where an exception came from, and return a 503.

        `exchange` is the request at which it happened, if there is one.
        """
        request_id, dialect = (exchange.id, exchange.dialect) if exchange else (new_id(), Dialect.OLLAMA)
        name, place = type(error).__name__, place_of(error)
        logger.error("ollama_auth: %s at %s: the request was denied (%s)", name, place, request_id)
        message = "the gateway failed to decide, so it denies"
        return responses.error(request_id, 503, message, dialect, retry_after(RETRY_SECONDS))


def client_left() -> RefusedError:
    """Return the refusal of what a client sent before it left, and what waited in the layers since."""
    return RefusedError("client left", 503, "the client has left")
