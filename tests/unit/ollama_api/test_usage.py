"""Tokens, model and end of an answer, read as it passes; what a model says can't change what is counted.

The bodies are cut from recordings of a real Ollama (0.33, tiny random models: the text is gibberish by nature).
"""

import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api import usage as module
from ollama_auth.ollama_api.json_scanner import MAX_TOKEN
from ollama_auth.ollama_api.routes import route
from ollama_auth.ollama_api.usage import BYTES_PER_TOKEN, MAX_LINE, Usage, UsageReader
from tests.harness.cases import each_of

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"
HEAD = b'"model":"tiny","created_at":"2026-11-23T09:39:33.325531638Z"'
CHAT = b"{" + HEAD + b',"message":{"role":"assistant","content":"%s"},"done":false}\n'
GENERATE = b"{" + HEAD + b',"response":"%s","done":false}\n'
COUNTS = b'"load_duration":1559768,"prompt_eval_count":25,"prompt_eval_duration":1074000,"eval_count":20'
END = b'"done":true,"done_reason":"length","total_duration":12077165,' + COUNTS + b',"eval_duration":4466000'
CHAT_END = b"{" + HEAD + b',"message":{"role":"assistant","content":""},' + END + b"}\n"
CONTEXT_END = b"{" + HEAD + b',"response":"","context":[84,82,68,81,25],' + END + b"}\n"
LOGPROBS = (
    b',"logprobs":[{"token":"f","logprob":-4.474888324737549,"bytes":[102],"top_logprobs":'
    b'[{"token":"\\"","logprob":-2.690523624420166,"bytes":[34]}]}]}'
)

CHUNK = b'data: {"id":"chatcmpl-819","object":"chat.completion.chunk","created":1795426774,"model":"tiny",'
CHUNK += b'"system_fingerprint":"fp_ollama","choices":['
V1_CHAT = CHUNK + b'{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
V1_CHAT_END = CHUNK + b'{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
V1_USAGE = b'"usage":{"prompt_tokens":25,"completion_tokens":20,"total_tokens":45}}'
V1_CHAT_USAGE = CHUNK + b"]," + V1_USAGE + b"\n\n"
DONE = b"data: [DONE]\n\n"
TEXT = b'data: {"id":"cmpl-334","object":"text_completion","created":1795426774,"choices":['
TEXT_TAIL = b',"model":"tiny","system_fingerprint":"fp_ollama"'
NO_USAGE = b'"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n\n'
V1_TEXT = TEXT + b'{"text":"%s","index":0,"finish_reason":null}]' + TEXT_TAIL
V1_TEXT_END = TEXT + b'{"text":"","index":0,"finish_reason":"length"}]' + TEXT_TAIL

MESSAGE_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_4675bea3","type":"message",'
    b'"role":"assistant","model":"tiny","content":[],"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
MESSAGE = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%s"}}\n\n'
)
MESSAGE_END = (
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},'
    b'"usage":{"input_tokens":25,"output_tokens":20}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)

RESPONSE = (
    b'event: response.%s\ndata: {"response":{"background":false,"error":null,"id":"resp_441378","instructions":null,'
    b'"metadata":{},"model":"tiny","object":"response","output":%s,"status":"%s","text":{"format":{"type":"text"}},'
    b'"tools":[],"usage":%s},"sequence_number":0,"type":"response.%s"}\n\n'
)
RESPONSE_START = RESPONSE % (b"created", b"[]", b"in_progress", b"null", b"created")
RESPONSE_START += RESPONSE % (b"in_progress", b"[]", b"in_progress", b"null", b"in_progress")
RESPONSE_DELTA = (
    b'event: response.output_text.delta\ndata: {"content_index":0,"delta":"%s","item_id":"msg_326349","logprobs":[],'
    b'"output_index":0,"sequence_number":4,"type":"response.output_text.delta"}\n\n'
)
RESPONSE_USAGE = (
    b'{"input_tokens":25,"input_tokens_details":{"cached_tokens":0},"output_tokens":20,'
    b'"output_tokens_details":{"reasoning_tokens":0},"total_tokens":45}'
)
RESPONSE_TEXT = b'[{"content":[{"text":"%s","type":"output_text"}],"role":"assistant","type":"message"}]'
RESPONSE_PLAIN = (
    b'{"id":"resp_258429","object":"response","status":"completed","incomplete_details":null,"model":"tiny",'
    b'"output":[{"id":"msg_313723","type":"message","status":"completed","role":"assistant","content":[{"type":'
    b'"output_text","text":"%s","annotations":[],"logprobs":[]}]}],"error":null,"tools":[],'
    b'"usage":' + RESPONSE_USAGE + b',"store":false,"metadata":{}}\n'
)


