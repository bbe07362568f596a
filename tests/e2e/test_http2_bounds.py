"""HTTP/2: what follows a refusal, what a few bytes may cost, answers that nobody reads, and leaving."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import h2.events
import httpx
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from ollama_auth.proxy.http2 import MAX_HEADS
from ollama_auth.proxy.http2_frames import DATA, SETTINGS, WINDOW_UPDATE, frame
from ollama_auth.proxy.http2_unsent import MAX_UNSENT
from tests.harness.base import BEARER, PATIENCE, SECONDS, wait_until
from tests.harness.certificates import trusting
from tests.harness.credentials import entry, secret
from tests.harness.gate import Controlled, Gate, assert_sound, log_lines, logged
from tests.harness.http2 import H2
from tests.harness.upstream import Upstream
from tests.harness.wire import chat

pytestmark = pytest.mark.ways

JSON_LOG = ("--set", "ollama_access_log=-")
KEY = ("authorization", BEARER.partition(": ")[2])
WRONG = ("authorization", "Bearer sk-ollama-fedcba9876543210fedcba9876543210")
HELD = b'"done":false}'
IDLE = 2


@pytest.fixture(scope="module")
def tls(shared_upstream: Upstream, cert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A gate with a certificate."""
    yield from with_certificate(shared_upstream, cert, tmp_path_factory)


