"""Usage: PYTHONPATH=addons:. python -m tests.tools.replicas [--streams 300] [--seconds 60] [--pause 0.2]

Gates as replicas: one Redis, one keys file, and HAProxy in front of them as scripts/deploy/haproxy.cfg has it, under a
load of streamed chats, of keys with limits and of strangers. Meanwhile one gate is killed, one is upgraded (a new one
begins, and the old one is stopped), a key is revoked and another one added, and Redis is killed and comes back empty.
What became of all that goes to stdout. tests/e2e/test_replicas.py asserts it for a load of a few seconds.
"""

import argparse
import asyncio
import json
import resource
import ssl
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from scripts.tools import demo_upstream
from tests.harness.base import PATIENCE
from tests.harness.certificates import certificate, trusting
from tests.harness.credentials import bearer, entry
from tests.harness.deploy import haproxy
from tests.harness.gate import Place, Ready, log_lines
from tests.harness.programs import Redis
from tests.harness.wire import ask, chat, head

MINUTE, SOME, DAY = 40, 5, 1500
"""The limits: requests a minute, concurrent requests, tokens a day."""
LIMITS: dict[str, dict[str, object]] = {
    "minute": {"requests_per_minute": MINUTE},
    "some": {"concurrent_requests": SOME},
    "day": {"tokens_per_day": DAY},
}
ASKERS = {"minute": 4, "some": 10, "day": 10}
"""How many clients use such a key at once, each with one request at a time."""
STRANGERS = ("", "Authorization: Bearer sk-ollama-nobody-has-it", "x-api-key: sk-ollama-neither", bearer("free") + "x")
DELAY = 4
"""Seconds for which a gate that is stopped goes on: HAProxy asks each second, and believes the second answer."""
PER_SOURCE = 50
"""Connections from one address; HAProxy's example takes 100."""


class Seen(NamedTuple):
    """A request upstream: whose (the User-Agent is forwarded), from when to when, by the monotonic clock."""

    name: str
    begun: float
    ended: float


class Tally(demo_upstream.DemoUpstream):
    """An upstream that remembers who came, and when."""

    def __init__(self, token_delay: float) -> None:
        super().__init__(token_delay=token_delay)
        self.seen: list[Seen] = []

    async def _route(self, request: demo_upstream.DemoRequest) -> None:
        name = next((value for name, value in request.seen.headers if name.lower() == "user-agent"), "")
        begun = time.monotonic()
        try:
            await super()._route(request)
        finally:
            self.seen.append(Seen(name, begun, time.monotonic()))


@dataclass
class Outcome:
    """What a client saw of one request; `gate` is the one that HAProxy chose."""

    name: str
    begun: float = field(default_factory=time.monotonic)
    status: int = 0
    gate: str = ""
    whole: bool = False
    tokens: int = 0
    gap: float = 0.0
    """Longest silence in its answer, in seconds."""


@dataclass(frozen=True)
class Client:
    """Somebody with a key (or without): where they come from, and what they send."""

    name: str
    data: bytes
    source: str

    @classmethod
    def of(cls, number: int, name: str, field: str, *, streams: bool = True) -> "Client":
        body = chat() if streams else b""
        fields = (f"User-Agent: {name}", "Connection: close", *([field] if field else ()))
        length = (f"Content-Length: {len(body)}",) if body else ()
        start = head("POST" if body else "GET", "/api/chat" if body else "/api/tags", *fields, *length)
        return cls(name, start + body, f"127.0.0.{2 + number // PER_SOURCE}")

    async def ask(self, port: int, tls: ssl.SSLContext) -> Outcome:
        """One request on a connection of its own, read to the end, however that comes."""
        outcome = Outcome(self.name)
        text, last = b"", outcome.begun
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls, server_hostname="localhost", local_addr=(self.source, 0)
            )
            try:
                writer.write(self.data)
                while piece := await reader.read(65536):
                    now = time.monotonic()
                    outcome.gap = max(outcome.gap, now - last) if text else 0.0
                    text, last = text + piece, now
            finally:
                writer.close()
        read(outcome, text)
        return outcome


def read(outcome: Outcome, text: bytes) -> None:
    """Fill in what an answer says."""
    top, found, body = text.partition(b"\r\n\r\n")
    if not found:
        return
    first, *lines = top.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    outcome.status, outcome.gate = int(first.split()[1]), fields.get("x-gate", "")
    if "transfer-encoding" not in fields:
        outcome.whole = len(body) == int(fields.get("content-length", -1))
    elif body.endswith(b"\r\n0\r\n\r\n") and b'"done":true' in body:
        last = json.loads(body[body.rindex(b'{"model"') : body.rindex(b"}") + 1])
        outcome.whole, outcome.tokens = True, last["prompt_eval_count"] + last["eval_count"]


