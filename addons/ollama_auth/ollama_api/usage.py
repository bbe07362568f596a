"""Body bytes of an answer, as they pass -> model, tokens, why it ended. Pure, incremental, total, bounded in memory.

What the model says must not be able to change what is counted. So nothing is looked for in the text of an answer:
counts are read by a scanner that knows at each byte which value of which member it is in, and the few events that are
known by a look are known by bytes that no content can have: inside a JSON string every quote has a backslash before it.
A body is never held: the scanner skips strings and containers nobody asked for as they come, whatever their size, so
megabytes of embeddings before the one number that counts cost time but no memory.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .routes import Route, RouteClass

MAX_LINE = 64 * 1024
"""Bytes of a line that are held to be looked at as a whole; a longer one is scanned in the pieces it comes in."""
MAX_TOKEN = 1024
"""Bytes of a name or value that are kept; of a longer one it is only known that it was there."""
MAX_DIGITS = 15
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True)
class Usage:
    """What an answer used, as far as it was seen; None is not known."""

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    events: int = 0
    """Events of a stream that carried content: about one a token."""
    complete: bool = False
    """It was seen to its end, and that was an end in the words of its protocol, not an error."""
    estimated: bool = False
    """The stream told no figures: `completion_tokens` is the number of events."""
    compressed: bool = False
    """It was compressed, and so not read."""
    error: str | None = None
    """What the server calls an error told inside of the answer, or "error" where it has no name; never its text."""


# -- JSON --------------------------------------------------------------------------------------------------------------

type Wanted = Mapping[bytes, str | Wanted]
"""The members of an object to be read: name -> what to call its value, or what is wanted of the object (or of each
object of the array) that is its value."""

_TOO_LONG = b""
# Possessive throughout: nothing is tried in two ways. A container that nobody wants is skipped in one step where all of
# it is there and it is not deeper than an array of objects of arrays; else bracket by bracket.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSIDE = rb'[^"{}\[\]]++|' + _STRING
_FLAT = rb"[{\[](?:" + _INSIDE + rb")*+[}\]]"
_SMALL = rb"[{\[](?:" + _INSIDE + rb"|" + _FLAT + rb")*+[}\]]"
_SEPARATORS = re.compile(rb"[\s,:]*+")
_TOKEN = re.compile(rb"[\s,:]*+(?:([{\[])|([}\]])|(" + _STRING + rb'|[^\s,:"{}\[\]]++(?=[\s,:"{}\[\]])))', re.DOTALL)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_IN_CONTAINER = re.compile(rb"(?:" + _INSIDE + rb"|" + _SMALL + rb")*+", re.DOTALL)


class Scanner:
    """Reads wanted values out of one JSON object that comes in pieces, and skips the rest of it.

    It follows strings, escapes and nesting, so a value is found by its place and nothing else. It checks no grammar:
    what is not JSON gives some values or none. The last of two members of one name counts, as in Go.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.found: dict[str, bytes] = {}
        """What was read: strings with their quotes, numbers, `true`, `false`, `null`; b"" for what was too long."""
        self.closed = False
        """The object has ended; what follows it is not read."""
        # Containers being read: (wanted in it, whether it is an object). The first stands for the document.
        self._open: list[tuple[Wanted, bool]] = [(wanted, False)]
        self._name: bytes | None = None  # of the member whose value comes next
        self._rest = b""  # a token that has not ended
        self._skipped = 0  # containers open that nobody wants
        self._in_string = False  # of no interest, or too long

    def feed(self, data: bytes) -> None:
        """Go on with the next piece of the document."""
        data, self._rest = self._rest + data, b""
        at = 0
        while at < len(data) and not self.closed:
            if self._in_string:
                at = self._string(data, at)
            elif self._skipped:
                at = self._container(data, at)
            else:
                at = self._token(data, at)

    def _string(self, data: bytes, at: int) -> int:
        """Skip to the end of a string."""
        end = _skip(_IN_STRING, data, at)
        if data[end : end + 1] == b'"':
            self._in_string = False
        else:
            self._rest = data[end:]  # nothing, or a backslash whose other half is to come
        return end + 1

    def _container(self, data: bytes, at: int) -> int:
        """Skip to the end of a container nobody wants, or to the start of one in it whose end is yet to come."""
        end = _skip(_IN_CONTAINER, data, at)
        match data[end : end + 1]:
            case b'"':
                self._in_string = True
            case b"{" | b"[":
                self._skipped += 1
            case b"}" | b"]":
                self._skipped -= 1
                self.closed = self._skipped == 0 and len(self._open) == 1
        return end + 1

    def _token(self, data: bytes, at: int) -> int:
        """Read a bracket, a name or a value."""
        found = _TOKEN.match(data, at)
        if not found:
            return self._unfinished(data, _skip(_SEPARATORS, data, at))
        opening, _, scalar = found.groups()
        if scalar:
            self._scalar(scalar if len(scalar) <= MAX_TOKEN else _TOO_LONG)
        elif opening:
            self._enter(opening == b"{")
        else:
            self._leave()
        return found.end()

    def _unfinished(self, data: bytes, at: int) -> int:
        """Keep a token that has not ended, within the bound."""
        self._rest = data[at : at + MAX_TOKEN + 1]  # one more than is kept: it will be found too long
        if self._rest.startswith(b'"') and len(self._rest) > MAX_TOKEN:
            self._rest, self._in_string = b"", True
            self._scalar(_TOO_LONG)
            return at + 1
        return len(data)

    def _enter(self, is_object: bool) -> None:
        wanted, in_object = self._open[-1]
        inner = wanted.get(self._name or b"") if in_object else wanted
        self._name = None
        # An array in an array is skipped: so no more is open than the table is deep.
        if isinstance(inner, Mapping) and (in_object or is_object):
            self._open.append((inner, is_object))
        else:
            self._skipped = 1

    def _leave(self) -> None:
        if len(self._open) > 1:
            self._open.pop()
        self._name = None
        self.closed = len(self._open) == 1

    def _scalar(self, token: bytes) -> None:
        wanted, in_object = self._open[-1]
        if not in_object:
            return
        if self._name is None:
            self._name = token[1:-1]
            return
        name = wanted.get(self._name)
        self._name = None
        if isinstance(name, str):
            self.found[name] = token


