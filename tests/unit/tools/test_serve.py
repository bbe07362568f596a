import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from ollama_auth.auth import keys_file
from scripts.tools import launch, serve
from scripts.tools.terminal import ToolError
from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.cases import each_of
from tests.harness.serve import served
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

SECRET = re.compile(r"sk-ollama-[0-9a-f]{32}")


@each_of(
    ("text", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("  ", "http://127.0.0.1:11434"),
        ("ollama:11434", "http://ollama:11434"),
        ("http://ollama:11434/", "http://ollama:11434"),
        ("HTTPS://ollama.example", "https://ollama.example"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("http://gpu-box/", "http://gpu-box:11434"),
        ("gpu-box:", "http://gpu-box:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:11434", "http://[::1]:11434"),
        ("http://olla:40114/olla/ollama/", "http://olla:40114/olla/ollama"),
    ],
)
def test_an_endpoint_without_a_scheme_means_http(text: str | None, url: str) -> None:
    assert launch.endpoint(text) == url


@each_of(
    "text",
    ["ftp://a", "http://", "http://a:0", "http://a:x", "http://a/api", "http://a?b", "http://u:p@a", "http://[::1"],
)
def test_an_endpoint_that_cannot_work_is_refused_with_a_word(text: str) -> None:
    with pytest.raises(ToolError, match="http://HOST:PORT"):
        launch.endpoint(text)


@each_of(
    ("line", "value"),
    [
        ("OLLAMA_X=a", "a"),
        ("export OLLAMA_X=a", "a"),
        ("  OLLAMA_X = a  ", "a"),
        ("OLLAMA_X=a # why", "a"),
        ("OLLAMA_X=a#b", "a#b"),
        ("OLLAMA_X='a # b'", "a # b"),
        ('OLLAMA_X="a=b" # why', "a=b"),
        ("OLLAMA_X='a", "'a"),
        ("OLLAMA_X=$(id)`id`", "$(id)`id`"),
        ("OLLAMA_X=", ""),
        ("\ufeffOLLAMA_X=a\r\n", "a"),
    ],
)
def test_a_line_of_an_env_file_is_read_and_never_run(line: str, value: str) -> None:
    assert serve.read_env(line) == {"OLLAMA_X": value}


def test_only_variables_of_ours_are_taken_from_an_env_file() -> None:
    assert serve.read_env("# a comment\n\nPATH=/tmp\nPYTHONPATH=/tmp\nOLLAMA_X=a\n") == {"OLLAMA_X": "a"}


def test_a_bad_line_is_named_by_its_number_and_not_shown() -> None:
    with pytest.raises(ToolError, match=r"line 2 ") as caught:
        serve.read_env("OLLAMA_X=a\nsk-ollama-secret\n")
    assert "secret" not in str(caught.value)


def test_the_real_environment_wins() -> None:
    assert serve.merge({"A": "real"}, {"A": "file", "B": "file"}) == {"A": "real", "B": "file"}


@each_of(("real", "file"), [(serve.KEY, serve.KEY_FILE), (serve.KEY_FILE, serve.KEY)])
def test_a_key_in_the_environment_puts_the_files_other_form_aside(real: str, file: str) -> None:
    assert serve.merge({real: "a"}, {file: "b"}) == {real: "a"}


def test_a_new_key_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        key = serve.store_new_key(path := tmp_path / ".env.local")
    finally:
        os.umask(mask)
    assert SECRET.fullmatch(key)
    assert serve.read_env(path.read_text()) == {serve.KEY: key}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_variable_does_not_hide_the_file() -> None:
    real = {serve.KEY: "", serve.KEY_FILE: "", "OLLAMA_ENDPOINT": "", serve.METRICS_LISTEN: ""}
    file = {serve.KEY: "a", "OLLAMA_ENDPOINT": "b", serve.METRICS_LISTEN: "c"}
    assert serve.merge(real, file) == real | {serve.KEY: "a", "OLLAMA_ENDPOINT": "b"}


def test_the_file_is_for_shells_and_what_they_start_and_for_docker(tmp_path: Path) -> None:
    key = serve.store_new_key(path := tmp_path / "with a space")
    for shell in filter(shutil.which, ("sh", "bash", "dash", "zsh")):
        program = [shell, "-c", '. "$1" && exec env', shell, str(path)]
        shown = subprocess.run(program, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
        assert f"{serve.KEY}={key}" in shown.stdout.splitlines()
    lines = path.read_text().splitlines()
    assert all(re.fullmatch(r"\w+=.*", line) for line in lines)  # Docker refuses white space in a name.
    assert dict(line.split("=", 1) for line in lines)[serve.KEY] == key


@pytest.mark.parametrize("before", ["", "OLLAMA_ENDPOINT=a", "OLLAMA_ENDPOINT=a\n"])
def test_a_new_key_is_added_to_a_file_that_has_none(tmp_path: Path, before: str) -> None:
    (path := tmp_path / ".env.local").write_text(before)
    path.chmod(0o644)
    key = serve.store_new_key(path)
    assert serve.read_env(path.read_text()) == serve.read_env(before) | {serve.KEY: key}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@each_of(
    ("arguments", "address"),
    [
        ([], "http://127.0.0.1:8081"),
        (["-p", "9000"], "http://127.0.0.1:9000"),
        (["-p9000"], "http://127.0.0.1:9000"),
        (["--listen-port=9000"], "http://127.0.0.1:9000"),
        (["--set", "listen_port=9000"], "http://127.0.0.1:9000"),
        (["--listen-host", "0.0.0.0"], "http://127.0.0.1:8081"),
        (["--listen-host", "::1"], "http://[::1]:8081"),
        (["--certs", "cert.pem"], "https://127.0.0.1:8081"),
    ],
)
def test_the_address_follows_the_arguments_which_all_reach_mitmdump(arguments: list[str], address: str) -> None:
    launched = launch.read(["--demo", *arguments, "-w", "file"])
    assert (launched.demo, launched.address, launched.arguments) == (True, address, [*arguments, "-w", "file"])
    command = serve.gate_command("http://a", launched)
    assert command[-len(launched.arguments) :] == launched.arguments
    assert ("8081" in command) == ("8081" in address)


@each_of("new_key", ["sk-ollama-new", None])
@each_of("model", ["demo", None])
def test_only_the_first_run_shows_the_key_and_only_once(new_key: str | None, model: str | None) -> None:
    text = serve.guidance("http://127.0.0.1:8081", new_key, True, model)
    assert text.count("sk-ollama-") == (1 if new_key else 0)
    assert text.count("curl -N http://127.0.0.1:8081/api/") == 1


def test_nothing_at_the_endpoint_is_an_os_error() -> None:
    with pytest.raises(OSError, match="refused"):
        serve.chat_model(f"http://127.0.0.1:{free_port()}")


@pytest.mark.slow
def test_the_demo_runs_behind_the_gate_and_ends_with_it(tmp_path: Path) -> None:
    port = free_port()
    with served(tmp_path, "--demo", "-p", str(port)) as (process, said):
        (key,) = SECRET.findall("".join(said))
        upstream = int(re.findall(r"guarding http://127\.0\.0\.1:(\d+)", "".join(said))[0])
        assert ask(port, "GET", "/api/version").status == 401
        assert ask(port, "GET", "/api/version", f"Authorization: Bearer {key}").status == 200
        assert ask(upstream, "GET", "/").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0
    with pytest.raises(ConnectionRefusedError):
        ask(upstream, "GET", "/")


@pytest.mark.slow
def test_a_later_run_shows_no_key(tmp_path: Path) -> None:
    serve.store_new_key(tmp_path / ".env.local")
    nowhere = f"127.0.0.1:{free_port()}"
    with served(tmp_path, "-p", str(free_port()), OLLAMA_ENDPOINT=nowhere) as (process, said):
        assert not SECRET.search("".join(said))
        assert f"nothing answers at http://{nowhere} yet" in "".join(said)
        process.terminate()
        assert process.wait(timeout=90) == 0


def test_the_status_page_is_on_this_machine_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "STATUS_ADDRESS", ("127.0.0.1", free_port()))
    there = {"OLLAMA_METRICS_LISTEN": "127.0.0.1:%d" % serve.STATUS_ADDRESS[1]}
    assert serve.status_address(launch.read([]), {}) == there
    assert serve.status_address(launch.read([]), {"OLLAMA_METRICS_LISTEN": ""}) == {}
    assert serve.status_address(launch.read(["--set", "ollama_metrics_listen=0.0.0.0:1"]), {}) == {}


def test_a_second_one_on_a_machine_does_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(serve, "STATUS_ADDRESS", taken.getsockname())
        assert serve.status_address(launch.read([]), {}) == {}
    assert "is taken: OLLAMA_METRICS_LISTEN=HOST:PORT puts the status page elsewhere" in capsys.readouterr().out


def test_where_the_ledger_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve.usage_db(launch.read([]), {}) == {"OLLAMA_USAGE_DB": str(tmp_path / "usage.db")}
    assert serve.usage_db(launch.read([]), {"OLLAMA_USAGE_DB": ""}) == {}
    assert serve.usage_db(launch.read(["--set", "ollama_usage_db=/elsewhere"]), {}) == {}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert serve.usage_db(launch.read([]), {}) == {}


@pytest.mark.slow
def test_it_keeps_a_ledger_beside_its_key(upstream: Upstream, tmp_path: Path) -> None:
    port = free_port()
    words = ("--listen-host", "127.0.0.1", "--listen-port", str(port))
    with served(tmp_path, *words, OLLAMA_ENDPOINT=upstream.url, OLLAMA_API_KEY=KEY):
        wait_until(lambda: ask(port, "GET", "/api/tags", BEARER).status == 200, "an answer")
        file = tmp_path / "usage.db"
        wait_until(file.exists, "the ledger")
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_keys_file_is_made_beside_the_environment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the console can add the first key. One that is there stays, and one that is set is the only one."""
    monkeypatch.chdir(tmp_path)
    launched, file = launch.read([]), tmp_path / "keys.toml"
    assert serve.keys_file_beside(launched, {}) == {"OLLAMA_KEYS_FILE": str(file)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys_file.load(file)[0] == ()
    file.write_text("# mine\n")
    assert serve.keys_file_beside(launched, {}) == {"OLLAMA_KEYS_FILE": str(file)}
    assert file.read_text() == "# mine\n"
    file.unlink()
    assert serve.keys_file_beside(launched, {"OLLAMA_KEYS_FILE": "other.toml"}) == {}
    assert serve.keys_file_beside(launched, {"OLLAMA_KEYS_FILE": ""}) == {}
    assert serve.keys_file_beside(launch.read(["--set", "ollama_keys_file=other.toml"]), {}) == {}
    assert not file.exists()


def test_a_start_that_is_interrupted_leaves_no_empty_keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one is a fault: the gate would deny everyone from the next start on."""
    monkeypatch.chdir(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            serve.keys_file_beside(launch.read([]), {})
    assert not list(tmp_path.glob("*keys.toml"))
    (dangling := tmp_path / "keys.toml").symlink_to(tmp_path / "not mounted" / "keys.toml")
    assert serve.keys_file_beside(launch.read([]), {}) == {}
    assert dangling.is_symlink()
