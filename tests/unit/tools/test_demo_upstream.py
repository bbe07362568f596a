"""The stand-in answers as a real Ollama did, of which pieces are below, and the real clients can use it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.tools import demo_answers, demo_upstream
from scripts.tools.demo_upstream import DemoUpstream
from tests.harness.tools import TOOLS
from tests.harness.upstream import OddUpstream

if TYPE_CHECKING:  # Their imports take three seconds, and every worker imports all tests.
    import anthropic
    import ollama
    import openai

pytestmark = pytest.mark.timeout(60)

PATIENCE = 20.0
ASK: Any = [{"role": "user", "content": "why is the sky blue"}]
REPLY = 'You said: "why is the sky blue". I am only a stand-in for Ollama, but your words came all the way and back.'
PROMPT_TOKENS, REPLY_TOKENS = 5, 31
CHAT = json.dumps({"model": "tiny", "messages": ASK}).encode()

GO_JSON = ["Content-Type: application/json; charset=utf-8", "Date", "Content-Length"]
V1_JSON = ["Content-Type: application/json", "Date", "Content-Length"]
NDJSON = ["Content-Type: application/x-ndjson", "Date", "Transfer-Encoding: chunked"]
SSE = ["Content-Type: text/event-stream", "Date", "Transfer-Encoding: chunked"]
PLAIN = ["Content-Type: text/plain", "Date", "Content-Length"]
EMPTY = ["Date", "Content-Length"]


@dataclass
class Answer:
    """An answer as it came over the wire."""

    status: str
    fields: list[tuple[str, str]]
    pieces: list[bytes] = field(default_factory=list)
    """The chunks, or the whole body."""

    @property
    def code(self) -> int:
        return int(self.status.split(" ")[1])

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def head(self) -> list[str]:
        """The header, in its order, without the values that differ from day to day."""
        varying = ("Date", "Content-Length")
        return [name if name in varying else f"{name}: {value}" for name, value in self.fields]

    def get(self, name: str) -> str | None:
        return dict(self.fields).get(name)


class Client:
    """A raw connection to the stand-in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, request: str, body: bytes | None = None, *lines: str, version: str = "1.1") -> None:
        sized = [] if body is None else [f"Content-Length: {len(body)}"]
        head = "\r\n".join([f"{request} HTTP/{version}", "Host: test", *sized, *lines, "", ""])
        self.writer.write(head.encode() + (body or b""))

    async def head(self) -> Answer:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = [line.split(": ", 1) for line in lines[:-2]]
        return Answer(first, [(name, value) for name, value in fields])

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        answer = await self.head()
        if answer.get("Transfer-Encoding"):
            while chunk := await self.chunk():
                answer.pieces.append(chunk)
        else:
            answer.pieces.append(await self.reader.readexactly(int(answer.get("Content-Length") or 0)))
        return answer

    async def ask(self, request: str, body: bytes | None = None, *lines: str) -> Answer:
        self.send(request, body, *lines)
        return await self.answer()

    async def rest(self) -> bytes:
        """Whatever comes until the server closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)


type Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
async def demo() -> AsyncIterator[DemoUpstream]:
    async with OddUpstream() as demo:
        yield demo


@pytest.fixture
async def connect(demo: DemoUpstream) -> AsyncIterator[Connect]:
    opened: list[Client] = []

    async def connect() -> Client:
        opened.append(Client(*await asyncio.open_connection(demo.host, demo.port)))
        return opened[-1]

    yield connect
    for client in opened:
        client.writer.close()


@pytest.fixture
async def client(connect: Connect) -> Client:
    return await connect()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


def body_of(**fields: object) -> bytes:
    return json.dumps({"model": "tiny"} | fields).encode()


def blob_of(data: bytes) -> str:
    return f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"


def in_chunks(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def shape(value: object) -> object:
    """The keys in their order, and the kinds of the values; a list is as its first item."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if isinstance(value, float) or type(value) is int else type(value).__name__


def shapes(piece: str) -> list[object]:
    """The shape of every line of a piece of an answer; what is no JSON stays."""
    found: list[object] = []
    for line in piece.split("\n"):
        data = line.removeprefix("data: ")
        found.append((line[: -len(data)], shape(json.loads(data))) if data.startswith("{") else line)
    return found


# --- compared with what a real Ollama 0.33 answered ---

