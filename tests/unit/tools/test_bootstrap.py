import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import bootstrap
from tests.harness.base import ROOT

RUN, DEV = bootstrap.REQUIREMENTS


class Machine:
    """An empty checkout, and a record of what was run there, instead of running it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.python = "3.13"
        for name in bootstrap.REQUIREMENTS:
            (folder / name).write_text(name)
        monkeypatch.setattr(bootstrap, "SCRIPTS", folder)
        monkeypatch.setattr(bootstrap, "STAMP", folder / "installed")
        monkeypatch.setattr(bootstrap, "version", lambda: self.python)
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, command: list[str], **_: Any) -> None:
        self.ran.append(command[2])

    def prepare(self, requirements: str) -> list[str]:
        self.ran.clear()
        bootstrap.prepare(requirements, lock=0)
        return self.ran


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_fresh_checkout_gets_an_environment_once(machine: Machine) -> None:
    assert machine.prepare(RUN) == ["venv", "pip"]
    assert machine.prepare(RUN) == []


def test_what_tests_need_is_added_to_it(machine: Machine) -> None:
    machine.prepare(RUN)
    assert machine.prepare(DEV) == ["pip"]
    assert machine.prepare(RUN) == []


def test_changed_requirements_are_installed_into_it(machine: Machine) -> None:
    machine.prepare(RUN)
    machine.prepare(DEV)
    for name in (RUN, DEV):
        (machine.folder / name).write_text(f"{name}, changed")
    assert machine.prepare(RUN) == ["pip"]
    assert machine.prepare(DEV) == ["pip"]


def test_one_that_was_left_half_made_is_made_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], **_: Any) -> None:
        if command[2] == "pip":
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        machine.prepare(RUN)
    monkeypatch.setattr(subprocess, "run", machine.run)
    assert machine.prepare(RUN) == ["venv", "pip"]


@pytest.mark.parametrize("python", ["", "3.14"])
def test_one_whose_python_vanished_or_changed_is_made_anew(machine: Machine, python: str) -> None:
    machine.prepare(RUN)
    machine.python = python
    assert machine.prepare(RUN) == ["venv", "pip"]


def test_a_stamp_that_cannot_be_read_counts_for_nothing(machine: Machine) -> None:
    machine.prepare(RUN)
    (machine.folder / "installed").write_text('{"python": "3.')
    assert machine.prepare(RUN) == ["venv", "pip"]


def fake_python(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("where", ["bin/python3.13", "bin/python", "pyenv/versions/3.12.1/bin/python"])
def test_a_python_is_found_by_running_it(tmp_path: Path, where: str) -> None:
    fake_python(tmp_path / "bin" / "python3", "exit 1")  # one that is too old
    fake_python(tmp_path / where, f'exec "{sys.executable}" "$@"')
    (tmp_path / "bin" / "dirname").symlink_to("/usr/bin/dirname")
    (scripts := tmp_path / "a checkout" / "scripts").mkdir(parents=True)
    (scripts / "python.sh").write_bytes((ROOT / "scripts" / "python.sh").read_bytes())
    (scripts / "bootstrap.py").write_text("import sys; print(sys.argv[1:])")
    result = subprocess.run(
        ["/bin/sh", str(scripts / "python.sh"), RUN, "serve.py", "two words"],
        env={"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "PYTHON": "/nowhere/python"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{[RUN, 'serve.py', 'two words']}\n"
