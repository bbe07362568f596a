"""A keys file that is mounted by itself, as `docker run -v ./keys.toml:/keys.toml` does, and replaced outside."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.base import KEY, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.fork_server import Forked
from tests.harness.gate import Controlled
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


def may_mount() -> bool:
    if not (shutil.which("unshare") and os.geteuid() == 0):
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not may_mount(), reason="mounting needs root, and a system that has it")


class Mounted(Controlled):
    """A gate in a namespace of its own, in which `file` is mounted at `place`."""

    def __init__(self, upstream: str, file: Path, place: Path, *args: str) -> None:
        self.mount = ["unshare", "-m", "sh", "-c", BIND, "sh", str(file), str(place)]
        super().__init__(upstream, *args, env={"OLLAMA_KEYS_FILE": str(place)})

    def _start(
        self, program: str, command: list[str], env: dict[str, str], cwd: str, fork: bool
    ) -> Forked | subprocess.Popen[bytes]:
        words = [*self.mount, *command]
        return subprocess.Popen(words, env=env, cwd=cwd, stdout=self._out, stderr=subprocess.STDOUT)


@contextmanager
def mounted(upstream: Upstream, folder: Path, *args: str) -> Iterator[tuple[Controlled, Path]]:
    (host := folder / "a host").mkdir()
    (place := folder / "keys.toml").touch()
    (file := host / "keys.toml").write_text(entry("alice") + entry("bob"))
    file.chmod(0o600)
    with Mounted(upstream.url, file, place, *args) as gate:
        yield gate, file


def replace(file: Path, how: str) -> None:
    """Take bob's key away, as scripts/keys does, as an editor that keeps a backup does, or as rm and a new file do."""
    new = file.with_suffix(".new")
    new.write_text(entry("alice"))
    if how == "a backup":
        file.rename(file.with_suffix(".old"))
    elif how == "removed":
        file.unlink()
    new.rename(file)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["renamed over", "a backup", "removed"])
def test_keys_that_may_be_revoked_are_denied_after_a_time(upstream: Upstream, tmp_path: Path, how: str) -> None:
    with mounted(upstream, tmp_path) as (gate, file):
        assert "mounted by itself" in gate.find("mount its folder")
        assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 200
        replace(file, how)
        gate.find("its keys are accepted for 300 s more: was replaced outside")
        assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 200
        gate.signal(1)  # SIGHUP
        wait_until(lambda: gate.output.count("s more: was replaced outside") > 1, "it to be said again")
        gate.do("from ollama_auth import clock; clock.offset += 61")
        wait_until(lambda: gate.output.count("s more: was replaced outside") > 2, "it to be said again")
        gate.do("from ollama_auth import clock; clock.offset += 240")
        gate.find("its keys are denied")
        with upstream.untouched():
            for name in ("alice", "bob"):
                assert ask(gate.port, "GET", "/api/tags", bearer(name)).status == 401
        assert ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {KEY}").status == 200
        assert "was read again" not in gate.output


@pytest.mark.slow
def test_at_once_by_option(upstream: Upstream, tmp_path: Path) -> None:
    with mounted(upstream, tmp_path, "--set", "ollama_replaced_keys_timeout=0") as (gate, file):
        assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 200
        replace(file, "renamed over")
        gate.find("its keys are denied")
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 401


@pytest.mark.slow
def test_a_change_in_place_is_seen(upstream: Upstream, tmp_path: Path) -> None:
    with mounted(upstream, tmp_path) as (gate, file):
        assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 200
        file.write_text(entry("alice"))
        gate.find("was read again")
        assert ask(gate.port, "GET", "/api/tags", bearer("bob")).status == 401
        assert ask(gate.port, "GET", "/api/tags", bearer("alice")).status == 200
        assert "replaced outside" not in gate.output