def _skip(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where that pattern stops matching."""
    found = pattern.match(data, at)
    return found.end() if found else at


# -- What is read of which answer --------------------------------------------------------------------------------------

# Ollama leaves out a count of 0. The last object of a stream, or the only one, has `done` true, all others false. An
# error in a stream is its last line, and a text.
_NATIVE: Wanted = {
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
_OPENAI: Wanted = {
    b"model": "model",
    b"choices": {b"finish_reason": "choice"},
    b"usage": _COUNTS,
    b"error": {b"type": "failure"},
}
_RESPONSE: Wanted = {b"model": "model", b"status": "finish", b"usage": _COUNTS, b"error": {b"code": "failure"}}
_RESPONSES: Wanted = {**_RESPONSE, b"type": "type", b"response": _RESPONSE}
# The usage in `message`, of message_start, is an estimate (seen: 5 tokens, where message_delta told the true 25).
_MESSAGES: Wanted = {
    b"type": "type",
    b"model": "model",
    b"message": {b"model": "model"},
    b"stop_reason": "finish",
    b"delta": {b"stop_reason": "finish"},
    b"usage": _COUNTS,
    b"error": {b"type": "failure"},
}

_ENDS = frozenset({"message_stop", "response.completed", "response.incomplete", "response.failed"})
_TELLING = frozenset({"", "message_start", "message_delta", "response.created", "error"}) | _ENDS


class Tally:
    """What was read of an answer so far, put together from its objects."""

    def __init__(self, *, stream: bool) -> None:
        self.usage = Usage()
        self.stream = stream
        self.ended = False

    def take(self, found: dict[str, bytes]) -> None:
        """Add what was found in an object: an event, or all of the answer."""
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
            usage.error = "empty_chunk"  # all that an OpenAI stream tells of a failure
        elif self.stream and (_is_content(kind) or found.get("done") == b"false" or found.get("choice") == b"null"):
            usage.events += 1
        self.ended |= kind in _ENDS or found.get("done") == b"true"

    def _count(self, found: dict[str, bytes]) -> None:
        unsaid = b"0" if found.get("done") == b"true" else b""
        prompt, completion = _number(found.get("prompt", unsaid)), _number(found.get("completion", unsaid))
        if self.stream and "choice" in found and not prompt and not completion:
            return  # a placeholder: /v1/completions puts one in every chunk with a choice
        if prompt is not None:
            self.usage.prompt_tokens = prompt
        if completion is not None:
            self.usage.completion_tokens = completion


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


# -- Events known by a look --------------------------------------------------------------------------------------------

type Look = Callable[[Tally, bytes, bytes], bool]
"""Count what the event of that name with that data is, if that can be told without reading it; else say False.

The first event is read in any case, for its model."""


def _look_native(tally: Tally, name: bytes, data: bytes) -> bool:
    """The last brace closes the object, so the member before it is the object's own, whatever the others hold."""
    if tally.usage.model is None or not data.endswith(b'"done":false}'):
        return False
    tally.usage.events += 1
    return True


def _look_openai(tally: Tally, name: bytes, data: bytes) -> bool:
    """No name in a chunk is the model's choice (arguments of tools are strings), and there is one choice in it."""
    if data == b"[DONE]":
        tally.ended = True
        return True
    if tally.usage.model is None or b'"finish_reason":null' not in data or b'"model":""' in data:
        return False
    tally.usage.events += 1
    return True


def _look_named(tally: Tally, name: bytes, data: bytes) -> bool:
    """Anthropic's events and those of /v1/responses have their type in a line of their own."""
    kind = name.decode("ascii", "replace")
    tally.usage.events += _is_content(kind)
    return kind not in _TELLING


def _is_content(kind: str) -> bool:
    """content_block_delta, response.output_text.delta and their like."""
    return kind.endswith("delta") and kind not in _TELLING


_ANSWERS: dict[bytes, tuple[Wanted, Look]] = {
    b"/api/chat": (_NATIVE, _look_native),
    b"/api/generate": (_NATIVE, _look_native),
    b"/api/embed": (_NATIVE, _look_native),
    b"/api/embeddings": (_NATIVE, _look_native),
    b"/api/create": (_NATIVE, _look_native),
    b"/api/pull": (_NATIVE, _look_native),
    b"/api/push": (_NATIVE, _look_native),
    b"/v1/chat/completions": (_OPENAI, _look_openai),
    b"/v1/completions": (_OPENAI, _look_openai),
    b"/v1/embeddings": (_OPENAI, _look_openai),
    b"/v1/responses": (_RESPONSES, _look_named),
    b"/v1/messages": (_MESSAGES, _look_named),
}
"""All that is read, by path; anything else tells of no tokens."""


# -- The forms of a body -----------------------------------------------------------------------------------------------


class Form(Protocol):
    """How a body is made up."""

    def feed(self, data: bytes) -> None:
        """The next bytes of it."""

    def finish(self) -> None:
        """There are no more."""


class Plain:
    """One JSON object."""

    def __init__(self, tally: Tally, wanted: Wanted) -> None:
        self._tally = tally
        self._scanner = Scanner(wanted)

    def feed(self, data: bytes) -> None:
        self._scanner.feed(data)

    def finish(self) -> None:
        self._tally.take(self._scanner.found)
        self._tally.ended = self._scanner.closed


class Lines:
    """NDJSON: each line is an event."""

    def __init__(self, tally: Tally, wanted: Wanted, look: Look) -> None:
        self._tally = tally
        self._wanted = wanted
        self._look = look
        self._held = bytearray()  # the start of a line
        self._long: Scanner | None = None  # of a line too long to be held

    def feed(self, data: bytes) -> None:
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if self._held or self._long or len(line) > MAX_LINE:
                self._hold(line)
                self._end_held()
            else:
                self.line(line)
        if rest:
            self._hold(rest)

    def finish(self) -> None:
        """The last line needs no line end."""
        self._end_held()

    def _hold(self, data: bytes) -> None:
        if self._long:
            self._long.feed(data)
            return
        self._held += data
        if len(self._held) > MAX_LINE:
            self._long = self.open_long(bytes(self._held))
            self._held.clear()

    def _end_held(self) -> None:
        line, long = bytes(self._held), self._long
        self._held.clear()
        self._long = None
        if long:
            self.end_long(long)
        else:
            self.line(line)

    def line(self, line: bytes) -> None:
        """A whole line."""
        self.event(b"", line)

    def open_long(self, start: bytes) -> Scanner:
        """What is to read a line that is too long to be held, after it has read the start of it."""
        return self.scan(start)

    def end_long(self, scanner: Scanner) -> None:
        """The end of such a line."""
        self.read(scanner)

    def event(self, name: bytes, data: bytes) -> None:
        """A whole event."""
        if data and not self._look(self._tally, name, data):
            self.read(self.scan(data))

    def scan(self, data: bytes) -> Scanner:
        """A scanner that has read so much of an event."""
        scanner = Scanner(self._wanted)
        scanner.feed(data)
        return scanner

    def read(self, scanner: Scanner) -> None:
        """Count an event that was scanned. One that was cut off counts for nothing."""
        if scanner.closed:
            self._tally.take(scanner.found)


class ServerSentEvents(Lines):
    """Events of fields on lines, each ended by an empty line (HTML Living Standard, 9.2).

    Lines end in LF or CRLF; a lone CR is none here. What follows the last empty line is no event.
    """

    def __init__(self, tally: Tally, wanted: Wanted, look: Look) -> None:
        super().__init__(tally, wanted, look)
        self._name = b""
        self._data: bytes | None = None
        self._scanner: Scanner | None = None  # of data on more than one line, or on a long one

    def finish(self) -> None:
        pass

    def line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            if self._data is None and self._scanner is None:
                self._data = line[5:].strip()
            else:
                self._scan_data(line[5:])
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif line in (b"", b"\r"):
            self._dispatch()

    def open_long(self, start: bytes) -> Scanner:
        if start.startswith(b"data:"):
            return self._scan_data(start[5:])
        return Scanner({})  # a comment, or a field that nobody reads

    def end_long(self, scanner: Scanner) -> None:
        """The event goes on to the next empty line."""

    def _scan_data(self, data: bytes) -> Scanner:
        if self._scanner is None:
            self._scanner = self.scan(self._data or b"")
        self._scanner.feed(b"\n" + data)
        return self._scanner

    def _dispatch(self) -> None:
        name, data, scanner = self._name, self._data, self._scanner
        self._name, self._data, self._scanner = b"", None, None
        if scanner:
            self.read(scanner)
        elif data:
            self.event(name, data)


class UsageReader:
    """Reads one answer as it passes."""

    def __init__(self, route: Route, content_type: str, content_encoding: str, status: int) -> None:
        media_type = content_type.partition(";")[0].strip().lower()
        answer = _ANSWERS.get(route.path) if status == 200 else None
        self._tally = Tally(stream=media_type != "application/json")
        self._tally.usage.compressed = content_encoding.strip().lower() not in ("", "identity")
        self._form: Form | None = None
        if answer and not self._tally.usage.compressed:
            self._form = _form(media_type, self._tally, *answer)
        self._tokens = self._form is not None and self._tally.stream and route.route_class is RouteClass.INFER

    @property
    def stream(self) -> bool:
        """It comes in events."""
        return self._tally.stream

    @property
    def model(self) -> str | None:
        """As far as it was told."""
        return self._tally.usage.model

    @property
    def events(self) -> int:
        """How many events with content have passed: the first of them is the first token."""
        return self._tally.usage.events

    def feed(self, data: bytes) -> int:
        """The next bytes of the body; how many events with content they end."""
        if not self._form:
            return 0
        usage = self._tally.usage
        before = usage.events
        self._form.feed(data)
        return usage.events - before

    def finish(self, clean: bool) -> Usage:
        """The end of the body; `clean` is False where it broke off."""
        tally, usage = self._tally, self._tally.usage
        if self._form:
            self._form.finish()
        if self._tokens and usage.completion_tokens is None:
            usage.completion_tokens, usage.estimated = usage.events, True
        # Only a stream of tokens, and a plain object, say themselves that they are whole.
        ended = tally.ended or self._form is None or (tally.stream and not self._tokens)
        usage.complete = clean and ended and usage.error is None
        return usage


def _form(media_type: str, tally: Tally, wanted: Wanted, look: Look) -> Form | None:
    match media_type:
        case "application/json":
            return Plain(tally, wanted)
        case "application/x-ndjson":
            return Lines(tally, wanted, look)
        case "text/event-stream":
            return ServerSentEvents(tally, wanted, look)
    return None
