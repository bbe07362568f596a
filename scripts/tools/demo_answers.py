"""What the fake Ollama server answers: one sentence that quotes the question, in the format of each API.

It thinks if it is asked to, fills in the schema that `format` gives, and calls a tool: the only one that is offered, or
those that the question names. JSON in the question that follows the name of a tool is what it is called with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from . import PACKAGE  # noqa: F401, not a script: see there

type Json = dict[str, Any]
type Format = Callable[[Completion], Iterator[bytes]]

JSON, NDJSON, SSE = "application/json", "application/x-ndjson", "text/event-stream"
REPLY = 'You said: "{:.60}". I am only a stand-in for Ollama, but your words came all the way and back.'
THOUGHT = "I have nothing to think with, but thoughts are shown like this."
MAX_DEPTH = 8
"""Levels of a schema that is filled in; schemas may contain themselves."""


class Folded(dict[str, Any]):
    """A JSON object as Go reads it: keys are in lower case, and the last of two equal ones wins."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__((key.lower(), value) for key, value in pairs)
        self.written = dict(pairs)
        """The keys as they came: schemas and arguments have names of their own."""


def as_written(value: Any) -> Any:
    """The value with its keys as they came."""
    if isinstance(value, Folded):
        return {key: as_written(item) for key, item in value.written.items()}
    return [as_written(item) for item in value] if isinstance(value, list) else value


def an_object(value: object) -> Json:
    """Return the value if it is a JSON object, else an empty object."""
    return value if isinstance(value, dict) else {}


def a_list(value: object) -> list[Any]:
    """Return the value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def dump(value: object, *, ordered: bool = False) -> bytes:
    """Write JSON as Go does: compact, with <, > and & escaped; ordered like its maps, by the names of the fields."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=ordered)
    return re.sub("[<>&]", lambda mark: f"\\u{ord(mark[0]):04x}", text).encode(errors="replace")


def sse(event: Json, *, ordered: bool = False) -> bytes:
    """Write a server-sent event. Those of Anthropic and of responses have a type, which is the event's name, too."""
    name = f"event: {event['type']}\n" if "type" in event else ""
    return b"%bdata: %b\n\n" % (name.encode(), dump(event, ordered=ordered))


def timestamp(nanoseconds: int) -> str:
    """Write a time as Go does."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}".rstrip("0.") + "Z"


def texts_of(content: object) -> list[str]:
    """Find the texts in a string, a message, a part of one, the output of a tool, or a list of these."""
    if isinstance(content, dict):
        return texts_of(content.get("content") or content.get("text") or content.get("output"))
    if isinstance(content, list):
        return [text for item in content for text in texts_of(item)]
    return [content] if isinstance(content, str) else []


def tokens_of(text: str) -> list[str]:
    """Split a text into words and marks, each with the space before it."""
    return re.findall(r"\s*\w+|\s*[^\w\s]|\s+$", text)


def count(texts: list[str]) -> int:
    return sum(len(tokens_of(text)) for text in texts)


def embeddings(path: str, ask: Json) -> Json:
    """The answer to a request for embeddings, in the format that the path has."""
    texts, model = texts_of([ask.get("input"), ask.get("prompt")]), {"model": ask["model"]}
    vectors: list[Any] = [vector_of(text) for text in texts]
    if path == "/api/embeddings":
        return {"embedding": vectors[0] if vectors else []}
    if path == "/api/embed":
        times = {"total_duration": 1000, "load_duration": 100}
        return model | {"embeddings": vectors} | times | {"prompt_eval_count": count(texts)}
    if ask.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack("<32f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "embedding": vector, "index": n} for n, vector in enumerate(vectors)]
    usage = {"prompt_tokens": count(texts), "total_tokens": count(texts)}
    return {"object": "list", "data": data} | model | {"usage": usage}


def vector_of(text: str) -> list[float]:
    """An embedding of length one, derived from a hash of the text."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode(errors="replace")).digest()]
    return [round(number / math.hypot(*raw), 7) for number in raw]


# What the request asks for besides words.


def thinks(ask: Json) -> bool:
    """Whether thoughts are asked for, in the way of any API."""
    effort = ask.get("reasoning_effort") or an_object(ask.get("reasoning")).get("effort") or "none"
    thinking = an_object(ask.get("thinking")).get("type") in ("enabled", "adaptive")
    return bool(ask.get("think")) or effort != "none" or thinking