DETAILS = (
    '"details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],'
    '"parameter_size":"101K","quantization_level":"unknown"'
)
TAGS = (
    '{"models":[{"name":"tiny:latest","model":"tiny:latest","modified_at":"2026-11-23T09:39:32.096961733Z",'
    f'"size":408858,"digest":"b01f02f875e0",{DETAILS},"context_length":2048,"embedding_length":64}},'
    '"capabilities":["completion"]}]}'
)
PS = (
    '{"models":[{"name":"tiny:latest","model":"tiny:latest","size":4613733,"digest":"b01f02f875e0",'
    f'{DETAILS}}},"expires_at":"2026-11-23T10:09:32.888794083Z","size_vram":0,"context_length":2048}}]}}'
)
SHOW = (
    '{"modelfile":"FROM x","parameters":"num_ctx 2048","template":"{{ .Prompt }}",'
    f'{DETAILS}}},"model_info":{{"general.architecture":"llama","llama.context_length":2048}},'
    '"tensors":[{"name":"output.weight","type":"F32","shape":[64,146]}],"capabilities":["completion"],'
    '"modified_at":"2026-11-23T09:39:32.096961733Z"}'
)
HEAD = '{"model":"tiny","created_at":"2026-11-23T09:39:33.325531638Z",'
SAYS = '"message":{"role":"assistant","content":"f"},'
END = (
    '"total_duration":12077165,"load_duration":1559768,"prompt_eval_count":25,'
    '"prompt_eval_duration":1074000,"eval_count":20,"eval_duration":4466000}'
)
USAGE = '"usage":{"prompt_tokens":25,"completion_tokens":20,"total_tokens":45}'
SIGNED = '"model":"tiny","system_fingerprint":"fp_ollama"'
CHUNK = f'data: {{"id":"chatcmpl-819","object":"chat.completion.chunk","created":1795426774,{SIGNED},"choices":['
TEXT = 'data: {"id":"cmpl-334","object":"text_completion","created":1795426774,"choices":['
DONE = "data: [DONE]\n\n"
DELTA = 'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
AT = {"content_index": 0, "item_id": "msg_69653"}
PART: dict[str, Any] = {"annotations": [], "logprobs": [], "text": "mU", "type": "output_text"}
ITEM = {"content": [PART], "id": "msg_69653", "role": "assistant", "status": "completed", "type": "message"}
SPENT = {
    "input_tokens": 25, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 45,
}  # fmt: skip
RESPONSE = json.loads("""{
    "background":false,"completed_at":null,"created_at":1795426869,"error":null,"frequency_penalty":0,
    "id":"resp_288038","incomplete_details":null,"instructions":null,"max_output_tokens":20,"max_tool_calls":null,
    "metadata":{},"model":"slow","object":"response","output":[],"parallel_tool_calls":true,"presence_penalty":0,
    "previous_response_id":null,"prompt_cache_key":null,"reasoning":null,"safety_identifier":null,
    "service_tier":"default","status":"in_progress","store":false,"temperature":1,
    "text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1,
    "truncation":"disabled","usage":null
}""")


def event(kind: str, **fields: Any) -> str:
    """An event of /v1/responses, with its fields in the order of the alphabet."""
    name = f"response.{kind}"
    place = {} if "response" in fields else {"output_index": 0}
    data = json.dumps(fields | place | {"sequence_number": 0, "type": name}, sort_keys=True)
    return f"event: {name}\ndata: {data}\n\n"


START = (
    'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_4675","type":"message",'
    '"role":"assistant","model":"tiny","content":[],"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
)


WHOLE = [
    ("GET /", None, ["Content-Type: text/plain; charset=utf-8", *EMPTY], "Ollama is running"),
    ("GET /api/version", None, GO_JSON, '{"version":"0.33.0-rc2"}'),
    ("GET /api/tags", None, GO_JSON, TAGS),
    ("GET /api/ps", None, GO_JSON, PS),
    ("POST /api/show", body_of(), [GO_JSON[0], *NDJSON[1:]], SHOW),
    (
        "POST /api/chat",
        body_of(messages=ASK, stream=False),
        GO_JSON,
        f'{HEAD}{SAYS}"done":true,"done_reason":"length",{END}',
    ),
    (
        "POST /api/generate",
        body_of(prompt="the sky is", stream=False),
        GO_JSON,
        f'{HEAD}"response":"fY","done":true,"done_reason":"length","context":[84,82],{END}',
    ),
    ("POST /api/generate", body_of(), GO_JSON, HEAD + '"response":"","done":true,"done_reason":"load"}'),
    (
        "POST /api/embed",
        body_of(input=["the sky", "a blue sun"]),
        GO_JSON,
        '{"model":"tiny-embed","embeddings":[[0.8746028,-0.034480006],[0.8451835,0.057879813]],'
        '"total_duration":277296068,"load_duration":258105505,"prompt_eval_count":9}',
    ),
    ("POST /api/embeddings", body_of(prompt="the sky"), GO_JSON, '{"embedding":[0.8746028,-0.034480006]}'),
    ("POST /api/pull", body_of(stream=False), V1_JSON, '{"status":"success"}'),
    ("POST /api/create", body_of(stream=False), V1_JSON, '{"status":"success"}'),
    ("POST /api/copy", b'{"source":"tiny","destination":"tiny-copy"}', EMPTY, ""),
    ("DELETE /api/delete", body_of(), EMPTY, ""),
    (
        "GET /v1/models",
        None,
        V1_JSON,
        '{"object":"list","data":[{"id":"tiny:latest","object":"model","created":1795426772,"owned_by":"library"}]}\n',
    ),
    (
        "GET /v1/models/tiny",
        None,
        V1_JSON,
        '{"id":"tiny","object":"model","created":1795426772,"owned_by":"library"}\n',
    ),
    (
        "POST /v1/chat/completions",
        body_of(messages=ASK),
        V1_JSON,
        f'{{"id":"chatcmpl-616","object":"chat.completion","created":1795426773,{SIGNED},"choices":[{{"index":0,'
        f'"message":{{"role":"assistant","content":" tree"}},"finish_reason":"length"}}],{USAGE}}}\n',
    ),
    (
        "POST /v1/completions",
        body_of(prompt="the sky is"),
        V1_JSON,
        f'{{"id":"cmpl-745","object":"text_completion","created":1795426774,{SIGNED},"choices":[{{"text":",Bde",'
        f'"index":0,"finish_reason":"length"}}],{USAGE}}}\n',
    ),
    (
        "POST /v1/embeddings",
        body_of(input="the sky"),
        V1_JSON,
        '{"object":"list","data":[{"object":"embedding","embedding":[0.8746028,-0.034480006],"index":0}],'
        '"model":"tiny-embed","usage":{"prompt_tokens":5,"total_tokens":5}}\n',
    ),
    (
        "POST /v1/messages",
        body_of(messages=ASK, max_tokens=99),
        V1_JSON,
        '{"id":"msg_83ffcc76","type":"message","role":"assistant","model":"tiny","content":[{"type":"text",'
        '"text":"F rait"}],"stop_reason":"max_tokens","usage":{"input_tokens":25,"output_tokens":20}}\n',
    ),
]


