"""scripts/doctor, mostly as somebody at a terminal uses it, with real files and real sockets."""

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from scripts.tools import serve
from scripts.tools.doctor import __main__ as doctor
from scripts.tools.doctor import certificate, exposure, findings, probes, versions
from scripts.tools.doctor.credentials import bits
from scripts.tools.doctor.target import read_target
from tests.harness.base import KEY, ROOT, free_port
from tests.harness.cases import each_of
from tests.harness.certificates import key_and_certificate
from tests.harness.gate import Gate
from tests.harness.tools import CLEAN, TOOLS, Said, call, execute
from tests.harness.upstream import Upstream

NOW = datetime.now(UTC)


class Visit(Said):
    """What the doctor said, and how it ended."""

    @property
    def findings(self) -> list[dict[str, str]]:
        return list(json.loads(self.out)["findings"])

    def levels(self, level: str) -> str:
        """All that was found to be so bad, with what to do."""
        return "\n".join("|".join(found.values()) for found in self.findings if found["level"] == level)


class Home:
    """A folder to run scripts/serve in, with a good key in .env.local."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = {"OLLAMA_ENDPOINT": upstream}
        self.arguments = ["--listen-host", "127.0.0.1"]
        self.secrets = [KEY]
        self.file(".env.local", f"OLLAMA_API_KEY={KEY}\n")

    def file(self, name: str, text: str | bytes, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    @property
    def command_line(self) -> list[str]:
        return ["-p", str(self.port), *self.arguments]

    def visit(self, *arguments: str) -> Visit:
        main = partial(doctor.main, [*arguments, *self.command_line])
        return self.checked(call(main, folder=self.folder, env=CLEAN | self.env))

    def process(self, *program: str) -> Visit:
        return self.checked(execute(*program, *self.command_line, folder=self.folder, env=CLEAN | self.env))

    def checked(self, said: Said) -> Visit:
        words = (*self.secrets, "Traceback", "could not be checked")
        assert not [word for word in words if word in said.out + said.err]
        return Visit(said.out, said.err, said.status)


@pytest.fixture
def home(tmp_path: Path, upstream: Upstream) -> Home:
    tmp_path.chmod(0o755)
    return Home(tmp_path, upstream.url)


@contextlib.contextmanager
def server(answer: bytes, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Gives every connection that answer."""
    with socket.create_server((host, port)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def answer(body: str, *fields: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", body]).encode()


VERSION = '{"version":"0.33.0"}'


# All is well.


def test_a_healthy_gate(home: Home) -> None:
    visit = home.process(sys.executable, TOOLS, "doctor")
    assert (visit.status, visit.err) == (0, "")
    assert {line.split()[0] for line in visit.out.splitlines()} == {"ok"}
    assert re.search(r"^ok +http://127\.0\.0\.1:\d+: Ollama \S+ answers$", visit.out, re.MULTILINE)
    assert "ok    key: it is strong" in visit.out
    assert "ok    Ollama: only this machine can reach it" in visit.out


def test_it_is_there_before_the_first_run(home: Home) -> None:
    (home.folder / ".env.local").unlink()
    visit = home.visit("--json")
    assert visit.status == 0
    assert "key|there is none yet: scripts/serve makes one" in visit.levels("ok")
    assert not (home.folder / ".env.local").exists()


def test_a_gate_that_runs_is_known_for_one(home: Home, gate: Gate) -> None:
    home.port = gate.port
    visit = home.visit("--json")
    assert visit.status == 0
    assert "a gate runs there, and requires a key" in visit.levels("ok")


def test_what_is_bad_is_said_last_with_what_to_do(home: Home) -> None:
    home.env["OLLAMA_ENDPOINT"] = f"127.0.0.1:{free_port()}"
    visit = home.visit()
    assert visit.status == 1
    *_, what, then = visit.out.splitlines()
    assert what.startswith("bad   http://127.0.0.1:")
    assert what.endswith("nothing answers there (Connection refused)")
    assert then == "      start Ollama, or set OLLAMA_ENDPOINT to where it is"


def test_json_is_for_programs(home: Home) -> None:
    report = json.loads(home.visit("--json").out)
    assert report["bad"] is False
    assert {tuple(found) for found in report["findings"]} == {("level", "where", "what", "next")}


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://user:secret-of-mine@x"])
def test_arguments_that_can_not_be_used(home: Home, endpoint: str) -> None:
    home.secrets.append("secret-of-mine")
    home.env["OLLAMA_ENDPOINT"] = endpoint
    visit = home.visit()
    assert (visit.status, visit.out) == (2, "")
    assert "http://HOST:PORT" in visit.err


def test_it_connects_to_nobody_but_the_endpoint_and_the_gate(home: Home, upstream: Upstream) -> None:
    """Seen by an audit hook of the interpreter (PEP 578)."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "addons")!r}]
seen = []
sys.addaudithook(lambda name, given: name in ("socket.connect", "socket.getaddrinfo") and seen.append(given[1]))
from scripts.tools.doctor import __main__ as doctor
status = doctor.main(sys.argv[1:])
print([place[1] if isinstance(place, tuple) else place for place in seen], file=sys.stderr)
sys.exit(status)
"""
    visit = home.process(sys.executable, "-c", code)
    assert visit.status == 0
    assert set(json.loads(visit.err)) == {upstream.port, home.port}
    assert not any("authorization" in dict(request.headers) for request in upstream.requests)


def test_one_check_that_fails_keeps_no_other_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Iterator[findings.Finding]:
        yield findings.ok("a", "b")
        raise RuntimeError("sk-ollama-secret")

    monkeypatch.setattr(doctor, "CHECKS", (broken, versions.versions))
    found = list(doctor.examine(read_target([])))
    assert [one.where for one in found] == ["a", "broken", "Python", "mitmproxy"]
    assert found[1].what == "could not be checked (RuntimeError)"


# Ollama, and the way around the gate.


def test_ollama_that_others_reach(home: Home) -> None:
    with server(answer(VERSION), "0.0.0.0") as port:
        home.env["OLLAMA_ENDPOINT"] = f"127.0.0.1:{port}"
        visit = home.visit("--json")
    assert visit.status == 1
    assert f"others reach it around the gate: it listens on 0.0.0.0 port {port}|have Ollama" in visit.levels("bad")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("0" * 32, "::"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
@pytest.mark.skipif(sys.byteorder == "big", reason="written as a little machine's kernel does")
def test_addresses_as_the_kernel_prints_them(text: str, host: str) -> None:
    assert str(exposure.parse_address(text)) == host


def test_where_the_kernel_does_not_tell_it_tries_to_connect() -> None:
    with server(b"") as port:
        assert exposure.connectable(port, map(ip_address, ("127.0.0.1", "127.0.0.2"))) == {ip_address("127.0.0.1")}


@each_of(
    ("name", "value", "found"),
    [
        ("OLLAMA_ORIGINS", "*", "bad"),
        ("OLLAMA_ORIGINS", "https://a.example,*", "bad"),
        ("OLLAMA_ORIGINS", "https://*.example", None),
        ("OLLAMA_HOST", "0.0.0.0", "warn"),
        ("OLLAMA_HOST", "http://0.0.0.0:11434", "warn"),
        ("OLLAMA_HOST", "[::]:11434", "warn"),
        ("OLLAMA_HOST", ":11434", "warn"),
        ("OLLAMA_HOST", "127.0.0.1:11434", None),
        ("OLLAMA_HOST", "http://gate.example:8081", None),
        ("OLLAMA_MODELS", "*", None),
    ],
)
def test_variables_that_open_ollama(name: str, value: str, found: str | None) -> None:
    assert [one.level for one in exposure.risky_variables([(name, value)], "here")] == ([found] if found else [])


def test_variables_in_the_unit_of_ollama(tmp_path: Path) -> None:
    (tmp_path / "ollama.service").write_text('[Service]\nEnvironment="PATH=/bin:/usr/bin"\n')
    (folder := tmp_path / "ollama.service.d").mkdir()
    (folder / "a.conf").write_text('[Service]\nEnvironment="OLLAMA_HOST=0.0.0.0" OLLAMA_DEBUG=1 OLLAMA_ORIGINS=*\n')
    units = [tmp_path / "ollama.service", folder, tmp_path / "none"]
    found = list(exposure.risky_units(units))
    assert [(one.level, one.where) for one in found] == [
        ("warn", str(folder / "a.conf")),
        ("bad", str(folder / "a.conf")),
    ]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (
            answer(VERSION.replace("0.33.0", "0.17.0")),
            "Ollama 0.17.0 lets clients read its memory (CVE-2026-7482)|update",
        ),
        (answer("hello"), "what answers there is not Ollama (status 200)"),
        (answer("[]"), "what answers there is not Ollama"),
        (answer('{"version":7}'), "what answers there is not Ollama"),
        (answer("{}", status="404 Not Found"), "what answers there is not Ollama (status 404)"),
        (b"SSH-2.0-OpenSSH\r\n", "nothing answers there (BadStatusLine)"),
        (b"", "nothing answers there (RemoteDisconnected)"),
        (answer("[" * 100_000), "what answers there is not Ollama"),
    ],
    ids=range(8),
)
def test_endpoints_that_are_none(home: Home, said: bytes, what: str) -> None:
    with server(said) as port:
        home.env["OLLAMA_ENDPOINT"] = f"127.0.0.1:{port}"
        visit = home.visit("--json")
    assert visit.status == 1
    assert f"|http://127.0.0.1:{port}|{what}" in visit.levels("bad")


def test_an_endpoint_that_is_a_gate(home: Home, gate: Gate) -> None:
    home.env["OLLAMA_ENDPOINT"] = gate.url
    assert "a gate like this one answers there|set OLLAMA_ENDPOINT" in home.visit("--json").levels("bad")


def test_an_endpoint_that_is_the_gates_own_address(home: Home) -> None:
    home.env["OLLAMA_ENDPOINT"] = f"localhost:{home.port}"
    assert "the gate would be its own endpoint" in home.visit("--json").levels("bad")


@pytest.mark.parametrize(("apart", "level"), [(0, "ok"), (30, "warn"), (-3600, "bad")])
def test_clocks(home: Home, apart: int, level: str) -> None:
    date = formatdate(time.time() + apart, usegmt=True)
    with server(answer(VERSION, f"Date: {date}")) as port:
        home.env["OLLAMA_ENDPOINT"] = f"127.0.0.1:{port}"
        assert "|clock|it" in home.visit("--json").levels(level)


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 99 Foo 2026 00:00:00 GMT"])
def test_a_date_that_is_none_says_nothing(home: Home, date: str) -> None:
    with server(answer(VERSION, f"Date: {date}")) as port:
        home.env["OLLAMA_ENDPOINT"] = f"127.0.0.1:{port}"
        visit = home.visit("--json")
    assert (visit.status, "|clock|" in visit.out) == (0, False)


# The gate's own address.


@pytest.mark.parametrize("said", [answer("hello"), answer("", status="401 Unauthorized"), b"220 mail\r\n", b""])
def test_a_port_that_another_program_has(home: Home, said: bytes) -> None:
    with server(said, port=home.port):
        visit = home.visit("--json")
    assert visit.status == 1
    assert "|stop it, or give the gate another port" in visit.levels("bad")


def test_a_gate_with_tls_is_known_too(home: Home, upstream: Upstream) -> None:
    cert = home.file("cert.pem", key_and_certificate())
    with Gate(upstream.url, "--certs", str(cert)) as gate:
        home.port = gate.port
        visit = home.visit("--json", "--certs", str(cert))
    assert visit.status == 0, visit.out
    assert f"|https://127.0.0.1:{gate.port}|a gate runs there, and requires a key" in visit.levels("ok")


@pytest.mark.parametrize("arguments", [[], ["--listen-host", "192.0.2.1"], ["--set", "listen_host=0.0.0.0"]])
def test_keys_in_clear_text_from_other_machines(
    home: Home, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.folder)
    (found,) = certificate.certificates(read_target(arguments))
    assert (found.level, found.where) == ("warn", "TLS")


def test_a_status_page_for_everybody(home: Home) -> None:
    visit = home.visit("--json", "--set", "ollama_metrics_listen=0.0.0.0:9464")
    assert "status page|other machines may see who uses what" in visit.levels("warn")


# Keys and files.


@pytest.mark.parametrize(
    ("secret", "level"),
    [("changeme", "bad"), ("a" * 64, "bad"), ("hunterhunterhunter", "bad"), ("hunter2hunter2hunter3xy", "warn")],
)
def test_a_key_that_can_be_guessed(home: Home, secret: str, level: str) -> None:
    home.secrets.append(secret)
    home.env["OLLAMA_API_KEY"] = secret
    visit = home.visit("--json")
    assert "|key|" in visit.levels(level)
    assert "openssl rand -hex 16" in visit.levels(level)


def test_a_key_as_serve_makes_it_is_strong(tmp_path: Path) -> None:
    assert min(bits(serve.store_new_key(tmp_path / f"{n}")) for n in range(20)) > 80


@pytest.mark.parametrize(
    ("env", "what"),
    [
        ({"OLLAMA_API_KEY": " "}, "OLLAMA_API_KEY: the key is empty|make one with"),
        ({"OLLAMA_API_KEY": KEY, "OLLAMA_API_KEY_FILE": "key"}, "both OLLAMA_API_KEY and OLLAMA_API_KEY_FILE are set"),
        ({"OLLAMA_API_KEY_FILE": "./none"}, "OLLAMA_API_KEY_FILE: can't read './none' (No such file"),
        ({"OLLAMA_KEYS_FILE": "./none"}, "./none: can't be read (No such file or directory)|name a keys file"),
    ],
)
def test_keys_that_are_none(home: Home, env: dict[str, str], what: str) -> None:
    home.env |= env
    visit = home.visit("--json")
    assert visit.status == 1
    assert f"|key|{what}" in visit.levels("bad")


def test_a_key_on_a_command_line(home: Home) -> None:
    visit = home.visit("--json", "--set", f"ollama_api_key={KEY}")
    assert "|key|it is on a command line" in visit.levels("warn")
    for words in (
        ["--set", "ollama_limits_storage=redis://:pw@127.0.0.1"],
        ["--set=ollama_limits_storage=redis://:pw@h"],
    ):
        assert "|limits|the password of the storage is on a command line" in home.visit("--json", *words).levels("warn")


@pytest.mark.parametrize(("mode", "level"), [(0o644, "bad"), (0o604, "bad"), (0o640, "warn"), (0o600, None)])
@pytest.mark.parametrize("name", [".env.local", "key", "cert.pem", "audit"])
def test_secrets_that_others_may_read(home: Home, name: str, mode: int, level: str | None, open_parents: None) -> None:
    text = {"cert.pem": key_and_certificate().decode(), ".env.local": f"OLLAMA_API_KEY={KEY}\n"}.get(name, f"{KEY}\n")
    path = home.file(name, text, mode)
    more = {"cert.pem": ["--certs", str(path)], "audit": ["--set", f"ollama_audit_log={path}"]}.get(name, [])
    if name == "key":
        home.env["OLLAMA_API_KEY_FILE"] = str(path)
    visit = home.visit("--json", *more)
    shown = [found for found in visit.findings if found["next"].startswith("chmod")]
    assert [found["level"] for found in shown] == ([level] if level else [])


@pytest.fixture
def open_parents(home: Home) -> Iterator[None]:
    """Everybody may enter the folders above."""
    before = {folder: folder.stat().st_mode for folder in home.folder.parents if folder != Path("/")}
    for folder, mode in before.items():
        if mode & 0o011 != 0o011:
            folder.chmod(mode | 0o011)
    yield
    for folder, mode in before.items():
        folder.chmod(mode & 0o7777)


def test_a_folder_that_others_can_not_enter_keeps_a_secret(home: Home, open_parents: None) -> None:
    """The way to hand a key to a container, whose user is nobody here."""
    (folder := home.folder / "secrets").mkdir(mode=0o700)
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "key").chmod(0o444)
    home.env["OLLAMA_API_KEY_FILE"] = str(folder / "key")
    assert home.visit().status == 0


