"""One request and its answer, as the log and the metrics know it: no header value, no content, no secret."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from .auth.held_bodies import HeldBody
from .auth.identity import UNKNOWN, Identity
from .auth.keys import Principal
from .auth.limits import Limiter, limited
from .auth.redaction import MASK, mask_model
from .bounded_copy import Recording
from .clock import wall
from .http.head import Fields
from .http.responses import Answer
from .ollama_api.prompt import Prompt
from .ollama_api.request_models import Asked, BodyReader
from .ollama_api.routes import Dialect, Route
from .ollama_api.usage import BYTES_PER_TOKEN, Usage, UsageReader


class Outcome(StrEnum):
    """How a request ended. Log, metrics, console and `scripts/usage` all count by it."""

    ANSWERED = "answered"
    """Ollama's answer went out whole, or the gateway answered a CORS preflight."""
    REFUSED = "refused"
    """A rule of the gateway decided it: before admission, or after it when a body broke a rule."""
    FAILED = "failed"
    """Ollama could not be reached, broke off or answered with a status of 500 or above."""
    BROKEN_OFF = "broken_off"
    """The client left, an operator killed it or the gateway stopped before the answer was whole."""


INTERRUPTIONS = frozenset({"client left", "killed", "stopped"})
"""Reasons for BROKEN_OFF."""


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request as it may go upstream, and what has still to be asked before it may."""

    principal: Principal
    target: bytes
    """The request target, in origin form."""
    fields: Fields
    """The header fields, without Host."""
    max_body: int | None = None
    """Bytes; None is no limit."""
    inspects_body: bool = False
    """The body may name a model that the principal may not use: it is read whole before any of it goes upstream."""
    filters_response: bool = False
    """What the principal may not see is taken out of the response: models, or the operator's account."""
    single_use_signature: bytes | None = None
    """A signature that no other gate may have seen before."""
    identity: Identity | None = field(default=None, repr=False)
    """The credential, to look its principal up again if the request has to wait."""

    @property
    def needs_lease(self) -> bool:
        """The limits of the principal, or other gates, have to be asked first."""
        return limited(self.principal) or self.single_use_signature is not None

    @property
    def waits(self) -> bool:
        """Time passes between the decision about its head and its admission."""
        return self.inspects_body or self.needs_lease


@dataclass(frozen=True, slots=True)
class Admission:
    """The permission to go upstream. Constructed in one line of lifecycle.py, and nowhere else."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not go upstream, and the answer to its client."""

    reason: str
    answer: Answer
    keep_alive: bool = False
    """The connection may stay open: only for an answer that a client must get before it may show its credential."""


type Verdict = Admission | UpstreamRequest | Refusal
"""An UpstreamRequest still waits for its body, or for its lease."""


def new_id() -> str:
    """Make a request id: 64 random bits."""
    return secrets.token_hex(8)


@dataclass(slots=True)
class RequestState:
    """What was decided about a request, as far as it is needed until the request ends. Not for logs."""

    decoded_path: bytes = b""
    """The path that was sent; that of the route may have fewer slashes."""
    upstream_request: UpstreamRequest | None = None
    body_reader: BodyReader | None = None
    """Reads the body as it comes, if the body is inspected."""
    asked: Asked | None = None
    """What its body asks for, if the body was inspected."""
    cors: Fields = ()
    """Fields of every response to it, for browsers."""
    offers_basic: bool = False
    """A 401 may ask for a password: the client is no browser."""
    limit_fields: Fields = ()
    """Fields of its response about limits."""
    reserved: bool = False
    """The limits were asked, and refused nothing."""
    tokens_reserved: bool = False
    """So they were for the tokens of its prompt and of its answer."""
    learns: bool = False
    """Its answer tells how long answers usually are: the request named no cap."""
    holds_lease: bool = False
    held_body: HeldBody | None = None
    """What of its body is in memory, if the body is inspected."""
    limiter: Limiter | None = None
    """The one that granted the lease; another one may be in force before the request ends."""
    _lease: str = ""

    @property
    def lease(self) -> str:
        """The name of its place among the concurrent requests of its principal: unique, and not chosen by a client."""
        self._lease = self._lease or secrets.token_hex(16)
        return self._lease


