"""The image, as `scripts/image --check` built it: in runc, with no more rights than a careful operator gives it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from tests.harness.base import BEARER, KEY, ROOT, free_port, wait_until
from tests.harness.gate import log_lines, streams
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

IMAGE = os.environ.get("OLLAMA_AUTH_IMAGE", "")
ID = 65532
SLOW = 120.0
"""Seconds that buildah and runc may take."""
MEGABYTE = 1 << 20
SECRET_FILE = "/run/secrets/ollama_api_key"

pytestmark = [
    pytest.mark.skipif(not IMAGE, reason="scripts/image --check builds the image, and runs these"),
    pytest.mark.timeout(300),
]


def command(*words: str | Path, **options: Any) -> str:
    """What a program says; it must succeed."""
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=SLOW, **options)
    return str(run.stdout).strip()


@dataclass(frozen=True)
class Image:
    """A built image, unpacked."""

    root: Path
    config: dict[str, Any]
    blobs: Path
    manifest: dict[str, Any]

    @staticmethod
    @contextmanager
    def unpacked(name: str) -> Iterator["Image"]:
        container = command("buildah", "from", "--pull-never", name)
        try:
            with tempfile.TemporaryDirectory() as folder:
                command("buildah", "push", "--quiet", name, f"oci:{folder}:x")
                blobs = Path(folder, "blobs", "sha256")
                index = json.loads(Path(folder, "index.json").read_text())
                manifest = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
                config = json.loads(command("buildah", "inspect", "--type", "image", name))["Docker"]
                yield Image(Path(command("buildah", "mount", container)), config, blobs, manifest)
        finally:
            command("buildah", "rm", container)

    @property
    def layers(self) -> list[str]:
        return list(self.config["rootfs"]["diff_ids"])

    def added(self) -> Path:
        """The layer on top of the base, compressed."""
        return self.blobs / str(self.manifest["layers"][-1]["digest"]).partition(":")[2]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with Image.unpacked(IMAGE) as unpacked:
        yield unpacked


NAMESPACES = ("pid", "mount", "ipc", "uts")
MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108, the container's
)


@dataclass
class Container:
    """The image's program in runc: read-only, as the image's user, with no capability and no new privilege.

    It shares this machine's network, so that the tests reach it, unless it has one of its `own_network`.
    """

    image: Image
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=lambda: {"OLLAMA_API_KEY": KEY})
    secret: Path | None = None
    own_network: bool = False

    def __post_init__(self) -> None:
        self.port = free_port()
        self.name = f"ollama-auth-test-{self.port}"
        self.dir = tempfile.TemporaryDirectory(prefix="image-")
        Path(self.dir.name, "config.json").write_text(json.dumps(self.spec()))
        self._out = open(Path(self.dir.name, "out"), "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["runc", "run", "--bundle", self.dir.name, "--pid-file", self.pid_file, self.name],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def spec(self) -> dict[str, Any]:
        config = self.image.config["config"]
        user, group = map(int, config["User"].split(":"))
        mounts = [{"destination": d, "type": t, "source": s, "options": list(o)} for d, t, s, o in MOUNTS]
        if self.secret:
            secret = {"destination": SECRET_FILE, "type": "bind", "source": str(self.secret), "options": ["bind", "ro"]}
            mounts.append(secret)
        where = () if self.own_network else ("--listen-host", "127.0.0.1", "--listen-port", str(self.port))
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": user, "gid": group},
                "args": [*config["Entrypoint"], *where, *self.arguments],
                "env": config["Env"] + [f"{name}={value}" for name, value in self.env.items()],
                "cwd": config["WorkingDir"] or "/",
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.image.root), "readonly": True},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": name} for name in NAMESPACES + ("network",) * self.own_network]},
        }

    @property
    def pid_file(self) -> str:
        return f"{self.dir.name}/pid"

    @property
    def pid(self) -> int:
        """Of its first process, as this machine sees it."""
        return int(wait_until(lambda: Path(self.pid_file).exists() and Path(self.pid_file).read_text(), "a pid"))

    @property
    def output(self) -> str:
        return Path(self.dir.name, "out").read_text()

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def started(self) -> Self:
        wait_until(lambda: self.process.poll() is not None or "listening on" in self.output, "the gate to start", 30)
        assert self.process.poll() is None, self.output
        return self

    def run(self, *words: str) -> int:
        """Another process in there."""
        execute = ["runc", "exec", self.name, *words]
        return subprocess.run(execute, capture_output=True, timeout=SLOW, check=False).returncode

    def python(self, code: str, program: str = "/venv/bin/python") -> int:
        return self.run(program, "-c", code)

    def signal(self, name: str) -> None:
        command("runc", "kill", self.name, name)

    def status(self, name: str) -> str:
        """A field of the kernel's about the first process (proc(5))."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return fields[name].strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.CalledProcessError):  # it has ended
            self.signal("KILL")
        self.process.wait(SLOW)
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True, check=False, timeout=SLOW)
        self._out.close()
        self.dir.cleanup()


