"""mitmproxy's config.yaml: scripts/serve, scripts/doctor and the image's entrypoint read it as the gate does."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from scripts.tools.doctor import __main__ as doctor
from scripts.tools.entrypoint import healthy
from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.certificates import certificate
from tests.harness.fork_server import Forked, server
from tests.harness.gate import certificate_authority
from tests.harness.tools import CLEAN, TOOLS
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

A_KEY = re.compile(r"sk-ollama-[0-9a-f]{32}")
OPEN = {"serve": "curl -N", "entrypoint": "listening on"}
"""What a tool says last of all when it is open."""
PLACES = ("config.yaml", "config.yml", "confdir")


class Home:
    """A home directory with a config file, which is also the working directory."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = CLEAN | {"HOME": str(folder), "OLLAMA_ENDPOINT": upstream, "OLLAMA_METRICS_LISTEN": ""}

    def configure(self, place: str = "config.yaml", **options: Any) -> list[str]:
        """Write the options where `place` says; the arguments that name the place."""
        confdir = self.folder / ("elsewhere" if place == "confdir" else ".mitmproxy")
        confdir.mkdir(exist_ok=True)
        file = confdir / ("config.yaml" if place == "confdir" else place)
        file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in options.items()))
        return ["--set", f"confdir={confdir}"] if place == "confdir" else []

    @contextlib.contextmanager
    def run(self, *arguments: str, tool: str = "serve", **env: str) -> Iterator[list[str]]:
        """Run the tool until the block ends; all that it prints until it listens, in one item."""
        for confdir in (".mitmproxy", "elsewhere"):  # Making a certificate authority takes half a second.
            shutil.copytree(certificate_authority(), self.folder / confdir, dirs_exist_ok=True)
        out = self.folder / "out"
        process = self.start(tool, *arguments, env=env)
        try:
            wait_until(lambda: process.poll() is not None or OPEN[tool] in out.read_text(), "the gate", 30)
            assert process.poll() is None, out.read_text()
            yield [out.read_text()]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()

    def start(self, tool: str, *arguments: str, err: Path | None = None, env: Mapping[str, str] = {}) -> Forked:
        """Start the tool; its output goes to the file `out`, or standard error to another."""
        out = self.folder / "out"
        out.touch()
        return server("mitmdump").start([TOOLS, tool, *arguments], self.env | dict(env), str(self.folder), out, err)

    def local(self, *more: str) -> list[str]:
        return ["--listen-host", "127.0.0.1", "-p", str(self.port), *more]


@pytest.fixture
def home(tmp_path: Path, upstream: Upstream) -> Home:
    return Home(tmp_path, upstream.url)


@pytest.mark.parametrize("place", PLACES)
def test_a_key_in_the_file_is_the_key(home: Home, place: str) -> None:
    where = home.configure(place, ollama_api_key=KEY)
    with home.run(*home.local(*where)) as (said,):
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200
        assert not A_KEY.search(said)
    assert not (home.folder / ".env.local").exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_keys_file_there_gets_no_default_key_besides(home: Home, place: str) -> None:
    (keys := home.folder / "keys.toml").write_text(
        f'[[keys]]\nname = "anna"\nsha256 = "{sha256(KEY.encode()).hexdigest()}"\nscopes = ["list"]\n'
    )
    where = home.configure(place, ollama_keys_file=str(keys))
    with home.run(*home.local(*where)) as (said,):
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200
        assert ask(home.port, "DELETE", "/api/delete", BEARER).status == 403
        assert not A_KEY.search(said)
    assert not (home.folder / ".env.local").exists()


def test_a_file_with_the_key_there(home: Home) -> None:
    (home.folder / "key").write_text(KEY)
    home.configure(ollama_api_key_file=str(home.folder / "key"))
    with home.run(*home.local()) as (said,):
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200
        assert not A_KEY.search(said)


def test_the_address_is_the_one_in_the_file(home: Home) -> None:
    home.configure(listen_port=home.port, listen_host="127.0.0.1")
    with home.run(OLLAMA_API_KEY=KEY) as (said,):
        assert f"http://127.0.0.1:{home.port} is open" in said
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


def test_the_command_line_wins(home: Home) -> None:
    home.configure(listen_port=free_port(), listen_host="192.0.2.1")
    with home.run(*home.local(), OLLAMA_API_KEY=KEY) as (said,):
        assert f"http://127.0.0.1:{home.port} is open" in said
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


def test_the_file_wins_over_set_as_mitmproxy_has_it(home: Home) -> None:
    home.configure(listen_port=home.port, ollama_api_key=KEY)
    other = ("--set", f"listen_port={free_port()}", "--set", "ollama_api_key=another-0123456789abcdef")
    with home.run("--listen-host", "127.0.0.1", *other) as (said,):
        assert f"http://127.0.0.1:{home.port} is open" in said
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


def test_a_certificate_in_the_file_means_https(home: Home) -> None:
    cert = certificate(home.folder)
    home.configure(certs=[str(cert)])
    with home.run(*home.local(), OLLAMA_API_KEY=KEY) as (said,):
        assert f"https://127.0.0.1:{home.port} is open" in said