@pytest.mark.parametrize(("request_line", "body", "head", "recorded"), WHOLE)
async def test_it_answers_as_recorded(
    client: Client, request_line: str, body: bytes | None, head: list[str], recorded: str
) -> None:
    answer = await client.ask(request_line, body)
    assert (answer.status, answer.head) == ("HTTP/1.1 200 OK", head)
    assert shapes(answer.body.decode()) == shapes(recorded)


STREAMS = [
    (
        "/api/chat",
        body_of(messages=ASK),
        NDJSON,
        [f'{HEAD}{SAYS}"done":false}}\n'],
        f'{HEAD}{SAYS}"done":false}}\n',
        [f'{HEAD}{SAYS}"done":true,"done_reason":"length",{END}\n'],
    ),
    (
        "/api/generate",
        body_of(prompt="the sky is"),
        NDJSON,
        [HEAD + '"response":"f","done":false}\n'],
        HEAD + '"response":"Y","done":false}\n',
        [f'{HEAD}"response":"","done":true,"done_reason":"length","context":[84,82],{END}\n'],
    ),
    (
        "/v1/chat/completions",
        body_of(messages=ASK, stream=True),
        SSE,
        [CHUNK + '{"index":0,"delta":{"role":"assistant","content":" tree"},"finish_reason":null}]}\n\n'],
        CHUNK + '{"index":0,"delta":{"content":"S"},"finish_reason":null}]}\n\n',
        [CHUNK + '{"index":0,"delta":{},"finish_reason":"length"}]}\n\n' + DONE],
    ),
    (
        "/v1/chat/completions",
        body_of(messages=ASK, stream=True, stream_options={"include_usage": True}),
        SSE,
        [CHUNK + '{"index":0,"delta":{"role":"assistant","content":" tree"},"finish_reason":null}]}\n\n'],
        CHUNK + '{"index":0,"delta":{"content":"S"},"finish_reason":null}]}\n\n',
        [CHUNK + '{"index":0,"delta":{},"finish_reason":"length"}]}\n\n' + f"{CHUNK}],{USAGE}}}\n\n{DONE}"],
    ),
    (
        "/v1/completions",
        body_of(prompt="the sky is", stream=True),
        SSE,
        [TEXT + '{"text":",","index":0,"finish_reason":null}],' + SIGNED + "}\n\n"],
        TEXT + '{"text":"B","index":0,"finish_reason":null}],' + SIGNED + "}\n\n",
        [TEXT + '{"text":"","index":0,"finish_reason":"length"}],' + SIGNED + "}\n\n" + DONE],
    ),
    (
        "/v1/completions",
        body_of(prompt="the sky is", stream=True, stream_options={"include_usage": True}),
        SSE,
        [f'{TEXT}{{"text":",","index":0,"finish_reason":null}}],{SIGNED},{USAGE}}}\n\n'],
        f'{TEXT}{{"text":"B","index":0,"finish_reason":null}}],{SIGNED},{USAGE}}}\n\n',
        [
            f'{TEXT}{{"text":"","index":0,"finish_reason":"length"}}],{SIGNED},{USAGE}}}\n\n'
            f"{TEXT}],{SIGNED},{USAGE}}}\n\n{DONE}"
        ],
    ),
    (
        "/v1/responses",
        body_of(input="why is the sky blue", max_output_tokens=20, stream=True),
        ["Cache-Control: no-cache", "Connection: keep-alive", *SSE],
        [
            event("created", response=RESPONSE),
            event("in_progress", response=RESPONSE),
            event("output_item.added", item=ITEM | {"content": [], "status": "in_progress"}),
            event("content_part.added", **AT, part=PART | {"text": ""}),
        ],
        event("output_text.delta", **AT, delta="m", logprobs=[]),
        [
            event("output_text.done", **AT, logprobs=[], text="x"),
            event("content_part.done", **AT, part=PART),
            event("output_item.done", item=ITEM),
            event("completed", response=RESPONSE | {"completed_at": 1795426869, "output": [ITEM], "usage": SPENT}),
        ],
    ),
    (
        "/v1/messages",
        body_of(messages=ASK, max_tokens=99, stream=True),
        ["Cache-Control: no-cache", "Connection: keep-alive", *SSE],
        [
            START,
            'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            '"content_block":{"type":"text","text":""}}\n\n',
        ],
        DELTA + '{"type":"text_delta","text":"F"}}\n\n',
        [
            'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
            'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},'
            '"usage":{"input_tokens":25,"output_tokens":20}}\n\n',
            'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ],
    ),
]


@pytest.mark.parametrize(("target", "body", "head", "first", "second", "last"), STREAMS)
async def test_it_streams_as_recorded(
    client: Client, target: str, body: bytes, head: list[str], first: list[str], second: str, last: list[str]
) -> None:
    answer = await client.ask(f"POST {target}", body)
    pieces = [shapes(piece.decode()) for piece in answer.pieces]
    assert (answer.status, answer.head) == ("HTTP/1.1 200 OK", head)
    assert pieces[: len(first)] == [shapes(piece) for piece in first]
    assert pieces[-len(last) :] == [shapes(piece) for piece in last]
    assert all(piece == shapes(second) for piece in pieces[len(first) : -len(last)])


async def test_pull_tells_its_progress_in_lines(client: Client) -> None:
    answer = await client.ask("POST /api/pull", b'{"model":"new"}')
    assert answer.head == NDJSON
    assert [json.loads(piece)["status"] for piece in answer.pieces] == [
        "pulling manifest",
        "pulling 2a97516c354b",
        "pulling 2a97516c354b",
        "writing manifest",
        "success",
    ]
    assert all(piece.endswith(b"}\n") for piece in answer.pieces)


