"""The view that shows a request or an answer as a conversation in mitmweb and mitmproxy."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress

from mitmproxy.contentviews import Contentview, Metadata
from mitmproxy.http import HTTPFlow

from ..ollama_api import conversation
from ..ollama_api.conversation import Conversation, ConversationFormat, Kind, Part, size_of
from ..ollama_api.routes import Route, route

MAX_TEXT = 256 * 1024
"""Characters of a conversation that are shown."""
MAX_RAW_LINES, MAX_RAW_LINE = 400, 400
"""Lines that are shown as they were sent, and characters of each."""
MAX_INDENTED = 64 * 1024
"""Bytes of the largest JSON object that is indented: Python takes long for that."""
WIDTH = 64
"""Characters of the longest line of a conversation."""
BLANK = "\n \n"
"""Separates two blocks; mitmweb does not show empty lines."""
_WRAP = re.compile(rf".{{1,{WIDTH}}}(?:\s|$)|.{{1,{WIDTH}}}")
_TYPES = ("application/json", "application/x-ndjson", "text/event-stream")


def render(found: Conversation, body: bytes, speed: float | None = None) -> str:
    """Render a conversation and the body it was read from. `speed`: tokens a second as the gateway measured them."""
    blocks = [facts(found, speed), *(wrapped(f"error: {error}") for error in found.errors)]
    room = MAX_TEXT
    above = None
    for part in found.parts.values():
        text = part.text
        same = part.kind is Kind.MEDIA and part.role == above  # It belongs to the text above.
        cut = " [...]" if len(text) > room else ""
        blocks.append(("" if same else title(part) + "\n") + indent(text[:room]) + cut)
        above = part.role
        room -= len(text)
        if room <= 0:
            blocks.append("(the rest of the conversation is too long to be shown)")
            break
    if found.left_out:
        blocks.append(f"({found.left_out} further parts are not shown)")
    if not found.ended and not found.errors:
        blocks.append("(incomplete: this is what has come so far)")
    # Texts may hold lone surrogates, which can't be encoded.
    return BLANK.join([*filter(None, blocks), "\n".join(raw(body))]).encode("utf-8", "backslashreplace").decode()


def facts(found: Conversation, speed: float | None) -> str:
    """The line about model, tokens, speed and finish reason, and one about the tools offered."""
    speed = speed or found.speed
    counts = (("prompt", found.prompt_tokens), ("answer", found.completion_tokens))
    words = [
        found.model,
        " + ".join(f"{count} {what}" for what, count in counts if count is not None),
        f"{speed:.1f} tokens/s" if speed else None,
        f"end: {found.finish_reason}" if found.finish_reason else None,
    ]
    tools = wrapped(f"tools: {', '.join(found.tools)}") if found.tools else None
    return "\n".join(filter(None, [" · ".join(filter(None, words)), tools]))


def title(part: Part) -> str:
    """The heading of a part. Only headings are not indented, so no text can look like one."""
    titles = {
        Kind.THINKING: f"{part.role}, thinking:",
        Kind.CALL: f"{part.role} calls {part.name or 'a tool'}:",
        Kind.RESULT: f"{part.role}, result of {part.name or 'a tool'}:",
    }
    return titles.get(part.kind) or (f"{part.role}, {part.name}:" if part.name else f"{part.role}:")


def indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in wrapped(text).split("\n"))


def wrapped(text: str) -> str:
    """Wrap lines at WIDTH; mitmweb does not wrap them."""
    return "\n".join(piece.rstrip() for line in text.splitlines() or [""] for piece in _WRAP.findall(line) or [""])


def raw(body: bytes) -> Iterator[str]:
    """Yield a heading and the first lines of the body as it was sent, each cut; a single JSON object is indented."""
    yield f"──── raw, {size_of(len(body))} ────"
    whole = conversation.parse(body) if len(body) <= MAX_INDENTED else None
    if whole is not None:
        with suppress(ValueError, RecursionError):
            body = json.dumps(whole, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    lines = body.split(b"\n", MAX_RAW_LINES)
    for line in lines[:MAX_RAW_LINES]:
        text = line[: 4 * MAX_RAW_LINE].decode("utf-8", "replace").rstrip("\r")[:MAX_RAW_LINE]
        yield text + (f" [... {size_of(len(line))}]" if len(line) > 4 * MAX_RAW_LINE else "")
    if len(lines) > MAX_RAW_LINES and lines[-1]:
        yield f"[... {size_of(len(lines[-1]))} more]"


class ConversationView(Contentview):
    """The view that mitmproxy selects for requests with a conversation, and for their answers."""

    name = "Conversation"
    syntax_highlight = "none"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        reader = format_of(metadata)
        if is_request(metadata):
            return render(conversation.read_request(reader, data), data)
        found = conversation.read_answer(reader, metadata.content_type or "", data)
        measured = metadata.flow.metadata.get("ollama_speed") if metadata.flow else None
        return render(found, data, measured if isinstance(measured, float) else None)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        if not data or not format_of(metadata):
            return -1
        # Ollama accepts requests of any content type.
        if is_request(metadata):
            return 2 if data.lstrip()[:1] == b"{" else -1
        return 2 if (metadata.content_type or "").lower() in _TYPES else -1  # mitmproxy gives it without parameters.


def format_of(metadata: Metadata) -> ConversationFormat | None:
    """The format of the conversation in a flow, or None where there is none."""
    if not isinstance(metadata.flow, HTTPFlow):
        return None
    return route_of(metadata.flow).conversation


def route_of(flow: HTTPFlow) -> Route:
    """The route of a request, whose path begins with that of the endpoint."""
    base = str(flow.metadata.get("ollama_base_path", "")).encode()
    return route(flow.request.data.method, flow.request.data.path.removeprefix(base))


def is_request(metadata: Metadata) -> bool:
    return isinstance(metadata.flow, HTTPFlow) and metadata.http_message is metadata.flow.request
