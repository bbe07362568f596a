"""What those see who look at flows, in mitmweb, mitmproxy and files of flows; and that no key is in any of it."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import flowfilter
from mitmproxy.exceptions import CommandError
from mitmproxy.test import tflow

from ollama_auth import bounded_copy
from ollama_auth.exchange import Exchange
from ollama_auth.mitmweb import flows as viewing
from ollama_auth.mitmweb.flows import FAILED, REFUSED, RUNNING, TICK, LiveBody
from ollama_auth.ollama_api.usage import Usage
from ollama_auth.runtime import ActiveConfig
from tests.harness.base import AUTH, BEARER, KEY, free_port, wait_until
from tests.harness.certificates import certificate
from tests.harness.gate import Controlled, Gate, certificate_authority
from tests.harness.http2 import H2
from tests.harness.leaks import IN_BASIC, WRONG, assert_no_secret, send_secrets
from tests.harness.mitmweb import Mitmweb, start
from tests.harness.upstream import Upstream
from tests.harness.wire import Wire, ask, chat, head

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def shared_web(shared_upstream: Upstream) -> Iterator[Mitmweb]:
    with Mitmweb(shared_upstream.url) as web:
        yield web


@pytest.fixture
def web(shared_web: Mitmweb, upstream: Upstream) -> Mitmweb:
    """A mitmweb in front of `upstream`, with no flows in it."""
    shared_web.call("POST", "/clear")
    return shared_web


def send(web: Gate, path: str = "/api/chat", body: bytes | None = None, *fields: str) -> None:
    body = chat() if body is None else body
    assert ask(web.port, "POST", path, BEARER, *fields, body=body).status == 200


# What the list says.


@pytest.mark.parametrize(
    ("path", "more", "comment"),
    [
        ("/api/chat", {}, r"200 · default · demo · 5 \+ 31 tokens( · [\d.]+/s)?"),
        ("/api/chat", {"stream": False}, r"200 · default · demo · 5 \+ 31 tokens"),
        ("/v1/chat/completions", {"stream": True}, r"200 · default · demo · (24 \+ )?~31 tokens( · [\d.]+/s)?"),
        ("/v1/messages", {"stream": True, "max_tokens": 4}, r"200 · default · demo · 5 \+ 4 tokens( · [\d.]+/s)?"),
    ],
)
def test_a_flow_says_whose_it_is_and_what_it_used(web: Mitmweb, path: str, more: dict[str, Any], comment: str) -> None:
    send(web, path, chat(**more))
    flow = web.flow(path, "default")
    assert re.fullmatch(f"{comment} · {path}", flow["comment"])
    assert flow["marked"] == ""


def test_a_refused_flow_says_why(web: Mitmweb, upstream: Upstream) -> None:
    with upstream.untouched():
        ask(web.port, "POST", "/api/chat", "Authorization: Bearer not-a-key-of-ours", body=chat())
        ask(web.port, "POST", "/api/chat", body=chat())
    assert re.fullmatch("refused: unknown · unknown:[0-9a-f]+ · /api/chat", web.flow("/api/chat", "unknown")["comment"])
    assert web.flow("/api/chat", "missing")["comment"] == "refused: missing · /api/chat"
    assert {flow["marked"] for flow in web.flows()} == {"✖"}


def test_a_flow_that_broke_a_rule_after_its_admission_is_refused() -> None:
    live = LiveBody(Exchange("client", status=413, reason="body too large", admitted=True), tflow.tflow(resp=True))
    views = viewing.FlowViews(cast(ActiveConfig, None), None)
    views.live[live.flow.id] = live
    views.response(live.flow)
    assert live.flow.marked == REFUSED
    assert live.flow.metadata["ollama_reason"] == "body too large", "it is not replayed without its body"


def test_a_flow_that_failed_says_how(web: Mitmweb, upstream: Upstream) -> None:
    upstream.hold()
    start(web, chat()).close()
    flow = web.flow("/api/chat", "client left")
    assert flow["marked"] == "⚠"
    assert "You" in web.shown(flow), "what had come can be seen"
    assert "(incomplete" in web.shown(flow)


def test_an_upstream_that_breaks_off(web: Mitmweb) -> None:
    with Wire(web.port, head("GET", "/demo/break/chunked", BEARER)) as wire, suppress(ConnectionError):
        wire.read_all()
    flow = web.flows()[-1]
    if flow["response"]["status_code"] == 200:  # Where a key may go there.
        assert flow["marked"] == "⚠"


def test_what_the_user_wrote_stays(web: Mitmweb, upstream: Upstream) -> None:
    upstream.hold()
    with start(web, chat()) as wire:
        flow = web.flow("/api/chat")
        web.call("PUT", f"/flows/{flow['id']}", {"comment": "look at this", "marked": ":grapes:"})
        upstream.go_on()
        wire.read_until(b"\r\n0\r\n\r\n")
    flow = wait_until(lambda: web.flows()[-1]["response"]["timestamp_end"] and web.flows()[-1], "the end")
    assert (flow["comment"], flow["marked"]) == ("look at this", "🍇")


def test_columns(web: Mitmweb, upstream: Upstream) -> None:
    assert web.call("GET", "/options").json["web_columns"]["value"] == viewing.COLUMNS
    with Mitmweb(upstream.url, "--set", "web_columns=path", "--set", "web_columns=size") as other:
        assert other.call("GET", "/options").json["web_columns"]["value"] == ["path", "size"]


def test_the_markers_and_columns_are_known_to_mitmproxy() -> None:
    from mitmproxy.tools.web.web_columns import AVAILABLE_WEB_COLUMNS
    from mitmproxy.utils.emoji import emoji

    assert {RUNNING, REFUSED, FAILED} <= set(emoji)
    assert set(viewing.COLUMNS) <= set(AVAILABLE_WEB_COLUMNS)


@pytest.mark.parametrize(
    ("used", "comment"),
    [
        (None, "anna"),
        (Usage(), "anna"),
        (Usage("m", 5, 20), "anna · 5 + 20 tokens"),
        (Usage("m", None, 20, estimated=True), "anna · ~20 tokens"),
        (Usage("m", 5), "anna · 5 tokens"),
    ],
)
def test_comments(used: Usage | None, comment: str) -> None:
    assert viewing.comment(Exchange("client", key="anna", used=used)) == comment


# While it streams.


def test_a_stream_can_be_read_while_it_goes_on(web: Mitmweb, upstream: Upstream) -> None:
    upstream.hold()
    with start(web, chat()) as wire:
        flow = web.flow("/api/chat")
        wait_until(lambda: "assistant:\n  You" in web.shown(flow), "the first token")
        assert web.flow("/api/chat")["marked"] == "▶"
        assert web.flow("/api/chat")["comment"] == "▶ 200 · default · demo · ~1 tokens · /api/chat"
        assert "(incomplete" in web.shown(flow)
        upstream.go_on()
        rest = wire.read_until(b"\r\n0\r\n\r\n")
    assert b'"done":true' in rest
    wait_until(lambda: web.flow("/api/chat")["marked"] == "", "the end")
    shown = web.shown(flow)
    assert 'You said: "why is the sky blue".' in shown
    assert "(incomplete" not in shown


def test_the_page_is_told_while_it_streams(web: Mitmweb, upstream: Upstream) -> None:
    """By mitmproxy's own `update` hook, at most once in TICK seconds."""
    web.do(
        """
        class Watch:
            seen = []
            def update(self, flows):
                self.seen += [(f.id, len(f.response.raw_content or b"") if f.response else 0) for f in flows]
        ctx.master.addons.add(Watch())
        """
    )
    upstream.hold()
    with start(web, chat()) as wire:
        look = "result = ctx.master.addons.get('watch').seen"
        wait_until(lambda: web.do(look) != "[]", "an update")
        upstream.go_on()
        wire.read_until(b"\r\n0\r\n\r\n")
    assert "Addon error" not in web.output