def response_end(text: bytes = b"F rai") -> bytes:
    done = b'event: response.output_text.done\ndata: {"text":"%s","type":"response.output_text.done"}\n\n' % text
    return done + RESPONSE % (b"completed", RESPONSE_TEXT % text, b"completed", RESPONSE_USAGE, b"completed")


def words(template: bytes, *content: bytes) -> bytes:
    """An event for each of three words, or of those given."""
    return b"".join(template % word for word in content or (b"f", b" \\u003e6", b"\\\\\\n"))


@dataclass(frozen=True)
class Case:
    """A whole answer, and what is to be read of it."""

    path: str
    media_type: str
    body: bytes
    expected: Usage
    clean: bool = True

    def reader(self) -> UsageReader:
        return UsageReader(route(b"POST", self.path.encode()).usage, self.media_type, "", 200)

    def read(self, pieces: Iterable[bytes] | None = None) -> Usage:
        reader = self.reader()
        for piece in (self.body,) if pieces is None else pieces:
            reader.feed(piece)
        return reader.finish(self.clean)


WHOLE = Usage("tiny", 25, 20, "length", 3, complete=True)
ONE = replace(WHOLE, events=0)
COUNTED = replace(WHOLE, prompt_tokens=None, completion_tokens=3, estimated=True)
CUT = Usage("tiny", None, 3, None, 3, estimated=True)
MAX_TOKENS = replace(WHOLE, finish_reason="max_tokens")
COMPLETED = replace(WHOLE, finish_reason="completed")
LOADED = Usage("tiny", 0, 0, "load", complete=True)
EMBEDDED = Usage("tiny-embed", 9, complete=True)