@pytest.fixture(scope="module")
def impatient(shared_upstream: Upstream, cert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """One in which answers may wait for IDLE seconds."""
    yield from with_certificate(shared_upstream, cert, tmp_path_factory, "--set", f"ollama_idle_timeout={IDLE}")


def with_certificate(
    upstream: Upstream, cert: Path, folders: pytest.TempPathFactory, *options: str
) -> Iterator[Controlled]:
    (keys := folders.mktemp("keys") / "keys.toml").write_text(entry("lister", scopes=["list"]))
    keys.chmod(0o600)
    more = ("--certs", str(cert), "--set", f"ollama_keys_file={keys}", *options)
    with Controlled(upstream.url, *JSON_LOG, *more) as gate:
        yield gate
        assert_sound(gate, upstream)


def quick_client(gate: Gate, cert: Path) -> httpx.Client:
    url = f"https://localhost:{gate.port}"
    return httpx.Client(http2=True, verify=trusting(cert), trust_env=False, base_url=url, timeout=PATIENCE)


# What follows a refusal.


def test_requests_behind_a_refused_one(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Those with the same credential get the same answer, others may be sent again; none is looked at."""
    with upstream.untouched(), logged(tls) as lines, H2(tls.port, cert, lax=True) as client:

        def ask(method: str, *fields: tuple[str, str], body: bytes = b"") -> int:
            return client.request(method, "/api/tags", *fields, key=False, body=body)

        alike = [ask("GET", WRONG), ask("POST", WRONG, body=b"x"), ask("GET", WRONG, ("x-request-id", "mine"))]
        other = [ask("GET", KEY), ask("GET"), ask("OPTIONS", WRONG), ask("HEAD", WRONG)]
        alike.append(ask("POST", WRONG, body=b"x" * 10_000))
        bodies = {client.body(stream) for stream in alike}
        assert {client.status(stream) for stream in alike} == {401}
        assert len(bodies) == 1
        assert b"error" in bodies.pop()
        for stream in other:
            assert client.until(h2.events.StreamReset, stream).error_code == ErrorCodes.REFUSED_STREAM
        goodbye = client.until(h2.events.ConnectionTerminated)
        assert (goodbye.error_code, goodbye.last_stream_id) == (ErrorCodes.NO_ERROR, alike[-1])
        client.until_closed()
    assert lines[0]["status"] == 401


def test_a_request_behind_a_malformed_one(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Its answer is that of no other request."""
    with upstream.untouched(), logged(tls), H2(tls.port, cert, lax=True) as client:
        assert client.status(client.request("BREW", "/api/tags", key=False)) == 405
        second = client.request("GET", "/api/tags", key=False)
        assert client.until(h2.events.StreamReset, second).error_code == ErrorCodes.REFUSED_STREAM
        assert client.until(h2.events.ConnectionTerminated).last_stream_id == 1


def test_without_room_for_an_answer(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """The windows of the client are respected."""
    with upstream.untouched(), logged(tls), H2(tls.port, cert, window=10, lax=True) as client:
        first, second = (client.request("GET", "/api/tags", WRONG, key=False) for _ in range(2))
        assert client.status(first) == 401
        assert client.until(h2.events.StreamReset, second).error_code == ErrorCodes.REFUSED_STREAM
        client.until_closed()


def test_a_hundred_requests_of_a_stranger_cost_little(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Of the processor they take less than five times what one takes, and one line of the log."""

    def cost(requests: int) -> int:
        before = spent(tls)
        for _ in range(5):
            with H2(tls.port, cert, lax=True) as client:
                fields = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/" + "a/" * 500)]
                for n in range(requests):
                    client.h2.send_headers(2 * n + 1, fields, end_stream=True)
                client.flush()
                assert client.status(2 * requests - 1) == 401
        return spent(tls) - before

    with upstream.untouched(), logged(tls, 35):
        cost(1)
        assert min(cost(100) for _ in range(3)) < 5 * min(cost(1) for _ in range(3))


def spent(gate: Gate) -> int:
    """Nanoseconds of the processor."""
    return int(Path(f"/proc/{gate.process.pid}/schedstat").read_text().split()[0])


def test_eight_requests_with_a_wrong_key_at_once(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Each of httpx reads the answer, and one was looked at."""

    async def ask() -> list[int]:
        url = f"https://localhost:{tls.port}"
        async with httpx.AsyncClient(http2=True, verify=trusting(cert), trust_env=False, base_url=url) as client:
            answers = await asyncio.gather(*(client.get("/api/tags", headers=[WRONG]) for _ in range(8)))
        return [answer.status_code for answer in answers]

    with upstream.untouched(), logged(tls):
        assert asyncio.run(ask()) == [401] * 8


COUNTING = """
    import asyncio
    from ollama_auth import lifecycle
    plain = lifecycle.RequestLifecycle.authorize
    ctx.turns = [0]
    def authorize(self, head, peer):
        if not ctx.turns[-1]:
            asyncio.get_running_loop().call_soon(ctx.turns.append, 0)
        ctx.turns[-1] += 1
        return plain(self, head, peer)
    lifecycle.RequestLifecycle.authorize = authorize
"""


DELETE = [
    *((":method", "DELETE"), (":scheme", "https"), (":authority", "x"), (":path", "/api/delete")),
    ("authorization", f"Bearer {secret('lister')}"),
]


def test_requests_that_come_together_are_looked_at_in_turns(tls: Controlled, upstream: Upstream, cert: Path) -> None:
    """However many fit into a read: here those that a key may not do, which wait for nothing, and long ones."""
    tls.do(COUNTING)
    with upstream.untouched(), logged(tls, 320), H2(tls.port, cert) as client:
        client.h2.increment_flow_control_window(1 << 20)
        for stream in range(1, 601, 2):
            client.h2.send_headers(stream, DELETE, end_stream=True)
        client.flush()
        assert {client.status(stream) for stream in range(1, 601, 2)} == {403}
        for stream in range(601, 641, 2):
            client.h2.send_headers(stream, [*DELETE, *[("a", "b")] * 500], end_stream=True)
        client.flush()
        assert {client.status(stream) for stream in range(601, 641, 2)} == {431}
    turns = eval(tls.do("result = ctx.turns"))  # noqa: S307
    assert sum(turns) == 320
    assert max(turns) <= 2 * MAX_HEADS
    assert max(turns[-10:]) <= 2


LEFT = "import time; result = [peer.deadline - time.monotonic() for peer in gate.connections]"


def test_a_request_that_is_answered_at_once_moves_the_deadline(
    impatient: Controlled, upstream: Upstream, cert: Path
) -> None:
    """What is left is the time to idle, and not the time for a first head; or it is over by now."""
    with upstream.untouched(), logged(impatient), H2(impatient.port, cert) as client:
        stream = client.request("DELETE", "/api/delete", ("authorization", f"Bearer {secret('lister')}"), key=False)
        assert client.status(stream) == 403
        assert all(left <= IDLE for left in eval(impatient.do(f"gate = ctx.master.addons.get('ollama_gate'); {LEFT}")))  # noqa: S307


@pytest.mark.slow
def test_httpx_reads_the_answer_to_a_large_body(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """With a wrong key, one after the other and on new connections; a request with a good one gets in between."""
    body = bytes(300_000)
    with upstream.untouched(), logged(tls, 1), quick_client(tls, cert) as client:
        for _ in range(5):
            assert client.post("/api/chat", headers=[WRONG], content=body).status_code == 401
    for _ in range(5):
        with quick_client(tls, cert) as client:
            assert client.post("/api/chat", headers=[WRONG], content=body).status_code == 401
            assert client.post("/demo/sink", headers=[KEY], content=body).json() == {"bytes": len(body)}
            assert client.post("/api/chat", headers=[WRONG], content=body).status_code == 401
            assert client.post("/demo/sink", headers=[KEY], content=body).json() == {"bytes": len(body)}


@pytest.mark.slow
def test_a_refused_body_that_stops(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Beside a good stream: it is read for a while, and reset."""
    upstream.hold()
    with logged(tls, 2), H2(tls.port, cert) as client:
        good = client.request("POST", "/api/chat", body=chat())
        client.until(h2.events.DataReceived, good)
        bad = client.request("POST", "/api/chat", body=None, key=False)
        assert client.status(bad) == 401
        client.data(bad, bytes(10_000))
        assert client.until(h2.events.StreamReset, bad).error_code == ErrorCodes.NO_ERROR
        upstream.go_on()
        assert b'"done":true' in client.body(good)


# What a few bytes may cost.

RAW: dict[str, tuple[bytes, int]] = {
    "PING": (frame(6, 0, 0, bytes(8)), ErrorCodes.ENHANCE_YOUR_CALM),
    "SETTINGS": (frame(SETTINGS, 0, 0, b"\x00\x04\x00\x00\xff\xff"), ErrorCodes.ENHANCE_YOUR_CALM),
    "settings that nobody knows": (
        frame(SETTINGS, 0, 0, b"".join(n.to_bytes(2) + bytes(4) for n in range(100, 5100))),
        ErrorCodes.ENHANCE_YOUR_CALM,
    ),
    "PRIORITY": (frame(2, 0, 1, bytes(4) + b"\x10"), ErrorCodes.ENHANCE_YOUR_CALM),
    "unknown frames": (frame(0xEE, 0, 0, b""), ErrorCodes.ENHANCE_YOUR_CALM),
    "WINDOW_UPDATE": (frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01"), ErrorCodes.ENHANCE_YOUR_CALM),
    "empty DATA": (frame(DATA, 0, 1, b""), ErrorCodes.ENHANCE_YOUR_CALM),
    "padded DATA": (frame(DATA, 8, 1, b"\x00x"), ErrorCodes.ENHANCE_YOUR_CALM),
    "a frame that is too long": (frame(0xEE, 0, 0, bytes(40_000)), ErrorCodes.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("what", RAW)
def test_frames_that_bring_nothing(tls: Gate, upstream: Upstream, cert: Path, what: str) -> None:
    """A thousand of them, or a long one, end the connection, and its stream with it."""
    data, code = RAW[what]
    with logged(tls), H2(tls.port, cert) as client:
        client.request("POST", "/demo/sink", body=None)
        wait_until(lambda: upstream.requests, "the request upstream")
        with suppress(ConnectionError, ssl.SSLError):
            client.wire.send(data * (1000 if len(data) < 100 else 1))
        client.until_closed()
    said = [event.error_code for event in client.events if isinstance(event, h2.events.ConnectionTerminated)]
    assert said == [code] or (not said and code == ErrorCodes.ENHANCE_YOUR_CALM)  # Who floods gets no time to read it.
    assert not upstream.last.complete


def test_a_client_that_pings_and_pads_a_little(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Nobody is cut for a hundred of each."""
    calm = [data for data, code in RAW.values() if code == ErrorCodes.ENHANCE_YOUR_CALM and len(data) < 30]
    with logged(tls), H2(tls.port, cert) as client:
        stream = client.request("POST", "/demo/sink", body=None)
        for data in calm:
            client.wire.send(data * 50)
        client.data(stream, b"", end=True)
        assert client.body(stream) == b'{"bytes":50}'
        assert not client.has(h2.events.ConnectionTerminated)


def test_bodies_in_frames_of_one_byte(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Of two streams in turns: each arrives whole and in order."""
    bodies = [bytes(n % 251 for n in range(20_000)), bytes(n % 241 for n in range(20_000))]
    with logged(tls, 2), H2(tls.port, cert) as client:
        streams = [client.request("POST", "/demo/sink", body=None) for _ in bodies]
        wait_until(lambda: len(upstream.requests) == 2, "the requests upstream")
        turns = zip(*bodies, strict=True)
        client.wire.send(
            b"".join(frame(DATA, 0, s, bytes([b])) for turn in turns for s, b in zip(streams, turn, strict=True))
        )
        for stream in streams:
            client.data(stream, b"", end=True)
        for stream in streams:
            assert client.body(stream) == b'{"bytes":20000}'
    assert sorted(seen.body for seen in upstream.requests) == sorted(bodies)


def test_windows_of_one_byte(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Each costs a frame of the response: some are taken, a thousand at once are not."""
    with logged(tls), H2(tls.port, cert, window=0) as client:
        stream = client.request("GET", "/demo/bytes/5000")
        assert client.status(stream) == 200
        for count in (100, 2000):
            for _ in range(count):
                client.h2.increment_flow_control_window(1, stream)
            with suppress(ConnectionError, ssl.SSLError):
                client.flush()
            while received(client) < 100:
                client.read()
        assert client.until(h2.events.ConnectionTerminated).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert received(client) < 3000


def received(client: H2) -> int:
    return sum(len(event.data) for event in client.events if isinstance(event, h2.events.DataReceived))


def inside(gate: Controlled, attribute: str) -> str:
    """What the HTTP/2 connections of a gate have of it."""
    return gate.do(f"""
        found = [peer.http_server for peer in ctx.master.addons.get("ollama_gate").connections]
        result = [eval("{attribute}", {{"h2": one.h2_conn}}) for one in found if hasattr(one, "h2_conn")]
    """)


def test_sizes_that_a_client_may_choose(tls: Controlled, upstream: Upstream, cert: Path) -> None:
    """They bind only as far as they make our share smaller; settings that nobody knows are forgotten."""
    with logged(tls, 2), H2(tls.port, cert) as client:
        known = inside(tls, "len(h2.remote_settings)")
        client.wire.send(frame(SETTINGS, 0, 0, b"".join(n.to_bytes(2) + bytes(4) for n in range(100, 200))) * 2)
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**31 - 1, SettingCodes.MAX_FRAME_SIZE: 2**24 - 1})
        client.flush()
        assert client.body(client.request("GET", "/demo/bytes/100000")) == bytes(100_000)
        assert inside(tls, "(h2.encoder.header_table_size, h2.max_outbound_frame_size)") == "[(4096, 16384)]"
        assert inside(tls, "len(h2.remote_settings)") in (known, "[7]", "[8]")
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 100})
        client.flush()
        assert client.status(client.request("GET", "/api/tags")) == 200
        assert inside(tls, "h2.encoder.header_table_size") == "[100]"


@pytest.mark.parametrize("behind", [10, 100_000], ids=["less than a token", "more than all"])
def test_a_window_that_is_made_smaller_than_what_was_sent(
    tls: Controlled, upstream: Upstream, cert: Path, behind: int
) -> None:
    """It is negative then (RFC 9113 section 6.9.2): not even an empty frame comes until there is room again."""
    upstream.hold()
    with logged(tls, 3), H2(tls.port, cert, window=200_000) as client:
        stream = client.request("POST", "/api/chat", body=chat())
        before = len(client.until(h2.events.DataReceived, stream).data)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: max(0, before - behind)})
        client.flush()
        client.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign] # It would make room.
        assert client.status(client.request("HEAD", "/api/version")) == 200
        upstream.go_on()
        time.sleep(0.3)
        assert client.status(client.request("HEAD", "/api/version")) == 200
        assert received(client) == before
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 60_000})
        client.flush()
        assert b'"done":true' in client.body(stream)


