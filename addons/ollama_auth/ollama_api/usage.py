"""The model, the tokens and the end of an answer, read while it passes. Pure, incremental, total, bounded in memory.

What a model says must not change what is counted. So nothing is searched for in the text of an answer: figures are read
by a scanner that knows at each byte which member's value it is in, and the common events are recognized by bytes that
no content can hold: inside a JSON string every quote has a backslash before it. A body is never held.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .json_scanner import TEXT, Scanner, Wanted
from .sse import Events, Lines

MAX_LINE = 64 * 1024
"""Bytes of a line or event that are held to be looked at as a whole; a longer one is scanned as it comes."""
LONG_EVENT = 384
"""Bytes of an event that is more than one token in any case, such as the call of a tool."""
LONG_TEXT = 32
"""Bytes of the text of an event that is more than one token: it is counted by its text."""
BYTES_PER_TOKEN = 4
"""Of English text, roughly."""
MAX_DIGITS = 15
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True)
class Usage:
    """The usage of an answer, as far as it was seen; None is not known."""

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    events: int = 0
    """Events of a stream that carried content: about one a token."""
    complete: bool = False
    """The answer was seen to its end, and that was a regular end of its protocol, not an error."""
    estimated: bool = False
    """The answer reported no figures, or not all of them: they were estimated."""
    compressed: bool = False
    """The answer was compressed, and so not read."""
    unread: bool = False
    """It was text of a model, in a form that is not read: only its bytes tell how long it was."""
    error: str | None = None
    """The server's name for an error inside of the answer, or "error" where it has none; never its text."""


class Answer:
    """The usage of one answer, put together from its events, or from the one object that is all of it."""

    def __init__(self, usage_format: "UsageFormat", *, stream: bool) -> None:
        self.usage = Usage()
        self.stream = stream
        self.ended = False
        """The protocol's own end of a stream was seen, or the object was."""
        self.long = 0
        """Bytes of an event that may have that much text; 0 before one of content was scanned."""
        self.more = 0
        """Tokens of long events beyond one each, and of an answer that is no stream, by the length of their text."""
        self._wanted = usage_format.wanted
        self._recognize = usage_format.recognize

    def event(self, data: bytes, name: bytes = b"") -> None:
        if data and not self._recognize(self, data, name):
            scan, before = self.scan(), self.usage.events
            scan.feed(data)
            scan.end()
            if self.usage.events > before:
                around = len(data) - scan.text if scan.text else LONG_EVENT
                self.long = min(self.long or LONG_EVENT, around + LONG_TEXT)

    def scan(self) -> "Scan":
        """A scan of an event, or of the whole answer, that comes in pieces."""
        return Scan(self, self._wanted)

    def add(self, found: dict[str, bytes]) -> None:
        """Count what was found in an object."""
        usage, kind = self.usage, _text(found.get("type")) or ""
        usage.model = _text(found.get("model")) or usage.model
        finish = _word(found.get("choice", found.get("finish")))
        usage.finish_reason = finish if finish and finish != "in_progress" else usage.finish_reason
        self._count(found)
        if "failure" in found:
            usage.error = _word(found["failure"]) or "error"
        elif "failed" in found or kind == "error":
            usage.error = "error"
        elif "choice" in found and found.get("model") == b'""':
            usage.error = "empty_chunk"  # the only sign of a failure in an OpenAI stream
        elif self.stream and (_is_content(kind) or found.get("done") == b"false" or found.get("choice") == b"null"):
            usage.events += 1
        self.ended |= kind in _ENDS or found.get("done") == b"true"

    def add_text(self, size: int) -> None:
        """Count the text of an object, also of one that was cut off; a short event counts for one token already."""
        if size > LONG_TEXT or not self.stream:
            self.more += size // BYTES_PER_TOKEN

    def _count(self, found: dict[str, bytes]) -> None:
        missing = b"0" if found.get("done") == b"true" else b""
        prompt, completion = _number(found.get("prompt", missing)), _number(found.get("completion", missing))
        if self.stream and "choice" in found and not prompt and not completion:
            return  # a placeholder: /v1/completions puts one in every chunk with a choice
        if prompt is not None:
            self.usage.prompt_tokens = prompt
        if completion is not None:
            self.usage.completion_tokens = completion