CASES = {
    "chat-stream": Case("/api/chat", NDJSON, words(CHAT) + CHAT_END, WHOLE),
    "chat-nostream": Case("/api/chat", JSON, CHAT_END.strip(), ONE),
    "generate-stream": Case("/api/generate", NDJSON, words(GENERATE) + CONTEXT_END, WHOLE),
    "generate-nostream": Case("/api/generate", JSON + "; charset=utf-8", CONTEXT_END.strip(), ONE),
    "generate-logprobs": Case("/api/generate", JSON, CONTEXT_END.replace(b"}\n", LOGPROBS), ONE),
    "generate-logprobs-stream": Case(
        "/api/generate", NDJSON, words(GENERATE.replace(b"}\n", LOGPROBS + b"\n")) + CONTEXT_END, WHOLE
    ),
    "generate-load-only": Case(
        "/api/generate", JSON, b"{" + HEAD + b',"response":"","done":true,"done_reason":"load"}', LOADED
    ),
    "embed": Case(
        "/api/embed",
        JSON,
        b'{"model":"tiny-embed","embeddings":[[0.8746028,-0.034480006],[0.8451835,0.057879813]],'
        b'"total_duration":277296068,"load_duration":258105505,"prompt_eval_count":9}',
        EMBEDDED,
    ),
    "embeddings-legacy": Case(
        "/api/embeddings", JSON, b'{"embedding":[0.8746028542518616,-0.034480009227991104]}', Usage(complete=True)
    ),
    "v1-chat-stream": Case("/v1/chat/completions", SSE, words(V1_CHAT) + V1_CHAT_END + DONE, COUNTED),
    "v1-chat-stream-usage": Case(
        "/v1/chat/completions", SSE, words(V1_CHAT) + V1_CHAT_END + V1_CHAT_USAGE + DONE, WHOLE
    ),
    "v1-chat-nostream": Case(
        "/v1/chat/completions",
        JSON,
        b'{"id":"chatcmpl-616","object":"chat.completion","created":1795426773,"model":"tiny","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":" thr?\\\\ rz"},"finish_reason":"length"}],' + V1_USAGE + b"\n",
        ONE,
    ),
    "v1-completions-stream": Case(
        "/v1/completions", SSE, words(V1_TEXT + b"}\n\n") + V1_TEXT_END + b"}\n\n" + DONE, COUNTED
    ),
    "v1-completions-stream-usage": Case(
        "/v1/completions",
        SSE,
        words(V1_TEXT + b"," + NO_USAGE)
        + (V1_TEXT_END + b"," + NO_USAGE)
        + (TEXT + b"]" + TEXT_TAIL + b"," + V1_USAGE + b"\n\n" + DONE),
        WHOLE,
    ),
    "v1-completions-nostream": Case(
        "/v1/completions",
        JSON,
        b'{"id":"cmpl-745","object":"text_completion","model":"tiny","choices":[{"text":",Bde tw\\u003ey","index":0,'
        b'"finish_reason":"length"}],' + V1_USAGE + b"\n",
        ONE,
    ),
    "v1-embeddings": Case(
        "/v1/embeddings",
        JSON,
        b'{"object":"list","data":[{"object":"embedding","embedding":[0.8746028,-0.03448],"index":0}],'
        b'"model":"tiny-embed","usage":{"prompt_tokens":9,"total_tokens":9}}\n',
        EMBEDDED,
    ),
    "v1-embeddings-base64": Case(
        "/v1/embeddings",
        JSON,
        b'{"object":"list","data":[{"object":"embedding","embedding":"+OVfP+g6Db374iq9TQ==","index":0}],'
        b'"model":"tiny-embed","usage":{"prompt_tokens":9,"total_tokens":9}}\n',
        EMBEDDED,
    ),
    "v1-messages-stream": Case("/v1/messages", SSE, MESSAGE_START + words(MESSAGE) + MESSAGE_END, MAX_TOKENS),
    "v1-messages-nostream": Case(
        "/v1/messages",
        JSON,
        b'{"id":"msg_83ffcc76","type":"message","role":"assistant","model":"tiny","content":[{"type":"text",'
        b'"text":"F rait"}],"stop_reason":"max_tokens","usage":{"input_tokens":25,"output_tokens":20}}\n',
        replace(MAX_TOKENS, events=0),
    ),
    "v1-responses-stream": Case(
        "/v1/responses", SSE, RESPONSE_START + words(RESPONSE_DELTA) + response_end(), COMPLETED
    ),
    "v1-responses-nostream": Case("/v1/responses", JSON, RESPONSE_PLAIN % b"F rai", replace(COMPLETED, events=0)),
    "runner-killed-chat-stream": Case(
        "/api/chat",
        NDJSON,
        words(CHAT) + b'{"error":"an error was encountered while running the model: unexpected EOF"}\n',
        replace(CUT, error="error"),
    ),
    "runner-killed-v1-chat-stream": Case(
        "/v1/chat/completions",
        SSE,
        words(V1_CHAT) + V1_CHAT.replace(b'"model":"tiny"', b'"model":""') % b"",
        replace(CUT, error="empty_chunk"),
    ),
    "runner-killed-v1-messages-stream": Case("/v1/messages", SSE, MESSAGE_START + words(MESSAGE), CUT),
    "runner-killed-v1-responses-stream": Case("/v1/responses", SSE, RESPONSE_START + words(RESPONSE_DELTA), CUT),
    "server-killed-chat-stream": Case("/api/chat", NDJSON, words(CHAT), CUT, clean=False),
    "client-abort": Case("/api/chat", NDJSON, words(CHAT) + CHAT[:70], CUT, clean=False),
}
STREAMS = {name: case for name, case in CASES.items() if case.media_type in (NDJSON, SSE)}
EVENTS = {name: case for name, case in CASES.items() if case.media_type == SSE}


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """A test for each of them."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


# -- Every form, however it comes ------------------------------------------------------------------------------------


@each(CASES)
def test_what_is_read_of_a_recorded_answer(case: Case) -> None:
    assert case.read() == case.expected


@each(CASES)
def test_it_is_the_same_however_the_answer_is_split(case: Case) -> None:
    assert case.read(cut(case.body, 1)) == case.expected
    for at in range(len(case.body) + 1):
        assert case.read((case.body[:at], b"", case.body[at:], b"")) == case.expected, case.body[:at]


@each(CASES)
def test_lines_too_long_to_be_held_are_read_as_well(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 30)
    for size in (1, 7, 29, 30, 31, 100, 10_000):
        assert case.read(cut(case.body, size)) == case.expected


@each(STREAMS)
def test_lines_may_end_in_crlf(case: Case) -> None:
    assert replace(case, body=case.body.replace(b"\n", b"\r\n")).read() == case.expected


@each(EVENTS)
def test_events_may_be_written_in_other_ways(case: Case) -> None:
    """No space after the colon, comments and other fields, names left out, data on many lines."""
    bare = case.body.replace(b"data: ", b"data:").replace(b"event: ", b"event:")
    chatty = case.body.replace(b"data: ", b": data: [DONE]\nid: 7\nretry: 1\n\n:\ndata\ndata: ")
    nameless = re.sub(rb"event: .*\n", b"", case.body)
    for body in (bare, nameless, re.sub(rb"data: (\{.*)", many_lines, case.body)):
        assert replace(case, body=body).read() == case.expected
        assert replace(case, body=body).read(cut(body, 3)) == case.expected
    if case.path.startswith(("/v1/chat", "/v1/completions")):  # the events of the others need their name
        assert replace(case, body=chatty).read() == case.expected


def many_lines(found: re.Match[bytes]) -> bytes:
    return b"\n".join(b"data: " + line for line in json.dumps(json.loads(found[1]), indent=1).encode().split(b"\n"))


@each(CASES)
def test_spaces_between_the_tokens_of_json_change_nothing(case: Case) -> None:
    def spaced(found: re.Match[bytes]) -> bytes:
        return json.dumps(json.loads(found[0]), separators=(" , ", "\t: "), ensure_ascii=False).encode()

    body = re.sub(rb"^\{.*\}|(?<=^data: )\{.*\}", spaced, case.body, flags=re.MULTILINE)
    assert replace(case, body=body).read(cut(body, 11)) == case.expected


@each(STREAMS)
def test_a_broken_stream_counts_as_far_as_it_was_seen(case: Case) -> None:
    seen = [replace(case, body=case.body[:at], clean=False).read() for at in range(len(case.body.rstrip()))]
    assert not any(usage.complete for usage in seen)
    assert [usage.events for usage in seen] == sorted(usage.events for usage in seen)
    for usage in seen:
        assert usage.model in (None, case.expected.model)
        assert usage.prompt_tokens in (None, case.expected.prompt_tokens)
        assert usage.completion_tokens in (None, usage.events, case.expected.completion_tokens)
        assert usage.estimated == (usage.completion_tokens == usage.events)


@each({name: case for name, case in CASES.items() if case.expected.complete})
def test_an_answer_that_stops_early_or_breaks_off_is_not_complete(case: Case) -> None:
    stream = not case.media_type.startswith("application/json")
    assert replace(case, clean=False).read().complete is stream, "clients close once they have read a stream's end"
    assert not replace(case, body=case.body.rstrip()[:-1]).read().complete


def test_the_name_of_an_event_is_not_that_of_the_next() -> None:
    nameless = MESSAGE_END.replace(b"event: message_delta\n", b"")
    case = CASES["v1-messages-stream"]
    body = MESSAGE_START + words(MESSAGE) + b'event: ping\ndata: {"type":"ping"}\n\n' + nameless
    assert replace(case, body=body).read() == case.expected


def test_a_long_comment_is_none_of_the_data() -> None:
    comment = b': {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}' + b" " * MAX_LINE + b"\n\n"
    case = CASES["v1-chat-stream"]
    assert replace(case, body=comment + case.body).read() == case.expected


def test_the_first_token_can_be_timed() -> None:
    reader = CASES["v1-responses-stream"].reader()
    reader.feed(RESPONSE_START)
    assert reader.events == 0
    reader.feed(RESPONSE_DELTA % b"F")
    assert reader.events == 1


def test_the_last_line_needs_no_line_end() -> None:
    assert replace(CASES["chat-stream"], body=(words(CHAT) + CHAT_END).rstrip()).read() == WHOLE


@each_of(
    ("path", "media_type", "encoding", "status", "expected"),
    [
        ("/api/chat", NDJSON, "", 500, Usage(complete=True)),
        ("/api/chat", NDJSON, "gzip", 200, Usage(complete=True, compressed=True, unread=True)),
        ("/api/chat", NDJSON, "Identity", 200, replace(WHOLE, events=1)),
        ("/api/chat", "Application/X-NDJSON ; x=y", "", 200, replace(WHOLE, events=1)),
        ("/api/chat", "text/plain", "", 200, Usage(complete=True, unread=True)),
        ("/api/tags", JSON, "", 200, Usage(complete=True)),
        ("/v1/models", JSON, "", 200, Usage(complete=True)),
        ("/nothing", NDJSON, "", 200, Usage(complete=True)),
    ],
)
def test_what_is_not_read(path: str, media_type: str, encoding: str, status: int, expected: Usage) -> None:
    """Errors, compressed bodies, and answers that have no tokens."""
    reader = UsageReader(route(b"POST", path.encode()).usage, media_type, encoding, status)
    reader.feed(CHAT % b"f" + CHAT_END)
    assert reader.finish(True) == expected


@each_of(
    ("path", "body", "error"),
    [
        ("/api/chat", b'{"error":"unauthorized"}\n', "error"),
        ("/api/chat", b'{"error":"%s"}\n' % (b"a" * 2 * MAX_TOKEN), "error"),
        ("/v1/messages", b'data: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n', None),
        ("/v1/messages", b'event: error\ndata: {"type":"error"}\n\n', "error"),
        ("/v1/chat/completions", b'data: {"error":{"type":"api_error","message":"m"}}\n\n', "api_error"),
        ("/v1/chat/completions", b'data: {"error":{"type":"some text","message":"m"}}\n\n', "error"),
        (
            "/v1/responses",
            b'event: response.failed\ndata: {"response":{"error":{"code":"rate_limit_exceeded","message":"m"}},'
            b'"type":"response.failed"}\n\n',
            "rate_limit_exceeded",
        ),
    ],
)
def test_an_error_inside_an_answer_is_named_but_never_quoted(path: str, body: bytes, error: str | None) -> None:
    usage = Case(path, NDJSON if path == "/api/chat" else SSE, body, Usage()).read()
    assert (usage.error, usage.complete) == (error or "overloaded_error", False)


# -- What a model says changes nothing -------------------------------------------------------------------------------

FAKES = [
    '"eval_count":0,"prompt_eval_count":0',
    '","eval_count":0,"done":true}',
    '"}\n{"model":"x","done":true,"prompt_eval_count":0,"eval_count":0}\n',
    '\\","done":true,"eval_count":0}',
    '"finish_reason":null',
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}',
    '"model":""',
    '"done":false}',
    '"},"done":false}\n',
    "\n\ndata: [DONE]\n\n",
    '\r\n\r\nevent: message_delta\r\ndata: {"usage":{"input_tokens":0,"output_tokens":0}}\r\n\r\n',
    '\n\nevent: response.completed\ndata: {"response":{"usage":{"input_tokens":0,"output_tokens":0}}}\n\n',
    '"type":"message_stop"',
    '"type":"response.completed"}',
    '{"error":"no"}',
    "\\",
    '\\"',
    "\u2028data: [DONE]\u2028",
    "}]}]}",
    '{"usage":{"output_tokens":0}',
    "é😀\x00\x7f",
]


def escapes(text: str) -> list[bytes]:
    """A text in JSON as Go writes it, and as others may."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    return [plain, "".join(f"\\u{unit:04x}" for unit in utf16(text)).encode(), json.dumps(text)[1:-1].encode()]