# Answers that nobody reads.


def test_unread_answers_have_a_bound_for_all_streams(tls: Gate, upstream: Upstream, cert: Path) -> None:
    """Of 40 streams of 3 MB: little is read from Ollama. A stream beside them gets all of its answer."""
    with logged(tls, 41), H2(tls.port, cert, window=0) as client:
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        before = tls.rss
        for _ in range(40):
            client.request("GET", "/demo/bytes/3000000")
        wait_until(lambda: len(upstream.requests) == 40, "the requests upstream")
        stream = client.request("GET", "/demo/bytes/5000000")
        assert client.status(stream) == 200
        client.h2.increment_flow_control_window(2**31 - 1, stream)
        client.flush()
        got = 0
        while not client.has(h2.events.StreamEnded, stream):
            client.events.clear()
            client.read()
            got += sum(len(e.data) for e in client.events if isinstance(e, h2.events.DataReceived))
        assert got == 5_000_000
        assert tls.rss - before < 30 << 20


def test_who_takes_nothing_is_ended(impatient: Gate, upstream: Upstream, cert: Path) -> None:
    """Whatever else it sends; also if its answers are complete."""
    with logged(impatient, 2), H2(impatient.port, cert, window=0) as large, H2(impatient.port, cert, window=0) as small:
        for client, size in ((large, 5_000_000), (small, 10)):
            assert client.status(client.request("GET", f"/demo/bytes/{size}")) == 200
        for client in (large, small):
            until = time.monotonic() + SECONDS
            client.wire.socket.settimeout(0.2)
            while not client.closed:
                assert time.monotonic() < until, "still open"
                with suppress(TimeoutError):
                    client.read()
                time.sleep(0.1)
                with suppress(OSError):
                    client.h2.ping(bytes(8))
                    client.flush()


