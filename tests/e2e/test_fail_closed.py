"""Whatever breaks on our side, nothing goes upstream: neither with a key nor without one."""

import os
import select
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from tests.harness.base import AUTH, BEARER, wait_until
from tests.harness.gate import Controlled, Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import Response, Wire, ask, chat, head, parse

UNAVAILABLE = 503


@pytest.fixture
def controlled(upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(upstream.url) as gate:
        yield gate


def attempts(gate: Gate) -> list[Response]:
    """Every kind of request a closed gate must refuse."""
    return [
        ask(gate.port, "GET", "/api/tags", BEARER),
        ask(gate.port, "GET", "/api/tags"),
        ask(gate.port, "POST", "/api/chat", BEARER, body=chat()),
        ask(gate.port, "POST", "/v1/chat/completions", "Authorization: Bearer wrong", body=chat()),
    ]


def assert_closed(gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answers = attempts(gate)
    assert [answer.status for answer in answers] == [UNAVAILABLE] * 4
    assert all(answer.headers["x-request-id"] for answer in answers)
    assert all(answer.json["error"] for answer in answers)


def assert_open(gate: Gate, upstream: Upstream) -> None:
    assert ask(gate.port, "GET", "/api/tags", BEARER).status == 200
    with upstream.untouched():
        assert ask(gate.port, "GET", "/api/tags").status == 401


# Everything a request meets on its way, made to raise by another script.
STAGES = {
    "the parser of credentials": ("ollama_auth.auth.credentials", "parse"),
    "the key ring": ("ollama_auth.auth.keys", "KeyRing.find"),
    "the routes": ("ollama_auth.authorizer", "route"),
    "the rules for every request": ("ollama_auth.authorizer", "check_request"),
    "the identity": ("ollama_auth.authorizer", "identify"),
    "the policy": ("ollama_auth.auth.policy", "check_route"),
    "the headers": ("ollama_auth.auth.forwarding", "split"),
    "the target": ("ollama_auth.auth.redaction", "clean_target"),
    "the request id": ("ollama_auth.authorizer", "sent_id"),
    "the record of the request": ("ollama_auth.exchange", "Exchange.__init__"),
    "the admission": ("ollama_auth.exchange", "Admission.__init__"),
    "the verdict": ("ollama_auth.lifecycle", "RequestLifecycle.authorize"),
    "what is done before it goes upstream": ("ollama_auth.lifecycle", "RequestLifecycle.begin"),
    "hmac": ("hmac", "compare_digest"),
    "hashlib": ("hashlib", "sha256"),
    "reading the fields of headers": ("mitmproxy.http", "Headers.fields"),
    "the making of headers": ("mitmproxy.http", "Headers.__init__"),
}
BOOM = """
import importlib
def boom(*args, **kwargs):
    raise RuntimeError("secret sk-ollama-in-a-message")
def find(module, path):
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name
"""


@pytest.fixture(scope="module")
def one_controlled(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url) as gate:
        yield gate


@contextmanager
def sabotaged(gate: Controlled, module: str, path: str) -> Iterator[None]:
    """Another script replaces something of that name by something that raises, and puts it back."""
    done = gate.do(f"""{BOOM}
owner, name = find({module!r}, {path!r})
import builtins
builtins.original = vars(owner).get(name)
setattr(owner, name, boom if callable(builtins.original) else property(boom, boom))
""")
    assert done == "None", done
    yield
    gate.do(f"""{BOOM}
owner, name = find({module!r}, {path!r})
import builtins
if builtins.original is None:
    delattr(owner, name)
else:
    setattr(owner, name, builtins.original)
""")


@pytest.mark.ways
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_raises_denies(one_controlled: Controlled, upstream: Upstream, stage: str) -> None:
    gate = one_controlled
    assert_open(gate, upstream)
    with sabotaged(gate, *STAGES[stage]), upstream.untouched():
        answers = [
            ask(gate.port, "GET", "/api/tags", BEARER),
            ask(gate.port, "GET", "/api/tags"),
            ask(gate.port, "POST", "/api/chat", BEARER, body=chat()),
        ]
    assert all(answer.status in (401, UNAVAILABLE) for answer in answers)
    assert all(gate.find(answer.headers["x-request-id"]) for answer in answers)
    assert answers[0].status == answers[2].status == UNAVAILABLE, "with the right key it is our fault, and we say so"
    assert gate.find("RuntimeError")
    assert "sk-ollama" not in gate.output, "a message may hold what a client sent"
    assert_open(gate, upstream)


HOOKS = ("requestheaders", "request", "responseheaders", "response", "error", "next_layer", "client_connected")


@pytest.mark.ways
@pytest.mark.parametrize("hook", HOOKS)
def test_another_addons_hook_that_raises_lets_no_stranger_in(
    one_controlled: Controlled, upstream: Upstream, hook: str
) -> None:
    one_controlled.do(f"""
        class Broken:
            def {hook}(self, *args):
                raise RuntimeError("broken")
        ctx.master.addons.add(Broken())
    """)
    with upstream.untouched():
        assert ask(one_controlled.port, "GET", "/api/tags").status == 401
    one_controlled.do("ctx.master.addons.remove(ctx.master.addons.get('broken'))")


# Our own hooks, replaced by ones that raise: mitmproxy logs that and goes on, which must end nowhere.
@pytest.mark.ways
@pytest.mark.parametrize("hook", ["next_layer", "client_connected"])
def test_a_hook_of_ours_that_raises_denies(one_controlled: Controlled, upstream: Upstream, hook: str) -> None:
    with sabotaged(one_controlled, "ollama_auth.addon", f"Gate.{hook}"):
        before = len(upstream.requests)
        for fields in ((BEARER,), ()):
            with suppress(AssertionError, ConnectionError):  # Closed without an answer is an answer.
                assert ask(one_controlled.port, "GET", "/api/tags", *fields).status == 502
        assert len(upstream.requests) == before
    assert_open(one_controlled, upstream)


def test_the_second_lock_may_fail_where_the_first_holds(one_controlled: Controlled, upstream: Upstream) -> None:
    with sabotaged(one_controlled, "ollama_auth.addon", "Gate.server_connect"):
        assert_open(one_controlled, upstream)


def test_a_layer_put_in_by_another_script_has_no_way_upstream(one_controlled: Controlled, upstream: Upstream) -> None:
    one_controlled.do("""
        from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
        class Foreign:
            def next_layer(self, nextlayer):
                nextlayer.layer = HttpLayer(nextlayer.context, HTTPMode.transparent)
        ctx.master.addons.add(Foreign())
    """)
    with upstream.untouched():
        assert ask(one_controlled.port, "GET", "/api/tags", BEARER).status == 502
    one_controlled.do("ctx.master.addons.remove(ctx.master.addons.get('foreign'))")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the checkout's addons folder, whose auth.py may be broken."""
    shutil.copytree(AUTH.parent, tmp_path / "addons", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "addons" / "auth.py"


BREAKS = {
    "a syntax error": "addons = [",
    "emptied": "",
    "an exception": "raise RuntimeError('x')",
    "replaced": "class Other:\n    pass\naddons = [Other()]\n",
    "another path of import": "from nowhere import OllamaAuth\n",
    "configure raises": (
        "from ollama_auth.addon import OllamaAuth\n"
        "class Broken(OllamaAuth):\n"
        "    def configure(self, updated):\n"
        "        raise RuntimeError('x')\n"
        "addons = [Broken()]\n"
    ),
    "load raises": (
        "from ollama_auth.addon import OllamaAuth\n"
        "class Broken(OllamaAuth):\n"
        "    def load(self, loader):\n"
        "        raise RuntimeError('x')\n"
        "addons = [Broken()]\n"
    ),
}


def save(script: Path, text: str) -> None:
    """Save as an editor does, and later than before, whatever the clock's grain."""
    stamp = script.stat().st_mtime + 2 if script.exists() else None
    script.write_text(text)
    if stamp:
        os.utime(script, (stamp, stamp))


@pytest.mark.slow
@pytest.mark.parametrize("how", BREAKS)
def test_auth_py_broken_while_running(script: Path, upstream: Upstream, how: str) -> None:
    good = script.read_text()
    with Gate(upstream.url, script=script) as gate:
        assert_open(gate, upstream)
        save(script, BREAKS[how])
        gate.find("every request is denied")
        assert_closed(gate, upstream)
        save(script, good)
        gate.find("the gate is open")
        assert_open(gate, upstream)


@pytest.mark.slow
def test_auth_py_deleted_while_running(script: Path, upstream: Upstream) -> None:
    """mitmproxy does not look for it again, so the log says to restart."""
    good = script.read_text()
    with Gate(upstream.url, script=script) as gate:
        assert_open(gate, upstream)
        script.unlink()
        assert "restart" in gate.find("every request is denied")
        assert_closed(gate, upstream)
        script.write_text(good)
        assert_closed(gate, upstream)


@pytest.mark.slow
def test_auth_py_saved_unchanged_reloads(script: Path, upstream: Upstream) -> None:
    with Gate(upstream.url, script=script) as gate:
        save(script, script.read_text())
        gate.find("the gate is open")
        assert_open(gate, upstream)


def test_twice_loaded(script: Path, upstream: Upstream) -> None:
    with Gate(upstream.url, "-s", str(script)) as gate:
        assert_open(gate, upstream)
        script.unlink()
        gate.find("guarding")
        assert_open(gate, upstream)


def test_the_script_option_emptied(controlled: Controlled, upstream: Upstream) -> None:
    controlled.do("ctx.options.update(scripts=[s for s in ctx.options.scripts if 'control' in s])")
    controlled.find("every request is denied")
    assert_closed(controlled, upstream)


@pytest.mark.parametrize(
    "removal",
    [
        "ctx.master.addons.remove(ctx.master.addons.get('ollama_gate'))",
        "ctx.master.addons.chain.remove(ctx.master.addons.get('ollama_gate'))",
        "gate = ctx.master.addons.get('ollama_gate'); gate.config.settings = None",
        "gate = ctx.master.addons.get('ollama_gate'); gate.loaded_scripts.clear()",
    ],
)
def test_the_gate_taken_out(controlled: Controlled, upstream: Upstream, removal: str) -> None:
    """The addon removed or unconfigured."""
    assert_open(controlled, upstream)
    controlled.do(removal)
    with upstream.untouched():
        for fields in ((BEARER,), ()):
            with suppress(ConnectionError), Wire(controlled.port, head("GET", "/api/tags", *fields)) as wire:
                answer = wire.read_all()
                assert not answer or parse(answer).status in (502, UNAVAILABLE)


def test_removed_says_to_restart(controlled: Controlled) -> None:
    controlled.do("ctx.master.addons.remove(ctx.master.addons.get('ollama_gate'))")
    assert "restart" in controlled.find("removed from mitmproxy")


@pytest.mark.ways
def test_running_streams_survive_a_reload(script: Path, upstream: Upstream) -> None:
    body = chat()
    with Gate(upstream.url, script=script) as gate:
        upstream.hold()
        with Wire(gate.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
            wire.read_until(b'"done":false}')
            save(script, "")
            gate.find("every request is denied")
            upstream.go_on()
            wire.read_until(b'"done":true')


def test_http3_is_no_way_in() -> None:
    """mitmproxy listens for it where the endpoint is https: on UDP, where no edge of ours could be."""
    quic = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["h3"], server_name="localhost"))
    quic.connect(("127.0.0.1", 443), now=0)
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream_udp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        upstream_udp.bind(upstream.getsockname())
        port = upstream.getsockname()[1]
        with Gate(f"https://127.0.0.1:{port}", "--set", "termlog_verbosity=info") as gate:
            for datagram, _ in quic.datagrams_to_send(now=0):
                client.sendto(datagram, ("127.0.0.1", gate.port))
            gate.find("client kill connection")
        assert not select.select([upstream, upstream_udp, client], [], [], 0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["mitmweb", "mitmdump"])
def test_replay_by_the_operator(upstream: Upstream, program: str) -> None:
    """What is replayed holds no credential any more, and goes upstream all the same: it is the operator's."""
    args = ("--set", "web_open_browser=false", "--set", "web_port=0") if program == "mitmweb" else ()
    with Controlled(upstream.url, "-w", "/dev/null", *args, program=program) as gate:
        gate.do("""
            seen = []
            class Keep:
                def response(self, flow):
                    seen.append(flow)
            ctx.master.addons.add(Keep())
            import builtins
            builtins.seen = seen
        """)
        assert ask(gate.port, "POST", "/api/chat", BEARER, body=chat(stream=False)).status == 200
        before = len(upstream.requests)
        said = gate.do("import builtins; ctx.master.commands.call('replay.client', builtins.seen)")
        assert said == "None"
        wait_until(lambda: len(upstream.requests) > before, "the replay upstream")
        wait_until(lambda: upstream.last.complete, "all of it")
        assert upstream.last.body == chat(stream=False)
        assert not {name.lower() for name, _ in upstream.last.headers} & {"authorization", "x-api-key"}
