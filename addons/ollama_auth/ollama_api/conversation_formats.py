"""Conversations in the JSON of each dialect: messages, parts of content, tool calls, events of a stream. Pure."""

from collections.abc import Hashable

from .conversation import (
    MAX_NAME,
    Conversation,
    ConversationFormat,
    Json,
    Kind,
    dict_of,
    dicts_of,
    int_of,
    list_of,
    name_of,
    size_of,
    text_of,
)


def _media(kind: str, value: object) -> str:
    """The kind of an image or the like, and its size or URL. It is sent as base64, a data URL (RFC 2397) or a URL."""
    text = value if isinstance(value, str) else ""
    start = text[:100]
    if start.startswith(("http://", "https://")):
        return f"{kind} at {text[:MAX_NAME]}"
    if start.startswith("data:") and "," in start:
        kind = f"{kind} ({start[5:].partition(',')[0].partition(';')[0]})"
        text = text[text.index(",") + 1 :]
    return f"{kind}, {size_of(len(text) * 3 // 4 - text[-2:].count('='))}"


def _take_messages(found: Conversation, messages: object) -> None:
    for number, message in enumerate(dicts_of(messages)):
        _take_message(found, ("message", number), message, name_of(message.get("role")) or "user")


def _take_message(found: Conversation, key: Hashable, message: Json, role: str) -> None:
    """A message of Ollama, OpenAI or Anthropic, or the part of one that a chunk adds."""
    for name in ("thinking", "reasoning", "reasoning_content"):
        found.add(key, role, Kind.THINKING, message.get(name))
    if role == "tool":
        names = (message.get("tool_name"), message.get("name"), message.get("tool_call_id"))
        found.add(key, role, Kind.RESULT, _plain(message.get("content")), next(filter(None, names), None))
    else:
        _take_content(found, key, role, message.get("content"))
    found.add(key, role, Kind.TEXT, message.get("refusal"))
    for image in list_of(message.get("images")):
        found.add(None, role, Kind.MEDIA, _media("image", image))
    for call in dicts_of(message.get("tool_calls")):
        function = dict_of(call.get("function"))
        arguments = function.get("arguments")
        # OpenAI sends arguments as pieces of a string, by index; Ollama as a whole object.
        part = (key, "call", text_of(call.get("index", call.get("id")))) if isinstance(arguments, str) else None
        found.add(part, role, Kind.CALL, arguments, function.get("name"))


def _plain(content: object) -> str:
    """Content as plain text: the texts of its parts."""
    if not isinstance(content, list):
        return text_of(content)
    return "\n".join(text_of(part.get("text")) or f"({text_of(part.get('type'))})" for part in dicts_of(content))


def _take_content(found: Conversation, key: Hashable, role: str, content: object) -> None:
    """A text, or an array of parts."""
    if not isinstance(content, list):
        found.add(key, role, Kind.TEXT, content)
        return
    for number, part in enumerate(content):
        if isinstance(part, dict):
            _take_part(found, (key, number), role, part)
        else:
            found.add((key, number), role, Kind.TEXT, part)


def _take_part(found: Conversation, key: Hashable, role: str, part: Json) -> None:
    """A part of the content of a message (OpenAI), a block (Anthropic)."""
    match part.get("type"):
        case "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text":
            found.add(key, role, Kind.TEXT, part.get("text"))
        case "thinking":
            found.add(key, role, Kind.THINKING, part.get("thinking"))
        case "tool_use":
            found.add(key, role, Kind.CALL, part.get("input") or "", part.get("name"))
        case "tool_result":
            found.add(key, role, Kind.RESULT, _plain(part.get("content")), part.get("tool_use_id"))
        case "image" | "document" as kind:
            source = dict_of(part.get("source"))
            where = f"data:{text_of(source.get('media_type'))}," if source.get("data") else ""
            found.add(key, role, Kind.MEDIA, _media(kind, where + text_of(source.get("data") or source.get("url"))))
        case "image_url" | "input_image":
            image = part.get("image_url")
            found.add(key, role, Kind.MEDIA, _media("image", dict_of(image).get("url") or image))
        case "input_audio" | "file" | "input_file" as kind:
            inner = dict_of(part.get(kind)) or part
            found.add(key, role, Kind.MEDIA, _media(kind.removeprefix("input_"), inner.get("data")))
        case other:
            found.add(key, role, Kind.TEXT, f"({name_of(other) or 'something'})")


# -- The dialects ------------------------------------------------------------------------------------------------------


def _native_request(found: Conversation, asked: Json) -> None:
    """/api/chat, /api/generate."""
    found.add("system", "system", Kind.TEXT, asked.get("system"))
    _take_messages(found, asked.get("messages"))
    found.add("prompt", "user", Kind.TEXT, asked.get("prompt"))
    found.add("suffix", "user", Kind.TEXT, asked.get("suffix"), "suffix" if asked.get("suffix") else None)
    for image in list_of(asked.get("images")):
        found.add(None, "user", Kind.MEDIA, _media("image", image))


def _native_answer(found: Conversation, event: Json) -> None:
    """A line of a stream, or all of an answer; the last one has `done` true."""
    message = dict_of(event.get("message"))
    found.model = name_of(event.get("model")) or found.model
    _take_message(found, "answer", message, name_of(message.get("role")) or "assistant")
    found.add("answer", "assistant", Kind.THINKING, event.get("thinking"))
    found.add("answer", "assistant", Kind.TEXT, event.get("response"))
    found.ended = event.get("done") is True
    found.finish_reason = name_of(event.get("done_reason")) or found.finish_reason
    found.count(event)
    tokens, nanoseconds = int_of(event, "eval_count"), int_of(event, "eval_duration")
    found.speed = tokens / nanoseconds * 1e9 if tokens and nanoseconds else found.speed


