"""Those who watch over the gate see what is true, and nothing secret; and nobody gets to Ollama that way."""

import json
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from OpenSSL import crypto
from prometheus_client import openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from ollama_auth.telemetry.readiness import tls_context
from ollama_auth.telemetry.status_server import MAX_CONNECTIONS, MAX_HEAD
from scripts.tools.usage import __main__ as usage
from tests.harness.base import AUTH, BEARER, KEY, free_port, wait_until
from tests.harness.certificates import certificate, serve_tls
from tests.harness.gate import Gate
from tests.harness.tools import call
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, Wire, ask, chat, head

parse_text: Any = text_string_to_metric_families  # It has no annotations, nor has the other.
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
PATHS = ("/", "/console/overview", "/metrics", "/healthz", "/readyz")


class Watched(Gate):
    """A gate that is watched over."""

    def __init__(self, upstream: str, *args: str, host: str = "127.0.0.1", **rest: Any) -> None:
        self.watch = free_port()
        super().__init__(upstream, "--set", f"ollama_metrics_listen={host}:{self.watch}", *args, **rest)

    def see(self, path: str, *fields: str) -> Response:
        return ask(self.watch, "GET", path, *(fields or ("Host: 127.0.0.1",)))

    def samples(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        found = {}
        for family in parse_text(self.see("/metrics").body.decode()):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    @property
    def status(self) -> Any:
        return self.see("/console/overview").json


@pytest.fixture(scope="module")
def watched(shared_upstream: Upstream) -> Iterator[Watched]:
    with Watched(shared_upstream.url) as gate:
        yield gate


def test_all_is_counted_once(watched: Watched, upstream: Upstream) -> None:
    before = watched.samples()
    answer = ask(watched.port, "POST", "/api/chat", BEARER, body=chat())
    ask(watched.port, "POST", "/v1/chat/completions", BEARER, body=chat())
    ask(watched.port, "POST", "/api/chat", body=chat())
    ask(watched.port, "POST", "/api/chat", "Authorization: Bearer nobody-has-this-one", body=chat())
    ask(watched.port, "GET", "/api/version", BEARER)
    after = wait_until(
        lambda: (
            (now := watched.samples()).get("ollama_auth_requests_total{class=health,key=default,status=200}") and now
        ),
        "all to be counted",
    )
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    tokens = len(answer.body.splitlines()) - 1
    assert {name: value for name, value in grown.items() if "_total" in name} == {
        "ollama_auth_requests_total{class=infer,key=default,status=200}": 2,
        "ollama_auth_requests_total{class=infer,key=(none),status=401}": 2,
        "ollama_auth_requests_total{class=health,key=default,status=200}": 1,
        "ollama_auth_refusals_total{reason=missing}": 1,
        "ollama_auth_refusals_total{reason=unknown}": 1,
        "ollama_auth_tokens_total{key=default,kind=prompt,model=demo}": 10,
        "ollama_auth_tokens_total{key=default,kind=completion,model=demo}": 2 * tokens,
    }
    assert grown["ollama_auth_time_to_first_token_seconds_count{}"] == 1, "only a stream has a first token"
    assert grown.get("ollama_auth_inter_token_seconds_count{}", 0) <= tokens - 1, "some come together"
    assert grown["ollama_auth_request_duration_seconds_count{}"] == 3, "of those that were let in"


def test_what_went_wrong_behind_the_gate_is_counted(upstream: Upstream) -> None:
    with Watched("http://127.0.0.1:1") as gate:
        assert ask(gate.port, "GET", "/api/tags", BEARER).status == 503
        samples = gate.samples()
        assert samples["ollama_auth_upstream_errors_total{reason=upstream unreachable}"] == 1
        assert samples["ollama_auth_requests_total{class=list,key=default,status=503}"] == 1
        assert not [name for name in samples if name.startswith("ollama_auth_refusals_total")]
        status = wait_until(lambda: (now := gate.status)["sums"]["requests"] and now, "the ledger")
        assert (status["sums"]["failed"], status["sums"]["refused"]) == (1, 0)
        assert (
            status["reasons"][0] | {"outcome": "failed", "reason": "upstream unreachable", "keys": ["default"]}
            == (status["reasons"][0])
        )


def test_log_metrics_page_and_report_count_each_end_alike(upstream: Upstream, tmp_path: Path) -> None:
    """Each way in which a request may end, once: answered, refused before and after admission, failed, broken off."""
    log = tmp_path / "log"
    options = (f"ollama_access_log={log}", "ollama_max_body=infer=1k", "ollama_cors_origins=https://app.example")
    sets = [word for option in options for word in ("--set", option)]
    own = Upstream()
    with Watched(own.url, *sets) as gate:
        ask(gate.port, "POST", "/api/chat", BEARER, body=chat())
        preflight = "Origin: https://app.example", "Access-Control-Request-Method: POST"
        assert ask(gate.port, "OPTIONS", "/api/chat", *preflight).status == 204
        ask(gate.port, "POST", "/api/chat", body=chat())
        large, malformed = b"%x\r\n%b\r\n0\r\n\r\n" % (3000, b" " * 3000), b"nothing\r\n"
        chunked = head("POST", "/api/chat", BEARER, "Transfer-Encoding: chunked", "Connection: close")
        for request in (chunked + large, chunked + malformed, head("GET", "/demo/break/chunked", BEARER)):
            with Wire(gate.port, request) as wire, suppress(ConnectionError):
                wire.read_all()
        own.hold()
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()) as wire:
            wire.read_until(b'"done":false}\n')
        wait_until(lambda: log.read_text().count("\n") == 7, "the gate to see that the client left")
        own.go_on()
        own.stop()
        ask(gate.port, "GET", "/api/tags", BEARER)
        wait_until(lambda: log.read_text().count("\n") == 8, "all lines of the log")
        page, samples = wait_until(lambda: requests_of(now := gate.status) == 8 and (now, gate.samples()), "the ledger")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    expected = {"answered": 2, "refused": 3, "failed": 2, "broken_off": 1}
    assert Counter(line["outcome"] for line in lines) == expected
    assert {name: sum(bucket[name] for bucket in page["buckets"]) for name in expected} == expected
    assert {name: page["sums"][name] for name in expected} == expected
    assert sum(row["refused"] for row in page["keys"]) == 3
    refusals = {row["reason"]: row["requests"] for row in page["reasons"] if row["outcome"] == "refused"}
    assert refusals == {"missing": 1, "body too large": 1, "malformed body": 1}
    for metric, total in (("requests", 8), ("refusals", 3), ("upstream_errors", 2)):
        assert sum(n for name, n in samples.items() if name.startswith(f"ollama_auth_{metric}_total{{")) == total
    said = call(usage.main, "--format", "json", str(log), folder=tmp_path)
    total = json.loads(said.out)["total"]
    assert (total["requests"], *(total[name] for name in ("refused", "failed", "broken_off"))) == (8, 3, 2, 1)


