"""A stand-in for the gate's status listener: the real files of the page, and answers made up here."""

import asyncio
import json
import math
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from ollama_auth.auth.key_fields import OF_PRINCIPAL
from ollama_auth.console.keys import FORM
from ollama_auth.console.router import page, static_files
from ollama_auth.telemetry.status_server import POLICY
from tests.harness.base import free_port

NOW = 1764063600.0
"""Noon, and the clock of all that is made up."""
HOSTILE = "<img src=x onerror=alert(1)>"
SUMS = ("requests", "answered", "refused", "failed", "broken_off", "prompt_tokens", "completion_tokens", "speed")


def state(**changed: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "started": NOW - 3 * 86400 - 4700,
        "now": NOW,
        "state": "open",
        "state_since": NOW - 60,
        "upstream": "http://127.0.0.1:11434",
        "ready": True,
        "ready_since": NOW - 60,
        "connections": 14,
    } | changed


def bucket(i: int) -> dict[str, Any]:
    """A minute of an hour in which nobody asked at first, then many did; one answer took 60 s to begin."""
    wave = max(0.0, math.sin(i / 7) + math.sin(i / 3) / 2) if i > 8 else 0.0
    refused, failed = 9 if i == 30 else round(wave) % 2, 2 if i in (41, 42) else 0
    answered = max(round(wave * 24) - failed, 0)
    busy = answered > 0
    return {
        "time": NOW - 60 * (59 - i),
        **{"answered": answered, "refused": refused, "failed": failed, "broken_off": int(i == 50)},
        "prompt_tokens": round(wave * 31_000),
        "completion_tokens": round(wave * 9_700),
        "ttft_ms": [180 + wave * 90, 60_000 if i == 20 else 420 + wave * 900 + (i % 5) * 60] if busy else None,
        "speed": [62 - wave * 9, 31 - wave * 7] if busy else None,
        "at_once": round(wave * 3.3, 2),
    }


def rows(by: str, figures: list[Any]) -> list[dict[str, Any]]:
    """(name, requests, refused, failed, tokens in, tokens out, speed)."""
    names = ("requests", "refused", "failed", "prompt_tokens", "completion_tokens", "speed")
    return [
        {by: name, **dict.fromkeys(SUMS, 0), **dict(zip(names, more, strict=True)), "answered": more[0] - more[1]}
        for name, *more in figures
    ]


def flight(key: str, path: str, model: str, seconds: float, ttft: float | None, tokens: int, idle: float) -> Any:
    speed = 0.0 if idle > 5 else 26.1
    shown = {"id": f"{tokens:016x}", "key": key, "path": path, "model": model, "seconds": seconds, "ttft_ms": ttft}
    shown |= {"tokens": tokens, "idle": idle, "speed": speed, "first_token": ttft is not None}
    stalled = idle > 10 if ttft else idle > 60
    return shown | {"method": "POST", "stream": True, "client": "192.0.2.7", "admitted": True, "stalled": stalled}


def overview(**changed: Any) -> dict[str, Any]:
    """What a gate says that has something to do."""
    running = [
        flight("alice", "/api/chat", "llama3.2", 73.4, 212.0, 1893, 0.1),
        flight("ci-runner", "/v1/chat/completions", "qwen3:32b", 141.8, 640.0, 402, 112.0),
        flight("bob-laptop", "/v1/messages", "llama3.2", 3.2, None, 0, 3.2),
    ]
    keys: list[Any] = [
        ("ci-runner", 12_480, 211, 4, 8_120_331, 22_004_118, 19.4),
        ("alice", 1284, 3, 0, 412_034, 1_893_220, 27.9),
        ("(none)", 130, 130, 0, 0, 0, None),
        ("bob-laptop", 97, 0, 0, 18_220, 61_230, 31.2),
        ("reader", 31, 12, 0, 0, 0, None),
    ]
    models: list[Any] = [
        ("qwen3:32b", 12_400, 0, 4, 8_101_998, 21_990_004, 19.2),
        ("llama3.2", 1390, 4, 0, 431_502, 1_955_010, 28.4),
        ("nomic-embed-text", 75, 0, 0, 17_205, 0, None),
    ]
    reasons = [
        ("refused", "requests_per_minute", 211, ["ci-runner"], ["qwen3:32b"]),
        ("refused", "missing", 118, ["(none)"], []),
        ("refused", "scope", 11, ["reader"], []),
        ("failed", "upstream broken", 4, ["ci-runner"], ["qwen3:32b"]),
    ]
    sums: dict[str, Any] = {
        "requests": 14_022,
        "answered": 13_661,
        "refused": 356,
        "failed": 4,
        "broken_off": 1,
        "speed": 21.0,
    }
    sums |= {"prompt_tokens": 8_550_585, "completion_tokens": 23_958_568, "ttft_ms": [212.0, 1340.0]}
    return (
        state()
        | {
            "buckets": [bucket(i) for i in range(60)],
            "step": 60,
            "first": NOW - 3 * 86400,
            "sums": sums,
            "keys": rows("key", keys),
            "models": rows("model", models),
            "reasons": [
                dict(zip(("outcome", "reason", "requests", "keys", "models"), one, strict=True)) for one in reasons
            ],
            "in_flight_total": len(running),
            "in_flight": running,
            "stalled": 1,
            "tokens_per_second": 26.1,
            "held": [
                {"key": "ci-runner", "client": "192.0.2.9", "reason": "requests_per_minute", "requests": 31},
                {"key": None, "client": "198.51.100.23", "reason": "throttled", "requests": 60},
            ],
        }
        | changed
    )


