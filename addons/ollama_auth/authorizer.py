"""The decision: a request head, and where needed its body, -> an UpstreamRequest or a Refusal. Pure.

It asks in this order: is it a request for this server, who sends it, may they do that, is it small enough, and what of
it may be seen upstream. A UpstreamRequest becomes an Admission in one line of `desk.py`.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from .auth import cli_signature, credentials, forwarding, keys, policy
from .auth.cli_signature import Replays, SignatureError
from .auth.credentials import CredentialError
from .auth.keys import Principal
from .auth.throttle import Throttle
from .exchange import UNKNOWN, Exchange, Refusal, UpstreamRequest
from .http import cors
from .http.head import Bounds, Fields, Head, HeadError, check_fields, values
from .http.responses import error, retry_after, unauthorized
from .ollama_api import include_usage, models
from .ollama_api.routes import route
from .settings import Settings

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
RETRY_SECONDS = 5


REPLAYED = ("replayed", "this signature was used before")
GUESSES = ("unknown", "bad signature")
"""Reasons of a refusal that somebody who guesses brings about; the others are mistakes."""


class Peer(Protocol):
    """The connection that a request comes on."""

    @property
    def network(self) -> str: ...
    @property
    def sockname(self) -> tuple[str, int] | None: ...


@dataclass(slots=True)
class AbuseState:
    """What is remembered between requests, all of it bounded."""

    throttle: Throttle
    replays: Replays


class Refused(Exception):
    """Raised on the way down, caught once."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class Authorizer:
    """The rules in force and what is remembered."""

    def __init__(self, settings: Settings, memory: AbuseState) -> None:
        self.settings = settings
        self.memory = memory

    def head(self, head: Head, exchange: Exchange, peer: Peer) -> UpstreamRequest | Refusal:
        """Authorizer a request by its head. Raises nothing that a client can bring about."""
        here = self._introduce(head, exchange, peer)
        try:
            if answer := cors.preflight(head.method, head.fields, self.settings.cors_origins):
                return Refusal("preflight", answer)
            self._check_form(head, exchange, here)
            assert here is not None
            principal, secret = self._identify(head, here, exchange, peer)
            return self._claim(head, here, exchange, principal, secret)
        except Refused as refused:
            return refused.refusal

    def body(self, exchange: Exchange, upstream_request: UpstreamRequest, body: bytes) -> Refusal | None:
        """Authorizer the body of a request whose principal may not use every model."""
        assert exchange.route
        try:
            types = values(upstream_request.fields, b"content-type")
            if len(types) > 1:
                raise models.BodyError(400, "the request has more than one Content-Type")
            query = upstream_request.target.partition(b"?")[2]
            asked = models.asked(exchange.route, query, types[0] if types else b"", body)
            exchange.model = asked.names[0] if asked.names else None
            denial = policy.check_asked(upstream_request.principal, asked)
        except models.BodyError as fault:
            return self.refuse(exchange, "malformed body", fault.status, fault.message)
        return self.refuse(exchange, denial.reason, denial.status, denial.message) if denial else None

    def replayed(self, exchange: Exchange) -> Refusal:
        """The signature of this request was used at another gate."""
        return self._challenge(exchange, *REPLAYED)

    def refuse(
        self, exchange: Exchange, reason: str, status: int, message: str, *extra: tuple[bytes, bytes]
    ) -> Refusal:
        """A refusal in the words of the request's dialect."""
        return Refusal(reason, error(status, message, exchange.dialect, *self._fields(exchange), *extra))

    def _introduce(self, head: Head, exchange: Exchange, peer: Peer) -> bytes | None:
        """Note what the log may know. Returns the request target in origin form, or None where it is not ours."""
        known = self.settings.ring.find
        exchange.take_id(head.fields, known)
        here = origin_form(head.target, peer.sockname)
        exchange.route = route(head.method, head.target if here is None else here)
        exchange.path = forwarding.mask_path(exchange.route.path, known)
        exchange.cors = cors.response_fields(head.fields, self.settings.cors_origins)
        return here

    def _check_form(self, head: Head, exchange: Exchange, here: bytes | None) -> None:
        fault = unfit(head, self.settings.bounds)
        if fault:
            allow = ((b"allow", b", ".join(METHODS)),) if fault.status == 405 else ()
            raise Refused(self.refuse(exchange, "malformed", fault.status, fault.message, *allow))
        if here is None:
            message = "this is not a proxy: send the path alone as the request target"
            raise Refused(self.refuse(exchange, "malformed", 421, message))

    def _identify(self, head: Head, here: bytes, exchange: Exchange, peer: Peer) -> tuple[Principal, bytes]:
        """(who sends it, the secret that was shown). Raises Refused."""
        exchange.stripped = forwarding.split(head.fields, self.settings.forward_headers, self.settings.ring.find)[1]
        try:
            principal, secret = self._signed(head, here, exchange) or self._shown(head, exchange)
        except CredentialError as why:
            if why.reason in GUESSES:
                self._failed(exchange, peer)
            raise Refused(self._challenge(exchange, why.reason, why.message)) from None
        if wait := self.memory.throttle.blocks(peer.network, principal.name):
            raise Refused(self._throttled(exchange, wait))
        self.memory.throttle.succeeded(peer.network, principal.name)
        exchange.key = principal.name
        return principal, secret

    def _failed(self, exchange: Exchange, peer: Peer) -> None:
        self.memory.throttle.failed(peer.network)
        if wait := self.memory.throttle.blocks(peer.network):
            exchange.suppress_log = True
            raise Refused(self._throttled(exchange, wait))

    def _throttled(self, exchange: Exchange, wait: int) -> Refusal:
        message = "too many wrong keys came from your address; try again later"
        return self.refuse(exchange, "throttled", 429, message, retry_after(wait))

    def _shown(self, head: Head, exchange: Exchange) -> tuple[Principal, bytes]:
        secret = credentials.parse(head.fields)
        principal = self.settings.ring.find(secret)
        if principal is None:
            exchange.key = UNKNOWN + keys.fingerprint(secret)
            raise CredentialError("unknown", "the key is not known here")
        return principal, secret

    def _signed(self, head: Head, here: bytes, exchange: Exchange) -> tuple[Principal, bytes] | None:
        """Who signed it, as the stock `ollama` command line does; None where it is not signed."""
        sent = values(head.fields, b"authorization")
        signature = cli_signature.parse(sent[0]) if len(sent) == 1 else None
        if signature is None:
            return None
        if values(head.fields, b"x-api-key"):
            raise CredentialError("duplicate", "a signed request holds no other key")
        principal = self.settings.ring.find_ssh(signature.key)
        if principal is None:
            exchange.key = UNKNOWN + keys.fingerprint(signature.key)
            raise CredentialError("unknown", "the public key is not known here")
        try:
            cli_signature.verify(signature, head.method, here, time.time(), self.settings.signature_window)
        except SignatureError as why:
            raise CredentialError(why.reason, why.message) from None
        assert exchange.route
        hurts = exchange.route.route_class in policy.REPLAY_HURTS
        if hurts and self.memory.replays.seen(signature.value, time.monotonic()):
            raise CredentialError(*REPLAYED)
        return principal, sent[0]

    def _claim(
        self, head: Head, here: bytes, exchange: Exchange, principal: Principal, secret: bytes
    ) -> UpstreamRequest:
        assert exchange.route
        if denial := policy.check_route(principal, exchange.route, time.time()):
            if denial.status == 401:
                raise Refused(self._challenge(exchange, denial.reason, denial.message))
            raise Refused(self.refuse(exchange, denial.reason, denial.status, denial.message))
        reads_body = policy.needs_models(principal, exchange.route)
        max_body = self._max_body(head, exchange, reads_body)
        if reads_body and values(head.fields, b"content-encoding"):
            message = "this key may not use every model, so its requests can't be compressed"
            raise Refused(self.refuse(exchange, "malformed body", 415, message))
        try:
            signature = cli_signature.parse(secret)
            target, removed = forwarding.clean_target(cli_signature.without_ts(here) if signature else here, secret)
        except ValueError:
            exchange.path = forwarding.MASKED_PATH
            message = "the key is in the path of the URL: take it for known to others"
            raise Refused(self.refuse(exchange, "key in path", 400, message)) from None
        exchange.stripped += removed
        filtered = policy.listing_filtered(principal, exchange.route)
        allowed = self.settings.forward_headers - {b"accept-encoding"} if filtered else self.settings.forward_headers
        fields = forwarding.without(forwarding.split(head.fields, allowed)[0], secret)
        once = signature.value if signature and self._shares_replays(exchange) else None
        return UpstreamRequest(
            principal, target, fields, max_body, reads_body, filtered, once, self._asks_usage(head, exchange)
        )

    def _shares_replays(self, exchange: Exchange) -> bool:
        """A replay would do harm, and there is a place where other gates look as well."""
        assert exchange.route
        return self.settings.limits_storage is not None and exchange.route.route_class in policy.REPLAY_HURTS

    def _asks_usage(self, head: Head, exchange: Exchange) -> bool:
        wanted = self.settings.include_usage and exchange.route and exchange.route.path in include_usage.PATHS
        readable = 0 < head.body <= include_usage.MAX_READ and not values(head.fields, b"content-encoding")
        return bool(wanted) and readable

    def _max_body(self, head: Head, exchange: Exchange, reads_body: bool) -> int | None:
        assert exchange.route
        limits = [self.settings.max_body.get(exchange.route.route_class)]
        limits += [self.settings.max_inspected_body] if reads_body else []
        most = min((limit for limit in limits if limit is not None), default=None)
        if most is not None and head.body > most:
            message = f"the request body is larger than {most} bytes"
            raise Refused(self.refuse(exchange, "body too large", 413, message))
        return most

    def _challenge(self, exchange: Exchange, reason: str, message: str) -> Refusal:
        fields = self._fields(exchange)
        return Refusal(reason, unauthorized(message, exchange.dialect, *fields, sent=reason != "missing"))

    @staticmethod
    def _fields(exchange: Exchange) -> Fields:
        return ((b"x-request-id", exchange.id.encode()), *exchange.cors)


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
