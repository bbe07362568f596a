"""Starting and configuring: what would leave the door open ends the program, or is refused while it runs."""

import fcntl
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.harness.base import AUTH, BEARER, KEY, ROOT, free_port, wait_until
from tests.harness.gate import Controlled, Gate, certificate_authority
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

GOOD = "http://127.0.0.1:9"


def refused(*args: str, key: str | None = KEY, mode: str | None = None, env: dict[str, str] | None = None) -> str:
    """Start, see it end with status 1 and without a traceback; what it said in one line."""
    with Gate(GOOD, *args, key=key, mode=mode, env=env, ready=False) as gate:
        assert gate.wait() == 1, gate.output
        assert "Traceback" not in gate.output
        said = [line for line in gate.lines if "Loading script" not in line and "exiting" not in line]
        assert len(said) == 1, gate.output
        assert KEY not in gate.output
        return said[0]


def test_no_key() -> None:
    said = refused(key=None)
    assert "OLLAMA_API_KEY" in said
    assert "openssl rand -hex 16" in said


@pytest.mark.parametrize(
    "key",
    [
        *("", "   ", "two words and more", "tab\tbed-0123456789", "bell\x07-0123456789", "schlüssel-01234567"),
        *(f'"{KEY}"', f"OLLAMA_API_KEY={KEY}", "$OLLAMA_API_KEY", "changemechangeme", "short", sha256(b"").hexdigest()),
    ],
)
def test_a_key_that_is_none(key: str) -> None:
    said = refused(key=key)
    assert "OLLAMA_API_KEY" in said
    assert not key.strip() or key not in said


