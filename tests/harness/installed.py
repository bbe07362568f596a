"""Clients that tests install themselves: packages of npm, and Python packages that don't fit beside mitmproxy's.

Each set is installed once, by its lock file, into a folder of ~/.cache that is named after the digest of that file.
"""

import fcntl
import functools
import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.base import ROOT
from tests.harness.image_base import CACHE
from tests.harness.programs import tool

CLIENTS = ROOT / "tests" / "harness" / "clients"
REQUIREMENTS = ROOT / "scripts" / "requirements-clients.txt"
PATIENCE = 150.0
UNUSED_FOR = 30 * 86400.0
"""Seconds after which a folder that no test has used goes."""

UNREACHABLE = "ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|ENETUNREACH|Failed to fetch|Could not connect"
"""What npm and uv say then."""


@functools.cache
def node_modules(name: str) -> Path:
    """The node_modules of tests/harness/clients/`name`. The test is skipped without npm, Node 20, or the registry."""
    npm = tool("npm")
    found = subprocess.run([tool("node"), "--version"], capture_output=True, text=True, check=True).stdout
    if int(found.lstrip("v").partition(".")[0]) < 20:
        pytest.skip(f"Node is {found.strip()}, and these clients need 20")
    manifest = CLIENTS / name

    def install(folder: Path) -> None:
        shutil.copytree(manifest, folder, dirs_exist_ok=True)
        subprocess.run([npm, "ci"], cwd=folder, check=True, timeout=PATIENCE, capture_output=True)

    return installed(f"{name}-node", manifest / "package-lock.json", install) / "node_modules"


@functools.cache
def python() -> Path:
    """The path of a Python that has REQUIREMENTS. The test is skipped if they can't be downloaded."""
    uv = tool("uv")

    def install(folder: Path) -> None:
        for command in (
            ("venv", "--quiet", "--python", sys.executable, folder),
            ("pip", "install", "--python", folder, "--compile-bytecode", "--require-hashes", "-r", REQUIREMENTS),
        ):
            # In the checkout, uv would read pyproject.toml as well.
            subprocess.run([uv, *command], cwd=folder, check=True, timeout=PATIENCE, capture_output=True)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return installed(f"python{version}", REQUIREMENTS, install) / "bin" / "python"


def installed(kind: str, lock_file: Path, install: Callable[[Path], None]) -> Path:
    """The folder that `install` has filled, now or in an earlier run; the one that it fills need not be there."""
    folder = CACHE / "clients" / f"{kind}-{hashlib.sha256(lock_file.read_bytes()).hexdigest()[:16]}"
    done = folder / "installed"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                install(folder)
            done.touch()
            for other in folder.parent.glob("*/installed"):
                if other.stat().st_mtime < time.time() - UNUSED_FOR:
                    shutil.rmtree(other.parent, ignore_errors=True)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{kind} could not be installed in {PATIENCE} s")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace")
        assert re.search(UNREACHABLE, said), said
        pytest.skip(f"{kind} could not be installed, for the registry can't be reached: {said[-300:]}")
    return folder