UNKNOWN = "model 'nope' not found"
NATIVE_UNKNOWN = f'{{"error":"{UNKNOWN}"}}'
PULL_IT = r"model \"nope\" not found, try pulling it first"


def openai_error(message: str, kind: str = "not_found_error") -> str:
    return f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":null}}}}'


FAILURES = [
    ("POST /api/chat", '{"model":"nope"}', 404, GO_JSON, NATIVE_UNKNOWN),
    ("POST /api/generate", '{"model":"nope"}', 404, GO_JSON, NATIVE_UNKNOWN),
    ("DELETE /api/delete", '{"model":"nope"}', 404, GO_JSON, NATIVE_UNKNOWN),
    ("POST /api/show", '{"model":"nope"}', 404, GO_JSON, '{"error":"model \'nope:latest\' not found"}'),
    ("POST /api/embed", '{"model":"nope"}', 404, GO_JSON, f'{{"error":"{PULL_IT}"}}'),
    ("POST /api/copy", '{"source":"nope"}', 404, GO_JSON, r'{"error":"model \"nope\" not found"}'),
    ("POST /v1/chat/completions", '{"model":"nope"}', 404, V1_JSON, openai_error(UNKNOWN) + "\n"),
    (
        "POST /v1/chat/completions",
        '{"model":"nope","stream":true}',
        404,
        V1_JSON,
        openai_error(UNKNOWN) + "\n",
    ),
    ("POST /v1/completions", '{"model":"nope"}', 404, V1_JSON, openai_error(UNKNOWN) + "\n"),
    ("POST /v1/embeddings", '{"model":"nope"}', 404, V1_JSON, openai_error(PULL_IT) + "\n"),
    ("GET /v1/models/nope", None, 404, V1_JSON, openai_error("model 'nope:latest' not found") + "\n"),
    ("POST /api/chat", '{"model": "tiny", ', 400, GO_JSON, '{"error":"unexpected EOF"}'),
    ("POST /api/chat", '{"model": "ti', 400, GO_JSON, '{"error":"unexpected EOF"}'),
    ("POST /api/chat", "", 400, GO_JSON, '{"error":"missing request body"}'),
    (
        "POST /api/chat",
        "\x1f\x08 gzip",
        400,
        GO_JSON,
        r"""{"error":"invalid character '\\x1f' looking for beginning of value"}""",
    ),
    (
        "POST /v1/completions",
        '{"model": "tiny", ',
        400,
        GO_JSON,
        openai_error("unexpected EOF", "invalid_request_error"),
    ),
    ("GET /api/nope", None, 404, PLAIN, "404 page not found"),
    ("GET /API/tags", None, 404, PLAIN, "404 page not found"),
    ("POST /v1/nope", '{"x": 1}', 404, PLAIN, "404 page not found"),
    ("GET /api/chat", None, 405, ["Allow: POST", *PLAIN], "405 method not allowed"),
    ("OPTIONS /api/chat", None, 405, ["Allow: POST", *PLAIN], "405 method not allowed"),
    ("POST /api/delete", '{"model":"tiny"}', 405, ["Allow: DELETE", *PLAIN], "405 method not allowed"),
]


@pytest.mark.parametrize(("request_line", "body", "code", "head", "recorded"), FAILURES)
async def test_it_fails_as_recorded(
    client: Client, request_line: str, body: str | None, code: int, head: list[str], recorded: str
) -> None:
    answer = await client.ask(request_line, None if body is None else body.encode())
    assert (answer.code, answer.head, answer.body.decode()) == (code, head, recorded)
    assert (await client.ask("GET /api/version")).code == 200, "the connection stays"


@pytest.mark.parametrize("stream", [True, False])
async def test_anthropic_errors_have_an_id(client: Client, stream: bool) -> None:
    ask = body_of(model="nope", messages=ASK, max_tokens=9, stream=stream)
    answer = await client.ask("POST /v1/messages", ask)
    error = json.loads(answer.body)
    assert answer.code == 404
    assert answer.head == ["Cache-Control: no-cache", "Connection: keep-alive"] * stream + V1_JSON
    assert list(error) == ["type", "error", "request_id"]
    assert error["error"] == {"type": "not_found_error", "message": UNKNOWN}


@pytest.mark.parametrize("target", ["/", "/api/version", "/api/tags"])
async def test_head_is_get_without_a_body(client: Client, target: str) -> None:
    client.send(f"HEAD {target}")
    head = await client.head()
    assert (await client.ask(f"GET {target}")).fields[:-2] == head.fields[:-2]


async def test_the_tokens_are_counted(client: Client) -> None:
    lines = [json.loads(piece) for piece in (await client.ask("POST /api/chat", CHAT)).pieces]
    assert "".join(line["message"]["content"] for line in lines) == REPLY
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1]["prompt_eval_count"] == PROMPT_TOKENS
    assert lines[-1]["eval_count"] == REPLY_TOKENS == len(lines) - 1


@pytest.mark.parametrize(
    ("target", "limit", "text"),
    [
        (
            "/api/chat",
            {"options": {"num_predict": 2}, "stream": False},
            '"You said"},"done":true,"done_reason":"length"',
        ),
        ("/v1/chat/completions", {"max_tokens": 2}, '"You said"},"finish_reason":"length"'),
        ("/v1/chat/completions", {"max_completion_tokens": 2}, '"You said"},"finish_reason":"length"'),
        ("/v1/messages", {"max_tokens": 2}, '"You said"}],"stop_reason":"max_tokens"'),
    ],
)
async def test_an_answer_can_be_cut(client: Client, target: str, limit: dict[str, Any], text: str) -> None:
    answer = await client.ask(f"POST {target}", body_of(messages=ASK, **limit))
    assert text in answer.body.decode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"nope","MODEL":"tiny","stream":false,"messages":[]}',
        b'{"model":"TINY:latest","stream":false}',
        b'{"model":"library/tiny","stream":false}',
        b'{"model":"registry.ollama.ai/library/TINY:latest","stream":false}',
    ],
)
async def test_names_and_keys_are_read_as_ollama_does(client: Client, body: bytes) -> None:
    assert (await client.ask("POST /api/chat", body)).code == 200


