"""An HTTP/2 client connection that a test drives one step at a time."""

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events
from h2.connection import ConnectionInputs, ConnectionState

from tests.harness.base import BEARER, PATIENCE, SECONDS
from tests.harness.wire import TlsWire


class H2:
    """A connection in HTTP/2, one step at a time."""

    def __init__(
        self, port: int, cert: Path, window: int | None = None, *, lax: bool = False, graceful: bool = False
    ) -> None:
        """`graceful`: streams go on after GOAWAY, as RFC 9113 section 6.8 has it; h2 takes it for the end of them."""
        self.wire = TlsWire(port, cert, b"", "h2")
        assert isinstance(self.wire.socket, ssl.SSLSocket)
        assert self.wire.socket.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding="latin-1", validate_outbound_headers=not lax, normalize_outbound_headers=not lax
            )
        )
        if graceful:
            goes_on = {(ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.CLIENT_OPEN)}
            self.h2.state_machine._transitions = self.h2.state_machine._transitions | goes_on
        if window is not None:
            self.h2.local_settings.initial_window_size = window
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.flush()
        self.events: list[h2.events.Event] = []
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def flush(self) -> None:
        self.wire.send(self.h2.data_to_send())

    def request(
        self, method: str, path: str, *fields: tuple[str, str], body: bytes | None = b"", key: bool = True
    ) -> int:
        """Ask; `body` None: it comes later. Returns the id of the stream."""
        stream = int(self.h2.get_next_available_stream_id())
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        credential = [("authorization", BEARER.partition(": ")[2])] if key else []
        self.h2.send_headers(stream, [*pseudo, *credential, *fields], end_stream=body == b"")
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def read(self) -> None:
        """What has come, at least one byte of it, or the end."""
        with suppress(ssl.SSLEOFError, ConnectionResetError, BrokenPipeError):
            data = self.wire.socket.recv(65536)
            if data:
                for event in self.h2.receive_data(data):
                    self.events.append(event)
                    if isinstance(event, h2.events.DataReceived):
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                # Where an earlier write failed half-way, OpenSSL takes no other one; what is left to read still counts.
                with suppress(ssl.SSLError):
                    self.flush()
                return
        self.closed = True

    def until[E: h2.events.Event](self, kind: type[E], stream: int | None = None) -> E:
        """The first event of that kind (on that stream)."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for event in self.events:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    return event
            assert not self.closed, f"closed before {kind.__name__}: {self.events}"
            self.read()
        raise AssertionError(f"waited for {kind.__name__}: {self.events}")

    def until_closed(self) -> None:
        until = time.monotonic() + SECONDS
        while not self.closed:
            assert time.monotonic() < until, f"still open: {self.events}"
            self.read()

    def has[E: h2.events.Event](self, kind: type[E], stream: int | None = None) -> bool:
        return any(isinstance(e, kind) and stream in (None, getattr(e, "stream_id", None)) for e in self.events)

    def status(self, stream: int) -> int:
        return int(self.headers(stream)[":status"])

    def headers(self, stream: int) -> dict[str, str]:
        return dict(self.until(h2.events.ResponseReceived, stream).headers)  # type: ignore[arg-type]

    def body(self, stream: int) -> bytes:
        """All of the body of an answer that is whole."""
        self.until(h2.events.StreamEnded, stream)
        parts = [e for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream]
        return b"".join(part.data for part in parts)