@pytest.fixture
def guarded(image: Image, upstream: Upstream) -> Iterator[Container]:
    with Container(image, env={"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream.url}) as container:
        yield container.started()


def health(container: Container) -> int:
    """What Docker would do now and then."""
    kind, *words = container.image.config["config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    return container.run(*words)


def requests(container: Container) -> list[dict[str, Any]]:
    """The lines of its access log."""
    return [line for line in log_lines(container) if "method" in line]


# What it holds.


def test_what_it_is_stands_in_its_labels(image: Image) -> None:
    labels = image.config["config"]["Labels"]
    named = {name.rpartition(".")[2]: labels[name] for name in labels if name.startswith("org.opencontainers.image.")}
    assert set(named) == {"title", "description", "source", "version", "revision"}
    assert all(named.values())


def test_it_is_small(image: Image) -> None:
    """What we add to the base, on the wire and on the disk."""
    wire = image.added().stat().st_size
    with tarfile.open(image.added()) as layer:
        disk = sum(member.size for member in layer)
    print(f"added to the base: {wire / MEGABYTE:.0f} MB on the wire, {disk / MEGABYTE:.0f} MB on the disk")
    assert wire < 50 * MEGABYTE


def test_it_holds_nothing_that_only_a_build_needs(image: Image) -> None:
    unwanted = {"gcc", "cc", "g++", "make", "ld", "pip", "pip3", "git", "curl", "wget", "pytest"}
    folders = [image.root / name for name in ("usr/bin", "usr/sbin", "usr/local/bin", "venv/bin")]
    assert not {path.name for folder in folders for path in folder.iterdir()} & unwanted
    app = [path.relative_to(image.root / "app") for path in (image.root / "app").rglob("*") if path.is_file()]
    assert {path.parts[0] for path in app} == {"addons", "scripts"}
    assert {path.suffix for path in app} == {"", ".py", ".pyc", ".html", ".css", ".js", ".svg"}
    assert not list((image.root / "venv").rglob("tests"))


@pytest.mark.parametrize("python", ["/venv/bin/python", "/usr/local/bin/python"])
def test_nothing_can_be_installed_in_it(guarded: Container, python: str) -> None:
    assert guarded.python("import pip", python) != 0


def test_nobody_in_it_can_change_it(image: Image) -> None:
    for top in ("app", "venv"):
        for path in (image.root / top).rglob("*"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0), path
            assert path.is_symlink() or status.st_mode & 0o022 == 0, path


def test_everything_is_compiled_for_good(image: Image) -> None:
    """A compiled file that is checked against its source's time would be made anew at every start (PEP 552)."""
    files = [*(image.root / "app").rglob("*.pyc"), *(image.root / "venv").rglob("*.pyc")]
    assert len(files) > 1000
    assert {file.read_bytes()[4:8] for file in files} == {b"\1\0\0\0"}


def test_a_second_build_gives_the_same_layers_and_holds_no_secret(image: Image, tmp_path: Path) -> None:
    """From another checkout, whose files have other times and modes, and with secrets lying about."""
    canary = hashlib.sha256(os.urandom(16)).hexdigest()
    names = command("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
        (tmp_path / name).chmod(0o700 if os.access(ROOT / name, os.X_OK) else 0o600)
    for name in (".env.local", "keys.toml", "addons/.env", "addons/ollama_auth/keys.toml", "scripts/cert.pem"):
        (tmp_path / name).write_text(canary)
    again = f"{IMAGE.partition(':')[0]}-again:{os.getpid()}"
    try:
        build = [sys.executable, "-m", "tests.harness.image_base", again]
        now = command("git", "log", "-1", "--format=%ct", cwd=ROOT)
        env = {"OLLAMA_API_KEY": canary, "SOURCE_DATE_EPOCH": now, "PYTHONPATH": f"{tmp_path}:{tmp_path}/addons"}
        command(*build, cwd=tmp_path, env=os.environ | env)
        with Image.unpacked(again) as second:
            assert second.layers == image.layers
            assert canary not in json.dumps(second.config)
            with tarfile.open(second.added()) as layer:
                for member in layer:
                    file = layer.extractfile(member) if member.isfile() else None
                    assert canary not in member.name
                    assert not file or canary.encode() not in file.read(), member.name
    finally:
        subprocess.run(["buildah", "rmi", again], capture_output=True, check=False, timeout=SLOW)


# What it does.


def test_it_starts_within_two_seconds(image: Image) -> None:
    """At the best of a few tries: other work on this machine is no fault of the image's."""
    took: list[float] = []
    while not took or (min(took) > 2 and len(took) < 5):
        start = time.monotonic()
        with Container(image) as container:
            container.started()
            took.append(time.monotonic() - start)
    print(f"started in {min(took):.2f} s")
    assert min(took) < 2


def test_it_runs_without_rights(guarded: Container) -> None:
    assert guarded.status("Uid").split() == guarded.status("Gid").split() == [str(ID)] * 4
    assert all(int(guarded.status(name), 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert guarded.status("NoNewPrivs") == "1"
    for place in ("/", "/app", "/venv", "/tmp", "/etc"):  # noqa: S108, the container's
        assert guarded.python(f"open('{place}/x', 'w')") != 0
    assert guarded.python("open('/dev/shm/x', 'w')") == 0


def test_it_takes_a_key_from_the_environment(guarded: Container, upstream: Upstream) -> None:
    with upstream.untouched():
        assert ask(guarded.port, "GET", "/api/tags").status == 401
    assert ask(guarded.port, "GET", "/api/tags", BEARER).status == 200


def test_it_takes_a_key_from_a_secret_file(image: Image, upstream: Upstream, tmp_path: Path) -> None:
    (secret := tmp_path / "key").write_text(f"{KEY}\n")
    secret.chmod(0o400)
    os.chown(secret, ID, ID)
    env = {"OLLAMA_API_KEY_FILE": SECRET_FILE, "OLLAMA_ENDPOINT": upstream.url}
    with Container(image, env=env, secret=secret) as container:
        container.started()
        assert KEY.encode() not in Path(f"/proc/{container.pid}/environ").read_bytes()
        assert ask(container.port, "GET", "/api/tags").status == 401
        assert ask(container.port, "GET", "/api/tags", BEARER).status == 200


def test_without_a_key_it_does_not_start(image: Image) -> None:
    with Container(image, env={}) as container:
        assert container.process.wait(SLOW) == 1
        assert "OLLAMA_API_KEY" in container.output
        assert "Traceback" not in container.output


def test_as_it_comes_it_listens_on_8081(image: Image) -> None:
    with Container(image, own_network=True) as container:
        container.started()
        check = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8081); c.request('GET', '/'); "
        assert container.python(f"{check}assert c.getresponse().status == 401") == 0
        assert health(container) == 0


@pytest.mark.skipif(
    "prometheus" not in (ROOT / "scripts" / "requirements.txt").read_text(), reason="the pins have no prometheus-client"
)
def test_it_shows_its_health_where_it_is_told_to(image: Image, upstream: Upstream) -> None:
    listen = f"127.0.0.1:{free_port()}"
    env = {"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream.url, "OLLAMA_METRICS_LISTEN": listen}
    with Container(image, env=env) as container:
        container.started()
        for path in ("/healthz", "/readyz", "/metrics", "/"):
            assert ask(int(listen.rpartition(":")[2]), "GET", path, "Host: localhost").status == 200


def test_it_is_ill_when_it_does_not_answer_and_well_when_it_does_again(guarded: Container) -> None:
    assert health(guarded) == 0
    guarded.signal("STOP")
    assert health(guarded) == 1
    guarded.signal("CONT")
    assert health(guarded) == 0


def test_it_is_well_where_ollama_is_not(image: Image) -> None:
    with Container(image, env={"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": f"127.0.0.1:{free_port()}"}) as container:
        container.started()
        assert ask(container.port, "GET", "/api/tags", BEARER).status == 503
        assert health(container) == 0


def test_a_stop_loses_no_stream(guarded: Container, upstream: Upstream) -> None:
    with streams(guarded, upstream, 20) as running:
        guarded.signal("TERM")
        wait_until(lambda: "requests have up to" in guarded.output, "it to stop listening")
        assert guarded.process.poll() is None
        upstream.go_on()
        for one in running:
            assert b'"done":true' in one.read_all()
    assert guarded.process.wait(SLOW) == 0
    assert [line["status"] for line in requests(guarded)] == [200] * 20


def test_a_stop_at_the_start_is_heard(image: Image) -> None:
    """The kernel drops signals that process 1 has no handler for."""
    term = 1 << 14
    with Container(image) as container:
        # Before it runs, runc has the same process, handles every signal, and drops them.
        command_line = Path(f"/proc/{container.pid}/cmdline")
        wait_until(lambda: command_line.read_bytes().startswith(b"/venv/"), "the program")
        wait_until(lambda: int(container.status("SigCgt"), 16) & term, "a handler")
        container.signal("TERM")
        assert container.process.wait(SLOW) == 0


def test_orphans_leave_no_zombies(guarded: Container) -> None:
    orphan = "import os, time; os.fork() or (time.sleep(0.2), os._exit(0)); os._exit(0)"
    for _ in range(3):
        assert guarded.python(orphan) == 0
    children = Path(f"/proc/{guarded.pid}/task/{guarded.pid}/children")
    wait_until(lambda: not children.read_text(), "its children to be gone")


def test_it_writes_a_line_of_json_for_each_request(guarded: Container) -> None:
    ask(guarded.port, "GET", "/api/tags", BEARER)
    ask(guarded.port, "GET", "/secret?q=x", "Authorization: Bearer nobodys")
    lines = wait_until(lambda: (found := requests(guarded))[1:] and found, "two lines")
    assert [(line["method"], line["status"]) for line in lines] == [("GET", 200), ("GET", 401)]
    assert all(json.loads(line)["time"] for line in guarded.lines), "what else it says is JSON, too"
    assert not [word for word in (KEY, "nobodys", "q=x") if word in guarded.output]
