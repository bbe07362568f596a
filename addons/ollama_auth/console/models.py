"""Ollama's models: what is loaded and until when, how each does, loading and unloading.

The lists are asked of Ollama itself, at most once in FRESH seconds whoever looks, and filtered by what the key may use.
Loading and unloading are requests through the gate.
"""

import asyncio
import json
import sqlite3
import time
from typing import Any

from ..auth import policy
from ..auth.keys import Scope
from ..errors import RefusedError
from ..ollama_api.listings import filter_listing
from ..ollama_api.model_names import short
from ..ollama_api.request_models import BodyError
from ..telemetry import usage_periods
from ..telemetry.readiness import fetch
from ..telemetry.status_server import Problem
from ..telemetry.usage_db import DAY
from ..telemetry.usage_periods import Period
from . import gate_client
from .router import Call

FRESH = 2.0
"""Seconds for which an answer of Ollama is used again."""
PATIENCE = 5.0
"""Seconds that Ollama has to answer."""


async def show(call: Call) -> object:
    if not call.admin and not policy.holds(call.signed_in, Scope.LIST):
        raise RefusedError("scope", 403, "this key lacks the scope list, which seeing models needs")
    asked, tags, ps = await _listings(call)
    loaded = {str(model.get("name")): model for model in _read(call, b"/api/ps", ps)}
    stats = await call.asked("models", _stats) if call.admin else {}
    shown = [_row(model, loaded.get(str(model.get("name"))), stats) for model in _read(call, b"/api/tags", tags)]
    shown.sort(key=lambda model: (not model["loaded"], model["name"]))
    return {"now": time.time(), "asked": asked, "models": shown}


async def _listings(call: Call) -> tuple[float, bytes, bytes]:
    """When Ollama was asked, and its answers. Raises Problem."""
    console = call.console
    async with console.asking:
        if console.listings is None or time.time() - console.listings[0] > FRESH:
            gate = console.gate
            urls = [f"{gate.upstream}{path}" for path in ("/api/tags", "/api/ps")]
            answers = await asyncio.gather(*(fetch(url, PATIENCE, **gate.trust) for url in urls))
            if any(status != 200 for status, _ in answers):
                status = next(status for status, _ in answers if status != 200)
                raise Problem(502, f"Ollama answers with status {status}" if status else "Ollama does not answer")
            console.listings = time.time(), answers[0][1], answers[1][1]
        return console.listings


def _read(call: Call, path: bytes, body: bytes) -> list[dict[str, Any]]:
    """The models of a list that the key may use. Raises Problem."""
    try:
        shown = body if call.admin else filter_listing(path, body, policy.usable(call.signed_in))
        models = json.loads(shown)["models"] or []
        return [model for model in models if isinstance(model, dict) and isinstance(model.get("name"), str)]
    except (BodyError, KeyError, TypeError, ValueError, RecursionError):
        raise Problem(502, "Ollama's answer about its models could not be read") from None


def _row(model: dict[str, Any], loaded: dict[str, Any] | None, stats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found = model.get("details")
    details: dict[str, Any] = found if isinstance(found, dict) else {}
    name = str(model["name"])
    return {
        "name": name,
        "size": model.get("size"),
        "parameters": details.get("parameter_size"),
        "quantization": details.get("quantization_level"),
        "cloud": bool(model.get("remote_host")),
        "loaded": loaded is not None,
        "memory": loaded.get("size") if loaded else None,
        "memory_gpu": loaded.get("size_vram") if loaded else None,
        "until": loaded.get("expires_at") if loaded else None,
    } | stats.get(short(name), {})


def _stats(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """Requests, failures, latency and speed of each model in the last 24 hours."""
    now = time.time()
    day = Period(now - DAY, DAY, 1)
    found: dict[str, dict[str, Any]] = {}
    for (_, model, _, _), sums in usage_periods.groups(connection, day.since, exact=True).items():
        one = found.setdefault(model, {"requests": 0, "failed": 0, "ttft_ms": None, "speed": None})
        one["requests"] += sums.requests
        one["failed"] += sums.failed
    for model, median, most in usage_periods.percentiles(connection, "model", "ttft_ms", day, (0.5, 0.95)):
        found[model]["ttft_ms"] = [median, most]
    for model, median, _ in usage_periods.percentiles(connection, "model", usage_periods.SPEED, day, (0.5, 0.05)):
        found[model]["speed"] = round(median, 1)
    return found


async def load(call: Call) -> object:
    return await _keep(call, None)


async def unload(call: Call) -> object:
    return await _keep(call, 0)


async def _keep(call: Call, keep_alive: int | None) -> object:
    """Ask for nothing of a model, which loads it, or unloads it. The gate's answer."""
    name = call.body.get("model") if isinstance(call.body, dict) else None
    if not isinstance(name, str) or not name:
        raise Problem(400, 'the body is not {"model": "NAME"}')
    call.console.listings = None
    asked = {"model": name, "stream": False} | ({} if keep_alive is None else {"keep_alive": keep_alive})
    answer = await gate_client.ask(call, "/api/generate", json.dumps(asked).encode())
    if answer.status != 400:
        return answer
    # Models for embeddings generate nothing.
    await answer.close()
    return await gate_client.ask(call, "/api/embed", json.dumps(asked | {"input": ""}).encode())
