"""Builds the image with what is here: Docker, else buildah. Each build of a commit gives the same layers.

Where the Python base image can't be had, buildah makes do with a stand-in: Debian with its own Python, at the same
paths. That shows what the image does; it is not the image to ship.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "scripts" / "requirements.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ollama-auth"
BASE = "docker.io/library/python:3.13-slim"
STAND_IN = "localhost/ollama-auth-base:3.13"
PYTHON = "3.13"
DEBIAN = "trixie"  # what the base image is made of, with a Python of the same number
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
EXAMPLES = """\
examples:
  scripts/image                  builds ollama-auth
  scripts/image --check          builds it and runs its tests
  scripts/image --wheels         asks whether every pin has a wheel for amd64 and arm64
"""


class Problem(Exception):
    """Why there is no image, and the remedy."""


def say(text: str) -> None:
    print(f"ollama-auth: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Raises Problem where it fails; what it said is above."""
    try:
        subprocess.run(command, cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        raise Problem(f"{command[0]} failed with status {error.returncode}; see above") from None


def ask(*command: str) -> str:
    """What a program says, or nothing where it isn't there or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def facts() -> dict[str, str]:
    """The build arguments: what the labels say. A value that nobody knows is left to the Dockerfile."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = {
        "VERSION": version,
        "REVISION": ask("git", "rev-parse", "HEAD"),
        "SOURCE": ask("git", "remote", "get-url", "origin"),
    }
    return {name: value for name, value in found.items() if value and (name != "SOURCE" or "https://" in value)}


def moment() -> str:
    """The time of everything in the image, in seconds since 1970: that of the commit."""
    return os.environ.get("SOURCE_DATE_EPOCH") or ask("git", "log", "-1", "--format=%ct") or "0"


def build_arguments(**more: str) -> list[str]:
    return [word for name, value in (facts() | more).items() for word in ("--build-arg", f"{name}={value}")]


# With Docker.


def with_docker(tag: str) -> None:
    """BuildKit takes the times from SOURCE_DATE_EPOCH."""
    output = f"type=docker,name={tag},rewrite-timestamp=true"
    run("docker", "buildx", "build", *build_arguments(SOURCE_DATE_EPOCH=moment()), "--output", output, ".")


# With buildah.


def with_buildah(tag: str) -> None:
    """As root, or in a user namespace that buildah makes; chroot needs no rights to make containers of its own."""
    build = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--timestamp", moment(), "--tag", tag]
    if ask("buildah", "pull", "--quiet", BASE):
        run(*build, *build_arguments(PYTHON=BASE), ".")
        return
    say(f"{BASE} can't be had: building on a stand-in")
    make_stand_in()
    wheels = CACHE / "wheels"
    download(wheels, platform.machine())
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf:
        conf.write("[global]\nno-index = true\nfind-links = /wheels\n")
        conf.flush()
        offline = ["--pull-never", "--volume", f"{wheels}:/wheels:ro", "--secret", f"id=pip,src={conf.name}"]
        run(*build, *offline, *build_arguments(PYTHON=STAND_IN), ".")


def make_stand_in() -> None:
    """Kept as an archive, so that it is made once."""
    if ask("buildah", "images", "--quiet", STAND_IN):
        return
    archive = CACHE / f"base-{DEBIAN}-{platform.machine()}.tar"
    if not archive.exists():
        bootstrap(archive)
    container = ask("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, archive, "/")
    run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
    run("buildah", "commit", "--quiet", "--rm", container, STAND_IN)


def bootstrap(archive: Path) -> None:
    """A small Debian, and in /usr/local a Python with pip, as the base image has them."""
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        raise Problem("the stand-in is made by debootstrap, as root: apt-get install debootstrap")
    archive.parent.mkdir(parents=True, exist_ok=True)
    include = f"--include=python{PYTHON},python{PYTHON}-venv,ca-certificates"
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder, "root")
        run("debootstrap", "--variant=minbase", include, DEBIAN, root)
        run("chroot", root, f"/usr/bin/python{PYTHON}", "-m", "venv", "/usr/local")
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / leftover, ignore_errors=True)
        part = Path(folder, "part")
        run("tar", "--create", "--file", part, "--directory", root, "--exclude=./dev/*", "--exclude=./proc/*", ".")
        part.rename(archive)


# Wheels.


def download(folder: Path, machine: str) -> None:
    """The pinned wheels for an image of that machine; pip compares their hashes with the pins."""
    tags = [word for tag in ("2014", "_2_17", "_2_28") for word in ("--platform", f"manylinux{tag}_{machine}")]
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"),
        *("--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *tags),
        *("--requirement", REQUIREMENTS, "--dest", folder),
    )


def check_wheels() -> None:
    for name, machine in MACHINES.items():
        with tempfile.TemporaryDirectory() as folder:
            download(Path(folder), machine)
            print(f"{name}: {len(list(Path(folder).iterdir()))} wheels, one for each pin")


def build(tag: str) -> None:
    if ask("docker", "info", "--format", "{{.ServerVersion}}"):
        with_docker(tag)
    elif shutil.which("buildah"):
        with_buildah(tag)
    else:
        raise Problem("there is neither a Docker engine nor buildah: start Docker, or apt-get install buildah")


def check(tag: str) -> int:
    """The image's tests, with the tools they need. Raises Problem."""
    if missing := [tool for tool in ("buildah", "runc") if not shutil.which(tool)]:
        raise Problem(f"the tests of the image need {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Problem("the tests of the image need root: they run containers with runc")
    with_buildah(tag)
    tests = [sys.executable, "-m", "pytest", "tests/e2e/test_image.py", "-v", "-rs", "-s"]
    return subprocess.run(tests, cwd=ROOT, env=os.environ | {"OLLAMA_AUTH_IMAGE": tag}, check=False).returncode


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
    except Problem as problem:
        say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
