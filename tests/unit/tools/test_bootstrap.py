import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import bootstrap
from tests.harness.base import ROOT, wait_until

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
        monkeypatch.setattr(bootstrap, "VENV", folder / ".venv")
        monkeypatch.setattr(bootstrap, "run", self.run)

    def run(self, command: list[str], lock: int) -> None:
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
    def killed(command: list[str], lock: int) -> None:
        if command[2] == "pip":
            raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        machine.prepare(RUN)
    monkeypatch.setattr(bootstrap, "run", machine.run)
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
        env={"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{[RUN, 'serve.py', 'two words']}\n"


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python", "old"])
def test_a_python_that_will_not_do_is_an_error(tmp_path: Path, python: str) -> None:
    fake_python(tmp_path / "old", "case $2 in *print*) echo Python 3.11.2 ;; *) exit 1 ;; esac")
    env = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / python)}
    done = subprocess.run([ROOT / "scripts" / "serve"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"PYTHON={tmp_path / python} is not Python 3.12 or newer" in done.stderr
    assert ("(Python 3.11.2)" in done.stderr) == (python == "old")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment, in a path with a space."""
    folder = tmp_path / "a checkout"
    for name in ("scripts", "addons"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


BASE = str(Path(sys.base_prefix, "bin", "python3"))
"""A Python without our libraries."""
COMMANDS = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and not path.suffix]


@pytest.mark.slow
def test_help_and_version_need_no_environment(checkout: Path, tmp_path: Path) -> None:
    """They are asked through a link, in another folder."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": BASE}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for command in COMMANDS:
        (link := tmp_path / "link").symlink_to(checkout / "scripts" / command.name)
        for argument, said in (("--help", command.name), ("--version", f"ollama-auth {version}\n")):
            done = subprocess.run([link, argument], env=env, cwd="/", capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), command
            assert said in done.stdout or command.name == "refresh-pins"
        link.unlink()
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("fault", ["not writable", "of another user", "a link"])
def test_an_environment_that_can_not_be_made(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """Nothing is removed, and nothing is run."""
    if fault == "not writable":
        monkeypatch.setattr(os, "access", lambda *_: False)
    elif fault == "of another user":
        (machine.folder / ".venv").mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        (machine.folder / "elsewhere").mkdir()
        (machine.folder / ".venv").symlink_to(machine.folder / "elsewhere")
    with pytest.raises(SystemExit):
        machine.prepare(RUN)
    assert machine.ran == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "network" not in said


def test_an_interrupt_while_it_is_made_is_one_line(tmp_path: Path) -> None:
    """What was started ends as well, with what that has started."""
    begun, code = tmp_path / "begun", "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = f"import os, pathlib, time; pathlib.Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(60)"
    main = f"""if True:
        from scripts import bootstrap
        bootstrap.prepare = lambda _, lock: bootstrap.run([{sys.executable!r}, "-c", {code!r}, {child!r}], lock)
        bootstrap.main("requirements.txt", "serve")"""
    with subprocess.Popen([sys.executable, "-c", main], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        pid = int(str(wait_until(lambda: begun.exists() and begun.read_text(), "the child to begin")))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=90)
    assert (process.returncode, said) == (130, "ollama-auth: interrupted\n")
    wait_until(lambda: not running(pid), "the child to end")


def running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
