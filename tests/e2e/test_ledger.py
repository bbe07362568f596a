"""Who used what is still known after a restart and after a kill, and no fault of the file costs a request."""

import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ollama_auth.telemetry.usage_queries import latest, sums
from tests.harness.base import BEARER, KEY, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, Ready, assert_sound, log_lines
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head


def rows(file: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(file)) as connection:
        return latest(connection, limit=10**6)


def ledger_at(file: Path) -> tuple[str, ...]:
    return "--set", f"ollama_usage_db={file}"


def test_a_row_is_what_the_log_says_and_a_restart_adds_to_it(upstream: Upstream, tmp_path: Path) -> None:
    file, keys = tmp_path / "usage.db", tmp_path / "keys.toml"
    keys.write_text(entry("alice") + entry("bob", models=["demo"]))
    lines = []
    for start in (1, 2):
        env = {"OLLAMA_KEYS_FILE": str(keys), "OLLAMA_USAGE_DB": str(file)}
        with Gate(upstream.url, "--set", "ollama_access_log=-", key=None, env=env) as gate:
            ask(gate.port, "POST", "/api/chat", bearer("alice"), body=chat())
            ask(gate.port, "POST", "/api/chat", bearer("bob"), body=chat("other"))
            ask(gate.port, "POST", "/v1/chat/completions", bearer("bob"), body=chat("demo:latest", stream=True))
            ask(gate.port, "GET", "/api/tags?key=secret", BEARER)
            ask(gate.port, "GET", "/%0a%20")
            upstream.hold()
            with Wire(
                gate.port, head("POST", "/api/chat", bearer("alice"), f"Content-Length: {len(chat())}") + chat()
            ) as wire:
                wire.read_until(b'"done":false}\n')
            upstream.go_on()
            wait_until(lambda gate=gate: len(log_lines(gate)) == 6, "the log")
            gate.signal()
            assert gate.wait() == 0
            assert_sound(gate, upstream, running=False)
            lines += log_lines(gate)
        found = rows(file)[::-1]
        assert len(found) == 6 * start
    for row, line in zip(found, lines, strict=True):
        for name in ("id", "client", "method", "path", "status", "outcome", "bytes_in", "bytes_out", "duration_ms"):
            assert row[name] == line[name]
        assert row["reason"] == line.get("reason", "")
        assert row["time"] == pytest.approx(time_of(line), abs=0.001)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (
            line.get("prompt_tokens"), line.get("completion_tokens"),
        )  # fmt: skip
        assert row["estimated"] == line.get("estimated", False)
    assert Counter(row["key"] for row in found) == {"alice": 4, "bob": 4, "(unknown)": 2, "": 2}
    assert {row["model"] for row in found} == {"demo", "other", ""}
    with closing(sqlite3.connect(file)) as connection:
        totals = sums(connection, ("key",))
    assert totals["alice",].completion_tokens == sum(
        line.get("completion_tokens", 0) for line in lines if line.get("key") == "alice"
    )
    content = b"".join(one.read_bytes() for one in tmp_path.glob("usage.db*"))
    fingerprints = {line["key"] for line in lines if line.get("key", "").startswith("unknown:")}
    for secret in (KEY, bearer("alice"), "key=secret", "sky", *fingerprints):
        assert secret.encode() not in content


def time_of(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def test_a_kill_in_mid_load_loses_at_most_the_last_second(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    ended: list[tuple[float, str]] = []
    with Gate(upstream.url, *ledger_at(file)) as gate:

        def load() -> None:
            while True:
                try:
                    answer = ask(gate.port, "POST", "/api/chat", BEARER, body=chat())
                except (OSError, AssertionError, ValueError):
                    return
                ended.append((time.monotonic(), answer.headers["x-request-id"]))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(ended) > 100 and ended[-1][0] - ended[0][0] > 1.5, "a load")
        killed = time.monotonic()
        gate.signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    kept = {row["id"] for row in rows(file)}
    assert {number for moment, number in ended if moment < killed - 1} <= kept
    with closing(sqlite3.connect(file)) as connection:
        assert sums(connection, ())[()].requests == len(kept)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "locked", "locked at the end", "damaged"])
def test_a_fault_of_the_file_costs_no_request(fault: str, upstream: Upstream, tmp_path: Path) -> None:
    file = Path("/dev/full") if fault == "full" else tmp_path / "usage.db"
    if fault == "full" and not file.exists():
        pytest.skip("no /dev/full")
    if fault == "damaged":
        file.write_bytes(b"what is this? " * 1000)
    with closing(sqlite3.connect(file if "locked" in fault else ":memory:", isolation_level=None)) as other:
        if fault == "locked":
            other.execute("BEGIN EXCLUSIVE")
        with Gate(upstream.url, *ledger_at(file)) as gate:
            if fault == "locked at the end":
                other.execute("BEGIN EXCLUSIVE")
            for _ in range(3):
                assert ask(gate.port, "POST", "/api/chat", BEARER, body=chat()).status == 200
            if fault != "locked at the end":
                assert str(file) in gate.find("the ledger")
            gate.signal()
            assert gate.wait() == 0
            assert str(file) in gate.find("the ledger")
            assert sum("the ledger" in line for line in gate.lines) == 1
            assert_sound(gate, upstream, running=False)


