"""Usage: scripts/bench [--quick] [--repeats N] [--memory] [--keys] [--json FILE]

Measures what the gate costs, on loopback alone: a client straight to the demo upstream, through mitmdump without an
addon that streams (bare), and through the gate (ours). All in one run, in an order that turns with each repeat;
the figures are medians over the repeats. --memory adds 20,000 requests and 1 GiB each way. --keys adds the gate with a
file of 10,000 named keys: one of them with scopes (scopes), one with a list of models besides (models).
"""

import argparse
import asyncio
import hashlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from serve import KEY, REPOSITORY, gate_command, split

HOST = "127.0.0.1"
CONNECTIONS = 16
TOKEN_DELAY = 0.005
GIB = 1 << 30
PATIENCE = 300  # seconds that any one measurement may take
MODEL = b'{"model":"demo"}'
MANY = 10_000
STREAM_ALL = """
def requestheaders(flow): flow.request.stream = True
def responseheaders(flow): flow.response.stream = True
"""


@dataclass(frozen=True)
class Target:
    name: str
    port: int
    pid: int
    key: str = ""

    def head(self, request_line: str, length: int = 0, key: str | None = None) -> bytes:
        key = self.key if key is None else key
        fields = {"Host": f"{HOST}:{self.port}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        if request_line.startswith("POST"):
            fields |= {"Content-Length": str(length), "Content-Type": "application/json"}
        lines = [f"{request_line} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def memory(self, field: str) -> float:
        """VmRSS, what the process holds now, or VmHWM, the most it ever held: in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) / 1024


async def read_head(reader: asyncio.StreamReader, expected: int) -> dict[str, str]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    if int(lines[0].split()[1]) != expected:
        raise SystemExit(f"expected {expected}, got: {lines[0]}")
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}


async def read_body(reader: asyncio.StreamReader, head: dict[str, str]) -> AsyncIterator[bytes]:
    if "content-length" in head:
        left = int(head["content-length"])
        while left and (piece := await reader.read(min(left, 1 << 18))):
            left -= len(piece)
            yield piece
        if left:
            raise SystemExit(f"the answer is {left} bytes short")
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


async def drain(reader: asyncio.StreamReader, expected: int) -> int:
    return sum([len(piece) async for piece in read_body(reader, await read_head(reader, expected))])


async def served(target: Target, count: int, request_line: str = "GET /api/version", body: bytes = b"") -> float:
    """Requests a second on connections that are kept."""
    request = target.head(request_line, len(body)) + body

    async def one() -> None:
        async with target.connect() as (reader, writer):
            for _ in range(count // CONNECTIONS):
                writer.write(request)
                await drain(reader, 200)

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - begun)


async def refused(target: Target, count: int) -> float:
    """Refusals a second; each closes its connection."""
    request = target.head("GET /api/version", key="wrong")

    async def one() -> None:
        for _ in range(count // CONNECTIONS):
            async with target.connect() as (reader, writer):
                writer.write(request)
                await drain(reader, 401)

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - begun)


class Lateness(NamedTuple):
    first: float  # ms from the request to the first token
    token: float  # ms from the upstream's stamp in a token to its arrival here


async def chat(target: Target, count: int) -> Lateness:
    body = b'{"model":"demo","messages":[{"role":"user","content":"How late are you?"}]}'
    firsts, tokens = [], []
    for _ in range(count):
        async with target.connect() as (reader, writer):
            begun, buffer = time.perf_counter(), b""
            first = 0.0
            writer.write(target.head("POST /api/chat", len(body)) + body)
            async for piece in read_body(reader, await read_head(reader, 200)):
                now = time.time()
                first = first or time.perf_counter() - begun
                *lines, buffer = (buffer + piece).split(b"\n")
                stamps = [json.loads(line)["created_at"] for line in lines]
                tokens += [(now - datetime.fromisoformat(stamp).timestamp()) * 1000 for stamp in stamps]
            firsts.append(first * 1000)
    return Lateness(statistics.median(firsts), statistics.median(tokens))


async def upload(target: Target, size: int) -> None:
    piece = bytes(1 << 20)
    async with target.connect() as (reader, writer):
        writer.write(target.head("POST /demo/sink", size))
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
        await drain(reader, 200)


async def download(target: Target, size: int) -> None:
    async with target.connect() as (reader, writer):
        writer.write(target.head(f"GET /demo/bytes/{size}"))
        length = 0
        async for piece in read_body(reader, await read_head(reader, 200)):
            length += len(piece)
        if length != size:
            raise SystemExit(f"{length} bytes came of {size}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def many_keys(file: Path, scopes: str, models: str) -> None:
    """A keys file of MANY entries; these two secrets are the last."""
    entries = [(f"key-{number}", secrets.token_hex(16), "") for number in range(MANY - 2)]
    scoped = 'scopes = ["infer", "embed", "list", "cloud"]\n'
    entries += [("scopes", scopes, scoped), ("models", models, scoped + 'models = ["demo", "qwen*"]\n')]
    file.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n{more}'
            for name, secret, more in entries
        )
    )
    file.chmod(0o600)


@contextmanager
def running(name: str, port: int, command: list[str], key: str = "", **more: str) -> Iterator[Target]:
    environment = os.environ | {KEY: key} | more
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection((HOST, port), 1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{name} did not start") from None
                time.sleep(0.05)
        yield Target(name, port, process.pid, key)
    finally:
        process.terminate()
        process.wait()


async def measure(targets: list[Target], repeats: int, requests: int, chats: int) -> dict[str, dict[str, float]]:
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for repeat in range(repeats + 1):
        turn = repeat % len(targets)
        for target in targets[turn:] + targets[:turn]:
            print(f"\rrepeat {repeat} of {repeats}: {target.name} ", end="", file=sys.stderr, flush=True)
            async with asyncio.timeout(PATIENCE):
                rows = {"requests/s": await served(target, requests)}
                rows["requests/s that name a model"] = await served(target, requests, "POST /api/show", MODEL)
                if target.key:
                    rows["refusals/s"] = await refused(target, requests // 4)
                lateness = await chat(target, chats)
            rows |= {"first token, ms": lateness.first, "each token late by, ms": lateness.token}
            if repeat:  # the first round only warms up
                for row, value in rows.items():
                    found[row][target.name].append(value)
    print("\r", end="", file=sys.stderr)
    return {row: {name: statistics.median(some) for name, some in columns.items()} for row, columns in found.items()}


async def measure_memory(ours: Target, requests: int) -> dict[str, dict[str, float]]:
    rows = {}
    for row, work in {
        f"growth over {requests} requests, MB": served(ours, requests),
        "growth over 1 GiB up, MB": upload(ours, GIB),
        "growth over 1 GiB down, MB": download(ours, GIB),
    }.items():
        before = ours.memory("VmRSS")
        async with asyncio.timeout(PATIENCE):
            await work
        rows[row] = {ours.name: max(ours.memory("VmHWM"), before) - before}
    return rows


def table(rows: dict[str, dict[str, float]], names: list[str]) -> str:
    lines = [f"{'':34}" + "".join(f"{name:>10}" for name in names)]
    for row, columns in rows.items():
        cells = (f"{columns[name]:10,.2f}" if name in columns else f"{'':10}" for name in names)
        lines.append(f"{row:34}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: to see that it works")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measurement (5)")
    parser.add_argument("--memory", action="store_true", help="measure memory too (Linux)")
    parser.add_argument("--keys", action="store_true", help="measure what 10,000 named keys add")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (script := folder / "stream_all.py").write_text(STREAM_ALL)
        ports = [free_port() for _ in range(5)]
        upstream = f"http://{HOST}:{ports[0]}"
        listen = [["--listen-host", HOST, "--listen-port", str(port), "--set", f"confdir={folder}"] for port in ports]
        demo = [sys.executable, str(REPOSITORY / "scripts" / "demo_upstream.py"), "--port", str(ports[0])]
        mitmdump = shutil.which("mitmdump", path=str(Path(sys.executable).parent)) or "mitmdump"
        bare = [sys.executable, mitmdump, "--mode", f"reverse:{upstream}", "-s", str(script), *listen[1]]
        ours = gate_command(upstream, split(listen[2]))
        targets = [
            stack.enter_context(running("direct", ports[0], [*demo, "--token-delay", str(TOKEN_DELAY)])),
            stack.enter_context(running("bare", ports[1], bare)),
            stack.enter_context(running("ours", ports[2], ours, secrets.token_hex(16))),
        ]
        if options.keys:
            named = (secrets.token_hex(16), secrets.token_hex(16))
            many_keys(folder / "keys.toml", *named)
            for name, port, arguments, key in zip(("scopes", "models"), ports[3:], listen[3:], named, strict=True):
                command = gate_command(upstream, split([*arguments, "--set", "ollama_max_wrong_keys=0"]))
                extra = {"OLLAMA_KEYS_FILE": str(folder / "keys.toml"), KEY: secrets.token_hex(16)}
                targets.append(stack.enter_context(running(name, port, command, key, **extra)))
        sizes = (1, 320, 3) if options.quick else (options.repeats, 3200, 20)
        rows = asyncio.run(measure(targets, *sizes))
        if options.memory:
            rows |= asyncio.run(measure_memory(targets[2], 20_000))
    print(table(rows, [target.name for target in targets]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
