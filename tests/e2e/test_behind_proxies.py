"""Behind trusted proxies a request is its client's, by a header or by the PROXY protocol, over every protocol."""

import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ollama_auth.proxy.http2 import MAX_RESETS
from tests.harness.base import BEARER, KEY, free_port, wait_until
from tests.harness.certificates import trusting
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Gate, Ready, assert_sound, logged
from tests.harness.http2 import H2
from tests.harness.serve import served
from tests.harness.upstream import Upstream
from tests.harness.wire import Line, Response, TlsWire, Wire, ask, chat, head, parse, proxy_header

STRANGER = "127.0.0.9"
"""An address that connections may come from, and that is not trusted."""
CLIENT, ANOTHER = "203.0.113.9", "2001:db8::1"
JSON = ("--set", "ollama_access_log=-")
TRUSTED = (*JSON, "--set", "ollama_trusted_proxies=127.0.0.1,10.0.0.0/8")
PROXY = (*TRUSTED, "--set", "ollama_proxy_protocol=true")


def by(address: str) -> str:
    return f"X-Forwarded-For: {address}"


def tags(*fields: str) -> bytes:
    return head("GET", "/api/tags", *fields)


@pytest.fixture(scope="module")
def trusting_gate(shared_upstream: Upstream) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *TRUSTED) as gate:
        yield gate
        assert_sound(gate)


@pytest.fixture(scope="module")
def proxied(shared_upstream: Upstream) -> Iterator[Gate]:
    """A gate whose proxies send the PROXY protocol, and a header as well."""
    with Gate(shared_upstream.url, *PROXY) as gate:
        yield gate
        assert_sound(gate)


@pytest.fixture(scope="module")
def proxied_tls(shared_upstream: Upstream, cert: Path) -> Iterator[Gate]:
    with Gate(shared_upstream.url, *PROXY, "--certs", str(cert)) as gate:
        yield gate
        assert_sound(gate)


class ProxiedTls(TlsWire):
    """TLS after a header of the PROXY protocol."""

    def __init__(self, port: int, cert: Path, before: bytes, *alpn: str) -> None:
        Wire.__init__(self, port, before)
        self.plain = self.socket
        self.socket = trusting(cert, *alpn).wrap_socket(self.plain, server_hostname="localhost")


# A header.


@pytest.mark.slow
def test_each_request_of_a_connection_has_its_own_client(trusting_gate: Gate, upstream: Upstream) -> None:
    with logged(trusting_gate, 5) as lines, Wire(trusting_gate.port) as wire:
        for fields in ((by(CLIENT),), (by(f"198.51.100.1, {ANOTHER}, 10.1.1.1"),), (), (by("unknown"),)):
            assert wire.send(tags(BEARER, *fields)).read_response().status == 200
            assert "x-forwarded-for" not in {name.lower() for name, _ in upstream.last.headers}
        assert wire.send(tags(by(CLIENT))).read_response().status == 401
    assert [line["client"] for line in lines] == [CLIENT, ANOTHER, "127.0.0.1", "127.0.0.1", CLIENT]
    assert trusting_gate.output.count("not believed") == 0


@pytest.mark.slow
def test_who_is_not_trusted_is_not_believed_and_told_once(trusting_gate: Gate) -> None:
    with logged(trusting_gate, 3) as lines:
        for field in (by(CLIENT), "X-Real-IP: 203.0.113.9", "Accept-Language: en"):
            with Line.to(trusting_gate.port, tags(BEARER, field, "Connection: close"), STRANGER) as line:
                assert parse(line.read_all()).status == 200
    assert [line["client"] for line in lines] == [STRANGER] * 3
    said = [line for line in trusting_gate.lines if "not believed" in line]
    assert len(said) == 1, said
    assert f"{STRANGER} sends X-Forwarded-For" in said[0]
    assert said[0].endswith(f"set ollama_trusted_proxies={STRANGER}")