async def test_json_is_harmless_in_html(client: Client) -> None:
    answer = await client.ask("POST /api/generate", body_of(prompt="<b>é</b> & more", stream=False))
    assert r"\u003cb\u003eé\u003c/b\u003e \u0026 more" in answer.body.decode()


async def test_a_model_can_be_copied_and_deleted(client: Client) -> None:
    await client.ask("POST /api/copy", b'{"source":"tiny","destination":"two"}')
    await client.ask("DELETE /api/delete", b'{"model":"","name":"demo"}')
    models = json.loads((await client.ask("GET /api/tags")).body)["models"]
    assert [model["name"] for model in models] == ["tiny:latest", "two:latest"]


# --- blobs ---


async def test_a_blob_is_kept_when_its_digest_is_right(client: Client) -> None:
    data = b"z" * 300_000
    client.send("HEAD " + blob_of(data))
    missing = await client.head()
    assert (missing.code, missing.head, missing.get("Content-Length")) == (404, GO_JSON, "102")
    created = await client.ask("POST " + blob_of(data), data)
    assert (created.status, created.head) == ("HTTP/1.1 201 Created", EMPTY)
    client.send("HEAD " + blob_of(data))
    present = await client.head()
    assert (present.code, present.head) == (200, ["Date"])


async def test_a_blob_may_come_in_chunks(client: Client) -> None:
    client.send("POST " + blob_of(b"ab" * 70_000), None, "Transfer-Encoding: chunked")
    client.writer.write(in_chunks(b"ab" * 1000, b"ab" * 69_000))
    assert (await client.answer()).code == 201


async def test_a_wrong_digest_is_told(client: Client) -> None:
    answer = await client.ask(f"POST /api/blobs/sha256:{'0' * 64}", b"hello")
    found = hashlib.sha256(b"hello").hexdigest()
    expected = f'digest mismatch, expected "sha256:{"0" * 64}", got "sha256:{found}"'
    assert (answer.code, answer.head, json.loads(answer.body)) == (400, GO_JSON, {"error": expected})
    client.send("HEAD " + blob_of(b"hello"))
    assert (await client.head()).code == 404


async def test_a_digest_must_be_one(client: Client) -> None:
    answer = await client.ask("POST /api/blobs/sha256:xyz", b"hello")
    assert (answer.code, answer.body) == (400, b'{"error":"invalid digest format"}')


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
async def test_a_known_blob_is_answered_before_its_body(
    connect: Connect, demo: DemoUpstream, expect: list[str]
) -> None:
    await (await connect()).ask("POST " + blob_of(b"hello"), b"hello")
    client = await connect()
    client.send("POST " + blob_of(b"hello"), None, "Content-Length: 5", *expect)
    answer = await client.answer()
    assert (answer.status, answer.head) == ("HTTP/1.1 200 OK", [*EMPTY, "Connection: close"])
    assert await client.rest() == b""
    assert not demo.requests[-1].complete


async def test_expect_is_answered_with_100(client: Client) -> None:
    client.send("POST " + blob_of(b"hello"), None, "Content-Length: 5", "Expect: 100-continue")
    assert (await client.head()).status == "HTTP/1.1 100 Continue"
    client.writer.write(b"hello")
    assert (await client.answer()).code == 201


async def test_expect_is_not_answered_with_100_when_nobody_wants_the_body(client: Client) -> None:
    client.send("POST /nope", None, "Content-Length: 5", "Expect: 100-continue")
    answer = await client.answer()
    assert (answer.code, answer.head[-1]) == (404, "Connection: close")


# --- connections ---


async def test_a_connection_is_kept(client: Client, demo: DemoUpstream) -> None:
    client.send("GET /api/version")
    client.send("POST /api/chat", CHAT)
    assert (await client.answer()).code == (await client.answer()).code == 200
    assert (demo.connections, demo.open_connections) == (1, 1)


async def test_connection_close_is_done_and_told(client: Client) -> None:
    answer = await client.ask("POST /v1/messages", body_of(messages=ASK, stream=True), "Connection: close")
    assert answer.head == ["Cache-Control: no-cache", SSE[0], "Date", "Connection: close", SSE[2]]
    assert await client.rest() == b""


async def test_http_1_0_is_answered_without_chunks(client: Client) -> None:
    client.send("POST /api/chat", CHAT, version="1.0")
    head = await client.head()
    lines = (await client.rest()).splitlines()
    assert (head.status, head.head) == ("HTTP/1.0 200 OK", NDJSON[:-1])
    assert json.loads(lines[-1])["done"]


async def test_the_path_is_decoded(client: Client) -> None:
    assert (await client.ask("GET /api/%74ags?ts=1")).code == 200


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01 TLS?\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /demo/sink HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"GET /" + b"x" * 3_000_000,
    ],
    ids=["tls", "header", "chunk", "long"],
)
async def test_what_is_no_http_ends_the_connection(client: Client, demo: DemoUpstream, noise: bytes) -> None:
    client.writer.write(noise)
    await until(lambda: demo.connections and not demo.open_connections)


