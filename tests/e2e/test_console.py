"""The console's JSON on the status listener: who may see and change what, and how its requests are logged."""

import asyncio
import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from ollama_auth.console.api import ROWS
from ollama_auth.console.router import MAX_BODY, Need
from ollama_auth.exchange import Exchange
from ollama_auth.telemetry import usage_db, usage_periods
from ollama_auth.telemetry.pace import Pace
from ollama_auth.telemetry.usage_periods import Period
from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, Ready, log_lines, logged
from tests.harness.markdown import CONSOLE, commands
from tests.harness.programs import tool
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


def test_the_page_comes_with_its_style_and_its_files_may_be_kept(gate: Ready) -> None:
    page = ask(gate.watch, "GET", "/", HOST)
    style = re.search(b"<style>(.*)</style>", page.body, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1]).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert (b"stylesheet" in page.body, b"style=" in page.body) == (False, False)
    for path in ("/", "/static/app.js"):
        first = ask(gate.watch, "GET", path, HOST)
        assert first.headers["cache-control"] == "no-cache"
        assert ask(gate.watch, "GET", path, HOST, f"If-None-Match: {first.headers['etag']}").status == 304
    for path in ("/static/types.d.ts", "/static/../router.py", "/static/%2e%2e/router.py", "/static/"):
        assert ask(gate.watch, "GET", path, HOST).status == 404
    assert see(gate, "overview").headers["cache-control"] == "no-store"


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


def test_a_key_that_ends_while_its_request_comes(upstream: Upstream, tmp_path: Path) -> None:
    """The right to do it is asked for again when the body is there: an administrator may have been revoked."""
    people = entry("boss", scopes=["all", "admin"]) + entry("gone", scopes=["admin"]) + entry("less", scopes=["admin"])
    (file := tmp_path / "keys.toml").write_text(people)
    file.chmod(0o600)
    body = b'{"name": "backdoor", "scopes": ["admin"]}'
    with ExitStack() as stack:
        gate = stack.enter_context(Ready(upstream.url, "--set", f"ollama_keys_file={file}"))
        slow = {}
        for name in ("gone", "less"):
            asked = head("POST", "/console/keys", bearer(name), f"Content-Length: {len(body)}", HOST)
            slow[name] = stack.enter_context(Wire(gate.watch, asked + body[:9]))
        wait_until(lambda: see(gate, "state", bearer("gone")).status == 200, "the gate to answer")
        assert see(gate, "keys/gone", ADMIN, method="DELETE").status == 200
        assert see(gate, "keys/less", ADMIN, method="PATCH", body=b'{"scopes": ["list"]}').status == 200
        statuses = [wire.send(body[9:]).read_response().status for wire in slow.values()]
        assert statuses == [401, 403]
        assert "backdoor" not in file.read_text()


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


# Keys.


def logged_by(name: str, gate: Ready, count: int) -> list[dict[str, Any]] | None:
    """The lines of a key, once there are so many."""
    lines = [line for line in log_lines(gate) if line.get("key") == name]
    return lines if len(lines) >= count else None


def test_an_administrator_changes_keys(upstream: Upstream, tmp_path: Path) -> None:
    """Added, used, edited, disabled, enabled, rotated, revoked: each in force at once, and logged with who did it."""
    comment = "# Of the second floor.\n"
    (file := keys(tmp_path)).write_text(comment + file.read_text())
    with Ready(upstream.url, *JSON_LOG, "--set", f"ollama_keys_file={file}") as gate:

        def do(method: str, path: str, **body: Any) -> Response:
            return see(gate, path, ADMIN, method=method, body=json.dumps(body).encode() if body else b"")

        def status(key: str) -> int:
            return ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {key}").status

        made = do("POST", "keys", name="anna", scopes=["list"], expires="30d", requests_per_minute=50)
        assert (made.status, made.json["name"]) == (200, "anna")
        key = made.json["key"]
        assert status(key) == 200
        assert see(gate, "me", f"Authorization: Bearer {key}").json["requests_per_minute"] == 50
        assert key not in see(gate, "keys", ADMIN).body.decode() + file.read_text()
        edited = do("PATCH", "keys/anna", requests_per_minute=None, models=["demo"], expires=None)
        assert (edited.json["requests_per_minute"], edited.json["models"]) == (None, ["demo"])
        assert do("POST", "keys/anna/disable").json["disabled"] is True
        assert status(key) == see(gate, "me", f"Authorization: Bearer {key}").status == 401
        assert do("POST", "keys/anna/enable").json["disabled"] is False
        assert status(key) == 200
        rotated = do("POST", "keys/anna/rotate", grace="1h").json
        assert status(key) == status(rotated["key"]) == 200
        assert rotated["old_key_until"]
        assert do("POST", "keys/anna/rotate", grace="0").status == 200
        assert status(key) == status(rotated["key"]) == 401
        assert do("DELETE", "keys/anna").json == {"name": "anna", "revoked": True}
        assert do("GET", "keys/anna").status == 404
        assert file.read_text().startswith(comment)
        by_boss = wait_until(lambda: logged_by("boss", gate, 7), "a line for each change")
        changes = [(line["key"], line["method"], line["path"]) for line in by_boss]
        assert changes == [
            ("boss", method, f"/console/keys/anna{path}")
            for method, path in (
                ("POST", ""), ("PATCH", ""), ("POST", "/disable"), ("POST", "/enable"), ("POST", "/rotate"),
                ("POST", "/rotate"), ("DELETE", ""),
            )
        ]  # fmt: skip


