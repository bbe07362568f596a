"""Bodies that are inspected are held: a key's limits are asked before, and memory and time for them are bounded."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.harness.base import PATIENCE, wait_until
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, Response, Wire, ask, chat, head

KEYS = "".join(
    [
        entry("one", models=["demo"], concurrent_requests=1),
        entry("minute", models=["demo"], requests_per_minute=3),
        entry("anna", models=["demo"]),
        entry("bert", models=["demo"]),
        entry("free", scopes=["all"]),
    ]
)
OF_KEY, OF_ALL = 100_000, 150_000


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    file.chmod(0o600)
    sets = {
        "ollama_access_log": "-",
        "ollama_keys_file": file,
        "ollama_max_inspected_body": OF_KEY,
        "ollama_max_held_bodies": OF_ALL,
        "ollama_max_held_bodies_per_key": OF_KEY,
    }
    return tuple(word for name, value in sets.items() for word in ("--set", f"{name}={value}"))


IMPATIENT = ("--set", "ollama_body_timeout=1")


@pytest.fixture(scope="module")
def impatient(shared_upstream: Upstream, options: tuple[str, ...]) -> Iterator[Gate]:
    """It waits for a second for the next byte of a body."""
    with Gate(shared_upstream.url, *options, *IMPATIENT) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream, options: tuple[str, ...]) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *options) as gate:
        yield gate
        assert_sound(gate, shared_upstream)


def started(gate: Gate, name: str, length: int, data: bytes) -> Wire:
    """A request of which only `data` of the body has come; `length` 0: it comes in chunks."""
    framing = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    body = data if length else b"%x\r\n%s\r\n" % (len(data), data)
    return Wire(gate.port, head("POST", "/api/chat", bearer(name), framing) + body)


def chat_as(gate: Gate, name: str, model: str = "demo") -> Response:
    return ask(gate.port, "POST", "/api/chat", bearer(name), body=chat(model))


def refused_at_the_head(gate: Gate, name: str, size: int) -> int:
    """The status of a request that announces so many bytes; 0 if it is not refused for them."""
    with Wire(gate.port, head("POST", "/api/chat", bearer(name), f"Content-Length: {size}"), timeout=0.3) as wire:
        try:
            return wire.read_response().status
        except TimeoutError:
            return 0


def held(gate: Gate, name: str) -> None:
    """Wait until the gate has read a body of OF_KEY - 100 bytes."""
    assert wait_until(lambda: refused_at_the_head(gate, name, 200), "the body to be read") == 429


def served(gate: Gate, name: str) -> None:
    wait_until(lambda: chat_as(gate, name).status == 200, "room for a request")


@pytest.mark.parametrize("length", [500, 0], ids=["sized", "chunked"])
def test_the_concurrent_request_is_taken_before_its_body(gate: Gate, upstream: Upstream, length: int) -> None:
    served(gate, "one")
    with upstream.untouched(), started(gate, "one", length, b'{"model":'), logged(gate, 2):
        wait_until(lambda: chat_as(gate, "one").status == 429, "the first to be taken")
        with Wire(gate.port, head("POST", "/api/chat", bearer("one"), "Content-Length: 500")) as second:
            assert second.read_response().status == 429, "asked by its head alone"
    served(gate, "one")


def test_a_refusal_by_the_body_counts_as_a_request(gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answers = [chat_as(gate, "minute", "other").status, chat_as(gate, "minute", "other").status]
        answers += [ask(gate.port, "POST", "/api/chat", bearer("minute"), body=b"{").status]
        assert answers == [403, 403, 400]
        assert chat_as(gate, "minute").status == 429


@pytest.mark.parametrize("end", ["refused", "left", "too large", "timed out"])
def test_the_concurrent_request_is_free_again(impatient: Gate, upstream: Upstream, end: str) -> None:
    served(impatient, "one")
    with upstream.untouched():
        if end == "refused":
            assert chat_as(impatient, "one", "other").status == 403
        elif end == "too large":
            with started(impatient, "one", 0, bytes(OF_KEY + 1)) as wire:
                assert wire.read_response().status == 413
        else:
            with started(impatient, "one", 500, b"{") as wire:
                assert end == "left" or wire.read_response().status == 408
    served(impatient, "one")


@pytest.mark.parametrize("length", [500, 0], ids=["sized", "chunked"])
def test_a_body_that_pauses(impatient: Gate, upstream: Upstream, length: int) -> None:
    with upstream.untouched(), logged(impatient) as lines, started(impatient, "anna", length, b"{" * 77) as wire:
        answer = wire.read_response()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert b"for 1 s" in answer.body
    assert (lines[0]["reason"], lines[0]["bytes_in"], lines[0]["key"]) == ("body timeout", 77, "anna")


def test_a_slow_body_that_comes_is_waited_for(impatient: Gate, upstream: Upstream) -> None:
    body = chat()
    with started(impatient, "anna", len(body), body[:5]) as wire:
        for at in range(5, 11):
            time.sleep(0.3)
            wire.send(body[at : at + 1])
        assert wire.send(body[11:]).read_response().status == 200


def test_the_memory_of_a_key(gate: Gate, upstream: Upstream) -> None:
    """By what came and by what is announced; no other key pays for it."""
    with upstream.untouched(), started(gate, "anna", 0, bytes(OF_KEY - 100)):
        held(gate, "anna")
        with logged(gate) as lines, started(gate, "anna", 0, bytes(200)) as wire:
            answer = wire.read_response()
            assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        assert (lines[0]["reason"], lines[0]["key"], lines[0]["bytes_in"]) == ("held bodies", "anna", 200)
        assert refused_at_the_head(gate, "bert", 200) == 0
    served(gate, "bert")
    served(gate, "anna")


def test_the_memory_of_all(gate: Gate, upstream: Upstream) -> None:
    size = OF_ALL - OF_KEY + 200
    with upstream.untouched(), started(gate, "anna", 0, bytes(OF_KEY - 100)) as first:
        held(gate, "anna")
        with started(gate, "bert", 0, bytes(size)) as wire:
            assert wire.read_response().status == 503
        assert refused_at_the_head(gate, "bert", size) == 503
        assert ask(gate.port, "GET", "/api/nowhere", bearer("bert")).status == 403, "it has no body"
        assert first.send(b"0\r\n\r\n").read_response().status == 400
    served(gate, "bert")
    served(gate, "anna")


def test_what_ollama_has_taken_is_not_held(options: tuple[str, ...]) -> None:
    """Also where it does not answer yet, because other requests come first."""
    taken: list[bytes] = []

    def read_and_wait(line: Line) -> None:
        line.head()
        taken.append(line.read_until(body[-30:]))
        line.read_all()

    upstream = Scripted().start(read_and_wait)
    body = chat(pad="x" * (OF_KEY - 1000))
    with Gate(upstream.url, *options) as gate, ExitStack() as stack:
        for count in range(1, 4):
            stack.enter_context(started(gate, "anna", len(body), body))
            wait_until(lambda count=count: len(taken) == count, "the body upstream")
    upstream.stop()


def test_http2(shared_upstream: Upstream, options: tuple[str, ...], cert: Path) -> None:
    """Each stream by itself: the others of its connection go on."""
    field = ("authorization", bearer("one").partition(": ")[2])
    other = ("authorization", bearer("anna").partition(": ")[2])
    with Gate(shared_upstream.url, *options, *IMPATIENT, "--certs", str(cert)) as gate, H2(gate.port, cert) as client:
        with shared_upstream.untouched():
            first = client.request("POST", "/api/chat", field, body=None, key=False)
            client.data(first, b"{")
            second = client.request("POST", "/api/chat", field, body=None, key=False)
            assert client.status(second) == 429
            assert client.status(first) == 408
            third = client.request("POST", "/api/chat", other, body=None, key=False)
            for _ in range(OF_KEY // 10_000 + 1):
                client.data(third, bytes(10_000))
                client.flush()
            assert client.status(third) == 413
        last = client.request("POST", "/api/chat", field, body=chat(), key=False)
        assert client.status(last) == 200
        client.body(last)


@pytest.mark.slow
def test_the_wait_of_the_gate_is_not_the_clients(options: tuple[str, ...], cert: Path) -> None:
    """While Ollama takes nothing of another body, the gate reads nothing of the connection: that is no pause."""
    reads = threading.Event()

    def stall(line: Line) -> None:
        if b"/demo/sink" in line.head():
            reads.wait(PATIENCE)
        while line.socket.recv(1 << 20):
            pass

    upstream = Scripted().start(stall)
    as_anna, as_free = (("authorization", bearer(name).partition(": ")[2]) for name in ("anna", "free"))
    timeout = ("--set", "ollama_body_timeout=3")  # More than it takes to fill all buffers.
    with Gate(upstream.url, *options, *timeout, "--certs", str(cert)) as gate, H2(gate.port, cert) as client:
        held = client.request("POST", "/api/chat", as_anna, body=None, key=False)
        other = client.request("POST", "/demo/sink", as_free, body=None, key=False)
        client.wire.socket.settimeout(0.5)
        with suppress(TimeoutError):
            while True:  # Until the gate opens no window any more.
                while (size := min(client.h2.local_flow_control_window(other) - 100, 16_000)) > 0:
                    client.data(other, bytes(size))
                client.read()
        time.sleep(4)
        reads.set()
        client.wire.socket.settimeout(PATIENCE)
        client.flush()
        client.data(held, b"x", end=True)
        assert client.status(held) == 400, "its body is there, and is no JSON"
    upstream.stop()


THE_CLIENT = "gate = ctx.master.addons.get('ollama_gate'); [peer] = gate.connections\n"


def test_what_a_client_sent_before_it_left(upstream: Upstream, options: tuple[str, ...]) -> None:
    """What waited in the layers until then gets no lease, no memory and nothing upstream: nobody would give it back."""
    rest = chat()
    with Controlled(upstream.url, *options) as gate:
        with Wire(gate.port, head("GET", "/api/version", bearer("free"))) as wire:
            assert wire.read_response().status == 200
            gate.do(THE_CLIENT + "peer.closed = True")
            with upstream.untouched():
                wire.send(head("POST", "/api/chat", bearer("one"), f"Content-Length: {len(rest)}") + rest)
                assert wire.read_response().status == 503
            gate.do(THE_CLIENT + "peer.closed = False")
        wait_until(lambda: gate.do("result = len(ctx.master.addons.get('ollama_gate').connections)") == "0", "the end")
        with started(gate, "one", len(rest), rest[:9]) as wire:
            wait_until(lambda: "{}" not in gate.do(THE_CLIENT + "result = peer.exchanges"), "the head")
            gate.do(THE_CLIENT + "[one] = peer.exchanges.values(); gate.lifecycle.finish(one, peer)")
            with upstream.untouched():
                wire.send(rest[9:])
                assert wire.read_response().status == 503
        assert chat_as(gate, "one").status == 200
        assert gate.do("result = len(ctx.master.addons.get('ollama_gate').lifecycle.held_bodies._bodies)") == "0"
