"""A real browser shows a chat through the gate in mitmweb: when it is over, and while it streams."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.base import KEY, PATIENCE
from tests.harness.browser import Page, chromium, tab
from tests.harness.mitmweb import Mitmweb, start
from tests.harness.upstream import Scripted, Upstream
from tests.harness.wire import Line, ask, chat

TEXT = "document.body.innerText"
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
    end = {"done_reason": "stop", "prompt_eval_count": prompt, "eval_count": answer, "eval_duration": 10**9}
    lines += [{"model": model, "message": {"role": "assistant", "content": ""}, "done": True} | end]
    lines = [line if "done" in line else line | {"done": False} for line in lines]
    return [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]


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
        b'data: {"model":"hf.co/qwen/Qwen-GGUF:Q4_K_M",'
        b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
    ]
    * 20
    + [
        b'data: {"model":"hf.co/qwen/Qwen-GGUF:Q4_K_M","choices":[],'
        b'"usage":{"prompt_tokens":2031,"completion_tokens":20}}\n\n'
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address


async def open_flow(page: Page, web: Mitmweb, tab: str) -> None:
    """The tab of the newest flow."""
    await page.look(1280, height=750)
    await page.open("about:blank")
    await page.open(f"{web.page}#/flows/{web.flows()[-1]['id']}/{tab}")


async def text_with(page: Page, *texts: str) -> str:
    """The text of the page once all of these are in it."""
    return str(await page.until(f"{json.dumps(texts)}.every(t => document.body.innerText.includes(t)) && {TEXT}"))


SEEN = """[...document.querySelectorAll("tbody .col-comment")].map(cell => {
  const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode(), range = document.createRange();
  range.setStart(text, 0);
  range.setEnd(text, Math.max(0, text.data.indexOf("/s ")) + 2);
  return text.data.slice(0, range.endOffset).concat(range.getBoundingClientRect().width < cell.clientWidth - 20);
})"""
"""What the list says of each request up to its speed, and whether there is room for it before it would be cut."""


@pytest.mark.browser
@pytest.mark.slow
async def test_a_chat_is_shown_as_a_conversation(browser: str, tmp_path: Path) -> None:
    model = Model()
    with Mitmweb(model.upstream.url) as web:
        assert post(web, "/v1/chat/completions", chat(stream=True)) == 200
        assert post(web, "/api/chat", chat(), "not-a-key-of-ours") == 401
        assert post(web, "/v1/messages", chat(stream=True)) == 200
        assert post(web, "/api/chat", json.dumps(ASKED).encode()) == 200
        web.flow("/api/chat", "57 tokens")
        async with tab(browser) as page:
            await open_flow(page, web, "request")
            shown = await text_with(page, "system:", "You are a gardener.", "tools: get_weather", "image, 49.2 kB")
            assert "refused: unknown" in shown
            assert "default · qwen3:8b · 219 + 57 tokens" in shown
            await open_flow(page, web, "response")
            shown = await text_with(page, "assistant, thinking:", "basil on a windowsill", "Let me see what")
            assert 'assistant calls get_weather:\n  {"city": "Bergen", "days": 3}' in shown
            assert re.search(r"qwen3:8b · 219 prompt \+ 57 answer · [\d.]+ tokens/s · end: stop", shown)
            assert "Conversation" in shown
            assert "raw, " in shown
            while not (seen := await page.evaluate(SEEN)):
                await asyncio.sleep(0.05)  # The list is drawn anew.
            assert re.sub(r"[\d.]+/s", "0/s", seen[0]) == (
                "200 · default · hf.co/qwen/…GUF:Q4_K_M · 2031 + 20 tokens · 0/strue"
            )
            (tmp_path / "mitmweb.png").write_bytes(await page.screenshot())
    model.upstream.stop()


@pytest.mark.browser
@pytest.mark.slow
async def test_a_chat_is_shown_while_it_streams(browser: str, upstream: Upstream) -> None:
    """Nobody has to reload the page."""
    upstream.hold()
    with Mitmweb(upstream.url) as web, start(web, chat()) as wire:
        async with tab(browser) as page:
            await open_flow(page, web, "response")
            shown = await text_with(page, "assistant:", "You", "(incomplete: this is what has come so far)", "▶")
            assert "came all the way" not in shown
            upstream.go_on()
            wire.read_until(b"\r\n0\r\n\r\n")
            await text_with(page, "came all the way and back.", "end: stop", "31 tokens")


@pytest.mark.browser
@pytest.mark.slow
async def test_a_stream_grows_on_the_page(browser: str) -> None:
    go_on = threading.Semaphore(0)

    def play(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")
        for data in native("m", words("content", "one two three"), 1, 3):
            line.send(data)
            go_on.acquire(timeout=5 * PATIENCE)

    upstream = Scripted().start(play)
    with Mitmweb(upstream.url) as web, start(web, chat()) as wire:
        async with tab(browser) as page:
            await open_flow(page, web, "response")
            for text in ("one", "one two", "one two three"):
                shown = await text_with(page, f"assistant:\n  {text}\n")
                assert "(incomplete" in shown
                go_on.release()
            go_on.release()
            wire.read_all()
            await text_with(page, "one two three", "end: stop")
    upstream.stop()