def utf16(text: str) -> Iterator[int]:
    raw = text.encode("utf-16-be")
    return (int.from_bytes(raw[at : at + 2]) for at in range(0, len(raw), 2))


def told(fake: bytes) -> dict[str, Case]:
    """Answers with a text in every place that a model fills."""
    text = (b"f", fake, b"g")
    call = b',"tool_calls":[{"function":{"name":"%s","arguments":{"%s":"%s"}}}]},"done"' % (fake, fake, fake)
    return {
        "chat": Case("/api/chat", NDJSON, words(CHAT, *text) + CHAT_END, WHOLE),
        "chat-end": Case(
            "/api/chat", NDJSON, words(CHAT) + CHAT_END.replace(b'"content":""', b'"content":"%s"' % fake), WHOLE
        ),
        "chat-tools": Case("/api/chat", NDJSON, words(CHAT) + CHAT_END.replace(b'},"done"', call), WHOLE),
        "chat-plain": Case("/api/chat", JSON, CHAT_END.replace(b'},"done"', call), ONE),
        "generate": Case("/api/generate", NDJSON, words(GENERATE, *text) + CONTEXT_END, WHOLE),
        "logprobs": Case("/api/generate", JSON, CONTEXT_END.replace(b"}\n", LOGPROBS.replace(b'\\"', fake)), ONE),
        "v1-chat": Case("/v1/chat/completions", SSE, words(V1_CHAT, *text) + V1_CHAT_END + V1_CHAT_USAGE + DONE, WHOLE),
        "v1-text": Case(
            "/v1/completions", SSE, words(V1_TEXT + b"}\n\n", *text) + V1_TEXT_END + b"}\n\n" + DONE, COUNTED
        ),
        "messages": Case("/v1/messages", SSE, MESSAGE_START + words(MESSAGE, *text) + MESSAGE_END, MAX_TOKENS),
        "responses": Case(
            "/v1/responses", SSE, RESPONSE_START + words(RESPONSE_DELTA, *text) + response_end(fake), COMPLETED
        ),
        "responses-plain": Case("/v1/responses", JSON, RESPONSE_PLAIN % fake, replace(COMPLETED, events=0)),
    }