def quiet() -> dict[str, Any]:
    """What a gate says that was only just started."""
    nothing = [bucket(0) | {"time": NOW - 60 * (59 - i)} for i in range(60)]
    sums = dict.fromkeys(SUMS, 0) | {"speed": None, "ttft_ms": None}
    empty: dict[str, Any] = {name: [] for name in ("in_flight", "keys", "models", "reasons", "held")}
    counts = {"in_flight_total": 0, "stalled": 0, "tokens_per_second": 0, "connections": 0}
    start: dict[str, Any] = {"started": NOW - 7, "first": NOW - 7, "ready": None}
    return overview(buckets=nothing, sums=sums) | empty | counts | start


def key(name: str, **more: Any) -> dict[str, Any]:
    used = {"requests": 120, "refused": 3, "failed": 1, "prompt_tokens": 18_220, "completion_tokens": 61_230}
    return {
        **dict.fromkeys(field.name for field in OF_PRINCIPAL),
        **{"name": name, "kind": "key", "admin": False, "scopes": ["infer", "embed", "list"], "disabled": False},
        **{"expired": False, "old_key_until": None, "last_used": NOW - 90, "limits": {}},
        **{limit: figures["limit"] for limit, figures in more.get("limits", {}).items()},
        "today": used,
        "month": used,
    } | more


def me(**more: Any) -> dict[str, Any]:
    """Who is signed in: the key of the environment."""
    return keys()[0] | {"gate": {"scheme": "http", "port": 8081}, "fields": FORM} | more


def used(limit: int, spent: int, until: str | None = None) -> dict[str, Any]:
    return {"limit": limit, "used": spent, "left": max(0, limit - spent), "until": until}


def keys() -> list[dict[str, Any]]:
    day = "2025-11-26T00:00:00Z"
    limits = {"requests_per_minute": used(60, 12), "tokens_per_day": used(200_000, 171_344, day)}
    everything = ["infer", "embed", "list", "pull", "write", "delete", "push", "cloud", "account", "all", "admin"]
    return [
        key("default", kind="environment", admin=True, scopes=everything),
        key("alice", note="second floor", limits=limits),
        key("ci-runner", limits={"concurrent_requests": used(2, 2)}, expires="2026-03-01T00:00:00Z", models=["qwen*"]),
        key("bob-laptop", disabled=True),
        key("carol", last_used=None),
        key("old-script", expired=True, expires="2025-10-01T00:00:00Z"),
    ]


class Stand:
    """Serves the page and `answers`, by path under /console/; with `raw` and `status` in their place if it is set.

    An answer that is a number is the status of a refusal. Nothing is answered while `speaks` is not set.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "overview": overview(),
            "state": state(),
            "me": me(),
            "keys": {"file": "keys.toml", "now": NOW, "keys": keys()},
            "models": {"now": NOW, "asked": NOW - 1, "models": []},
            "requests": {"requests": []},
            "usage": {"rows": []},
        }
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.raw: bytes | None = None
        self.status = 200
        self.sent: list[tuple[str, str, str, Any]] = []
        """(method, path, Authorization, body) of what was asked."""
        stand = self

        class Page(RequestHandler):
            def get(self, name: str = "") -> None:
                media_type, content = static_files()[name or "index.html"]
                self.set_header("Content-Security-Policy", POLICY if name else page()[1])
                self.set_header("Content-Type", media_type)
                self.finish(content if name else page()[0])

        class Json(RequestHandler):
            async def get(self, path: str) -> None:
                body = json.loads(self.request.body) if self.request.body else None
                stand.sent.append((str(self.request.method), path, self.request.headers.get("Authorization", ""), body))
                await stand.speaks.wait()
                answer = stand.answers.get(path, {})
                refused = isinstance(answer, int)
                self.set_status(answer if refused else stand.status)
                text = json.dumps({"error": "this key may not"} if refused else answer)
                self.finish(text if stand.raw is None else stand.raw)

            post = patch = delete = get

        routes = [("/", Page), ("/static/(.*)", Page), ("/console/(.*)", Json)]
        self._application = Application(routes, log_function=lambda _: None)
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._server = HTTPServer(self._application)
        self._server.listen(self.port, "127.0.0.1")

    async def stop(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()
