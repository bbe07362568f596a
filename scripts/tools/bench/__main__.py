"""Usage: scripts/bench [--quick] [--only ROW]... [--also NAME=COMMAND]... [--json FILE] [--plot FILE.svg]
                     [--repeats N] [--without NAME]... [--workers N] [--memory] [--usage] [--keys] [--plain]
                     [--compare REV]

Measures the cost of the gate, beside Caddy, nginx (if they are installed) and a bare mitmdump that streams, all in
front of the same upstream, on loopback addresses only. Every answer is checked. A figure is the median of the repeats,
with the least and the most. The order of the programs rotates with each repeat; the first round is a warm-up. The last
table compares the gate with the others, as ratios, which hold for this machine and this run. `--only console` measures
the console's page, in a Chromium that is installed; `--only report` measures scripts/usage, for a million requests.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from . import http2, load, report, targets
from .browser import browser
from .figures import Figures, goals, summary, table
from .load import Lateness, WrongAnswerError
from .plot import plot
from .targets import Target

GIB = 1 << 30
TIMEOUT = 120.0
"""Seconds for one measurement."""
MANY_REQUESTS = 50_000
PAGES = 6
"""Times that the page is opened in one measurement of it."""


class Size(NamedTuple):
    """The amount of work in a run."""

    repeats: int
    seconds: float
    tokens: int
    bursts: int
    bytes: int
    requests: int
    many: int
    """Connections, or streams, of the rows that need many."""


FULL = Size(repeats=5, seconds=3.0, tokens=300, bursts=3, bytes=GIB, requests=MANY_REQUESTS, many=5_000)
QUICK = Size(repeats=1, seconds=0.5, tokens=50, bursts=1, bytes=GIB // 16, requests=2_000, many=200)


@dataclass(frozen=True)
class Running:
    """A target, and the process it runs in."""

    target: Target
    pid: int

    def memory(self, field: str) -> float:
        """The memory of all its processes in MB: VmRSS is the current one, VmHWM the peak (proc_pid_status(5))."""
        total = 0
        for pid in process_tree(self.pid):
            with suppress(OSError, IndexError):
                total += int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0])
        return total / 1024

    def cpu(self) -> float:
        """The processor time of all its processes, in seconds."""
        ticks = 0
        for pid in process_tree(self.pid):
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants (Linux)."""
    children = []
    with suppress(OSError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in children for one in process_tree(child))]


type Work = Callable[[Running, Size], Awaitable[Mapping[str, float]]]


async def with_cpu(name: str, unit: str, one: Running, work: Awaitable[float], seconds: float) -> Mapping[str, float]:
    """A rate, and the processor time for each unit, which other load on the machine changes least."""
    before = one.cpu()
    rate = await work
    return {name: rate, f"CPU a {unit}, us": (one.cpu() - before) / (rate * seconds) * 1e6}


async def measure_requests(one: Running, size: Size) -> Mapping[str, float]:
    return await with_cpu("requests/s", "request", one, load.requests(one.target.at, size.seconds), size.seconds)


async def measure_requests_with_model(one: Running, size: Size) -> Mapping[str, float]:
    work = load.requests(one.target.at, size.seconds, "POST", "/api/show")
    return {"requests/s that name a model": await work}


async def measure_refusals(one: Running, size: Size) -> Mapping[str, float]:
    if not one.target.at.key:
        return {}
    return await with_cpu("refusals/s", "refusal", one, load.refusals(one.target.at, size.seconds), size.seconds)


def rows_of(name: str, late: Lateness) -> dict[str, float]:
    return {f"{name}, p50 ms": late.p50, f"{name}, p99 ms": late.p99}


async def measure_one_stream(one: Running, size: Size) -> Mapping[str, float]:
    return rows_of("token late, 1 stream", await load.one_stream(one.target.at, size.tokens))


async def measure_streams(one: Running, size: Size) -> Mapping[str, float]:
    before = one.cpu()
    late, tokens = await load.running(one.target.at, size.seconds)
    rows = rows_of("token late, 100 streams", late)
    return rows | {"CPU a token of 100 streams, us": (one.cpu() - before) / tokens * 1e6}


async def measure_in_step(one: Running, size: Size) -> Mapping[str, float]:
    return rows_of("token late, 100 in step", (await load.running(one.target.at, size.seconds, in_step=True))[0])


async def measure_burst(one: Running, size: Size) -> Mapping[str, float]:
    return rows_of("token late, 100 arrive", await load.arriving(one.target.at, size.bursts))


async def measure_console(one: Running, size: Size) -> Mapping[str, float]:
    """What the page costs the gate while 100 streams run: the processor with the page open, less that without it."""
    if not one.target.page:
        return {}
    part = size.seconds * 2
    async with browser() as tab:
        tokens = int((2 * PAGES * (part + 2) + 2) / load.PACE)
        streams = asyncio.create_task(load.streams(one.target.at, load.PACE * load.STREAMS, tokens))
        await asyncio.sleep(load.PACE * load.STREAMS)
        paints, costs = [], []
        for _ in range(PAGES):
            used = []
            for url in ("about:blank", one.target.page):
                await tab.open(url)
                if url != "about:blank":
                    paints.append(await tab.first_paint())
                await asyncio.sleep(1)
                before, begun = one.cpu(), time.perf_counter()
                await asyncio.sleep(part)
                used.append(100 * (one.cpu() - before) / (time.perf_counter() - begun))
            costs.append(used[1] - used[0])
        await streams
    return {"console: first paint, ms": statistics.median(paints), "console: % of a core": statistics.median(costs)}