@pytest.mark.slow
@each_of("fake", FAKES)
def test_figures_in_the_text_of_an_answer_are_text(fake: str) -> None:
    for escaped in escapes(fake):
        for name, case in told(escaped).items():
            for read in (case.read(), case.read(cut(case.body, 1))):
                if read.estimated:  # A long text counts by its bytes.
                    assert (read.completion_tokens or 0) <= read.events + len(escaped) // 4 + 1, name
                    read.completion_tokens = case.expected.completion_tokens
                assert read == case.expected, name


@each_of(
    "arguments",
    [
        b'{"done":true,"eval_count":0,"prompt_eval_count":0,"model":"x"}',
        b'{"done":false}',
        b'{"error":"no","done":false,"x":[{"done":false},{"eval_count":0}]}',
        b'{"a\\"done":true,"\\"eval_count":0}',
        b'{"":{"":{"":[[[[{"done":true,"eval_count":0}]]]]}}}',
    ],
)
def test_members_that_a_model_names_are_not_those_of_the_answer(arguments: bytes) -> None:
    """The arguments of a native tool call are an object: here quotes are quotes."""
    call = b',"tool_calls":[{"function":{"name":"f","arguments":%s}}]},"done":' % arguments
    lines = words(CHAT).replace(b'},"done":', call)
    for body, expected in ((lines + CHAT_END.replace(b'},"done":', call), WHOLE), (lines, replace(CUT))):
        case = Case("/api/chat", NDJSON, body, expected)
        read = case.read()
        assert read == case.read(cut(body, 1))
        long = 3 * (len(call) // BYTES_PER_TOKEN) * read.estimated  # A long text counts by its bytes.
        assert expected.events <= (read.completion_tokens or 0) <= (expected.completion_tokens or 0) + long
        assert replace(read, completion_tokens=expected.completion_tokens) == expected


def test_the_texts_of_a_request_that_are_echoed_are_not_read() -> None:
    echo = b'"metadata":{},"tools":[{"parameters":{"usage":{"input_tokens":0},"status":"failed","model":"x"}}]'
    case = CASES["v1-responses-stream"]
    assert replace(case, body=case.body.replace(b'"metadata":{}', echo)).read() == COMPLETED


@each_of(
    ("count", "expected"),
    [
        (b"7", 7),
        (b"0", 0),
        (b"-7", None),
        (b"7.5", None),
        (b"7e3", None),
        (b'"7"', None),
        (b"null", None),
        (b"9" * 15, int("9" * 15)),
        (b"9" * 16, None),
        (b"9" * 5000, None),
        (b"[7]", 20),
        (b'[7],"eval_count":8', 8),
    ],
)
def test_a_count_is_a_number_of_things(count: bytes, expected: int | None) -> None:
    """Anything else is no count; of two members of one name the last that is no container counts."""
    body = CHAT_END.replace(b'"eval_count":20', b'"eval_count":20,"eval_count":' + count)
    for size in (1, 1000, 100_000):
        assert replace(CASES["chat-nostream"], body=body).read(cut(body, size)).completion_tokens == expected


@each_of(
    ("name", "expected"),
    [
        ("hf.co/a/b:Q4_K_M", "hf.co/a/b:Q4_K_M"),
        ("é", "é"),
        ('a"b\\c', 'a"b\\c'),
        ("", None),
        ("a\nb", None),
        ("\ud800", None),
        ("m" * (MAX_TOKEN - 2), "m" * (MAX_TOKEN - 2)),
        ("m" * (MAX_TOKEN - 1), None),
        ("m" * (MAX_TOKEN * 3), None),
    ],
)
def test_a_model_is_a_printable_name_of_bounded_length(name: str, expected: str | None) -> None:
    body = CHAT_END.replace(b'"tiny"', json.dumps(name).encode())
    for size in (1, 1000, 100_000):
        assert replace(CASES["chat-nostream"], body=body).read(cut(body, size)).model == expected


# -- Whatever comes --------------------------------------------------------------------------------------------------

READERS = st.sampled_from([replace(case, body=b"") for case in CASES.values()])
SCRAPS = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\n\n", b"data:", b"event: ", b"null", b"7"]
SCRAPS += [b'"usage":', b'"model":', b'"choices":[', b'"done":true', b'"done":false}', b'"error":', b"[DONE]", b"\xff"]
SCRAPS += [CHAT % b"x", CHAT_END, V1_CHAT % b"x", V1_CHAT_USAGE, MESSAGE % b"x", MESSAGE_END, RESPONSE_START]
garbage = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(SCRAPS), max_size=25).map(b"".join))


