"""Named keys over sockets: scopes, models, limits, the stock CLI's signatures, and a keys file that changes."""

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ollama_auth.auth import cut_off, policy
from ollama_auth.auth.keys import Principal, Scope
from ollama_auth.ollama_api.request_models import JsonModels
from ollama_auth.ollama_api.routes import _ROUTES, RouteClass
from ollama_auth.ollama_api.routes import route as route_of
from tests.harness.base import BEARER, free_port, wait_until
from tests.harness.certificates import certificate
from tests.harness.credentials import PUBLIC, bearer, entry, public_line, secret, signature, signed
from tests.harness.gate import Controlled, Gate, assert_sound
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

PATIENT = ("--set", "ollama_max_wrong_keys=0")
"""The tests ask again and again whether a key is known yet."""


LISTED = Ed25519PrivateKey.generate()
KEYS = "\n".join(
    [
        entry("alice"),
        entry("bob", scopes=["all"]),
        entry("carol", scopes=["list"]),
        entry("dora", models=["demo", "qwen*"], scopes=["all"]),
        entry("erin", scopes=["infer", "embed", "list", "cloud"]),
        entry("late", expires="2020-01-01T00:00:00Z"),
        entry("paused", disabled=True, scopes=["all", "admin"], note="on leave"),
        entry("minute", requests_per_minute=3, scopes=["all"]),
        entry("two", concurrent_requests=2, scopes=["all"]),
        entry("tokens", tokens_per_day=10, scopes=["all"]),
        entry("writer", scopes=["write", "list", "delete"]),
        '[[keys]]\nname = "listed"\nscopes = ["all"]\nmodels = ["demo", "qwen*"]\n'
        f'ssh_ed25519 = "{public_line(LISTED)}"\n',
        f'[[keys]]\nname = "laptop"\nscopes = ["all"]\nssh_ed25519 = "{PUBLIC} me@laptop"\n',
    ]
)


