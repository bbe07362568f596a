"""Builds the container image with Docker or else buildah. All builds of a commit have the same layers."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .terminal import ToolError, say

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "scripts" / "requirements.txt"
BASE = "docker.io/library/python:3.13-slim"
PYTHON = "3.13"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
EXAMPLES = """\
examples:
  scripts/image                  builds it, and says how to run it
  scripts/image --check          builds it and runs its tests
  scripts/image --wheels         asks whether every pin has a wheel for amd64 and arm64
"""


def run(*command: str | Path) -> None:
    """Run a program in the checkout. Raises ToolError if it fails; its own messages are above."""
    try:
        subprocess.run(command, cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        raise ToolError(f"{command[0]} failed with status {error.returncode}; see above") from None


def ask(*command: str) -> str:
    """The output of a program, or nothing if it does not exist or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def labels() -> dict[str, str]:
    """The build arguments that become labels. An unknown one keeps its default in the Dockerfile."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = {
        "VERSION": version,
        "REVISION": ask("git", "rev-parse", "HEAD"),
        "SOURCE": ask("git", "remote", "get-url", "origin"),
    }
    return {name: value for name, value in found.items() if value and (name != "SOURCE" or "https://" in value)}


def source_date() -> str:
    """The time of all files in the image, in seconds since 1970: that of the commit."""
    return os.environ.get("SOURCE_DATE_EPOCH") or ask("git", "log", "-1", "--format=%ct") or "0"


def build_arguments(**more: str) -> list[str]:
    return [word for name, value in (labels() | more).items() for word in ("--build-arg", f"{name}={value}")]


def with_docker(tag: str) -> None:
    """Build with BuildKit, which takes the times from SOURCE_DATE_EPOCH."""
    output = f"type=docker,name={tag},rewrite-timestamp=true"
    run("docker", "buildx", "build", *build_arguments(SOURCE_DATE_EPOCH=source_date()), "--output", output, ".")


def with_buildah(tag: str, *more: str, base: str = BASE) -> None:
    """Build as root, or in a user namespace that buildah makes. Isolation by chroot needs no further rights."""
    options = ["--isolation", "chroot", "--format", "docker", "--timestamp", source_date(), "--tag", tag]
    run("buildah", "bud", *options, *more, *build_arguments(PYTHON=base), ".")


def download(folder: Path, machine: str) -> None:
    """Download the pinned wheels for an image of that machine; pip checks their hashes."""
    tags = [word for tag in ("2014", "_2_17", "_2_28") for word in ("--platform", f"manylinux{tag}_{machine}")]
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"),
        *("--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *tags),
        *("--requirement", REQUIREMENTS, "--dest", folder),
    )


def check_wheels() -> None:
    """Check that every pin has a wheel for each machine. Raises ToolError."""
    for name, machine in MACHINES.items():
        with tempfile.TemporaryDirectory() as folder:
            download(Path(folder), machine)
            print(f"{name}: {len(list(Path(folder).iterdir()))} wheels, one for each pin")


def build(tag: str) -> None:
    """Build with what is installed. Raises ToolError."""
    if ask("docker", "info", "--format", "{{.ServerVersion}}"):
        with_docker(tag)
    elif shutil.which("buildah"):
        with_buildah(tag)
    else:
        raise ToolError("there is neither a Docker engine nor buildah: start Docker, or apt-get install buildah")


def check(tag: str) -> int:
    """Build with buildah and run the tests of the image. Returns their status; raises ToolError."""
    if missing := [tool for tool in ("buildah", "runc") if not shutil.which(tool)]:
        raise ToolError(f"the tests of the image need {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise ToolError("the tests of the image need root: they run containers with runc")
    path = os.pathsep.join([str(ROOT), str(ROOT / "addons")])
    environment = os.environ | {"OLLAMA_AUTH_IMAGE": tag, "PYTHONPATH": path}
    building = [sys.executable, "-m", "tests.harness.image_base", tag]
    tests = [sys.executable, "-m", "pytest", "tests/e2e/test_image.py", "-v", "-rs", "-s"]
    built = subprocess.run(building, cwd=ROOT, env=environment, check=False)
    return built.returncode or subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/image",
        description="Builds the image, with Docker or buildah.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--tag", default="localhost/ollama-auth:latest", help="its name (%(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="run its tests, too; needs buildah, runc and root")
    what.add_argument("--wheels", action="store_true", help="only ask for the wheels; needs the network")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    chosen = parse(arguments)
    try:
        if chosen.check:
            return check(chosen.tag)
        check_wheels() if chosen.wheels else build(chosen.tag)
    except ToolError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
