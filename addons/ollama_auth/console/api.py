"""The table of everything under /console/, and the answers that need few words."""

import json

from ..runtime import ActiveConfig
from ..telemetry.monitor import Monitor
from ..telemetry.status_server import Problem
from . import keys
from .gate_client import ask
from .router import Call, Console, Gate, Need, Row


def console(config: ActiveConfig, monitor: Monitor, gate: Gate) -> Console:
    return Console(config, monitor, gate, ROWS)


async def overview(call: Call) -> object:
    return await call.console.monitor.status()


async def me(call: Call) -> object:
    return keys.describe(call.signed_in, call.ring)


async def chat(call: Call) -> object:
    if not isinstance(call.body, dict):
        raise Problem(400, "the body is not a JSON object, as POST /api/chat of Ollama takes it")
    return await ask(call, "/api/chat", json.dumps(call.body).encode())


KEY = "/console/keys/(?P<name>[^/]+)"
ROWS = (
    Row("GET", "/console/overview", Need.OVERVIEW, overview),
    Row("GET", "/console/me", Need.KEY, me),
    Row("POST", "/console/chat", Need.KEY, chat),
    Row("GET", "/console/keys", Need.KEY, keys.list_all),
    Row("POST", "/console/keys", Need.ADMIN, keys.add, changes=True),
    Row("GET", KEY, Need.KEY, keys.show),
    Row("PATCH", KEY, Need.ADMIN, keys.edit, changes=True),
    Row("DELETE", KEY, Need.ADMIN, keys.revoke, changes=True),
    Row("POST", f"{KEY}/rotate", Need.ADMIN, keys.rotate, changes=True),
    Row("POST", f"{KEY}/disable", Need.ADMIN, keys.disable, changes=True),
    Row("POST", f"{KEY}/enable", Need.ADMIN, keys.enable, changes=True),
)
