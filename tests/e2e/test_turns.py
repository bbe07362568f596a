"""A few bytes of one client cost little: what comes in one read is one event, and nothing is read twice."""

import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.base import BEARER, wait_until
from tests.harness.certificates import certificate, trusting
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Controlled, Gate, assert_sound, logged
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, Wire, ask, chat, head, parse, send_until_closed

BODY = chat()
COUNTING = """
    from ollama_auth import exchange, lifecycle
    ctx.seen = []
    def counted(cls, name):
        plain = getattr(cls, name)
        def call(self, *rest):
            ctx.seen.append(name)
            return plain(self, *rest)
        setattr(cls, name, call)
    counted(lifecycle.RequestLifecycle, "hold")
    counted(exchange.Exchange, "request_chunk")
    counted(exchange.Exchange, "response_chunk")
"""


@pytest.fixture(scope="module")
def counting(shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A gate that counts the events of bodies, with a key whose bodies are held."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(entry("held", models=["demo"]) + entry("limited", models=["demo"], concurrent_requests=9))
    file.chmod(0o600)
    with Controlled(shared_upstream.url, "--set", "ollama_access_log=-", "--set", f"ollama_keys_file={file}") as gate:
        gate.do(COUNTING)
        yield gate
        assert_sound(gate, shared_upstream)


@pytest.mark.parametrize("header", ["1\r\n", "1;a=b\r\n", "01\r\n", "1 \r\n"])
@pytest.mark.parametrize("who", [bearer("held"), BEARER], ids=["held", "passed on"])
def test_a_request_in_chunks_of_a_byte(counting: Controlled, upstream: Upstream, header: str, who: str) -> None:
    body = BODY + b" " * 30_000
    chunked = b"".join(header.encode() + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n"
    data = head("POST", "/api/generate", who, "Transfer-Encoding: chunked", "Connection: close") + chunked
    counting.do("ctx.seen.clear()")
    with Wire(counting.port, data) as wire:
        assert parse(wire.read_all()).status == 200
    assert upstream.last.body == body
    seen = counting.do("result = [ctx.seen.count('hold'), ctx.seen.count('request_chunk')]")
    assert all(count < 300 for count in eval(seen)), seen  # noqa: S307


def test_an_answer_in_chunks_of_a_byte() -> None:
    upstream = Scripted().start(lambda _: None)
    with Controlled(upstream.url) as gate:
        for header in (b"1\r\n", b"1;a\r\n"):
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (header + b"x\r\n") * 30_000
            with upstream.plays(lambda peer, answer=answer: (peer.head(), peer.send(answer + b"0\r\n\r\n"))):  # type: ignore[misc]
                gate.do(COUNTING)
                assert ask(gate.port, "GET", "/api/tags", BEARER).body == b"x" * 30_000
                assert int(gate.do("result = len(ctx.seen)")) < 300
    upstream.stop()


@pytest.mark.parametrize(("count", "status"), [(50, 200), (20_000, 502)])
def test_informational_responses_are_bounded(count: int, status: int) -> None:
    upstream = Scripted().start(lambda _: None)
    with Gate(upstream.url) as gate:
        ones = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * count
        final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        with upstream.plays(lambda peer: (peer.head(), peer.send(ones + final))):
            for _ in range(2):  # They are counted for each request.
                assert ask(gate.port, "GET", "/api/tags", BEARER).status == status
        assert_sound(gate)
    upstream.stop()


# Bodies that are judged.


def test_a_held_body_is_read_as_it_comes(counting: Controlled, upstream: Upstream) -> None:
    """Nothing reads it whole at its end; what was read is what goes upstream."""
    counting.do("""
        from ollama_auth.ollama_api import strict_json
        ctx.sizes = []
        plain = strict_json.StrictScanner.feed
        def feed(self, data):
            ctx.sizes.append(len(data))
            plain(self, data)
        strict_json.StrictScanner.feed = feed
    """)
    body = b'{"images": ["%s"], "x": [%s0], "model": "demo"}' % (b"A" * 600_000, b'{"a":1},' * 20_000)
    assert ask(counting.port, "POST", "/api/generate", bearer("held"), body=body).status == 200
    assert upstream.last.body == body
    sizes = eval(counting.do("result = ctx.sizes"))  # noqa: S307
    assert sum(sizes) == len(body)
    assert max(sizes) <= 64 * 1024


@pytest.mark.parametrize("cut", [0, 1, 40, 100_000])
def test_a_model_that_is_not_allowed_is_found_wherever_it_stands(
    counting: Controlled, upstream: Upstream, cut: int
) -> None:
    body = b'{"model": "demo", "x": "%s", "MODEL": "other"}' % (b"\\u0041" * 20_000)
    with upstream.untouched(), Wire(counting.port) as wire:
        wire.send(head("POST", "/api/chat", bearer("held"), f"Content-Length: {len(body)}", "Connection: close"))
        wire.send(body[:cut])
        time.sleep(0.05)
        wire.send(body[cut:])
        assert parse(wire.read_all()).status == 403


def test_a_client_that_leaves_while_its_turn_is_taken(counting: Controlled, upstream: Upstream) -> None:
    """It is no error: nothing is denied, and the place is free again."""
    counting.do("""
        import asyncio
        from ollama_auth.auth import limits
        ctx.entered, plain = 0, limits.Limiter.enter
        async def slow(self, *rest):
            ctx.entered += 1
            await asyncio.sleep(0.3)
            return await plain(self, *rest)
        limits.Limiter.enter = slow
    """)
    data = head("POST", "/api/chat", bearer("limited"), f"Content-Length: {len(BODY)}") + BODY
    with upstream.untouched(), logged(counting) as lines, Line.to(counting.port, data) as line:
        wait_until(lambda: counting.do("result = ctx.entered") == "1", "the turn to be taken")
        line.reset()
    time.sleep(0.4)
    assert lines[0]["reason"] == "client left"
    assert "denied" not in counting.output
    assert ask(counting.port, "POST", "/api/chat", bearer("limited"), body=BODY).status == 200


# TLS.

RECORD = b"\x16\x03\x01\x00\x01"


def hello(context: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client that wants to say its ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return client, incoming, outgoing


def test_a_client_hello_in_records_of_a_byte(upstream: Upstream, tmp_path: Path) -> None:
    """It is parsed once, however it comes; and one that says to be too long is not waited for."""
    cert = certificate(tmp_path)
    with Controlled(upstream.url, "--certs", str(cert)) as gate:
        gate.do("""
            from mitmproxy.proxy.layers import tls
            ctx.parsed, plain = 0, tls.parse_client_hello
            def parse(data):
                ctx.parsed += 1
                return plain(data)
            tls.parse_client_hello = parse
        """)
        client, incoming, outgoing = hello(trusting(cert))
        message = outgoing.read()[5:]
        with Wire(gate.port) as wire:
            for byte in message:
                wire.send(RECORD + bytes([byte]))
            incoming.write(wire.socket.recv(65536))
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    incoming.write(wire.socket.recv(65536))
            client.write(head("GET", "/api/tags", BEARER, "Connection: close"))
            wire.send(outgoing.read())
            answer = b""
            while b"200 OK" not in answer:
                incoming.write(wire.socket.recv(65536))
                with suppress(ssl.SSLWantReadError):
                    answer += client.read()
        assert gate.do("result = ctx.parsed") == "1"
        with Wire(gate.port, RECORD + b"\x01" + b"".join(RECORD + bytes([n]) for n in (0, 0xFF, 0xFF))) as wire:
            assert send_until_closed(wire, RECORD + b"\0", 16 << 10, pause=0.001) < 16 << 10
        assert gate.do("result = ctx.parsed") == "1"
        assert_sound(gate)