def _openai_request(found: Conversation, asked: Json) -> None:
    """/v1/chat/completions, /v1/completions."""
    _take_messages(found, asked.get("messages"))
    found.add("prompt", "user", Kind.TEXT, asked.get("prompt"))


def _openai_answer(found: Conversation, event: Json) -> None:
    """A chunk of a stream, or all of an answer."""
    found.model = name_of(event.get("model")) or found.model
    if event.get("choices") and event.get("model") == "" and not found.errors:
        found.errors.append("the server failed")  # The only sign of a failure in an OpenAI stream.
    for choice in dicts_of(event.get("choices")):
        message = dict_of(choice.get("delta")) or dict_of(choice.get("message"))
        key = ("choice", text_of(choice.get("index")))
        _take_message(found, key, message, name_of(message.get("role")) or "assistant")
        found.add(key, "assistant", Kind.TEXT, choice.get("text"))
        found.finish_reason = name_of(choice.get("finish_reason")) or found.finish_reason
    found.count(event.get("usage"))


def _responses_request(found: Conversation, asked: Json) -> None:
    found.add("instructions", "system", Kind.TEXT, asked.get("instructions"))
    if isinstance(asked.get("input"), list):
        for number, item in enumerate(dicts_of(asked["input"])):
            _take_item(found, ("item", number), item, name_of(item.get("role")) or "user")
    else:
        found.add("input", "user", Kind.TEXT, asked.get("input"))


def _take_item(found: Conversation, key: Hashable, item: Json, role: str) -> None:
    """An item of the input or output of a response."""
    match item.get("type", "message"):
        case "message":
            _take_content(found, key, role, item.get("content"))
        case "reasoning":
            texts = [*dicts_of(item.get("summary")), *dicts_of(item.get("content"))]
            found.add(key, "assistant", Kind.THINKING, "\n".join(text_of(text.get("text")) for text in texts))
        case "function_call":
            found.add(key, "assistant", Kind.CALL, item.get("arguments"), item.get("name"))
        case "function_call_output":
            found.add(key, "tool", Kind.RESULT, _plain(item.get("output")), item.get("call_id"))
        case other:
            found.add(key, role, Kind.TEXT, f"({name_of(other) or 'something'})")


_DELTAS = {
    "response.output_text.delta": Kind.TEXT,
    "response.refusal.delta": Kind.TEXT,
    "response.reasoning_text.delta": Kind.THINKING,
    "response.reasoning_summary_text.delta": Kind.THINKING,
    "response.function_call_arguments.delta": Kind.CALL,
}


def _responses_answer(found: Conversation, event: Json) -> None:
    kind = event.get("type")
    key = ("output", text_of(event.get("output_index")))
    if kind == "response.output_item.added":
        item = dict_of(event.get("item"))
        if item.get("type") == "function_call":
            found.add(key, "assistant", Kind.CALL, "", item.get("name"))
    elif isinstance(kind, str) and kind in _DELTAS:
        found.add(key, "assistant", _DELTAS[kind], event.get("delta"))
    elif (response := dict_of(event.get("response"))) or event.get("object") == "response":
        _take_response(found, response or event)


def _take_response(found: Conversation, response: Json) -> None:
    """A whole response; at the end of a stream its output has come in parts before."""
    found.model = name_of(response.get("model")) or found.model
    found.count(response.get("usage"))
    found.add_error(response)
    status = name_of(response.get("status"))
    if status in ("completed", "incomplete", "failed"):
        found.ended, found.finish_reason = True, status
    if not found.parts:
        for number, item in enumerate(dicts_of(response.get("output"))):
            _take_item(found, ("output", number), item, name_of(item.get("role")) or "assistant")


def _messages_request(found: Conversation, asked: Json) -> None:
    _take_content(found, "system", "system", asked.get("system"))
    _take_messages(found, asked.get("messages"))


def _messages_answer(found: Conversation, event: Json) -> None:
    key = ("block", text_of(event.get("index")))
    match event.get("type"):
        case "message_start":
            found.model = name_of(dict_of(event.get("message")).get("model"))
            found.count(dict_of(event.get("message")).get("usage"))
        case "content_block_start":
            _take_part(found, key, "assistant", dict_of(event.get("content_block")))
        case "content_block_delta":
            delta = dict_of(event.get("delta"))
            found.add(key, "assistant", Kind.TEXT, delta.get("text"))
            found.add(key, "assistant", Kind.THINKING, delta.get("thinking"))
            found.add(key, "assistant", Kind.CALL, delta.get("partial_json"))
        case "message_delta":
            found.finish_reason = name_of(dict_of(event.get("delta")).get("stop_reason"))
            found.count(event.get("usage"))
        case "message_stop":
            found.ended = True
        case "message":
            found.model, found.finish_reason = name_of(event.get("model")), name_of(event.get("stop_reason"))
            found.count(event.get("usage"))
            _take_content(found, "answer", name_of(event.get("role")) or "assistant", event.get("content"))


OLLAMA: ConversationFormat = ConversationFormat(_native_request, _native_answer)
OPENAI: ConversationFormat = ConversationFormat(_openai_request, _openai_answer)
RESPONSES: ConversationFormat = ConversationFormat(_responses_request, _responses_answer)
MESSAGES: ConversationFormat = ConversationFormat(_messages_request, _messages_answer)