async def test_a_long_body_is_seen_but_not_kept(client: Client, demo: DemoUpstream) -> None:
    answer = await client.ask("POST /demo/sink", bytes(3 << 20), "X-Twice: 1", "X-Twice: 2")
    seen = demo.requests[-1]
    assert json.loads(answer.body) == {"bytes": 3 << 20}
    assert (len(seen.body), seen.body_length, seen.complete) == (1 << 20, 3 << 20, True)
    assert (seen.method, seen.target, seen.version) == ("POST", "/demo/sink", "HTTP/1.1")
    assert seen.headers[-2:] == [("X-Twice", "1"), ("X-Twice", "2")]


async def test_half_a_request_is_seen(client: Client, demo: DemoUpstream) -> None:
    client.send("POST /api/chat", None, "Content-Length: 100")
    client.writer.write(b'{"model"')
    await until(lambda: demo.requests and demo.requests[0].body_length)
    assert (demo.requests[0].body, demo.requests[0].complete) == (b'{"model"', False)


async def test_the_last_requests_are_kept(client: Client, demo: DemoUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_upstream, "KEPT_REQUESTS", 2)
    for target in "/1", "/2", "/3":
        await client.ask(f"GET {target}")
    assert [seen.target for seen in demo.requests] == ["/2", "/3"]


@pytest.mark.parametrize("target", ["/api/chat", "/v1/messages", "/api/pull"])
async def test_a_stream_can_be_held_after_its_first_item(client: Client, demo: DemoUpstream, target: str) -> None:
    demo.hold.clear()
    client.send(f"POST {target}", body_of(messages=ASK, stream=True, max_tokens=9))
    await client.head()
    assert await client.chunk()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.03)
    demo.hold.set()
    assert await client.chunk()


@pytest.mark.parametrize("leave", ["close", "abort", "half"])
@pytest.mark.parametrize(
    ("request_line", "body", "lines"),
    [
        ("POST /api/chat", body_of(messages=ASK), []),
        ("POST /api/chat", body_of(messages=ASK, stream=False), []),
        ("GET /demo/silent/60", None, []),
        ("GET /demo/bytes/100000000", None, []),
        ("POST /demo/sink", None, ["Content-Length: 9"]),
    ],
    ids=["stream", "whole", "silent", "bytes", "sink"],
)
async def test_a_client_that_leaves_ends_its_request(
    client: Client,
    demo: DemoUpstream,
    caplog: pytest.LogCaptureFixture,
    request_line: str,
    body: bytes | None,
    lines: list[str],
    leave: str,
) -> None:
    demo.hold.clear()
    client.send(request_line, body, *lines)
    await until(lambda: demo.requests)
    await asyncio.sleep(0.01)
    assert demo.open_connections == 1
    writer = client.writer
    {"close": writer.close, "abort": writer.transport.abort, "half": writer.write_eof}[leave]()
    await until(lambda: not demo.open_connections)
    gc.collect()  # asyncio tells of a forgotten exception when the task is collected
    assert not caplog.records


async def test_a_client_that_leaves_between_two_tokens_ends_its_stream() -> None:
    async with DemoUpstream(token_delay=60) as demo:
        client = Client(*await asyncio.open_connection(demo.host, demo.port))
        client.send("POST /api/chat", CHAT)
        await client.head()
        client.writer.close()
        await until(lambda: not demo.open_connections)


async def test_close_ends_what_is_open(connect: Connect, demo: DemoUpstream) -> None:
    demo.hold.clear()
    idle, busy = await connect(), await connect()
    busy.send("POST /api/chat", CHAT)
    await busy.head()
    await until(lambda: demo.open_connections == 2)
    await demo.close()
    assert demo.open_connections == 0
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await busy.answer()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await idle.answer()
    with pytest.raises(ConnectionError):
        await connect()


# --- routes of its own ---


async def test_bytes_have_their_length(client: Client) -> None:
    answer = await client.ask("GET /demo/bytes/150000")
    assert answer.body == bytes(150_000)


async def test_the_sink_takes_chunks(client: Client) -> None:
    client.send("POST /demo/sink", None, "Transfer-Encoding: chunked")
    client.writer.write(in_chunks(b"abc", b"de")[:-2] + b"A: trailer\r\n\r\n")
    assert (await client.answer()).body == b'{"bytes":5}'


async def test_silence_ends(client: Client) -> None:
    assert (await client.ask("GET /demo/silent/0.01")).body == b"{}"


async def test_a_chunked_answer_breaks(client: Client) -> None:
    client.send("GET /demo/break/chunked")
    assert (await client.head()).get("Transfer-Encoding") == "chunked"
    assert await client.chunk()
    assert await client.rest() == b""


async def test_a_sized_answer_breaks(client: Client) -> None:
    client.send("GET /demo/break/length")
    head = await client.head()
    assert 0 < len(await client.rest()) < int(head.get("Content-Length") or 0)


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_has_no_body(client: Client, status: int) -> None:
    answer = await client.ask(f"GET /demo/status/{status}")
    assert (answer.code, answer.head, answer.body) == (status, ["Date"], b"")
    assert (await client.ask("GET /")).code == 200


async def test_a_trailer_follows(client: Client) -> None:
    client.send("GET /demo/trailers", None, "Connection: close")
    assert (await client.head()).get("Trailer") == "X-Demo-Trailer"
    assert (await client.rest()).endswith(b"\r\n0\r\nX-Demo-Trailer: here\r\n\r\n")


# --- the real clients ---


@pytest.fixture
async def ollama_client(demo: DemoUpstream) -> AsyncIterator[ollama.AsyncClient]:
    import ollama

    async with ollama.AsyncClient(demo.url) as client:
        yield client


@pytest.fixture
async def openai_client(demo: DemoUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        yield client


@pytest.fixture
async def anthropic_client(demo: DemoUpstream) -> AsyncIterator[anthropic.AsyncAnthropic]:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=demo.url, api_key="none") as client:
        yield client


