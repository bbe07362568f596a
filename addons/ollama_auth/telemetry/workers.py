"""Tell the other processes on one port (`scripts/serve --workers`) what is under way in this one, by a file a second.

What has ended is in the ledger, which they share. What is under way is not: it must not outlive its process, also where
that is killed, is of no use after it, and would be written to the ledger's disk each second, 4 kB for an idle process.
The counters of Prometheus are merged by its own library, from the same folder. Their supervisor makes the folder and
sets OLLAMA_WORKERS and PROMETHEUS_MULTIPROC_DIR; a single process has no folder and shares nothing.
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
"""Seconds after which a state no longer tells what is in flight: its process has ended, or hangs."""


def count(environ: Mapping[str, str]) -> int:
    """How many processes share the port."""
    text = environ.get("OLLAMA_WORKERS", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else 1


def folder(environ: Mapping[str, str]) -> Path | None:
    """The folder in which they share; None for a single process."""
    found = environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(found) if found and count(environ) > 1 else None


def publish(where: Path, state: Mapping[str, Any]) -> None:
    """Write the state of this process atomically. Does nothing when the disk is full."""
    with suppress(OSError):
        part = where / f"{os.getpid()}.part"
        part.write_text(json.dumps(state))
        part.replace(where / f"status-{os.getpid()}.json")


def others(where: Path) -> list[dict[str, Any]]:
    """The last states of all other processes that still run."""
    found = []
    for file in where.glob("status-*.json"):
        if file.name == f"status-{os.getpid()}.json":
            continue
        with suppress(OSError, ValueError):
            state = json.loads(file.read_text())
            if time.time() - file.stat().st_mtime > FRESH:
                continue
            found.append(state)
    return found
