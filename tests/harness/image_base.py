"""python -m tests.harness.image_base TAG: build the image for its tests, also where no registry can be reached.

Then a stand-in replaces the Python base image: Debian with its own Python of the same number, at the same paths. The
tests show what the image does on it; it is not the image to ship. The stand-in and the wheels are kept in ~/.cache.
"""

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.tools.image import BASE, PYTHON, ask, download, run, with_buildah
from scripts.tools.terminal import ToolError, say

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ollama-auth"
STAND_IN = "localhost/ollama-auth-base:3.13"
DEBIAN = "trixie"  # The base image is made of it, too, and its own Python is 3.13.


def build(tag: str) -> None:
    """Build on the real base if it can be pulled, else on the stand-in. Raises ToolError."""
    if ask("buildah", "pull", "--quiet", BASE):
        with_buildah(tag)
        return
    say(f"{BASE} can't be pulled: building on a stand-in")
    make_stand_in()
    wheels = CACHE / "wheels"
    download(wheels, platform.machine())
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf:
        conf.write("[global]\nno-index = true\nfind-links = /wheels\n")
        conf.flush()
        offline = ["--pull-never", "--volume", f"{wheels}:/wheels:ro", "--secret", f"id=pip,src={conf.name}"]
        with_buildah(tag, *offline, base=STAND_IN)


def make_stand_in() -> None:
    """Make the image STAND_IN from an archive, which is made once. Raises ToolError."""
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
    """Write an archive of a small Debian that has a Python with pip in /usr/local, as the base image has it."""
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        raise ToolError("the stand-in is made by debootstrap, as root: apt-get install debootstrap")
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


if __name__ == "__main__":
    try:
        build(sys.argv[1])
    except ToolError as error:
        say(str(error))
        sys.exit(1)