def requests_of(page: Any) -> int:
    return int(page["sums"]["requests"])


def test_the_metrics_are_well_formed(watched: Watched) -> None:
    """Each family once, with help and type; in both formats; names and labels as Prometheus wants them."""
    ask(watched.port, "POST", "/api/chat", BEARER, body=chat())
    plain, modern = watched.see("/metrics"), watched.see("/metrics", "Host: localhost", f"Accept: {OPENMETRICS}")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    families = [*parse_text(plain.body.decode())]
    assert len({family.name for family in families}) == len(families)
    assert {family.name for family in families} == {family.name for family in parse_openmetrics(modern.body.decode())}
    for family in families:
        assert re.fullmatch(r"ollama_auth_[a-z_]+", family.name)
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert family.type != "histogram" or family.name.endswith("_seconds")


OPENMETRICS = openmetrics.exposition.CONTENT_TYPE_LATEST


def test_a_request_under_way_is_seen(watched: Watched, upstream: Upstream) -> None:
    upstream.hold()
    with Wire(watched.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()) as wire:
        wire.read_until(b'"done":false}\n')
        assert watched.samples()["ollama_auth_in_flight_requests{}"] == 1
        assert watched.samples()["ollama_auth_connections{}"] == 1
        status = watched.status
        [row] = status["in_flight"]
        assert (status["in_flight_total"], row["key"], row["model"], row["path"]) == (1, "default", "demo", "/api/chat")
        assert (row["stream"], row["tokens"]) == (True, 1)
        assert status["running"] == {"default": 1}
        upstream.go_on()
        wire.read_until(b"0\r\n\r\n")
        wait_until(lambda: not watched.status["in_flight"], "the request to end")


def test_what_clients_name_makes_no_new_series(watched: Watched, upstream: Upstream) -> None:
    """Paths, methods, models that do not exist, keys that nobody has: none is a label."""
    ask(watched.port, "POST", "/api/chat", BEARER, body=chat("no-such-model"))
    before = len(watched.samples())
    for number in range(20):
        ask(watched.port, "GET", f"/no/such/path/{number}", BEARER)
        ask(watched.port, "POST", "/api/chat", f"Authorization: Bearer nobody-has-this-one-{number}", body=chat())
        ask(watched.port, "POST", "/api/chat", BEARER, body=chat(f"no-such-model-{number}"))
    assert len(watched.samples()) <= before + 3
    assert "no-such" not in watched.see("/metrics").body.decode() + json.dumps(watched.status)