async def test_ollama_python(ollama_client: ollama.AsyncClient) -> None:
    whole = await ollama_client.chat("demo", ASK)
    stream = await ollama_client.chat("demo", ASK, stream=True)
    parts = [part async for part in stream]
    assert whole.message.content == "".join(part.message.content or "" for part in parts) == REPLY
    assert (whole.prompt_eval_count, parts[-1].eval_count) == (PROMPT_TOKENS, REPLY_TOKENS)
    assert "hello" in str((await ollama_client.generate("demo", "hello")).response)
    assert [model.model for model in (await ollama_client.list()).models] == ["demo:latest", "tiny:latest"]
    assert len((await ollama_client.embed("demo", ["a", "b"])).embeddings) == 2
    assert (await ollama_client.show("demo")).capabilities == ["completion", "tools", "thinking", "embedding"]
    assert (await ollama_client.show("tiny")).capabilities == ["completion"]
    assert (await ollama_client.ps()).models[0].model == "demo:latest"


async def test_ollama_python_manages_models(ollama_client: ollama.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    digest = await ollama_client.create_blob(tmp_path / "blob")
    assert digest == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    await ollama_client.create("made", files={"blob": digest})
    await ollama_client.copy("made", "again")
    assert (await ollama_client.delete("made")).status == "success"
    assert [part.status async for part in await ollama_client.pull("new", stream=True)][-1] == "success"
    names = [model.model for model in (await ollama_client.list()).models]
    assert names == ["demo:latest", "tiny:latest", "again:latest", "new:latest"]


async def test_ollama_python_meets_an_unknown_model(ollama_client: ollama.AsyncClient) -> None:
    import ollama

    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await ollama_client.chat("nope", ASK)


async def test_openai_python(openai_client: openai.AsyncOpenAI) -> None:
    chat = openai_client.chat.completions
    whole = await chat.create(model="demo", messages=ASK)
    stream = await chat.create(model="demo", messages=ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert whole.choices[0].message.content == said == REPLY
    assert whole.usage == chunks[-1].usage
    assert whole.usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (PROMPT_TOKENS, REPLY_TOKENS)
    assert "hello" in (await openai_client.completions.create(model="demo", prompt="hello")).choices[0].text
    assert [model.id async for model in openai_client.models.list()] == ["demo:latest", "tiny:latest"]


TOOL_SCHEMA = {
    "type": "object",
    "properties": {"filePath": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": ["integer", "null"]}},
    "required": ["filePath", "unit"],
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": TOOL_SCHEMA}}
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
SIMPLEST, GIVEN = {"filePath": "demo", "unit": "C"}, {"filePath": "a", "days": 2}


async def test_ollama_python_is_asked_to_call_tools(ollama_client: ollama.AsyncClient) -> None:
    """The only one, or those that are named, with what the question says; not after a result."""
    whole = await ollama_client.chat("demo", ASK, tools=[TOOL])
    assert whole.message.tool_calls
    assert (whole.message.tool_calls[0].function.name, whole.message.content) == ("weather", "")
    assert whole.message.tool_calls[0].function.arguments == SIMPLEST
    stream = await ollama_client.chat(
        "demo", [{"role": "user", "content": f"ask weather {json.dumps(GIVEN)} now"}], tools=[TOOL, OTHER], stream=True
    )
    calls = [call for part in [part async for part in stream] for call in part.message.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", GIVEN)]
    assert (await ollama_client.chat("demo", ASK, tools=[TOOL, OTHER])).message.content == REPLY
    result = [*ASK, whole.message, {"role": "tool", "content": "9 degrees", "tool_name": "weather"}]
    assert "9 degrees" in str((await ollama_client.chat("demo", result, tools=[TOOL])).message.content)
    with pytest.raises(ollama_error(), match="does not support tools"):
        await ollama_client.chat("tiny", ASK, tools=[TOOL])


async def test_ollama_python_gets_thoughts_and_json(ollama_client: ollama.AsyncClient) -> None:
    stream = await ollama_client.chat("demo", ASK, think=True, stream=True)
    parts = [part.message async for part in stream]
    assert "".join(part.thinking or "" for part in parts) == demo_answers.THOUGHT
    assert "".join(part.content or "" for part in parts) == REPLY
    assert parts[0].thinking
    assert (await ollama_client.generate("demo", "x", think=True)).thinking == demo_answers.THOUGHT
    schema = {"$defs": {"T": TOOL_SCHEMA}, "type": "object", "properties": {"all": {"items": {"$ref": "#/$defs/T"}}}}
    schema["properties"]["all"]["type"] = "array"  # type: ignore[index]
    fitting = await ollama_client.chat("demo", ASK, format=schema)
    assert json.loads(str(fitting.message.content)) == {"all": [SIMPLEST]}
    assert json.loads(str((await ollama_client.generate("demo", "x", format="json")).response)).keys() == {"answer"}
    told: Any = [{"role": "system", "content": f"Say {{JSON}}: {json.dumps(TOOL_SCHEMA)}"}, *ASK]
    assert json.loads(str((await ollama_client.chat("demo", told, format="json")).message.content)) == SIMPLEST
    with pytest.raises(ollama_error(), match='"tiny" does not support thinking'):
        await ollama_client.chat("tiny", ASK, think=True)


async def test_ollama_python_pushes(ollama_client: ollama.AsyncClient) -> None:
    steps = [step.status async for step in await ollama_client.push("demo", stream=True)]
    assert (steps[0], steps[-2:]) == ("retrieving manifest", ["pushing manifest", "success"])
    with pytest.raises(ollama_error(), match="no such file"):
        [step async for step in await ollama_client.push("nope", stream=True)]


def ollama_error() -> type[Exception]:
    import ollama

    return ollama.ResponseError


async def test_openai_python_uses_tools_thoughts_and_json(openai_client: openai.AsyncOpenAI) -> None:
    create: Any = openai_client.chat.completions.create
    whole = await create(model="demo", messages=ASK, tools=[TOOL], reasoning_effort="low")
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", SIMPLEST)
    assert (whole.choices[0].finish_reason, whole.choices[0].message.reasoning) == ("tool_calls", demo_answers.THOUGHT)
    chosen = {"type": "function", "function": {"name": "other"}}
    stream = await create(model="demo", messages=ASK, tools=[TOOL, OTHER], tool_choice=chosen, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [call.function.name for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []] == ["other"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": TOOL_SCHEMA}}
    fitting = await create(model="demo", messages=ASK, response_format=wanted)
    assert json.loads(fitting.choices[0].message.content) == SIMPLEST


async def test_openai_python_asks_for_responses(openai_client: openai.AsyncOpenAI) -> None:
    create: Any = openai_client.responses.create
    whole = await create(model="demo", input="why is the sky blue", reasoning={"effort": "low"})
    assert (whole.output_text, whole.output[0].summary[0].text) == (REPLY, demo_answers.THOUGHT)
    assert (whole.usage.input_tokens, whole.usage.output_tokens > REPLY_TOKENS) == (PROMPT_TOKENS, True)
    tool = {"type": "function", **TOOL["function"]}
    events = [event async for event in await create(model="demo", input=ASK, tools=[tool], stream=True)]
    done = events[-1]
    assert (done.type, done.response.output[0].name) == ("response.completed", "weather")
    assert [event.sequence_number for event in events] == [*range(len(events))]
    result = {"type": "function_call_output", "call_id": done.response.output[0].call_id, "output": "9 degrees"}
    async with openai_client.responses.stream(model="demo", input=[*ASK, result], tools=[tool]) as stream:  # type: ignore[list-item]
        assert "9 degrees" in (await stream.get_final_response()).output_text
    wanted = {"format": {"type": "json_schema", "name": "w", "schema": TOOL_SCHEMA}}
    assert json.loads((await create(model="demo", input="x", text=wanted)).output_text) == SIMPLEST


async def test_anthropic_python_uses_tools_and_thoughts(anthropic_client: anthropic.AsyncAnthropic) -> None:
    tool: Any = {"name": "weather", "input_schema": TOOL_SCHEMA}
    given: Any = {"model": "demo", "max_tokens": 99, "messages": ASK, "tools": [tool]}
    whole = await anthropic_client.messages.create(**given, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block.type for block in whole.content] == ["thinking", "tool_use"]
    async with anthropic_client.messages.stream(**given) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, [block.input for block in final.content if block.type == "tool_use"]) == (
        "tool_use",
        [SIMPLEST],
    )
    told = [*ASK, {"role": "system", "content": "other tools: weather, files"}]  # As Claude Code does.
    after = await anthropic_client.messages.create(**given | {"messages": told, "tools": [tool, tool | {"name": "x"}]})
    assert [block.text for block in after.content if block.type == "text"] == [REPLY]
    result: Any = [{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "9 degrees"}]}]
    after = await anthropic_client.messages.create(**given | {"messages": [*ASK, {"role": "user", "content": result}]})
    assert after.content[0].type == "text"
    assert "9 degrees" in after.content[0].text


async def test_nothing_is_waited_for_after_the_last_item() -> None:
    """As in Ollama. Clients stop reading where the answer ends; this would take an hour."""
    assert [item async for item in DemoUpstream(token_delay=3600)._paced(["the only one"])] == ["the only one"]


async def test_openai_python_gets_embeddings(openai_client: openai.AsyncOpenAI) -> None:
    packed = await openai_client.embeddings.create(model="demo", input=["a", "b"])
    plain = await openai_client.embeddings.create(model="demo", input=["a", "b"], encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1]
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding)


async def test_openai_python_meets_an_unknown_model(openai_client: openai.AsyncOpenAI) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        await openai_client.chat.completions.create(model="nope", messages=ASK)


async def test_anthropic_python(anthropic_client: anthropic.AsyncAnthropic) -> None:
    whole = await anthropic_client.messages.create(model="demo", messages=ASK, max_tokens=99)
    async with anthropic_client.messages.stream(model="demo", messages=ASK, max_tokens=99) as stream:
        said = "".join([text async for text in stream.text_stream])
        usage = (await stream.get_final_message()).usage
    assert whole.content[0].type == "text"
    assert whole.content[0].text == said == REPLY
    assert (usage.input_tokens, usage.output_tokens) == (PROMPT_TOKENS, REPLY_TOKENS)
    assert whole.stop_reason == "end_turn"


async def test_anthropic_python_meets_an_unknown_model(anthropic_client: anthropic.AsyncAnthropic) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        await anthropic_client.messages.create(model="nope", messages=ASK, max_tokens=99)


# --- the command ---


async def run(*arguments: str) -> asyncio.subprocess.Process:
    command = [sys.executable, TOOLS, "demo_upstream", *arguments]
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_says_where_it_is_and_ends_well(end: signal.Signals) -> None:
    process = await run("--port", "0", "--token-delay", "60")
    assert process.stdout
    line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode()
    said, _, port = line.rstrip().rpartition(":")
    assert said == "Demo upstream (a fake Ollama server) on http://127.0.0.1"
    client = Client(*await asyncio.open_connection("127.0.0.1", int(port)))
    client.send("POST /api/chat", CHAT)
    await client.head()
    process.send_signal(end)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    client.writer.close()
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_the_command_says_that_the_port_is_taken(demo: DemoUpstream) -> None:
    process = await run("--port", str(demo.port))
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert err.decode().startswith(f"cannot listen on 127.0.0.1:{demo.port} (")
    assert err.count(b"\n") == 1
