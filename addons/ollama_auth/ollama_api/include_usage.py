"""Ask Ollama for the usage of an OpenAI stream whose client did not, and hide the difference from the client. Pure.

`stream_options.include_usage` (OpenAI's API; Ollama has it too) adds an event without choices before `[DONE]`. In
/v1/completions Ollama then also puts a placeholder in all other events.
"""

import json
import re

from .sse import split_events

MAX_READ = 4 * 1024 * 1024
"""Bytes of a request body that is read for this; a larger one is forwarded unchanged."""
MAX_HELD = 64 * 1024
"""Bytes of an event that has not ended, before it passes as it is; the hidden event has some hundred."""

_ASK = b',"stream_options":{"include_usage":true}}'
# Inside a JSON string every quote has a backslash before it, so no text of a model looks like this.
_PLACEHOLDER = re.compile(rb',"usage":\{[^{}]*\}')


def asking(body: bytes) -> bytes | None:
    """Return the request body with usage asked for; None if it asks already, does not stream, or can't be read.

    Ollama reads JSON as Go does: names match without case, and of two options the later one adds to the first.
    """
    try:
        pairs = json.loads(body.decode("utf-8"), object_pairs_hook=tuple)  # Objects are tuples, arrays are lists.
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
    """Takes out of a stream of events what the client did not ask for."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return what may pass now: all events that have ended. b"" ends the stream."""
        *events, self._held = split_events(self._held + data)
        if not data or len(self._held) > MAX_HELD:
            events.append(self._held)
            self._held = b""
        shown = b"".join(map(_shown, events))
        return [shown] if shown else []


def _shown(event: bytes) -> bytes:
    if b'"usage"' not in event:
        return event
    return b"" if b'"choices":[]' in event else _PLACEHOLDER.sub(b"", event)
