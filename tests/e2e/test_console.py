"""The console's JSON on the status listener: who may see and change what, and how its requests are logged."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_auth.console.api import ROWS
from ollama_auth.console.router import MAX_BODY, Need
from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Gate, Ready, logged
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, Wire, ask, chat, head

HOST = "Host: localhost"
PLAIN, ADMIN, LIMITED = bearer("plain"), bearer("boss"), bearer("limited")
WRONG = (BEARER + "x", BEARER.replace("Bearer", "Basic"), f"Authorization: {KEY}")
JSON_LOG = ("--set", "ollama_access_log=-")


def keys(folder: Path) -> Path:
    people = (entry("plain"), entry("boss", scopes=["all", "admin"]), entry("limited", requests_per_minute=1))
    (file := folder / "keys.toml").write_text("".join(people))
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    more = ("--set", f"ollama_keys_file={keys(tmp_path_factory.mktemp('keys'))}", "--set", "ollama_max_wrong_keys=0")
    with Ready(shared_upstream.url, *JSON_LOG, *more) as running:
        yield running


def see(gate: Ready, path: str, *fields: str, method: str = "GET", body: bytes = b"") -> Response:
    return ask(gate.watch, method, f"/console/{path}", HOST, *fields, body=body)


def example(pattern: str) -> str:
    """A path of a row."""
    return pattern.replace("(?P<name>[^/]+)", "plain")


def test_every_route_and_method_without_a_right(gate: Ready, upstream: Upstream) -> None:
    """No key, a wrong one, in a wrong form; a plain key where an administrator's is needed; methods that are not."""
    before = len(upstream.requests)
    for row in ROWS:
        path = example(row.pattern)
        served = {one.method for one in ROWS if example(one.pattern) == path}
        for method in ("GET", "HEAD", "POST", "PATCH", "DELETE"):
            is_open = row.need is Need.OVERVIEW and method in ("GET", "HEAD")
            assert ask(gate.watch, method, path, HOST).status == (200 if is_open else 401), (method, path)
            for wrong in WRONG:
                assert ask(gate.watch, method, path, HOST, wrong).status == 401, (method, path)
            if method not in served | {"HEAD"}:
                assert ask(gate.watch, method, path, HOST, ADMIN).status == 405, (method, path)
        if row.need is not Need.KEY:
            denied = ask(gate.watch, row.method, path, HOST, PLAIN, body=b"" if row.method == "GET" else b"{}")
            assert denied.status == 403, path
            assert "scope admin" in denied.json["error"]
    assert see(gate, "nothing").status == 401
    assert see(gate, "nothing", ADMIN).status == 404
    assert see(gate, "me", method="PUT").status == see(gate, "me", method="OPTIONS").status == 405
    assert {request.target for request in upstream.requests[before:]} <= {"/api/version"}, "only the probe of readiness"


def test_no_answer_is_for_other_origins(gate: Ready) -> None:
    for fields in (("Origin: https://evil.example",), ("Origin: https://evil.example", PLAIN)):
        assert not [name for name in see(gate, "me", *fields).headers if name.startswith("access-control-")]
    preflight = see(gate, "me", "Origin: https://evil.example", "Access-Control-Request-Method: GET", method="OPTIONS")
    assert preflight.status == 405
    assert not [name for name in preflight.headers if name.startswith("access-control-")]
    assert ask(gate.watch, "GET", "/console/me", "Host: evil.example", PLAIN).status == 421


def test_refusals_and_nothing_else_are_logged(gate: Ready) -> None:
    with logged(gate, 4) as lines:
        see(gate, "me", PLAIN)
        see(gate, f"me/{KEY}?a={KEY}")
        see(gate, "me", BEARER + "x")
        see(gate, "me", f"Authorization: Basic {KEY}")
        see(gate, "overview", PLAIN)
    assert [(line.get("key", "-").partition(":")[0], line["path"], line["reason"]) for line in lines] == [
        ("-", "/console/me/***", "missing"),
        ("unknown", "/console/me", "unknown"),
        ("-", "/console/me", "malformed"),
        ("plain", "/console/overview", "scope"),
    ]
    assert KEY not in gate.output