def test_no_secret_is_shown(watched: Watched) -> None:
    sent = "sk-ollama-ffffffffffffffffffffffffffffffff"
    ask(watched.port, "GET", f"/{sent}?key={sent}", f"Authorization: Bearer {sent}", f"X-Request-Id: {sent}")
    ask(watched.port, "GET", f"/{KEY}", BEARER)
    seen = b"".join(watched.see(path).raw for path in PATHS)
    for secret in (sent, KEY):
        assert secret.encode() not in seen


@pytest.mark.parametrize("path", PATHS)
def test_every_page_is_new_each_time_and_runs_nothing_of_others(watched: Watched, path: str) -> None:
    answer = watched.see(path)
    assert answer.status == 200
    assert answer.headers["cache-control"] == ("no-cache" if path == "/" else "no-store")
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 's")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "server" not in answer.headers
    whole = ask(watched.watch, "HEAD", path, "Host: 127.0.0.1")
    assert (whole.status, whole.body) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/metrics", 405), ("DELETE", "/", 405), ("GET", "/api/tags", 404), ("GET", "/../etc/passwd", 404)],
)
def test_there_is_nothing_else(watched: Watched, upstream: Upstream, method: str, path: str, status: int) -> None:
    with upstream.untouched():
        answer = ask(watched.watch, method, path, "Host: 127.0.0.1", BEARER)
    assert answer.status == status
    assert answer.json["error"]


@pytest.mark.parametrize("name", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost.evil"])
def test_a_page_under_another_name_can_not_read_it(watched: Watched, name: str) -> None:
    for path in PATHS:
        assert watched.see(path, f"Host: {name}").status == 421


@pytest.mark.parametrize("name", ["localhost", "localhost:1", "127.0.0.1:9464", "[::1]:9464"])
def test_it_can_be_read_under_names_of_this_machine(watched: Watched, name: str) -> None:
    assert watched.see("/healthz", f"Host: {name}").status == 200


def test_floods_of_it_do_not_harm_the_gate(watched: Watched, upstream: Upstream) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(watched.watch)) for _ in range(MAX_CONNECTIONS + 20)]
        wait_until(lambda: sum(map(closed, wires)) >= 20, "those that are too many to be closed")
        assert ask(watched.port, "GET", "/api/version", BEARER).status == 200
    wait_until(lambda: sees(watched), "room for a new one")
    flood = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2 * MAX_HEAD
    with Wire(watched.watch, flood) as wire, suppress(ConnectionError):  # What is not read may end it with a reset.
        assert b"200 OK" not in wire.read_all()
    assert watched.see("/healthz").status == 200


HALF, WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", head("GET", "/", host="localhost")


@pytest.mark.parametrize("data", [b"", HALF, WHOLE])
def test_it_answers_whatever_number_of_connections_says_nothing(watched: Watched, data: bytes) -> None:
    """Silent, half a head, or idle after a request: the one that has been so for longest makes room."""
    with ExitStack() as stack:
        for _ in range(3):
            for _ in range(MAX_CONNECTIONS):
                stack.enter_context(Wire(watched.watch, data))
            assert watched.see("/healthz").status == 200