def test_another_header_is_told_with_its_name(upstream: Upstream) -> None:
    """Also to who has no key, because the first request may have none."""
    with Gate(upstream.url, *JSON, "--set", "ollama_client_ip_header=X-Real-IP") as gate, logged(gate, 2):
        assert ask(gate.port, "GET", "/", "CF-Connecting-IP: 203.0.113.9").status == 401
        assert ask(gate.port, "GET", "/", by(CLIENT)).status == 401
        line = gate.find("not believed")
        assert line.endswith("set ollama_trusted_proxies=127.0.0.1 and ollama_client_ip_header=CF-Connecting-IP")
        assert gate.output.count("not believed") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Forwarded", f'for=198.51.100.1, for="[{ANOTHER}]:4711";proto=https'),
        ("X-Real-IP", ANOTHER),
        ("CF-Connecting-IP", ANOTHER),
    ],
)
def test_other_headers_by_the_environment(upstream: Upstream, name: str, value: str) -> None:
    env = {"OLLAMA_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1"}
    with Gate(upstream.url, *JSON, "--set", f"ollama_client_ip_header={name.lower()}", env=env) as gate:
        with logged(gate) as lines:
            assert ask(gate.port, "GET", "/api/tags", BEARER, f"{name}: {value}", by(CLIENT)).status == 200
        assert lines[0]["client"] == ANOTHER
        assert "not believed" not in gate.output


def test_http2_whose_connection_many_clients_share(upstream: Upstream, cert: Path) -> None:
    """One without a key, and one that gives up again and again, cost the others nothing."""
    wrong = ("authorization", "Bearer wrong")
    with (
        Gate(upstream.url, *TRUSTED, "--certs", str(cert)) as gate,
        H2(gate.port, cert) as proxy,
        logged(gate, 4) as lines,
    ):
        for field, key, status in (
            (wrong, False, 401),
            (("x-forwarded-for", CLIENT), True, 200),
            (("x-forwarded-for", ANOTHER), True, 200),
            (("x-forwarded-for", CLIENT), False, 401),
        ):
            assert proxy.status(proxy.request("GET", "/api/tags", field, key=key)) == status
    assert [line["client"] for line in lines] == ["127.0.0.1", CLIENT, ANOTHER, CLIENT]