class Load:
    """Clients that ask again and again until they are stopped."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self.outcomes: list[Outcome] = []
        self._port, self._tls = port, tls
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, clients: Iterable[Client], pause: float = 0.0) -> None:
        """Each begins; `pause` is the time between two requests of one, in seconds."""
        self._tasks += [asyncio.create_task(self._run(client, pause)) for client in clients]

    async def _run(self, client: Client, pause: float) -> None:
        while not self._stopping.is_set():
            outcome = await client.ask(self._port, self._tls)
            self.outcomes.append(outcome)
            wait = pause if outcome.status == 200 else max(pause, 0.25)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def stop(self) -> None:
        """All of them end what they have begun."""
        self._stopping.set()
        async with asyncio.timeout(PATIENCE * 6):
            await asyncio.gather(*self._tasks)

    def of(self, *names: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.name in names]


@dataclass
class Keys:
    """The file that all gates read."""

    path: Path

    def write(self, *more: str) -> None:
        """Those with limits, one without, and more."""
        new = self.path.with_suffix(".new")
        new.write_text(entry("free") + "".join(entry(name, **limit) for name, limit in LIMITS.items()) + "".join(more))
        new.chmod(0o600)
        new.replace(self.path)


async def until(condition: Callable[[], Awaitable[object]], what: str, patience: float = PATIENCE * 3) -> float:
    """Seconds until it is true."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < patience, f"waited {patience} s for {what}"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def status(gate: Ready, name: str) -> int:
    """What that key gets of a gate, past HAProxy."""
    answer = await asyncio.to_thread(ask, gate.port, "GET", "/api/tags", bearer(name), f"User-Agent: past-{name}")
    return answer.status


def counted(gate: Ready) -> Counter[tuple[str, str]]:
    """Of a gate's metrics, how many requests have ended: (key, status) -> how many."""
    with urllib.request.urlopen(f"http://127.0.0.1:{gate.watch}/metrics", timeout=PATIENCE) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name.endswith("_requests_total")]
    found: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        found[sample.labels["key"], sample.labels["status"]] += int(sample.value)
    return found


def logged(gate: Ready) -> Counter[tuple[str, str]]:
    """The same of its access log."""
    return Counter((line.get("key", "none"), str(line.get("status", "none"))) for line in log_lines(gate))


@dataclass
class Report:
    """What came of it, to be asserted or shown."""

    outcomes: list[Outcome]
    seen: list[Seen]
    killed: str
    """The gate that was killed, as HAProxy names it."""
    away: tuple[float, float]
    """From when to when Redis was away."""
    revoked: float
    """Seconds until a revoked key was refused by all gates, and a new one let in."""
    drained: float
    """Seconds that the gate which was upgraded took to end, its delay included."""
    exit_status: int
    counts: dict[str, tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]]
    """By gate: what its clients saw, and what it counted itself."""

    def of(self, *names: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.name in names]

    @property
    def ours(self) -> list[Outcome]:
        """Of those with a key."""
        return self.of("free", *LIMITS)

    @property
    def broken(self) -> list[Outcome]:
        """Admitted, and not whole."""
        return [one for one in self.ours if one.status == 200 and not one.whole]

    @property
    def unanswered(self) -> list[Outcome]:
        """Neither an answer of a gate nor one of Ollama."""
        return [one for one in self.ours if one.status not in (200, 429) and not self.closed(one)]

    def closed(self, one: Outcome) -> bool:
        """Refused by a gate because the limits could not be counted."""
        return one.status == 503 and one.name in LIMITS and one.gate != ""

    def elsewhere(self, some: Iterable[Outcome]) -> list[Outcome]:
        """Those that were not on the gate that was killed."""
        return [one for one in some if one.gate != self.killed]

    def upstream(self, name: str, since: float = 0.0, before: float = float("inf")) -> list[Seen]:
        """Requests of that key that began in that time."""
        return [one for one in self.seen if one.name == name and since <= one.begun < before]


def peak(some: Iterable[Seen]) -> int:
    """The most that ran at once."""
    steps = sorted([(one.begun, 1) for one in some] + [(one.ended, -1) for one in some])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def most_in_a_minute(some: Iterable[Seen]) -> int:
    times = sorted(one.begun for one in some)
    return max((sum(begun <= other < begun + 60 for other in times) for begun in times), default=0)