def test_a_keys_file_that_others_may_change(home: Home, open_parents: None) -> None:
    home.file("keys.toml", f'[[keys]]\nname = "a"\nsha256 = "{"ab" * 32}"\n', 0o666)
    home.env["OLLAMA_KEYS_FILE"] = "./keys.toml"
    assert "|others may change it|chmod go-w" in home.visit("--json").levels("bad")


def test_keys_that_expire(home: Home) -> None:
    entry = '[[keys]]\nname = "%s"\nsha256 = "%s"\nexpires = %s\n'
    days = {"old": -1, "soon": 3, "late": 300}
    text = "".join(
        entry % (name, f"{n:02x}" * 32, f"{NOW + timedelta(days=days[name]):%Y-%m-%dT%H:%M:%SZ}")
        for n, name in enumerate(days)
    )
    home.file("keys.toml", text)
    home.env["OLLAMA_KEYS_FILE"] = "./keys.toml"
    warned = home.visit("--json").levels("warn")
    assert "keys file|expired: old|scripts/keys" in warned
    assert "keys file|expire within 21 days: soon|scripts/keys rotate" in warned
    assert "late" not in warned


# The certificate.


@pytest.mark.parametrize(
    ("data", "level", "what"),
    [
        (key_and_certificate(("a.example", "b.example")), "ok", "good for a.example, b.example, for 89 days"),
        (key_and_certificate(days=(-9, 9)), "warn", "it expires on"),
        (key_and_certificate(days=(-9, -1)), "bad", "it expired on"),
        (key_and_certificate(days=(1, 9)), "bad", "it is not valid yet"),
        (key_and_certificate(own_key=False), "bad", "its key is another one's"),
        (key_and_certificate(names=()), "bad", "it names no host that clients would accept"),
        (key_and_certificate(weak=True), "bad", "its RSA key has only 1024 bits"),
        (
            key_and_certificate() + key_and_certificate(issuer="other").partition(b"-----END PRIVATE KEY-----\n")[2],
            "warn",
            "its chain is not in order",
        ),
        (b"", "bad", "has no certificate and key that can be used"),
        (b"\xff\xfe\0", "bad", "has no certificate and key that can be used"),
        (key_and_certificate().partition(b"-----BEGIN CERT")[0], "bad", "has no certificate and key that can be used"),
    ],
    ids=range(11),
)
def test_a_certificate(home: Home, data: bytes, level: str, what: str) -> None:
    path = home.file("cert.pem", data)
    visit = home.visit("--json", "--certs", f"*={path}")
    assert f"|{path}|{what}" in visit.levels(level)
    assert visit.status == (level == "bad")


def test_a_certificate_that_is_not_there(home: Home) -> None:
    assert "none.pem|can't be read (No such file or directory)" in home.visit("--json", "--certs", "none.pem").levels(
        "bad"
    )


# Versions.


@each_of(("version", "level"), [("12.2.1", "bad"), ("12.4.0", "bad"), ("12.2.2", "ok"), ("12.3.9", "ok")])
def test_mitmproxy(version: str, level: str) -> None:
    assert versions.mitmproxy(version).level == level


@each_of(("year", "level"), [(2026, "ok"), (2029, "ok"), (2030, "warn")])
def test_python(year: int, level: str) -> None:
    assert versions.python((3, 13), datetime(year, 1, 1, tzinfo=UTC)).level == level


@each_of(
    ("text", "numbers"), [("0.33.0-rc2", (0, 33, 0)), ("1", (1,)), ("", ()), ("v1", ()), ("9" * 5000, (999999999,))]
)
def test_numbers_of_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert probes.numbers(text) == numbers