async def transfer(name: str, one: Running, work: Awaitable[float]) -> Mapping[str, float]:
    """The seconds of a transfer, and those of processor."""
    before = one.cpu()
    return {f"{name}, s": await work, f"{name}, CPU s": one.cpu() - before}


async def measure_upload(one: Running, size: Size) -> Mapping[str, float]:
    return await transfer(f"{size.bytes >> 20} MiB up", one, load.upload(one.target.at, size.bytes))


async def measure_download(one: Running, size: Size) -> Mapping[str, float]:
    return await transfer(f"{size.bytes >> 20} MiB down", one, load.download(one.target.at, size.bytes))


async def measure_embeddings(one: Running, size: Size) -> Mapping[str, float]:
    part = size.bytes // 4
    return await transfer(f"embeddings of {part >> 20} MiB", one, load.embeddings(one.target.at, part))


async def measure_beginnings(one: Running, size: Size) -> Mapping[str, float]:
    return await with_cpu("streams begun/s", "stream begun", one, load.begun(one.target.at, size.seconds), size.seconds)


async def measure_many(one: Running, size: Size) -> Mapping[str, float]:
    late = [token.late for token in await load.slow_streams(one.target.at, size.many, 5.0)]
    name = f"token late, {size.many} streams of 1 token/s"
    return {f"{name}, p99 ms": load.p99(late), f"{name}, max ms": max(late)}


async def measure_waits(one: Running, size: Size) -> Mapping[str, float]:
    return {f"longest wait while {size.many} streams begin, ms": await load.waited(one.target.at, size.many)}


async def measure_idle(one: Running, size: Size) -> Mapping[str, float]:
    """Memory of connections that wait for their next request. Their closing is not waited for."""
    before = one.memory("VmRSS")
    clients = await load.idle(one.target.at, size.many)
    grown = one.memory("VmRSS") - before
    for client in clients:
        client.close()
    return {f"memory a connection, {size.many} idle ones, KB": grown * 1024 / size.many}


CROWDS = ("many", "waits")
"""Long rows: without a warm-up, and without a bare mitmdump, which begins too few streams a second for them."""
ROWS: dict[str, Work] = {
    "requests": measure_requests,
    "models": measure_requests_with_model,
    "refusals": measure_refusals,
    "stream": measure_one_stream,
    "streams": measure_streams,
    "step": measure_in_step,
    "burst": measure_burst,
    "up": measure_upload,
    "down": measure_download,
    "console": measure_console,
    "embed": measure_embeddings,
    "begin": measure_beginnings,
    "many": measure_many,
    "waits": measure_waits,
    "idle": measure_idle,
}


async def measure_growth(one: Running, size: Size) -> Mapping[str, float]:
    """The growth of memory over many requests, and the peak over all measurements."""
    before, left = one.memory("VmRSS"), size.requests
    while left > 0:
        left -= int(await load.requests(one.target.at, 1.0))
    grown = one.memory("VmRSS") - before
    return {f"growth over {size.requests} requests, MB": grown, "peak memory, MB": one.memory("VmHWM")}


async def measure_start(target: Target, _: Size) -> Mapping[str, float]:
    """Seconds from the start of a program to its first answer to a good request."""
    begun = time.perf_counter()
    with target.started():
        client = await load.Client.to(target.at, 200, load.Count())
        await client.ask(target.at.request("GET", "/api/version"))
        took = time.perf_counter() - begun
        client.close()
    return {"start to first answer, s": took}


async def measure_http2(target: Target, size: Size) -> Mapping[str, float]:
    """Requests on four connections of 32 streams each, and chats on one connection, with TLS; the upstream has none."""
    name = f"token late, {load.STREAMS} HTTP/2 streams"
    if not target.at.key:
        return rows_of(name, (await load.running(target.at, size.seconds))[0])
    rate = await asyncio.to_thread(targets.http2_requests, target.at, size.requests // 10)
    return {"HTTP/2 requests/s": rate} | rows_of(name, await http2.running(target.at, size.seconds))


def show_progress(text: str) -> None:
    """Show the progress if standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:78}", end="", file=sys.stderr, flush=True)


async def measure[T](
    row: str, ones: Mapping[str, T], size: Size, work: Callable[[T, Size], Awaitable[Mapping[str, float]]]
) -> Figures:
    """Measure each one by its name, in an order that rotates. Raises WrongAnswerError."""
    found: dict[str, dict[str, list[float]]] = {}
    names = [name for name in ones if name != "bare" or row not in CROWDS]
    for repeat in range(row in CROWDS, size.repeats + 1):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            show_progress(f"{row}, repeat {repeat} of {size.repeats}: {name}")
            try:
                async with asyncio.timeout(TIMEOUT):
                    figures = await work(ones[name], size)
            except (WrongAnswerError, TimeoutError, OSError) as error:
                raise WrongAnswerError(f"{row}, {name}: {type(error).__name__} {error}") from error
            for figure, value in figures.items() if repeat else ():  # the first round only warms up
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return summary(found)


async def measure_memory(all_: list[Running], size: Size) -> Figures:
    found: dict[str, dict[str, list[float]]] = {}
    for one in all_:
        show_progress(f"memory: {one.target.name}")
        async with asyncio.timeout(TIMEOUT):
            for name, value in (await measure_growth(one, size)).items():
                found.setdefault(name, {})[one.target.name] = [value]
    return summary(found)


def machine() -> str:
    """The machine and the versions of the programs."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        model = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].partition("\n")[0]
    load_average = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    system = f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}, {load_average}"
    programs = f"Python {platform.python_version()}, mitmproxy {version('mitmproxy')}, Caddy {caddy_version()}"
    return f"{system}; {programs}; generator on {loop_name()}"


