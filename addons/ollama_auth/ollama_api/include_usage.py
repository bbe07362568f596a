"""Have Ollama tell the tokens of an OpenAI stream whose client did not ask for them, and hide that it was asked. Pure.

`stream_options.include_usage` (OpenAI's API; Ollama does the same) adds an event without choices before `[DONE]`; in
/v1/completions Ollama then puts a placeholder in all events besides.
"""

import json
import re

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

MAX_READ = 4 * 1024 * 1024
"""Bytes of a request body that is read for this; a larger one goes as it came."""
MAX_HELD = 64 * 1024
"""Bytes of an event that has not ended, before it passes as it is: the one that is hidden has some hundred."""
PATHS = frozenset({b"/v1/chat/completions", b"/v1/completions"})

_ASK = b',"stream_options":{"include_usage":true}}'
# Inside a JSON string every quote has a backslash before it, so no text of a model looks like this.
_PLACEHOLDER = re.compile(rb',"usage":\{[^{}]*\}')


def asking(body: bytes) -> bytes | None:
    """The request body that asks for usage; None where this one asks already, does not stream, or can't be read.

    Ollama reads JSON as Go does: names match without case, and of two options the later one adds to the first.
    """
    try:
        pairs = json.loads(body.decode("utf-8"), object_pairs_hook=tuple)  # Arrays are lists, and no pairs.
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple):
        return None
    names = [name.lower() for name, _ in pairs]
    found = {name.lower(): value for name, value in pairs}
    options = found.get("stream_options") or ()
    if max(names.count("stream"), names.count("stream_options")) > 1 or not isinstance(options, tuple):
        return None
    if found.get("stream") is not True or any(name.lower() == "include_usage" and value for name, value in options):
        return None
    return body.rstrip()[:-1] + _ASK


class UsageHider:
    """Takes what the client did not ask for out of a stream of events."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """What of it may pass now: all events that have ended. b"" is the end of the stream."""
        whole, data = not data, self._held + data
        end = len(data) if whole else data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        if len(data) - end > MAX_HELD:
            end = len(data)
        self._held = data[end:]
        shown = b"".join(_shown(event) for event in re.split(rb"(?<=\n\n)", data[:end]))
        return [shown] if shown else []


def _shown(event: bytes) -> bytes:
    if b'"usage"' not in event:
        return event
    return b"" if b'"choices":[]' in event else _PLACEHOLDER.sub(b"", event)
