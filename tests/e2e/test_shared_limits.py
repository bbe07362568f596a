"""Limits that several gates share, in a real Redis, also while it is away."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ollama_auth.auth.throttle import REPLAY_GRACE
from tests.harness.base import wait_until
from tests.harness.certificates import certificate
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
    + entry("month", tokens_per_month=200, scopes=["all"])
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


def talk(gate: Gate, name: str) -> int:
    return ask(gate.port, "POST", "/api/chat", bearer(name), body=chat()).status


def renewals(redis: Redis) -> set[tuple[bytes, bytes]]:
    """The gates that are known, and how often each was renewed."""
    names = [name for name in redis.ask("KEYS", "*").split() if b":gate:" in name]
    return {(name, redis.ask("GET", name.decode())) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flushed", "an old file"])
def test_a_redis_that_lost_its_memory_has_what_was_used_again(
    two_gates: tuple[Gate, Gate], redis: Redis, how: str, tmp_path: Path
) -> None:
    """Each gate knows its part; in Redis it only ever grows, so nothing is counted twice."""
    if how == "an old file":
        assert [talk(gate, "month") for gate in two_gates] == [200, 200]
        wait_until(lambda: len(renewals(redis)) == 2, "both to be known")
        redis.ask("CONFIG", "SET", "dir", str(tmp_path))
        redis.ask("SAVE")
        kept = renewals(redis)
    wait_until(lambda: [talk(gate, "month") for gate in two_gates] == [429, 429], "it to be used up")
    reserved = "ollama_auth:main:tokens:{month}:reserved"
    wait_until(lambda: redis.ask("ZCARD", reserved) == b":0\r\n", "all of it to be published")
    (name,) = [one.decode() for one in redis.ask("KEYS", "*").split() if re.search(rb"month}:[0-9-]+$", one)]

    def told() -> list[bytes]:
        return sorted(redis.ask("ZRANGE", name, "0", "-1", "WITHSCORES").split(b"\r\n"))

    before = told()
    if how == "flushed":
        redis.ask("FLUSHALL")
    else:
        wait_until(lambda: not renewals(redis) & kept, "both to be renewed")  # It knows no loss of less than 2 s.
        redis.stop()
        redis.start("--dir", str(tmp_path))
        assert told() != before
    wait_until(lambda: told() == before, "both to have told it")
    assert [talk(gate, "month") for gate in two_gates] == [429, 429]
    assert told() == before


@pytest.mark.slow
@pytest.mark.parametrize("why", ["memory", "replica", "disk"])
def test_a_redis_that_can_be_read_but_not_written(
    two_gates: tuple[Gate, Gate], redis: Redis, upstream: Upstream, why: str, tmp_path: Path
) -> None:
    """A limit that nobody can count lets nobody in, whatever was used; and it counts again later."""
    gate = two_gates[0]
    assert talk(gate, "month") == 200
    if why == "memory":
        redis.ask("CONFIG", "SET", "maxmemory", "1")
    elif why == "replica":
        redis.ask("REPLICAOF", "127.0.0.1", "1")
    else:
        redis.ask("CONFIG", "SET", "save", "1 1", "dir", str(tmp_path), "dbfilename", "dump.rdb")
        (tmp_path / "dump.rdb").mkdir()  # It can't be written, as on a full disk.
        redis.ask("SET", "x", "1")
        wait_until(lambda: b"rdb_last_bgsave_status:err" in redis.ask("INFO", "persistence"), "it to fail")
    with upstream.untouched():
        for name in ("month", "tokens", "minute", "two"):
            assert [talk(gate, name) for _ in range(5)] == [503] * 5
    assert status(gate, "free") == 200
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    redis.ask("REPLICAOF", "NO", "ONE")
    redis.ask("CONFIG", "SET", "save", "")
    wait_until(lambda: talk(gate, "month") == 200, "it to be counted again")


def test_reservations_are_known_to_all(two_gates: tuple[Gate, Gate], redis: Redis, upstream: Upstream) -> None:
    body = chat(options={"num_predict": 5000})
    start = head("POST", "/api/chat", bearer("month"), f"Content-Length: {len(body)}") + body
    upstream.hold()
    with Wire(two_gates[0].port, start) as running:
        running.read_until(b"\n")
        refused = ask(two_gates[1].port, "POST", "/api/chat", bearer("month"), body=body)
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    upstream.go_on()
    wait_until(lambda: talk(two_gates[1], "month") == 200, "the reservation to be given back")
    assert all(name.startswith(b"ollama_auth:main:") for name in redis.ask("KEYS", "*").split() if b"auth" in name)


def test_an_edit_of_a_limit_forgets_nothing(redis: Redis, upstream: Upstream, tmp_path: Path) -> None:
    with make_gate(redis, upstream, tmp_path) as gate:
        assert [status(gate, "minute") for _ in range(11)] == [200] * 10 + [429]
        file = tmp_path / "keys.toml"
        file.write_text(KEYS.replace("requests_per_minute = 10", "requests_per_minute = 9"))
        gate.signal(signal.SIGHUP)
        gate.find("the keys file was read again")
        assert status(gate, "minute") == 429


def test_two_deployments_share_a_redis(redis: Redis, upstream: Upstream, tmp_path: Path) -> None:
    with (
        make_gate(redis, upstream, tmp_path, "--set", "ollama_limits_name=one") as one,
        make_gate(redis, upstream, tmp_path, "--set", "ollama_limits_name=two") as two,
    ):
        assert [status(one, "minute") for _ in range(11)] == [200] * 10 + [429]
        assert talk(one, "tokens") == 200
        assert (status(two, "minute"), talk(two, "tokens")) == (200, 200)
        names = [name for name in redis.ask("KEYS", "*").split() if b":" in name]
        assert {name.partition(b":")[0] for name in names} == {b"ollama_auth"}


PASSWORD = "pw-5ecret-in-redis"
RIGHTS = "~ollama_auth:main:* +@read +@write +@scripting +@transaction +@connection +time"
"""As scripts/docs/replicas.md has it."""
ACL = f"ACL SETUSER gate on >{PASSWORD} {RIGHTS}".split()


def test_a_password_comes_by_the_environment_or_a_file_and_is_shown_nowhere(
    redis: Redis, upstream: Upstream, tmp_path: Path
) -> None:
    """Rights to the names of the deployment are enough."""
    redis.ask(*ACL)
    url = f"redis://gate:{PASSWORD}@127.0.0.1:{redis.port}"
    (tmp_path / "keys.toml").write_text(KEYS)
    (tmp_path / "url").write_text(url + "\n")
    ways: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((), {"OLLAMA_LIMITS_STORAGE": url}),
        ((), {"OLLAMA_LIMITS_STORAGE_FILE": f"{tmp_path}/url"}),
        (("--set", f"ollama_limits_storage_file={tmp_path}/url"), {"OLLAMA_LIMITS_STORAGE": "redis://nowhere"}),
        (("--set", f"ollama_limits_storage={url}"), {}),
    ]
    for args, env in ways:
        env = {"OLLAMA_KEYS_FILE": f"{tmp_path}/keys.toml"} | env
        with Controlled(upstream.url, *args, key=None, env=env) as gate:
            assert [status(gate, name) for name in ("minute", "two", "tokens")] == [200] * 3
            redis.ask("FLUSHALL")
            assert PASSWORD not in gate.do("result = [getattr(ctx.options, name) for name in ctx.options.keys()]")
            gate.do("ctx.options.update(ollama_max_target=5000)")  # What was hidden is known still.
            assert status(gate, "minute") == 200
            assert PASSWORD not in gate.output


@pytest.mark.slow
def test_a_redis_that_can_never_work_is_an_error_of_the_start(redis: Redis, upstream: Upstream, tmp_path: Path) -> None:
    """One that is away is none: the gate starts, and closes to those with limits."""
    redis.ask(*ACL)
    redis.ask("ACL", "SETUSER", "narrow", "on", f">{PASSWORD}", "~other:*", "+@all")
    redis.ask("ACL", "SETUSER", "weak", "on", f">{PASSWORD}", "~*", "+@read")
    place = f"127.0.0.1:{redis.port}"
    secure = Redis(cert=certificate(tmp_path))
    faults = {
        f"redis://gate:wrong-{PASSWORD}@{place}": "the user name or password in the URL is wrong, or missing",
        f"redis://narrow:{PASSWORD}@{place}": "lacks rights",
        f"redis://weak:{PASSWORD}@{place}": "lacks rights",
        f"rediss://127.0.0.1:{secure.port}": "TLS with it fails",
        f"redis+cluster://{place}": "redis+cluster:// is for a cluster alone",
        f"redis://{place}/0typo": "the database in the URL is not a number",
        f"redis://{place}/99": "does not work with this URL (ResponseError): check its database",
        f"redis://{place}?foo=bar": "ollama_limits_storage",
        f"redis+sentinel://{place}": "not the URL of a Redis",
        f"http://{place}": "not the URL of a Redis",
    }
    (tmp_path / "keys.toml").write_text(KEYS)
    for url, why in faults.items():
        env = {"OLLAMA_KEYS_FILE": f"{tmp_path}/keys.toml", "OLLAMA_LIMITS_STORAGE": url}
        with Gate(upstream.url, key=None, env=env, ready=False) as gate:
            assert gate.wait() == 1, (url, gate.output)
            assert why in gate.output, (url, gate.output)
            assert "Traceback" not in gate.output
            assert PASSWORD not in gate.output
    secure.stop()
    redis.stop()
    env |= {"OLLAMA_LIMITS_STORAGE": redis.url}
    with Gate(upstream.url, key=None, env=env) as gate:
        gate.find("ollama_limits_storage does not answer now")
        assert (status(gate, "minute"), status(gate, "free")) == (503, 200)
        redis.start()
        wait_until(lambda: status(gate, "minute") == 200, "it to be counted")


def delete(gate: Gate, field: str, target: str) -> int:
    return ask(gate.port, "DELETE", target, field, body=chat("nothing")).status


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
            known = b"ZCARD ollama_auth:main:concurrent:two\r\n"
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


@pytest.mark.slow
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
    with Wire(redis.port, b"ZCARD ollama_auth:main:concurrent:two\r\n") as wire:
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
