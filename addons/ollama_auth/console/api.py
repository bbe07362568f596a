"""The table of everything under /console/."""

import json

from ..runtime import ActiveConfig
from ..telemetry.monitor import Monitor
from ..telemetry.status_server import Problem
from . import keys, models, overview, usage
from .gate_client import ask
from .router import Call, Console, Gate, Need, Row

KEY = "/console/keys/(?P<name>[^/]+)"


async def chat(call: Call) -> object:
    """A chat through the gate."""
    if not isinstance(call.body, dict):
        raise Problem(400, "the body is not a JSON object, as POST /api/chat of Ollama takes it")
    return await ask(call, "/api/chat", json.dumps(call.body).encode())


ROWS = (
    Row("GET", "/console/me", Need.KEY, keys.me),
    Row("GET", "/console/state", Need.KEY, overview.state),
    Row("GET", "/console/overview", Need.OVERVIEW, overview.overview),
    Row("GET", "/console/keys", Need.KEY, keys.list_all),
    Row("POST", "/console/keys", Need.ADMIN, keys.add),
    Row("GET", KEY, Need.KEY, keys.show),
    Row("PATCH", KEY, Need.ADMIN, keys.edit),
    Row("DELETE", KEY, Need.ADMIN, keys.revoke),
    Row("POST", f"{KEY}/rotate", Need.ADMIN, keys.rotate),
    Row("POST", f"{KEY}/disable", Need.ADMIN, keys.disable),
    Row("POST", f"{KEY}/enable", Need.ADMIN, keys.enable),
    Row("GET", "/console/usage", Need.KEY, usage.usage),
    Row("GET", "/console/requests", Need.KEY, usage.requests),
    Row("GET", "/console/requests/live", Need.KEY, usage.live),
    Row("GET", "/console/models", Need.KEY, models.show),
    Row("POST", "/console/models/load", Need.KEY, models.load),
    Row("POST", "/console/models/unload", Need.KEY, models.unload),
    Row("POST", "/console/chat", Need.KEY, chat),
)


def console(config: ActiveConfig, monitor: Monitor, gate: Gate) -> Console:
    return Console(config, monitor, gate, ROWS)