def test_changes_that_are_none(gate: Ready, tmp_path: Path) -> None:
    def do(method: str, path: str, body: object = None) -> tuple[int, str]:
        data = b"" if body is None else json.dumps(body).encode()
        answer = see(gate, path, ADMIN, method=method, body=data)
        return answer.status, answer.json["error"]

    before = see(gate, "keys", ADMIN).json["keys"]
    wrong: tuple[tuple[object, str], ...] = (
        (None, "JSON object"),
        ([], "JSON object"),
        ({}, "name is not"),
        ({"name": "sk-ollama-1"}, "seems to be a key"),
        ({"name": "../x"}, "name is not"),
        ({"name": "default"}, "stands for"),
        ({"name": 7}, "name is not"),
        ({"name": "anna", "nothing": 1}, "no field"),
        ({"name": "anna", "sha256": "0" * 64}, "makes keys"),
        ({"name": "anna", "note": 'x"\nscopes = ["admin"]'}, "one line"),
        ({"name": "anna", "note": "\ud800"}, "one line"),
        ({"name": "anna", "models": ['x"]\nscopes = ["admin"]\n#']}, "valid name of a model"),
        ({"name": "anna", "scopes": ['list"]\nscopes=["admin']}, "valid scope"),
        ({"name": "anna", "requests_per_minute": True}, "whole number"),
    )
    for body, words in wrong:
        status, error = do("POST", "keys", body)
        assert status == 400, body
        assert words in error
    assert do("POST", "keys", {"name": "plain"})[0] == 409
    assert do("PATCH", "keys/plain", {"previous_sha256": "0" * 64})[0] == 400
    assert do("POST", "keys/plain/rotate", {"grace": "soon"})[0] == 400
    assert do("PATCH", "keys/nobody", {"note": "x"})[0] == 404
    assert do("DELETE", "keys/default")[0] == 409
    assert see(gate, "keys", ADMIN).json["keys"] == before


def test_a_plain_key_sees_itself_alone(gate: Ready) -> None:
    assert [key["name"] for key in see(gate, "keys", ADMIN).json["keys"]] == ["default", "plain", "boss", "limited"]
    mine = see(gate, "keys", PLAIN).json
    assert (mine["file"], [key["name"] for key in mine["keys"]]) == (None, ["plain"])
    assert see(gate, "keys/plain", PLAIN).json == mine["keys"][0]
    assert see(gate, "keys/boss", PLAIN).status == see(gate, "keys/nobody", PLAIN).status == 403


def test_without_a_keys_file_it_says_how_to_have_one(upstream: Upstream) -> None:
    with Ready(upstream.url) as gate:
        refused = see(gate, "keys", BEARER, method="POST", body=b'{"name": "anna"}')
        assert (refused.status, "OLLAMA_KEYS_FILE" in refused.json["error"]) == (409, True)


# Usage, requests, models.


@pytest.fixture
def used(gate: Ready, upstream: Upstream) -> Ready:
    """The gate, once these requests are in the ledger."""
    before = see(gate, "requests?limit=1", ADMIN).json["requests"]
    for key in (PLAIN, ADMIN):
        ask(gate.port, "POST", "/api/chat", key, body=chat())
    ask(gate.port, "DELETE", "/api/delete", PLAIN, body=b'{"model": "demo"}')
    seen = before[0]["number"] if before else 0

    def newest() -> int:
        rows = see(gate, "requests?limit=1", ADMIN).json["requests"]
        return int(rows[0]["number"]) if rows else 0

    wait_until(lambda: newest() >= seen + 3, "the ledger")
    return gate


