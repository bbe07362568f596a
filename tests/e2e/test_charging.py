"""What a request is charged for, by whoever leaves whenever: the figures of its line in the log, and the limit."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.harness.base import BEARER
from tests.harness.certificates import certificate
from tests.harness.credentials import bearer, entry
from tests.harness.gate import Gate, logged
from tests.harness.upstream import Scripted
from tests.harness.wire import Line, Wire, ask, head

PROMPT = "why is the sky so blue? " * 2100  # 50 kB
IMAGE = base64.b64encode(bytes(range(256)) * 12_000).decode()  # 3 MB
HOLDER = bearer("limited")
NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    upstream = Scripted().start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def charging(scripted: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("charging")
    file = folder / "keys.toml"
    file.write_text(entry("limited", tokens_per_day=10**9, scopes=["all"]))
    file.chmod(0o600)
    args = ("--set", "ollama_access_log=-", "--certs", f"localhost={certificate(folder)}")
    with Gate(scripted.url, *args[:2], env={"OLLAMA_KEYS_FILE": str(file)}) as gate:
        yield gate
        assert "Traceback" not in gate.output


def post(path: str, body: bytes, *fields: str) -> bytes:
    return head("POST", path, *fields, f"Content-Length: {len(body)}") + body


def asked(prompt: str = PROMPT, **more: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]} | more).encode()


def read_request(line: Line) -> bytes:
    """The body of a request, of a known length or in chunks."""
    top = line.head().lower()
    if b"transfer-encoding: chunked" in top:
        return line.read_until(b"0\r\n\r\n")
    length = int(top.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(line.received) < length:
        line.received += line.socket.recv(65536)
    return line.received


def answer_head(media_type: str, *fields: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {media_type}", *fields, "Transfer-Encoding: chunked", "", ""]
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextmanager
def playing(upstream: Scripted, *sent: bytes) -> Iterator[threading.Event]:
    """An Ollama that reads the request, sends this, and then waits for its client to leave."""
    at_work = threading.Event()

    def play(line: Line) -> None:
        read_request(line)
        for data in sent:
            line.send(data)
        at_work.set()
        while line.socket.recv(65536):
            pass

    with upstream.plays(play):
        yield at_work


def answer(data: bytes, line: Line) -> None:
    """An Ollama that answers with this, and hangs up."""
    read_request(line)
    line.send(data)


def left(gate: Gate, upstream: Scripted, request: bytes, until: bytes, *sent: bytes) -> dict[str, Any]:
    """The line of a request whose client leaves once it has read `until`."""
    with playing(upstream, *sent) as at_work, logged(gate) as lines, Wire(gate.port, request) as wire:
        assert at_work.wait(20)
        wire.read_until(until)
    return lines[0]


KEYS = pytest.mark.parametrize("key", [HOLDER, BEARER], ids=["limited", "the one key"])


@KEYS
@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_before_the_head_pays_for_the_prompt(
    charging: Gate, scripted: Scripted, stream: bool, key: str
) -> None:
    line = left(charging, scripted, post("/api/chat", asked(stream=stream), key), b"")
    assert 12_000 < line["prompt_tokens"] < 14_000
    assert (line["completion_tokens"], line["estimated"], line["outcome"]) == (0, True, "broken_off")


def call(size: int) -> str:
    return json.dumps({"code": "x = 1; " * (size // 7)})


CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "/api/chat": (
        NDJSON,
        {"model": "m", "message": {"role": "assistant", "content": "Well"}, "done": False},
        {
            "model": "m",
            "message": {
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": json.loads(call(16_000))}}],
            },
            "done": False,
        },
    ),
    "/v1/chat/completions": (
        SSE,
        {"model": "m", "choices": [{"index": 0, "delta": {"content": "Well"}, "finish_reason": None}]},
        {
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"function": {"name": "f", "arguments": call(16_000)}}]},
                    "finish_reason": None,
                }
            ],
        },
    ),
    "/v1/messages": (
        SSE,
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Well"}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": call(16_000)}},
    ),
    "/v1/responses": (
        SSE,
        {"type": "response.output_text.delta", "delta": "Well"},
        {"type": "response.function_call_arguments.delta", "delta": call(16_000)},
    ),
}


def event(media_type: str, value: dict[str, Any]) -> bytes:
    text = json.dumps(value).encode()
    if media_type == NDJSON:
        return text + b"\n"
    name = f"event: {value['type']}\n".encode() if "type" in value else b""
    return name + b"data: " + text + b"\n\n"


@pytest.mark.parametrize("path", CALLS)
def test_a_tool_call_in_one_event_counts_by_its_text(charging: Gate, scripted: Scripted, path: str) -> None:
    """Also where the event itself is cut off, or is short; 90 events of a word are 90 tokens."""
    media_type, short, long = CALLS[path]
    request = post(path, asked("hi", stream=True), HOLDER)
    body = event(media_type, short) * 90 + event(media_type, long)
    for cut in (len(body), len(body) - 40):
        sent = (answer_head(media_type), chunk(body[:cut]))
        line = left(charging, scripted, request, body[cut - 100 : cut - 50], *sent)
        assert 3_900 < line["completion_tokens"] < 4_700, line
    shown = event(media_type, short) * 90
    line = left(charging, scripted, request, shown[-50:], answer_head(media_type), chunk(shown))
    assert line["completion_tokens"] == 90
    several = event(media_type, short).replace(b"Well", b"a word " * 20)  # As a server sends that waits for some.
    shown = event(media_type, short) + several * 90
    line = left(charging, scripted, request, shown[-50:], answer_head(media_type), chunk(shown))
    assert 90 * 140 / 4 <= line["completion_tokens"] <= 90 * 150 / 4, line


def test_an_answer_that_is_not_read_to_its_figures(charging: Gate, scripted: Scripted) -> None:
    """Its text has been there for long when the figures come, behind megabytes of probabilities."""
    text = "because of Rayleigh " * 400  # 8 kB
    tops = [{"token": "x", "logprob": -1.5, "bytes": [120], "top_logprobs": [{"token": "y" * 20}] * 20}] * 8000
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": {"content": tops}}
    said = {"model": "m", "choices": [choice | {"finish_reason": "stop"}]}
    body = json.dumps(said | {"usage": {"prompt_tokens": 9, "completion_tokens": 2020}}).encode()
    assert len(body) > 5_000_000
    request = post("/v1/chat/completions", asked("hi"), HOLDER)
    play = partial(answer, answer_head(JSON) + chunk(body))
    with scripted.plays(play), logged(charging) as lines, Wire(charging.port, request) as wire:
        wire.read_until(text[-30:].encode())
    assert 1_950 < lines[0]["completion_tokens"] < 2_100


def test_an_answer_whose_end_is_not_there_is_not_free(charging: Gate, scripted: Scripted) -> None:
    """`done` comes before the figures, with the numbers of `context` between them."""
    text = "because of Rayleigh " * 400  # 8 kB
    said = {"model": "m", "response": text, "done": True, "context": [1] * 5000, "prompt_eval_count": 9}
    for cut in (20, 10_000):
        body = json.dumps(said).encode()[:-cut]
        line = left(
            charging, scripted, post("/api/generate", asked(), HOLDER), body[-9:], answer_head(JSON), chunk(body)
        )
        assert 12_000 < line["prompt_tokens"] < 14_000
        assert 1_950 < line["completion_tokens"] < 2_100


def test_text_that_is_not_read_counts_by_its_bytes(charging: Gate, scripted: Scripted) -> None:
    """A transcription may be asked for as plain text."""
    form = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    body = (form.format("model", "m") + form.format("response_format", "text") + "--x--\r\n").encode()
    sent = answer_head("text/plain") + chunk(b"word" * 100) + b"0\r\n\r\n"
    with scripted.plays(partial(answer, sent)), logged(charging) as lines:
        kind = "Content-Type: multipart/form-data; boundary=x"
        assert ask(charging.port, "POST", "/v1/audio/transcriptions", HOLDER, kind, body=body).status == 200
    assert (lines[0]["completion_tokens"], lines[0]["estimated"]) == (100, True)


def test_a_picture_counts_by_an_estimate_and_not_by_its_bytes(charging: Gate, scripted: Scripted) -> None:
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:;base64,{IMAGE}"}},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    parts: dict[str, dict[str, Any]] = {
        "/api/chat": {"messages": [{"role": "user", "content": "what is it?", "images": [IMAGE]}]},
        "/api/generate": {"prompt": "what is it?", "images": [IMAGE]},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": content}]},
        "/v1/messages": {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]},
        "/v1/responses": {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": f"data:;base64,{IMAGE}"}]}]
        },
    }
    for path, more in parts.items():
        for key in (HOLDER, BEARER):
            body = json.dumps({"model": "m", "stream": True} | more).encode()
            line = left(charging, scripted, post(path, body, key), b"")
            assert 1_000 <= line["prompt_tokens"] < 1_100, (path, line)


@pytest.mark.parametrize("status", [404, 400, 500, 503])
def test_an_error_of_ollama_costs_nothing(charging: Gate, scripted: Scripted, status: int) -> None:
    error = f'HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{{"error":"wrong"}}'
    with scripted.plays(partial(answer, error.encode())), logged(charging) as lines:
        assert ask(charging.port, "POST", "/api/chat", HOLDER, body=asked()).status == status
    assert "prompt_tokens" not in lines[0]


def test_an_ollama_that_breaks_off_costs_what_it_made(charging: Gate, scripted: Scripted) -> None:
    media_type, short, _ = CALLS["/api/chat"]
    sent = answer_head(media_type) + chunk(event(media_type, short) * 3)
    request = post("/api/chat", asked(), HOLDER)
    with scripted.plays(partial(answer, sent)), logged(charging) as lines, Wire(charging.port, request) as wire:
        wire.read_all()
    assert (lines[0]["completion_tokens"], lines[0]["reason"]) == (3, "upstream broken")
    with scripted.plays(read_request), logged(charging) as lines:
        assert ask(charging.port, "POST", "/api/chat", HOLDER, body=asked()).status == 502
    assert "prompt_tokens" not in lines[0]


def test_a_prompt_counts_once_ollama_has_all_of_it(charging: Gate, scripted: Scripted) -> None:
    """What it reads ends with the object, whether or not the body does."""
    body = asked()
    begun = head("POST", "/api/chat", BEARER, "Transfer-Encoding: chunked")
    got = threading.Event()

    def play(line: Line) -> None:
        line.head()
        line.read_until(body[-2:] if whole else body[-202:-200])
        got.set()
        while line.socket.recv(65536):
            pass

    for whole in (True, False):
        got.clear()
        sent = begun + chunk(body if whole else body[:-200])
        with scripted.plays(play), logged(charging) as lines, Wire(charging.port, sent):
            assert got.wait(20)
        assert (lines[0]["prompt_tokens"] > 12_000) is whole


def test_answers_that_tell_tokens_are_asked_for_uncompressed(charging: Gate, scripted: Scripted) -> None:
    """Where they come compressed nevertheless, they count by their bytes."""
    heads = []

    def play(line: Line) -> None:
        heads.append(line.head())
        while b"}]" not in line.received:
            line.received += line.socket.recv(65536)
        line.send(answer_head(JSON, "Content-Encoding: gzip") + chunk(b"x" * 8000) + b"0\r\n\r\n")

    with scripted.plays(play), logged(charging, 2) as lines:
        for key in (HOLDER, BEARER):
            ask(charging.port, "POST", "/v1/chat/completions", key, "Accept-Encoding: gzip", body=asked("hi"))
    assert [b"accept-encoding" in one.lower() for one in heads] == [False, False]
    assert [line["completion_tokens"] for line in lines] == [2000, 2000]
