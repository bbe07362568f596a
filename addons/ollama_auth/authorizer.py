"""Decide about a request: by its head, and by its body where the head is not enough.

`parse` begins the record of a request. `authorize` walks the stages from top to bottom: the rules for every request,
the identity behind it, what policy says about both, and the request as it may go upstream. Each stage is in a module
of its own, and the first one that refuses ends the walk. `lifecycle.py` turns the result into an Admission.
"""

import re
from typing import NamedTuple

from . import clock
from .auth import cli_signature, forwarding, policy, redaction
from .auth.credentials import CredentialError
from .auth.identity import Identity, find_again, identify
from .auth.keys import Principal
from .auth.policy import Denial
from .auth.redaction import KeyLookup
from .auth.throttle import WINDOW, ReplayCache, Throttle
from .errors import RefusedError
from .exchange import Exchange, Refusal, UpstreamRequest
from .http import cors, responses
from .http.head import Fields, Head, check_text, values
from .http.request_rules import METHODS, Address, check_request, from_browser, origin_form, wants_websocket
from .http.responses import DO_NOT_RETRY, USED_UP, Answer, retry_after
from .ollama_api.request_models import Asked, BodyError, BodyReader
from .ollama_api.routes import Route, decoded_path, route
from .settings import Settings

GUESSES = ("unknown", "bad signature")
"""Reasons of a refusal that guessing brings about; the other ones are mistakes, and are not counted by the throttle."""
KEY_IN_PATH = "key in path"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,%d}" % redaction.MAX_SEARCHED)


class Decision(NamedTuple):
    """What was decided about a head, and what of that the log may show."""

    verdict: UpstreamRequest | Refusal
    key: str | None = None
    """The name of the principal, or the fingerprint of a credential that is not known."""
    stripped: tuple[str, ...] = ()
    """Names of header fields and query parameters that do not go upstream."""
    suppress_log: bool = False
    """One of so many of its kind that they are counted and not logged."""
    body_reader: BodyReader | None = None
    """What the body, which is to be inspected, has to be given to as it comes."""