def test_showing_changes_nothing_that_is_sent(web: Mitmweb, upstream: Upstream) -> None:
    """The same bytes as without a viewer, but for the times and ids in them."""
    upstream.hold()
    with start(web, chat()) as wire:
        wait_until(lambda: web.content(web.flow("/api/chat")), "the first token to be shown")
        upstream.go_on()
        body = wire.read_until(b"\r\n0\r\n\r\n")
    tokens = re.findall(rb'"content":"((?:[^"\\]|\\.)*)"', body)
    assert len(tokens) == 31, "30 of 31, and the empty one of the last line"
    kept = web.content(web.flow("/api/chat", "tokens"))
    assert kept.count(b"\n") == 32
    assert re.findall(rb'"content":"((?:[^"\\]|\\.)*)"', kept)[1:] == tokens


def test_a_long_answer_is_copied_less_often() -> None:
    live = LiveBody(Exchange("client"), tflow.tflow(resp=True))
    chunk = live.keep(bytes)
    chunk(b"x" * 100)
    assert live.grown
    live.show(10.0)
    assert not live.grown
    assert live.due == 10.0 + TICK
    chunk(b"x" * 3_000_000)
    live.show(20.0)
    assert live.due > 20.0 + 5


def test_nothing_is_shown_of_an_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_copy, "MAX_KEPT", 5)
    flow = tflow.tflow(resp=True)
    assert flow.response
    live = LiveBody(Exchange("client"), flow)
    chunk = live.keep(bytes)
    assert chunk(b"12345") == b"12345"
    live.show(1.0)
    assert flow.response.raw_content == b"12345"
    assert chunk(b"6") == b"6"
    assert not live.grown
    live.show(2.0)
    assert flow.response.raw_content is None


