"""Gates that share one port (`scripts/serve --workers`): each writes down what it has counted, and reads the others'.

The folder is made by their supervisor, which sets the variables; a gate alone has none and does nothing here.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

FRESH = 10.0
"""Seconds after which what a gate had under way counts for nothing: it has ended, or hangs."""


def count(environ: Mapping[str, str]) -> int:
    """How many gates share the port."""
    text = environ.get("OLLAMA_WORKERS", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else 1


def folder(environ: Mapping[str, str]) -> Path | None:
    """Where they write."""
    found = environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(found) if found and count(environ) > 1 else None


def publish(where: Path, state: Mapping[str, Any]) -> None:
    """Write down what this gate knows, all at once. A full disk costs the others a look at it."""
    with suppress(OSError):
        part = where / f"{os.getpid()}.part"
        part.write_text(json.dumps(state))
        part.replace(where / f"status-{os.getpid()}.json")


def others(where: Path) -> list[dict[str, Any]]:
    """What all other gates wrote last, those that have ended included, but for what they had under way."""
    found = []
    for file in where.glob("status-*.json"):
        if file.name == f"status-{os.getpid()}.json":
            continue
        with suppress(OSError, ValueError):
            state = json.loads(file.read_text())
            if time.time() - file.stat().st_mtime > FRESH:
                state |= {"in_flight": [], "in_flight_total": 0, "connections": 0}
            found.append(state)
    return found
