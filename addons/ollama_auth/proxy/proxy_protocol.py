"""The PROXY protocol, versions 1 and 2: a proxy names its client in the first bytes of a connection, before TLS.

https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt. As section 2 of it demands, nobody guesses whether there is
such a header: one has to come from each trusted proxy, and none is read of anybody else.
"""

from ipaddress import ip_address

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from ..auth.client_ip import network_of, normal
from ..errors import OllamaAuthError
from ..http.request_rules import Address
from ..settings import Settings
from .client_connection import ClientConnection
from .connections import Connections
from .events import Commands, ignore_event

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""The first bytes of a header of version 2."""
MAX_LINE = 107
"""Bytes of a header of version 1."""
MAX_BLOCK = 4096
"""Bytes of addresses and extensions in a header of version 2."""


class ProxyHeaderError(OllamaAuthError, ValueError):
    """The first bytes of a connection are no PROXY header."""


class ProxyHeaderLayer(layer.Layer):
    """Reads the header, notes whose connection it is, and leaves what follows to the next layer."""

    def __init__(
        self, context: Context, peer: ClientConnection, connections: Connections, settings: Settings, too_many: bytes
    ) -> None:
        """`too_many` is the answer to a client that has too many connections."""
        super().__init__(context)
        self.peer = peer
        self.connections = connections
        self.settings = settings
        self.too_many = too_many
        self.received = b""
        self.child_layer: layer.Layer | None = None

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)
        elif isinstance(event, events.DataReceived):
            self.received += event.data
            try:
                if found := parse(self.received):
                    yield from self.hand_over(*found)
            except ProxyHeaderError as error:
                self.connections.warn_rate_limited(
                    f"{self.peer.address} is a trusted proxy, and {error}: let it send the PROXY protocol, or turn off "
                    "ollama_proxy_protocol"
                )
                yield from self.refuse(b"")

    def hand_over(self, length: int, client: Address | None) -> Commands:
        """Go on with the bytes after the header."""
        if client and not self.take(*client):
            yield from self.refuse(self.too_many)
            return
        self.peer.awaits_proxy_header = False
        self.context.layers.remove(self)
        self.child_layer = layer.NextLayer(self.context)
        self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
        yield from self._handle_event(events.Start())
        if rest := self.received[length:]:
            yield from self._handle_event(events.DataReceived(self.context.client, rest))

    def take(self, address: str, port: int) -> bool:
        """Note the client; False if it has too many connections."""
        peer, proxies = self.peer, self.settings.proxies
        peer.address, peer.client.peername = address, (address, port)
        peer.shared = peer.authenticated_before = address in proxies
        return self.connections.count_for(peer, network_of(address), self.settings.max_connections_per_client)

    def refuse(self, answer: bytes) -> Commands:
        if answer:
            yield commands.SendData(self.context.client, answer)
        yield commands.CloseConnection(self.context.client)
        self._handle_event = ignore_event  # type: ignore[assignment,method-assign]


def parse(data: bytes) -> tuple[int, Address | None] | None:
    """Return (bytes of the header, the client), or None while it is incomplete. Raises ProxyHeaderError.

    The client is None where the proxy speaks for itself, as for a health check, or does not know an IP address.
    """
    for start, parser in ((SIGNATURE, _version_2), (b"PROXY ", _version_1)):
        if data.startswith(start):
            return parser(data)
        if start.startswith(data):
            return None
    raise ProxyHeaderError("what it sends first is no PROXY header")


def _version_1(data: bytes) -> tuple[int, Address | None] | None:
    line, end, _ = data[:MAX_LINE].partition(b"\r\n")
    if not end:
        if len(data) < MAX_LINE:
            return None
        raise ProxyHeaderError("its PROXY header does not end")
    length, words = len(line) + 2, line.split(b" ")
    if words[1] == b"UNKNOWN":
        return length, None
    try:
        _, family, source, _, port, _ = words
        address = ip_address(source.decode("ascii"))
        if family != b"TCP%d" % address.version or b"%" in source or not port.isdigit() or int(port) > 65535:
            raise ValueError
        return length, (normal(str(address)), int(port))
    except ValueError:
        raise ProxyHeaderError("its PROXY header is malformed") from None


def _version_2(data: bytes) -> tuple[int, Address | None] | None:
    if len(data) < 16:
        return None
    command, family, size = data[12], data[13] >> 4, int.from_bytes(data[14:16])
    addresses = {1: 4, 2: 16}.get(family, 0)
    if command not in (0x20, 0x21) or size > MAX_BLOCK or (command == 0x21 and addresses and size < 2 * addresses + 4):
        raise ProxyHeaderError("its PROXY header is malformed")
    if len(data) < 16 + size:
        return None
    if command == 0x20 or not addresses:
        return 16 + size, None
    port = int.from_bytes(data[16 + 2 * addresses : 18 + 2 * addresses])
    return 16 + size, (normal(str(ip_address(data[16 : 16 + addresses]))), port)
