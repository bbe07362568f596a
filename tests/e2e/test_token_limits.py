"""Limits on tokens that hold: what many requests at once, a restart, an edit and a new day change of them."""

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.harness.base import PATIENCE, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, log_lines
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, Wire, ask, chat, head, wires

LIMITS = {"burst": 1000, "capped": 100, "leaver": 1000, "small": 40}
HOLDER = bearer("small")


def write(file: Path, **fields: Any) -> None:
    names = [entry(name, tokens_per_day=limit, scopes=["all"]) for name, limit in LIMITS.items() if name != "small"]
    file.write_text("".join(names) + entry("small", scopes=["all"], **(fields or {"tokens_per_day": LIMITS["small"]})))
    file.chmod(0o600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


def options(folder: Path, *more: str) -> tuple[str, ...]:
    write(folder / "keys.toml")
    given = ("ollama_access_log=-", f"ollama_keys_file={folder}/keys.toml", f"ollama_usage_db={folder}/usage.db", *more)
    return tuple(word for one in given for word in ("--set", one))


@pytest.fixture
def gate(upstream: Upstream, folder: Path) -> Iterator[Controlled]:
    with Controlled(upstream.url, *options(folder), key=None) as gate:
        yield gate
        assert "Traceback" not in gate.output


def used(gate: Gate, name: str) -> int:
    lines = [line for line in log_lines(gate) if line.get("key") == name]
    return sum(line.get("prompt_tokens", 0) + line.get("completion_tokens", 0) for line in lines)


def refusals(gate: Gate) -> int:
    return len([line for line in log_lines(gate) if line.get("status") == 429])


def talk(gate: Gate, name: str = "small", **more: Any) -> Response:
    return ask(gate.port, "POST", "/api/chat", bearer(name), body=chat(**more))


def post(name: str, body: bytes) -> bytes:
    return head("POST", "/api/chat", bearer(name), "Connection: close", f"Content-Length: {len(body)}") + body


@pytest.mark.parametrize(("name", "more"), [("burst", {}), ("capped", {"options": {"num_predict": 60}})])
def test_two_hundred_at_once_overrun_by_a_few_answers(
    gate: Controlled, upstream: Upstream, name: str, more: dict[str, Any]
) -> None:
    """What is reserved is an answer's cap, else what is usual; who is refused may come again soon."""
    upstream.hold()
    with wires(gate.port, 200, post(name, chat(**more))) as opened:
        wait_until(lambda: refusals(gate) == 198, "198 refusals", 3 * PATIENCE)
        upstream.go_on()
        answers = [wire.read_all() for wire in opened]
    refused = [answer for answer in answers if b" 429 " in answer.partition(b"\r\n")[0]]
    assert len(refused) == 198
    assert all(b"Retry-After: 5\r\n" in answer and b"reserved" in answer for answer in refused)
    assert not any(b"X-Should-Retry" in answer for answer in refused)
    wait_until(lambda: used(gate, name) > 40, "both lines")
    assert used(gate, name) < LIMITS[name] + 60
    while b"used up" not in talk(gate, name, **more).body:
        assert used(gate, name) < LIMITS[name] + 60
    wait_until(lambda: used(gate, name) >= LIMITS[name], "the last line")


def test_a_key_that_is_used_up(gate: Controlled, upstream: Upstream, folder: Path) -> None:
    """It stays so after a kill, an edit of the limit, and with another spelling of the model, until the day is over."""
    first = talk(gate)
    assert first.status == 200
    assert first.headers["ratelimit-policy"] == '"tokens";q=40;w=86400'
    assert first.headers["ratelimit"].startswith('"tokens";r=40;t=')
    spent = wait_until(lambda: used(gate, "small"), "the line")
    rest = talk(gate)
    assert f";r={max(0, LIMITS['small'] - spent)};" in rest.headers["ratelimit"]
    wait_until(lambda: used(gate, "small") > spent, "the next line")
    assert talk(gate, model="DEMO:latest").status == 429
    with upstream.untouched():
        over = talk(gate)
    assert over.status == 429
    assert over.headers["x-should-retry"] == "false"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0).timestamp() + 86_400
    assert abs(int(over.headers["retry-after"]) - (midnight - time.time())) < 20
    write(folder / "keys.toml", tokens_per_day=LIMITS["small"] - 1)
    gate.signal(signal.SIGHUP)
    gate.find("the keys file was read again")
    assert talk(gate).status == 429
    write(folder / "keys.toml", tokens_per_month=LIMITS["small"])
    gate.signal(signal.SIGHUP)
    wait_until(lambda: gate.output.count("the keys file was read again") > 1, "it to be read")
    answer = talk(gate)
    assert (answer.status, "tokens_per_month" in answer.body.decode()) == (429, True)
    assert answer.headers["ratelimit-policy"].startswith('"tokens-month";q=40;w=')
    month = int(answer.headers["retry-after"])
    write(folder / "keys.toml", tokens_per_day=LIMITS["small"], tokens_per_month=LIMITS["small"])
    gate.signal(signal.SIGHUP)
    answer = wait_until(lambda: "," in (a := talk(gate)).headers["ratelimit-policy"] and a, "both limits")
    assert month - 20 <= int(answer.headers["retry-after"]) <= month, "of both the end of the later one"
    for month, status in ((1000, 200), (LIMITS["small"] + 1, 429)):  # An edit of the limit of the month alone.
        write(folder / "keys.toml", tokens_per_month=month)
        gate.signal(signal.SIGHUP)
        said = f'"tokens-month";q={month};w='
        answer = wait_until(
            lambda said=said: (a := talk(gate)).headers["ratelimit-policy"].startswith(said) and a, said
        )
        assert answer.status == status
    time.sleep(1.2)  # The ledger is written by now.
    gate.signal(signal.SIGKILL)
    gate.wait()
    with Controlled(upstream.url, *options(folder), key=None) as again:
        assert talk(again).status == 429
        again.do(f"from ollama_auth import clock; clock.offset = {midnight - time.time() + 1}")
        fresh = talk(again)
        assert fresh.status == 200
        assert ";r=40;t=86" in fresh.headers["ratelimit"]


