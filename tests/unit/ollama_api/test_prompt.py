"""Estimates of prompts and of the longest answers that requests ask for."""

import json

from ollama_auth.ollama_api.prompt import IMAGE_TOKENS, Prompt
from tests.harness.cases import each_of

LONG = "QUJD" * 3000
RESULT = {"content": [{"source": {"data": LONG}}]}


def prompt(path: str, body: bytes, size: int | None = None) -> Prompt:
    read = Prompt(path.encode())
    for at in range(0, len(body), size or len(body)):
        read.add(body[at : at + (size or len(body))])
    return read


@each_of(
    ("path", "body", "cap"),
    [
        ("/api/chat", {"options": {"num_predict": 5}}, 5),
        ("/api/chat", {"Options": {"NUM_PREDICT": 5}}, 5),
        ("/api/chat", {"options": {"num_predict": -1}, "max_tokens": 5}, 70),
        ("/api/generate", {"num_predict": 5}, 70),
        ("/v1/chat/completions", {"max_tokens": 5}, 5),
        ("/v1/chat/completions", {"max_tokens": None}, 70),
        ("/v1/chat/completions", {"max_completion_tokens": 5}, 70),  # Ollama ignores it.
        ("/v1/chat/completions", {"max_completion_tokens": 500}, 500),
        ("/v1/chat/completions", {"max_tokens": 0, "options": {"num_predict": 5}}, 70),
        ("/v1/messages", {"max_tokens": 5}, 5),
        ("/v1/responses", {"max_output_tokens": 5, "max_tokens": 9}, 5),
        ("/v1/responses", {"max_tokens": 5}, 70),
        ("/v1/chat/completions", {"max_tokens": 5.5}, 70),
    ],
)
def test_the_longest_answer(path: str, body: dict[str, object], cap: int) -> None:
    assert prompt(path, json.dumps(body).encode()).most_of_answer(usual=70) == cap


@each_of("size", [None, 1, 7, 20_000])
@each_of(
    ("path", "body", "images"),
    [
        ("/api/generate", {"prompt": "x" * 400, "images": [LONG, LONG, "QUJD"]}, 3),
        ("/api/chat", {"messages": [{"content": "x" * 400, "images": [LONG]}, {"images": [LONG]}]}, 2),
        (
            "/v1/messages",
            {"messages": [{"content": [RESULT, {"text": "x" * 380}]}]},
            1,
        ),
        ("/v1/chat/completions", {"messages": [{"content": [{"image_url": LONG}, {"text": "x" * 380}]}]}, 1),
        ("/v1/chat/completions", {"messages": [{"content": "x" * 400}]}, 0),
        ("/v1/chat/completions", {"data": "x" * 380, "url": ""}, 0),
    ],
)
def test_pictures_count_by_their_number(path: str, body: dict[str, object], images: int, size: int | None) -> None:
    tokens = prompt(path, json.dumps(body).encode(), size).tokens
    assert 100 <= tokens - images * IMAGE_TOKENS < 130


def test_what_is_no_whole_object() -> None:
    assert prompt("/api/chat", b'{"messages":[').tokens == 0
    assert Prompt(b"/api/chat").tokens == 0
    assert prompt("/v1/audio/transcriptions", b"--x\r\n" + b"a" * 10_000_000).tokens == IMAGE_TOKENS
