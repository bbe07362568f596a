"""Constants and small helpers that every part of the harness builds on."""

import os
import secrets
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
AUTH = ROOT / "addons" / "auth.py"
KEY = "sk-ollama-0123456789abcdef0123456789abcdef"
BEARER = f"Authorization: Bearer {KEY}"
PATIENCE = 20.0
"""Seconds after which a test gives up waiting: far more than anything takes, also on a busy machine."""
SECONDS = 10.0
"""The bound of "within seconds" in seconds: the lingering close takes 2, and the machine may be busy."""
RESERVING = 16_000
"""From a port to the UDP port that is bound while a test run means to use it."""
MOST_RESERVED = 64
_reservations: deque[socket.socket] = deque()


def wait_until(condition: Any, what: str, timeout: float = PATIENCE) -> Any:
    """Return the first true value of `condition()`. Raises AssertionError after `timeout` seconds."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout} s for {what}")


def free_port() -> int:
    """A port that no program listens on.

    It lies below the kernel's ephemeral ports, and each xdist worker has a range of its own, so that neither a client
    connection nor another worker takes it before it is used. A UDP port reserves it among test runs on this machine.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4
    while True:
        port = 16_000 + worker * 4_000 + secrets.randbelow(4_000)
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port + RESERVING))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        _reservations.append(reservation)
        if len(_reservations) > MOST_RESERVED:
            _reservations.popleft().close()
        return port
