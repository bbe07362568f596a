import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.harness.base import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {name: (ROOT / "scripts" / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")}
TOP_LEVEL = {"pyproject.toml", "README.md", "Dockerfile", "addons", "scripts", "tests"}


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
    copied = set(re.findall(r"scripts/[\w.]+\.txt", " ".join(re.findall(r"^COPY .*", dockerfile, re.MULTILINE))))
    tools = ("__init__", "__main__", "entrypoint", "launch", "mitmdump", "serve", "terminal")
    copied |= {f"scripts/tools/{name}.py" for name in tools}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    package = [path.relative_to(ROOT) for path in (ROOT / "addons" / "ollama_auth").rglob("*.*")]
    shown = {f"{path.parent}/*{path.suffix}" for path in package if path.suffix in (".py", ".html", ".css", ".js")}
    assert allowed == copied | shown | {"addons/auth.py"}


IMPORT_ALL = """
import sys
from importlib import import_module
from pathlib import Path
root = Path(sys.argv[1])
names = [".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")]
assert len(names) > 40
for name in names:
    module = import_module(name.removesuffix(".__init__"))
    assert Path(module.__file__).is_relative_to(root), module
assert (root / "ollama_auth" / "console" / "static" / "index.html").is_file()
"""


def import_all(root: Path) -> None:
    """Import every module that is there, from there."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(root)],
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_module_is_in_the_context_of_the_image(tmp_path: Path) -> None:
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        for path in ROOT.glob(line[1:]) if line.startswith("!addons") else ():
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    import_all(tmp_path / "addons")


def test_every_module_is_in_the_wheel(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(wheel, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(built, tmp_path / "site", "zip")
    import_all(tmp_path / "site")