@pytest.mark.slow
def test_resets_of_one_client_of_a_shared_connection(upstream: Upstream, cert: Path) -> None:
    with Gate(upstream.url, *TRUSTED, "--certs", str(cert)) as gate, H2(gate.port, cert) as proxy:
        for _ in range(2 * MAX_RESETS // 50):
            for _ in range(50):
                stream = proxy.request("POST", "/api/chat", ("x-forwarded-for", CLIENT), body=None, key=False)
                proxy.h2.reset_stream(stream)
            assert proxy.status(proxy.request("GET", "/api/tags", ("x-forwarded-for", ANOTHER))) == 200
        assert_sound(gate)


def test_wrong_keys_are_counted_by_client(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice"))
    file.chmod(0o600)
    env = {"OLLAMA_KEYS_FILE": str(file)}
    args = (*TRUSTED, "--set", "ollama_max_wrong_keys=3")
    with Gate(upstream.url, *args, key=None, env=env) as gate, upstream.untouched():
        guesses = [f"Authorization: Bearer guess-{n}" for n in range(4)]
        assert [ask(gate.port, "GET", "/", key, by(CLIENT)).status for key in guesses] == [401, 401, 429, 429]
        assert ask(gate.port, "GET", "/", guesses[0], by(ANOTHER)).status == 401
        assert ask(gate.port, "GET", "/", guesses[0], by(f"198.51.100.7, {CLIENT}")).status == 429
        assert ask(gate.port, "GET", "/", guesses[0]).status == 401, "the proxy itself"
        assert ask(gate.port, "GET", "/nowhere", bearer("alice"), by(CLIENT)).status == 403
        assert CLIENT in gate.find("different wrong keys")


def test_connections_are_counted_by_client(upstream: Upstream) -> None:
    """Each counts for the client of its latest request; one that had none yet counts for its peer."""
    body = chat()
    upstream.hold()
    with (
        Gate(upstream.url, *TRUSTED, "--set", "ollama_max_connections_per_client=2") as gate,
        ExitStack() as stack,
    ):

        def start(field: str) -> Line:
            data = head("POST", "/api/chat", BEARER, field, f"Content-Length: {len(body)}") + body
            return stack.enter_context(Line.to(gate.port, data))

        for address in (CLIENT, CLIENT, ANOTHER, ANOTHER):
            assert b"200 OK" in start(by(address)).read_until(b'"done":false}')
        with upstream.untouched(), logged(gate) as lines:
            refused = parse(start(by(CLIENT)).read_all())
        assert (refused.status, "too many connections" in refused.json["error"]) == (503, True)
        assert refused.headers["retry-after"]
        assert (lines[0]["client"], lines[0]["reason"]) == (CLIENT, "connections")
        assert b"200 OK" in start(by("203.0.113.10")).read_until(b'"done":false}')
        with upstream.untouched():
            assert parse(start(by("2001:db8::ffff")).read_all()).status == 503, "the same /64"
        upstream.go_on()
        assert_sound(gate)


def test_the_console_behind_a_proxy(upstream: Upstream) -> None:
    """Its own connection to the gate begins with no header, and is of who asked."""
    with Ready(upstream.url, *PROXY) as gate, logged(gate, 2) as lines:
        assert ask(gate.watch, "GET", "/console/me", by(CLIENT), "Host: localhost").status == 401
        asked = ask(gate.watch, "POST", "/console/chat", BEARER, by(ANOTHER), "Host: localhost", body=chat())
        assert asked.status == 200
    assert [(line["client"], line["path"]) for line in lines] == [(CLIENT, "/console/me"), (ANOTHER, "/api/chat")]


# The PROXY protocol.


@pytest.mark.parametrize("version", [1, 2])
def test_the_proxy_protocol(proxied: Gate, version: int, upstream: Upstream) -> None:
    for address in (CLIENT, ANOTHER):
        with logged(proxied, 2) as lines, Wire(proxied.port, proxy_header(version, address)) as wire:
            assert wire.send(tags(BEARER, by("198.51.100.7"))).read_response().status == 200
            assert wire.send(tags()).read_response().status == 401
        assert [line["client"] for line in lines] == [address] * 2, "it is no proxy, so its header is not believed"


def test_a_header_behind_the_proxy_protocol(proxied: Gate) -> None:
    """A proxy that passes TCP on, in front of one that sends a header."""
    with logged(proxied) as lines, Wire(proxied.port, proxy_header(2, "10.7.7.7") + tags(BEARER, by(CLIENT))) as wire:
        assert wire.read_response().status == 200
    assert lines[0]["client"] == CLIENT


def test_a_proxy_that_speaks_for_itself(proxied: Gate) -> None:
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    for header in (local, b"PROXY UNKNOWN\r\n"):
        with logged(proxied) as lines, Wire(proxied.port, header + tags(BEARER)) as wire:
            assert wire.read_response().status == 200
        assert lines[0]["client"] == "127.0.0.1"


def test_the_proxy_protocol_a_byte_at_a_time(proxied: Gate) -> None:
    for version in (1, 2):
        with logged(proxied) as lines, Wire(proxied.port) as wire:
            for byte in proxy_header(version, CLIENT) + tags(BEARER):
                wire.send(bytes([byte]))
            assert wire.read_response().status == 200
        assert lines[0]["client"] == CLIENT


def test_what_begins_with_no_proxy_header_is_closed(proxied: Gate, upstream: Upstream) -> None:
    """Nothing is answered, as section 2 of the protocol demands."""
    with upstream.untouched(), logged(proxied, 0):
        for data in (
            tags(BEARER),
            b"PROXY TCP4 nonsense\r\n" + tags(BEARER),
            proxy_header(2, CLIENT).replace(b"\x21", b"\x31", 1) + tags(BEARER),
            b"PROXY " + b"x" * 200,
        ):
            with Wire(proxied.port, data) as wire:
                assert read_to_end(wire) == b""
    assert "127.0.0.1 is a trusted proxy" in proxied.find("let it send the PROXY protocol")


def read_to_end(wire: Wire) -> bytes:
    try:
        return wire.read_all()
    except ConnectionResetError:
        return b""


def test_a_proxy_header_of_a_stranger_is_no_request(proxied: Gate, upstream: Upstream) -> None:
    with upstream.untouched(), logged(proxied, 2) as lines:
        for version in (1, 2):
            with Line.to(proxied.port, proxy_header(version, CLIENT) + tags(BEARER), STRANGER) as line:
                assert parse(line.read_all()).status == 400
    assert [line["client"] for line in lines] == [STRANGER] * 2
    with Line.to(proxied.port, tags(BEARER, "Connection: close"), STRANGER) as line:
        assert parse(line.read_all()).status == 200, "who is no proxy needs none"


def test_two_proxy_headers(proxied: Gate, upstream: Upstream) -> None:
    with (
        upstream.untouched(),
        logged(proxied) as lines,
        Wire(proxied.port, proxy_header(1, CLIENT) + proxy_header(1, ANOTHER) + tags(BEARER)) as wire,
    ):
        assert wire.read_response().status == 400
    assert lines[0]["client"] == CLIENT


@pytest.mark.parametrize("version", [1, 2])
def test_the_proxy_protocol_before_tls(proxied_tls: Gate, cert: Path, version: int) -> None:
    before = proxy_header(version, CLIENT)
    with logged(proxied_tls) as lines, ProxiedTls(proxied_tls.port, cert, before, "http/1.1") as wire:
        assert wire.send(tags(BEARER)).read_response().status == 200
    assert lines[0]["client"] == CLIENT
    with logged(proxied_tls, 0):
        with Wire(proxied_tls.port, before + tags(BEARER)) as wire:
            assert parse(wire.read_all()).status == 400, "HTTP in clear"
        with pytest.raises((ssl.SSLError, OSError)):
            TlsWire(proxied_tls.port, cert)


def test_http2_behind_the_proxy_protocol(
    proxied_tls: Gate, cert: Path, monkeypatch: pytest.MonkeyPatch, upstream: Upstream
) -> None:
    monkeypatch.setattr(
        "tests.harness.http2.TlsWire",
        lambda port, cert, _, *alpn: ProxiedTls(port, cert, proxy_header(2, ANOTHER), *alpn),
    )
    with logged(proxied_tls, 2) as lines, H2(proxied_tls.port, cert) as client:
        assert client.status(client.request("GET", "/api/tags", ("x-forwarded-for", CLIENT))) == 200
        with upstream.untouched():
            assert client.status(client.request("GET", "/api/tags", key=False)) == 401
    assert [line["client"] for line in lines] == [ANOTHER] * 2


def test_connections_of_the_proxy_protocol_are_counted_by_client(upstream: Upstream) -> None:
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    upstream.hold()
    with (
        Gate(upstream.url, *PROXY, "--set", "ollama_max_connections_per_client=2") as gate,
        ExitStack() as stack,
    ):

        def start(address: str) -> Line:
            return stack.enter_context(Line.to(gate.port, proxy_header(1, address) + data))

        for address in (CLIENT, CLIENT, ANOTHER):
            assert b"200 OK" in start(address).read_until(b'"done":false}')
        with upstream.untouched():
            assert parse(start(CLIENT).read_all()).status == 503
        assert b"200 OK" in start(ANOTHER).read_until(b'"done":false}')
        upstream.go_on()


def test_a_proxy_header_that_does_not_come(upstream: Upstream) -> None:
    """It has the time of a request head."""
    with Gate(upstream.url, *PROXY, "--set", "ollama_head_timeout=1") as gate, Wire(gate.port, b"PROXY TC") as wire:
        assert read_to_end(wire) == b""
        assert_sound(gate)


def test_a_stream_behind_the_proxy_protocol(proxied: Gate, upstream: Upstream) -> None:
    """On the fast path as every other one; who leaves ends it."""
    upstream.hold()
    body = chat()
    data = head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body
    with Line.to(proxied.port, proxy_header(2, CLIENT) + data) as line:
        line.read_until(b'"done":false}')
        assert upstream.open_connections == 1
    wait_until(lambda: not upstream.open_connections, "the connection upstream to end")
    upstream.go_on()
    answer: Response
    with Wire(proxied.port, proxy_header(2, CLIENT) + data) as wire:
        answer = wire.read_response()
    assert b'"done":true' in answer.body


def test_a_gate_that_closes(upstream: Upstream) -> None:
    """Connections whose header is awaited are no reason to wait."""
    with Gate(upstream.url, *PROXY) as gate, Wire(gate.port, b"PROXY") as wire:
        began = time.monotonic()
        gate.signal()
        assert gate.wait() == 0
        assert time.monotonic() - began < 30
        assert read_to_end(wire) == b""


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["", "TLS"])
def test_the_gate_that_asks_itself_is_a_proxy_like_all(
    upstream: Upstream, cert: Path, tmp_path: Path, tls: bool
) -> None:
    """scripts/serve asks without a key once it listens; that is no proxy which forgot its header."""
    port, log = free_port(), tmp_path / "log"
    more = ("--set", f"ollama_access_log={log}", "--listen-port", str(port), *(("--certs", str(cert)) if tls else ()))
    variables = {"OLLAMA_API_KEY": KEY, "OLLAMA_ENDPOINT": upstream.url, "OLLAMA_TRUSTED_PROXIES": "127.0.0.1"}
    with served(tmp_path, "--set", "ollama_proxy_protocol=true", *more, **variables) as (_, said):
        assert any("curl -N" in line for line in said), said
        assert not [line for line in said if "PROXY" in line]
