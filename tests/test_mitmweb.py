"""A real browser shows a chat through the gate in mitmweb: when it is over, and while it streams."""

import json
import os
import re
import time
from pathlib import Path

from browser import Page, browse
from edges import Line, Scripted
from mitmweb import Mitmweb
from support import BEARER, KEY, Upstream, Wire, ask, chat, head, wait_until

PICTURE = "iVBORw0KGgo" + "A" * 65_525
ASKED: dict[str, object] = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "You are a gardener. Answer in one sentence."},
        {"role": "user", "content": "What grows in this picture, and when do I water it?", "images": [PICTURE]},
    ],
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
}


class Model:
    """An upstream that thinks, uses a tool, and answers."""

    def __init__(self) -> None:
        self.upstream = Scripted().start(self.play)

    def play(self, line: Line) -> None:
        head_ = line.head().lower()
        length = int(head_.partition(b"content-length:")[2].split(b"\r")[0])
        while len(line.received) < length:
            line.received += line.socket.recv(65536)
        path = head_.split()[1].decode()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % TYPES[path])
        for data in ANSWERS[path]:
            time.sleep(0.02)
            line.send(b"%x\r\n%s\r\n" % (len(data), data))
        line.send(b"0\r\n\r\n")


def native(model: str, messages: list[dict[str, object]], prompt: int, answer: int) -> list[bytes]:
    """A stream of /api/chat."""
    lines: list[dict[str, object]] = [{"model": model, "message": m | {"role": "assistant"}} for m in messages]
    end = {"done_reason": "stop", "prompt_eval_count": prompt, "eval_count": answer}
    lines += [{"model": model, "message": {"role": "assistant", "content": ""}, "done": True} | end]
    return [json.dumps({"done": False} | line, separators=(",", ":")).encode() + b"\n" for line in lines]


def words(name: str, text: str) -> list[dict[str, object]]:
    """Pieces of a text, as a model makes them."""
    return [{name: word} for word in re.findall(r"\S+\s*", text)]


SSE = b"text/event-stream"
TYPES = {"/api/chat": b"application/x-ndjson", "/v1/chat/completions": SSE, "/v1/messages": SSE}
CALL: dict[str, object] = {
    "content": "",
    "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Bergen", "days": 3}}}],
}
ANSWERS = {
    "/api/chat": native(
        "qwen3:8b",
        [
            *words("thinking", "The picture shows basil on a windowsill. Whether to water it depends on the rain."),
            *words("content", "This is basil. Let me see what the weather does before I tell you when to water it."),
            CALL,
        ],
        219,
        57,
    ),
    "/v1/chat/completions": [
        b'data: {"model":"llama3.2:3b","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
    ]
    * 20
    + [
        b'data: {"model":"llama3.2:3b","choices":[],"usage":{"prompt_tokens":31,"completion_tokens":20}}\n\n'
        b"data: [DONE]\n\n"
    ],
    "/v1/messages": [
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"qwen3:8b","usage":{}}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
}


def post(web: Mitmweb, path: str, body: bytes, key: str = KEY) -> int:
    fields = (f"Authorization: Bearer {key}", "Content-Type: application/json")
    return ask(web.port, "POST", path, *fields, body=body).status


def open_flow(page: Page, web: Mitmweb, flow_id: str, tab: str) -> None:
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"{web.page}#/flows/{flow_id}/{tab}")


def test_a_chat_is_shown_as_a_conversation(tmp_path: Path) -> None:
    model = Model()
    with Mitmweb(model.upstream.url) as web, browse("about:blank", tmp_path / "profile") as page:
        assert post(web, "/v1/chat/completions", chat(stream=True)) == 200
        assert post(web, "/api/chat", chat(), "not-a-key-of-ours") == 401
        assert post(web, "/v1/messages", chat(stream=True)) == 200
        assert post(web, "/api/chat", json.dumps(ASKED).encode()) == 200
        flow = web.flow("/api/chat", "tokens")
        open_flow(page, web, flow["id"], "request")
        shown = page.wait_for("system:", "You are a gardener.", "tools: get_weather", "image, 49.2 kB")
        assert "refused: unknown" in shown
        assert "default · qwen3:8b · 219 + 57 tokens" in shown
        open_flow(page, web, flow["id"], "response")
        shown = page.wait_for("assistant, thinking:", "basil on a windowsill", "assistant:", "Let me see what")
        assert 'assistant calls get_weather:\n  {"city": "Bergen", "days": 3}' in shown
        assert re.search(r"qwen3:8b · 219 prompt \+ 57 answer · [\d.]+ tokens/s · end: stop", shown)
        assert "Conversation" in shown
        assert "raw, " in shown
        page.screenshot(Path(os.environ.get("SCREENSHOT") or tmp_path / "mitmweb.png"))
    model.upstream.stop()


def test_a_chat_is_shown_while_it_streams(upstream: Upstream, tmp_path: Path) -> None:
    """Nobody has to reload the page."""
    with Mitmweb(upstream.url) as web, browse("about:blank", tmp_path / "profile") as page:
        upstream.hold()
        body = chat()
        with Wire(web.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
            wire.read_until(b'"done":false}')
            flow = web.flow("/api/chat")
            open_flow(page, web, flow["id"], "response")
            shown = page.wait_for("assistant:", "You", "(incomplete: this is what has come so far)", "▶")
            assert "came all the way" not in shown
            upstream.go_on()
            wire.read_until(b"\r\n0\r\n\r\n")
            page.wait_for("came all the way and back.", "end: stop", "31 tokens")


def test_a_stream_grows_on_the_page(tmp_path: Path) -> None:
    upstream = Upstream(token_delay=0.1)
    try:
        with Mitmweb(upstream.url) as web, browse("about:blank", tmp_path / "profile") as page:
            body = chat()
            with Wire(web.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body) as wire:
                wire.read_until(b'"done":false}')
                flow = web.flow("/api/chat")
                open_flow(page, web, flow["id"], "response")
                lengths: set[int] = set()

                def grown() -> bool:
                    lengths.add(len(web.content(flow)))
                    return len(lengths) > 3

                wait_until(grown, "the answer to be shown in steps")
                wire.read_until(b"\r\n0\r\n\r\n")
                page.wait_for("came all the way and back.")
    finally:
        upstream.stop()