def test_both_sources(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    assert "unset one" in refused(env={"OLLAMA_API_KEY_FILE": str(file)})


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    said = refused(key=None, env={"OLLAMA_API_KEY_FILE": str(tmp_path / "nothing")})
    assert "nothing" in said
    assert "No such file" in said


def test_a_file_that_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("\n")
    assert "OLLAMA_API_KEY_FILE" in refused(key=None, env={"OLLAMA_API_KEY_FILE": str(file)})


MODES = {
    "reverse:127.0.0.1:9": "reverse:http://127.0.0.1:9",
    "reverse:tcp://127.0.0.1:9": "unread",
    "reverse:tls://127.0.0.1:9": "unread",
    "reverse:udp://127.0.0.1:9": "unread",
    "reverse:dns://127.0.0.1:9": "unread",
    "regular": "not a reverse proxy",
    "socks5": "not a reverse proxy",
    "upstream:http://127.0.0.1:9": "not a reverse proxy",
    "dns@0": "not a reverse proxy",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_without_a_gate(mode: str) -> None:
    assert MODES[mode] in refused(mode=mode)


def test_a_second_mode() -> None:
    assert "2 modes" in refused("--mode", "regular@0")


def test_a_base_path_is_refused_by_mitmproxy() -> None:
    with Gate("http://127.0.0.1:9/base", ready=False) as gate:
        assert gate.wait() == 1
        assert "http://127.0.0.1:9/base" in gate.output
        assert "Traceback" not in gate.output


OPTIONS = (
    "ignore_hosts=example",
    "allow_hosts=example",
    "tcp_hosts=example",
    "stream_large_bodies=1m",
    "body_size_limit=1m",
    "proxy_debug=true",
    "connection_strategy=eager",
    "validate_inbound_headers=false",
    "ollama_max_head=0",
    "ollama_head_timeout=-1",
    "ollama_max_body=chat=1m",
    "ollama_forward_headers=Authorization",
    "ollama_access_log=/nowhere/at/all",
    *(("emudhra=true", "emudhra_old=true") if Version(version("mitmproxy")) >= Version("12.3") else ()),
)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_opens_the_door_or_breaks_us(option: str) -> None:
    assert option.partition("=")[0] in refused("--set", option)


@pytest.mark.parametrize("name", ["ollama_api_kay", "ollama_", "olama_api_key", "ollama_acess_log"])
def test_a_misspelt_option(name: str) -> None:
    said = refused("--set", f"{name}=whatever-0123456789")
    assert name in said
    assert "did you mean" in said
    assert "whatever" not in said


def test_a_wrong_type() -> None:
    assert "ollama_max_head" in refused("--set", "ollama_max_head=many")


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
@pytest.mark.parametrize("cwd", ["/", str(ROOT / "tests")])
def test_it_runs_from_anywhere(upstream: Upstream, program: str, cwd: str) -> None:
    args = ("--set", "web_open_browser=false", "--set", "web_port=0") if program == "mitmweb" else ()
    with Gate(upstream.url, *args, program=program, cwd=cwd) as gate:
        assert ask(gate.port, "GET", "/api/version", BEARER).status == 200
        assert ask(gate.port, "GET", "/api/version").status == 401
        assert "Traceback" not in gate.output


@pytest.mark.slow
def test_the_full_screen_mitmproxy(upstream: Upstream, tmp_path: Path) -> None:
    """It needs a terminal, so it gets one."""
    shutil.copytree(certificate_authority(), tmp_path, dirs_exist_ok=True)
    port, (ours, theirs) = free_port(), pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "mitmproxy"),
            *("--mode", f"reverse:{upstream.url}", "--listen-host", "127.0.0.1", "--listen-port", str(port)),
            *("--set", f"confdir={tmp_path}", "-s", str(AUTH)),
        ],
        env=os.environ | {"OLLAMA_API_KEY": KEY, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    screen = bytearray()
    reader = threading.Thread(target=read_screen, args=(ours, screen), daemon=True)
    reader.start()
    try:
        wait_until(lambda: answers(port), "mitmproxy to answer", 30)
        assert ask(port, "GET", "/api/tags", BEARER).status == 200
        with upstream.untouched():
            assert ask(port, "GET", "/api/tags").status == 401
        wait_until(lambda: b"GET" in screen, "the flow on the screen")
        assert KEY.encode() not in screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_screen(terminal: int, screen: bytearray) -> None:
    with suppress(OSError):
        while data := os.read(terminal, 65536):
            screen += data


def answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def test_keys_from_elsewhere(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    sources: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((), {"OLLAMA_API_KEY_FILE": str(file)}),
        (("--set", f"ollama_api_key_file={file}"), {}),
        (("--set", f"ollama_api_key={KEY}"), {}),
        (("--set", f"ollama_api_key={KEY}"), {"OLLAMA_API_KEY": "another-0123456789abcdef"}),
    ]
    for args, env in sources:
        with Gate(upstream.url, *args, key=None, env=env) as gate:
            assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
            assert ask(gate.port, "GET", "/api/tags", "Authorization: Bearer another-0123456789abcdef").status == 401


def test_a_source_that_is_empty_is_none(upstream: Upstream, tmp_path: Path) -> None:
    (keys := tmp_path / "keys.toml").write_text(
        f'[[keys]]\nname = "a"\nsha256 = "{sha256(KEY.encode()).hexdigest()}"\n'
    )
    env = {"OLLAMA_API_KEY": "", "OLLAMA_API_KEY_FILE": "", "OLLAMA_KEYS_FILE": str(keys)}
    with Gate(upstream.url, key=None, env=env) as gate:
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
        with upstream.untouched():
            assert ask(gate.port, "DELETE", "/api/delete", BEARER).status == 403
            assert ask(gate.port, "GET", "/api/tags", "Authorization: Bearer ").status == 401


def test_options_lists_ours_with_help_and_no_key() -> None:
    with Gate(GOOD, "--options", ready=False) as gate:
        assert gate.wait() == 0
        for name in ("ollama_api_key", "ollama_access_log", "ollama_grace_period"):
            assert f"{name}:" in gate.output
        assert KEY not in gate.output


@pytest.fixture(scope="module")
def running(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url, "--set", f"ollama_api_key={KEY}", key=None) as gate:
        yield gate


WHILE_RUNNING = {
    "mode=['regular']": "not a reverse proxy",
    "mode=ctx.options.mode + ['socks5@0']": "2 modes",
    "mode=['reverse:127.0.0.1:9']": "no scheme",
    "ignore_hosts=['.']": "ignore_hosts",
    "allow_hosts=['x']": "allow_hosts",
    "tcp_hosts=['.']": "tcp_hosts",
    "stream_large_bodies='1'": "stream_large_bodies",
    "body_size_limit='1'": "body_size_limit",
    "connection_strategy='eager'": "eager",
    "proxy_debug=True": "proxy_debug",
    "ollama_api_key='  '": "ollama_api_key",
    "ollama_api_key=None": "no key",
    "ollama_max_head=0": "ollama_max_head",
    "ollama_api_key_file='/nowhere'": "ollama_api_key",
}


@pytest.mark.parametrize("change", WHILE_RUNNING)
def test_a_bad_change_while_running_is_undone_and_said(running: Controlled, upstream: Upstream, change: str) -> None:
    said = running.do(f"ctx.options.update({change})")
    assert "OptionsError: ollama_auth: " in said
    assert WHILE_RUNNING[change] in said
    assert ask(running.port, "GET", "/api/tags", BEARER).status == 200
    with upstream.untouched():
        assert ask(running.port, "GET", "/api/tags").status == 401


def test_a_misspelt_option_while_running(running: Controlled) -> None:
    assert "Unknown option" in running.do("ctx.options.set('ollama_api_kay=x')")


def test_a_new_key_while_running(upstream: Upstream) -> None:
    with Controlled(upstream.url) as gate:
        gate.do("ctx.options.update(ollama_api_key='another-0123456789abcdef')")
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 401
        assert ask(gate.port, "GET", "/api/tags", "x-api-key: another-0123456789abcdef").status == 200
        assert "another" not in gate.do("result = ctx.options.ollama_api_key, str(ctx.options)")


NEW = "sk-ollama-fedcba9876543210fedcba9876543210"
REFUSED_TOGETHER = {
    "a log that can't be written": "ollama_access_log='/nonexistent/x'",
    "an audit log that can't be written": "ollama_audit_log='/nonexistent/x'",
    "an address that can't be had": "ollama_metrics_listen='192.0.2.1:9464'",
    "an option of ours": "ollama_max_head=0",
    "a value that another addon refuses": "map_remote=['x']",
}


@pytest.mark.parametrize("together", REFUSED_TOGETHER)
@pytest.mark.parametrize("by_option", [False, True], ids=["key by environment", "key by option"])
def test_a_refused_change_leaves_the_key(upstream: Upstream, together: str, by_option: bool) -> None:
    args = ("--set", f"ollama_api_key={KEY}") if by_option else ()
    with Controlled(upstream.url, *args, key=None if by_option else KEY) as gate:
        for _ in range(2):
            said = gate.do(f"ctx.options.update(ollama_api_key={NEW!r}, {REFUSED_TOGETHER[together]})")
            assert "OptionsError" in said
            gate.do("ctx.options.update(ollama_max_flows=7)")
            assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
            with upstream.untouched():
                assert ask(gate.port, "GET", "/api/tags", f"x-api-key: {NEW}").status == 401
        gate.do(f"ctx.options.update(ollama_api_key={NEW!r})")
        with upstream.untouched():
            assert ask(gate.port, "GET", "/api/tags", BEARER).status == 401
        assert ask(gate.port, "GET", "/api/tags", f"x-api-key: {NEW}").status == 200
        assert "RecursionError" not in gate.output
        assert "was loaded again" not in gate.output
        assert NEW not in gate.output + gate.do("result = str(ctx.options)")


DEFAULTS = {
    "connection_strategy": "'lazy'",
    "block_global": "False",
    "tcp_timeout": "86400",
    "keep_host_header": "False",
    "flow_detail": "0",
}


def test_what_makes_mitmproxy_a_gate_is_set(running: Controlled) -> None:
    for name, value in DEFAULTS.items():
        assert running.do(f"result = ctx.options.{name}") == value


def test_but_not_what_the_user_set(upstream: Upstream) -> None:
    args = ("--set", "block_global=true", "--set", "tcp_timeout=600", "--set", "flow_detail=1")
    with Controlled(upstream.url, *args) as gate:
        assert gate.do("result = ctx.options.block_global, ctx.options.tcp_timeout, ctx.options.flow_detail") == (
            "(True, 600, 1)"
        )


def test_the_start_says_what_it_guards(running: Controlled, shared_upstream: Upstream) -> None:
    said = running.find("guarding")
    assert shared_upstream.url in said
    assert f"127.0.0.1:{running.port}" in said
    assert len(running.output.splitlines()) < 60


def test_an_endpoint_in_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        server.settimeout(10)
        seen = bytearray()

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                seen.extend(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        thread = threading.Thread(target=answer)
        thread.start()
        with Gate(f"http://[::1]:{port}") as gate:
            assert ask(gate.port, "GET", "/", BEARER).body == b"ok"
        thread.join()
        assert f"Host: [::1]:{port}".encode() in seen


def test_an_https_endpoint_is_verified(tmp_path: Path) -> None:
    """Its certificate is no good, so the request ends there, with an answer."""
    from tests.harness.certificates import serve_tls

    with serve_tls(tmp_path) as (port, certificate):
        with Gate(f"https://localhost:{port}") as gate:
            assert ask(gate.port, "GET", "/", BEARER).status in (502, 503)
        with Gate(f"https://localhost:{port}", "--set", f"ssl_verify_upstream_trusted_ca={certificate}") as gate:
            assert ask(gate.port, "GET", "/", BEARER).body == b"secure"
            wait_until(lambda: " 200 " in gate.output, "the line in the log")
