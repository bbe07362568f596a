"""The attacks of tests/tools/costs.py, and the server that they are made on."""

import asyncio
import http.client
import os
import signal
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex

import h2.events
import h2.exceptions
import hpack
import httpx

from ollama_auth.proxy.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from scripts.tools.bench.targets import HOST
from tests.harness.certificates import trusting
from tests.harness.http2 import H2
from tests.harness.wire import head
from tests.tools.floods import Target, size

BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PREFACE = BEGIN + frame(SETTINGS, 0, 0, b"")
MOST = 15.0
"""Seconds that an answer is waited for."""
WRONG = "a-key-that-nobody-has"


@dataclass
class Server(Target):
    """A gate or Caddy under attack."""

    key: str
    held: str
    """A key whose bodies the gate inspects; Caddy inspects none."""
    cert: Path | None
    status: int | None
    """The port of the status listener, which Caddy has not."""
    upstream: int

    @property
    def rss(self) -> int:
        """Resident memory in bytes; 0 once it has ended."""
        try:
            return super().rss
        except OSError:
            return 0

    @property
    def processor(self) -> float:
        """Seconds that its threads took so far."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    @property
    def url(self) -> str:
        return f"{'https' if self.cert else 'http'}://localhost:{self.port}"

    def tls(self, data: bytes = b"") -> ssl.SSLSocket:
        """A connection in HTTP/2, of which these are the first bytes."""
        assert self.cert
        connection = trusting(self.cert, "h2").wrap_socket(self.connect(), server_hostname="localhost")
        connection.settimeout(MOST)
        connection.sendall(data)
        return connection

    def http2(self, window: int | None = None) -> H2:
        assert self.cert
        return H2(self.port, self.cert, window, lax=True)

    def bearer(self, key: str | None = None) -> tuple[str, str]:
        return "authorization", f"Bearer {key or self.key}"

    def request(self, method: str, path: str, *fields: str, key: str | None = None) -> bytes:
        return head(method, path, ": ".join(self.bearer(key)), "Content-Type: application/json", *fields)


@dataclass(frozen=True)
class Attack:
    """What is done to a server; it returns what came of it."""

    finding: str
    """Its number in the review that found it."""
    name: str
    run: Callable[[Server], str]
    tls: bool = False


# HTTP/1.


def status_of(connection: socket.socket) -> str:
    """The status of the answer, or what came in its place."""
    try:
        return connection.recv(65536)[9:12].decode() or "closed"
    except OSError as error:
        return type(error).__name__


def upload(server: Server, body: bytes, framing: str = "", key: str | None = None) -> str:
    data = server.request("POST", "/api/generate", framing or f"Content-Length: {len(body)}", key=key) + body
    with server.connect() as connection:
        connection.settimeout(MOST)
        with suppress(OSError):
            connection.sendall(data)
        return status_of(connection)


def informational(server: Server) -> str:
    with server.connect(server.request("GET", "/demo/ones/200000")) as connection:
        return f"{status_of(connection)} of Ollama's"


def silence(server: Server) -> str:
    with ExitStack() as stack:
        opened = [stack.enter_context(server.connect(source=f"127.0.0.{2 + at // 250}")) for at in range(1000)]
        time.sleep(1)
        return f"{len(opened)} connections"


def silence_at_status(server: Server) -> str:
    if server.status is None:
        return "has no such listener"
    watched = replace(server, port=server.status)
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(watched.connect())
        answered = 0
        for _ in range(20):
            with watched.connect(b"GET /healthz HTTP/1.0\r\n\r\n") as connection:
                answered += status_of(connection) == "200"
        return f"/healthz answers {answered} of 20"


def slow_readers(server: Server) -> str:
    with ExitStack() as stack:
        before = server.rss
        for _ in range(20):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            connection.connect((HOST, server.port))
            connection.sendall(server.request("GET", "/demo/bytes/20000000"))
        time.sleep(2)
        return f"{size((server.rss - before) / 20)} each"


def share(count: int, ask: Callable[[], bool], what: str) -> str:
    return f"{sum(ask() for _ in range(count))} of {count} {what}"


def refused_http_client(server: Server) -> bool:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=MOST)
    try:
        connection.request("POST", "/api/chat", bytes(1 << 20), {"Authorization": f"Bearer {WRONG}"})
        return connection.getresponse().status == 401
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def refused_httpx(server: Server) -> bool:
    verify = trusting(server.cert) if server.cert else False
    with httpx.Client(http2=bool(server.cert), verify=verify, trust_env=False, timeout=MOST) as client:
        try:
            fields = {"authorization": f"Bearer {WRONG}"}
            return client.post(f"{server.url}/api/chat", headers=fields, content=bytes(1 << 20)).status_code == 401
        except httpx.HTTPError:
            return False


def refused_writer(server: Server) -> bool:
    """A client that goes on writing for a second, and reads then."""
    with server.connect(server.request("POST", "/api/chat", "Content-Length: 2000000000", key=WRONG)) as connection:
        try:
            for _ in range(20):
                connection.sendall(bytes(10_000))
                time.sleep(0.05)
        except OSError:
            return False
        return status_of(connection) == "401"


def cut_by_upstream(server: Server) -> bool:
    """Tell whether it is seen that the body is not whole."""
    with server.connect(server.request("GET", "/demo/cut")) as connection:
        got = b""
        try:
            while piece := connection.recv(65536):
                got += piece
        except ConnectionResetError:
            return True
        unended = b"transfer-encoding: chunked" in got.lower() and not got.endswith(b"0\r\n\r\n")
        return unended or not got.startswith(b"HTTP/1.1 200")


def leave(server: Server) -> str:
    body = b'{"model":"demo"}'
    for number in range(200):
        with server.connect(server.request("POST", "/demo/tokens", f"Content-Length: {len(body)}") + body) as leaving:
            time.sleep(number % 10 / 1000)
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.5)
    with replace(server, port=server.upstream).connect(b"GET /demo/open HTTP/1.1\r\n\r\n") as upstream:
        left = int(upstream.recv(65536).rpartition(b"\r\n")[2])
    return f"{max(0, left - 2)} of 200 go on at Ollama"


def stop_http1(server: Server) -> str:
    with ExitStack() as stack:
        data = server.request("GET", "/demo/tokens")
        streams = [stack.enter_context(server.connect(data)) for _ in range(20)]
        for stream in streams:
            stream.settimeout(MOST)
            stream.recv(65536)
        os.kill(server.pid, signal.SIGTERM)
        return f"{sum(not whole(stream) for stream in streams)} of 20 streams are cut"


def whole(stream: socket.socket) -> bool:
    got = b""
    with suppress(OSError):
        while not got.endswith(b"0\r\n\r\n") and (piece := stream.recv(65536)):
            got += piece
    return got.endswith(b"0\r\n\r\n")


# TLS and HTTP/2.


def drain(connection: ssl.SSLSocket, seconds: float = MOST) -> str:
    """Read until the connection ends, or an answer does, and return the kinds of frames that tell of it."""
    until, data, seen = time.monotonic() + seconds, b"", []
    try:
        while time.monotonic() < until:
            connection.settimeout(max(0.01, until - time.monotonic()))
            if not (piece := connection.recv(65536)):
                break
            data += piece
            while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3])):
                if data[3] in (DATA, HEADERS) and data[4] & END_STREAM:
                    return "answered"
                if data[3] in (RST_STREAM, GOAWAY):
                    seen.append("GOAWAY" if data[3] == GOAWAY else "RST_STREAM")
                data = data[end:]
    except TimeoutError:
        return "open still"
    except OSError:
        pass
    return seen[0] if seen else "closed"


def fields(server: Server, *more: tuple[str, str], path: str = "/api/version", method: str = "GET") -> bytes:
    """A compressed head."""
    pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
    return hpack.Encoder().encode([*pseudo, *more])


def bytes_of_data(server: Server) -> str:
    request = frame(HEADERS, END_HEADERS, 1, fields(server, server.bearer(), path="/api/generate", method="POST"))
    with server.tls(PREFACE + request) as connection:
        connection.sendall(frame(DATA, 0, 1, b" ") * 60_000 + frame(DATA, END_STREAM, 1, b""))
        return drain(connection)


def windows_of_a_byte(server: Server) -> str:
    """Answers are sent in frames of a byte."""
    no_window = BEGIN + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
    request = frame(HEADERS, END_HEADERS | END_STREAM, 1, fields(server, server.bearer(), path="/demo/bytes/100000"))
    with server.tls(no_window + request) as connection:
        time.sleep(0.2)
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1") * 200)
                time.sleep(0.005)
        return drain(connection, 1)


def continuation(server: Server) -> str:
    start, rest = fields(server), hpack.Encoder().encode([("x-long", "~" * 20_000)])
    data = frame(HEADERS, END_STREAM, 1, start) + b"".join(
        frame(CONTINUATION, 0, 1, rest[at : at + 1]) for at in range(20_000)
    )
    return ended(server, data, 3)


def ended(server: Server, data: bytes, times: int) -> str:
    """Send the same on so many connections, one after the other."""
    ends = []
    for _ in range(times):
        with server.tls(PREFACE) as connection:
            with suppress(OSError):
                connection.sendall(data)
            ends.append(drain(connection, 1))
    return f"{max(set(ends), key=ends.count)}, {size(len(data) * times)}"


def strangers(server: Server, requests: int, more: int = 0) -> str:
    """Requests without a key with a long path, of a few bytes each because of compression, and some with fields."""
    encoder = hpack.Encoder()
    path = "/" + "a/" * 500 if not more else "/api/tags"
    pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", path)]
    data = b"".join(
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, encoder.encode([*pseudo, *[("a", "b")] * more]))
        for at in range(requests)
    )
    return ended(server, data, 20)


def frames(server: Server, one: bytes) -> str:
    """Two megabytes of such frames, on a new connection whenever one is cut."""
    block, sent, made = one * (16_000 // len(one)), 0, 0
    until = time.monotonic() + 5
    while sent < 2_000_000 and time.monotonic() < until:
        made += 1
        with suppress(OSError), server.tls(PREFACE) as connection:
            reader = threading.Thread(target=read_all, args=(connection,), daemon=True)
            reader.start()
            while sent < 2_000_000:
                connection.sendall(block)
                sent += len(block)
    return f"{size(sent)}, {made} connections"


def read_all(connection: socket.socket) -> None:
    with suppress(OSError, ValueError):
        while connection.recv(65536):
            pass


def unread(server: Server) -> str:
    """A hundred answers of 6 MB on a connection that takes none of them."""
    with server.http2(0) as client:
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        for _ in range(100):
            client.request("GET", "/demo/bytes/6000000", server.bearer(), key=False)
        time.sleep(2)
        return "100 streams"


def large_table(server: Server) -> str:
    """The table of what is sent grows as far as the client says, and may be searched from end to end."""
    settings = b"\0\1\x7f\xff\xff\xff" + b"\0\4\x7f\xff\xff\xff"
    start = BEGIN + frame(SETTINGS, 0, 0, settings)
    encoder, took = hpack.Encoder(), []
    with server.tls(start + frame(WINDOW_UPDATE, 0, 0, b"\x3f\xff\xff\xff")) as connection:
        for batch in range(30):
            before = server.processor
            heads = []
            for at in range(100):
                names = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/api/version")]
                fresh = hpack.NeverIndexedHeaderTuple("x-request-id", token_hex(16))
                block = encoder.encode([*names, server.bearer(), fresh])
                heads.append(frame(HEADERS, END_HEADERS | END_STREAM, 2 * (100 * batch + at) + 1, block))
            connection.sendall(b"".join(heads))
            if count_answers(connection, 100) < 100:
                return f"closed after {100 * batch} requests"
            took.append((server.processor - before) * 10)
    return f"{statistics.mean(took[:10]):.2f} ms a request at first, {statistics.mean(took[-10:]):.2f} at last"


def count_answers(connection: ssl.SSLSocket, most: int) -> int:
    count, data = 0, b""
    with suppress(OSError):
        while count < most and (piece := connection.recv(1 << 18)):
            data += piece
            while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3])):
                count += data[3] in (DATA, HEADERS) and data[4] & END_STREAM
                data = data[end:]
    return count


def client_hello(server: Server) -> str:
    """A ClientHello in records of a byte: 60 KB at once, then a byte now and then."""
    record = b"\x16\x03\x01\x00\x01"
    hello = b"".join(record + byte for byte in (b"\1", b"\0", b"\xff", b"\xff")) + (record + b"\0") * 10_000
    with ExitStack() as stack:
        opened, alive = [stack.enter_context(server.connect()) for _ in range(5)], 0
        for connection in opened:
            with suppress(OSError):
                connection.sendall(hello)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            alive = 0
            for connection in opened:
                with suppress(OSError):
                    connection.sendall(record + b"\0")
                    alive += 1
            time.sleep(0.01)
        return f"{alive} of 5 open after 2 s"


def eight_at_once(server: Server) -> str:
    """A wrong key, eight requests at once over one connection, ten times."""
    assert server.cert
    context = trusting(server.cert)

    async def once() -> int:
        async with httpx.AsyncClient(http2=True, verify=context, trust_env=False, timeout=MOST) as client:
            asked = (client.get(f"{server.url}/api/tags", headers=[server.bearer(WRONG)]) for _ in range(8))
            found = await asyncio.gather(*asked, return_exceptions=True)
            return sum(isinstance(one, httpx.Response) and one.status_code == 401 for one in found)

    return f"{sum(asyncio.run(once()) for _ in range(10))} of 80 read 401"


def cut_by_upstream_http2(server: Server) -> bool:
    with server.http2() as client:
        stream = client.request("GET", "/demo/cut", server.bearer(), key=False)
        while not (client.closed or client.has(h2.events.StreamEnded, stream)):
            if client.has(h2.events.StreamReset, stream):
                return True
            client.read()
        return not client.has(h2.events.StreamEnded, stream) or client.status(stream) != 200


def stop_http2(server: Server) -> str:
    assert server.cert
    with H2(server.port, server.cert, lax=True, graceful=True) as client:
        streams = [client.request("GET", "/demo/tokens", server.bearer(), key=False) for _ in range(20)]
        for stream in streams:
            client.until(h2.events.DataReceived, stream)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.3)
        with suppress(OSError, h2.exceptions.ProtocolError):
            late = client.request("GET", "/demo/tokens", server.bearer(), key=False)
            while not client.closed and not all(client.has(h2.events.StreamEnded, stream) for stream in streams):
                client.read()
        cut = sum(not client.has(h2.events.StreamEnded, stream) for stream in streams)
        told = "GOAWAY" if client.has(h2.events.ConnectionTerminated) else "no GOAWAY"
        begun = "a new one begun" if client.has(h2.events.ResponseReceived, late) else "none begun"
        return f"{cut} of 20 streams are cut, {told}, {begun}"


def nothing(_: Server) -> str:
    time.sleep(1.5)
    return ""


JSON = b'{"model":"demo","x":[' + b'{"a":1},' * 370_000 + b"0]}"
PICTURE = b'{"model":"demo","images":["' + b"A" * 20_000_000 + b'"]}'
CHUNKS = b"1;a\r\n \r\n" * 125_000 + b"0\r\n\r\n"
ATTACKS = [
    Attack("", "nothing", nothing),
    Attack("5", "1 MB in chunks of a byte", lambda s: upload(s, CHUNKS, "Transfer-Encoding: chunked")),
    Attack("13 (issue)", '3 MB of {"a":1} in a body that is inspected', lambda s: upload(s, JSON, key=s.held)),
    Attack("13 (issue)", "a picture of 20 MB in a body that is inspected", lambda s: upload(s, PICTURE, key=s.held)),
    Attack("16", "5 MB of 100 Continue from upstream", informational),
    Attack("soak 2", "1,000 silent connections", silence),
    Attack("13", "100 silent connections to the status listener", silence_at_status),
    Attack("soak 6", "20 readers that take nothing of 20 MB", slow_readers),
    Attack("14", "200 clients that leave with a reset", leave),
    Attack(
        "11 (issue)",
        "1 MB with a wrong key, http.client",
        lambda s: share(30, partial(refused_http_client, s), "read 401"),
    ),
    Attack("11 (issue)", "1 MB with a wrong key, httpx", lambda s: share(30, partial(refused_httpx, s), "read 401")),
    Attack("11 (issue)", "a wrong key, writes on for 1 s", lambda s: share(4, partial(refused_writer, s), "read 401")),
    Attack("12", "upstream resets a body without a length", lambda s: share(10, partial(cut_by_upstream, s), "see it")),
    Attack("soak 1", "SIGTERM, HTTP/1.1", stop_http1),
    Attack("", "nothing, in TLS", nothing, tls=True),
    Attack("2", "20 strangers, 1 request each", partial(strangers, requests=1), tls=True),
    Attack("2", "20 strangers, 100 requests each", partial(strangers, requests=100), tls=True),
    Attack("2", "20 strangers, 20 requests of 800 fields each", partial(strangers, requests=20, more=800), tls=True),
    Attack("2", "3 strangers, a head in 20,000 CONTINUATION", continuation, tls=True),
    Attack("15", "PING", partial(frames, one=frame(6, 0, 0, bytes(8))), tls=True),
    Attack("15", "SETTINGS", partial(frames, one=frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff")), tls=True),
    Attack("15", "PRIORITY", partial(frames, one=frame(2, 0, 1, bytes(4) + b"\x10")), tls=True),
    Attack("15", "unknown frames", partial(frames, one=frame(0xEE, 0, 0, b"")), tls=True),
    Attack("5", "60,000 DATA frames of a byte", bytes_of_data, tls=True),
    Attack("6 (issue)", "20,000 windows of a byte", windows_of_a_byte, tls=True),
    Attack("6", "100 answers of 6 MB that nobody reads", unread, tls=True),
    Attack("7", "3,000 requests, table of 2 GB", large_table, tls=True),
    Attack("10", "5 ClientHellos in records of a byte", client_hello, tls=True),
    Attack("4 (issue)", "a wrong key, 8 requests at once, httpx", eight_at_once, tls=True),
    Attack(
        "soak 5", "1 MB with a wrong key, httpx", lambda s: share(20, partial(refused_httpx, s), "read 401"), tls=True
    ),
    Attack(
        "12",
        "upstream resets a body without a length",
        lambda s: share(10, partial(cut_by_upstream_http2, s), "see it"),
        tls=True,
    ),
    Attack("soak 1", "SIGTERM, HTTP/2", stop_http2, tls=True),
]
