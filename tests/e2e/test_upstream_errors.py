"""Whatever Ollama does, the client is told so in its own words, and nothing is sent twice that may not be."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness.base import BEARER, PATIENCE, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Script, Scripted, cut_off
from tests.harness.wire import Line, Response, Wire, ask, chat, head, parse

pytestmark = pytest.mark.ways

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def upstream(script: Scripted) -> Scripted:
    return script


@pytest.fixture(scope="module")
def gate(upstream: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    scopes = {"pusher": ["push"], "cloudy": ["cloud", "infer"], "all": ["all"], "owner": ["all", "account"]}
    file.write_text("\n".join(entry(name, scopes=held) for name, held in scopes.items()))
    args = ("--set", "ollama_access_log=-", "--set", "ollama_connect_timeout=1")
    with Gate(upstream.url, *args, env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        yield gate
        assert_sound(gate)


def get(gate: Gate) -> Response:
    return ask(gate.port, "GET", "/api/tags", BEARER)


def assert_ours(answer: Response, status: int) -> None:
    """One line of JSON of our own; no HTML, and no product is named."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["error"]
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1
    for word in (b"<html", b"mitmproxy", b"python", b"h11", b"Traceback", b"127.0.0.1"):
        assert word not in answer.raw


DIALECTS: dict[str, Callable[[Any], bool]] = {
    "/api/chat": lambda said: isinstance(said["error"], str),
    "/v1/chat/completions": lambda said: said["error"].keys() == {"message", "type", "param", "code"},
    "/v1/messages": lambda said: said["type"] == "error" and said["error"].keys() == {"type", "message"},
    "/nowhere": lambda said: isinstance(said["error"], str),
}


@pytest.mark.parametrize("path", DIALECTS)
def test_away(gate: Gate, path: str) -> None:
    with logged(gate) as lines:
        answer = ask(gate.port, "POST", path, BEARER, body=chat())
    assert_ours(answer, 503)
    assert DIALECTS[path](answer.json)
    assert answer.headers["retry-after"].isdigit()
    assert answer.headers["x-request-id"] == lines[0]["id"]
    assert (lines[0]["status"], lines[0]["reason"]) == (503, "upstream unreachable")
    assert "Ollama is not reachable" in gate.find(lines[0]["id"])


def test_away_and_head(gate: Gate) -> None:
    with logged(gate), Wire(gate.port, head("HEAD", "/api/tags", BEARER)) as wire:
        answer = parse(wire.read_until(b"\r\n\r\n"), head=True)
        assert (answer.status, wire.received) == (503, b"")
        assert int(answer.headers["content-length"]) > 0


def test_away_while_a_body_is_sent(gate: Gate) -> None:
    """The answer gets through; the body is read no further than a lingering close does."""
    begun = head("POST", "/api/blobs/sha256:0", BEARER, "Content-Length: 2000000000")
    with logged(gate), Wire(gate.port, begun) as wire:
        wire.send(bytes(100_000))
        answer = parse(wire.read_all())
    assert_ours(answer, 503)
    assert answer.headers["connection"] == "close"


def test_back_after_having_been_away(gate: Gate, upstream: Scripted) -> None:
    """On the same connection of the client, in which no request was lost."""
    request = head("GET", "/api/tags", BEARER)
    with logged(gate, 4), Wire(gate.port, request) as wire:
        assert wire.read_response().status == 503
        with upstream.plays(lambda peer: [peer.head() and peer.send(OK) for _ in range(2)]):
            assert wire.send(request).read_response().status == 200
        assert wire.send(request).read_response().status == 503
        with upstream.plays(lambda peer: peer.head() and peer.send(OK)):
            assert wire.send(request).read_response().status == 200


def test_slow_to_accept(gate: Gate, upstream: Scripted) -> None:
    """A listener that accepts nothing, and whose queue is full: no answer to a SYN."""
    with socket.create_server(("127.0.0.1", upstream.port), backlog=0), ExitStack() as stack:
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", upstream.port))
        begun = time.monotonic()
        with logged(gate) as lines:
            answer = get(gate)
        assert time.monotonic() - begun < PATIENCE
    assert_ours(answer, 504)
    assert answer.headers["retry-after"].isdigit()
    assert (lines[0]["status"], lines[0]["reason"]) == (504, "upstream timeout")


