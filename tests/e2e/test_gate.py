"""The gate end to end, over sockets: who is let in, what others are told, what goes upstream, what is written down."""

import base64
import hashlib
import json
import re
import secrets
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.gate import Gate
from tests.harness.leaks import assert_no_secret, send_secrets
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, Wire, ask, chat, head, parse


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


LET_IN = {
    "bearer": [BEARER],
    "bearer in any case": [f"authorization: BEARER {KEY}"],
    "more than one space": [f"Authorization: Bearer   {KEY}"],
    "x-api-key": [f"X-Api-Key: {KEY}"],
    "basic": [basic("anyone", KEY)],
    "basic without a name": [basic("", KEY)],
    "the same key in both places": [BEARER, f"x-api-key: {KEY}"],
    "the same key as basic and x-api-key": [basic("u", KEY), f"x-api-key: {KEY}"],
    "an empty x-api-key beside it": [BEARER, "X-Api-Key:"],
    "an empty x-api-key beside basic": [basic("u", KEY), "X-Api-Key:"],
    "an empty authorization beside it": ["Authorization:", f"X-Api-Key: {KEY}"],
    "an empty bearer beside it": ["Authorization: Bearer ", f"X-Api-Key: {KEY}"],
    "an empty password beside it": [basic("u", ""), f"X-Api-Key: {KEY}"],
    "an empty one of the same name": ["Authorization:", BEARER],
}


@pytest.mark.ways
@pytest.mark.parametrize("form", LET_IN)
def test_let_in(gate: Gate, upstream: Upstream, form: str) -> None:
    assert ask(gate.port, "GET", "/api/tags", *LET_IN[form]).status == 200
    sent = {name.lower() for name, _ in upstream.last.headers}
    assert not sent & {"authorization", "x-api-key"}


KEPT_OUT: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "missing"),
    "a wrong key": (["Authorization: Bearer sk-ollama-wrong"], "unknown"),
    "the key and more": ([BEARER + "x"], "unknown"),
    "less than the key": ([BEARER[:-1]], "unknown"),
    "the key in capitals": ([f"Authorization: Bearer {KEY.upper()}"], "unknown"),
    "the key with a star, as Caddy would take it": (["Authorization: Bearer sk-ollama-*"], "unknown"),
    "an empty header": (["Authorization:"], "malformed"),
    "an empty bearer": (["Authorization: Bearer"], "malformed"),
    "an empty x-api-key": (["x-api-key:"], "malformed"),
    "two empty places": (["Authorization:", "x-api-key:"], "malformed"),
    "an empty place, and a wrong key": (["Authorization: Bearer", "x-api-key: no"], "unknown"),
    "the key alone": ([f"Authorization: {KEY}"], "malformed"),
    "another scheme": ([f"Authorization: Digest {KEY}"], "malformed"),
    "two words": ([BEARER + " " + KEY], "malformed"),
    "two headers": ([BEARER, BEARER], "duplicate"),
    "two headers, one good": ([BEARER, "Authorization: Bearer no"], "duplicate"),
    "two x-api-keys": ([f"x-api-key: {KEY}", f"x-api-key: {KEY}"], "duplicate"),
    "two places, one good": ([BEARER, "x-api-key: no"], "duplicate"),
    "two places, the other good": (["Authorization: Bearer no", f"x-api-key: {KEY}"], "duplicate"),
    "two places, one malformed": (["Authorization: Basic !", f"x-api-key: {KEY}"], "malformed"),
    "basic with the key as the name": ([basic(KEY, "")], "malformed"),
    "basic that is not base64": (["Authorization: Basic a"], "malformed"),
    "basic without a colon": (["Authorization: Basic " + base64.b64encode(KEY.encode()).decode()], "malformed"),
    "over-long": (["Authorization: Bearer " + "a" * 5000], "malformed"),
    "proxy authorization": ([f"Proxy-Authorization: Bearer {KEY}"], "missing"),
    "an underscore": ([f"x_api_key: {KEY}"], "missing"),
    "a cookie": ([f"Cookie: Authorization=Bearer {KEY}"], "missing"),
    "another host": (["Host: localhost"], "missing"),
    "forwarded from here": (["X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1"], "missing"),
    "the key taken off on the way": ([BEARER.replace(" Bearer", " Bear er")], "malformed"),
}