@dataclass(slots=True)
class Exchange:
    """The record of a request and its response, for logs and metrics: no header value, no content, no secret.

    `time` is in seconds since 1970, the other times are from `monotonic`; sizes are in bytes.
    """

    client: str
    method: str = ""
    route: Route | None = None
    path: bytes | None = None
    """Decoded, without its query, with keys masked."""
    id: str = field(default_factory=new_id)
    time: float = field(default_factory=wall)
    started: float = field(default_factory=monotonic)
    first_byte: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    key: str | None = None
    """The name of the principal, or the fingerprint of a credential that is not known."""
    stripped: tuple[str, ...] = ()
    """Names of header fields and query parameters that did not go upstream."""
    status: int | None = None
    reason: str | None = None
    """Why it was refused or failed: a word of the log, a label of metrics, a row of the console."""
    model: str | None = None
    """As the request body or the response names it, whichever was read last."""
    admitted: bool = False
    suppress_log: bool = False
    """One of so many of its kind that they are counted and not logged."""
    bytes_in: int = 0
    bytes_out: int = 0
    usage: UsageReader | None = None
    """Reads the response as it passes, where it may report tokens."""
    prompt: Prompt | None = None
    """Estimates the tokens of the request body, where a model is to read it."""
    sent: bool = False
    """Some of the body went upstream."""
    used: Usage | None = None
    """What Ollama worked for it, once it has ended; None where that was nothing."""
    on_token_interval: Callable[[float], object] | None = None
    """Takes the seconds between two tokens of a stream."""
    recording: Recording | None = None
    """Takes both bodies, for the audit log."""
    shown: tuple[str, str, str, float, float | None] | None = None
    """See `shown` in access_log.py."""
    state: RequestState = field(default_factory=RequestState)

    @property
    def identified(self) -> bool:
        """It came with the credential of a principal."""
        return self.key is not None and not self.key.startswith(UNKNOWN)

    @property
    def reserves_tokens(self) -> bool:
        """Once its body is here, tokens have to be reserved for it, and were not yet."""
        request = self.state.upstream_request
        return bool(self.prompt and request and request.principal.tokens_limited and not self.state.tokens_reserved)

    @property
    def outcome(self) -> Outcome:
        """How it ended, by its reason, else by its status."""
        if self.status is None or self.reason in INTERRUPTIONS:
            return Outcome.BROKEN_OFF
        if self.reason is None:
            return Outcome.FAILED if self.status >= 500 else Outcome.ANSWERED
        if self.reason == "preflight":
            return Outcome.ANSWERED
        return Outcome.FAILED if self.reason.startswith("upstream") else Outcome.REFUSED

    @property
    def stream(self) -> bool | None:
        """Whether a model's answer came as a stream; None for any other answer."""
        return self.usage.stream if self.usage else None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token of a stream, else to the first byte of a successful answer."""
        first = self.first_token if self.stream else self.first_byte
        failed = self.status != 200 or (self.used is not None and self.used.error is not None)
        return first - self.started if first and (self.first_token or not failed) else None

    @property
    def tokens(self) -> int:
        """Tokens of the answer: its own figure once known, else the events with content so far."""
        return (self.used and self.used.completion_tokens) or (self.usage.events if self.usage else 0)

    @property
    def speed(self) -> float | None:
        """Tokens per second: from the first to the last of a stream, or over the whole time of another answer."""
        if self.first_token is not None and self.last_token is not None:
            took, tokens = self.last_token - self.first_token, self.tokens - 1
        else:
            took, tokens = (self.ended or self.started) - self.started, self.tokens
        return tokens / took if took > 0 and tokens > 0 else None

    @property
    def dialect(self) -> Dialect:
        """The API that its errors are worded for."""
        return self.route.dialect if self.route else Dialect.OLLAMA

    def shown_model(self, name: str) -> str:
        """The name of a model as logs may show it: a client may have put its key there."""
        request = self.state.upstream_request
        if self.path and MASK in self.path:  # It may be where the name comes from.
            return MASK.decode()
        return mask_model(name, request.identity.secret if request and request.identity else b"")

    def request_chunk(self, data: bytes) -> bytes:
        """Count and pass on what the client sends (for `flow.request.stream`)."""
        self.bytes_in += len(data)
        if self.prompt and not self.state.held_body:
            self.prompt.add(data)
        self.sent = True
        if self.recording:
            self.recording.request.add(data)
        return data

    def response_chunk(self, data: bytes) -> bytes:
        """Count and pass on what Ollama answers (for `flow.response.stream`)."""
        if data:
            if self.first_byte is None:
                self.first_byte = monotonic()
            self.bytes_out += len(data)
            if self.recording:
                self.recording.answer.add(data)
            if self.usage and (tokens := self.usage.feed(data)):
                self._tick(tokens)
        return data

    def _tick(self, tokens: int) -> None:
        """Note the time of tokens that have just come."""
        now = monotonic()
        if self.last_token is None:
            self.first_token = now
        elif self.on_token_interval:
            for _ in range(tokens):  # Tokens that came together count as evenly spaced.
                self.on_token_interval((now - self.last_token) / tokens)
        self.last_token = now

    def finish(self) -> None:
        """Note the end, and read what the response used. A second call changes nothing."""
        if self.ended is not None:
            return
        self.ended = monotonic()
        self.used = self.charged_usage()
        if self.used and self.used.complete and self.stream:
            self.reason = None  # Whoever closed the connection: clients do so once they have read the end.
        if self.used and self.used.model:
            self.model = self.used.model = self.shown_model(self.used.model)

    def charged_usage(self) -> Usage | None:
        """What Ollama worked for: what it says, else an estimate of the prompt and of the answer as far as it came."""
        if self.usage and self.status == 200:
            used = self.usage.finish(clean=self.reason is None)
        elif self.prompt and self.sent and self.first_byte is None and not (self.reason or "").startswith("upstream"):
            used = Usage(completion_tokens=0)  # It was at work, and nothing had come yet.
        else:
            return None
        if not self.prompt:
            return used
        if used.unread and used.completion_tokens is None:
            used.completion_tokens, used.estimated = self.bytes_out // BYTES_PER_TOKEN, True
        if used.prompt_tokens is None:
            failed = used.error and not used.events
            used.prompt_tokens, used.estimated = 0 if failed else self.prompt.tokens, True
        return used
