"""The table of everything under /console/, and the answers that need few words."""

import json

from ..auth.keys import Scope
from ..runtime import ActiveConfig
from ..telemetry.monitor import Monitor
from ..telemetry.status_server import Problem
from . import access
from .gate_client import ask
from .router import Call, Console, Gate, Need, Row


def console(config: ActiveConfig, monitor: Monitor, gate: Gate) -> Console:
    return Console(config, monitor, gate, ROWS)


async def overview(call: Call) -> object:
    return await call.console.monitor.status()


async def me(call: Call) -> object:
    assert call.who
    return {
        "name": call.who.name,
        "admin": access.is_admin(call.who),
        "scopes": [scope for scope in Scope if scope in call.who.scopes],
        "models": call.who.models,
        "expires": call.who.expires,
    }


async def chat(call: Call) -> object:
    if not isinstance(call.body, dict):
        raise Problem(400, "the body is not a JSON object, as POST /api/chat of Ollama takes it")
    return await ask(call, "/api/chat", json.dumps(call.body).encode())


ROWS = (
    Row("GET", "/console/overview", Need.OVERVIEW, overview),
    Row("GET", "/console/me", Need.KEY, me),
    Row("POST", "/console/chat", Need.KEY, chat),
)
