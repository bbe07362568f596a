"""A connection to the upstream, as mitmproxy opens it, with BoundedHttp1Client where that speaks HTTP/1."""

from typing import Any

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HttpClient, RegisterHttpConnection
from mitmproxy.proxy.layers.http._http2 import Http2Client

from .events import Commands
from .http1_client import BoundedHttp1Client


class OllamaServer(Server):
    """mitmproxy's Server, which has an address also where its peer can't be asked: the connection was reset at once."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "peername" and value is None and vars(self).get("state") is ConnectionState.OPEN:
            value = self.address
        super().__setattr__(name, value)  # type: ignore[no-untyped-call]


class Upstream(HttpClient):
    """mitmproxy's HttpClient with BoundedHttp1Client in place of Http1Client."""

    def __init__(self, context: Context, *, kept: bool) -> None:
        super().__init__(context)
        self.kept = kept
        self.http1: BoundedHttp1Client | None = None
        """The layer within, once it is known to be this one."""

    def _handle_event(self, event: events.Event) -> Commands:
        error = None if self.context.server.connected else (yield commands.OpenConnection(self.context.server))
        if not error:
            http2 = self.context.server.alpn == b"h2"
            if not http2:
                self.http1 = BoundedHttp1Client(self.context)
                self.http1.kept = self.kept
            self.child_layer = self.http1 or Http2Client(self.context)
            self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
            yield from self._handle_event(event)
        yield RegisterHttpConnection(self.context.server, error)


def http1_of(layer: Layer | None) -> BoundedHttp1Client | None:
    """Return the layer that speaks HTTP/1 on a connection; None with TLS, where it is within another."""
    return layer.http1 if isinstance(layer, Upstream) else None