class Authorizer:
    """The rules in force, and what is remembered between requests."""

    def __init__(self, settings: Settings, throttle: Throttle, replays: ReplayCache) -> None:
        self.settings, self.throttle, self.replays = settings, throttle, replays

    def parse(self, head: Head, exchange: Exchange, server: Address | None) -> None:
        """Put into the record of a request what its head says, whatever will be decided.

        `server` is the address and port that it came to.
        """
        holds = self.settings.ring.holds
        target = origin_form(head.target, server) or head.target
        exchange.id = sent_id(head.fields, holds) or exchange.id
        exchange.route = route(head.method, target)
        exchange.state.decoded_path = decoded_path(target)
        exchange.path = redaction.mask_path(exchange.state.decoded_path, holds)
        exchange.state.cors = cors.response_fields(head.fields, self.settings.cors_origins)
        exchange.state.offers_basic = not from_browser(head.fields)

    def authorize(self, head: Head, exchange: Exchange, network: str, server: Address | None) -> Decision:
        """Decide by the head alone. Changes nothing of the exchange, and raises nothing that a client can cause.

        `network` is what wrong credentials are counted by.
        """
        if answer := cors.preflight(head.method, head.fields, self.settings.cors_origins):
            named = Answer(answer.status, (*responses.id_fields(exchange.id, exchange.dialect), *answer.fields), b"")
            return Decision(Refusal("preflight", named, keep_alive=True))
        key: str | None = None
        stripped: tuple[str, ...] = ()
        try:
            target = check_request(head, server, self.settings.bounds)
            assert exchange.route is not None
            stripped = forwarding.split(head.fields, self.settings.forward_headers)[1]
            identity = self._identify(head, target, exchange.route, network)
            key = identity.principal.name
            self._check_route(head, identity.principal, exchange.route)
            body = self._check_body(head, identity.principal, exchange.route)
            upstream, removed = self._forward(head, target, exchange.route, identity, body)
            reader = self._body_reader(upstream, exchange.route) if upstream.inspects_body else None
        except RefusedError as error:
            return Decision(self.refuse(exchange, error), error.key or key, stripped, error.suppress_log)
        return Decision(upstream, key, stripped + removed, body_reader=reader)

    def check_again(self, request: UpstreamRequest, found: Route, asked: Asked | None) -> None:
        """Ask policy about a request that waited, with its principal as it is now. Raises RefusedError.

        `asked` is what its body asks for, if it was inspected. The key may have been revoked, narrowed or expired.
        """
        principal = find_again(request.identity, self.settings.ring) if request.identity else None
        if principal is None:
            raise CredentialError("unknown", "the key is not known here any more")
        _raise(policy.check_route(principal, found, clock.wall()))
        unread = policy.needs_models(principal, found) and asked is None
        if unread or (policy.response_filtered(principal, found) and not request.filters_response):
            changed = RefusedError("model", 403, "this key was changed meanwhile: send the request again")
            changed.worth_retrying = True
            raise changed
        if asked:
            _raise(policy.check_asked(principal, asked))

    def sign_in(self, head: Head, network: str) -> Principal:
        """Return whose key a request to the status listener holds, by the rules for all. Raises RefusedError."""
        principal = self._identify(head, head.target, route(b"GET", b"/"), network).principal
        _raise(policy.check_valid(principal, clock.wall()))
        return principal

    @staticmethod
    def refuse(exchange: Exchange, error: RefusedError) -> Refusal:
        """Word a refusal for the API that the request was made to."""
        fields, code = (*exchange.state.cors, *error.fields), None
        if error.status in (401, 403) and not error.worth_retrying:
            fields = (DO_NOT_RETRY, *fields)
        if error.status == 401:
            sent = error.reason != "missing"
            fields = (*responses.challenges(sent=sent, basic=exchange.state.offers_basic), *fields)
            code = "invalid_api_key"
        elif error.used_up:
            code = USED_UP
        answer = responses.error(exchange.id, error.status, error.message, exchange.dialect, *fields, code=code)
        return Refusal(error.reason, answer)

    # The stages of `authorize`.

    def _identify(self, head: Head, target: bytes, found: Route, network: str) -> Identity:
        try:
            identity = identify(head, target, self.settings.ring, clock.wall(), self.settings.signature_window)
        except RefusedError as error:
            if error.reason in GUESSES and self.throttle.failed(network, error.key or error.reason):
                raise throttled(error.key) from None
            raise
        signature = identity.signature
        single_use = found.route_class in policy.REPLAY_HURTS
        if signature and single_use and self.replays.replayed(signature.value, clock.monotonic()):
            raise replayed()
        return identity

    @staticmethod
    def _check_route(head: Head, principal: Principal, found: Route) -> None:
        denial = policy.check_route(principal, found, clock.wall())
        if wants_websocket(head) and not (denial and denial.status == 401):
            # RFC 9110 section 15.5.22. Codex then sends the same over HTTP at once, and after any other answer later.
            spoken = (b"connection", b"Upgrade"), (b"upgrade", b"HTTP/1.1")
            raise RefusedError("websocket", 426, "there are no WebSockets here: send the request over HTTP", *spoken)
        _raise(denial)

    def _check_body(self, head: Head, principal: Principal, found: Route) -> tuple[int | None, bool]:
        """Return (most bytes of the body or None, whether it is inspected)."""
        inspects = policy.needs_models(principal, found)
        limits = [self.settings.max_body.get(found.route_class)]
        limits += [self.settings.max_inspected_body] if inspects else []
        most = min((limit for limit in limits if limit is not None), default=None)
        if most is not None and head.body > most:
            raise RefusedError("body too large", 413, f"the request body is larger than {most} bytes")
        if inspects and values(head.fields, b"content-encoding"):
            message = "requests of this key are read before they go upstream, so they can't be compressed"
            raise RefusedError("malformed body", 415, message)
        return most, inspects

    def _forward(
        self, head: Head, target: bytes, found: Route, identity: Identity, body: tuple[int | None, bool]
    ) -> tuple[UpstreamRequest, tuple[str, ...]]:
        """Return (the request as it goes upstream, what was taken out of its target)."""
        principal, secret, signature = identity.principal, identity.secret, identity.signature
        try:
            target, removed = redaction.clean_target(cli_signature.without_ts(target) if signature else target, secret)
        except ValueError:
            message = "the key is in the path of the URL: take it for known to others"
            raise RefusedError(KEY_IN_PATH, 400, message) from None
        filtered = policy.response_filtered(principal, found)
        allowed = self.settings.forward_headers
        if filtered or found.prompts:
            allowed -= {b"accept-encoding"}  # The answer is to be read here.
        fields = redaction.without(forwarding.split(head.fields, allowed)[0], secret)
        check_text(fields)
        shared = self.settings.limits_storage is not None and found.route_class in policy.REPLAY_HURTS
        single_use = signature.value if signature and shared else None
        return UpstreamRequest(principal, target, fields, *body, filtered, single_use, identity), removed

    @staticmethod
    def _body_reader(request: UpstreamRequest, found: Route) -> BodyReader:
        types = values(request.fields, b"content-type")
        if len(types) > 1:
            raise BodyError(400, "the request has more than one Content-Type")
        return found.body_reader(request.target.partition(b"?")[2], types[0] if types else b"")


def _raise(denial: Denial | None) -> None:
    if denial:
        raise RefusedError(denial.reason, denial.status, denial.message, *denial.fields)


def sent_id(fields: Fields, known: KeyLookup) -> str | None:
    """Return the client's X-Request-Id, if it sent one that is well-formed and holds no key."""
    sent = values(fields, b"x-request-id")
    if len(sent) == 1 and _REQUEST_ID.fullmatch(sent[0]) and not redaction.may_hold_key(sent[0], known):
        return sent[0].decode("ascii")
    return None


def shown_method(method: bytes) -> str:
    """Return a method as the log may show it: no other one is served, and it may be a key."""
    return (method if method in METHODS else redaction.MASK).decode("ascii")


def throttled(key: str | None) -> RefusedError:
    """Make the error of a wrong key from a network that sent too many; `key` is its fingerprint."""
    message = (
        "this key is not known here, and too many different wrong keys came from your address: each gets this answer "
        f"for up to {WINDOW:.0f} s. Send a right key, which is accepted at any time"
    )
    error = RefusedError("throttled", 429, message, retry_after(int(WINDOW)), DO_NOT_RETRY)
    error.key, error.suppress_log = key, True
    return error


def replayed() -> RefusedError:
    """Make the error of a signature that was used before, here or at another gate."""
    return RefusedError("replayed", 401, "this signature was used before")
