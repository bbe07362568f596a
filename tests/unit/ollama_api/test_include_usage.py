"""Ollama is asked for usage where a client did not, and the client can't tell."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api.include_usage import MAX_HELD, MAX_READ, UsageHider, asking
from tests.harness.base import BEARER, ROOT
from tests.harness.gate import Gate, log_lines, logged
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, Wire, ask, head

TRANSCRIPTS = ROOT.parent / "shared" / "transcripts"
PATHS = ("/v1/chat/completions", "/v1/completions")


def body(**more: Any) -> bytes:
    return json.dumps({"model": "demo", "prompt": "a", "messages": [{"role": "user", "content": "a"}]} | more).encode()


@pytest.mark.parametrize(
    "asked",
    [
        body(stream=True),
        body(STREAM=True),
        body(stream=True, stream_options=None),
        body(stream=True, stream_options={}),
        body(stream=True, stream_options={"include_usage": False}),
        body(stream=True) + b" \n",
    ],
)
def test_a_stream_is_asked_for_usage(asked: bytes) -> None:
    amended = asking(asked)
    assert amended
    assert json.loads(amended)["stream_options"] == {"include_usage": True}
    assert amended.startswith(asked.rstrip()[:-1]), "the rest is as it came"


@pytest.mark.parametrize(
    "asked",
    [
        body(),
        body(stream=False),
        body(stream="true"),
        body(stream=True, stream_options={"include_usage": True}),
        body(stream=True, stream_options=7),
        body(stream=True, Stream=False),
        b'{"stream":true,"stream":false}',
        b"",
        b"{}",
        b"[]",
        b'["stream"]',
        b"7",
        b"{",
        b"\xff\xfe",
        body(stream=True).decode().encode("utf-16"),
        b"[" * 100_000,
    ],
)
def test_what_asks_already_or_does_not_stream_or_is_no_json_goes_as_it_came(asked: bytes) -> None:
    assert asking(asked) is None


@given(st.binary())
def test_no_bytes_raise(asked: bytes) -> None:
    asking(asked)


def recorded(name: str) -> bytes:
    found = json.loads((TRANSCRIPTS / f"{name}.json").read_text())
    return "".join(chunk for _, chunk in found["http_chunks"]).encode()


@pytest.mark.skipif(not TRANSCRIPTS.exists(), reason="the recordings are not beside the project")
@pytest.mark.parametrize("name", ["v1-chat-stream", "v1-completions-stream"])
def test_a_recorded_answer_with_usage_becomes_one_without_however_it_is_split(name: str) -> None:
    """The two recordings are of one prompt and seed, but of two runs: ids and texts differ."""
    full, plain = recorded(f"{name}-usage"), recorded(name)
    whole = b"".join(UsageHider().feed(full))
    assert shapes(whole) == shapes(plain)
    for at in range(len(full)):
        hider = UsageHider()
        assert b"".join([*hider.feed(full[:at]), *hider.feed(full[at:]), *hider.feed(b"")]) == whole
    hider = UsageHider()
    assert b"".join(part for byte in full for part in hider.feed(bytes([byte]))) == whole


def shapes(stream: bytes) -> set[tuple[str, ...]]:
    events = (event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event)
    return {tuple(json.loads(event)) if event != b"[DONE]" else ("DONE",) for event in events}


def test_an_event_passes_as_soon_as_it_has_ended() -> None:
    hider = UsageHider()
    assert hider.feed(b"data: 1\n\ndata: 2") == [b"data: 1\n\n"]
    assert hider.feed(b"\n") == []
    assert hider.feed(b"\n") == [b"data: 2\n\n"]


def test_a_long_event_is_not_held() -> None:
    hider = UsageHider()
    assert b"".join(hider.feed(b"data: " + b"a" * MAX_HELD)) == b"data: " + b"a" * MAX_HELD


def test_what_a_broken_stream_ends_with_passes() -> None:
    hider = UsageHider()
    assert hider.feed(b'data: {"choices":[{"delta"') == []
    assert b"".join(hider.feed(b"")).startswith(b'data: {"choices":[{"delta"')


def test_what_a_model_says_is_never_hidden() -> None:
    said = json.dumps({"choices": [{"delta": {"content": ',"usage":{"a":1} "choices":[]'}}]}).encode()
    event = b"data: " + said + b"\n\n"
    assert UsageHider().feed(event) == [event]


# Through the gate.


@pytest.mark.parametrize("path", PATHS)
def test_the_log_has_true_figures_and_the_client_sees_no_difference(upstream: Upstream, path: str) -> None:
    with (
        Gate(upstream.url, "--set", "ollama_access_log=-") as plain,
        Gate(upstream.url, "--set", "ollama_access_log=-", "--set", "ollama_include_usage=true") as asks,
    ):
        answers = []
        for gate in (plain, asks):
            with logged(gate) as lines:
                answers.append(ask(gate.port, "POST", path, BEARER, body=body(stream=True)))
            assert lines[0]["complete"] is True
        before, after = log_lines(plain)[-1], log_lines(asks)[-1]
        assert before["estimated"] is True
        assert "prompt_tokens" not in before
        assert "estimated" not in after
        assert after["prompt_tokens"] > 0
        assert after["completion_tokens"] == before["completion_tokens"]
        assert shapes(answers[0].body) == shapes(answers[1].body)
        assert b"usage" not in answers[1].body
        assert json.loads(upstream.last.body)["stream_options"] == {"include_usage": True}
        lengths = [value for name, value in upstream.last.headers if name.lower() == "content-length"]
        assert lengths == [str(len(upstream.last.body))]
        with_usage = ask(
            asks.port, "POST", path, BEARER, body=body(stream=True, stream_options={"include_usage": True})
        )
        assert b'"choices":[],"' in with_usage.body, "who asks gets it"


@pytest.mark.parametrize("path", [*PATHS, "/api/chat"])
def test_all_else_is_as_without_it(upstream: Upstream, path: str) -> None:
    with Gate(upstream.url, "--set", "ollama_include_usage=true") as gate:
        for sent in (body(stream=False), b"not json", body(stream=False, pad="a" * MAX_READ)):
            answer = ask(gate.port, "POST", path, BEARER, body=sent)
            assert upstream.last.body_length == len(sent), answer.raw[:200]
            assert sent.startswith(upstream.last.body)


def test_tokens_pass_at_once(upstream: Upstream) -> None:
    upstream.hold()
    sent = body(stream=True)
    fields = (BEARER, f"Content-Length: {len(sent)}", "Expect: 100-continue")
    with (
        Gate(upstream.url, "--set", "ollama_include_usage=true") as gate,
        Wire(gate.port, head("POST", "/v1/chat/completions", *fields)) as wire,
    ):
        wire.read_until(b"100 Continue\r\n\r\n")
        wire.send(sent).read_until(b'"finish_reason":null}]}\n\n')
        upstream.go_on()
        wire.read_until(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "asked", [body(stream=True, stream_options=[7]), body(stream=True, stream_options=[None]), b'[["stream",true]]']
)
def test_options_that_are_no_object_raise_nothing(asked: bytes) -> None:
    assert asking(asked) is None


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n404 page not found",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(USAGE), USAGE),
    ],
)
def test_an_answer_of_a_known_length_is_as_long_as_it_says(answer: bytes) -> None:
    """One byte more or less, and the next answer on the connection is read wrong."""
    sent = body(stream=True)
    request = head("POST", "/v1/chat/completions", BEARER, f"Content-Length: {len(sent)}") + sent

    def play(line: Line) -> None:
        while line.head():
            line.read_until(b'"include_usage":true}}')
            line.send(answer)

    upstream = Scripted().start(play)
    with Gate(upstream.url, "--set", "ollama_include_usage=true") as gate, Wire(gate.port) as wire:
        for _ in range(2):
            wire.send(request)
            assert wire.read_until(b"\r\n\r\n").startswith(answer[:16])
            assert wire.read_until(answer[-18:]) == answer.partition(b"\r\n\r\n")[2]
    upstream.stop()


def test_the_bytes_that_the_gate_adds_are_not_counted_against_a_limit(upstream: Upstream) -> None:
    sent = body(stream=True)
    with Gate(
        upstream.url, "--set", "ollama_include_usage=true", "--set", f"ollama_max_body=infer={len(sent)}"
    ) as gate:
        assert ask(gate.port, "POST", "/v1/chat/completions", BEARER, body=sent).status == 200
        assert ask(gate.port, "POST", "/v1/chat/completions", BEARER, body=sent + b" ").status == 413
