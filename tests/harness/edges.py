"""What the tests of the edge share: hostile clients, an upstream that plays scripts, HTTP/2, and what must be true
after each of them."""

import json
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, Self

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.harness.support import BEARER, PATIENCE, Gate, Upstream, Wire, chat, free_port, head, wait_until

type Script = Callable[["Line"], object]

SECONDS = 6.0
"""What "within seconds" means at most: the lingering close is 2 s, and the machine may be busy."""
CRASHED = ("mitmproxy has crashed", "Addon error", "Traceback", "Unhandled", "the request was denied")


class Running(Protocol):
    """A gate, in whatever it runs: its port on 127.0.0.1, and a folder in which the file `out` is its output."""

    port: int
    dir: tempfile.TemporaryDirectory[str]


_parsed: dict[str, tuple[int, list[dict[str, Any]]]] = {}


def log_lines(gate: Running) -> list[dict[str, Any]]:
    """The access log of a gate that writes it as JSON to standard output."""
    name = gate.dir.name
    offset, lines = _parsed.get(name, (0, []))
    with Path(name, "out").open("rb") as file:
        file.seek(offset)
        new = file.read().rpartition(b"\n")[0]
    lines = lines + [json.loads(line) for line in new.splitlines() if line.startswith(b'{"time"')]
    _parsed[name] = (offset + len(new), lines)
    return lines


def assert_sound(gate: Gate, upstream: Upstream | None = None, *, running: bool = True) -> None:
    """Nothing raised, no request was logged twice, and no connection upstream is left."""
    assert (gate.process.poll() is None) == running, gate.output
    for words in CRASHED:
        assert words not in gate.output, gate.output
    ids = [line["id"] for line in log_lines(gate) if len(line["id"]) == 16]  # Others are what a client chose.
    assert len(ids) == len(set(ids)), "a request was logged twice"
    if upstream:
        wait_until(lambda: not upstream.open_connections, "the connections upstream to end")


@contextmanager
def logged(gate: Gate, count: int = 1) -> Iterator[list[dict[str, Any]]]:
    """In this block so many requests end, and each has one line in the log; the list is filled at its end."""
    time.sleep(0.02)  # What ended before has been written by then.
    before = len(log_lines(gate))
    lines: list[dict[str, Any]] = []
    yield lines
    if len(log_lines(gate)) < before + count:
        wait_until(lambda: len(log_lines(gate)) >= before + count, f"{count} lines in the log")
    time.sleep(0.002)  # One too many would have come.
    lines += log_lines(gate)[before:]
    assert len(lines) == count, lines


def send_until_closed(wire: Wire, data: bytes, limit: int, seconds: float = SECONDS, pause: float = 0) -> int:
    """Send until the other side has closed; the bytes that it took. It has to close before `limit` and in time."""
    sent, until = 0, time.monotonic() + seconds
    with suppress(OSError):
        while sent < limit:
            assert time.monotonic() < until, "the connection is still there"
            sent += wire.socket.send(data)
            time.sleep(pause)
        raise AssertionError(f"all {limit} bytes were taken")
    return sent


def assert_gone(*wires: Wire) -> None:
    """These connections end, although their clients do not close their side, and send a little now and then."""

    def open_still(wire: Wire) -> bool:
        with suppress(OSError):
            wire.send(b"x")
            return True
        return False

    wait_until(lambda: not [wire for wire in wires if open_still(wire)], "the connections to end", SECONDS)


class Line(Wire):
    """A raw connection of either side."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE)
        self.received = b""

    @classmethod
    def to(cls, port: int, data: bytes = b"", source: str = "127.0.0.1") -> Self:
        """Connect from that address."""
        line = cls(socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(source, 0)))
        line.send(data)
        return line

    def head(self) -> bytes:
        """One request head."""
        return self.read_until(b"\r\n\r\n")

    def reset(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextmanager
def wires(port: int, count: int, data: bytes = b"", source: str = "127.0.0.1") -> Iterator[list[Line]]:
    """So many connections from that address, each of which has sent `data`."""
    opened: list[Line] = []
    try:
        for _ in range(count):
            opened.append(Line.to(port, data, source))
        yield opened
    finally:
        for one in opened:
            one.close()


@contextmanager
def streams(gate: Running, upstream: Upstream, count: int, source: str = "127.0.0.1") -> Iterator[list[Line]]:
    """So many chats under way; each has got its first token, and gets no more before `upstream.go_on()`."""
    upstream.hold()
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}", "Connection: close") + body
    with wires(gate.port, count, data, source) as opened:
        for one in opened:
            assert b"200 OK" in one.read_until(b'"done":false}')
        yield opened


class Scripted:
    """An upstream on one port that does what the test says: each connection is given to `play`, and closed after it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.play: Script = lambda _: None
        self.accepted = 0
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._running = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, play: Script | None = None) -> Self:
        """Listen."""
        self.play = play or self.play
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Listen no more, and end all connections."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    @contextmanager
    def plays(self, play: Script) -> Iterator[None]:
        """Do this on each new connection, in this block; connections of before end."""
        self.stop()
        self.accepted = 0
        self.start(play)
        yield
        self.stop()

    @property
    def busy(self) -> bool:
        """A connection is open."""
        return self._running > 0

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                self.accepted += 1
                self._running += 1
                self._open.append(accepted)
                threading.Thread(target=self._run, args=(Line(accepted), self.play), daemon=True).start()

    def _run(self, peer: Line, play: Script) -> None:
        with suppress(OSError, AssertionError):
            play(peer)
        with suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        peer.close()
        self._running -= 1


def certificate(folder: Path) -> Path:
    """A certificate for localhost and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "localhost.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def trusting(path: Path, *alpn: str) -> ssl.SSLContext:
    """A client's side of TLS that trusts this certificate and nothing else."""
    context = ssl.create_default_context(cafile=str(path))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class TlsWire(Wire):
    """A raw connection in TLS."""

    def __init__(self, port: int, cert: Path, data: bytes = b"", *alpn: str) -> None:
        super().__init__(port)
        self.plain = self.socket
        self.socket = trusting(cert, *alpn).wrap_socket(
            self.plain, server_hostname="localhost", suppress_ragged_eofs=False
        )
        if data:
            self.send(data)

    def unwrapped(self) -> socket.socket:
        """The socket below, to send what is no TLS."""
        below = socket.socket(fileno=self.socket.detach())
        below.settimeout(PATIENCE)
        return below


class H2:
    """A connection in HTTP/2, one step at a time."""

    def __init__(self, port: int, cert: Path, window: int | None = None, *, lax: bool = False) -> None:
        self.wire = TlsWire(port, cert, b"", "h2")
        assert isinstance(self.wire.socket, ssl.SSLSocket)
        assert self.wire.socket.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding="latin-1", validate_outbound_headers=not lax, normalize_outbound_headers=not lax
            )
        )
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
