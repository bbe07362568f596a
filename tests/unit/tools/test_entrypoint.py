"""The container's program, here without its container; test_image.py shows it in one."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from scripts.tools import entrypoint
from scripts.tools.entrypoint import JsonLines, arguments_of, healthy
from tests.harness.base import BEARER, KEY, ROOT, free_port, wait_until
from tests.harness.cases import each_of
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

ENTRYPOINT = (str(ROOT / "scripts" / "tools"), "entrypoint")
NO_KEY = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}


@pytest.mark.slow
def test_it_refuses_to_start_without_a_key(tmp_path: Path) -> None:
    command = [sys.executable, *ENTRYPOINT, "--listen-port", str(free_port())]
    result = subprocess.run(
        command, env=NO_KEY | {"HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "OLLAMA_API_KEY" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / ".env.local").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--set", "ollama_access_log=")], ids=["json", "as told"])
def test_all_it_says_is_json_unless_it_is_told_otherwise(upstream: Upstream, tmp_path: Path, more: tuple[str]) -> None:
    port = free_port()
    command = [sys.executable, *ENTRYPOINT, "--listen-host", "127.0.0.1", "--listen-port", str(port), *more]
    env = NO_KEY | {"HOME": str(tmp_path), "OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream.url}
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_until(lambda: "listening on" in (tmp_path / "out").read_text(), "the gate to start", 30)
            assert ask(port, "GET", "/api/tags", BEARER).status == 200
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    lines = (tmp_path / "out").read_text().splitlines()
    if more:
        assert not any(line.startswith("{") for line in lines)
    else:
        said = list(map(json.loads, lines))
        assert all(one["time"].endswith("Z") for one in said)
        assert any(one.get("message", "").startswith("ollama_auth: guarding") for one in said)
        assert [one["status"] for one in said if "status" in one] == [200]


@pytest.mark.parametrize(
    ("written", "messages"),
    [
        (("[09:15:11.824] a", "\n"), ["a"]),
        (("a\nb\n",), ["a", "b"]),
        (("a", "b\n", "c"), ["ab"]),
        (('"\x1b[31m\udcff\n',), ['"\x1b[31m\udcff']),
        (("\n",), [""]),
        ((), []),
    ],
)
def test_a_line_that_is_printed_is_a_line_of_json(tmp_path: Path, written: tuple[str], messages: list[str]) -> None:
    with (tmp_path / "out").open("wb") as out:
        lines = JsonLines(out.fileno())
        for text in written:
            lines.write(text)
    assert [json.loads(line)["message"] for line in (tmp_path / "out").read_text().splitlines()] == messages


@each_of(
    ("command_line", "arguments"),
    [
        (b"python\0/app/scripts/tools\0entrypoint\0", []),
        (b"python\0/app/scripts/tools\0entrypoint\0-p\x009000\0", ["-p", "9000"]),
        (b"tini\0--\0python\0/app/scripts/tools\0entrypoint\0-p\x009000\0", ["-p", "9000"]),
        (b"sleep\0inf\0", []),
        (b"", []),
        (b"python\0scripts/tools\0entrypoint\0\xff\0", ["\udcff"]),
    ],
)
def test_the_health_check_looks_where_the_gate_was_told_to_listen(command_line: bytes, arguments: list[str]) -> None:
    assert arguments_of(command_line) == arguments


@each_of(
    ("answer", "well"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", True),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
def test_any_answer_is_a_sign_of_life(answer: bytes, well: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        assert healthy(["--listen-port", str(server.getsockname()[1])]) is well


def test_nobody_there_is_ill() -> None:
    assert not healthy(["--listen-port", str(free_port())])


@pytest.mark.parametrize(
    ("mounted", "writable", "given", "expected"),
    [
        (True, True, {}, "/data/usage.db"),
        (True, True, {"OLLAMA_USAGE_DB": "/x"}, "/x"),
        (True, True, {"OLLAMA_USAGE_DB": ""}, ""),
        (True, False, {}, None),
        (False, True, {}, None),
    ],
)
def test_a_volume_keeps_the_ledger(
    mounted: bool,
    writable: bool,
    given: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("runpy.run_path", lambda *_, **__: None)
    monkeypatch.setattr(entrypoint, "prepare_for_pid_1", lambda: None)
    monkeypatch.setattr(entrypoint, "check_start", lambda _: None)
    monkeypatch.setattr(Path, "is_mount", lambda _: mounted)
    monkeypatch.setattr(os, "access", lambda path, _: writable or path != entrypoint.DATA)
    monkeypatch.delenv("OLLAMA_USAGE_DB", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["entrypoint"])
    with mock.patch.dict(os.environ):
        entrypoint.run(["--set", "ollama_access_log=/dev/null"])
        assert os.environ.get("OLLAMA_USAGE_DB") == expected
    assert ("may not write /data" in capsys.readouterr().err) == (mounted and not writable)