@pytest.mark.ways
@pytest.mark.parametrize("form", KEPT_OUT)
def test_kept_out(gate: Gate, upstream: Upstream, form: str) -> None:
    fields, reason = KEPT_OUT[form]
    with upstream.untouched():
        answer = ask(gate.port, "POST", "/api/chat", *fields, body=chat())
    assert answer.status == 401
    assert f"({reason})" in gate.find(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"\xc3\xa9" * 10, b"\xed\xa0\x80", "Bearer ключ".encode(), b"Bearer \x80"]
)
def test_bytes_that_are_no_text(gate: Gate, upstream: Upstream, raw: bytes) -> None:
    with (
        upstream.untouched(),
        Wire(gate.port, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: " + raw + b"\r\n\r\n") as wire,
    ):
        assert parse(wire.read_all()).status == 401


def test_every_path_needs_the_key(gate: Gate, upstream: Upstream) -> None:
    paths = (
        "/",
        "/api/version",
        "/healthz",
        "/v1/models",
        "/favicon.ico",
        "//",
        "/../api/tags",
        "/api/%74ags",
        "/mitm.it",
    )
    with upstream.untouched():
        for path in paths:
            for method in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"):
                assert ask(gate.port, method, path).status == 401, (method, path)
        assert ask(gate.port, "GET", "/", "Host: mitm.it").status == 401


# The 401 itself.


def test_the_challenge(gate: Gate) -> None:
    missing, wrong = ask(gate.port, "GET", "/api/tags"), ask(gate.port, "GET", "/api/tags", "Authorization: Bearer no")
    assert missing.headers["www-authenticate"] == 'Bearer realm="ollama"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="ollama", error="invalid_token"'
    for answer in (missing, wrong):
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["connection"] == "close"
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert answer.body.count(b"\n") == 1
        assert answer.body.endswith(b"}\n")
        assert not {"server", "via", "x-powered-by"} & answer.headers.keys()
        assert b"mitm" not in answer.raw.lower()


BROWSERS = {
    "one that is old": "User-Agent: Mozilla/5.0 (X11) Gecko/20100101",
    "its language": "Accept-Language: de",
    "a page's request": "Origin: https://page.example",
    "where it comes from": "Referer: https://page.example/",
    "what it is for": "Sec-Fetch-Mode: navigate",
}


@pytest.mark.parametrize("sign", BROWSERS)
def test_no_browser_asks_its_user_for_a_password(gate: Gate, sign: str) -> None:
    """Other programs send one only if they are asked: see test_clients.py. A browser would send it for every page."""
    for fields in ([BROWSERS[sign]], [BROWSERS[sign], "Authorization: Bearer no"]):
        assert b"Www-Authenticate: Basic" not in ask(gate.port, "GET", "/", *fields).raw
    assert b'Www-Authenticate: Basic realm="ollama"\r\n' in ask(gate.port, "GET", "/").raw


SHAPES: dict[str, Callable[[str], object]] = {
    "/api/chat": lambda text: {"error": text},
    "/anything": lambda text: {"error": text},
    "/v1/chat/completions": lambda text: {
        "error": {"message": text, "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    },
    "/v1/messages": lambda text: {"type": "error", "error": {"type": "authentication_error", "message": text}},
}


@pytest.mark.parametrize("path", SHAPES)
def test_in_the_words_of_the_client(gate: Gate, path: str) -> None:
    text = "send the key as `Authorization: Bearer <key>`"
    assert ask(gate.port, "POST", path, body=chat()).json == SHAPES[path](text)


def test_head_gets_no_body(gate: Gate) -> None:
    answer = ask(gate.port, "HEAD", "/")
    assert answer.status == 401
    assert answer.body == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.ways
def test_no_100_continue_before_a_401(gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), Wire(gate.port) as wire:
        wire.send(head("POST", "/api/blobs/sha256:00", "Content-Length: 1000000", "Expect: 100-continue"))
        assert wire.read_all().startswith(b"HTTP/1.1 401 ")


@pytest.mark.ways
def test_the_connection_is_closed(gate: Gate) -> None:
    with Wire(gate.port, head("GET", "/api/tags")) as wire:
        assert parse(wire.read_all()).status == 401


REFUSED = {
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n", {400, 405}),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: x\r\n", {405}),
    "a websocket": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", {401, 426}),
    "another server": (b"GET http://example.com/api/tags HTTP/1.1\r\nHost: example.com\r\n", {421}),
    "another port": (b"GET http://127.0.0.1:1/api/tags HTTP/1.1\r\nHost: x\r\n", {421}),
    "another scheme": (b"GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n", {421}),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n", {421}),
    "HTTP/2 without TLS": (b"PRI * HTTP/2.0\r\n", {505}),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("fields", [[], [BEARER]], ids=["stranger", "with a key"])
def test_refused_whoever_asks(gate: Gate, upstream: Upstream, what: str, fields: list[str]) -> None:
    request, statuses = REFUSED[what]
    with upstream.untouched(), Wire(gate.port) as wire:
        wire.send(request + "".join(f"{field}\r\n" for field in fields).encode() + b"\r\n")
        assert parse(wire.read_all()).status in statuses


def test_the_absolute_form_of_this_server(gate: Gate, upstream: Upstream) -> None:
    here = f"127.0.0.1:{gate.port}"
    assert ask(gate.port, "GET", f"http://{here}/api/version", f"Host: {here}", BEARER).status == 200
    assert upstream.last.target == "/api/version"
    with upstream.untouched():
        assert ask(gate.port, "GET", f"http://{here}/api/version", f"Host: {here}").status == 401


HARMLESS = {
    "an offer of h2c, as Java's client makes it": (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ),
    "two offers": ("Connection: upgrade", "Upgrade: h2,h2c"),
    "an offer of a new TLS": ("Connection: upgrade", "Upgrade: TLS/1.3"),
    "an empty offer": ("Connection: upgrade", "Upgrade:"),
    "an offer of nothing": ("Connection: upgrade", "Upgrade: , "),
    "an offer that is none": ("Connection: upgrade",),
    "an offer to nobody": ("Upgrade: whatever",),
    "an empty expectation": ("Expect:",),
    "an expectation of nothing": ("Expect: ,",),
    "latin-1": ("X-User-Name: Jos\xe9",),
    "latin-1 in a cookie": ("Cookie: name=Jos\xe9",),
    "latin-1 in the id": ("X-Request-Id: Jos\xe9",),
}


@pytest.mark.ways
@pytest.mark.parametrize("what", HARMLESS)
def test_harmless(gate: Gate, upstream: Upstream, what: str) -> None:
    """It is ignored, and does not go upstream."""
    body = b'{"model":"demo"}'
    with Wire(gate.port, head("POST", "/api/show", BEARER, *HARMLESS[what], f"Content-Length: {len(body)}")) as wire:
        wire.send(body)
        assert wire.read_response().raw.startswith(b"HTTP/1.1 200 "), "and no 100 Continue"
    assert {name.lower() for name, _ in upstream.last.headers} == {"host", "content-length"}


WEBSOCKETS = [
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="),
    ("Connection: keep-alive, upgrade", "Upgrade: h2c, WebSocket"),
]


@pytest.mark.parametrize("fields", WEBSOCKETS)
@pytest.mark.parametrize("path", ["/v1/responses", "/api/chat", "/nowhere"])
def test_a_websocket(gate: Gate, upstream: Upstream, path: str, fields: list[str]) -> None:
    """Codex asks for one first, and takes 426 alone for a no."""
    with upstream.untouched():
        answer = ask(gate.port, "GET", path, BEARER, *fields)
        assert (answer.status, answer.headers["upgrade"]) == (426, "HTTP/1.1")
        assert "(websocket)" in gate.find(answer.headers["x-request-id"])
        assert ask(gate.port, "GET", path, *fields).status == 401
        assert ask(gate.port, "GET", path, "Authorization: Bearer no", *fields).status == 401


@pytest.mark.parametrize("field", ["User-Agent: Jos\xe9", "Accept: \xff"])
def test_what_goes_upstream_must_be_text(gate: Gate, upstream: Upstream, field: str) -> None:
    with upstream.untouched():
        answer = ask(gate.port, "GET", "/api/tags", BEARER, field)
    assert answer.status == 400
    assert "default GET /api/tags 400 (malformed)" in gate.find(answer.headers["x-request-id"])


@pytest.mark.ways
def test_trust_ends_with_the_request(gate: Gate, upstream: Upstream) -> None:
    with Wire(gate.port, head("GET", "/api/version", BEARER)) as wire:
        assert wire.read_response().status == 200
        with upstream.untouched():
            wire.send(head("GET", "/api/version"))
            assert parse(wire.read_all()).status == 401


# What goes upstream.


def test_headers_that_go_upstream(gate: Gate, upstream: Upstream) -> None:
    nobodys_business = (
        "Cookie: a=b",
        "Origin: http://evil.example",
        "Referer: http://evil.example/",
        "X-Forwarded-For: 10.0.0.1",
        "X-OpenWebUI-User-Email: a@b.c",
        "Proxy-Authorization: Basic eDp5",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "X-Stainless-OS: Linux",
        "Connection: keep-alive, X-Secret",
        "X-Secret: 1",
    )
    wanted = (
        "Accept: application/json",
        "Content-Type: application/json",
        "User-Agent: test/1",
        "anthropic-version: 1",
    )
    ask(gate.port, "POST", "/api/show", BEARER, *nobodys_business, *wanted, body=b'{"model":"demo"}')
    sent = dict(upstream.last.headers)
    assert sent == {
        "Host": f"127.0.0.1:{upstream.port}",
        "Content-Length": "16",
        **dict(field.split(": ") for field in wanted),
    }
    assert upstream.last.body == b'{"model":"demo"}'


def test_more_headers_by_option(upstream: Upstream) -> None:
    with Gate(
        upstream.url, "--set", "ollama_forward_headers=X-Team", "--set", "ollama_forward_headers=traceparent"
    ) as gate:
        ask(gate.port, "GET", "/api/tags", BEARER, "X-Team: red", "Traceparent: 00-1", "X-Other: 1")
        sent = {name.lower() for name, _ in upstream.last.headers}
        assert {"x-team", "traceparent"} <= sent
        assert "x-other" not in sent


def test_no_credential_in_the_url_goes_upstream(gate: Gate, upstream: Upstream) -> None:
    ask(gate.port, "POST", f"/v1/messages?beta=true&api_key={KEY}&x={KEY}&key=other&y=1", BEARER, body=chat())
    assert upstream.last.target == "/v1/messages?beta=true&y=1"
    with upstream.untouched():
        assert ask(gate.port, "GET", f"/api/tags/{KEY}", BEARER).status == 400


def test_the_path_goes_upstream_as_it_came(gate: Gate, upstream: Upstream) -> None:
    for path in ("/api/%74ags", "//api//tags", "/api/tags?a=%20b", "/v1/models/library%2Fdemo"):
        ask(gate.port, "GET", path, BEARER)
        assert upstream.last.target == path


@pytest.mark.ways
def test_the_response_comes_back_as_it_was(gate: Gate, upstream: Upstream) -> None:
    def normal(answer: Response) -> tuple[int, dict[str, str], bytes]:
        fields = {n: v for n, v in answer.headers.items() if n not in ("date", "x-request-id", "connection")}
        return answer.status, fields, re.sub(rb'"[0-9T:.Z-]{20,}"|[0-9]{6,}|"chatcmpl-[0-9]+"', b"?", answer.body)

    requests = [
        ("GET", "/", b""),
        ("GET", "/api/tags", b""),
        ("GET", "/nowhere", b""),
        ("PUT", "/api/tags", b""),
        ("POST", "/api/chat", b"{"),
        ("POST", "/api/show", b'{"model":"demo"}'),
        ("POST", "/api/show", b'{"model":"nope"}'),
        ("POST", "/v1/embeddings", b'{"model":"demo","input":"x"}'),
        ("DELETE", "/api/delete", b'{"model":"nope"}'),
        ("HEAD", "/api/tags", b""),
        ("GET", "/demo/status/204", b""),
        ("GET", "/demo/status/304", b""),
    ]
    for method, path, body in requests:
        direct = normal(ask(upstream.port, method, path, body=body))
        assert normal(ask(gate.port, method, path, BEARER, body=body)) == direct, (method, path)


# Streaming.

STREAMS = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages")


@pytest.mark.ways
@pytest.mark.parametrize("path", STREAMS)
def test_tokens_pass_at_once(gate: Gate, upstream: Upstream, path: str) -> None:
    """The stand-in sends the first one and waits: the client must have it already."""
    body = chat(stream=True, prompt="the sky is", max_tokens=20)
    upstream.hold()
    with Wire(gate.port, head("POST", path, BEARER, f"Content-Length: {len(body)}") + body) as wire:
        first = wire.read_until(b"\n")
        while b"{" not in first:
            first = wire.read_until(b"\n")
        upstream.go_on()
        wire.read_until(b"0\r\n\r\n")


@pytest.mark.ways
def test_a_request_body_streams(gate: Gate, upstream: Upstream) -> None:
    with Wire(gate.port, head("POST", "/demo/sink", BEARER, "Transfer-Encoding: chunked")) as wire:
        for number in range(1, 4):
            wire.send(b"3\r\nabc\r\n")
            wait_until(lambda n=number: upstream.requests and upstream.last.body_length == 3 * n, "the chunk upstream")
        wire.send(b"0\r\n\r\n")
        assert wire.read_response().json == {"bytes": 9}


@pytest.mark.ways
def test_a_client_that_leaves_ends_the_request_upstream(gate: Gate, upstream: Upstream) -> None:
    upstream.hold()
    body = chat()
    with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
        wire.read_until(b"\n")
    wait_until(lambda: upstream.open_connections == 0, "the connection upstream to close")


@pytest.mark.ways
def test_also_before_the_first_byte(gate: Gate, upstream: Upstream) -> None:
    with Wire(gate.port, head("GET", "/demo/silent/30", BEARER)):
        wait_until(lambda: [seen for seen in upstream.requests if "silent" in seen.target], "the request upstream")
    started = time.monotonic()
    wait_until(lambda: upstream.open_connections == 0, "the connection upstream to close")
    assert time.monotonic() - started < 5


@pytest.mark.ways
def test_an_early_answer_gets_through(gate: Gate, upstream: Upstream) -> None:
    """Ollama answers the upload of a blob it has before it read it, and closes."""
    content = secrets.token_bytes(6000)  # No other test has put it there.
    path = "/api/blobs/sha256:" + hashlib.sha256(content).hexdigest()
    assert ask(gate.port, "POST", path, BEARER, body=content).status == 201
    with Wire(gate.port, head("POST", path, BEARER, f"Content-Length: {50_000_000}")) as wire:
        assert parse(wire.read_all()).status == 200


@pytest.mark.ways
def test_expect_100_continue(gate: Gate, upstream: Upstream) -> None:
    with Wire(gate.port, head("POST", "/demo/sink", BEARER, "Content-Length: 3", "Expect: 100-continue")) as wire:
        assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b"abc")
        assert wire.read_response().json == {"bytes": 3}


# The log.


@pytest.fixture(scope="module")
def json_gate(shared_upstream: Upstream) -> Iterator[Gate]:
    with Gate(shared_upstream.url, "--set", "ollama_access_log=-") as gate:
        yield gate


def record(gate: Gate, answer: Response) -> dict[str, object]:
    loaded = json.loads(gate.find(answer.headers["x-request-id"]))
    assert isinstance(loaded, dict)
    return loaded


def test_a_line_of_json(json_gate: Gate, upstream: Upstream) -> None:
    body = chat()
    answer = ask(json_gate.port, "POST", "/api/chat?secret=in-the-query", BEARER, "Cookie: a=b", body=body)
    line = record(json_gate, answer)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert 0 < float(str(line.pop("ttft_ms"))) <= float(str(line.pop("duration_ms"))) < 10_000
    assert line == {
        "id": answer.headers["x-request-id"],
        "client": "127.0.0.1",
        "key": "default",
        "method": "POST",
        "path": "/api/chat",
        "status": 200,
        "outcome": "answered",
        "stripped": ["authorization", "cookie"],
        "bytes_in": len(body),
        "bytes_out": len(answer.body),
        "model": "demo",
        "stream": True,
        "prompt_tokens": 5,
        "completion_tokens": len(answer.body.splitlines()) - 1,
        "complete": True,
    }


def test_a_line_of_a_refusal(json_gate: Gate) -> None:
    line = record(json_gate, ask(json_gate.port, "GET", "/v1/models?x=1", "Authorization: Bearer wrong-key"))
    assert line["status"] == 401
    assert line["reason"] == "unknown"
    assert line["key"] == "unknown:" + hashlib.sha256(b"wrong-key").hexdigest()[:8]
    assert line["path"] == "/v1/models"


@pytest.mark.ways
def test_a_line_of_a_client_that_left(json_gate: Gate, upstream: Upstream) -> None:
    upstream.hold()
    body = chat()
    fields = (BEARER, f"Content-Length: {len(body)}", "X-Request-Id: left-early")
    with Wire(json_gate.port, head("POST", "/api/chat", *fields) + body) as wire:
        wire.read_until(b"\n")
    line = json.loads(json_gate.find("left-early"))
    assert line["reason"] == "client left"
    assert line["status"] == 200


def test_the_request_id(gate: Gate) -> None:
    assert ask(gate.port, "GET", "/api/tags", BEARER, "X-Request-Id: my.id-1").headers["x-request-id"] == "my.id-1"
    assert ask(gate.port, "GET", "/api/tags", "X-Request-Id: my.id-2").headers["x-request-id"] == "my.id-2"
    for bad in ("a b", "x" * 65, "", 'quote"', "a/b"):
        assert re.fullmatch("[0-9a-f]{16}", ask(gate.port, "GET", "/", f"X-Request-Id: {bad}").headers["x-request-id"])
    twice = ask(gate.port, "GET", "/", "X-Request-Id: one", "X-Request-Id: two")
    assert re.fullmatch("[0-9a-f]{16}", twice.headers["x-request-id"])


@pytest.mark.parametrize(
    "target", ["/%0A2026-11-23T00:00:00Z", "/%1b[31mred", "/%E2%80%AEx", "/a%20b", "/%22}", "/%5cx41"]
)
def test_no_line_can_be_forged_by_a_path(gate: Gate, json_gate: Gate, target: str) -> None:
    for one in (gate, json_gate):
        one.find(ask(one.port, "GET", "/").headers["x-request-id"])  # All lines before it are there by now.
        before = len(one.lines)
        answer = ask(one.port, "GET", target)
        line = one.find(answer.headers["x-request-id"])
        assert line.isprintable()
        assert line.isascii()
        assert len(one.lines) == before + 1
        assert "\x1b" not in line
    assert len(gate.lines[-1].split(" ")) == 11, gate.lines[-1]


def test_a_header_name_forges_nothing(gate: Gate) -> None:
    answer = ask(gate.port, "GET", "/", "X-a|b,c: 1".replace(",", "^"))
    assert "stripped=x-a|b^c" in gate.find(answer.headers["x-request-id"])


def test_a_log_file_and_a_full_disk(upstream: Upstream, tmp_path: Path) -> None:
    with Gate(upstream.url, "--set", f"ollama_access_log={tmp_path}/log.jsonl") as gate:
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
        lines = wait_until(lambda: (tmp_path / "log.jsonl").read_text().splitlines(), "the line")
        assert json.loads(lines[0])["path"] == "/api/tags"
        assert "/api/tags" not in gate.output
    with Gate(upstream.url, "--set", "ollama_access_log=/dev/full") as gate:
        for _ in range(3):
            assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
        assert "No space left" in gate.find("access log can't be written")
        assert ask(gate.port, "GET", "/api/tags").status == 401


# No secret anywhere.


def test_no_secret_in_any_log(upstream: Upstream, tmp_path: Path) -> None:
    """At the highest levels, with whole flows printed and saved."""
    flows = tmp_path / "flows"
    args = ("--set", "flow_detail=4", "--set", "termlog_verbosity=debug", "-w", str(flows))
    with Gate(upstream.url, *args) as gate:
        send_secrets(gate)
        gate.signal()
        gate.wait()
        assert_no_secret(gate.output)
    saved = flows.read_bytes().decode("latin-1")
    assert "api/chat" in saved
    assert "why is the sky blue" in saved
    assert "refused: unknown" in saved
    assert_no_secret(saved)


def test_no_secret_in_mitmweb(upstream: Upstream) -> None:
    port = free_port()
    args = ("--set", "web_open_browser=false", "--set", f"web_port={port}", "--set", "web_password=letmein")
    with Gate(upstream.url, *args, "--set", f"ollama_api_key={KEY}", key=None, program="mitmweb") as gate:
        send_secrets(gate)
        gate.find("Web server listening")
        for page in ("/flows", "/options", "/events", "/state", "/commands"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}?token=letmein") as response:
                text = response.read().decode()
            assert_no_secret(text)
            if page == "/flows":
                assert " default " in text
                assert "refused: unknown" in text


@pytest.mark.slow
def test_no_secret_in_the_list_of_processes(upstream: Upstream) -> None:
    with Gate(upstream.url, fork=False) as gate:
        assert KEY.encode() not in Path(f"/proc/{gate.process.pid}/cmdline").read_bytes()


def test_tls_without_a_certificate_fails_properly(gate: Gate, upstream: Upstream) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with upstream.untouched(), Wire(gate.port) as wire, pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        context.wrap_socket(wire.socket)
