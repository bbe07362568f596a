"""Raw client connections, with and without TLS, and the HTTP/1.1 messages that are sent and read over them."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from tests.harness.base import PATIENCE, SECONDS, wait_until
from tests.harness.certificates import trusting


@dataclass
class Response:
    """What came back on a raw socket."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parse(raw: bytes, *, head: bool = False) -> Response:
    """One response; its body is all that follows the head, chunks put together."""
    top, separator, body = raw.partition(b"\r\n\r\n")
    assert separator, f"no whole response: {raw!r}"
    line, *fields = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    if headers.get("transfer-encoding") == "chunked" and not head:
        body = unchunk(body)
    return Response(int(line.split()[1]), headers, body, raw)


def unchunk(body: bytes) -> bytes:
    """The content of a whole chunked body."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return content
        content, body = content + body[:length], body[length + 2 :]


def head(method: str, path: str, *fields: str, host: str = "gate") -> bytes:
    """A request head; a Host is added where no field is one."""
    hosts = () if any(field.lower().startswith("host:") for field in fields) else (f"Host: {host}",)
    return "\r\n".join((f"{method} {path} HTTP/1.1", *hosts, *fields, "", "")).encode("latin-1")


def proxy_header(version: int, address: str) -> bytes:
    """A header of the PROXY protocol for a client at that address, port 4711."""
    source = ip_address(address)
    if version == 1:
        return f"PROXY TCP{source.version} {address} {ip_address(bytes(len(source.packed)))} 4711 80\r\n".encode()
    family, addresses = {4: 0x11, 6: 0x21}[source.version], source.packed + bytes(len(source.packed))
    block = addresses + struct.pack(">HH", 4711, 80)
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + struct.pack(">BH", family, len(block)) + block


def chat(model: str = "demo", **more: object) -> bytes:
    """The body of a chat request."""
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "why is the sky blue"}]} | more
    ).encode()


class Wire:
    """A raw connection."""

    def __init__(
        self, port: int, data: bytes = b"", timeout: float = PATIENCE, host: str = "127.0.0.1", source: str = ""
    ) -> None:
        """Connect, from that address if there is one."""
        self.socket = socket.create_connection((host, port), timeout, (source, 0) if source else None)
        self.received = b""
        if data:
            self.send(data)

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def read_until(self, text: bytes) -> bytes:
        """Everything up to and with that text; what follows is kept."""
        while text not in self.received:
            piece = self.socket.recv(65536)
            assert piece, f"closed before {text!r}: {self.received!r}"
            self.received += piece
        end = self.received.index(text) + len(text)
        taken, self.received = self.received[:end], self.received[end:]
        return taken

    def read_response(self) -> Response:
        """One response with a Content-Length or chunks."""
        head = self.read_until(b"\r\n\r\n")
        fields = parse(head, head=True).headers
        if fields.get("transfer-encoding") == "chunked":
            return parse(head + self.read_until(b"0\r\n\r\n"))
        length = int(fields.get("content-length", 0))
        while len(self.received) < length:
            piece = self.socket.recv(65536)
            assert piece, "closed in the middle of a body"
            self.received += piece
        body, self.received = self.received[:length], self.received[length:]
        return parse(head + body)

    def read_all(self) -> bytes:
        """Everything until the other side closes; it must."""
        while piece := self.socket.recv(65536):
            self.received += piece
        taken, self.received = self.received, b""
        return taken

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


class TlsWire(Wire):
    """A raw connection in TLS."""

    def __init__(self, port: int, cert: Path, data: bytes = b"", *alpn: str, source: str = "") -> None:
        super().__init__(port, source=source)
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


def ask(port: int, method: str, path: str, *fields: str, body: bytes = b"") -> Response:
    """One request on a connection of its own, which is asked to be closed."""
    length = (f"Content-Length: {len(body)}",) if body else ()
    with Wire(port, head(method, path, "Connection: close", *length, *fields) + body) as wire:
        return parse(wire.read_all(), head=method == "HEAD")


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
