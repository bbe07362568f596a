import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support import ROOT, free_port

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {name: (ROOT / "scripts" / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")}
TOP_LEVEL = {"pyproject.toml", "README.md", "Dockerfile", "addons", "scripts", "tests"}
NO_KEY = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}


def pins(name: str) -> list[Requirement]:
    lines = PINS[name].replace("\\\n", " ").splitlines()
    return [Requirement(line.split(" --hash=")[0]) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("name", PINS)
def test_pins_name_no_index_and_no_place(name: str) -> None:
    assert not re.search(
        r"://|^ *-|index|find-links|@|file:", PINS[name].replace("    --hash=sha256:", ""), re.MULTILINE
    )


@pytest.mark.parametrize("name", PINS)
def test_everything_is_pinned_with_hashes(name: str) -> None:
    requirements = PINS[name].replace("\\\n", " ").splitlines()
    assert all("==" in line and "--hash=sha256:" in line for line in requirements if not line.startswith("#"))


def test_pins_cover_what_the_project_needs() -> None:
    run = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    dev = [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]
    for name, needed in {"requirements.txt": run, "requirements-dev.txt": run + dev}.items():
        pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins(name)}
        for requirement in needed:
            assert requirement.specifier.contains(pinned[requirement.name]), requirement.name


def test_tests_run_with_what_the_gate_runs_with() -> None:
    assert set(pins("requirements.txt")) <= set(pins("requirements-dev.txt"))


def test_the_top_level_is_what_was_agreed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name for file in files if not (name := file.split("/")[0]).startswith(".")} <= TOP_LEVEL


def test_commands_can_be_run() -> None:
    commands = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix]
    assert {"serve", "test"} <= {path.name for path in commands}
    for path in [*commands, ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path
        assert path.read_text().startswith("#!"), path


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if not hadolint:
        pytest.skip("no hadolint for this system")
    result = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_holds_what_its_program_needs_and_no_more() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = set(re.findall(r"scripts/[\w.]+\.(?:py|txt)", " ".join(re.findall(r"^COPY .*", dockerfile, re.MULTILINE))))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied | {"addons"}


def test_the_containers_program_refuses_to_start_without_a_key(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "entrypoint.py"), "--listen-port", str(free_port())]
    result = subprocess.run(
        command, env=NO_KEY | {"HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "OLLAMA_API_KEY" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / ".env.local").exists()


@pytest.mark.parametrize(
    ("answer", "ill"), [(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", False), (b"", True)]
)
def test_any_answer_is_a_sign_of_life(answer: bytes, ill: bool) -> None:
    match = re.search(r"^HEALTHCHECK .*\n\s+CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert match
    _, *command = json.loads(match[1])
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [part.replace("8081", str(server.getsockname()[1])) for part in command]
        with subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL) as check:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)
            assert bool(check.wait(timeout=10)) is ill