@given(READERS, garbage, st.lists(st.integers(1, 40), min_size=1), st.booleans(), st.sampled_from([30, 65_536]))
def test_whatever_comes_is_read_the_same_in_pieces_and_never_raises(
    case: Case, body: bytes, sizes: list[int], clean: bool, max_line: int
) -> None:
    pieces: list[bytes] = []
    rest = body
    while rest:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(rest[:size])
        rest = rest[size:]
    case = replace(case, body=body, clean=clean)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LINE", max_line)
        assert case.read(pieces) == case.read()


@pytest.mark.parametrize(
    "unit", [b"[", b'{"a":', b'"', b"\\", b"1", b" ", b"x\n", b'"model":', b"data: x\n", b"[[1]],"]
)
@pytest.mark.parametrize("start", [b"", b'{"model":', b'{"model":"', b'data: {"choices":[', b'data: {"x":"'])
def test_memory_is_bounded_whatever_comes(start: bytes, unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 2_000)
    body = start + unit * (10_000 // len(unit))
    for name in ("chat-stream", "chat-nostream", "v1-chat-stream", "v1-responses-stream"):
        reader = CASES[name].reader()
        tracemalloc.start()
        for piece in cut(body, 1_000):
            reader.feed(piece)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 8_000 < len(body)
        reader.finish(True)


def test_figures_behind_megabytes_are_found() -> None:
    """Embeddings come first, and a context may be long: neither is held."""
    vector = b"[" + b",".join(b"-0.0%05d" % number for number in range(1024)) + b"]"
    embed = b'{"model":"tiny-embed","embeddings":[' + b",".join([vector] * 200) + b'],"prompt_eval_count":9}'
    context = CONTEXT_END.replace(b"[84,", b"[84," + b"1234567," * 250_000)
    for case, body in ((CASES["embed"], embed), (CASES["generate-stream"], words(GENERATE) + context)):
        assert len(body) > 2_000_000 / 1.2
        assert replace(case, body=body).read(cut(body, 65_536)) == case.expected
