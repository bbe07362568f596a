"""The conversation in the body of a request or an answer, for people to read. Pure and total.

Any bytes give a result: a stream that was cut gives what had come, and a body without a conversation gives nothing.
Time and memory are linear in the body, of which at most MAX_READ bytes are read and MAX_PARTS parts kept.
"""

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MAX_READ = 4 * 1024 * 1024
"""Bytes of a body that are read."""
MAX_EVENTS = 50_000
"""Lines and events of a body that are read: the smallest that hold a token fill MAX_READ with fewer."""
MAX_PARTS = 2000
"""Parts of a conversation that are kept: a request may hold millions of empty messages."""
MAX_ERRORS, MAX_ERROR = 10, 2000
"""Errors that are kept, and characters of each."""
MAX_NAME = 200
"""Characters of the name of a model, a role or a tool."""

type Json = dict[str, Any]


class Kind(StrEnum):
    TEXT = "text"
    THINKING = "thinking"
    CALL = "tool call"
    RESULT = "tool result"
    MEDIA = "media"


@dataclass(slots=True)
class Part:
    """A run of one kind by one role. `name` is the tool's; the text of MEDIA is its kind and size."""

    role: str
    kind: Kind
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class Conversation:
    """The conversation of a body, put together from its objects; None is not known."""

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    speed: float | None = None
    """Tokens a second as the server itself measured them."""
    finish_reason: str | None = None
    tools: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left_out: int = 0
    """Parts beyond MAX_PARTS."""
    ended: bool = False
    """The body was seen to its end."""
    parts: dict[Hashable, Part] = field(default_factory=dict)
    """The conversation itself, in its order."""

    def add(self, key: Hashable, role: str, kind: Kind, text: object = "", name: object = None) -> None:
        """Add to the part of that key and kind; with None, add a part of its own."""
        text, name = text_of(text), name_of(name) or ""
        if not text and not name:
            return
        key = len(self.parts) if key is None else (key, kind)
        if key not in self.parts and len(self.parts) == MAX_PARTS:
            self.left_out += 1
            return
        part = self.parts.setdefault(key, Part(role, kind, name))
        part.pieces.append(text)
        part.name = part.name or name

    def add_error(self, event: Json) -> None:
        """Add an error in place of an answer, or in the middle of one: a text, or an object with a message."""
        error = event.get("error")
        if error and len(self.errors) < MAX_ERRORS:
            self.errors.append((text_of(dict_of(error).get("message")) or text_of(error))[:MAX_ERROR])

    def count(self, usage: object) -> None:
        """Take the figures of a usage object; a 0 where there was a number is a placeholder (/v1/completions)."""
        found = dict_of(usage)
        prompt = int_of(found, "prompt_tokens", "input_tokens", "prompt_eval_count")
        completion = int_of(found, "completion_tokens", "output_tokens", "eval_count")
        self.prompt_tokens = prompt or self.prompt_tokens
        self.completion_tokens = completion or self.completion_tokens


@dataclass(frozen=True, slots=True)
class ConversationFormat:
    """Readers of a dialect: `request` takes a request, `answer` each event of an answer or its one object."""

    request: Callable[[Conversation, Json], None]
    answer: Callable[[Conversation, Json], None]


def read_request(reader: ConversationFormat | None, body: bytes) -> Conversation:
    """Read a request; `reader` is that of the route; None: it has no conversation."""
    found, asked = Conversation(), parse(body[:MAX_READ])
    if reader and asked:
        found.ended = len(body) <= MAX_READ
        found.model = name_of(asked.get("model"))
        for tool in dicts_of(asked.get("tools")):
            name = name_of(dict_of(tool.get("function")).get("name")) or name_of(tool.get("name") or tool.get("type"))
            if name and len(found.tools) < MAX_PARTS:
                found.tools.append(name)
        reader.request(found, asked)
    return found


def read_answer(reader: ConversationFormat | None, content_type: str, body: bytes) -> Conversation:
    """Read an answer; `content_type` is a header value, or "" if there was none."""
    found = Conversation()
    if reader:
        for event in _events(content_type, body[:MAX_READ], found):
            found.add_error(event)
            reader.answer(found, event)
    return found


def parse(data: bytes) -> Json | None:
    """Parse a JSON object; None for everything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _events(content_type: str, body: bytes, conversation: Conversation) -> Iterator[Json]:
    """Yield the objects of a body: its one object, each line, or the data of each server-sent event that has ended."""
    media_type = content_type.partition(";")[0].strip().lower()
    server_sent = media_type == "text/event-stream"
    if not server_sent and media_type != "application/x-ndjson" and (whole := parse(body)) is not None:
        conversation.ended = True
        yield whole
        return
    found = list(islice(filter(None, _event_data(body) if server_sent else body.split(b"\n")), MAX_EVENTS))
    conversation.ended = b"[DONE]" in found
    yield from filter(None, map(parse, found))


def _event_data(body: bytes) -> Iterator[bytes]:
    data: list[bytes] = []
    for line in body.split(b"\n")[:-1]:
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line in (b"", b"\r"):
            yield b"\n".join(data)
            data.clear()


# -- Values of a type that is expected, out of JSON that may hold any --------------------------------------------------


def dict_of(value: object) -> Json:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def dicts_of(value: object) -> Iterator[Json]:
    """The objects of an array, if it is one."""
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def text_of(value: object) -> str:
    """A string unchanged, null as "", and anything else as JSON."""
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
    """The first of these members that is a count."""
    values = (found.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and 0 <= value < 1e15), None)


def list_of(value: object) -> list[Any]:
    """An array, or an empty one."""
    return value if isinstance(value, list) else []


def size_of(count: int) -> str:
    """Bytes, for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
