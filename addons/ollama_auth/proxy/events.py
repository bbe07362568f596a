"""What the layers of the edge and the gate tell each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mitmproxy import http
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseProtocolError

from ..auth.redaction import KeyLookup
from ..exchange import Admission, Exchange, Refusal, UpstreamRequest
from ..http.head import Bounds, Head, HeadError
from ..http.responses import Answer
from .connections import ClientConnection

type Commands = layer.CommandGenerator[None]

MALFORMED_BODY = "malformed request body"
"""The message of the RequestProtocolError of a body whose framing is broken."""


class Lifecycle(Protocol):
    """What the edge asks of the gate. None of it may raise; where it does, the connection is closed."""

    @property
    def bounds(self) -> Bounds: ...
    @property
    def head_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def draining(self) -> bool: ...
    @property
    def watched(self) -> Callable[[], bool]:
        """Somebody looks at flows, so that those refused are worth building."""

    @property
    def find_key(self) -> KeyLookup | None:
        """Says whose a secret is, to mask it."""

    def authorize(self, head: Head, peer: ClientConnection) -> tuple[Exchange, Admission | UpstreamRequest | Refusal]:
        """May this request go upstream? A UpstreamRequest waits for its body, or for its turn, or for both."""

    def authorize_body(
        self, exchange: Exchange, body: bytes, peer: ClientConnection
    ) -> Admission | UpstreamRequest | Refusal:
        """The body of a UpstreamRequest is here. A UpstreamRequest that is left waits for its turn: see ReserveHook."""

    def rewrite_response(self, exchange: Exchange, flow: http.HTTPFlow) -> Answer | None:
        """A response that was read whole is about to be sent: make it what its reader may see, or another one."""

    def refuse_malformed(self, error: HeadError, peer: ClientConnection | None) -> Answer:
        """The answer to a head that is none."""

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """An admitted request is about to go upstream."""

    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """The head of its response is here."""

    def failed(self, exchange: Exchange, reason: str, status: int) -> Answer:
        """There will be no (whole) response; the answer for the client that has seen nothing of one."""

    def finish(self, exchange: Exchange, peer: ClientConnection | None) -> None:
        """An exchange is over, however it ended."""

    def internal_error(self, error: Exception) -> Answer:
        """One of our own lines raised."""


@dataclass
class ParsedRequestHeaders(RequestHeaders):
    """A request head, with all of it that mitmproxy's Request does not tell, and what became of it."""

    head: Head | None = None
    verdict_given: tuple[Exchange, Admission | UpstreamRequest | Refusal] | None = None


@dataclass
class Refuse(HttpEvent):
    """To the client's side: answer this and read no further."""

    answer: Answer


class Failure(ResponseProtocolError):
    """A ResponseProtocolError that knows what to tell the client."""

    def __init__(self, event: ResponseProtocolError, answer: Answer) -> None:
        super().__init__(event.stream_id, event.message, event.code)
        self.answer = answer


class Dead(ResponseProtocolError):
    """The server closed the connection before a byte of its answer."""


@dataclass
class Reservation:
    """A UpstreamRequest that waits for its turn; unanswered it is refused."""

    exchange: Exchange
    peer: ClientConnection
    verdict: Admission | Refusal | None = None


@dataclass
class OllamaReserveHook(commands.StartHook):
    """Asks the gate, which may have to wait for a storage: `ollama_reserve`."""

    reservation: Reservation
