"""Cause each problem of troubleshooting.md, and compare the message with the page."""

import hashlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.harness.base import AUTH, BEARER, KEY, ROOT, free_port
from tests.harness.certificates import certificate
from tests.harness.credentials import bearer, entry, public_line, signature, signed
from tests.harness.deploy import DEPLOY, nginx
from tests.harness.gate import Gate
from tests.harness.markdown import TROUBLESHOOTING, Block, blocks
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, TlsWire, Wire, ask, chat, head, parse

pytestmark = pytest.mark.timeout(180)  # The first test waits for a dozen gates to start.

CLI = Ed25519PrivateKey.generate()
OURS = "Error: something went wrong, please see the ollama server logs for details"
FROM_OTHERS = {OURS, "no such file or directory"}
"""Messages of the `ollama` command line: the first is from its source (api/types.go), the second was recorded."""


class Seen:
    """Responses and other output of gates as (status, text); the status is 0 for other output."""

    def __init__(self) -> None:
        self.all: list[tuple[int, str]] = []

    def ask(self, port: int, method: str, path: str, *fields: str, body: bytes = b"") -> None:
        answer = ask(port, method, path, *fields, body=body)
        self.all.append((answer.status, answer.body.decode()))

    def said(self, text: str) -> None:
        self.all.append((0, text))


def keys() -> str:
    return "\n".join([
        entry("alice", models=["llama3.2"]),
        entry("carol", requests_per_minute=1),
        entry("late", expires="2020-01-01T00:00:00Z"),
        f'[[keys]]\nname = "laptop"\nssh_ed25519 = "{public_line(CLI)}"\n',
    ])  # fmt: skip