def test_usage(used: Ready) -> None:
    rows = see(used, "usage?by=key,model", ADMIN).json["rows"]
    [mine] = [row for row in rows if (row["key"], row["model"]) == ("plain", "demo")]
    assert mine["answered"] >= 1
    assert mine["completion_tokens"] >= 31 * mine["answered"]
    plain = see(used, "usage?by=day,key", PLAIN).json["rows"]
    assert {row["key"] for row in plain} == {"plain"}
    assert see(used, "usage?key=boss", PLAIN).status == see(used, "requests?key=boss", PLAIN).status == 403
    table = see(used, "usage?by=month,key,outcome&format=csv&since=2020-01&until=2099-12-31", ADMIN)
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    head_line, *lines = table.body.decode().splitlines()
    assert head_line.startswith("month,key,outcome,requests,answered")
    assert any(",plain,refused," in line for line in lines)
    assert see(used, "usage?by=key&until=2020-01-01", ADMIN).json == {"rows": []}
    wrong = (
        "by=colour", "by=day,month", "by=key,key", "since=yesterday", "since=nan", "until=2026-13", "format=xml",
        "format=csv%0d%0aX-Evil:1", "key=%ff",
    )  # fmt: skip
    assert {see(used, f"usage?{query}", ADMIN).status for query in wrong} == {400}
    assert {see(used, f"usage?by=day&since={'9' * count}", ADMIN).status for count in (12, 40, 400)} == {200}
    for offset in ("x", "1e5", "9" * 20, "9" * 5000):
        assert see(used, f"overview?offset={offset}", ADMIN).status == 400, offset


def test_no_filter_shows_a_key_the_requests_of_others(used: Ready) -> None:
    """Nor does CSV, nor requests as they end, nor the place from which on they are listed."""
    theirs = see(used, "requests?key=boss&limit=1", ADMIN).json["requests"][0]
    for query in ("key=boss", "key=plain,boss", "key=plain&key=boss", "key=(none)", "key=%20boss", "key=Boss"):
        for path in ("usage", "requests", "requests/live"):
            assert see(used, f"{path}?{query}", PLAIN).status == 403, (path, query)
    after = theirs["number"] + 1
    for query in (
        "", "key=", "key=plain", "client=127.0.0.1", "model=demo", "outcome=answered,refused,failed", "reason=",
        "key=boss&key=plain", f"before={after}", f"before={after}&limit=1", "since=2020-01", "until=2099-12-31",
    ):  # fmt: skip
        rows = see(used, f"requests?{query}", PLAIN).json["requests"]
        assert {row["key"] for row in rows} == {"plain"}, query
        assert theirs["id"] not in see(used, f"requests?{query}&format=csv", PLAIN).body.decode()
        sums = see(used, f"usage?by=key,client,model&{query}", PLAIN).json["rows"]
        assert {row["key"] for row in sums} == {"plain"}, query
        assert "boss" not in see(used, f"usage?by=key&{query}&format=csv", PLAIN).body.decode()


def test_no_cell_of_a_table_is_a_formula(gate: Ready) -> None:
    """Keys may begin with a hyphen; no model is called so, and its name is refused."""
    made = see(gate, "keys", ADMIN, method="POST", body=b'{"name": "-1"}').json["key"]
    for model in ("demo", "=1+1", "a;=1+1"):
        ask(gate.port, "POST", "/api/chat", f"Authorization: Bearer {made}", body=chat(model))
    of_it = "?key=-1&format=csv"
    requests = wait_until(
        lambda: (found := see(gate, f"requests{of_it}", ADMIN)).body.count(b"\n") == 4 and found, "the ledger"
    )
    texts = (requests, see(gate, f"usage{of_it}&by=key,model,outcome", ADMIN))
    assert see(gate, "keys/-1", ADMIN, method="DELETE").status == 200
    for answer, name in zip(texts, ("requests", "usage"), strict=True):
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}.csv"'
        rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
        assert {row["key"] for row in rows} == {"'-1"}
        assert not re.search('(^|[;,\t\r\n"])[-=+@\uff1d]', answer.body.decode(), re.M)


