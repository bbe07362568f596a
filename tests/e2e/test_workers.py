"""Several gates on one port: each denies and serves as one does, they count together, start again and stop together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ollama_auth.telemetry import workers
from tests.harness.base import BEARER, KEY, PATIENCE, ROOT, free_port, wait_until
from tests.harness.gate import certificate_authority
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="ports can't be shared on this system"),
]
parse_text: Any = text_string_to_metric_families


class Team:
    """scripts/serve --workers, in a folder of its own."""

    def __init__(self, upstream: str, folder: Path, *args: str, count: int = 2, **env: str) -> None:
        self.count = count
        self.port, self.watch = free_port(), free_port()
        self.out = folder / "out"
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
        variables |= {"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream}
        variables |= {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{self.watch}"} | env
        words = ("--listen-host", "127.0.0.1", "--listen-port", str(self.port), "--set", f"confdir={folder}/conf")
        shutil.copytree(certificate_authority(), folder / "conf")
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "tools"), "serve", "--workers", str(count), *words, *args],
                cwd=folder,
                env=variables,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> Self:
        up = wait_until(lambda: self.output.count("listening on") >= self.count or self.process.poll(), "them", 60)
        assert up is True, self.output
        return self

    @property
    def output(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pids = self.pids if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(PATIENCE)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def team(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with Team(shared_upstream.url, folder, OLLAMA_USAGE_DB=str(folder / "usage.db")) as team:
        yield team.ready()


def test_each_serves_and_each_denies(team: Team, upstream: Upstream) -> None:
    """The kernel hands connections out by their ports: of 64, each of two gets some, but for once in 2^63 runs."""
    with ExitStack() as stack:
        held = files(team)
        for _ in range(64):
            stack.enter_context(Wire(team.port))
        wait_until(lambda: sum(files(team)) >= sum(held) + 64, "all to be taken in")
        assert all(after > before for before, after in zip(held, files(team), strict=True))
    before = asked_of_each(team)
    for _ in range(64):
        assert ask(team.port, "GET", "/api/version", BEARER).status == 200
    with upstream.untouched():
        for _ in range(64):
            assert ask(team.port, "GET", "/api/version").status == 401
    wait_until(lambda: sum(asked_of_each(team)) >= sum(before) + 128, "all lines of the log")
    assert len(team.pids) == 2


def files(team: Team) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in sorted(team.pids)]


def asked_of_each(team: Team) -> list[int]:
    return [team.output.count("GET /api/version 200"), team.output.count("GET /api/version 401")]


def test_they_count_together(team: Team, upstream: Upstream) -> None:
    before = counted(team), on_the_page(team)
    for _ in range(20):
        ask(team.port, "POST", "/api/chat", BEARER, body=chat())
    wait_until(lambda: counted(team) == before[0] + 20, "the metrics")
    wait_until(lambda: on_the_page(team) == before[1] + 20, "the overview")


def counted(team: Team) -> float:
    families = parse_text(ask(team.watch, "GET", "/metrics", "Host: localhost").body.decode())
    name, labels = "ollama_auth_requests_total", {"class": "infer", "key": "default", "status": "200"}
    samples = (sample for family in families for sample in family.samples)
    return float(sum(sample.value for sample in samples if sample.name == name and sample.labels == labels))


def on_the_page(team: Team) -> int:
    status = ask(team.watch, "GET", "/console/overview", "Host: localhost").json
    return sum(row["requests"] for row in status["models"])


def test_what_each_has_under_way_is_seen(team: Team, upstream: Upstream) -> None:
    upstream.hold()
    with ExitStack() as stack:
        request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()
        wires = [stack.enter_context(Wire(team.port, request)) for _ in range(12)]
        for wire in wires:
            wire.read_until(b'"done":false}\n')
        wait_until(lambda: under_way(team) == 12, "all of them on the status page")
        upstream.go_on()
        for wire in wires:
            wire.read_until(b"0\r\n\r\n")
    wait_until(lambda: under_way(team) == 0, "all of them to end")


def under_way(team: Team) -> int:
    return int(ask(team.watch, "GET", "/console/overview", "Host: localhost").json["in_flight_total"])


def test_one_that_is_killed_is_started_again(upstream: Upstream, tmp_path: Path) -> None:
    with Team(upstream.url, tmp_path) as team:
        first = team.ready().pids
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: team.output.count("listening on") == 3, "another one", 60)
        assert len(team.pids) == 2
        assert first[0] not in team.pids
        assert "ended by itself (status -9); it is started again" in team.output
        for _ in range(8):
            assert ask(team.port, "GET", "/api/version", BEARER).status == 200


def test_all_drain_and_end_together(upstream: Upstream, tmp_path: Path) -> None:
    upstream.hold()
    with Team(upstream.url, tmp_path) as team, ExitStack() as stack:
        team.ready()
        pids = team.pids
        request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()
        wires = [stack.enter_context(Wire(team.port, request)) for _ in range(12)]
        for wire in wires:
            wire.read_until(b'"done":false}\n')
        team.process.send_signal(signal.SIGTERM)
        wait_until(lambda: team.output.count("ollama_auth: stopping") or not refused(team), "the drain")
        upstream.go_on()
        for wire in wires:
            wire.read_until(b'"done":true')
            wire.read_until(b"0\r\n\r\n")
        assert team.process.wait(PATIENCE) == 0, team.output
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def refused(team: Team) -> bool:
    try:
        return ask(team.port, "GET", "/").status == 401
    except (AssertionError, OSError):
        return False


def test_none_outlives_its_supervisor(upstream: Upstream, tmp_path: Path) -> None:
    with Team(upstream.url, tmp_path) as team:
        pids = team.ready().pids
        team.process.kill()
        team.process.wait(PATIENCE)
        wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "them to end")


def test_a_configuration_that_can_not_work_ends_them_all_with_its_word(upstream: Upstream, tmp_path: Path) -> None:
    with Team(upstream.url, tmp_path, "--set", "ollama_max_head=0") as team:
        assert team.process.wait(60) == 1
        assert "ollama_max_head is 0" in team.output


def test_limits_that_each_would_count_for_itself_are_refused(upstream: Upstream, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "anna"\nsha256 = "{"0" * 64}"\nrequests_per_minute = 5\n')
    keys.chmod(0o600)
    with Team(upstream.url, tmp_path, OLLAMA_KEYS_FILE=str(keys)) as team:
        assert team.process.wait(60) == 1
        assert "set ollama_limits_storage=redis://HOST:6379, or run one worker" in team.output


def test_a_number_that_is_none_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    with Team(upstream.url, tmp_path, count=0) as team:
        assert team.process.wait(60) == 1
        assert "--workers takes a number from 1" in team.output


def test_a_port_that_others_listen_on_is_refused(team: Team, upstream: Upstream, tmp_path: Path) -> None:
    """The kernel would share it with them, and a key that is revoked here be good for every other request."""
    with Team(upstream.url, tmp_path, "--listen-port", str(team.port)) as late:
        wait_until(lambda: late.process.poll() is not None or late.output.count("listening on"), "it to decide", 60)
        assert late.process.poll() == 1
        assert f"port {team.port} is taken" in late.output


def test_metrics_on_the_port_of_the_gates_are_refused(upstream: Upstream, tmp_path: Path) -> None:
    port = free_port()
    with Team(upstream.url, tmp_path, "--listen-port", str(port), OLLAMA_METRICS_LISTEN=f"127.0.0.1:{port}") as team:
        wait_until(lambda: team.process.poll() is not None or team.output.count("listening on"), "it to decide", 60)
        assert team.process.poll() == 1
        assert f"port {port} is the gate's own" in team.output


# What they tell each other.


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("", 1), ("x", 1), ("0", 1), ("-1", 1)])
def test_how_many_there_are(text: str, count: int) -> None:
    assert workers.count({"OLLAMA_WORKERS": text}) == count
    assert workers.count({}) == 1


def test_what_others_wrote(tmp_path: Path) -> None:
    workers.publish(tmp_path, {"in_flight_total": 1})
    assert workers.others(tmp_path) == [], "what this one wrote is not another's"
    (fresh := tmp_path / "status-1.json").write_text(json.dumps({"in_flight_total": 2}))
    (stale := tmp_path / "status-2.json").write_text(json.dumps({"in_flight_total": 3}))
    (tmp_path / "status-3.json").write_text('{"torn')
    os.utime(stale, (time.time() - 60,) * 2)
    found = workers.others(tmp_path)
    assert [state["in_flight_total"] for state in found] == [2], "one that has ended has nothing under way"
    fresh.unlink()
    workers.publish(tmp_path / "gone", {})


def test_one_alone_shares_nothing() -> None:
    assert workers.folder({"PROMETHEUS_MULTIPROC_DIR": "/tmp"}) is None  # noqa: S108, nothing is written there
    assert workers.folder({"PROMETHEUS_MULTIPROC_DIR": "/x", "OLLAMA_WORKERS": "2"}) == Path("/x")