@pytest.fixture(scope="module")
def named(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    args = ("--set", "ollama_max_inspected_body=64k", "--set", "ollama_max_wrong_keys=0")
    with Gate(shared_upstream.url, *args, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        yield gate
        assert "Traceback" not in gate.output
        assert "crashed" not in gate.output


# Scopes.


def test_everyone_by_name(named: Gate, upstream: Upstream) -> None:
    for name in ("alice", "bob", "erin"):
        answer = ask(named.port, "POST", "/api/chat", bearer(name), body=chat())
        assert answer.status == 200
        assert f" {name} POST /api/chat 200" in named.find(answer.headers["x-request-id"])
    assert ask(named.port, "POST", "/api/chat", BEARER, body=chat()).status == 200, "the one key beside them"
    with upstream.untouched():
        assert ask(named.port, "POST", "/api/chat", bearer("nobody"), body=chat()).status == 401


def test_an_expired_key(named: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answer = ask(named.port, "GET", "/api/tags", bearer("late"))
    assert answer.status == 401
    assert "expired" in answer.json["error"]
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.slow
def test_a_name_of_any_letters(upstream: Upstream, tmp_path: Path) -> None:
    """In the log, in metrics and where it has to be counted, and on a terminal that knows ASCII only."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("Zo\u00eb", requests_per_minute=2, scopes=["list"]))
    file.chmod(0o600)
    env = {"OLLAMA_KEYS_FILE": str(file), "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    port = free_port()
    with Gate(upstream.url, "--set", f"ollama_metrics_listen=127.0.0.1:{port}", key=None, env=env) as gate:
        answers = [ask(gate.port, "GET", "/api/tags", bearer("Zo\u00eb")) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert " Zo\u00eb GET /api/tags 429 " in gate.find(answers[-1].headers["x-request-id"])
        metrics = ask(port, "GET", "/metrics", f"Host: 127.0.0.1:{port}").body.decode()
        assert 'key="Zo\u00eb"' in metrics


def test_a_disabled_key(named: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answer = ask(named.port, "GET", "/api/tags", bearer("paused"))
    assert (answer.status, answer.json) == (401, {"error": "the key is disabled: ask who gave it to you"})
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert " paused GET /api/tags 401 (disabled)" in named.find(answer.headers["x-request-id"])


def requests() -> Iterator[tuple[str, str, RouteClass]]:
    """One request of each line of the table of routes, and one that is in none."""
    for (method, path), found in _ROUTES.items():
        yield method.decode(), path.decode().replace("*", "x"), found.route_class
    yield "GET", "/nowhere", RouteClass.UNKNOWN


FORMS: dict[str, Callable[[str], str]] = {
    "bearer": lambda name: bearer(name),
    "x-api-key": lambda name: f"x-api-key: {secret(name)}",
    "basic": lambda name: "Authorization: Basic " + base64.b64encode(f"x:{secret(name)}".encode()).decode(),
}
SCOPES = {
    "alice": {Scope.INFER, Scope.EMBED, Scope.LIST},
    "bob": {Scope.ALL},
    "carol": {Scope.LIST},
    "writer": {Scope.WRITE, Scope.LIST, Scope.DELETE},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SCOPES)
def test_the_matrix(named: Gate, upstream: Upstream, form: str, name: str) -> None:
    """Every route, with every form of credential: the same policy."""
    principal = Principal(name, frozenset(SCOPES[name]))
    body = b'{"model":"nope","source":"nope","destination":"x"}'
    for method, path, route_class in requests():
        if route_class is RouteClass.INFER and path.endswith("transcriptions"):
            continue  # It takes a form, and not this body.
        denied = policy.check_route(principal, route_of(method.encode(), path.encode()), time.time())
        before = len(upstream.requests)
        answer = ask(named.port, method, path, FORMS[form](name), body=body if method in ("POST", "DELETE") else b"")
        if denied:
            assert answer.status == denied.status, (method, path)
            assert len(upstream.requests) == before
            if method != "HEAD":
                assert policy.NEEDS[route_class] in answer.body.decode()
        else:
            assert answer.status not in (401, 403), (method, path, answer)
            assert len(upstream.requests) == before + 1, (method, path, answer)


def test_account_is_for_who_is_named(named: Gate, upstream: Upstream) -> None:
    """Who it is may be asked by who uses it: see test_upstream_errors.py."""
    with upstream.untouched():
        assert ask(named.port, "POST", "/api/me", bearer("alice")).status == 403
        for method, path in (("POST", "/api/signout"), ("DELETE", "/api/user/keys/x"), ("POST", "//api/signout/")):
            assert ask(named.port, method, path, bearer("bob")).status == 403
    assert ask(named.port, "POST", "/api/me", BEARER).status == 404, "the stand-in has none, but it was asked"


ASKED_OF_OLLAMA = [
    ("POST", "/v1/messages/count_tokens?beta=true"),
    ("POST", "/api/chat/"),
    ("POST", "//api/chat"),
    ("GET", "//api//tags"),
    ("GET", "/api/tags%2F"),
]


@pytest.mark.parametrize(("method", "path"), ASKED_OF_OLLAMA)
@pytest.mark.parametrize("name", ["alice", "dora"])
def test_what_ollama_redirects_or_does_not_know(
    named: Gate, upstream: Upstream, method: str, path: str, name: str
) -> None:
    """It answers itself, and the key may ask what it may ask on the path that it redirects to."""
    body = chat("demo") if method == "POST" else b""
    answer = ask(named.port, method, path, bearer(name), body=body)
    direct = ask(upstream.port, method, path, body=body)
    assert (answer.status, answer.body) == (direct.status, direct.body)
    assert upstream.last.target == path
    with upstream.untouched():
        if method == "POST":
            assert ask(named.port, method, path, bearer("carol"), body=body).status == 403
            assert ask(named.port, method, path, bearer("dora"), body=chat("tiny")).status == 403
            assert ask(named.port, method, path, bearer("alice"), body=chat("m:cloud")).status == 403
        else:
            assert ask(named.port, method, path).status == 401


MEANT = [
    ("POST", "/chat/completions", 404, "/v1/chat/completions"),
    ("POST", "/v1/v1/messages", 404, "/v1/messages"),
    ("POST", "/v1/api/chat", 404, "/api/chat"),
    ("GET", "/api/./tags", 404, "/api/tags"),
    ("POST", "/API/chat", 404, "/api/chat"),
    ("GET", "/api/chat", 405, "POST"),
    ("POST", "/api/tags/", 405, "GET, HEAD"),
]


@pytest.mark.parametrize(("method", "path", "status", "told"), MEANT)
@pytest.mark.parametrize("name", ["alice", "dora"])
def test_a_wrong_path_is_told_the_right_one(
    named: Gate, upstream: Upstream, method: str, path: str, status: int, told: str, name: str
) -> None:
    with upstream.untouched():
        answer = ask(named.port, method, path, bearer(name), body=chat() if method == "POST" else b"")
    assert answer.status == status
    assert told in answer.body.decode()
    assert "lacks the scope" not in answer.body.decode()
    assert answer.headers.get("allow") == (told if status == 405 else None)
    assert "(wrong path)" in named.find(answer.headers["x-request-id"])
    assert ask(named.port, method, path, bearer("bob")).headers.get("x-should-retry") is None, "Ollama answers"


def test_a_web_search_is_refused_with_the_remedy(named: Gate, upstream: Upstream) -> None:
    """Codex offers it in every request."""
    body = chat(input="x", tools=[{"type": "function", "name": "f"}, {"type": "web_search"}])
    with upstream.untouched():
        answer = ask(named.port, "POST", "/v1/responses", bearer("alice"), body=body)
    assert (answer.status, answer.headers["x-should-retry"]) == (403, "false")
    assert "turn that tool off" in answer.json["error"]["message"]


def test_a_websocket_of_who_may_not_do_it_anyway(named: Gate, upstream: Upstream) -> None:
    fields = ("Connection: Upgrade", "Upgrade: websocket")
    with upstream.untouched():
        assert ask(named.port, "GET", "/v1/responses", bearer("carol"), *fields).status == 426
        assert ask(named.port, "GET", "/v1/responses", bearer("late"), *fields).status == 401


def test_a_denial_in_the_words_of_the_client(named: Gate) -> None:
    openai = ask(named.port, "POST", "/v1/chat/completions", bearer("carol"), body=chat()).json
    assert openai["error"]["type"] == "permission_error"
    assert "infer" in openai["error"]["message"]
    anthropic = ask(named.port, "POST", "/v1/messages", bearer("carol"), body=chat()).json
    assert anthropic["error"]["type"] == "permission_error"


# Models.

ALLOWED = ["demo", "demo:latest", "DEMO", "library/demo", "registry.ollama.ai/library/demo:latest", "qwen3:8b"]
DENIED = ["tiny", "demo:1b", "other/demo", "evil.example/library/demo", "xqwen", "demo\u0130"]


@pytest.mark.parametrize("model", ALLOWED)
def test_a_model_of_the_list(named: Gate, upstream: Upstream, model: str) -> None:
    answer = ask(named.port, "POST", "/api/chat", bearer("dora"), body=chat(model))
    assert answer.status in (200, 404), answer
    assert json.loads(upstream.last.body)["model"] == model


@pytest.mark.parametrize("model", DENIED)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages", "/api/embed"])
def test_a_model_that_is_not(named: Gate, upstream: Upstream, path: str, model: str) -> None:
    with upstream.untouched():
        assert ask(named.port, "POST", path, bearer("dora"), body=chat(model)).status in (400, 403)


WITH_MODELS = [
    (method, path)
    for method, path, _ in requests()
    if isinstance(route_of(method.encode(), path.encode()).models, JsonModels)
    and path not in ("/api/create", "/api/copy")
]


@pytest.mark.parametrize("model", ["qwen3:8b", "tiny"])
@pytest.mark.parametrize("form", [*FORMS, "signature"])
def test_the_matrix_of_models(named: Gate, upstream: Upstream, form: str, model: str) -> None:
    """Every route that takes a model, with every form of credential: the same list."""
    body = json.dumps({"model": model, "stream": False}).encode()
    for method, path in WITH_MODELS:
        target = signed(path) if form == "signature" else path
        credential = signature(method, target, LISTED) if form == "signature" else FORMS[form]("dora")
        before = len(upstream.requests)
        answer = ask(named.port, method, target, credential, body=body)
        allowed = model != "tiny"
        assert (answer.status == 403) is not allowed, (path, answer)
        assert len(upstream.requests) == before + allowed, path
        if allowed:
            assert upstream.last.target == path
            # What the demo does not know it answers before it has read the body.
            assert wait_until(lambda: upstream.last.body, "the body") == body


TRICKS = {
    "the last of two": (b'{"model":"demo","model":"tiny"}', 403),
    "another case": (b'{"model":"demo","MODEL":"tiny"}', 403),
    "what Ollama would run is allowed": (b'{"model":"tiny","MODEL":"demo"}', None),
    "escaped": (b'{"mode\\u006c":"tiny"}', 403),
    "the first value alone": (b'{"model":"demo"} {"model":"tiny"}', None),
    "not JSON": (b"model=demo", 400),
    "nothing": (b"{}", None),
    "a name that is not UTF-8": (b'{"model":"demo\xff"}', 400),
    "a permitted name with bytes that are not UTF-8 in its key": (b'{"model\xff":"demo","model":"tiny"}', 403),
    "a name in an overlong encoding": (b'{"model":"\xc1\xa4emo"}', 400),
    "a byte order mark": (b'\xef\xbb\xbf{"model":"demo"}', 400),
    "another encoding": ('{"model":"demo"}'.encode("utf-16"), 400),
    "null": (b'{"model":"tiny","model":null}', 403),
    "a number": (b'{"model":1}', 400),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_with_the_body(named: Gate, upstream: Upstream, trick: str) -> None:
    body, status = TRICKS[trick]
    before = len(upstream.requests)
    answer = ask(named.port, "POST", "/api/chat", bearer("dora"), body=body)
    if status is None:
        assert answer.status in (200, 400, 403, 404)
        if len(upstream.requests) > before:
            assert upstream.last.body == body, "what was judged is what was sent"
    else:
        assert answer.status in (400, 403), answer
        assert len(upstream.requests) == before


def test_text_that_is_not_utf_8(named: Gate, upstream: Upstream) -> None:
    """The output of a tool that was cut inside a character: Ollama takes it."""
    body = chat("demo", stream=False).replace(b"blue", b"\xe2\x82")
    for size in (1, len(body)):
        with Wire(named.port, head("POST", "/api/chat", bearer("dora"), f"Content-Length: {len(body)}")) as wire:
            for at in range(0, len(body), size):
                wire.send(body[at : at + size])
            assert wire.read_response().status == 200
        assert upstream.last.body == body


def test_the_judged_body_is_the_one_that_is_sent_in_any_framing(named: Gate, upstream: Upstream) -> None:
    body = chat("demo", stream=False)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with Wire(named.port, head("POST", "/api/chat", bearer("dora"), "Transfer-Encoding: chunked") + chunks) as wire:
        assert wire.read_response().status == 200
    assert upstream.last.body == body
    fields = (bearer("dora"), f"Content-Length: {len(body)}", "Expect: 100-continue")
    with upstream.untouched(), Wire(named.port, head("POST", "/api/chat", *fields)) as wire:
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    with Wire(named.port, head("POST", "/api/chat", *fields)) as wire:
        wire.read_until(b"\r\n\r\n")
        wire.send(body)
        assert wire.read_response().status == 200


def test_a_body_that_must_be_read_is_bounded(named: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        assert ask(named.port, "POST", "/api/chat", bearer("dora"), body=chat("demo", x="y" * 70_000)).status == 413
        with Wire(named.port, head("POST", "/api/chat", bearer("dora"), "Transfer-Encoding: chunked")) as wire:
            wire.send(b"10000\r\n" + b" " * 65536 + b"\r\n" + b"10000\r\n" + b" " * 65536 + b"\r\n")
            assert b" 413 " in wire.read_all()
    assert ask(named.port, "POST", "/api/chat", BEARER, body=chat("demo", x="y" * 70_000)).status == 200


def test_a_client_that_leaves_while_its_body_is_awaited(named: Gate, upstream: Upstream) -> None:
    fields = (bearer("dora"), "Content-Length: 100", "X-Request-Id: left-while-held")
    with upstream.untouched():
        with Wire(named.port, head("POST", "/api/chat", *fields) + b'{"model":') as wire:
            time.sleep(0.1)
            del wire
        assert "(client left)" in named.find("left-while-held")


def test_held_requests_on_one_connection_one_after_the_other(named: Gate, upstream: Upstream) -> None:
    """Pipelined, even: judged each by itself, and sent whole."""
    good, bad = chat("demo", stream=False), chat("tiny", stream=False)
    requests = [
        head("POST", "/api/chat", bearer("dora"), f"Content-Length: {len(body)}") + body for body in (good, bad)
    ]
    before = len(upstream.requests)
    with Wire(named.port, requests[0] + requests[0] + requests[1] + requests[0]) as wire:
        assert [wire.read_response().status for _ in range(3)] == [200, 200, 403]
        assert wire.read_all() == b""
    assert [seen.body for seen in upstream.requests[before:]] == [good, good]


async def test_denials_do_not_end_the_connection_of_somebody_with_a_key(upstream: Upstream, tmp_path: Path) -> None:
    """In HTTP/2: other requests are on it."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("dora", models=["demo"], scopes=["all"], concurrent_requests=30))
    file.chmod(0o600)
    args = ("--certs", str(certificate(tmp_path)))
    with Gate(upstream.url, *args, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        client = httpx.AsyncClient(
            http2=True,
            verify=False,  # noqa: S501 - it is our own
            headers={"Authorization": f"Bearer {secret('dora')}"},
            base_url=f"https://127.0.0.1:{gate.port}",
        )
        async with client:

            async def status(number: int) -> int:
                answer = await client.post("/api/chat", content=chat("demo" if number % 3 else "tiny"))
                assert answer.http_version == "HTTP/2"
                return answer.status_code

            statuses = await asyncio.gather(*map(status, range(21)))
        assert statuses == [403 if number % 3 == 0 else 200 for number in range(21)]


def test_a_compressed_body_can_not_be_judged(named: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        fields = (bearer("dora"), "Content-Encoding: zstd")
        assert ask(named.port, "POST", "/v1/chat/completions", *fields, body=b"x").status == 415


def test_without_a_list_nothing_is_held_back(named: Gate, upstream: Upstream) -> None:
    with Wire(named.port, head("POST", "/api/chat", bearer("bob"), "Transfer-Encoding: chunked")) as wire:
        wire.send(b"1\r\n{\r\n")
        wait_until(lambda: upstream.requests and upstream.last.body_length == 1, "the first byte upstream")


def test_lists_show_what_may_be_used(named: Gate, upstream: Upstream) -> None:
    def names(who: str, path: str, field: str, key: str) -> set[str]:
        answer = ask(named.port, "GET", path, who)
        assert int(answer.headers["content-length"]) == len(answer.body)
        return {model[key] for model in answer.json[field]}

    assert names(BEARER, "/api/tags", "models", "name") >= {"demo:latest", "tiny:latest"}
    assert names(bearer("dora"), "/api/tags", "models", "name") == {"demo:latest"}
    assert names(bearer("dora"), "/v1/models", "data", "id") == {"demo:latest"}
    answer = ask(named.port, "HEAD", "/api/tags", bearer("dora"))
    assert answer.status == 200
    assert answer.headers.get("content-length", "0") == "0", "it would tell how much there is besides"
    with upstream.untouched():
        assert ask(named.port, "GET", "/v1/models/tiny", bearer("dora")).status == 403


def test_cloud_models_spend_the_operators_account(named: Gate, upstream: Upstream) -> None:
    for model in ("gpt-oss:120b-cloud", "kimi:cloud"):
        with upstream.untouched():
            assert ask(named.port, "POST", "/api/chat", bearer("alice"), body=chat(model)).status == 403
        assert ask(named.port, "POST", "/api/chat", bearer("erin"), body=chat(model)).status == 404


# Limits.


def test_requests_a_minute(named: Gate, upstream: Upstream) -> None:
    answers = [ask(named.port, "GET", "/api/version", bearer("minute")) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0"]
    with upstream.untouched():
        over = ask(named.port, "GET", "/api/version", bearer("minute"))
        openai = ask(named.port, "POST", "/v1/embeddings", bearer("minute"), body=b"{}")
    assert over.status == 429
    assert 0 < int(over.headers["retry-after"]) <= 60
    assert openai.json["error"]["type"] == "rate_limit_error"
    assert "(requests_per_minute)" in named.find(over.headers["x-request-id"])


def test_concurrent_requests_are_released_whatever_ends_them(named: Gate, upstream: Upstream) -> None:
    body = chat()
    start = head("POST", "/api/chat", bearer("two"), f"Content-Length: {len(body)}") + body
    upstream.hold()
    for _ in range(3):
        with Wire(named.port, start) as one, Wire(named.port, start) as two:
            one.read_until(b"\n")
            two.read_until(b"\n")
            assert ask(named.port, "GET", "/api/version", bearer("two")).status == 429
        wait_until(lambda: ask(named.port, "GET", "/api/version", bearer("two")).status == 200, "a place")
    upstream.go_on()
    for _ in range(5):
        assert ask(named.port, "POST", "/api/chat", bearer("two"), body=body).status == 200
        with Wire(named.port, head("GET", "/demo/break/chunked", bearer("two"))) as wire:
            assert not wire.read_all().endswith(b"0\r\n\r\n")
        assert ask(named.port, "GET", "/nowhere", bearer("two")).status == 404


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages"])
def test_tokens_a_day(upstream: Upstream, tmp_path: Path, path: str) -> None:
    """A request may go over; the next one is refused, and not repeated by a library."""
    import openai

    file = tmp_path / "keys.toml"
    file.write_text(entry("tokens", tokens_per_day=10, scopes=["all"]))
    with Gate(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        body = chat(max_tokens=50, stream=True)
        assert ask(gate.port, "POST", path, bearer("tokens"), body=body).status == 200
        over = wait_until(
            lambda: (answer := ask(gate.port, "GET", "/api/version", bearer("tokens"))).status == 429 and answer, "429"
        )
        assert "tokens_per_day" in over.body.decode()
        assert int(over.headers["retry-after"]) > 60 or time.time() % 86400 > 86_000, "until the day ends"
        assert over.headers["ratelimit-policy"] == '"tokens";q=10;w=86400'
        assert over.headers["x-should-retry"] == "false"
        with (
            openai.OpenAI(base_url=f"{gate.url}/v1", api_key=secret("tokens")) as client,
            pytest.raises(openai.RateLimitError) as refusal,
        ):
            client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x"}])
        assert (refusal.value.code, refusal.value.type) == ("insufficient_quota", "insufficient_quota")
        gate.find(refusal.value.request_id or "no id")
        assert gate.output.count("POST /v1/chat/completions 429 (tokens_per_day)") == 1, "it was not repeated"


# The stock CLI.


def test_the_stock_cli(named: Gate, upstream: Upstream) -> None:
    target = signed("/api/chat")
    answer = ask(named.port, "POST", target, signature("POST", target), body=chat())
    assert answer.status == 200
    assert upstream.last.target == "/api/chat"
    assert "authorization" not in {name.lower() for name, _ in upstream.last.headers}
    assert " laptop POST" in named.find(answer.headers["x-request-id"])


def test_signatures_that_are_none(named: Gate, upstream: Upstream) -> None:
    target = signed("/api/chat")
    stale, other = signed("/api/chat", time.time() - 120), Ed25519PrivateKey.generate()
    cases = {
        "of another path": (target, signature("POST", signed("/api/generate"))),
        "of another method": (target, signature("GET", target)),
        "of another time": (target, signature("POST", signed("/api/chat", time.time() - 5))),
        "stale": (stale, signature("POST", stale)),
        "from the future": (
            signed("/api/chat", time.time() + 120),
            signature("POST", signed("/api/chat", time.time() + 120)),
        ),
        "of a stranger": (target, signature("POST", target, other)),
        "a stranger's under a known key": (
            target,
            f"Authorization: {PUBLIC.split()[1]}:{signature('POST', target, other).rpartition(':')[2]}",
        ),
        "without a time": ("/api/chat", signature("POST", "/api/chat")),
        "with two times": (target + "&ts=1", signature("POST", target + "&ts=1")),
    }
    with upstream.untouched():
        for what, (where, field) in cases.items():
            assert ask(named.port, "POST", where, field, body=chat()).status == 401, what
        both = ask(named.port, "POST", target, signature("POST", target), f"x-api-key: {secret('bob')}", body=chat())
        assert both.status == 401


@pytest.mark.slow
def test_a_signature_used_again(named: Gate, upstream: Upstream) -> None:
    """Equal requests in one second carry the same one, so at once it is good; later it is not, where it would hurt."""
    target = signed("/api/delete")
    field = signature("DELETE", target)
    body = b'{"model":"nope"}'
    assert ask(named.port, "DELETE", target, field, body=body).status == 404
    assert ask(named.port, "DELETE", target, field, body=body).status == 404
    read = signed("/api/tags")
    assert ask(named.port, "GET", read, signature("GET", read)).status == 200
    time.sleep(2.1)
    with upstream.untouched():
        assert ask(named.port, "DELETE", target, field, body=body).status == 401
    assert ask(named.port, "GET", read, signature("GET", read)).status == 200


# The file changes.


def known(gate: Gate, name: str) -> bool:
    return ask(gate.port, "GET", "/api/version", bearer(name)).status == 200


@pytest.mark.slow
def test_the_file_is_read_again(upstream: Upstream, tmp_path: Path) -> None:
    real, file = tmp_path / "one.toml", tmp_path / "keys.toml"
    real.write_text(entry("alice"))
    file.symlink_to(real)
    with Gate(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        assert known(gate, "alice")
        real.write_text(entry("bob"))  # Truncated and written.
        wait_until(lambda: known(gate, "bob"), "bob", 4)
        assert not known(gate, "alice")
        other = tmp_path / "two.toml"
        other.write_text(entry("carol"))
        fresh = tmp_path / "fresh"
        fresh.symlink_to(other)
        fresh.rename(file)  # As Kubernetes and Docker swap a symlink.
        wait_until(lambda: known(gate, "carol"), "carol", 4)
        part = tmp_path / "part"
        part.write_text(entry("dora"))
        part.rename(other)  # As an editor saves.
        wait_until(lambda: known(gate, "dora"), "dora", 4)
        other.write_text(entry("dora") + "[[keys]]\nname = 'x'\nkey = 'sk-plain-text-0123456789'\n")
        gate.find("the keys stay as they were")
        assert known(gate, "dora")
        assert "sk-plain" not in gate.output
        other.unlink()
        time.sleep(1)
        assert known(gate, "dora")


def test_a_hangup_reads_it_at_once(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice"))
    with Gate(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        gate.signal(signal.SIGHUP)
        gate.find("read again: 1 keys")
        assert known(gate, "alice")


def test_a_revoked_key_stops_at_its_next_request_and_its_streams_end(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice") + entry("bob"))
    body = chat()
    with Gate(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        upstream.hold()
        start = head("POST", "/api/chat", bearer("alice"), f"Content-Length: {len(body)}") + body
        with Wire(gate.port, start) as wire:
            wire.read_until(b"\n")
            file.write_text(entry("bob"))
            wait_until(lambda: not known(gate, "alice"), "the revocation", 4)
            upstream.go_on()
            wire.read_until(b'"done":true')


@pytest.mark.slow
def test_a_file_that_is_cut_off_widens_nobodys_rights(upstream: Upstream, tmp_path: Path) -> None:
    """It is refused when it changes, at SIGHUP and when an option changes; a line says that it is meant."""
    file = tmp_path / "keys.toml"
    text = entry("alice") + entry("bob", scopes=["list"], models=["tiny"], requests_per_minute=1000)
    file.write_text(text)
    with Controlled(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        with upstream.untouched():
            assert ask(gate.port, "POST", "/api/chat", bearer("bob"), body=chat()).status == 403
            file.write_text(text[: text.index("scopes")])
            gate.find("the keys stay as they were: ")
            assert ask(gate.port, "POST", "/api/chat", bearer("bob"), body=chat()).status == 403
            before = gate.output.count("has lost")
            gate.signal(signal.SIGHUP)
            wait_until(lambda: gate.output.count("has lost") > before, "the line")
            assert "OptionsError" in gate.do("ctx.options.update(ollama_max_flows=5)")
            assert ask(gate.port, "POST", "/api/chat", bearer("bob"), body=chat()).status == 403
        file.write_text(file.read_text() + f"{cut_off.END}\n")
        gate.find("read again: 2 keys")
        assert ask(gate.port, "POST", "/api/chat", bearer("bob"), body=chat()).status == 200


def test_a_file_that_announces_its_end_is_refused_without_it_at_the_start(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f"{cut_off.ANNOUNCEMENT}\n{entry('bob')}")
    with Gate(upstream.url, key=None, env={"OLLAMA_KEYS_FILE": str(file)}, ready=False) as gate:
        assert gate.wait() == 1
        assert "is cut off" in gate.output


def test_a_faulty_file_at_the_start(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("[[keys]]\nname = 'a'\nsha256 = 'sk-plain-0123456789'\n[[keys]]\nname = 'a'\nscops = []\n")
    with Gate(upstream.url, key=None, env={"OLLAMA_KEYS_FILE": str(file)}, ready=False) as gate:
        assert gate.wait() == 1
        assert "Traceback" not in gate.output
        assert "sk-plain" not in gate.output
        assert gate.output.count(str(file)) >= 3, gate.output


def test_a_file_that_others_may_read(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice"))
    os.chmod(file, 0o644)
    with Gate(upstream.url, *PATIENT, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        gate.find("chmod 600")


# Guessing.


@pytest.fixture
def guessed(upstream: Upstream, tmp_path: Path) -> Iterator[Gate]:
    """A gate with two named keys that is patient with four different wrong keys."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice") + entry("bob") + f'[[keys]]\nname = "cli"\nssh_ed25519 = "{PUBLIC}"\n')
    file.chmod(0o600)
    with Gate(upstream.url, "--set", "ollama_max_wrong_keys=5", key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        yield gate
        assert_sound(gate)


def test_guesses_are_counted_and_lock_out_nobody_else(guessed: Gate, upstream: Upstream) -> None:
    """A right key is let in whatever others at its address have sent, also one that is new there."""
    port, guesses = guessed.port, [f"Authorization: Bearer guess-{n}" for n in range(20)]
    with upstream.untouched():
        answers = [ask(port, "GET", "/", field) for field in guesses]
        assert [answer.status for answer in answers] == [401] * 4 + [429] * 16
        last = answers[-1]
        assert last.headers["retry-after"] == "60"
        assert last.headers["x-should-retry"] == "false", "a wrong key does not get better"
        assert "60 s" in last.json["error"]
        assert "right key" in last.json["error"]
        assert ask(port, "GET", "/").status == 401, "who sends none guesses nothing"
        assert ask(port, "GET", "/nowhere", bearer("bob")).status == 403, "known, but has no such scope"
    target = signed("/api/tags")
    for fields in ((bearer("alice"),), (f"x-api-key: {secret('bob')}",), (signature("GET", target),)):
        assert ask(port, "GET", target, *fields).status == 200
    line = guessed.find("different wrong keys")
    assert "127.0.0.1" in line
    assert "60 s" in line
    assert "ollama_max_wrong_keys" in line
    assert len(guessed.lines) < 25, "what is counted is not logged one by one"


def test_one_program_with_one_stale_key(guessed: Gate, upstream: Upstream) -> None:
    """However often it asks, in whatever form, it is told that its key is wrong, and counts once."""
    stale = [
        *[form("nobody") for form in FORMS.values()],
        signature("GET", signed("/"), Ed25519PrivateKey.generate()),
        signature("GET", "/another", Ed25519PrivateKey.generate()),
    ]
    with upstream.untouched():
        for field in stale * 8:
            assert ask(guessed.port, "GET", "/", field).status == 401
    assert "different wrong keys" not in guessed.output


def test_a_key_expires_while_the_gate_runs(upstream: Upstream, tmp_path: Path) -> None:
    """By the clock of the gate, which is set forward here."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("soon", expires="2999-01-01T00:00:00Z"))
    file.chmod(0o600)
    with Controlled(upstream.url, key=None, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        assert ask(gate.port, "GET", "/api/tags", bearer("soon")).status == 200
        gate.do("from ollama_auth import clock; clock.offset = 1000 * 366 * 86400")
        with upstream.untouched():
            answer = ask(gate.port, "GET", "/api/tags", bearer("soon"))
        assert (answer.status, "expired" in answer.json["error"]) == (401, True)
        gate.do("from ollama_auth import clock; clock.offset = 0")
        assert ask(gate.port, "GET", "/api/tags", bearer("soon")).status == 200


CHANGED = {
    "revoked": (entry("other"), 401),
    "disabled": (entry("weak", models=["demo"], disabled=True), 401),
    "expired": (entry("weak", models=["demo"], expires="2020-01-01T00:00:00Z"), 401),
    "without the scope": (entry("weak", models=["demo"], scopes=["list"]), 403),
    "without the model": (entry("weak", models=["another"]), 403),
}


@pytest.mark.parametrize("limits", [{}, {"concurrent_requests": 2}], ids=["", "with a limit"])
@pytest.mark.parametrize("what", CHANGED)
def test_a_key_that_is_changed_while_its_body_comes(
    upstream: Upstream, tmp_path: Path, what: str, limits: dict[str, int]
) -> None:
    """What holds at the moment of the admission is what the key may do then, over HTTP/1 and HTTP/2."""
    changed, status = CHANGED[what]
    file, cert = tmp_path / "keys.toml", certificate(tmp_path)
    file.write_text(entry("weak", models=["demo"], **limits))
    file.chmod(0o600)
    body = chat()
    start = head("POST", "/api/chat", bearer("weak"), f"Content-Length: {len(body)}") + body[:-1]
    environ = {"OLLAMA_KEYS_FILE": str(file)}
    with (
        Gate(upstream.url, key=None, env=environ) as plain,
        Gate(upstream.url, "--certs", str(cert), key=None, env=environ) as tls,
        Wire(plain.port, start) as wire,
        H2(tls.port, cert) as client,
    ):
        field = ("authorization", bearer("weak").partition(": ")[2])
        stream = client.request("POST", "/api/chat", field, body=None, key=False)
        client.data(stream, body[:-1])
        file.write_text(changed)
        for gate in (plain, tls):
            gate.find("the keys file was read again")
        with upstream.untouched():
            assert wire.send(body[-1:]).read_response().status == status
            client.data(stream, body[-1:], end=True)
            assert client.status(stream) == status