@pytest.mark.slow
def test_a_slow_reader_is_not_ended(impatient: Gate, upstream: Upstream, cert: Path) -> None:
    """It takes a hundred bytes now and then, for three times as long as answers may wait."""
    with logged(impatient), H2(impatient.port, cert, window=0) as client:
        stream = client.request("GET", "/demo/bytes/3000")
        assert client.status(stream) == 200
        for _ in range(12):
            time.sleep(IDLE / 4)
            client.h2.increment_flow_control_window(100, stream)
            client.flush()
        client.h2.increment_flow_control_window(3000, stream)
        client.flush()
        assert client.body(stream) == bytes(3000)


@pytest.mark.slow
def test_a_stream_that_is_not_read_beside_others(impatient: Gate, upstream: Upstream, cert: Path) -> None:
    """A client that takes what other streams have takes something."""
    with logged(impatient, 13), H2(impatient.port, cert, window=0) as client:
        unread = client.request("GET", "/demo/bytes/3000")
        assert client.status(unread) == 200
        for _ in range(12):
            time.sleep(IDLE / 4)
            other = client.request("GET", "/demo/bytes/10")
            client.h2.increment_flow_control_window(1000, other)
            client.flush()
            assert client.body(other) == bytes(10)
        client.h2.increment_flow_control_window(3000, unread)
        client.flush()
        assert client.body(unread) == bytes(3000)