# Old flows.


def test_old_flows_are_dropped_and_those_at_work_are_not(upstream: Upstream) -> None:
    with Mitmweb(upstream.url, "--set", "ollama_max_flows=20") as web:
        upstream.hold()
        with start(web, chat()) as wire:
            running = web.flow("/api/chat")["id"]
            for number in range(60):
                ask(web.port, "GET", f"/{number}")
            paths = [flow["request"]["path"] for flow in web.flows()]
            assert len(paths) == 20
            assert running in [flow["id"] for flow in web.flows()]
            assert {f"/{number}" for number in range(41, 60)} < set(paths)
            upstream.go_on()
            assert b'"done":true' in wire.read_until(b"\r\n0\r\n\r\n")
        for number in range(60, 81):
            ask(web.port, "GET", f"/{number}")
        assert running not in [flow["id"] for flow in web.flows()]
        held = """
            import gc
            from mitmproxy.http import HTTPFlow
            gc.collect()
            result = sum(isinstance(thing, HTTPFlow) for thing in gc.get_objects())
        """
        wait_until(lambda: int(web.do(held)) <= 21, "flows to be freed")
        assert "Removed" not in web.output


def test_many_bytes_are_dropped_too(web: Mitmweb) -> None:
    held = "result = ctx.master.addons.get('ollama_viewing').held"
    web.do(f"import ollama_auth.mitmweb.flows as v; v.MAX_HELD = {MEGABYTE}")
    for _ in range(12):
        send(web, body=chat(padding="x" * (MEGABYTE // 5)))
    assert 4 <= len(web.flows()) <= 6
    assert int(web.do(held)) < 2 * MEGABYTE
    flow = web.flows()[-1]["id"]
    freed = f"""
        flow = ctx.master.addons.get("view").get_by_id({flow!r})
        result = (flow.request.stream, flow.response.stream, len(flow.request.raw_content) > {MEGABYTE // 5})
    """
    assert web.do(freed) == "(False, False, True)"
    web.do("import ollama_auth.mitmweb.flows as v; v.MAX_HELD = 256 * 1024 * 1024")
    web.call("POST", "/clear")
    send(web)
    assert int(web.do(held)) < 2 * MEGABYTE


def test_more_at_work_than_may_be_kept(upstream: Upstream) -> None:
    with Mitmweb(upstream.url, "--set", "ollama_max_flows=1") as web:
        upstream.hold()
        wires = [start(web, chat()) for _ in range(4)]
        assert len(web.flows()) == 4
        upstream.go_on()
        for wire in wires:
            assert b'"done":true' in wire.read_until(b"\r\n0\r\n\r\n")
            wire.close()
        send(web)
        assert len(web.flows()) == 1
        web.call("POST", "/clear")
        send(web)
        assert len(web.flows()) == 1


# Commands.


def test_filters(web: Mitmweb) -> None:
    send(web)
    send(web, body=chat("tiny"))
    ask(web.port, "GET", "/api/tags")
    web.flow("/api/chat", "tiny")

    def shown() -> list[str]:
        return [flow["comment"].split(" · ")[-2 if "tokens" in flow["comment"] else 0] for flow in web.flows()]

    assert len(shown()) == 3
    web.command("ollama.refused")
    assert shown() == ["refused: missing"]
    web.command("ollama.model", "tiny")
    assert [flow["comment"].split(" · ")[2] for flow in web.flows()] == ["tiny"]
    web.command("ollama.key", "default")
    assert len(shown()) == 2
    web.command("ollama.key", "Default")
    assert shown() == []
    web.command("ollama.all")
    assert len(shown()) == 3
    for bad in ("", "a\nb"):
        with pytest.raises(ValueError, match="not a name"):
            web.command("ollama.key", bad)
    web.do("ctx.master.commands.execute('ollama.by_model tiny')")
    assert len(shown()) == 1
    web.do("ctx.master.commands.execute('ollama.by_key default')")
    assert len(shown()) == 2
    web.command("ollama.all")


def test_where_nobody_looks_there_is_nothing_to_do(web: Mitmweb, upstream: Upstream, tmp_path: Path) -> None:
    """No list to filter, and no hook of a request to call."""
    silent = "result = ctx.master.addons.get('ollama_gate').hooks.request_hooks_idle()"
    with Controlled(upstream.url) as gate:
        assert "run mitmweb" in gate.do("ctx.master.commands.execute('ollama.refused')")
        assert gate.do(silent) == "True"
        gate.do(f"ctx.options.update(save_stream_file={str(tmp_path / 'flows')!r})")
        assert gate.do(silent) == "False"
    assert web.do(silent) == "False"


def filter_of(name: str) -> flowfilter.TFilter:
    """What the command ollama.key sets."""
    with warnings.catch_warnings():  # mitmproxy calls pyparsing by its old names.
        warnings.simplefilter("ignore", DeprecationWarning)
        return flowfilter.parse(f"~meta {viewing.quoted(f'^ollama_key: (?-i:{viewing.escaped(name)})$')}")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=10))
def test_a_name_finds_itself_and_nothing_else(name: str) -> None:
    if not name.isprintable():
        with pytest.raises(CommandError):
            viewing.escaped(name)
        return
    found, flow = filter_of(name), tflow.tflow()
    flow.metadata = {"before": "x", "ollama_key": name, "after": "y"}
    assert found(flow)
    flow.metadata["ollama_key"] = name + "x"
    assert not found(flow)


@pytest.mark.parametrize(
    "name", ['"', "\\", "\\n", "a\\", ".*", "a) | ~all", "' ~all", '" | ~all | ~meta "', "$", "(?-i"]
)
def test_no_name_is_more_than_a_name(name: str) -> None:
    test_a_name_finds_itself_and_nothing_else.hypothesis.inner_test(name)  # type: ignore[attr-defined]
    flow = tflow.tflow()
    flow.metadata = {"ollama_key": "default"}
    assert not filter_of(name)(flow)


# Sent again.


def test_an_admitted_request_can_be_sent_again(web: Mitmweb, upstream: Upstream) -> None:
    body = chat()
    send(web, body=body)
    for times in (2, 3):
        flow = web.flow("/api/chat", "default")
        web.replay(flow)
        wait_until(lambda times=times: len(upstream.requests) == times, "the request")
        wait_until(lambda: web.command("replay.client.count") == 0, "the answer")
        assert bytes(upstream.last.body) == body
        assert web.content(flow, "request") == body
        assert web.content(flow).count(b"\n") == 32
        assert "You said" in web.shown(flow)
        assert re.fullmatch(
            r"200 · default · demo · 5 \+ 31 tokens( · [\d.]+/s)? · /api/chat", web.flows()[-1]["comment"]
        )
        assert "authorization" not in {name.lower() for name, _ in upstream.last.headers}


def test_the_answer_to_what_is_sent_again_can_be_read_while_it_streams(web: Mitmweb, upstream: Upstream) -> None:
    send(web)
    flow = web.flow("/api/chat", "default")
    upstream.hold()
    web.replay(flow)
    wait_until(
        lambda: web.flows()[-1].get("response") and "assistant:\n  You" in web.shown(flow), "the first token", 20
    )
    assert web.flows()[-1]["marked"] == "▶"
    upstream.go_on()
    wait_until(lambda: web.flows()[-1]["marked"] == "", "the end")
    assert "came all the way" in web.shown(flow)


def test_what_is_sent_again_is_in_the_logs(upstream: Upstream, tmp_path: Path) -> None:
    """Marked by its client, which is no address: `replay`; also where it is refused."""
    access, audit = tmp_path / "access", tmp_path / "audit"
    with Mitmweb(upstream.url, "--set", f"ollama_access_log={access}", "--set", f"ollama_audit_log={audit}") as web:
        send(web)
        ask(web.port, "GET", "/api/tags")
        web.replay(web.flow("/api/chat", "default"))
        web.replay(web.flow("/api/tags"))
        wait_until(lambda: access.read_text().count('"replay"') == 2, "two lines")
        wait_until(lambda: audit.read_text().count("\n") == 2, "two conversations")
        lines = [json.loads(line) for line in access.read_text().splitlines()]
        replays = {line["path"]: line for line in lines if line["client"] == "replay"}
        first = next(line for line in lines if line["path"] == "/api/chat" and line["client"] != "replay")
        alike = ("key", "method", "status", "model", "prompt_tokens", "completion_tokens", "bytes_in")
        assert {name: replays["/api/chat"][name] for name in alike} == {name: first[name] for name in alike}
        assert (replays["/api/tags"]["status"], replays["/api/tags"]["reason"]) == (403, "missing")
        once, again = map(json.loads, audit.read_text().splitlines())
        assert once["request"] == again["request"]
        assert '"done":true' in again["response"]


def test_what_was_refused_is_not_sent_again(web: Mitmweb, upstream: Upstream) -> None:
    with upstream.untouched():
        ask(web.port, "GET", "/api/tags")
        flow = web.flow("/api/tags")
        copy = web.call("POST", f"/flows/{flow['id']}/duplicate").body.decode()
        for one in (flow["id"], copy):
            web.replay({"id": one})
            again = wait_until(
                lambda one=one: next(
                    (f for f in web.flows() if f["id"] == one and (f.get("response") or {}).get("status_code") == 403),
                    None,
                ),
                "the refusal",
            )
            assert again["comment"] == "refused: missing · /api/tags"
            assert "not sent again" in web.shown({"id": one})


# No secret anywhere.


def send_more_secrets(gate: Gate) -> None:
    """In places where a viewer may look."""
    send_secrets(gate)
    ask(gate.port, "GET", "/api/tags", BEARER, f"User-Agent: {KEY}", f"Accept: a/{KEY}")
    ask(gate.port, "GET", "/api/tags", f"Authorization: Bearer {WRONG}", f"User-Agent: x {KEY}", f"Accept: a/{WRONG}")
    ask(gate.port, "GET", "/api/tags", f"Host: {KEY}", f"User-Agent: {KEY}")
    ask(gate.port, KEY[:30], "/api/tags", BEARER)  # A method has 32 characters at most.
    ask(gate.port, "POST", f"/api/chat?token={KEY}", body=chat())
    ask(gate.port, "POST", f"/api/chat?x={KEY}", BEARER, body=chat())
    ask(gate.port, "POST", f"/api/chat?x={WRONG}", f"x-api-key: {WRONG}", body=chat())
    ask(gate.port, "GET", f"http://{KEY}@x/api/tags?key={KEY}", BEARER)


def everything_of(web: Mitmweb, folder: Path) -> str:
    """All that mitmweb tells of its flows, in all its forms."""
    texts = [web.call("GET", page).body for page in ("/flows", "/flows/dump", "/events", "/options", "/state")]
    for flow in web.flows():
        for form in ("curl", "httpie", "raw", "raw_request", "raw_response"):
            with suppress(ValueError):
                texts.append(str(web.command("export", form, f"@{flow['id']}")).encode())
            file = folder / form
            with suppress(ValueError):
                web.command("export.file", form, f"@{flow['id']}", str(file))
                texts.append(file.read_bytes())
        texts += [web.shown(flow, message).encode() for message in ("request", "response") if flow.get(message)]
    for name in ("all.har", "all.flows"):
        web.command("save.har" if name.endswith("har") else "save.file", "@all", str(folder / name))
        texts.append((folder / name).read_bytes())
    assert b"curl" in b"".join(texts)
    return b"\n".join(texts).decode("latin-1")


@pytest.mark.slow
def test_no_secret_in_what_mitmweb_tells_and_exports(upstream: Upstream, tmp_path: Path) -> None:
    saved, hardump = tmp_path / "saved", tmp_path / "dumped.har"
    with Mitmweb(upstream.url, "-w", str(saved), "--set", f"hardump={hardump}") as web:
        send_more_secrets(web)
        told = everything_of(web, tmp_path)
        assert "why is the sky blue" in told
        assert_no_secret(told)
        web.signal(signal.SIGTERM)
        web.wait()
        for file in (saved, hardump):
            text = file.read_bytes().decode("latin-1")
            assert "why is the sky blue" in text
            assert_no_secret(text)
        assert_no_secret(web.output)


def test_no_secret_of_http2(upstream: Upstream, tmp_path: Path) -> None:
    cert = certificate(tmp_path)
    places: list[tuple[str, list[tuple[str, str]], bool]] = [
        ("/api/tags", [], True),
        (f"/api/tags?key={KEY}", [], True),
        (f"/api/tags?x={KEY}", [("x-api-key", WRONG)], False),
        ("/api/tags", [("x-api-key", WRONG), ("user-agent", KEY), ("accept", f"a/{KEY}")], False),
        (f"/{KEY}", [("authorization", f"Basic {IN_BASIC}")], False),
        ("/api/tags", [("cookie", "session=5ecret"), ("user-agent", f"a {KEY}")], True),
        ("/api/tags", [("host", KEY)], False),
        ("/api/tags", [("upgrade", KEY)], True),
    ]
    with Mitmweb(upstream.url, "--certs", str(cert), "-w", str(tmp_path / "saved")) as web:
        for path, fields, key in places:
            with H2(web.port, cert, lax=True) as client:
                client.request("GET", path, *fields, key=key)
                with suppress(AssertionError, OSError):
                    client.until(h2.events.ResponseReceived)
        with H2(web.port, cert, lax=True) as client:  # The authority is what a stranger chooses.
            stream = client.h2.get_next_available_stream_id()
            pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", KEY), (":path", "/api/tags")]
            client.h2.send_headers(stream, pseudo, end_stream=True)
            client.flush()
            with suppress(AssertionError, OSError):
                client.until(h2.events.ResponseReceived)
        assert len(web.flows()) >= 6
        assert_no_secret(everything_of(web, tmp_path))
        web.signal(signal.SIGTERM)
        web.wait()
        assert_no_secret((tmp_path / "saved").read_bytes().decode("latin-1"))
        assert_no_secret(web.output)


def test_a_file_says_how_it_went(upstream: Upstream, tmp_path: Path) -> None:
    """It is written before the end of a request is over, and holds the labels all the same."""
    with Gate(upstream.url, "-w", str(tmp_path / "flows")) as gate:
        send(gate)
        upstream.hold()
        start(gate, chat()).close()
        gate.find("client left")
        gate.signal()
        gate.wait()
    saved = (tmp_path / "flows").read_bytes().decode("utf-8", "replace")
    assert "default · demo · 5 + 31 tokens" in saved
    assert re.search(r"default · demo · (\d+ \+ )?~\d+ tokens · client left", saved)


# The full-screen mitmproxy.


@pytest.mark.slow
def test_mitmproxy_shows_the_conversation(upstream: Upstream, tmp_path: Path) -> None:
    shutil.copytree(certificate_authority(), tmp_path, dirs_exist_ok=True)
    port, (ours, theirs) = free_port(), pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "mitmproxy"),
            *("--mode", f"reverse:{upstream.url}", "--listen-host", "127.0.0.1", "--listen-port", str(port)),
            *("--set", f"confdir={tmp_path}", "-s", str(AUTH)),
        ],
        env=os.environ | {"OLLAMA_API_KEY": KEY, "TERM": "xterm", "LANG": "C.UTF-8"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    screen = bytearray()

    def read() -> None:
        with suppress(OSError):
            while data := os.read(ours, 65536):
                screen.extend(data)

    threading.Thread(target=read, daemon=True).start()

    def sent() -> bool:
        with suppress(OSError):
            return ask(port, "POST", "/api/chat", BEARER, body=chat()).status == 200
        return False

    def appears(keys: bytes, text: bytes) -> None:
        """Press the keys until the screen says so: some are lost while it starts."""
        until = time.monotonic() + 20
        while text not in screen:
            assert time.monotonic() < until, screen.decode("utf-8", "replace")[-3000:]
            os.write(ours, keys)
            time.sleep(0.5)

    try:
        wait_until(sent, "mitmproxy to answer", 30)
        wait_until(lambda: b"/api/chat" in screen, "the flow on the screen")
        appears(b"\r", b"user:")
        appears(b"\t", b"assistant:")
        assert b"You said" in screen
        assert KEY.encode() not in screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