def test_who_is_being_answered_does_not_make_room() -> None:
    """A probe waits for Ollama while others connect and say nothing."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        gate = stack.enter_context(Watched(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        asked = stack.enter_context(Wire(gate.watch, head("GET", "/readyz", host="localhost")))
        connection, _ = silent.accept()
        for _ in range(2 * MAX_CONNECTIONS):
            stack.enter_context(Wire(gate.watch))
        assert gate.see("/healthz").status == 200
        connection.close()
        assert asked.read_response().status == 503


def closed(wire: Wire) -> bool:
    wire.socket.settimeout(0.001)
    try:
        return wire.socket.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def sees(watched: Watched) -> bool:
    try:
        return watched.see("/healthz").status == 200
    except (AssertionError, OSError):
        return False


# Health.


@pytest.mark.slow
def test_ready_means_open_and_ollama_answers(upstream: Upstream) -> None:
    own = Upstream()
    with Watched(own.url) as gate:
        assert (gate.see("/readyz").status, gate.see("/readyz").json) == (200, {"ready": True})
        own.stop()
        gone = wait_until(lambda: (now := gate.see("/readyz")).status == 503 and now, "Ollama to be found gone")
        assert gone.json == {"ready": False, "reason": "Ollama does not answer"}
        assert gone.headers["retry-after"] == "5"
        assert gate.see("/healthz").status == 200, "a gate without Ollama is alive"
        assert gate.status["ready"] is False


@pytest.mark.parametrize("trust", ["ca", "confdir", "insecure", "none"])
def test_ready_trusts_what_requests_trust(tmp_path: Path, trust: str) -> None:
    """An https upstream with a private authority."""
    with serve_tls(tmp_path) as (port, pem):
        certificate = load_pem_x509_certificate(pem.read_bytes())
        folder = tmp_path / "confdir"
        folder.mkdir()
        subject = crypto.X509.from_cryptography(certificate).subject_name_hash()
        (folder / f"{subject:08x}.0").write_bytes(certificate.public_bytes(Encoding.PEM))
        options = {
            "ca": f"ssl_verify_upstream_trusted_ca={folder}/{subject:08x}.0",
            "confdir": f"ssl_verify_upstream_trusted_confdir={folder}",
            "insecure": "ssl_insecure=true",
            "none": "ssl_insecure=false",
        }
        with Watched(f"https://localhost:{port}", "--set", options[trust]) as gate:
            served = ask(gate.port, "GET", "/api/version", BEARER).status
            assert served == (503 if trust == "none" else 200)
            assert gate.see("/readyz").status == (503 if trust == "none" else 200)


def test_ready_shows_the_client_certificate_that_requests_show(tmp_path: Path) -> None:
    (folder := tmp_path / "certs").mkdir()
    file = certificate(tmp_path).rename(folder / "localhost.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(file)
    for client_certs in (str(folder), str(file)):
        client = tls_context("localhost", False, str(file), None, client_certs)
        ends = [ssl.MemoryBIO(), ssl.MemoryBIO()]
        one = client.wrap_bio(ends[0], ends[1], server_hostname="localhost")
        other = server.wrap_bio(ends[1], ends[0], server_side=True)
        for _ in range(3):
            for end in (one, other):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        assert other.getpeercert()


def test_ollama_is_asked_no_more_often_than_that(watched: Watched, upstream: Upstream) -> None:
    watched.see("/readyz")
    before = len(upstream.requests)
    begun = time.monotonic()
    for _ in range(20):
        watched.see("/readyz")
    assert len(upstream.requests) - before <= 1 + (time.monotonic() - begun) / 2


@pytest.mark.slow
def test_it_is_not_ready_without_its_script_and_tells_of_the_drain(upstream: Upstream, tmp_path: Path) -> None:
    script = tmp_path / "auth.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(AUTH.parent)!r})\n" + AUTH.read_text())
    with Watched(upstream.url, script=script) as gate:
        upstream.hold()
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(chat())}") + chat()) as wire:
            wire.read_until(b'"done":false}\n')
            gate.signal()
            draining = wait_until(lambda: (now := gate.see("/readyz")).status == 503 and now, "the drain")
            assert draining.json == {"ready": False, "reason": "the gate is draining"}
            assert gate.see("/healthz").status == 200
            upstream.go_on()
            wire.read_until(b"0\r\n\r\n")
        assert gate.wait() == 0
    with Watched(upstream.url, script=script) as gate:
        script.unlink()
        closed = wait_until(lambda: (now := gate.see("/readyz")).status == 503 and now, "the script to be missed")
        assert closed.json["reason"] == "the gate is closed"


# Where it listens.


def test_it_is_off_unless_it_is_asked_for(gate: Gate, upstream: Upstream) -> None:
    listening = Path(f"/proc/{gate.process.pid}/net/tcp").read_text()
    assert f":{9464:04X} " not in listening or "status page is at" not in gate.output
    assert "status page is at" not in gate.output


def test_an_address_that_is_taken_ends_the_start_with_a_word(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        with Gate(upstream.url, "--set", f"ollama_metrics_listen={address}", ready=False) as gate:
            assert gate.wait() == 1
            assert f"ollama_metrics_listen: can't listen on {address} (Address already in use)" in gate.output


def test_the_environment_says_where_and_the_option_wins(upstream: Upstream) -> None:
    port = free_port()
    with Gate(upstream.url, env={"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{port}"}) as gate:
        assert ask(port, "GET", "/healthz", "Host: localhost").status == 200
        assert gate.find(f"status page is at http://127.0.0.1:{port}/")
    off = {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{port}"}
    with Gate(upstream.url, "--set", "ollama_metrics_listen=", env=off) as gate, pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/healthz")
