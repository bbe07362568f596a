"""What mitmweb shows of a body: the conversation in it, whatever of it is there and whatever it is made of.

conversations.json is cut from recordings of a real Ollama (0.33, tiny random models: the text is gibberish by nature).
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import contentviews
from mitmproxy.contentviews import prettify_message
from mitmproxy.contentviews._registry import ContentviewRegistry
from mitmproxy.http import Headers, HTTPFlow
from mitmproxy.test import taddons, tflow

from ollama_auth.mitmweb import contentview
from ollama_auth.mitmweb.contentview import ConversationView, render
from ollama_auth.ollama_api import conversation
from ollama_auth.ollama_api.conversation import (
    MAX_PARTS,
    MAX_READ,
    Conversation,
    Kind,
    size_of,
)
from ollama_auth.ollama_api.routes import _ROUTES, RouteClass, route
from tests.harness.cases import each_of

RECORDED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "conversations.json").read_text("utf-8"))
WHOLE = [name for name in RECORDED if not name.startswith(("err-", "runner-", "server-"))]
NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"


CONVERSATIONS = sorted(path for (_, path), found in _ROUTES.items() if found.conversation)


def read_request(path: bytes, body: bytes) -> Conversation:
    return conversation.read_request(route(b"POST", path).conversation, body)


def read_answer(path: bytes, content_type: str, body: bytes) -> Conversation:
    return conversation.read_answer(route(b"POST", path).conversation, content_type, body)


def recorded(name: str, end: int | None = None) -> Conversation:
    one = RECORDED[name]
    return read_answer(one["path"].encode(), one["type"], one["answer"].encode()[:end])


def answer(path: str, kind: str, *found: object) -> Conversation:
    """An answer of these objects."""
    if kind == JSON:
        return read_answer(path.encode(), kind, json.dumps(found[0]).encode())
    form = "data: {}\n\n" if kind == SSE else "{}\n"
    return read_answer(path.encode(), kind, "".join(form.format(json.dumps(one)) for one in found).encode())


def parts(found: Conversation) -> list[tuple[str, str, str, str]]:
    return [(part.role, part.kind.value, part.name, part.text) for part in found.parts.values()]


# What was recorded.


@each_of("name", WHOLE)
def test_an_answer(name: str) -> None:
    found = recorded(name)
    assert [(part.role, part.kind) for part in found.parts.values()] == [("assistant", Kind.TEXT)]
    assert found.model == "tiny"
    assert found.ended
    assert not found.errors
    assert found.finish_reason in ("length", "completed", "max_tokens")
    if name != "v1-chat-stream":  # No client asked for the figures.
        assert found.completion_tokens == 20
        assert found.prompt_tokens in (21, 25)
    assert (found.speed is not None) == name.startswith(("chat", "generate"))


def test_a_stream_says_what_a_whole_answer_says() -> None:
    for name in ("chat", "generate"):
        assert parts(recorded(f"{name}-stream")) == parts(recorded(f"{name}-nostream"))
    assert parts(recorded("v1-chat-stream-usage")) == parts(recorded("v1-chat-nostream"))


@each_of("name", RECORDED)
def test_a_request(name: str) -> None:
    one = RECORDED[name]
    found = read_request(one["path"].encode(), one["request"].encode())
    if name != "err-chat-bad-json":
        assert [(part.role, part.kind) for part in found.parts.values()] == [("user", Kind.TEXT)]
        assert found.model
        assert found.ended
        assert not found.errors


@pytest.mark.slow
@each_of("name", WHOLE)
def test_a_stream_cut_at_any_byte_shows_what_had_come(name: str) -> None:
    body, whole, had = RECORDED[name]["answer"].encode(), parts(recorded(name))[0][3], ""
    for end in range(0, len(body) - 3, 7):
        found = recorded(name, end)
        text = "".join(part.text for part in found.parts.values())
        assert whole.startswith(text)
        assert text.startswith(had)
        if not found.ended or found.errors:
            assert "(incomplete" in render(found, body[:end])
        had = text
    assert had == whole or RECORDED[name]["type"].startswith(JSON)


@each_of(
    ("name", "error"),
    [
        ("err-chat-unknown-model", "model 'nope' not found"),
        ("err-v1-chat-unknown-model", "model 'nope' not found"),
        ("err-v1-messages-unknown-model", "model 'nope' not found"),
        ("runner-killed-chat-stream", "an error was encountered while running the model: unexpected EOF"),
        ("runner-killed-v1-chat-stream", "the server failed"),
    ],
)
def test_errors(name: str, error: str) -> None:
    found = recorded(name)
    assert found.errors == [error]
    assert f"error: {error}"[:40] in render(found, b"")


@each_of("name", ["v1-messages", "v1-responses"])
def test_a_stream_that_just_stops_is_incomplete(name: str) -> None:
    found = recorded(f"runner-killed-{name}-stream")
    assert found.parts
    assert "(incomplete" in render(found, b"")


# Thinking, tools and images.

CALL = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
OPENAI_CALLS = [
    {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"ci'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "Oslo"}'}}]},
    {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "time", "arguments": "{}"}}]},
]
MESSAGE_BLOCKS: list[dict[str, Any]] = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "weather", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city": '}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Oslo"}'}},
]
RESPONSE_EVENTS: list[dict[str, Any]] = [
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "hm"},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "name": "weather"}},
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"city": "Oslo"}'},
]
OUTPUT = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "name": "weather", "arguments": '{"city": "Oslo"}'},
]
THOUGHT, CALLED = ("assistant", "thinking", "", "hm"), ("assistant", "tool call", "weather", '{"city": "Oslo"}')


@each_of(
    ("path", "kind", "objects"),
    [
        ("/api/chat", NDJSON, [{"message": {"thinking": "h"}}, {"message": {"thinking": "m", "tool_calls": [CALL]}}]),
        ("/api/chat", JSON, [{"message": {"role": "assistant", "thinking": "hm", "tool_calls": [CALL]}, "done": True}]),
        ("/v1/messages", SSE, MESSAGE_BLOCKS),
        ("/v1/responses", SSE, RESPONSE_EVENTS),
        ("/v1/responses", JSON, [{"object": "response", "status": "completed", "output": OUTPUT}]),
        (
            "/v1/messages",
            JSON,
            [
                {
                    "type": "message",
                    "content": [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}},
                    ],
                }
            ],
        ),
    ],
)
def test_thinking_and_a_tool_call(path: str, kind: str, objects: list[object]) -> None:
    assert parts(answer(path, kind, *objects)) == [THOUGHT, CALLED]


def test_tool_calls_in_pieces() -> None:
    chunks = [{"model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in OPENAI_CALLS]
    found = answer("/v1/chat/completions", SSE, *chunks)
    assert parts(found) == [CALLED, ("assistant", "tool call", "time", "{}")]
    assert "assistant calls weather:\n" in render(found, b"")


def test_two_calls_of_one_tool_are_two() -> None:
    found = answer("/api/chat", NDJSON, {"message": {"tool_calls": [CALL, CALL]}}, {"message": {"tool_calls": [CALL]}})
    assert parts(found) == [CALLED] * 3


PIXELS = "A" * 4000
SAID = [("system", "text", "", "be brief"), ("user", "text", "", "what is it"), ("user", "media", "", "image, 3.0 kB")]
OTHER = [*SAID[:2], ("user", "media", "", "image (image/png), 3.0 kB")]
TEXT = {"type": "text", "text": "what is it"}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PIXELS}


@each_of(
    ("path", "asked", "said"),
    [
        (
            "/api/chat",
            {
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "what is it", "images": [PIXELS]},
                ]
            },
            SAID,
        ),
        ("/api/generate", {"system": "be brief", "prompt": "what is it", "images": [PIXELS]}, SAID),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {
                        "role": "user",
                        "content": [
                            TEXT,
                            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}"}},
                        ],
                    },
                ]
            },
            OTHER,
        ),
        (
            "/v1/responses",
            {
                "instructions": "be brief",
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "what is it"},
                            {"type": "input_image", "image_url": f"data:image/png;base64,{PIXELS}"},
                        ],
                    }
                ],
            },
            OTHER,
        ),
        (
            "/v1/messages",
            {
                "system": "be brief",
                "messages": [{"role": "user", "content": [TEXT, {"type": "image", "source": SOURCE}]}],
            },
            OTHER,
        ),
    ],
)
def test_system_prompt_and_image_of_a_request(
    path: str, asked: dict[str, object], said: list[tuple[str, str, str, str]]
) -> None:
    """Of an image its size is shown."""
    body = json.dumps(asked).encode()
    found = read_request(path.encode(), body)
    assert parts(found) == said
    assert PIXELS[:500] not in render(found, body)


@each_of("tool", [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "name": "weather"}])
def test_tools_that_are_offered(tool: dict[str, object]) -> None:
    found = read_request(b"/api/chat", json.dumps({"model": "m", "tools": [tool], "messages": []}).encode())
    assert found.tools == ["weather"]
    assert "tools: weather" in render(found, b"")


def test_results_of_tools() -> None:
    native = {"messages": [{"role": "tool", "tool_name": "weather", "content": "rain"}]}
    block = {"type": "tool_result", "tool_use_id": "id-1", "content": [{"type": "text", "text": "rain"}]}
    item = {"type": "function_call_output", "call_id": "id-1", "output": "rain"}
    assert parts(read_request(b"/api/chat", json.dumps(native).encode())) == [
        ("tool", "tool result", "weather", "rain")
    ]
    asked = {"messages": [{"role": "user", "content": [block]}]}
    assert parts(read_request(b"/v1/messages", json.dumps(asked).encode())) == [("user", "tool result", "id-1", "rain")]
    assert parts(read_request(b"/v1/responses", json.dumps({"input": [item]}).encode())) == [
        ("tool", "tool result", "id-1", "rain")
    ]


# What is shown.


def test_the_first_line_tells_model_tokens_speed_and_end() -> None:
    text = render(recorded("chat-stream"), RECORDED["chat-stream"]["answer"].encode())
    assert text.splitlines()[0] == "tiny · 25 prompt + 20 answer · 4478.3 tokens/s · end: length"
    assert '"eval_count":20' in text.partition("raw")[2]


def test_no_text_can_look_like_what_somebody_else_says() -> None:
    said = "hello\nsystem:\r  obey\u2028system:\x0csystem:"
    body = json.dumps({"messages": [{"role": "user\nsystem:", "content": said}]}).encode()
    shown = render(read_request(b"/api/chat", body), b"").splitlines()
    assert [line for line in shown if line[:1].strip()] == ["user system::", "──── raw, 0 B ────"]


def test_lines_are_short_and_nothing_is_lost() -> None:
    text = "word " * 100 + "x" * 200 + "\n\n    indented"
    shown = contentview.indent(text)
    assert max(map(len, shown.splitlines())) <= contentview.WIDTH + 2
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.endswith("\n      indented")


@each_of(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_560_000, "5.6 MB"), (999_999, "1000.0 kB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size_of(count) == text


# Whatever the bytes are.

NAMES = (
    "model message messages role content thinking tool_calls function name arguments index response done images "
    "choices delta text type usage prompt_tokens output_index item output error input system tools source data url "
    "image_url content_block partial_json summary instructions prompt stop_reason status eval_count eval_duration"
)
TYPES = ["text", "image", "tool_use", "tool_result", "message", "message_start", "content_block_delta", "reasoning"]
TYPES += ["content_block_start", "response.completed", "response.output_text.delta", "response.output_item.added"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TYPES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(NAMES.split())), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.sampled_from(CONVERSATIONS), st.sampled_from([NDJSON, SSE, JSON, ""]), st.lists(VALUES, max_size=4))
def test_anything_in_any_place_is_shown(path: bytes, kind: str, values: list[object]) -> None:
    form = "data: {}\n\n" if kind == SSE else "{}\n"
    body = "".join(form.format(json.dumps(value)) for value in values).encode()
    for found in (read_answer(path, kind, body), read_request(path, body)):
        render(found, body).encode()


@given(st.sampled_from(CONVERSATIONS), st.sampled_from([NDJSON, SSE, JSON]), st.binary(max_size=200))
def test_any_bytes_are_shown(path: bytes, kind: str, body: bytes) -> None:
    render(read_answer(path, kind, body), body).encode()
    render(read_request(path, body), body).encode()


@each_of("body", [b"", b"\n", b"{", b"null", b"[]", b"{}", b"data:", b"data: [DONE]\n\n", b"\xff\xfe"])
@each_of("kind", [NDJSON, SSE, JSON])
def test_bodies_without_a_conversation(kind: str, body: bytes) -> None:
    assert read_answer(b"/api/chat", kind, body).parts == {}
    assert read_request(b"/api/chat", body).parts == {}


def test_halves_of_surrogate_pairs_can_be_sent() -> None:
    found = read_answer(b"/api/chat", NDJSON, b'{"message":{"content":"\\ud83d"}}\n{"message":{"content":"\\ud800"}}\n')
    assert "\\ud83d\\ud800" in render(found, b"")


SIZE = MAX_READ + 1000
HUGE = {
    "one text": b'{"message":{"content":"' + b"x" * SIZE + b'"}}',
    "nothing but line ends": b"\n" * SIZE,
    "lines that are no JSON": b"{\n" * (SIZE // 2),
    "empty objects": b"{}\n" * (SIZE // 3),
    "empty events": b"data:{}\n\n" * (SIZE // 9),
    "one text of line ends": b'{"message":{"content":"' + b"\\n" * (MAX_READ // 2 - 100) + b'"}}',
    "messages": b'{"messages":[' + b'{"content":"a"},' * (MAX_READ // 17) + b"{}]}",
    "calls": b'{"message":{"tool_calls":[{"function":{"name":"a","arguments":{}}}]}}\n' * (SIZE // 70),
    "tools": b'{"tools":[' + b'{"name":"a"},' * (MAX_READ // 14) + b"{}]}",
    "depth": b'{"message":{"content":' * (SIZE // 22),
    "digits": b'{"eval_count":' + b"1" * SIZE + b"}",
    "bytes": bytes(range(256)) * (SIZE // 256),
}


@pytest.mark.slow
@each_of("name", HUGE)
def test_huge_bodies_take_bounded_time_and_room(name: str) -> None:
    body, started = HUGE[name], time.process_time()
    for found in (
        read_answer(b"/api/chat", NDJSON, body),
        read_answer(b"/v1/messages", SSE, body),
        read_request(b"/api/chat", body),
    ):
        assert len(found.parts) <= MAX_PARTS
        assert len(render(found, body)) < 2_000_000
    assert time.process_time() - started < 15, "some 0.5 s, unless it is quadratic"


def test_what_is_left_out_is_said() -> None:
    body = json.dumps({"messages": [{"content": str(number)} for number in range(MAX_PARTS + 5)]}).encode()
    assert "(5 further parts are not shown)" in render(read_request(b"/api/chat", body), body)


# As mitmproxy calls it.


def flow_of(path: str, kind: str, request: bytes, response: bytes) -> HTTPFlow:
    flow = tflow.tflow(resp=True)
    flow.request.method, flow.request.path, flow.request.content = "POST", path, request
    assert flow.response
    flow.response.headers, flow.response.content = Headers([(b"content-type", kind.encode())]), response
    return flow


@pytest.fixture
def registry() -> ContentviewRegistry:
    """Those of mitmproxy, and ours."""
    ours = ContentviewRegistry()
    for view in contentviews.registry.values():
        ours.register(view)
    ours.register(ConversationView())
    return ours


@pytest.mark.parametrize("name", RECORDED)
def test_mitmproxy_chooses_the_view_by_itself(name: str, registry: ContentviewRegistry) -> None:
    one = RECORDED[name]
    flow = flow_of(one["path"], one["type"], one["request"].encode(), one["answer"].encode())
    with taddons.context():
        shown = [prettify_message(message, flow, registry=registry) for message in (flow.request, flow.response)]  # type: ignore[arg-type]
    assert [result.view_name for result in shown] == ["Conversation", "Conversation"]
    assert "user:\n  " in shown[0].text or name == "err-chat-bad-json"


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/api/tags", JSON, b'{"models":[]}'),
        ("/api/chat", "text/plain", b"404 page not found"),
        ("/api/chat", NDJSON, b""),
        ("/v1/chat/completions/more", JSON, b"{}"),
        ("/other", NDJSON, b"{}"),
    ],
)
def test_what_is_no_conversation_is_left_to_other_views(
    path: str, kind: str, body: bytes, registry: ContentviewRegistry
) -> None:
    flow = flow_of(path, kind, b"no json", body)
    with taddons.context():
        for message in (flow.request, flow.response):
            assert message
            assert prettify_message(message, flow, registry=registry).view_name != "Conversation"


def test_the_speed_that_was_measured_is_shown(registry: ContentviewRegistry) -> None:
    one = RECORDED["v1-chat-stream"]
    flow = flow_of(one["path"], one["type"], b"{}", one["answer"].encode())
    flow.metadata["ollama_speed"] = 12.3
    with taddons.context():
        assert flow.response
        assert "12.3 tokens/s" in prettify_message(flow.response, flow, registry=registry).text


def test_a_flow_that_is_no_http_is_left_alone() -> None:
    view = ConversationView()
    for metadata in (contentviews.Metadata(), contentviews.Metadata(flow=tflow.ttcpflow())):
        assert view.render_priority(b"{}", metadata) < 0
        assert view.prettify(b"{}", metadata)


def test_every_path_that_is_read_is_one_that_infers() -> None:
    assert {route(b"POST", path).route_class for path in CONVERSATIONS} == {RouteClass.INFER}
    assert b"/api/chat" in CONVERSATIONS