class Scan(Scanner):
    """Reads an object of an answer in pieces: one event, or all of the answer."""

    def __init__(self, answer: Answer, wanted: Wanted) -> None:
        super().__init__(wanted)
        self._answer = answer

    def end(self) -> None:
        """Count an event; of one that was cut off only its text."""
        if self.closed:
            self._answer.add(self.found)
        self._answer.add_text(self.text)

    def finish(self) -> None:
        """Count the whole answer, also where it was cut off: `done` comes before the figures."""
        if not self.closed:
            self.found.pop("done", None)
        self._answer.add(self.found)
        self._answer.add_text(self.text)
        self._answer.ended = self.closed


def _number(raw: bytes) -> int | None:
    return int(raw) if raw.isdigit() and len(raw) <= MAX_DIGITS else None


def _text(raw: bytes | None) -> str | None:
    """A printable string that is not empty; None for everything else."""
    if not raw or not raw.startswith(b'"'):
        return None
    try:
        text = str(json.loads(raw.decode("utf-8", "replace")))
    except ValueError:
        return None
    return text if text and text.isprintable() else None


def _word(raw: bytes | None) -> str | None:
    """A string that is one word of a protocol."""
    text = _text(raw) or ""
    return text if _WORD.fullmatch(text) else None


# -- The formats of the dialects ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UsageFormat:
    """The place of usage in the answers of a route."""

    wanted: Wanted
    """The members to read; Answer.add says what their keys mean."""
    recognize: Callable[[Answer, bytes, bytes], bool]
    """Count an event, given its data and name, if that is possible without scanning it; otherwise return False. The
    first event is scanned in any case, for its model."""
    generates: bool = True
    """The answer is text; where it reports no tokens, they are estimated by its events and their text."""


# Ollama leaves out a count of 0. `done` is true in the last object of a stream, or the only one, and false in all
# others. An error in a stream is its last line, and a text.
_OLLAMA: Wanted = {
    b"response": TEXT,
    b"thinking": TEXT,
    b"message": {b"content": TEXT, b"thinking": TEXT, b"tool_calls": TEXT},
    b"model": "model",
    b"prompt_eval_count": "prompt",
    b"eval_count": "completion",
    b"done": "done",
    b"done_reason": "finish",
    b"error": "failed",
}
_COUNTS: Wanted = {
    b"prompt_tokens": "prompt",
    b"completion_tokens": "completion",
    b"input_tokens": "prompt",
    b"output_tokens": "completion",
}
_SAID: Wanted = {b"content": TEXT, b"reasoning": TEXT, b"tool_calls": TEXT}
_OPENAI: Wanted = {
    b"model": "model",
    b"choices": {b"finish_reason": "choice", b"text": TEXT, b"message": _SAID, b"delta": _SAID},
    b"usage": _COUNTS,
    b"error": {b"type": "failure"},
}
_RESPONSE: Wanted = {
    b"model": "model",
    b"status": "finish",
    b"usage": _COUNTS,
    b"error": {b"code": "failure"},
}
# The last event of a stream has all of the output again.
_RESPONSES: Wanted = {**_RESPONSE, b"type": "type", b"output": TEXT, b"response": _RESPONSE, b"delta": TEXT}
# The usage in the `message` of message_start is an estimate (seen: 5 tokens, where message_delta had the true 25).
_MESSAGES: Wanted = {
    b"type": "type",
    b"model": "model",
    b"message": {b"model": "model"},
    b"stop_reason": "finish",
    b"content": TEXT,
    b"delta": {b"stop_reason": "finish", b"text": TEXT, b"thinking": TEXT, b"partial_json": TEXT},
    b"usage": _COUNTS,
    b"error": {b"type": "failure"},
}

_ENDS = frozenset({"message_stop", "response.completed", "response.incomplete", "response.failed"})
_SCANNED = frozenset({"", "message_start", "message_delta", "response.created", "error"}) | _ENDS
"""Types of events that hold more than content."""


def _recognize_ollama(answer: Answer, data: bytes, name: bytes) -> bool:
    """The last brace closes the object, so the member before it is the object's own, whatever the others hold."""
    if answer.usage.model is None or len(data) > answer.long or not data.endswith(b'"done":false}'):
        return False
    answer.usage.events += 1
    return True