def test_a_whole_answer_that_is_not_read_holds_no_connection_of_others(
    tls: Gate, upstream: Upstream, cert: Path
) -> None:
    """Its connection upstream is not read on until the client takes something, so no other stream may be given it."""
    with logged(tls, 6), H2(tls.port, cert, window=0) as client:
        for more in (1, 5000, 10_000):
            unread = client.request("GET", f"/demo/bytes/{MAX_UNSENT + more}")
            assert client.status(unread) == 200
            time.sleep(0.3)  # All of it has come from upstream.
            other = client.request("GET", "/demo/bytes/10")
            client.h2.increment_flow_control_window(1000, other)
            client.flush()
            assert client.body(other) == bytes(10)
            client.h2.reset_stream(unread)
            client.flush()


# Leaving.


def test_nothing_new_is_begun_while_leaving(upstream: Upstream, cert: Path) -> None:
    """GOAWAY comes at once, what runs ends whole, what is begun after it is refused, and the gate ends soon after."""
    upstream.hold()
    with Gate(upstream.url, *JSON_LOG, "--certs", str(cert)) as gate, H2(gate.port, cert, graceful=True) as client:
        running = [client.request("POST", "/api/chat", body=chat()) for _ in range(3)]
        sending = client.request("POST", "/demo/sink", body=None)
        for stream in running:
            client.until(h2.events.DataReceived, stream)
        wait_until(lambda: len(upstream.requests) == 4, "the requests upstream")
        gate.signal()
        goodbye = client.until(h2.events.ConnectionTerminated)
        assert (goodbye.error_code, goodbye.last_stream_id) == (ErrorCodes.NO_ERROR, sending)
        for _ in range(2):
            late = client.request("POST", "/api/chat", ("x-long", "y" * 100), body=chat())
            assert client.until(h2.events.StreamReset, late).error_code == ErrorCodes.REFUSED_STREAM
        client.data(sending, b"12345")
        client.h2.send_headers(sending, [("x-long", "y" * 100)], end_stream=True)
        client.flush()
        assert client.body(sending) == b'{"bytes":5}'
        assert gate.process.poll() is None
        upstream.go_on()
        for stream in running:
            assert b'"done":true' in client.body(stream)
        client.until_closed()
        assert gate.wait(PATIENCE) == 0
        lines = log_lines(gate)
        assert len(lines) == 4
        assert all(line["status"] == 200 and "reason" not in line for line in lines)
        assert len(upstream.requests) == 4
        assert_sound(gate, running=False)