def test_who_leaves_holds_nothing_any_more(gate: Controlled, upstream: Upstream) -> None:
    body = chat(options={"num_predict": 5000})
    gate.do(SEEN)
    upstream.hold()
    for _ in range(3):
        with Wire(gate.port, post("leaver", body)) as wire:
            wire.read_until(b"\n")
            assert "5" in gate.do(HELD)
        with Wire(gate.port, post("leaver", body)[:-3]):
            pass
        wait_until(lambda: gate.do(HELD) == "{}", "nothing to be reserved")
    upstream.go_on()


HELD = "result = dict(ctx.seen.held)"
SEEN = """
from ollama_auth.auth.limits import LocalTokens
look = LocalTokens.look
async def seen(self, *args):
    ctx.seen = self
    return await look(self, *args)
LocalTokens.look = seen
"""


def test_a_time_zone(upstream: Upstream, folder: Path) -> None:
    with Gate(upstream.url, *options(folder, "ollama_timezone=Pacific/Kiritimati"), key=None) as gate:
        seconds = int(talk(gate, "burst").headers["ratelimit"].rpartition("=")[2])
        assert abs(seconds - (86_400 - (time.time() + 14 * 3600) % 86_400)) < 20
    with Gate(upstream.url, *options(folder, "ollama_timezone=Mars/Base"), key=None, ready=False) as gate:
        assert gate.wait() == 1
        assert "ollama_timezone: no time zone 'Mars/Base' is known here" in gate.output


def test_a_body_that_can_not_be_read_is_refused(gate: Controlled, upstream: Upstream) -> None:
    """Its prompt could not be reserved. Keys without such a limit may send it."""
    with upstream.untouched():
        answer = ask(gate.port, "POST", "/v1/responses", bearer("burst"), "Content-Encoding: zstd", body=b"x" * 100)
    assert answer.status == 415