def schema_of(ask: Json) -> Json | None:
    """The JSON schema that the answer has to fit, or an empty one for any JSON; None for plain text."""
    wanted = ask.get("format") or ask.get("response_format") or ask.get("output_format")
    wanted = wanted or an_object(ask.get("text")).get("format") or an_object(ask.get("output_config")).get("format")
    given = an_object(as_written(wanted))
    kind = given.get("type")
    if wanted == "json" or kind == "json_object":
        return {}
    if kind == "json_schema":
        return an_object(given.get("schema") or an_object(given.get("json_schema")).get("schema"))
    return given if given and kind != "text" else None


def schema_in(texts: list[str]) -> Json:
    """The first JSON schema of an object that is written in texts, or nothing: instructor puts it into the prompt."""
    for text in texts:
        for found in re.finditer(r"\{", text):
            with suppress(ValueError, RecursionError):
                value, _ = json.JSONDecoder().raw_decode(text[found.start() :])
                if isinstance(value, dict) and isinstance(value.get("properties"), dict):
                    return value
    return {}


def example(schema: Json, root: Json, depth: int = 0) -> Any:
    """The simplest value that a JSON schema allows; only patterns are not looked at."""
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if found := schema.get("enum") or schema.get("examples"):
        return found[0]
    if depth > MAX_DEPTH:
        return None
    if "$ref" in schema:
        found = root
        for name in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            found = an_object(found.get(name))
        return example(found, root, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return example(schema[name][0], root, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        fields = an_object(schema.get("properties"))
        names = schema.get("required", fields)
        return {name: example(an_object(fields.get(name)), root, depth + 1) for name in names}
    if kind == "array":
        return [example(an_object(schema.get("items")), root, depth + 1)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    formats = {"date-time": "2026-01-01T00:00:00Z", "date": "2026-01-01", "time": "00:00:00Z", "uri": "http://demo/"}
    text = formats.get(schema.get("format", ""), "demo")
    return {"boolean": True, "null": None}.get(kind, text.ljust(schema.get("minLength", 0), "."))


def last_message(ask: Json) -> Json:
    """The latest message that is not the system's, or nothing."""
    messages = map(an_object, a_list(ask.get("messages")) or a_list(ask.get("input")))
    own = [message for message in messages if message.get("role") not in ("system", "developer")]
    return own[-1] if own else {}


def calls(ask: Json, question: str) -> list[Json]:
    """The calls of tools with which a question is answered: of the one that has to be called, of those that it names,
    or of the only one. None after the result of a tool."""
    last = last_message(ask)
    kinds = {an_object(part).get("type") for part in a_list(last.get("content"))}
    if last.get("role") == "tool" or str(last.get("type")).endswith("_output") or "tool_result" in kinds:
        return []
    tools: dict[str, Json] = {}
    for given in a_list(ask.get("tools")):
        tool = an_object(given.get("function")) or an_object(given)
        schema = as_written(tool.get("parameters") or tool.get("input_schema"))
        if isinstance(schema, dict) and tool.get("name"):
            tools[tool["name"]] = schema
    choice = ask.get("tool_choice")
    wanted = an_object(choice).get("name") or an_object(an_object(choice).get("function")).get("name")
    named = [name for name in tools if name == wanted or re.search(rf"\b{re.escape(name)}\b", question)]
    must = choice in ("required", "any") or an_object(choice).get("type") == "any"
    names = named or [name for name in tools if must or len(tools) == 1][:1]
    return [
        {"id": f"call_{secrets.token_hex(4)}", "name": name, "arguments": arguments_of(question, name, tools[name])}
        for name in ([wanted] if wanted in tools else names)
    ]


def arguments_of(question: str, name: str, schema: Json) -> Json:
    """The JSON that follows the name of a tool in a question, or else the simplest that its schema allows."""
    _, _, rest = question.partition(name)
    try:
        found, _ = json.JSONDecoder().raw_decode(rest[rest.index("{") :])
        return an_object(found)
    except (ValueError, RecursionError):
        return an_object(example(schema, schema))


class Completion:
    """A prompt and the reply to it: thoughts, then calls of tools or words. `asked` and `answered` count tokens."""

    def __init__(self, path: str, ask: Json) -> None:
        self.path, self.model, self.begun, self.ask = path, ask.get("model", ""), time.time_ns(), ask
        self.counts = bool(an_object(ask.get("stream_options")).get("include_usage"))
        texts = texts_of([ask.get(key) for key in ("system", "instructions", "messages", "prompt", "input")]) or [""]
        question = (texts_of(last_message(ask)) or texts)[-1]
        given = an_object(ask.get("options")) | ask
        names = ("num_predict", "max_tokens", "max_completion_tokens", "max_output_tokens")
        limit = next((given[name] for name in names if given.get(name)), None)
        reply = tokens_of(REPLY.format(question)) if any(texts) else []
        if reply and (schema := schema_of(ask)) is not None:
            schema = schema or schema_in(texts)
            made = example(schema, schema) if schema else {"answer": REPLY.format(question)}
            reply = tokens_of(dump(made).decode())
        self.calls = calls(ask, question)
        reply = [] if self.calls else reply
        self.thoughts = tokens_of(THOUGHT) if (reply or self.calls) and thinks(ask) else []
        self.tokens = reply[:limit] if isinstance(limit, int) and limit > 0 else reply
        self.text, self.thought = "".join(self.tokens), "".join(self.thoughts)
        self.reason = "stop" if self.tokens == reply else "length"
        called = count([dump(call["arguments"]).decode() for call in self.calls])
        self.asked, self.answered = count(texts), len(self.tokens) + len(self.thoughts) + called
        wanted = path.startswith("/api/") if ask.get("stream") is None else bool(ask["stream"])
        # A prompt without words only loads or unloads the model. The CLI sends such prompts.
        self.idle = "" if reply or self.calls else "unload" if ask.get("keep_alive") in (0, "0s") else "load"
        self.stream = wanted and not self.idle

    def openai(self, prefix: str, kind: str) -> tuple[Json, Json, Json]:
        """The parts of all OpenAI responses: the first fields, those of the model, and the usage."""
        head = {"id": f"{prefix}-{secrets.randbelow(1000)}", "object": kind, "created": self.begun // 10**9}
        signature = {"model": self.model, "system_fingerprint": "fp_ollama"}
        usage = {"prompt_tokens": self.asked, "completion_tokens": self.answered}
        return head, signature, {"usage": usage | {"total_tokens": self.asked + self.answered}}

    @property
    def openai_calls(self) -> list[Json]:
        """The calls of tools as OpenAI's chat completions have them."""
        return [
            {"id": call["id"], "index": place, "type": "function"}
            | {"function": {"name": call["name"], "arguments": dump(call["arguments"]).decode()}}
            for place, call in enumerate(self.calls)
        ]


def native(completion: Completion) -> Iterator[bytes]:
    """The response in Ollama's format."""

    def line(text: str, thought: str = "", tools: bool = False, **rest: object) -> bytes:
        thinking = {"thinking": thought} if thought else {}
        functions = [
            {"index": place, "name": call["name"], "arguments": call["arguments"]}
            for place, call in enumerate(completion.calls)
        ]
        called = [{"id": call["id"], "function": it} for call, it in zip(completion.calls, functions, strict=True)]
        said: Json = {"response": text} | thinking
        if chat:
            said = {"message": {"role": "assistant", "content": text} | thinking}
            said["message"] |= {"tool_calls": called} if tools and called else {}
        head = {"model": completion.model, "created_at": timestamp(time.time_ns())}
        return dump(head | said | rest) + b"\n" * completion.stream

    chat = completion.path == "/api/chat"
    if completion.idle:
        yield line("", done=True, done_reason=completion.idle)
        return
    if completion.stream:
        yield from (line("", token, done=False) for token in completion.thoughts)
        if completion.calls:
            yield line("", tools=True, done=False)
        yield from (line(token, done=False) for token in completion.tokens)
    took = time.time_ns() - completion.begun
    end: Json = {} if chat else {"context": [*range(completion.asked)]}
    end |= {"total_duration": took, "load_duration": took // 8}
    end |= {"prompt_eval_count": completion.asked, "prompt_eval_duration": took // 8}
    end |= {"eval_count": completion.answered, "eval_duration": took // 2}
    whole = ("", "", False) if completion.stream else (completion.text, completion.thought, True)
    yield line(*whole, done=True, done_reason=completion.reason, **end)


def openai_chat(completion: Completion) -> Iterator[bytes]:
    """The response in the format of OpenAI's chat completions."""

    def chunk(*deltas: Json, reason: str | None = None) -> Json:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason} for delta in deltas]
        return head | signature | {"choices": choices}

    head, signature, usage = completion.openai("chatcmpl", "chat.completion" + ".chunk" * completion.stream)
    reason = "tool_calls" if completion.calls else completion.reason
    called = {"tool_calls": completion.openai_calls} if completion.calls else {}
    role: Json = {"role": "assistant"}
    if not completion.stream:
        thought = {"reasoning": completion.thought} if completion.thought else {}
        said = role | {"content": completion.text} | thought | called
        yield dump(head | signature | {"choices": [{"index": 0, "message": said, "finish_reason": reason}]} | usage)
        return
    deltas: list[Json] = [{"content": "", "reasoning": token} for token in completion.thoughts]
    deltas += [{"content": ""} | called] if called else []
    for delta in deltas + [{"content": token} for token in completion.tokens]:
        yield sse(chunk(role | delta))
        role = {}
    total = sse(chunk() | usage) if completion.counts else b""
    yield sse(chunk({}, reason=reason)) + total + b"data: [DONE]\n\n"


def openai_text(completion: Completion) -> Iterator[bytes]:
    """The response in the format of OpenAI's completions."""

    def choices(*texts: str, reason: str | None = None) -> Json:
        return {"choices": [{"text": text, "index": 0, "finish_reason": reason} for text in texts]}

    head, signature, usage = completion.openai("cmpl", "text_completion")
    if not completion.stream:
        yield dump(head | signature | choices(completion.text, reason=completion.reason) | usage)
        return
    zero = {"usage": dict.fromkeys(usage["usage"], 0)} if completion.counts else {}
    for token in completion.tokens:
        yield sse(head | choices(token) | signature | zero)
    total = sse(head | choices() | signature | usage) if completion.counts else b""
    yield sse(head | choices("", reason=completion.reason) | signature | zero) + total + b"data: [DONE]\n\n"


def messages(completion: Completion) -> Iterator[bytes]:
    """The response in the format of Anthropic's messages."""

    def block(index: int, start: Json, *deltas: Json) -> Iterator[bytes]:
        yield sse({"type": "content_block_start", "index": index, "content_block": start})
        yield from (sse({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas)
        yield sse({"type": "content_block_stop", "index": index})

    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": completion.model}
    uses = [{"type": "tool_use", "id": call["id"], "name": call["name"]} for call in completion.calls]
    inputs = [call["arguments"] for call in completion.calls]
    finished = "tool_use" if uses else {"stop": "end_turn"}.get(completion.reason, "max_tokens")
    reason = {"stop_reason": finished}
    usage = {"usage": {"input_tokens": completion.asked, "output_tokens": completion.answered}}
    if not completion.stream:
        content: list[Json] = [{"type": "thinking", "thinking": completion.thought}] if completion.thought else []
        content += [{"type": "text", "text": completion.text}] if completion.text or not uses else []
        content += [use | {"input": given} for use, given in zip(uses, inputs, strict=True)]
        yield dump(head | {"content": content} | reason | usage)
        return
    guess = {"usage": {"input_tokens": 5, "output_tokens": 0}}  # as in Ollama: the true count comes last
    yield sse({"type": "message_start", "message": head | {"content": []} | guess})
    index = 0
    if completion.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": token} for token in completion.thoughts]
        yield from block(index, {"type": "thinking", "thinking": ""}, *deltas)
        index += 1
    for place, (use, given) in enumerate(zip(uses, inputs, strict=True), index):
        yield from block(place, use | {"input": {}}, {"type": "input_json_delta", "partial_json": dump(given).decode()})
    if not uses:
        said = ({"type": "text_delta", "text": token} for token in completion.tokens)
        yield from block(index, {"type": "text", "text": ""}, *said)
    yield sse({"type": "message_delta", "delta": reason} | usage)
    yield sse({"type": "message_stop"})


def responses(completion: Completion) -> Iterator[bytes]:
    """The response in the format of OpenAI's responses."""
    number = secrets.randbelow(10**6)
    items = list(response_items(completion, number))
    usage = {"input_tokens": completion.asked, "output_tokens": completion.answered}
    usage |= {"total_tokens": completion.asked + completion.answered}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    if not completion.stream:
        output = [item for item, _ in items]
        yield dump(response_object(completion, number, "completed", output, usage | details))
        return
    order = 0

    def event(kind: str, **data: object) -> bytes:
        nonlocal order
        order += 1
        return sse(data | {"type": kind, "sequence_number": order - 1}, ordered=True)

    begun = response_object(completion, number, "in_progress", [], None)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, (item, events) in enumerate(items):
        place = {"output_index": index}
        empty = {name: [] if name in ("content", "summary") else value for name, value in item.items()}
        empty = {name: value for name, value in empty.items() if name != "encrypted_content"}
        empty |= {"status": "in_progress"} if "status" in item else {}
        empty |= {"arguments": ""} if "arguments" in item else {}
        yield event("response.output_item.added", item=empty, **place)
        for kind, data in events:
            yield event(kind, item_id=item["id"], **place, **data)
        yield event("response.output_item.done", item=item, **place)
    output = [item for item, _ in items]
    done = response_object(completion, number, "completed", output, usage | details)
    yield event("response.completed", response=done)


def response_items(completion: Completion, number: int) -> Iterator[tuple[Json, list[tuple[str, Json]]]]:
    """The items of a response, each with its events between the first and the last one."""
    if thought := completion.thought:
        item: Json = {"id": f"rs_{number}", "type": "reasoning"}
        item |= {"summary": [{"type": "summary_text", "text": thought}], "encrypted_content": thought}
        name = "response.reasoning_summary_text"
        events: list[tuple[str, Json]] = [
            (f"{name}.delta", {"delta": token, "summary_index": 0}) for token in completion.thoughts
        ]
        yield item, [*events, (f"{name}.done", {"summary_index": 0, "text": thought})]
    for place, call in enumerate(completion.calls):
        arguments = dump(call["arguments"]).decode()
        item = {"id": f"fc_{number}_{place}", "type": "function_call", "status": "completed"}
        item |= {"call_id": call["id"], "name": call["name"], "arguments": arguments}
        name = "response.function_call_arguments"
        yield item, [(f"{name}.delta", {"delta": arguments}), (f"{name}.done", {"arguments": arguments})]
    if not completion.calls:
        part = {"type": "output_text", "text": completion.text, "annotations": [], "logprobs": []}
        item = {"id": f"msg_{number}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        at: Json = {"content_index": 0}
        deltas = [at | {"delta": token, "logprobs": []} for token in completion.tokens]
        yield (
            item,
            [
                ("response.content_part.added", at | {"part": part | {"text": ""}}),
                *(("response.output_text.delta", delta) for delta in deltas),
                ("response.output_text.done", at | {"logprobs": [], "text": completion.text}),
                ("response.content_part.done", at | {"part": part}),
            ],
        )


def response_object(completion: Completion, number: int, status: str, output: list[Json], usage: Json | None) -> Json:
    ask, seconds = completion.ask, time.time_ns() // 10**9
    reasoning = an_object(ask.get("reasoning"))
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": completion.begun // 10**9,
        "completed_at": seconds if status == "completed" else None,
        "status": status,
        "incomplete_details": None,
        "model": completion.model,
        "previous_response_id": None,
        "instructions": ask.get("instructions") or None,
        "output": output,
        "error": None,
        "tools": as_written(a_list(ask.get("tools"))),
        "tool_choice": "auto",
        "truncation": ask.get("truncation", "disabled"),
        "parallel_tool_calls": True,
        "text": {"format": as_written(an_object(ask.get("text")).get("format")) or {"type": "text"}},
        "top_p": ask.get("top_p", 1),
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": ask.get("temperature", 1),
        "reasoning": {name: reasoning.get(name) for name in ("effort", "summary")} if reasoning else None,
        "usage": usage,
        "max_output_tokens": ask.get("max_output_tokens"),
        "max_tool_calls": None,
        "store": False,
        "background": bool(ask.get("background")),
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


EVENTS = {"Content-Type": SSE, "Cache-Control": "no-cache", "Connection": "keep-alive"}
FORMATS: dict[str, tuple[Format, dict[str, str]]] = {
    "/api/chat": (native, {"Content-Type": NDJSON}),
    "/api/generate": (native, {"Content-Type": NDJSON}),
    "/v1/chat/completions": (openai_chat, {"Content-Type": SSE}),
    "/v1/completions": (openai_text, {"Content-Type": SSE}),
    "/v1/messages": (messages, EVENTS),
    "/v1/responses": (responses, EVENTS),
}