def test_httpx_loses_nothing_while_the_gate_leaves(upstream: Upstream, cert: Path) -> None:
    """It would take GOAWAY for the end of all its streams."""
    upstream.hold()
    with ExitStack() as stack:
        gate = stack.enter_context(Gate(upstream.url, *JSON_LOG, "--certs", str(cert)))
        client = stack.enter_context(quick_client(gate, cert))
        running = stack.enter_context(client.stream("POST", "/api/chat", headers=[KEY], content=chat()))
        pieces = running.iter_bytes()
        assert HELD in next(pieces)
        gate.signal()
        wait_until(lambda: refused(gate), "listening to stop")
        with pytest.raises(httpx.RemoteProtocolError, match="error_code:7"):
            client.get("/api/tags", headers=[KEY])
        upstream.go_on()
        assert b'"done":true' in b"".join(pieces)
        assert gate.wait(PATIENCE) == 0
        assert_sound(gate, running=False)


def refused(gate: Gate) -> bool:
    with socket.socket() as probe:
        return bool(probe.connect_ex(("127.0.0.1", gate.port)))


def test_an_unread_answer_ends_with_the_grace_period(upstream: Upstream, cert: Path) -> None:
    options = ("--certs", str(cert), "--set", "ollama_grace_period=1")
    with Gate(upstream.url, *JSON_LOG, *options) as gate, H2(gate.port, cert, window=0) as client:
        assert client.status(client.request("GET", "/demo/bytes/10")) == 200
        gate.signal()
        assert gate.wait(PATIENCE) == 0