def _recognize_openai(answer: Answer, data: bytes, name: bytes) -> bool:
    """A model can't choose the name of a member of a chunk (arguments of tools are strings). A chunk has one choice."""
    if data == b"[DONE]":
        answer.ended = True
        return True
    if answer.usage.model is None or len(data) > answer.long:
        return False
    if b'"finish_reason":null' not in data or b'"model":""' in data:
        return False
    answer.usage.events += 1
    return True


def _recognize_named(answer: Answer, data: bytes, name: bytes) -> bool:
    """Events of Anthropic and of /v1/responses have their type in a line of their own."""
    kind = name.decode("ascii", "replace")
    content = _is_content(kind)
    if content and len(data) > answer.long:
        return False
    answer.usage.events += content
    return kind not in _SCANNED


def _is_content(kind: str) -> bool:
    """content_block_delta, response.output_text.delta and the like."""
    return kind.endswith("delta") and kind not in _SCANNED


NO_USAGE: UsageFormat = UsageFormat({}, lambda answer, data, name: True)
OLLAMA: UsageFormat = UsageFormat(_OLLAMA, _recognize_ollama)
OLLAMA_EMBEDDING: UsageFormat = UsageFormat(_OLLAMA, _recognize_ollama, generates=False)
OPENAI: UsageFormat = UsageFormat(_OPENAI, _recognize_openai)
OPENAI_EMBEDDING: UsageFormat = UsageFormat(_OPENAI, _recognize_openai, generates=False)
RESPONSES: UsageFormat = UsageFormat(_RESPONSES, _recognize_named)
MESSAGES: UsageFormat = UsageFormat(_MESSAGES, _recognize_named)
TRANSCRIPTION: UsageFormat = UsageFormat({b"text": TEXT}, _recognize_openai)


# -- The body of an answer ---------------------------------------------------------------------------------------------


_STREAMS: dict[str, type[Lines]] = {"application/x-ndjson": Lines, "text/event-stream": Events}


class UsageReader:
    """Reads one answer as it passes. Errors and compressed answers report no usage."""

    def __init__(self, usage_format: UsageFormat, content_type: str, content_encoding: str, status: int) -> None:
        media_type = content_type.partition(";")[0].strip().lower()
        compressed = content_encoding.strip().lower() not in ("", "identity")
        self.stream = media_type in _STREAMS
        """Whether the answer comes in events."""
        self._answer = Answer(usage_format, stream=self.stream)
        self._answer.usage.compressed = compressed
        self._body: Lines | Scan | None = None
        if usage_format is not NO_USAGE and status == 200 and not compressed:
            if self.stream:
                self._body = _STREAMS[media_type](self._answer.event, self._answer.scan, MAX_LINE)
            elif media_type == "application/json":
                self._body = self._answer.scan()
        self._reads, self._generates = self._body is not None, usage_format.generates
        read = self._reads or usage_format is NO_USAGE or status != 200
        self._answer.usage.unread = self._generates and not read

    @property
    def model(self) -> str | None:
        """The model, once the answer has named it."""
        return self._answer.usage.model

    @property
    def events(self) -> int:
        """The number of events with content so far; the first of them is the first token."""
        return self._answer.usage.events

    def feed(self, data: bytes) -> int:
        """Read the next bytes of the body; return the number of events with content that they end."""
        if not self._body:
            return 0
        usage = self._answer.usage
        before = usage.events
        self._body.feed(data)
        return usage.events - before

    def finish(self, clean: bool) -> Usage:
        """End the body; `clean` is False where it broke off. It may be called again.

        A stream whose own end was seen is complete, whoever closed its connection then.
        """
        answer, usage = self._answer, self._answer.usage
        if self._body:
            self._body.finish()
            self._body = None
        guessed = self._generates and self._reads and (self.stream or answer.more)
        if guessed and usage.completion_tokens is None:
            usage.completion_tokens, usage.estimated = usage.events + answer.more, True
        # Only a stream of tokens and a single object have an end of their own.
        ended = answer.ended or not self._reads or (self.stream and not self._generates)
        usage.complete = (clean or (self.stream and answer.ended)) and ended and usage.error is None
        return usage