def test_the_status_page_is_where_the_file_says(home: Home) -> None:
    page = free_port()
    home.configure(ollama_metrics_listen=f"127.0.0.1:{page}")
    del home.env["OLLAMA_METRICS_LISTEN"]
    with home.run(*home.local(), OLLAMA_API_KEY=KEY) as (said,):
        assert "9464" not in said
        assert ask(page, "GET", "/healthz", f"Host: 127.0.0.1:{page}").status == 200


@pytest.mark.parametrize("tool", ["serve", "entrypoint"])
@pytest.mark.parametrize("endpoint", ["127.0.0.1:9", None])
def test_the_endpoint_is_the_mode_in_the_file(home: Home, upstream: Upstream, tool: str, endpoint: str | None) -> None:
    """An option wins over the environment."""
    home.configure(mode=[f"reverse:{upstream.url}"])
    home.env |= {"OLLAMA_ENDPOINT": endpoint} if endpoint else {}
    if endpoint is None:
        del home.env["OLLAMA_ENDPOINT"]
    with home.run(*home.local(), tool=tool, OLLAMA_API_KEY=KEY) as (said,):
        assert "nothing answers" not in said
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


def test_a_mode_on_the_command_line_too(home: Home, upstream: Upstream) -> None:
    del home.env["OLLAMA_ENDPOINT"]
    mode = f"reverse:{upstream.url}@127.0.0.1:{home.port}"
    with home.run("--mode", mode, OLLAMA_API_KEY=KEY) as (said,):
        assert f"http://127.0.0.1:{home.port} is open" in said
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


def test_another_programs_mode_is_not_the_gates(home: Home) -> None:
    """Somebody who also uses mitmproxy otherwise has it in the same file."""
    home.configure(mode=["socks5"])
    with home.run(*home.local(), OLLAMA_API_KEY=KEY):
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"ollama_api_key: [{KEY}\n", "config.yaml"),
        (f"- ollama_api_key: {KEY}\n", "config.yaml"),
        (f"{KEY}\n", "config.yaml"),
        ("listen_port: many\n", "listen_port"),
        ("ollama_api_key: [1]\n", "ollama_api_key"),
    ],
)
@pytest.mark.parametrize("tool", ["serve", "doctor", "entrypoint"])
def test_a_file_that_cannot_be_used_is_refused_before_a_key_is_made(
    home: Home, text: str, said: str, tool: str
) -> None:
    home.configure()
    (home.folder / ".mitmproxy" / "config.yaml").write_text(text)
    ran = home.start(tool, err=home.folder / "err")
    assert ran.wait(30) == (2 if tool == "doctor" else 1)
    err = (home.folder / "err").read_text()
    assert said in err
    assert err.count("\n") == 1, err
    assert KEY not in (home.folder / "out").read_text() + err
    assert not (home.folder / ".env.local").exists()


# The image's entrypoint.


@pytest.mark.slow
def test_the_container_listens_and_logs_as_the_file_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    log = home.folder / "access.log"
    home.configure(listen_port=home.port, listen_host="127.0.0.1", ollama_access_log=str(log), ollama_api_key=KEY)
    with home.run(tool="entrypoint") as (said,):
        assert not said.startswith("{")
        assert ask(home.port, "GET", "/api/tags", BEARER).status == 200
        wait_until(lambda: log.exists() and log.read_text(), "a line in the log")
        monkeypatch.setenv("HOME", str(home.folder))
        assert healthy([])
    assert json.loads(log.read_text().splitlines()[0])["status"] == 200


# The doctor.


def examined(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: Mapping[str, str], *args: str
) -> dict[str, str]:
    """What the doctor finds: the level and the text by where it is."""
    for name in [name for name in os.environ if name.startswith("OLLAMA_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.folder)
    doctor.main(["--json", *args])
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["where"]: f"{one['level']} {one['what']}" for one in found}


def test_the_doctor_reads_it_too(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cert = certificate(home.folder)
    home.configure(
        ollama_api_key="changeme", certs=[str(cert)], listen_port=home.port, ollama_metrics_listen="0.0.0.0:1"
    )
    found = examined(home, monkeypatch, capsys, {"HOME": home.env["HOME"], "OLLAMA_ENDPOINT": "127.0.0.1:9"})
    assert found["key"].startswith("bad ollama_api_key: the key has fewer than 16 characters")
    assert str(cert) in found
    assert found[f"https://127.0.0.1:{home.port}"] == "ok the port is free"
    assert found["status page"].startswith("warn")


def test_the_doctor_wants_a_file_with_a_key_kept_from_others(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.configure(ollama_api_key=KEY)
    file = home.folder / ".mitmproxy" / "config.yaml"
    for folder in list(file.parents)[:-2]:  # Otherwise these keep others away.
        folder.chmod(folder.stat().st_mode | 0o011)
    file.chmod(0o644)
    found = examined(home, monkeypatch, capsys, {"HOME": home.env["HOME"]})
    assert found[str(file)] == "bad others may read the secret in it"
    assert "command line" not in found["key"]