def endless(peer: Line) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.send(b"X: " + b"y" * 60_000 + b"\r\n")


def answers(data: bytes) -> Script:
    """Read a request, send this, and wait for the other side to close."""

    def play(peer: Line) -> None:
        peer.head()
        peer.send(data)
        peer.read_all()

    return play


def reset(peer: Line) -> None:
    peer.head()
    peer.reset()


BROKEN: dict[str, Script] = {
    "closes at once": lambda _: None,
    "closes before it answers": lambda peer: peer.head(),
    "resets": reset,
    "answers garbage": answers(bytes(range(256)) * 4),
    "is an ssh server": lambda peer: peer.send(b"SSH-2.0-OpenSSH_9.9\r\n").read_all(),
    "answers html without a head": answers(b"<html><body>mitmproxy</body></html>\r\n\r\n"),
    "answers a status that is no number": answers(b"HTTP/1.1 abc OK\r\n\r\n"),
    "answers a hidden 100 Continue": answers(b"HTTP/1.1 0100 OK\r\nContent-Length: 2\r\n\r\nok"),
    "answers a status below all": answers(b"HTTP/1.1 -5 OK\r\nContent-Length: 2\r\n\r\nok"),
    "answers a status of eight digits": answers(b"HTTP/1.1 99999999 OK\r\nContent-Length: 2\r\n\r\nok"),
    "answers a field without a colon": answers(b"HTTP/1.1 200 OK\r\nX\r\n\r\n"),
    "answers a field with a space before the colon": answers(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    "answers two lengths": answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"),
    "answers a length that is no number": answers(b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"),
    "answers length and chunks": answers(STREAM.replace(b"200 OK", b"200 OK\r\nContent-Length: 5") + b"0\r\n\r\n"),
    "answers another coding": answers(STREAM.replace(b"chunked", b"gzip, magic") + b"ok"),
    "switches protocols unasked": answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    "answers in the middle of a head": lambda peer: peer.head() and peer.send(b"HTTP/1.1 200 OK\r\nX"),
    "answers a head without end": endless,
}


@pytest.mark.parametrize("body", [b"", chat()], ids=["get", "post"])
@pytest.mark.parametrize("what", BROKEN)
def test_broken(gate: Gate, upstream: Scripted, what: str, body: bytes) -> None:
    before = gate.rss
    with upstream.plays(BROKEN[what]), logged(gate) as lines:
        answer = ask(gate.port, "POST" if body else "GET", "/api/chat", BEARER, body=body)
        assert upstream.accepted == 1, "a connection that was new is not tried again"
    assert_ours(answer, 502)
    assert (lines[0]["status"], lines[0]["reason"]) == (502, "upstream broken")
    assert gate.rss - before < 5 << 20


def test_informational_answers_are_skipped(gate: Gate, upstream: Scripted) -> None:
    info = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    with upstream.plays(answers(info * 3 + OK)):
        answer = get(gate)
    assert (answer.status, answer.body) == (200, b"ok")


# Breaking off in the middle: what has passed has passed, and the end is never one that a client could take for good.


def breaks(data: bytes, how: str) -> Script:
    def play(peer: Line) -> None:
        peer.head()
        peer.send(data)
        if how == "reset":
            time.sleep(0.05)  # What was sent must arrive first, and a reset would overtake it.
            peer.reset()

    return play


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_stream_that_breaks(gate: Gate, upstream: Scripted, how: str) -> None:
    script = breaks(STREAM + b"5\r\nhello\r\n", how)
    with upstream.plays(script), logged(gate) as lines, Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
        raw = wire.read_all()
    assert raw.endswith(b"5\r\nhello\r\n"), "the last chunk never came"
    assert (lines[0]["status"], lines[0]["reason"], lines[0]["bytes_out"]) == (200, "upstream broken", 5)
    assert "broke off" in gate.find(lines[0]["id"])


@pytest.mark.parametrize("chunk", [b"x\r\n", b"-1\r\n", b"5\r\nhelloworld\r\n", b"f" * 21 + b"\r\n"])
def test_a_stream_that_turns_to_garbage(gate: Gate, upstream: Scripted, chunk: bytes) -> None:
    script = answers(STREAM + b"5\r\nhello\r\n" + chunk)
    with upstream.plays(script), logged(gate) as lines, Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
        raw = wire.read_all()
    assert b"5\r\nhello\r\n" in raw
    assert b"\r\n0\r\n" not in raw
    assert lines[0]["reason"] == "upstream broken"


def test_a_short_body(gate: Gate, upstream: Scripted) -> None:
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello"
    with upstream.plays(breaks(short, "closed")), logged(gate) as lines:
        answer = get(gate)
    assert (answer.headers["content-length"], answer.body) == ("1000", b"hello")
    assert (lines[0]["reason"], lines[0]["bytes_out"]) == ("upstream broken", 5)


def test_a_stream_that_breaks_for_http_1_0(gate: Gate, upstream: Scripted) -> None:
    """To which the end of the connection would be the end of the body: it is reset."""
    more = threading.Event()

    def play(peer: Line) -> None:
        peer.head()
        peer.send(STREAM + b"5\r\nhello\r\n")
        more.wait(PATIENCE)

    data = b"GET /api/tags HTTP/1.0\r\n" + BEARER.encode() + b"\r\n\r\n"
    with upstream.plays(cut_off(more)), logged(gate) as lines, Wire(gate.port, data) as wire:
        assert wire.read_until(b"hello").endswith(b"\r\n\r\nhello")
        more.set()
        with pytest.raises(ConnectionResetError):
            wire.read_all()
    assert lines[0]["reason"] == "upstream broken"


def test_a_body_that_only_the_end_ends(gate: Gate, upstream: Scripted) -> None:
    """HTTP/1.0 of old: allowed, and the client's connection ends with it."""
    script = breaks(b"HTTP/1.0 200 OK\r\n\r\nhello", "closed")
    with upstream.plays(script), logged(gate), Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
        assert parse(wire.read_all()).body == b"hello"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_body_that_only_the_end_ends_is_cut_off_by_a_reset(gate: Gate, upstream: Scripted, version: bytes) -> None:
    """The end of the client's connection would look like the end of the body: it is reset, too."""
    more = threading.Event()
    data = b"GET /api/tags HTTP/%s\r\nHost: gate\r\n%s\r\n\r\n" % (version, BEARER.encode())
    with upstream.plays(cut_off(more)), logged(gate) as lines, Wire(gate.port, data) as wire:
        assert wire.read_until(b"hello").endswith(b"\r\n\r\nhello")
        more.set()
        with pytest.raises(ConnectionResetError):
            wire.read_all()
    assert (lines[0]["status"], lines[0]["reason"]) == (200, "upstream broken")


def test_more_than_the_body(gate: Gate, upstream: Scripted) -> None:
    """What follows an answer belongs to nobody, least of all to the next request."""
    with upstream.plays(answers(OK + OK.replace(b"ok", b"no"))), logged(gate, 2):
        with Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
            assert wire.read_response().body == b"ok"
            wait_until(lambda: not upstream.busy, "the connection upstream to end")
            wire.send(head("GET", "/api/tags", BEARER))
            assert wire.read_response().body == b"ok"
        assert upstream.accepted == 2


# Kept-alive connections that prove dead. The script answers the first request, and dies in the second.


class Dying:
    """Answers one request on the first connection; what follows there is read and never answered."""

    def __init__(self, how: str, healthy: bool = True) -> None:
        self.how, self.healthy = how, healthy
        self.seen: list[bytes] = []
        self.lock = threading.Lock()

    def __call__(self, peer: Line) -> None:
        with self.lock:
            first = not self.seen
        while True:
            request = peer.head()
            with self.lock:
                self.seen.append(request)
                if len(self.seen) > 1 and (first or not self.healthy):
                    if self.how == "reset":
                        peer.reset()
                    return
            if b"content-length" in request.lower():
                peer.read_until(b"}")
            peer.send(OK)


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_dead_connection_is_tried_again(gate: Gate, upstream: Scripted, how: str) -> None:
    script = Dying(how)
    with upstream.plays(script), logged(gate, 3), Wire(gate.port) as wire:
        for _ in range(3):
            assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 200
    assert len(script.seen) == 4
    assert upstream.accepted == 2


def test_and_only_once(gate: Gate, upstream: Scripted) -> None:
    script = Dying("closed", healthy=False)
    with upstream.plays(script), logged(gate, 2), Wire(gate.port) as wire:
        assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 200
        assert_ours(wire.send(head("GET", "/api/tags", BEARER)).read_response(), 502)
    assert len(script.seen) == 3


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_never_sent_twice(gate: Gate, upstream: Scripted, how: str, chunked: bool) -> None:
    script = Dying(how)
    with upstream.plays(script), logged(gate, 2), Wire(gate.port) as wire:
        assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 200
        framing, body = (
            ("Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n") if chunked else ("Content-Length: 2", b"{}")
        )
        assert_ours(wire.send(head("POST", "/api/chat", BEARER, framing) + body).read_response(), 502)
    assert len(script.seen) == 2


def test_an_answer_that_has_begun_is_not_asked_for_again(gate: Gate, upstream: Scripted) -> None:
    seen: list[bytes] = []

    def play(peer: Line) -> None:
        while True:
            seen.append(peer.head())
            if len(seen) == 2:
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Le")
                return
            peer.send(OK)

    with upstream.plays(play), logged(gate, 2), Wire(gate.port) as wire:
        assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 200
        assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 502
    assert len(seen) == 2


def test_a_connection_that_ended_while_idle_is_not_used(gate: Gate, upstream: Scripted) -> None:
    """Ollama restarted: also a body goes to the new one, as nothing of it was sent to the old."""
    body = chat()
    post = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    with logged(gate, 2), Wire(gate.port) as wire:
        with upstream.plays(lambda peer: peer.head() and peer.send(OK)):
            assert wire.send(head("GET", "/api/tags", BEARER)).read_response().status == 200
            wait_until(lambda: not upstream.busy, "the connection upstream to end")
        with upstream.plays(lambda peer: peer.read_until(body) and peer.send(OK)):
            assert wire.send(post).read_response().status == 200


# Early answers.


def test_an_answer_before_the_body_was_sent(gate: Gate, upstream: Scripted) -> None:
    """It arrives whole, the rest of the body is not wanted, and both connections end."""
    begun = head("POST", "/api/blobs/sha256:0", BEARER, "Content-Length: 1000000000") + bytes(1000)
    with upstream.plays(answers(OK)), logged(gate) as lines, Wire(gate.port, begun) as wire:
        assert parse(wire.read_all()).body == b"ok"
        wait_until(lambda: not upstream.busy, "the connection upstream to end")
    assert (lines[0]["status"], lines[0].get("reason")) == (200, None)


def test_a_refusal_from_ollama_that_closes(gate: Gate, upstream: Scripted) -> None:
    """It answers and hangs up on a body that is on its way."""
    no = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    begun = head("POST", "/api/blobs/sha256:0", BEARER, "Content-Length: 1000000") + bytes(1000)
    with upstream.plays(lambda peer: peer.head() and peer.send(no)), logged(gate), Wire(gate.port, begun) as wire:
        answer = parse(wire.read_all())
    assert (answer.status, answer.body) == (400, b"no")


LENGTHS = {
    "twice": (b"Content-Length: 2\r\nContent-Length: 2", 200),
    "twice in one": (b"Content-Length: 2, 2", 200),
    "three times": (b"content-length:2\r\nContent-Length: 2,2", 200),
    "two": (b"Content-Length: 2\r\nContent-Length: 3", 502),
    "two in one": (b"Content-Length: 2, 3", 502),
    "one and nothing": (b"Content-Length: 2,", 502),
    "in two spellings": (b"Content-Length: 2\r\nContent-Length: 02", 502),
    "none": (b"Content-Length: x, x", 502),
    "and chunks": (b"Content-Length: 2\r\nContent-Length: 2\r\nTransfer-Encoding: chunked", 502),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_a_length_that_is_sent_more_than_once(gate: Gate, upstream: Scripted, what: str) -> None:
    """RFC 9112 section 6.3: equal ones are one, which is what the client gets."""
    fields, status = LENGTHS[what]
    with upstream.plays(answers(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\nok")), logged(gate):
        answer = get(gate)
    assert answer.status == status
    if status == 200:
        assert answer.raw.lower().count(b"content-length") == 1
        assert (answer.headers["content-length"], answer.body) == ("2", b"ok")


CANCELLED_BEFORE_IT_TELLS = """
    import asyncio
    class Cancel:
        async def server_connected(self, data):
            asyncio.current_task().cancel("Error sending data")
            await asyncio.sleep(0)
    ctx.master.addons.add(Cancel())
"""


def test_a_connection_whose_task_is_cancelled(upstream: Scripted) -> None:
    """By others that find it broken when they write, before it has told of its end, or its begin: no request waits."""
    arrived = threading.Event()

    def silent(peer: Line) -> None:
        peer.head()
        arrived.set()
        peer.read_all()

    with Controlled(upstream.url) as gate, upstream.plays(silent):
        with Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
            assert arrived.wait(PATIENCE)
            gate.do("""
                import asyncio
                [peer] = ctx.master.addons.get("ollama_gate").connections
                [task] = [io.handler for server, io in peer.handler.transports.items() if server is not peer.client]
                async def cancel():
                    async with peer.handler._server_event_lock:
                        for _ in range(2):
                            task.cancel("Error sending data")
                            await asyncio.sleep(0.01)
                ctx.task = asyncio.create_task(cancel())
            """)
            assert_ours(wire.read_response(), 502)
        gate.do(CANCELLED_BEFORE_IT_TELLS)
        assert_ours(get(gate), 503)
        wait_until(lambda: not upstream.busy, "the connection upstream to end")
        assert_sound(gate)


UNSAFE = (
    b"HTTP/1.1 200 O\rK\r\nX-Folded: a\r\n  b\r\n\tc\r\nX-Null: a\0b\r\nX-Return: a\rb\r\nContent-Length: 2\r\n\r\nok"
)


def test_what_no_field_may_hold_is_a_space(gate: Gate, upstream: Scripted, cert: Path) -> None:
    """HTTP/2 clients would end the connection with all its streams; to others it might be the end of a line."""
    with upstream.plays(answers(UNSAFE)), logged(gate):
        answer = get(gate)
    assert answer.raw.startswith(b"HTTP/1.1 200 O K\r\n")
    assert [answer.headers[name] for name in ("x-folded", "x-null", "x-return")] == ["a b c", "a b", "a b"]
    assert not set(b"\r\0") & set(answer.raw.replace(b"\r\n", b""))
    with Gate(upstream.url, "--certs", str(cert)) as tls, H2(tls.port, cert) as client, upstream.plays(answers(UNSAFE)):
        stream = client.request("GET", "/api/tags")
        assert client.body(stream) == b"ok"
        assert client.headers(stream)["x-folded"] == "a b c"


# The operator's account.

ACCOUNT = {"id": "1-2", "name": "op", "plan": "pro", "email": "op@example.com", "avatarurl": "https://a", "Email": "x"}
SIGN_IN = {"error": "unauthorized", "signin_url": "https://ollama.com/connect?name=host&key=c3NoLWVk"}


def answered(status: bytes, body: bytes, *fields: bytes) -> Script:
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields])
    return answers(head + b"\r\n\r\n" + body)


ME: dict[str, tuple[bytes, bytes, tuple[bytes, ...], int, object]] = {
    "signed in": (
        b"200 OK",
        json.dumps(ACCOUNT).encode(),
        (),
        200,
        {"id": "1-2", "name": "op", "plan": "pro"},
    ),
    "not signed in": (b"401 Unauthorized", json.dumps(SIGN_IN).encode(), (), 401, {"error": "unauthorized"}),
    "off": (b"503 Service Unavailable", b'{"error":"account unavailable"}', (), 503, {"error": "account unavailable"}),
    "an old Ollama": (b"404 Not Found", b"404 page not found", (), 404, {"error": "Ollama answered 404"}),
    "compressed": (b"401 X", gzip.compress(b"{}"), (b"Content-Encoding: gzip",), 401, {"error": "Ollama answered 401"}),
    "no JSON": (b"200 OK", b"op@example.com", (), 502, None),
    "no object": (b"200 OK", b'["op@example.com"]', (), 502, None),
    "not the types": (b"200 OK", b'{"name":{"email":"op@example.com"}}', (), 200, {"error": "Ollama answered 200"}),
}


@pytest.mark.parametrize("what", ME)
@pytest.mark.parametrize("name", ["pusher", "cloudy", "all"])
def test_who_pushes_may_ask_whose_account_it_is(gate: Gate, upstream: Scripted, what: str, name: str) -> None:
    """The stock CLI does so before it pushes. Not told: the mail address, and the link to sign in."""
    status, body, fields, expected, shown = ME[what]
    with upstream.plays(answered(status, body, *fields)), logged(gate) as lines:
        answer = ask(gate.port, "POST", "/api/me", bearer(name), "Accept-Encoding: gzip")
    assert answer.status == lines[0]["status"] == expected
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "content-encoding" not in answer.headers
    assert b"op@example.com" not in answer.body
    if shown:
        assert answer.json == shown
    with upstream.plays(answered(status, body, *fields)), logged(gate):
        assert ask(gate.port, "POST", "/api/me", bearer("owner")).body == body, "who holds the scope account sees all"


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/push"])
def test_the_link_to_sign_in_is_for_the_operator(gate: Gate, upstream: Scripted, path: str) -> None:
    """Ollama adds it to its 401 for cloud models. It needs no password, and connects this Ollama to another account."""
    body = json.dumps(SIGN_IN).encode()
    whole = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with upstream.plays(lambda peer: peer.read_until(b"}") and peer.send(whole) and peer.read_all()), logged(gate, 2):
        answer = ask(gate.port, "POST", path, bearer("all"), body=b'{"model":"m:cloud"}')
        assert (answer.status, answer.json) == (401, {"error": "unauthorized"})
        assert ask(gate.port, "POST", path, bearer("owner"), body=b'{"model":"m:cloud"}').json == SIGN_IN


def test_another_401_of_ollama_passes_as_it_is(gate: Gate, upstream: Scripted) -> None:
    with upstream.plays(answered(b"401 Unauthorized", b"no")), logged(gate):
        assert ask(gate.port, "GET", "/api/tags", bearer("all")).body == b"no"


def test_a_304_that_speaks_of_chunks(gate: Gate, upstream: Scripted) -> None:
    """RFC 9112 section 6.1 allows it, and there are none."""
    script = answers(STREAM.replace(b"200 OK", b"304 Not Modified") + OK)
    with upstream.plays(script), logged(gate, 1), Wire(gate.port, head("GET", "/api/tags", BEARER)) as wire:
        assert parse(wire.read_until(b"\r\n\r\n"), head=True).status == 304
        assert not wire.received


def test_a_name_that_does_not_resolve() -> None:
    with Gate("http://nowhere.invalid:1", "--set", "ollama_access_log=-") as gate:
        with logged(gate):
            assert_ours(get(gate), 503)
        assert_sound(gate)


def test_an_upstream_in_tls_that_is_none(upstream: Scripted) -> None:
    """It does not speak TLS, or says nothing at all: no hang."""
    url = f"https://127.0.0.1:{upstream.port}"
    with Gate(url, "--set", "ollama_access_log=-", "--set", "ollama_connect_timeout=1") as gate:
        for play in (lambda peer: peer.send(OK), lambda peer: peer.read_all()):
            with upstream.plays(play), logged(gate):
                assert_ours(get(gate), 503)
        assert_sound(gate)


def test_an_error_that_comes_late_answers_no_other_request() -> None:
    """A script waits in its `error` hook, and meanwhile the broken connection upstream ends, too."""
    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    answers = iter([broken, good])
    upstream = Scripted().start(lambda line: (line.head(), line.send(next(answers))))
    with Controlled(upstream.url) as gate:
        gate.do(
            """
            import asyncio
            ctx.errors = []
            class Slow:
                async def error(self, flow):
                    ctx.errors.append(flow.id)
                    await asyncio.sleep(0.3)
            ctx.master.addons.add(Slow())
            """
        )
        request = head("GET", "/api/version", BEARER)
        with Wire(gate.port, request) as wire:
            assert wire.read_response().status == 502
            time.sleep(0.5)
            wire.send(request)
            assert wire.read_response().status == 200
        assert gate.do("result = len(ctx.errors)") == "1"
    upstream.stop()
