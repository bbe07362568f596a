"""The wheel, installed into an empty environment: its contents, its commands, and that no file of it opens the door."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from pathlib import Path

import pytest

from tests.harness.base import BEARER, ROOT, free_port
from tests.harness.gate import Gate
from tests.harness.serve import CLEAN
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

pytestmark = pytest.mark.slow
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
LOADS = """
import logging, sys
from mitmproxy.addons.script import load_script
logging.disable()
print(*(path for path in sys.argv[1:] if load_script(path)))
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment in which the wheel is, and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    programs = folder / "env" / SCRIPTS
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "-qq", str(wheel)]
    subprocess.run(pip, check=True)
    return programs


def run(*command: str | Path, folder: Path, status: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@contextmanager
def demo(*command: str | Path, folder: Path) -> Iterator[int]:
    """Run `serve --demo` with that command, and yield its port."""
    port = free_port()
    arguments = ["--demo", "--listen-host", "127.0.0.1", "-p", str(port), "--set", f"confdir={folder}"]
    command = (*command, *arguments)
    with subprocess.Popen(command, cwd=folder, env=CLEAN, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert any("listening on" in line for line in process.stdout)
            yield port
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_what_it_says_of_itself(programs: Path) -> None:
    (metadata,) = programs.parent.glob("**/ollama_auth-*.dist-info/METADATA")
    found = message_from_string(metadata.read_text())
    assert (found["License-Expression"], found["Author"]) == ("MIT", "The ollama-auth authors")
    assert set(found.get_all("Provides-Extra", [])) == {"all", "fast", "keys", "limits", "metrics"}
    assert {entry.partition(",")[0] for entry in found.get_all("Project-URL", [])} >= {"Repository", "Issues"}
    package = metadata.parents[1] / "ollama_auth"
    assert (package / "LICENSE").read_text().startswith("MIT License")
    assert (package / "py.typed").exists()
    assert not (package / "tools" / "bench").exists()


def test_its_commands(programs: Path, tmp_path: Path) -> None:
    command = programs / "ollama-auth"
    module = (programs / "python", "-m", "ollama_auth")
    assert run(*module, "--version", folder=tmp_path) == "ollama-auth 0.1.0\n"
    names = set(re.findall(r"ollama-auth (\w+)", run(command, "--help", folder=tmp_path)))
    assert names == {"keys", "usage", "doctor", "addon", "serve"}
    for name in names - {"addon"}:
        said = run(command, name, "--help", folder=tmp_path)
        assert f"ollama-auth {name}" in said
        assert "scripts/" not in said
    assert run(*module, "keys", "new", folder=tmp_path).startswith("sk-ollama-")
    assert "there is no command kyes" in run(command, "kyes", folder=tmp_path, status=1)
    (tmp_path / "access.log").write_text("no line of a log")
    assert "no request" in run(command, "usage", "access.log", folder=tmp_path, status=1)
    unused = f"--listen-port={free_port()}"
    report = json.loads(run(command, "doctor", "--json", "--listen-host=127.0.0.1", unused, folder=tmp_path, status=1))
    assert {one["where"] for one in report["findings"] if one["level"] == "bad"} == {"http://127.0.0.1:11434"}


def test_one_line_starts_a_guarded_chat(programs: Path, tmp_path: Path) -> None:
    with demo(programs / "ollama-auth", folder=tmp_path) as port:
        key = (tmp_path / ".env.local").read_text().splitlines()[0].partition("=")[2]
        assert ask(port, "POST", "/api/chat", body=chat()).status == 401
        answer = ask(port, "POST", "/api/chat", f"Authorization: Bearer {key}", body=chat())
        assert (answer.status, b'"done":true' in answer.body) == (200, True)


def test_what_ci_runs_on_each_system(programs: Path, tmp_path: Path) -> None:
    smoke = ROOT / "tests" / "tools" / "smoke.py"
    said = run(sys.executable, smoke, programs / "ollama-auth", folder=tmp_path)
    assert "smoke: the gate guards" in said
    addon = ROOT / "addons" / "ollama_auth" / "__main__.py"
    assert "did not start" in run(sys.executable, smoke, programs / "mitmdump", "-s", addon, folder=tmp_path, status=1)


def test_its_addon_guards_and_each_other_file_refuses(programs: Path, tmp_path: Path, upstream: Upstream) -> None:
    addon = Path(run(programs / "ollama-auth", "addon", folder=tmp_path).strip())
    files = sorted(map(str, addon.parent.rglob("*.py")))
    assert len(files) > 80
    assert run(programs / "python", "-c", LOADS, *files, folder=tmp_path).split()[-1:] == [str(addon)]
    with Gate(upstream.url, script=addon, program=str(programs / "mitmdump")) as gate:
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags").status == 401
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
    other = addon.parent / "tools" / "mitmdump.py"
    with Gate(upstream.url, script=other, program=str(programs / "mitmdump"), ready=False) as gate:
        assert gate.wait() == 1
        assert "ImportError" in gate.output