@asynccontextmanager
async def blocking(manager: Any) -> Any:
    """A context manager whose beginning and end take a while, in a thread."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


class Scene:
    """Four places for gates, three of which are taken; and who comes."""

    def __init__(self, folder: Path, upstream: Tally, redis: Redis, delay: int, say: Callable[[str], None]) -> None:
        self.folder, self.upstream, self.redis, self.delay, self.say = folder, upstream, redis, delay, say
        self.keys = Keys(folder / "keys.toml")
        self.places = [Place.free() for _ in range(4)]
        self.gates: list[Ready] = []
        self.stack = AsyncExitStack()

    async def begin(self, place: Place) -> Ready:
        """One more gate."""
        options = {
            "ollama_limits_storage": self.redis.url,
            "ollama_access_log": "-",
            "ollama_drain_delay": self.delay,
            "ollama_max_connections_per_client": 0,
            "ollama_max_wrong_keys": 0,
        }
        words = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        env = {"OLLAMA_KEYS_FILE": str(self.keys.path)}
        gate = await asyncio.to_thread(Ready, self.upstream.url, *words, place=place, key=None, env=env)
        self.stack.callback(gate.stop)
        self.gates.append(gate)
        return gate

    async def play(self, streams: int, seconds: float) -> Report:
        """All of it, in so many seconds and those that the events take."""
        async with self.stack:
            self.keys.write(entry("old"))
            await asyncio.gather(*(self.begin(place) for place in self.places[:3]))
            cert = certificate(self.folder)
            name = "    http-after-response set-header x-gate %s"
            port = await self.stack.enter_async_context(blocking(haproxy(self.places, cert, self.folder, name)))
            load = Load(port, trusting(cert))
            self._start(load, streams)
            return await self._events(load, seconds)

    def _start(self, load: Load, streams: int) -> None:
        load.start(Client.of(number, "free", bearer("free")) for number in range(streams))
        number = streams
        for name, count in ASKERS.items():
            makes = range(number, number + count)
            load.start((Client.of(one, name, bearer(name), streams=name != "minute") for one in makes), 0.2)
            number += count
        load.start((Client.of(number, "stranger", field) for field in STRANGERS), 0.1)

    async def _events(self, load: Load, seconds: float) -> Report:
        one, two, _ = self.gates
        pause = seconds / 6
        await asyncio.sleep(pause)
        self.say("one gate is killed")
        await asyncio.to_thread(one.stop)
        alive = [gate for gate in self.gates if gate is not one]
        await asyncio.sleep(pause)
        self.say("a key is revoked, another one added")
        revoked = await self._change_keys(alive)
        await asyncio.sleep(pause)
        self.say("one gate is upgraded: another one begins, it is stopped")
        alive.append(await self.begin(self.places[3]))
        drained, exit_status = await self._stop(two)
        alive.remove(two)
        await asyncio.sleep(pause)
        self.say("Redis is killed, and comes back")
        away = await self._lose_redis(load)
        await asyncio.sleep(pause * 2)
        await load.stop()
        await until(lambda: self._agree(load, alive, two), "metrics and logs to tell what was sent", 10)
        counts = {named(gate): (told(load, gate), counted(gate)) for gate in alive}
        counts[named(two)] = told(load, two), logged(two)
        return Report(
            load.outcomes, self.upstream.seen, named(one), away, revoked, drained, exit_status,
            {name: (sent, ours(found)) for name, (sent, found) in counts.items()},
        )  # fmt: skip

    async def _change_keys(self, alive: list[Ready]) -> float:
        self.keys.write(entry("new"))

        async def known() -> bool:
            answers = await asyncio.gather(*(status(gate, name) for gate in alive for name in ("old", "new")))
            return answers == [401, 200] * len(alive)

        return await until(known, "the keys to be known")

    async def _stop(self, gate: Ready) -> tuple[float, int]:
        begun = time.monotonic()
        gate.signal()
        status = await asyncio.to_thread(gate.wait, PATIENCE * 6)
        return time.monotonic() - begun, status

    async def _lose_redis(self, load: Load) -> tuple[float, float]:
        """Away until each client with a limit was told so: by then nothing that was let in before is on its way."""

        async def used_up() -> bool:
            return {one.name for one in load.of(*LIMITS) if one.status == 429} == set(LIMITS)

        await until(used_up, "the limits to be used up")
        self.redis.stop()
        since = time.monotonic()

        async def told_all() -> bool:
            refused = Counter(one.name for one in load.of(*LIMITS) if one.status == 503 and one.begun > since)
            served = any(one.whole and one.begun > since for one in load.of("free"))
            return served and all(refused[name] >= count * 2 for name, count in ASKERS.items())

        await until(told_all, "all to be told that limits can't be counted", 40)
        before = time.monotonic()
        await asyncio.to_thread(self.redis.start)
        return since, before

    async def _agree(self, load: Load, alive: list[Ready], drained: Ready) -> bool:
        metrics = await asyncio.gather(*(asyncio.to_thread(counted, gate) for gate in alive))
        pairs = [*zip(alive, metrics, strict=True), (drained, logged(drained))]
        return all(told(load, gate) == ours(found) for gate, found in pairs)


def named(gate: Ready) -> str:
    """As HAProxy names it."""
    return f"gate{gate.port}"


def told(load: Load, gate: Ready) -> Counter[tuple[str, str]]:
    """What clients with a key saw of a gate."""
    return Counter((one.name, str(one.status)) for one in load.of("free", *LIMITS) if one.gate == named(gate))


def ours(found: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    return Counter({(key, status): count for (key, status), count in found.items() if key in ("free", *LIMITS)})


async def play(
    streams: int, seconds: float, pause: float, delay: int = DELAY, say: Callable[[str], None] = lambda _: None
) -> Report:
    """`pause` is the time between two tokens, `delay` the gates' ollama_drain_delay, both in seconds."""
    with tempfile.TemporaryDirectory(prefix="replicas-") as folder:
        redis = Redis()
        try:
            async with Tally(pause) as upstream:
                return await Scene(Path(folder), upstream, redis, delay, say).play(streams, seconds)
        finally:
            redis.stop()


