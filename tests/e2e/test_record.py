"""What is written down of an answer is what was sent, however its lines end and whoever closes the connection."""

import json
import threading
from collections.abc import Iterator

import pytest

from tests.harness.base import BEARER
from tests.harness.gate import Gate, logged
from tests.harness.upstream import Scripted
from tests.harness.wire import Line, Wire, ask, chat, head

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
COMMON = '"id":"c","object":"chat.completion.chunk","model":"m:latest"'
CHUNKS = [
    *('{%s,"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}' % COMMON for _ in range(3)),
    '{%s,"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}' % COMMON,
    '{%s,"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}' % COMMON,
    "[DONE]",
]
MESSAGES = [
    ("message_start", '{"type":"message_start","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":1}}}'),
    *[("content_block_delta", '{"type":"content_block_delta","delta":{"type":"text_delta","text":"x"}}')] * 3,
    ("message_delta", '{"type":"message_delta","delta":{},"usage":{"input_tokens":7,"output_tokens":3}}'),
    ("message_stop", '{"type":"message_stop"}'),
]
LINES = [
    *['{"model":"m","message":{"role":"assistant","content":"x"},"done":false}'] * 3,
    '{"model":"m","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":7,"eval_count":3}',
]


def events(end: str, *, blanks: bool = False) -> str:
    shown = [json.dumps(json.loads(one)) if blanks and one[0] == "{" else one for one in CHUNKS]
    return "".join(f"data: {one}{end}{end}" for one in shown)


def named(end: str) -> str:
    return "".join(f"event: {name}{end}data: {one}{end}{end}" for name, one in MESSAGES)


@pytest.fixture(scope="module")
def upstream_script() -> Iterator[Scripted]:
    upstream = Scripted().start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def recording(upstream_script: Scripted) -> Iterator[Gate]:
    with Gate(upstream_script.url, "--set", "ollama_access_log=-") as gate:
        yield gate
        assert "Traceback" not in gate.output


ANSWERS = [
    ("/v1/chat/completions", SSE, events("\n")),
    ("/v1/chat/completions", SSE, events("\r\n")),
    ("/v1/chat/completions", SSE, events("\r")),
    ("/v1/chat/completions", SSE, events("\n", blanks=True)),
    ("/v1/messages", SSE, named("\n")),
    ("/v1/messages", SSE, named("\r\n")),
    ("/v1/messages", SSE, named("\r")),
    ("/api/chat", NDJSON, "".join(f"{one}\n" for one in LINES)),
    ("/api/chat", NDJSON, "".join(f"{one}\r\n" for one in LINES)),
    ("/api/chat", NDJSON, "".join(json.dumps(json.loads(one)) + "\n" for one in LINES)),
]


@pytest.mark.parametrize("size", [1, 10**6], ids=["a byte at a time", "whole"])
def test_all_line_ends_and_blanks_are_read(recording: Gate, upstream_script: Scripted, size: int) -> None:
    for path, kind, body in ANSWERS:
        assert_recorded(recording, upstream_script, path, kind, body, size)


def assert_recorded(gate: Gate, upstream: Scripted, path: str, kind: str, body: str, size: int) -> None:
    def play(line: Line) -> None:
        line.head()
        line.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
        for at in range(0, len(body), size):
            line.send(body[at : at + size].encode())

    with upstream.plays(play), logged(gate) as lines:
        answer = ask(gate.port, "POST", path, BEARER, body=chat())
    assert body.encode() in (answer.body, answer.raw)
    assert [lines[0].get(name) for name in FIGURES] == ["answered", True, 7, 3, None], (path, body)


FIGURES = ("outcome", "complete", "prompt_tokens", "completion_tokens", "estimated")


def test_an_answer_that_was_read_to_its_end_is_complete_whoever_closes(
    recording: Gate, upstream_script: Scripted
) -> None:
    """Clients close at `[DONE]`, `message_stop` or `done:true`; servers may break off behind it."""
    read = threading.Event()
    for path, kind, body in ANSWERS:
        for client_closes in (True, False):

            def play(line: Line, kind: str = kind, body: str = body, client_closes: bool = client_closes) -> None:
                line.head()
                line.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                line.send(f"{len(body):x}\r\n{body}\r\n".encode())
                if client_closes:
                    line.socket.recv(1)
                else:
                    read.wait(20)
                    line.reset()

            read.clear()
            with upstream_script.plays(play), logged(recording) as lines:
                asked = head("POST", path, BEARER, f"Content-Length: {len(chat())}") + chat()
                with Wire(recording.port, asked) as wire:
                    wire.read_until(body.rstrip().encode()[-12:])
                    read.set()
                    if not client_closes:
                        wire.read_all()
            assert [lines[0].get(name) for name in FIGURES] == ["answered", True, 7, 3, None], (path, client_closes)
            assert "reason" not in lines[0]


def test_an_answer_that_breaks_off_has_failed(recording: Gate, upstream_script: Scripted) -> None:
    for path, kind, body in ANSWERS:

        def play(line: Line, kind: str = kind, body: str = body) -> None:
            line.head()
            part = body[: len(body) // 2]
            line.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            line.send(f"{len(part):x}\r\n{part}\r\n".encode())

        with (
            upstream_script.plays(play),
            logged(recording) as lines,
            Wire(recording.port, head("POST", path, BEARER, f"Content-Length: {len(chat())}") + chat()) as wire,
        ):
            wire.read_all()
        assert (lines[0]["outcome"], lines[0]["reason"], lines[0]["complete"]) == ("failed", "upstream broken", False)


def test_errors_are_no_time_to_a_first_token(recording: Gate, upstream_script: Scripted) -> None:
    for status, kind, body in (
        ("404 Not Found", "application/json", '{"error":"no such model"}'),
        ("500 Internal Server Error", "application/json", '{"error":"no memory"}'),
        ("200 OK", NDJSON, '{"error":"no memory"}\n'),
    ):

        def play(line: Line, status: str = status, kind: str = kind, body: str = body) -> None:
            line.head()
            line.send(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}".encode())

        with upstream_script.plays(play), logged(recording) as lines:
            ask(recording.port, "POST", "/api/chat", BEARER, body=chat())
        assert "ttft_ms" not in lines[0]