def test_a_file_that_is_spoiled_is_found_by_who_reads_it(upstream: Upstream, tmp_path: Path) -> None:
    """Nothing is written meanwhile: the console asks, and once it was refused there is another file."""
    file = tmp_path / "usage.db"

    def status() -> int:
        return ask(watched.watch, "GET", "/console/requests", BEARER, "Host: localhost").status

    with Ready(upstream.url, *ledger_at(file)) as watched:
        for spoil in (file.unlink, partial(file.write_bytes, b""), partial(file.write_bytes, b"what is this? " * 1000)):
            assert ask(watched.port, "POST", "/api/chat", BEARER, body=chat()).status == 200
            wait_until(lambda: file.stat().st_size and rows(file), "the row")
            spoil()
            assert status() in (200, 503)
            wait_until(lambda: status() == 200, "another file")
        assert "the ledger" in watched.find("can't be used")
        assert_sound(watched)
        assert "status listener answered" not in watched.output


def test_a_path_that_can_not_be_written_is_an_error_of_the_start(upstream: Upstream, tmp_path: Path) -> None:
    with Gate(upstream.url, *ledger_at(tmp_path / "missing" / "usage.db"), ready=False) as gate:
        assert gate.wait() == 1
        assert "ollama_usage_db: can't write" in gate.output
        assert "listening" not in gate.output


def test_two_gates_share_a_file(upstream: Upstream, tmp_path: Path) -> None:
    """They count tokens together, too, also in a file that is begun anew: what is used up at one is so at the other."""
    file, keys, holder = tmp_path / "usage.db", tmp_path / "keys.toml", bearer("small")
    keys.write_text(entry("small", tokens_per_day=40, scopes=["all"]) + entry("late", tokens_per_day=40))
    keys.chmod(0o600)
    options = (*ledger_at(file), "--set", f"ollama_keys_file={keys}")
    with Gate(upstream.url, *options) as one, Gate(upstream.url, *options) as two:
        wait_until(
            lambda: ask(one.port, "POST", "/api/chat", holder, body=chat()).status == 429, "the end of the limit"
        )
        wait_until(lambda: ask(two.port, "GET", "/api/tags", holder).status == 429, "the other to know")
        with upstream.untouched():
            assert ask(two.port, "POST", "/api/chat", holder, body=chat()).status == 429
        for gate in (one, two) * 20:
            ask(gate.port, "GET", "/api/tags", BEARER)
        wait_until(lambda: len([row for row in rows(file) if row["key"] == "default"]) == 40, "the rows of both")
        for gate in (one, two):
            assert_sound(gate)
            assert "the ledger" not in gate.output
        file.unlink()
        late = bearer("late")
        wait_until(lambda: ask(one.port, "POST", "/api/chat", late, body=chat()).status == 429, "the end of the limit")
        for name in ("late", "small"):
            wait_until(lambda name=name: ask(two.port, "GET", "/api/tags", bearer(name)).status == 429, "the other")
        wait_until(lambda: rows(file), "rows")


CALLS = """
import sys
from collections import Counter
ctx.calls = Counter()
def count(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.endswith(("/ledger.py", "/usage_db.py")):
        ctx.calls[frame.f_code.co_name] += 1
sys.setprofile(count)
"""


@pytest.fixture
def gate(upstream: Upstream, tmp_path: Path) -> Iterator[Controlled]:
    with Controlled(upstream.url, *ledger_at(tmp_path / "usage.db"), "--set", "ollama_usage_days=7") as gate:
        yield gate


def test_a_token_costs_nothing(gate: Controlled) -> None:
    """The event loop calls as much of the ledger for an answer of one token as for a long one."""
    found = []
    for most in (1, 1, 1000):  # The first one starts it.
        gate.do(CALLS)
        answer = ask(gate.port, "POST", "/api/chat", BEARER, body=chat(stream=True, options={"num_predict": most}))
        assert (answer.body.count(b"\n") > 3) == (most > 1)
        found.append(
            wait_until(lambda: (calls := gate.do("result = sorted(ctx.calls.items())")) != "[]" and calls, "it")
        )
    assert found[1] == found[2]
    assert "('entry_of', 1)" in found[1]


def test_requests_go_after_their_days_and_sums_stay(gate: Controlled, tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    gate.do("from ollama_auth.telemetry import ledger; ledger.TRIM = 0")
    for days in (0, 5, 9):
        gate.do(f"from ollama_auth import clock; clock.offset = {days * 86_400}")
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
        wait_until(lambda days=days: rows(file) and rows(file)[0]["time"] > time.time() + (days - 1) * 86_400, "it")
    wait_until(lambda: len(rows(file)) == 2, "the first to go")
    gate.do("ctx.options.ollama_usage_days = 2")
    assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
    wait_until(lambda: [row["time"] > time.time() + 8 * 86_400 for row in rows(file)] == [True] * 2, "the next, too")
    with closing(sqlite3.connect(file)) as connection:
        assert sums(connection, ())[()].requests == 4