def test_me(gate: Ready) -> None:
    plain = see(gate, "me", PLAIN).json
    assert (plain["name"], plain["admin"], plain["scopes"]) == ("plain", False, ["infer", "embed", "list"])
    assert see(gate, "me", ADMIN).json["admin"] is True
    assert see(gate, "me", BEARER).json.items() >= {"name": "default", "admin": True}.items()


def test_a_chat_goes_through_the_gate(gate: Ready, upstream: Upstream) -> None:
    """It is judged, limited and logged as any other: once, by the gate, as coming from who asked."""
    with logged(gate) as lines:
        answer = see(gate, "chat", PLAIN, method="POST", body=chat())
    assert answer.status == 200
    assert json.loads(answer.body.splitlines()[-1])["done"] is True
    assert answer.headers["x-request-id"] == lines[0]["id"]
    assert (lines[0]["key"], lines[0]["path"], lines[0]["client"]) == ("plain", "/api/chat", "127.0.0.1")
    assert "authorization" not in {name.lower() for name, _ in upstream.last.headers}
    assert see(gate, "chat", LIMITED, method="POST", body=chat()).status == 200
    refused = see(gate, "chat", LIMITED, method="POST", body=chat())
    assert (refused.status, "retry-after" in refused.headers) == (429, True)
    for body in (b"", b"{", b"[1]", b'"x"', b"[" * 10_000):
        assert see(gate, "chat", PLAIN, method="POST", body=body).status == 400
    large = head("POST", "/console/chat", PLAIN, f"Content-Length: {MAX_BODY + 1}", host="localhost")
    with upstream.untouched(), Wire(gate.watch, large) as wire:
        assert b"200 OK" not in wire.read_all()


def test_who_leaves_a_chat_ends_it(gate: Ready, upstream: Upstream) -> None:
    upstream.hold()
    with logged(gate) as lines:
        asked = head("POST", "/console/chat", PLAIN, f"Content-Length: {len(chat())}", HOST) + chat()
        with Wire(gate.watch, asked) as wire:
            wire.read_until(b'"done":false}')
        wait_until(lambda: not upstream.open_connections, "the connection upstream to end")
    assert lines[0]["reason"] == "client left"


def test_wrong_keys_are_throttled_as_everywhere(upstream: Upstream, tmp_path: Path) -> None:
    more = ("--set", f"ollama_keys_file={keys(tmp_path)}", "--set", "ollama_max_wrong_keys=5", *JSON_LOG)
    with Ready(upstream.url, *more) as gate:
        statuses = [see(gate, "me", f"Authorization: Bearer wrong-key-{number}").status for number in range(8)]
        assert statuses[:4] == [401] * 4
        assert statuses[-1] == 429
        ninth = ask(gate.port, "GET", "/api/tags", "Authorization: Bearer wrong-key-9")
        assert ninth.status == 429, "both listeners count together"


def test_on_another_address_everything_but_health_needs_a_key(upstream: Upstream, tmp_path: Path) -> None:
    """By whatever name; the files of the page hold nothing of anybody."""
    port, file = free_port(), keys(tmp_path)
    options = (f"ollama_metrics_listen=0.0.0.0:{port}", "ollama_metrics_public=false", f"ollama_keys_file={file}")
    expected = (("/healthz", 200, 200), ("/readyz", 200, 200), ("/", 200, 200), ("/metrics", 401, 403))
    with Gate(upstream.url, *(word for option in options for word in ("--set", option))):
        for path, nobody, plain in expected:
            assert ask(port, "GET", path, "Host: gpu.example").status == nobody
            assert ask(port, "GET", path, "Host: gpu.example", PLAIN).status == plain
            assert ask(port, "GET", path, "Host: gpu.example", ADMIN).status == 200
        for row in ROWS:
            assert ask(port, row.method, example(row.pattern), "Host: gpu.example").status == 401
        assert ask(port, "GET", "/console/overview", "Host: gpu.example", ADMIN).status == 200