def figures(report: Report) -> Iterator[tuple[str, object]]:
    """Name and value."""
    since, back = report.away
    whole = [one for one in report.ours if one.whole and one.tokens]
    yield "streams that ended whole", len(whole)
    yield "tokens in them", sum(one.tokens for one in whole)
    yield "longest silence in one, s", f"{max(one.gap for one in whole):.2f}"
    yield "admitted streams broken: on the killed gate", len(report.broken) - len(report.elsewhere(report.broken))
    yield "admitted streams broken: elsewhere", len(report.elsewhere(report.broken))
    lost = report.unanswered
    yield "requests without an answer: on the killed gate", len(lost) - len(report.elsewhere(lost))
    yield "requests without an answer: elsewhere", len(report.elsewhere(lost))
    strangers = report.of("stranger")
    yield "strangers: requests", len(strangers)
    yield "strangers: of them 401", sum(one.status == 401 for one in strangers)
    yield "strangers: seen upstream", len(report.upstream("stranger"))
    for span, name in ((report.upstream("minute", 0, since), "before"), (report.upstream("minute", back), "after")):
        yield f"requests_per_minute={MINUTE}: most in a minute, {name} Redis was away", most_in_a_minute(span)
    for some, name in ((report.upstream("some", 0, since), "before"), (report.upstream("some", back), "after")):
        yield f"concurrent_requests={SOME}: most at once, {name} Redis was away", peak(some)
    yield "the same, with those that began before", peak(report.upstream("some"))
    tokens = max((one.tokens for one in report.of("day")), default=0)
    yield f"tokens_per_day={DAY}: admitted before Redis was away", len(report.upstream("day", 0, since)) * tokens
    yield "the same after", len(report.upstream("day", back)) * tokens
    yield "refused 429", sum(one.status == 429 for one in report.ours)
    yield "refused 503 while Redis was away", sum(map(report.closed, report.ours))
    yield "Redis was away, s", f"{back - since:.1f}"
    yield "keys known everywhere after, s", f"{report.revoked:.2f}"
    yield "the gate that was stopped ended after, s", f"{report.drained:.1f}"
    yield "gates whose own counts differ from what clients saw", sum(a != b for a, b in report.counts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=300, help="chats at once without a limit (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load, about (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two tokens (%(default)s)")
    parser.add_argument("--delay", type=int, default=DELAY, help="ollama_drain_delay of the gates (%(default)s)")
    options = parser.parse_args()
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:5.1f} s: {text}", flush=True)

    report = asyncio.run(play(options.streams, options.seconds, options.pause, options.delay, say))
    say("done")
    for name, value in figures(report):
        print(f"{name:78} {value:>8}")


if __name__ == "__main__":
    main()
