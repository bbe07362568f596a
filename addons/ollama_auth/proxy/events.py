"""Events and the hook that the layers of this package exchange, and the interface to the request lifecycle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseProtocolError

from ..exchange import Exchange, Refusal, Verdict
from ..http.head import Head, HeadError
from ..http.responses import Answer
from ..settings import Settings
from .client_connection import ClientConnection, Peer

type Commands = layer.CommandGenerator[None]

MALFORMED_BODY = "malformed request body"
"""The message of the RequestProtocolError for a body whose framing is broken."""


class Lifecycle(Protocol):
    """What the layers need of RequestLifecycle (lifecycle.py), which imports this package; see there for each method.

    None of the methods may raise; if one does, the connection is closed. An UpstreamRequest as a verdict on a head has
    to wait for OllamaReserveHook, for its body, or first for the one and then for the other; as a verdict on a body,
    for the hook once more. Whatever the verdict, the exchange must be passed to `finish` at its end.
    """

    @property
    def settings(self) -> Settings: ...

    draining: bool
    watched: Callable[[], bool]

    @property
    def most_free(self) -> int: ...
    def refuse_stranger(self, head: Head, peer: Peer) -> Answer | None: ...
    def authorize(self, head: Head, peer: Peer) -> tuple[Exchange, Verdict]: ...
    def hold(self, exchange: Exchange, data: bytes) -> Refusal | None: ...
    def body_timed_out(self, exchange: Exchange) -> Refusal: ...
    def authorize_body(self, exchange: Exchange, peer: Peer) -> Verdict: ...
    def rewrite_response(self, exchange: Exchange, flow: http.HTTPFlow) -> Answer | None: ...
    def refuse_malformed(self, error: HeadError, peer: Peer) -> Answer: ...
    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None: ...
    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> None: ...
    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer: ...
    def finish(self, exchange: Exchange, peer: Peer | None) -> None: ...
    def internal_error(self, error: Exception, exchange: Exchange | None = None) -> Answer: ...


@dataclass(kw_only=True)
class ParsedRequestHeaders(RequestHeaders):
    """A request head with the parts that mitmproxy's Request lacks, and the decision on it."""

    head: Head
    decision: tuple[Exchange, Verdict]


@dataclass
class Refuse(HttpEvent):
    """Tells the client's side to send this answer, and to read no more of the request."""

    answer: Answer
    keep_alive: bool = False
    """Go on with the next request; only for a request without a body."""


@dataclass(kw_only=True)
class Failure(ResponseProtocolError):
    """A ResponseProtocolError with the answer for a client that has received nothing yet."""

    answer: Answer


class ClosedBeforeResponse(ResponseProtocolError):
    """The upstream closed the connection before it sent a byte of the response."""


@dataclass
class Reservation:
    """An UpstreamRequest that waits for the storage of limits; without a verdict it is refused.

    Its verdict is an UpstreamRequest again if it has to wait for its body now, for which it then comes a second time.
    """

    exchange: Exchange
    peer: ClientConnection
    verdict: Verdict | None = None


@dataclass
class OllamaReserveHook(commands.StartHook):
    """A hook of our own, `ollama_reserve`, that fills in the verdict: layers can't await, but a hook may."""

    reservation: Reservation


def ignore_event(_: events.Event) -> Commands:
    """Do nothing: the state of a layer that has ended."""
    yield from ()
