"""Limits that several gates share, in a real Redis, also while it is away."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ollama_auth.auth.throttle import REPLAY_GRACE
from tests.harness.base import wait_until
from tests.harness.credentials import PUBLIC, bearer, entry, signature
from tests.harness.gate import Controlled, Gate
from tests.harness.programs import Redis
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

pytestmark = pytest.mark.redis

KEYS = (
    entry("minute", requests_per_minute=10, scopes=["all"])
    + entry("two", concurrent_requests=2, scopes=["all"])
    + entry("tokens", tokens_per_day=10, scopes=["all"])
    + entry("free", scopes=["all"])
    + f'[[keys]]\nname = "laptop"\nscopes = ["all"]\nssh_ed25519 = "{PUBLIC}"\n'
)


@pytest.fixture
def redis() -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("there is no redis-server here; on Debian: apt-get install redis-server")
    server = Redis()
    yield server
    server.stop()


@pytest.fixture
def two_gates(redis: Redis, upstream: Upstream, tmp_path: Path) -> Iterator[tuple[Gate, Gate]]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(make_gate(redis, upstream, tmp_path)) for _ in range(2))
        yield one, two
        assert "Traceback" not in one.output + two.output


def make_gate(redis: Redis, upstream: Upstream, folder: Path, *args: str) -> Gate:
    file = folder / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    options = ("--set", f"ollama_limits_storage={redis.url}", *args)
    return Gate(upstream.url, *options, key=None, env={"OLLAMA_KEYS_FILE": str(file)})


def status(gate: Gate, name: str) -> int:
    return ask(gate.port, "GET", "/api/version", bearer(name)).status


def test_requests_a_minute_are_counted_together(two_gates: tuple[Gate, Gate]) -> None:
    statuses = [status(two_gates[turn % 2], "minute") for turn in range(14)]
    assert statuses == [200] * 10 + [429] * 4


def test_concurrent_requests_are_counted_together(two_gates: tuple[Gate, Gate], upstream: Upstream) -> None:
    body = chat()
    start = head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body
    upstream.hold()
    with Wire(two_gates[0].port, start) as one, Wire(two_gates[1].port, start) as two:
        one.read_until(b"\n")
        two.read_until(b"\n")
        assert [status(gate, "two") for gate in two_gates] == [429, 429]
    upstream.go_on()
    for gate in two_gates:
        wait_until(lambda gate=gate: status(gate, "two") == 200, "a place")


def test_tokens_are_counted_together(two_gates: tuple[Gate, Gate]) -> None:
    assert ask(two_gates[0].port, "POST", "/api/chat", bearer("tokens"), body=chat()).status == 200
    wait_until(lambda: status(two_gates[1], "tokens") == 429, "the other gate to know")


def delete(gate: Gate, field: str, target: str) -> int:
    return ask(gate.port, "DELETE", target, field, body=chat("nothing")).status


def test_a_signature_that_one_gate_has_seen_is_known_to_all(two_gates: tuple[Gate, Gate], upstream: Upstream) -> None:
    """The stock CLI may repeat itself within REPLAY_GRACE, wherever that comes to; later nobody may, anywhere."""
    target = f"/api/delete?ts={int(time.time())}"
    field = signature("DELETE", target)
    started = time.monotonic()
    first = delete(two_gates[0], field, target)
    again = delete(two_gates[1], field, target)
    assert first == 404, "Ollama has no such model"
    assert again == 404 or time.monotonic() - started > REPLAY_GRACE
    wait_until(lambda: time.monotonic() - started > REPLAY_GRACE + 0.2, "it to be too late")
    with upstream.untouched():
        assert [delete(gate, field, target) for gate in two_gates] == [401, 401]
    two_gates[1].find("(replayed)")


def test_a_signature_is_known_to_a_gate_that_never_saw_it(two_gates: tuple[Gate, Gate], upstream: Upstream) -> None:
    target = f"/api/delete?ts={int(time.time())}"
    field = signature("DELETE", target)
    assert delete(two_gates[0], field, target) == 404
    until = time.monotonic() + REPLAY_GRACE + 0.2
    wait_until(lambda: time.monotonic() > until, "it to be too late")
    with upstream.untouched():
        assert delete(two_gates[1], field, target) == 401


def test_signed_deletes_while_redis_is_away(two_gates: tuple[Gate, Gate], redis: Redis, upstream: Upstream) -> None:
    """Nobody can tell whether another gate has seen them; what a replay does not harm passes."""
    redis.stop()
    target = f"/api/delete?ts={int(time.time())}"
    with upstream.untouched():
        assert delete(two_gates[0], signature("DELETE", target), target) == 503
    listing = f"/api/tags?ts={int(time.time())}"
    assert ask(two_gates[0].port, "GET", listing, signature("GET", listing)).status == 200


def test_what_runs_is_known_again_to_a_redis_that_lost_its_memory(
    two_gates: tuple[Gate, Gate], redis: Redis, upstream: Upstream
) -> None:
    body = chat()
    start = head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body
    upstream.hold()
    with Wire(two_gates[0].port, start) as one, Wire(two_gates[1].port, start) as two:
        one.read_until(b"\n")
        two.read_until(b"\n")
        redis.stop()
        redis.start()
        with Wire(redis.port) as wire:
            known = b"ZCARD ollama_auth:concurrent:two\r\n"
            wait_until(lambda: wire.send(known).read_until(b"\r\n") == b":2\r\n", "both to be renewed")
        assert [status(gate, "two") for gate in two_gates] == [429, 429]
    upstream.go_on()


def test_redis_killed_in_the_middle(two_gates: tuple[Gate, Gate], redis: Redis, upstream: Upstream) -> None:
    """Closed to those with limits, at once and with a word; open to the others; a stream goes on; and back again."""
    gate, body = two_gates[0], chat()
    assert status(gate, "two") == 200
    upstream.hold()
    with Wire(gate.port, head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body) as wire:
        wire.read_until(b"\n")
        redis.stop()
        started = time.monotonic()
        with upstream.untouched():
            away = ask(gate.port, "GET", "/api/version", bearer("minute"))
        assert away.status == 503
        assert "retry-after" in away.headers
        assert time.monotonic() - started < 8
        gate.find("storage of limits does not answer")
        assert status(gate, "free") == 200
        upstream.go_on()
        wire.read_until(b'"done":true')
    redis.start()
    wait_until(lambda: status(gate, "minute") == 200, "the limits to be counted again", 15)


def test_open_while_redis_is_away_where_that_was_chosen(redis: Redis, upstream: Upstream, tmp_path: Path) -> None:
    with make_gate(redis, upstream, tmp_path, "--set", "ollama_limits_unavailable=open") as gate:
        redis.stop()
        assert status(gate, "minute") == 200
        gate.find("storage of limits does not answer")


def test_a_storage_that_is_replaced(redis: Redis, upstream: Upstream, tmp_path: Path) -> None:
    """A running request gives its lease back where it took it, and then nothing holds a connection to there."""
    other = Redis()
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    options = ("--set", f"ollama_limits_storage={redis.url}")
    body = chat()
    start = head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body
    with Controlled(upstream.url, *options, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        upstream.hold()
        with Wire(gate.port, start) as running:
            running.read_until(b"\n")
            gate.do(f"ctx.options.update(ollama_limits_storage={other.url!r})")
            assert status(gate, "two") == 200
            assert leases(redis) == 1
            assert gates_connected(redis) > 0
            upstream.go_on()
            running.read_until(b'"done":true')
        wait_until(lambda: leases(redis) == 0, "the lease to be given back")
        wait_until(lambda: gates_connected(redis) == 0, "the connections to be closed")
        assert status(gate, "two") == 200
        assert gates_connected(other) > 0
    other.stop()


def leases(redis: Redis) -> int:
    with Wire(redis.port, b"ZCARD ollama_auth:concurrent:two\r\n") as wire:
        return int(wire.read_until(b"\r\n")[1:])


def gates_connected(redis: Redis) -> int:
    """Connections besides the one that asks."""
    with Wire(redis.port, b"CLIENT LIST\r\n") as wire:
        wire.read_until(b"\r\n")
        return wire.read_until(b"\n\r\n").count(b" addr=") - 1


def test_a_storage_that_is_none(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    option = "ollama_limits_storage=nonsense://secret@host"
    with Gate(upstream.url, "--set", option, key=None, env={"OLLAMA_KEYS_FILE": str(file)}, ready=False) as gate:
        assert gate.wait() == 1
        assert "ollama_limits_storage" in gate.output
        assert "secret" not in gate.output.replace(option, "")
        assert "Traceback" not in gate.output


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_a_gate_whose_clock_is_set(redis: Redis, upstream: Upstream, tmp_path: Path, jump: int) -> None:
    """Places of others are neither taken away nor kept, and nobody is told to wait for longer than a window."""
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    args = ("--set", f"ollama_limits_storage={redis.url}")
    body = chat()
    start = head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body
    with Controlled(upstream.url, *args, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate, ExitStack() as stack:
        upstream.hold()
        for _ in range(2):
            stack.enter_context(Wire(gate.port, start)).read_until(b"\n")
        for _ in range(5):
            assert status(gate, "minute") == 200
        gate.do(f"import time; real = time.time; time.time = lambda: real() + {jump}")
        time.sleep(0.1)
        assert status(gate, "two") == 429
        while (answer := ask(gate.port, "GET", "/api/version", bearer("minute"))).status == 200:
            assert int(answer.headers["ratelimit"].rpartition("=")[2]) <= 60
        assert int(answer.headers["retry-after"]) <= 60
        stack.close()
        wait_until(lambda: status(gate, "two") == 200, "a place")
    upstream.go_on()