def loop_name() -> str:
    return type(asyncio.get_event_loop_policy()).__module__.partition(".")[0]


def caddy_version() -> str:
    binary = targets.program("caddy")
    done = subprocess.run([binary, "version"], capture_output=True, text=True, check=False) if binary else None
    return done.stdout.split()[0] if done and done.stdout else "none"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = [*ROWS, "http2", "memory", "start", "report"]
    parser.add_argument("--quick", action="store_true", help="fewer and shorter: to see that it works")
    parser.add_argument("--repeats", type=int, metavar="N", help=f"of each measurement ({FULL.repeats})")
    parser.add_argument("--only", action="append", choices=rows, metavar="ROW", help=f"one of {', '.join(rows)}")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out nginx, for example")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="also the gate with N workers")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="also what that command starts on 127.0.0.1; it may name {port}, {upstream}, {key} and {folder}",
    )
    parser.add_argument("--memory", action="store_true", help="measure memory too, with --quick as well (Linux)")
    parser.add_argument(
        "--usage",
        action="store_true",
        help="also the gate that reads no usage, one without a ledger, and one with it in a file: what each costs",
    )
    parser.add_argument("--keys", action="store_true", help=f"also the gate with {targets.MANY:,} named keys")
    parser.add_argument("--plain", action="store_true", help="also the gate as mitmdump runs it, without uvloop")
    parser.add_argument("--compare", metavar="REV", help="also the gate of another commit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw them there")
    return parser.parse_args()


def named(makes: Mapping[str, targets.Make], folder: Path) -> dict[str, Target]:
    return {target.name: target for target in (make(folder) for make in makes.values())}


async def run(options: argparse.Namespace, size: Size) -> tuple[Figures, list[str]]:
    usual = [row for row in ROWS if row != "console"]
    wanted = options.only or [*usual, *([] if options.quick and not options.memory else ["memory"]), "start"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if wanted == ["report"]:
            return summary(report.measure(folder, size.requests * 20, size.repeats)), ["usage"]
        direct = targets.upstream()
        all_ = [Running(direct, stack.enter_context(direct.started()))]
        makes = targets.all_of(direct.at, options)
        makes = {name: make for name, make in makes.items() if name not in options.without}
        all_ += [Running(one, stack.enter_context(one.started())) for one in named(makes, folder).values()]
        figures: Figures = {}
        running = {one.target.name: one for one in all_}
        for row in [row for row in wanted if row in ROWS]:
            figures |= await measure(row, running, size, ROWS[row])
        if "memory" in wanted and sys.platform == "linux":
            figures |= await measure_memory([one for one in all_ if one.target.name not in ("direct", "bare")], size)
        if "http2" in wanted:
            secure = named(targets.with_tls(direct.at, options, folder), folder)
            for target in secure.values():
                stack.enter_context(target.started())
            figures |= await measure("http2", {direct.name: direct, **secure}, size, measure_http2)
        if "start" in wanted:
            figures |= await measure("start", named(makes, folder), size, measure_start)
    show_progress("")
    return figures, [one.target.name for one in all_]


def main() -> None:
    options = parse()
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    size = QUICK if options.quick else FULL
    if options.repeats:
        size = size._replace(repeats=max(1, options.repeats))
    gc.freeze()
    gc.disable()  # Its pauses would count as the proxies'; the garbage of a run is small.
    title = machine()
    try:
        figures, names = asyncio.run(run(options, size))
    except (WrongAnswerError, TimeoutError, OSError) as error:
        raise SystemExit(f"\nscripts/bench: {error or type(error).__name__}") from error
    print(title, table(figures, names), goals(figures, names), sep="\n\n")
    if options.json:
        rows = {row: {name: figure._asdict() for name, figure in columns.items()} for row, columns in figures.items()}
        options.json.write_text(json.dumps({"machine": title, "rows": rows}, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(plot({r: {n: f.median for n, f in c.items()} for r, c in figures.items()}, title))


if __name__ == "__main__":
    main()