def test_requests(used: Ready) -> None:
    newest, *_ = rows = see(used, "requests?limit=3", ADMIN).json["requests"]
    assert (newest["key"], newest["outcome"], newest["reason"], newest["path"]) == (
        "plain", "refused", "scope", "/api/delete",
    )  # fmt: skip
    older = see(used, f"requests?before={rows[1]['number']}&limit=1", ADMIN).json["requests"]
    assert older[0]["number"] == rows[2]["number"]
    assert {row["key"] for row in see(used, "requests", PLAIN).json["requests"]} == {"plain"}
    assert {row["outcome"] for row in see(used, "requests?outcome=refused", ADMIN).json["requests"]} == {"refused"}
    assert see(used, "requests?client=192.0.2.1", ADMIN).json == {"requests": []}
    assert "content" not in see(used, "requests?limit=1000", ADMIN).body.decode()
    assert see(used, "requests?limit=x", ADMIN).status == see(used, "requests?before=-1", ADMIN).status == 400
    for query in ("limit=1", "client=192.0.2.1"):
        table = see(used, f"requests?format=csv&{query}", ADMIN).body.decode()
        assert table.startswith("number,time,"), "also without a row"


@pytest.mark.slow
def test_requests_as_they_end(upstream: Upstream, tmp_path: Path) -> None:
    """Those of the key that asks, until that very key is revoked, replaced or narrowed."""
    file, ends = keys(tmp_path), b"0\r\n\r\n"
    chief = entry("chief", scopes=["all", "admin"])
    file.write_text(file.read_text() + chief)
    with ExitStack() as stack:
        gate = stack.enter_context(Ready(upstream.url, "--set", f"ollama_keys_file={file}"))
        live = {
            name: stack.enter_context(Wire(gate.watch, head("GET", "/console/requests/live", bearer(name), HOST)))
            for name in ("plain", "limited", "chief")
        }
        for wire in live.values():
            wire.read_until(b": requests as they end")
        ask(gate.port, "POST", "/api/chat", ADMIN, body=chat())
        ask(gate.port, "POST", "/api/chat", PLAIN, body=chat())
        for name, seen in (("chief", "boss"), ("chief", "plain"), ("plain", "plain")):
            event = live[name].read_until(b"}\n\n").partition(b"data: ")[2]
            assert json.loads(event)["key"] == seen
        for method, path, body in (
            ("DELETE", "keys/plain", b""), ("POST", "keys/limited/rotate", b'{"grace": "0"}'),
            ("PATCH", "keys/chief", b'{"scopes": ["infer", "list"]}'),
        ):  # fmt: skip
            assert see(gate, path, ADMIN, method=method, body=body).status == 200
        assert see(gate, "keys", ADMIN, method="POST", body=b'{"name": "plain"}').status == 200, "another's now"
        ask(gate.port, "POST", "/api/chat", ADMIN, body=chat())
        for name, wire in live.items():
            assert b"data: " not in wire.read_until(ends), name
        heads = head("HEAD", "/console/requests/live", ADMIN, HOST) + head("GET", "/healthz", HOST)
        stack.enter_context(Wire(gate.watch, heads)).read_until(b'{"alive":true}')


def test_models(used: Ready, upstream: Upstream) -> None:
    """As the key may see them; loaded and unloaded through the gate, by its rules."""
    every = see(used, "models", ADMIN).json["models"]
    assert {model["name"] for model in every} >= {"demo:latest", "tiny:latest"}  # Tests of others may copy some.
    assert next(model for model in every if model["name"] == "demo:latest")["requests"] >= 2
    assert "requests" not in see(used, "models", PLAIN).json["models"][0]
    with logged(used) as lines:
        assert see(used, "models/unload", PLAIN, method="POST", body=b'{"model": "demo"}').status == 200
    assert (lines[0]["key"], lines[0]["path"]) == ("plain", "/api/generate")
    assert json.loads(upstream.last.body) == {"model": "demo", "stream": False, "keep_alive": 0}
    assert see(used, "models/load", PLAIN, method="POST", body=b'{"model": "demo"}').status == 200
    assert see(used, "models/load", PLAIN, method="POST", body=b"{}").status == 400
    narrow = see(used, "keys", ADMIN, method="POST", body=b'{"name": "narrow", "models": ["tiny"]}').json["key"]
    field = f"Authorization: Bearer {narrow}"
    assert [model["name"] for model in see(used, "models", field).json["models"]] == ["tiny:latest"]
    with upstream.untouched():
        for path in ("chat", "models/load", "models/unload"):
            assert see(used, path, field, method="POST", body=chat()).status == 403, path
    assert see(used, "keys/narrow", ADMIN, method="PATCH", body=b'{"scopes": ["embed"]}').status == 200
    assert see(used, "models", field).status == 403
    assert see(used, "keys/narrow", ADMIN, method="DELETE").status == 200


