"""The body of a request or an answer, in any dialect -> the conversation in it, as people read it. Pure and total.

Whatever the bytes are, something comes out: of a stream that was cut what had come, of what is no conversation nothing.
Time and memory are linear in the body, of which no more than MAX_READ is read and no more than MAX_PARTS is kept.
"""

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .sse import Events, Lines, Skip

MAX_READ = 4 * 1024 * 1024
"""Bytes of a body that are read."""
MAX_EVENTS = 50_000
"""Lines and events of a body that are read: the smallest that hold a token fill MAX_READ with fewer."""
MAX_PARTS = 2000
"""Parts of a conversation that are kept: a request may hold millions of empty messages."""
MAX_NAME = 200
"""Characters of a name: of a model, a role, a tool."""

type Json = dict[str, Any]


class Kind(StrEnum):
    """What a part of a conversation is."""

    TEXT = "text"
    THINKING = "thinking"
    CALL = "tool call"
    RESULT = "tool result"
    MEDIA = "media"


@dataclass(frozen=True, slots=True)
class Part:
    """What one side said in one way. `name` is the tool's; `text` of MEDIA tells its kind and size."""

    role: str
    kind: Kind
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a body says; None is not known. `speed` in tokens a second is what the server itself measured."""

    parts: tuple[Part, ...] = ()
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    speed: float | None = None
    finish_reason: str | None = None
    tools: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    left_out: int = 0
    """Parts beyond MAX_PARTS."""
    complete: bool = False
    """It was seen to its end."""


def read_request(reader: "ConversationFormat | None", body: bytes) -> Conversation:
    """Read a request; `reader` is the route's, and None means that there is no conversation."""
    draft, asked = Draft(), parse(body[:MAX_READ])
    if reader and asked:
        draft.ended = len(body) <= MAX_READ
        draft.model = name_of(asked.get("model"))
        take_tools(draft, asked)
        reader.request(draft, asked)
    return draft.done()


def read_answer(reader: "ConversationFormat | None", content_type: str, body: bytes) -> Conversation:
    """Read an answer; `content_type` is a header value, or "" if there was none."""
    draft = Draft()
    if reader:
        for event in events(content_type, body[:MAX_READ], draft):
            take_error(draft, event)
            reader.answer(draft, event)
    return draft.done()


# -- Bodies ------------------------------------------------------------------------------------------------------------


def parse(data: bytes) -> Json | None:
    """A JSON object, or None for everything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def events(content_type: str, body: bytes, draft: "Draft") -> Iterator[Json]:
    """Yield the objects of a body: all of it, each line, or the data of each server-sent event that has ended."""
    media_type = content_type.partition(";")[0].strip().lower()
    found: list[bytes] = []

    def keep(data: bytes, name: bytes = b"") -> None:
        if data and len(found) < MAX_EVENTS:
            found.append(data)

    if media_type == "text/event-stream":
        stream: Lines = Events(keep, Skip, MAX_READ)
    elif media_type != "application/x-ndjson" and (whole := parse(body)) is not None:
        draft.ended = True
        yield whole
        return
    else:
        stream = Lines(keep, Skip, MAX_READ)
    stream.feed(body)
    stream.finish()
    draft.ended = b"[DONE]" in found
    yield from filter(None, map(parse, found))


# -- What was found ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Piece:
    role: str
    kind: Kind
    name: str
    texts: list[str] = field(default_factory=list)


class Draft:
    """A conversation that is put together: pieces with one key become one part."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.speed: float | None = None
        self.finish_reason: str | None = None
        self.tools: list[str] = []
        self.errors: list[str] = []
        self.ended = False
        self.left_out = 0
        self.pieces: dict[Hashable, _Piece] = {}

    def add(self, key: Hashable, role: str, kind: Kind, text: object = "", name: object = None) -> None:
        """Add to the part of that key; None: a part of its own."""
        text, name = text_of(text), name_of(name) or ""
        if not text and not name:
            return
        key = len(self.pieces) if key is None else (key, kind)
        piece = self.pieces.get(key)
        if piece is None:
            if len(self.pieces) == MAX_PARTS:
                self.left_out += 1
                return
            piece = self.pieces[key] = _Piece(role, kind, name)
        piece.texts.append(text)
        piece.name = piece.name or name

    def count(self, usage: object) -> None:
        """Take the figures of a usage object; a 0 where there was a number is a placeholder (/v1/completions)."""
        found = dict_of(usage)
        self.prompt_tokens = int_of(found, "prompt_tokens", "input_tokens", "prompt_eval_count") or self.prompt_tokens
        self.completion_tokens = (
            int_of(found, "completion_tokens", "output_tokens", "eval_count") or self.completion_tokens
        )

    def done(self) -> Conversation:
        """What was put together."""
        pieces = ((piece, "".join(piece.texts)) for piece in self.pieces.values())
        return Conversation(
            tuple(Part(piece.role, piece.kind, text, piece.name) for piece, text in pieces),
            self.model,
            self.prompt_tokens,
            self.completion_tokens,
            self.speed,
            self.finish_reason,
            tuple(self.tools),
            tuple(self.errors),
            self.left_out,
            self.ended and not self.errors,
        )


