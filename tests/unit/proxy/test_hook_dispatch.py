"""Addons that would do nothing are not called; all others are, also those added at run time."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy import options
from mitmproxy.addons.update_alt_svc import UpdateAltSvc
from mitmproxy.hooks import all_hooks
from mitmproxy.tools.dump import DumpMaster

from ollama_auth.proxy.hook_dispatch import IDLE_WHEN, REQUEST_HOOK_NAMES, HookDispatcher
from tests.harness.base import BEARER
from tests.harness.gate import Controlled, Gate
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import ask

HEARD_SCRIPT = """
def {name}(flow):
    flow.{message}.headers["X-Heard"] = "yes"
"""


async def default_addons() -> list[object]:
    return list(DumpMaster(options.Options(), with_termlog=False).addons.chain)


def test_all_of_mitmproxys_addons_were_looked_at() -> None:
    """IDLE_WHEN lists each addon of mitmproxy with a method for the hooks of a request, or of a new connection."""
    names = (*REQUEST_HOOK_NAMES, "client_connected")
    hearing = {type(a) for a in asyncio.run(default_addons()) if any(hasattr(a, name) for name in names)}
    assert hearing == {kind for kind in IDLE_WHEN if kind.__module__.startswith("mitmproxy.")}


def test_what_is_called_at_a_request() -> None:
    assert set(REQUEST_HOOK_NAMES) <= set(all_hooks)


@pytest.fixture(scope="module")
def gate(shared_upstream: Upstream) -> Iterator[Controlled]:
    with Controlled(shared_upstream.url) as gate:
        yield gate


SILENT = "result = ctx.master.addons.get('ollama_gate').hooks.request_hooks_idle()"


def test_by_default_nobody_does_anything(gate: Controlled) -> None:
    assert gate.do(SILENT) == "True"


# Option -> its value, and what it was.
OPTIONS = {
    "modify_headers": (["/~s/X-Heard/yes"], []),
    "modify_body": (["/~s/version/wersion"], []),
    "block_list": (["/~all/418"], []),
    "map_remote": (["|api/version|api/tags"], []),
    "anticache": (True, False),
    "anticomp": (True, False),
    "stickycookie": ("~all", None),
    "stickyauth": ("~all", None),
    "upstream_auth": ("a:b", None),
    "proxyauth": ("any", None),
    "hardump": ("/dev/null", ""),
    "flow_detail": (1, 0),
    "keep_host_header": (True, False),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_set_while_it_runs(gate: Controlled, name: str) -> None:
    value, before = OPTIONS[name]
    assert gate.do(f"ctx.options.update({name}={value!r}); {SILENT}") == "False"
    assert gate.do(f"ctx.options.update({name}={before!r}); {SILENT}") == "True"


def test_it_is_heard_by_the_next_request(gate: Controlled, upstream: Upstream) -> None:
    answers = []
    for value in (["/~s/X-Heard/yes"], []):
        gate.do(f"ctx.options.update(modify_headers={value!r})")
        answers.append(ask(gate.port, "GET", "/api/version", BEARER).headers.get("x-heard"))
    assert answers == ["yes", None]


def test_a_file_of_flows(gate: Controlled, upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "flows"
    gate.do(f"ctx.options.update(save_stream_file={str(file)!r})")
    ask(gate.port, "GET", "/api/version", BEARER)
    gate.do("ctx.options.update(save_stream_file=None)")
    assert b"/api/version" in file.read_bytes()


def test_an_addon_that_comes_and_goes(gate: Controlled, upstream: Upstream) -> None:
    gate.do(
        """
        class Late:
            def response(self, flow):
                flow.response.headers["X-Heard"] = "late"
        ctx.master.addons.add(Late())
        """
    )
    assert gate.do(SILENT) == "False"
    assert ask(gate.port, "GET", "/api/version", BEARER).headers["content-type"]
    gate.do("ctx.master.addons.remove(ctx.master.addons.get('late'))")
    assert gate.do(SILENT) == "True"


@pytest.mark.parametrize(
    ("name", "message"), [("requestheaders", "request"), ("request", "request"), ("responseheaders", "response")]
)
def test_a_script_of_the_user(upstream: Upstream, tmp_path: Path, name: str, message: str) -> None:
    (script := tmp_path / "heard.py").write_text(HEARD_SCRIPT.format(name=name, message=message))
    with Gate(upstream.url, "-s", str(script)) as gate:
        answer = ask(gate.port, "GET", "/api/version", BEARER)
    seen = upstream.last.headers if message == "request" and name == "requestheaders" else answer.headers
    assert name == "request" or "yes" in dict(seen).values()


def test_an_addon_that_raises_is_named_in_the_log(gate: Controlled, upstream: Upstream) -> None:
    """And the others are asked all the same, as mitmproxy does it."""
    gate.do(
        """
        class Broken:
            def response(self, flow):
                raise ValueError("broken on purpose")
        ctx.master.addons.add(Broken())
        """
    )
    assert ask(gate.port, "GET", "/api/version", BEARER).status == 200
    gate.do("ctx.master.addons.remove(ctx.master.addons.get('broken'))")
    assert "Addon error: broken on purpose" in gate.find("Addon error")


def test_the_lines_of_mitmproxy_about_connections(gate: Controlled, upstream: Upstream) -> None:
    """They are made when somebody wants to see them."""
    ask(gate.port, "GET", "/api/version", BEARER)
    assert "client connect" not in gate.output
    gate.do("ctx.options.update(termlog_verbosity='info')")
    ask(gate.port, "GET", "/api/version", BEARER)
    gate.find("client connect")
    gate.do("ctx.options.update(termlog_verbosity='alert')")


def test_alt_svc_still_names_the_port_of_the_gate(shared_upstream: Upstream) -> None:
    """mitmproxy's addon is asked where there is something for it to do."""
    assert IDLE_WHEN[UpdateAltSvc](None, None)
    answer = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    elsewhere = Scripted().start(lambda line: (line.head(), line.send(answer)))
    with Gate(elsewhere.url) as gate:
        assert ask(gate.port, "GET", "/", BEARER).headers["alt-svc"] == f'h3=":{gate.port}"'
    elsewhere.stop()


async def test_a_removed_addon_is_forgotten() -> None:
    master = DumpMaster(options.Options(), with_termlog=False)
    dispatcher = HookDispatcher(master.addons, master.options)
    before = list(dispatcher.listeners("request").all)
    master.addons.remove(master.addons.get("anticache"))
    assert len(dispatcher.listeners("request").all) == len(before) - 1