def test_what_is_under_way_and_what_stands_still(upstream: Upstream) -> None:
    with Controlled(upstream.url, "--set", f"ollama_metrics_listen=127.0.0.1:{(port := free_port())}") as gate:
        upstream.hold()
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()) as wire:
            wire.read_until(b'"done":false}')
            gate.do("from ollama_auth.telemetry import pace; pace.STALLED, pace.RECENT = 0.5, 0")
            now = wait_until(lambda: (one := ask(port, "GET", "/console/overview", HOST).json)["stalled"] and one, "it")
            assert now["in_flight"][0]["stalled"] is True
            assert now["in_flight"][0]["client"] == "127.0.0.1"
            upstream.go_on()
            wire.read_until(b"0\r\n\r\n")
        the_gate = "from mitmproxy import ctx\ngate = ctx.master.addons.get('ollama_gate')\n"
        gate.do(f"{the_gate}type(gate).address = property(lambda _: ('127.0.0.1', {free_port()}))")
        assert ask(port, "POST", "/console/chat", HOST, BEARER, body=chat()).status == 502
        assert gate.do(f"{the_gate}result = gate.on_behalf") == "{}", "what has that port next is nobody's client"


def test_the_speed_is_that_of_the_last_seconds() -> None:
    """A stream that stands still has none, whatever it had before."""
    exchange = Exchange("192.0.2.1", started=100.0)
    exchange.usage = counting = Counting()  # type: ignore[assignment]
    exchange.first_token = exchange.last_token = 101.0
    pace = Pace()
    for second in range(101, 131):
        counting.events = min(50 * (second - 100), 500)
        exchange.last_token = min(second, 110)
        asyncio.run(pace.sample([exchange], second))
        if second == 108:
            assert pace.speed(exchange, 108) == 50
    assert pace.speed(exchange, 130.5) == 0
    assert pace.row(exchange, 130.5)["stalled"] is True
    assert pace.row(exchange, 130.5)["idle"] == 20.5


class Counting:
    """What counts the events of a stream."""

    stream, events, model = True, 0, "demo"


@pytest.mark.parametrize("at", [0, 30])
def test_tokens_are_counted_while_they_are_made(at: int) -> None:
    """A long answer is no spike at its end: its tokens are spread over the minutes in which they came."""
    with closing(usage_db.connect(None)) as connection:
        usage_db.prepare(connection)
        period = Period(6000.0, 60, 10)
        long = entry_of_ledger(time=6000.0 + at, ended=6300.0 + at, completion_tokens=3000, ttft_ms=60_000.0)
        usage_db.write(connection, [long, entry_of_ledger(time=6010.0, ended=6011.0, completion_tokens=7)], {})
        buckets = usage_periods.buckets(connection, period)
        tokens = [bucket["completion_tokens"] for bucket in buckets]
        assert sum(tokens) == 3007
        assert max(tokens[1:]) <= 750
        assert buckets[5]["answered"] == 1, "the request counts when it ended"
        running = [(6000.0, 60_000.0, 100)]
        usage_periods.add_running(more := [dict(bucket) for bucket in buckets], period, running, 6180.0)
        assert sum(bucket["completion_tokens"] for bucket in more) == 3107


def entry_of_ledger(**changed: object) -> Any:
    values = {"time": 0.0, "ended": 0.0, "id": "a", "client": "c", "method": "POST", "route_class": "infer"}
    values |= {"path": "/api/chat", "status": 200, "prompt_tokens": 5, "completion_tokens": 1, "estimated": False}
    values |= {
        "bytes_in": 0,
        "bytes_out": 0,
        "ttft_ms": 100.0,
        "duration_ms": 0.0,
        "generation_ms": 0.0,
        "stripped": "",
    }
    values |= {"key": "plain", "model": "demo", "outcome": "answered", "reason": ""} | changed
    took = 1000 * (float(str(values["ended"])) - float(str(values["time"])))
    values |= {"duration_ms": took, "generation_ms": took - float(str(values["ttft_ms"]))}
    return usage_db.Entry(**values)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_lines_of_the_page(upstream: Upstream, tmp_path: Path) -> None:
    """Each curl line of console.md, one after the other."""
    tool("curl")
    (file := tmp_path / "keys.toml").write_text("# Nobody yet.\n")
    file.chmod(0o600)
    with Ready(upstream.url, "--set", f"ollama_keys_file={file}") as gate:
        lines = [line for line in commands(CONSOLE) if line.startswith("curl ")]
        assert len(lines) == 11
        for line in lines:
            adapted = line.replace("127.0.0.1:9464", f"127.0.0.1:{gate.watch}").replace("llama3.2", "demo")
            env = os.environ | {"OLLAMA_API_KEY": KEY}
            said = subprocess.run(["sh", "-c", adapted], env=env, capture_output=True, text=True, check=True).stdout
            assert said, line
            assert '"error"' not in said, line
    assert "alice" not in file.read_text()