def dict_of(value: object) -> Json:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def dicts_of(value: object) -> Iterator[Json]:
    """The objects of an array, if it is one."""
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def text_of(value: object) -> str:
    """A string as it is, nothing for null, JSON for the rest."""
    if isinstance(value, str) or value is None:
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "..."


def name_of(value: object) -> str | None:
    """A short string on one line, or None."""
    text = " ".join(value[: 2 * MAX_NAME].split()) if isinstance(value, str) else ""
    return text[:MAX_NAME] or None


def int_of(found: Json, *names: str) -> int | None:
    """The first of these members that is a number."""
    values = (found.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and 0 <= value < 1e15), None)


def size_of(count: int) -> str:
    """Bytes, for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def media(kind: str, value: object) -> str:
    """An image and the like as its kind and size: base64, a data URL (RFC 2397), or where it is."""
    text = value if isinstance(value, str) else ""
    start = text[:100]
    if start.startswith(("http://", "https://")):
        return f"{kind} at {text[:MAX_NAME]}"
    if start.startswith("data:") and "," in start:
        kind = f"{kind} ({start[5:].partition(',')[0].partition(';')[0]})"
        text = text[text.index(",") + 1 :]
    return f"{kind}, {size_of(len(text) * 3 // 4 - text[-2:].count('='))}"


def take_error(draft: Draft, event: Json) -> None:
    """An error in place of an answer, or in the middle of one: a text, or an object with one."""
    error = event.get("error")
    if error and len(draft.errors) < 10:
        draft.errors.append((text_of(dict_of(error).get("message")) or text_of(error))[:2000])


def take_tools(draft: Draft, asked: Json) -> None:
    """The names of the tools that a request offers."""
    for tool in dicts_of(asked.get("tools")):
        name = name_of(dict_of(tool.get("function")).get("name")) or name_of(tool.get("name") or tool.get("type"))
        if name and len(draft.tools) < MAX_PARTS:
            draft.tools.append(name)


# -- What is common: messages, and what they are made of ---------------------------------------------------------------


def take_messages(draft: Draft, messages: object) -> None:
    """The messages of a request."""
    for number, message in enumerate(dicts_of(messages)):
        take_message(draft, ("message", number), message, name_of(message.get("role")) or "user")


def take_message(draft: Draft, key: Hashable, message: Json, role: str) -> None:
    """A message of Ollama, OpenAI or Anthropic, or the difference that a chunk makes to one."""
    for name in ("thinking", "reasoning", "reasoning_content"):
        draft.add(key, role, Kind.THINKING, message.get(name))
    if role == "tool":
        names = (message.get("tool_name"), message.get("name"), message.get("tool_call_id"))
        draft.add(key, role, Kind.RESULT, plain(message.get("content")), next(filter(None, names), None))
    else:
        take_content(draft, key, role, message.get("content"))
    draft.add(key, role, Kind.TEXT, message.get("refusal"))
    for image in list_of(message.get("images")):
        draft.add(None, role, Kind.MEDIA, media("image", image))
    for call in dicts_of(message.get("tool_calls")):
        function = dict_of(call.get("function"))
        arguments = function.get("arguments")
        # OpenAI's come in pieces of a string, by index; Ollama's whole, as an object.
        part = (key, "call", text_of(call.get("index", call.get("id")))) if isinstance(arguments, str) else None
        draft.add(part, role, Kind.CALL, arguments, function.get("name"))


def list_of(value: object) -> list[Any]:
    """An array, or an empty one."""
    return value if isinstance(value, list) else []


def plain(content: object) -> str:
    """Content as text alone: the texts of its parts."""
    if not isinstance(content, list):
        return text_of(content)
    return "\n".join(text_of(part.get("text")) or f"({text_of(part.get('type'))})" for part in dicts_of(content))


def take_content(draft: Draft, key: Hashable, role: str, content: object) -> None:
    """A text, or an array of parts."""
    if not isinstance(content, list):
        draft.add(key, role, Kind.TEXT, content)
        return
    for number, part in enumerate(content):
        if isinstance(part, dict):
            take_part(draft, (key, number), role, part)
        else:
            draft.add((key, number), role, Kind.TEXT, part)


def take_part(draft: Draft, key: Hashable, role: str, part: Json) -> None:
    """A part of the content of a message (OpenAI), a block (Anthropic)."""
    match part.get("type"):
        case "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text":
            draft.add(key, role, Kind.TEXT, part.get("text"))
        case "thinking":
            draft.add(key, role, Kind.THINKING, part.get("thinking"))
        case "tool_use":
            draft.add(key, role, Kind.CALL, part.get("input") or "", part.get("name"))
        case "tool_result":
            draft.add(key, role, Kind.RESULT, plain(part.get("content")), part.get("tool_use_id"))
        case "image" | "document" as kind:
            source = dict_of(part.get("source"))
            where = f"data:{text_of(source.get('media_type'))}," if source.get("data") else ""
            draft.add(key, role, Kind.MEDIA, media(kind, where + text_of(source.get("data") or source.get("url"))))
        case "image_url" | "input_image":
            image = part.get("image_url")
            draft.add(key, role, Kind.MEDIA, media("image", dict_of(image).get("url") or image))
        case "input_audio" | "file" | "input_file" as kind:
            inner = dict_of(part.get(kind)) or part
            draft.add(key, role, Kind.MEDIA, media(kind.removeprefix("input_"), inner.get("data")))
        case other:
            draft.add(key, role, Kind.TEXT, f"({name_of(other) or 'something'})")


# -- The dialects ------------------------------------------------------------------------------------------------------


def native_request(draft: Draft, asked: Json) -> None:
    """/api/chat, /api/generate."""
    draft.add("system", "system", Kind.TEXT, asked.get("system"))
    take_messages(draft, asked.get("messages"))
    draft.add("prompt", "user", Kind.TEXT, asked.get("prompt"))
    draft.add("suffix", "user", Kind.TEXT, asked.get("suffix"), "suffix" if asked.get("suffix") else None)
    for image in list_of(asked.get("images")):
        draft.add(None, "user", Kind.MEDIA, media("image", image))


def native_answer(draft: Draft, event: Json) -> None:
    """A line of a stream, or all of an answer; the last one has `done` true."""
    message = dict_of(event.get("message"))
    draft.model = name_of(event.get("model")) or draft.model
    take_message(draft, "answer", message, name_of(message.get("role")) or "assistant")
    draft.add("answer", "assistant", Kind.THINKING, event.get("thinking"))
    draft.add("answer", "assistant", Kind.TEXT, event.get("response"))
    draft.ended = event.get("done") is True
    draft.finish_reason = name_of(event.get("done_reason")) or draft.finish_reason
    draft.count(event)
    tokens, nanoseconds = int_of(event, "eval_count"), int_of(event, "eval_duration")
    draft.speed = tokens / nanoseconds * 1e9 if tokens and nanoseconds else draft.speed


def openai_request(draft: Draft, asked: Json) -> None:
    """/v1/chat/completions, /v1/completions."""
    take_messages(draft, asked.get("messages"))
    draft.add("prompt", "user", Kind.TEXT, asked.get("prompt"))


def openai_answer(draft: Draft, event: Json) -> None:
    """A chunk of a stream, or all of an answer."""
    draft.model = name_of(event.get("model")) or draft.model
    if event.get("choices") and event.get("model") == "" and not draft.errors:
        draft.errors.append("the server failed")  # All that an OpenAI stream tells of it.
    for choice in dicts_of(event.get("choices")):
        message = dict_of(choice.get("delta")) or dict_of(choice.get("message"))
        key = ("choice", text_of(choice.get("index")))
        take_message(draft, key, message, name_of(message.get("role")) or "assistant")
        draft.add(key, "assistant", Kind.TEXT, choice.get("text"))
        draft.finish_reason = name_of(choice.get("finish_reason")) or draft.finish_reason
    draft.count(event.get("usage"))


def responses_request(draft: Draft, asked: Json) -> None:
    """/v1/responses."""
    draft.add("instructions", "system", Kind.TEXT, asked.get("instructions"))
    if isinstance(asked.get("input"), list):
        for number, item in enumerate(dicts_of(asked["input"])):
            take_item(draft, ("item", number), item, name_of(item.get("role")) or "user")
    else:
        draft.add("input", "user", Kind.TEXT, asked.get("input"))


def take_item(draft: Draft, key: Hashable, item: Json, role: str) -> None:
    """An item of the input or output of a response."""
    match item.get("type", "message"):
        case "message":
            take_content(draft, key, role, item.get("content"))
        case "reasoning":
            texts = [*dicts_of(item.get("summary")), *dicts_of(item.get("content"))]
            draft.add(key, "assistant", Kind.THINKING, "\n".join(text_of(text.get("text")) for text in texts))
        case "function_call":
            draft.add(key, "assistant", Kind.CALL, item.get("arguments"), item.get("name"))
        case "function_call_output":
            draft.add(key, "tool", Kind.RESULT, plain(item.get("output")), item.get("call_id"))
        case other:
            draft.add(key, role, Kind.TEXT, f"({name_of(other) or 'something'})")


_DELTAS = {
    "response.output_text.delta": Kind.TEXT,
    "response.refusal.delta": Kind.TEXT,
    "response.reasoning_text.delta": Kind.THINKING,
    "response.reasoning_summary_text.delta": Kind.THINKING,
    "response.function_call_arguments.delta": Kind.CALL,
}


def responses_answer(draft: Draft, event: Json) -> None:
    """An event of a stream, or all of an answer."""
    kind = event.get("type")
    key = ("output", text_of(event.get("output_index")))
    if kind == "response.output_item.added":
        item = dict_of(event.get("item"))
        if item.get("type") == "function_call":
            draft.add(key, "assistant", Kind.CALL, "", item.get("name"))
    elif isinstance(kind, str) and kind in _DELTAS:
        draft.add(key, "assistant", _DELTAS[kind], event.get("delta"))
    elif (response := dict_of(event.get("response"))) or event.get("object") == "response":
        take_response(draft, response or event)


def take_response(draft: Draft, response: Json) -> None:
    """A whole response, whose output a stream has told in parts before."""
    draft.model = name_of(response.get("model")) or draft.model
    draft.count(response.get("usage"))
    take_error(draft, response)
    status = name_of(response.get("status"))
    if status in ("completed", "incomplete", "failed"):
        draft.ended, draft.finish_reason = True, status
    if not draft.pieces:
        for number, item in enumerate(dicts_of(response.get("output"))):
            take_item(draft, ("output", number), item, name_of(item.get("role")) or "assistant")


def messages_request(draft: Draft, asked: Json) -> None:
    """/v1/messages."""
    take_content(draft, "system", "system", asked.get("system"))
    take_messages(draft, asked.get("messages"))


def messages_answer(draft: Draft, event: Json) -> None:
    """An event of a stream, or all of an answer."""
    key = ("block", text_of(event.get("index")))
    match event.get("type"):
        case "message_start":
            draft.model = name_of(dict_of(event.get("message")).get("model"))
            draft.count(dict_of(event.get("message")).get("usage"))
        case "content_block_start":
            take_part(draft, key, "assistant", dict_of(event.get("content_block")))
        case "content_block_delta":
            delta = dict_of(event.get("delta"))
            draft.add(key, "assistant", Kind.TEXT, delta.get("text"))
            draft.add(key, "assistant", Kind.THINKING, delta.get("thinking"))
            draft.add(key, "assistant", Kind.CALL, delta.get("partial_json"))
        case "message_delta":
            draft.finish_reason = name_of(dict_of(event.get("delta")).get("stop_reason"))
            draft.count(event.get("usage"))
        case "message_stop":
            draft.ended = True
        case "message":
            draft.model, draft.finish_reason = name_of(event.get("model")), name_of(event.get("stop_reason"))
            draft.count(event.get("usage"))
            take_content(draft, "answer", name_of(event.get("role")) or "assistant", event.get("content"))


@dataclass(frozen=True, slots=True)
class ConversationFormat:
    """How a request and an answer (an event of it, or all) are read."""

    request: Callable[[Draft, Json], None]
    answer: Callable[[Draft, Json], None]


OLLAMA: ConversationFormat = ConversationFormat(native_request, native_answer)
OPENAI: ConversationFormat = ConversationFormat(openai_request, openai_answer)
RESPONSES: ConversationFormat = ConversationFormat(responses_request, responses_answer)
MESSAGES: ConversationFormat = ConversationFormat(messages_request, messages_answer)
