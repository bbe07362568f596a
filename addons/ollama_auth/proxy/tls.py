"""TLS with the client, bounded: a small ClientHello, a close_notify at the end, no client bytes in the log."""

from contextlib import suppress

from mitmproxy.connection import ConnectionState
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

from .events import Commands

RECORDS = 4 * 1024
"""Bytes by which records are longer than what they hold, of up to 256 KB; if they are not, the rest is read on its own.
"""
MAX_CLIENT_HELLO = 16 * 1024
"""Bytes read before the handshake begins; mitmproxy would read 16 MB. Those of browsers have less than 3 KB."""


class ClientTls(tls.ClientTLSLayer):
    """mitmproxy's TLS with the client, which also sends close_notify (RFC 8446 section 6.1).

    Sends nothing after that, nor after an error of OpenSSL.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.hello = bytearray()
        """The ClientHello, as far as whole records of it have arrived."""
        self.hello_records = 0
        """Bytes of those records."""
        self.hello_size = 0
        """Bytes that it says to have."""

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if self.client_hello_parsed:
            return (yield from super().receive_handshake_data(data))
        self.recv_buffer.extend(data)
        arrived = self.hello_arrived()
        if max(len(self.recv_buffer), self.hello_size) > MAX_CLIENT_HELLO:
            return False, "ClientHello too long"
        if not arrived:
            return False, None
        return (yield from super().receive_handshake_data(b""))

    def hello_arrived(self) -> bool:
        """Tell whether the ClientHello is whole, or is none: mitmproxy, which reads it from its start, may do so now.

        Reads no record twice (RFC 8446 sections 4 and 5.1).
        """
        while len(self.recv_buffer) >= self.hello_records + 5:
            start = self.hello_records + 5
            end = start + int.from_bytes(self.recv_buffer[start - 2 : start])
            if end == start or not starts_like_tls_record(bytes(self.recv_buffer[start - 5 : start])):
                return True
            if len(self.recv_buffer) < end:
                return False
            self.hello += self.recv_buffer[start:end]
            self.hello_records = end
            if len(self.hello) >= 4:
                self.hello_size = 4 + int.from_bytes(self.hello[1:4])
                if len(self.hello) >= self.hello_size:
                    return True
        return False

    def start_tls(self) -> Commands:
        if b"h2" in self.conn.alpn_offers and self.context.options.http2:
            self.conn.alpn = b"h2"  # mitmproxy takes the client's first offer, which from httpx is HTTP/1.1.
        yield from super().start_tls()

    def on_handshake_error(self, err: str) -> Commands:
        # mitmproxy's text quotes all that was sent.
        yield from super().on_handshake_error("no ClientHello" if err.startswith("Cannot parse ClientHello") else err)

    def tls_interact(self) -> Commands:
        if self.conn.state & ConnectionState.CAN_WRITE:
            yield from super().tls_interact()

    def receive_data(self, data: bytes) -> Commands:
        yield from super().receive_data(data)
        if self.tls.get_state_string() == b"error":
            yield commands.CloseConnection(self.conn)

    def send_data(self, data: bytes) -> Commands:
        try:
            yield from super().send_data(data)
        except SSL.Error:
            yield commands.CloseConnection(self.conn)

    @property
    def sends(self) -> bool:
        """Tell whether data may be sent."""
        return bool(self.conn.state & ConnectionState.CAN_WRITE) and self.tunnel_state is TunnelState.OPEN

    def encrypt(self, data: bytes) -> bytes:
        """Return data as send_data would send it; nothing after an error."""
        try:
            self.tls.sendall(data)
        except SSL.Error:
            return b""
        size = len(data) + RECORDS
        records = piece = self.tls.bio_read(size)
        while len(piece) == size:
            try:
                piece = self.tls.bio_read(size)
            except SSL.WantReadError:
                break
            records += piece
        return records

    def send_close(self, command: commands.CloseConnection) -> Commands:
        with suppress(SSL.Error):
            self.tls.shutdown()
        yield from self.tls_interact()
        yield from super().send_close(command)


class CloseConnectionLayer(layer.Layer):
    """Send `words`, if any, and close: for a client connection that gets no other layer."""

    def __init__(self, context: Context, words: bytes = b"") -> None:
        super().__init__(context)
        self.words = words

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            if self.words:
                yield commands.SendData(self.context.client, self.words)
            yield commands.CloseConnection(self.context.client)