def refusals(seen: Seen, upstream: Upstream, folder: Path) -> None:
    file = folder / "keys.toml"
    file.write_text(keys())
    old = signed("/api/tags", time.time() - 300)
    with Gate(upstream.url, "--set", "ollama_max_wrong_keys=5", env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        for fields in (
            (),
            ("Authorization: Bearer ",),
            (f"Authorization: {KEY}",),
            ("Authorization: Bearer sk-ollama-another-0123456789",),
            (BEARER, "x-api-key: sk-ant-0123456789"),
            (bearer("late"),),
        ):
            seen.ask(gate.port, "GET", "/api/tags", *fields)
        seen.ask(gate.port, "GET", old, signature("GET", old, CLI))
        seen.ask(gate.port, "DELETE", "/api/delete", bearer("alice"), body=b'{"model":"llama3.2"}')
        seen.ask(gate.port, "POST", "/api/chat", bearer("alice"), body=chat("mistral"))
        seen.ask(gate.port, "POST", "/api/chat", bearer("alice"), "Content-Encoding: gzip", body=b"x")
        large = head("POST", "/api/chat", bearer("alice"), f"Content-Length: {32 * 1024**2 + 1}")
        with Wire(gate.port, large) as wire:
            answer = wire.read_response()
            seen.all.append((answer.status, answer.body.decode()))
        for path in ("/v1/v1/chat/completions", "/v1/v1/messages", "/v1/api/chat", "/chat/completions"):
            seen.ask(gate.port, "POST", path, BEARER, body=chat())
            seen.ask(gate.port, "POST", path, bearer("alice"), body=chat())
        seen.ask(gate.port, "GET", "/api/chat", bearer("carol"))
        seen.ask(gate.port, "GET", "/nowhere", bearer("carol"))
        search = chat("llama3.2", tools=[{"type": "web_search"}])
        answer = ask(gate.port, "POST", "/v1/responses", bearer("alice"), body=search)
        in_ollamas_format = {"error": answer.json["error"]["message"]}
        seen.all.append((answer.status, json.dumps(in_ollamas_format, separators=(",", ":"))))
        seen.ask(gate.port, "POST", "/api/chat", BEARER, body=chat("nope"))
        seen.ask(gate.port, "GET", "http://elsewhere.example/api/tags", BEARER)
        seen.ask(gate.port, "GET", f"/{'a' * 8200}", BEARER)
        seen.ask(gate.port, "GET", "/", BEARER, f"Cookie: {'a' * 33000}")
        for _ in range(2):
            seen.ask(gate.port, "GET", "/api/tags", bearer("carol"))
        for number in range(5):
            seen.ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer sk-ollama-another-012345678{number}")
        seen.ask(gate.port, "POST", "/v1/chat/completions", BEARER, body=chat(stream=True))
        seen.said(re.sub("tokens=[0-9]+", "tokens=5", gate.find("+~")))
        file.write_text("[[keys]]\n")
        seen.said(gate.find("the keys stay as they were: "))


def troubles_upstream(seen: Seen, upstream: Upstream, folder: Path) -> None:
    nowhere = free_port()
    with Gate(f"http://127.0.0.1:{nowhere}", "--set", "ollama_connect_timeout=1") as gate:
        seen.ask(gate.port, "GET", "/api/tags", BEARER)
        with socket.create_server(("127.0.0.1", nowhere), backlog=0), ExitStack() as stack:
            for _ in range(4):  # A queue that is full: no answer to a SYN.
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", nowhere))
            seen.ask(gate.port, "GET", "/api/tags", BEARER)
    no_http = Scripted().start(lambda line: line.head() and line.send(b"\x15\x03\x01\x00\x02\x02\x46"))
    with Gate(f"http://127.0.0.1:{no_http.port}") as gate:
        seen.ask(gate.port, "GET", "/api/tags", BEARER)
    (folder / "limited.toml").write_text(entry("carol", requests_per_minute=1))
    away = ("--set", f"ollama_limits_storage=redis://127.0.0.1:{nowhere}")
    with Gate(upstream.url, *away, env={"OLLAMA_KEYS_FILE": str(folder / "limited.toml")}) as gate:
        seen.ask(gate.port, "GET", "/api/tags", bearer("carol"))


def troubles_of_ours(seen: Seen, upstream: Upstream, folder: Path) -> None:
    with Gate(upstream.url, "--certs", str(certificate(folder))) as gate:
        seen.ask(gate.port, "GET", "/api/tags", BEARER)
    upstream.hold()
    with Gate(upstream.url, "--set", "ollama_max_connections=1") as gate:
        body = chat()
        with Line.to(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as line:
            line.read_until(b"\n")
            with Wire(gate.port) as wire:
                answer = parse(wire.read_all())
                seen.all.append((answer.status, answer.body.decode()))
        seen.said(gate.find("(client left)"))
    upstream.go_on()
    (folder / "auth.py").write_text(AUTH.read_text().replace("from ollama_auth", IMPORT))
    with Gate(upstream.url, script=folder / "auth.py") as gate:
        (folder / "auth.py").unlink()
        gate.find("every request is denied")
        seen.ask(gate.port, "GET", "/api/tags", BEARER)


IMPORT = f"import sys\nsys.path.insert(0, {str(ROOT / 'addons')!r})\nfrom ollama_auth"


def starts(seen: Seen, upstream: Upstream, folder: Path) -> None:
    def fails(*arguments: str, mode: str | None = None, key: str | None = KEY, **env: str) -> None:
        with Gate(upstream.url, *arguments, mode=mode, key=key, env=env, ready=False) as gate:
            assert gate.wait() == 1
            seen.said(gate.output)

    (folder / "faulty.toml").write_text('[[keys]]\nname = "alice"\nsha256 = "abc"\nscope = ["infer"]\n')
    fails(key=None)
    fails(key=f'"{KEY}"')
    fails(mode="reverse:127.0.0.1:11434")
    fails("--set", "ollama_max_boddy=1m")
    fails(OLLAMA_KEYS_FILE=str(folder / "faulty.toml"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fails("--listen-port", str(taken.getsockname()[1]))
    (folder / "bin").mkdir()
    (folder / "bin" / "dirname").symlink_to("/usr/bin/dirname")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "python.sh").write_bytes((ROOT / "scripts" / "python.sh").read_bytes())
    nothing = {"PATH": str(folder / "bin"), "HOME": str(folder), "PYENV_ROOT": str(folder)}
    command = ["/bin/sh", str(folder / "scripts" / "python.sh"), "requirements.txt", "serve.py"]
    (folder / "bin" / "cat").symlink_to("/bin/cat")
    done = subprocess.run(command, env=nothing, capture_output=True, text=True, check=False, timeout=90)
    seen.said(done.stderr)


@pytest.fixture(scope="module")
def seen(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    seen = Seen()
    for bring_about in (refusals, troubles_upstream, troubles_of_ours, starts):
        bring_about(seen, shared_upstream, tmp_path_factory.mktemp("trouble"))
    yield seen
    shared_upstream.go_on()


SHOWN = [
    Block(block.heading, line)
    for block in blocks(TROUBLESHOOTING, "text")
    for line in block.text.splitlines()
    if line not in FROM_OTHERS
]


@pytest.mark.slow
@pytest.mark.parametrize("shown", SHOWN, ids=[block.text[:60] for block in SHOWN])
def test_it_reads_as_the_page_has_it(shown: Block, seen: Seen) -> None:
    """The message was seen, with a status of the heading if the heading has statuses."""
    statuses = statuses_of(shown)
    counts = re.compile(r"(?<=~)\d+")
    found = [status for status, text in seen.all if counts.sub("N", shown.text) in counts.sub("N", text)]
    assert found, [text for _, text in seen.all]
    assert not statuses or set(found) <= statuses


def statuses_of(shown: Block) -> set[int]:
    named = {int(status) for status in re.findall(r"\b[45]\d\d\b", shown.heading)}
    return named if shown.text.startswith("{") and "wrong addresses" not in shown.heading else set()


def test_an_unknown_key_is_named_by_its_digest(gate: Gate) -> None:
    """The log shows the first digits of the digest that `sha256sum` prints."""
    key = "sk-ollama-another-0123456789"
    ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {key}")
    assert gate.find(f"unknown:{hashlib.sha256(key.encode()).hexdigest()[:8]} ")


@pytest.mark.slow
def test_refusals_are_json(seen: Seen) -> None:
    """Each refusal of the gate is JSON; the 404 with plain text is Ollama's."""
    for status, text in seen.all:
        if status not in (0, 200) and text != "404 page not found":
            assert json.loads(text)["error"]


def test_a_proxy_that_cuts_silence(upstream: Upstream, tmp_path: Path) -> None:
    """nginx with its default behaviour, but with a timeout of one second instead of 60."""
    plain = re.sub(r"proxy_read_timeout 24h", "proxy_read_timeout 1s", (DEPLOY / "nginx.conf").read_text())
    cert, body = certificate(tmp_path), chat()
    request = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}", host="localhost") + body
    with Gate(upstream.url) as gate, nginx([gate], cert, tmp_path, plain) as port:
        upstream.hold()
        with TlsWire(port, cert, request) as wire:
            assert b"\r\n0\r\n\r\n" not in wire.read_all()
        assert "/api/chat 200 (client left)" in gate.find("(client left)")


def test_an_empty_403_is_ollamas_and_arrives_as_it_is() -> None:
    empty: Sequence[bytes] = (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",)
    ollama = Scripted().start(lambda line: line.head() and line.send(*empty))
    with Gate(f"http://127.0.0.1:{ollama.port}") as gate:
        answer = ask(gate.port, "GET", "/api/tags", BEARER)
        assert (answer.status, answer.body) == (403, b"")
