"""Requests that carry secrets in every place a client may put them, and the check that none of them was written."""

import base64

from tests.harness.base import BEARER, KEY
from tests.harness.gate import Gate
from tests.harness.wire import Wire, ask, chat

WRONG = "sk-ollama-a-key-that-nobody-has"
IN_BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()


def send_secrets(gate: Gate) -> None:
    for fields in (
        [BEARER],
        [f"x-api-key: {KEY}"],
        [f"Authorization: Basic {IN_BASIC}"],
        [BEARER, "Cookie: session=5ecret"],
    ):
        assert ask(gate.port, "POST", "/api/chat", *fields, body=chat()).status == 200
    ask(gate.port, "POST", "/api/chat", f"Authorization: Bearer {WRONG}", body=chat())
    ask(gate.port, "GET", f"/api/tags?key={WRONG}", f"x-api-key: {WRONG}")
    ask(gate.port, "GET", f"/api/tags?api_key={KEY}", BEARER)
    ask(gate.port, "GET", f"/{KEY}", BEARER)
    ask(gate.port, "GET", f"/x/{KEY}x/y", BEARER)
    ask(gate.port, "GET", f"/v1/{KEY}/models")
    ask(gate.port, "GET", f"/%73{KEY[1:]}")
    ask(gate.port, "GET", f"/{WRONG}", f"x-api-key: {WRONG}")
    with Wire(gate.port, f"GET /{KEY} HTTP/1.1\r\nAuthorization: Bearer {KEY}\nbroken\r\n\r\n".encode()) as wire:
        wire.read_all()
    with Wire(gate.port, f"GET / HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()):
        pass
    with Wire(gate.port, f"{KEY} / HTTP/9.9\r\n{BEARER}\r\n\r\n".encode()) as wire:
        wire.read_all()


def assert_no_secret(text: str) -> None:
    for secret in (KEY, WRONG, IN_BASIC, "5ecret", KEY[:24]):
        assert secret not in text, text[max(0, text.index(secret) - 300) : text.index(secret) + 300]
