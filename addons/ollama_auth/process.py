"""Settings of mitmproxy's process: version, option defaults, file limit, exit status, garbage collection.

Nothing here reads mitmproxy's `ctx`: addon.py passes what is needed.

Garbage collection. CPython frees most objects by reference count; its collector looks for those that only refer to each
other. It sorts objects by age: *young* ones are new since the last young collection, *middle* ones have survived one,
and *old* ones have survived a middle collection. A collection stops the whole process for a time proportional to the
objects it looks at: all of them in a full collection, which took 0.7 s with 4,000 streams. So young and middle
collections are made small, and what mitmproxy allocated at the start is never looked at again. A full collection is
never automatic: it is for moments without a request, and only while there are at most FULL_OBJECTS to look at (30 ms on
two busy cores), or so few clients that hardly anybody waits for it, or more than MOST_OBJECTS. Little depends on it,
because requests leave no cycles, and connections are taken to pieces (proxy/teardown.py).
"""

import asyncio
import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .settings import SettingsError

OLDEST, NEXT = (12, 2, 2), (12, 4)
"""The versions of mitmproxy that are supported: the first, and the first that nobody has reviewed."""

SPARE_FILES = 96
"""File descriptors for the status listener, logs, name lookups and Redis, and for clients that are being closed."""
FEWEST_CONNECTIONS = 8
"""Client connections that are taken, however few file descriptors there are."""

# What makes mitmproxy safe and correct as a gateway, unless the user has set it.
DEFAULTS: dict[str, Any] = {
    "connection_strategy": "lazy",  # Open no connection to Ollama before a request is admitted.
    "block_global": False,  # Clients with public addresses are what authentication is for.
    "tcp_timeout": 24 * 60 * 60,  # A model that loads, or a response that does not stream, may be silent for hours.
    "keep_host_header": False,  # Ollama rejects host names it does not know.
}
MITMDUMP_DEFAULTS: dict[str, Any] = {
    "flow_detail": 0,  # mitmdump's own lines contain whole URLs; ours don't.
    "termlog_verbosity": "alert",  # Log no line for each TCP connection.
}

YOUNG_THRESHOLD = 1_000
"""New objects that start a young collection."""
MIDDLE_THRESHOLD = 20
"""Young collections that start a middle one, if no idle moment comes first."""
NEVER = 1_000_000_000
"""Middle collections that start a full one by themselves."""
IDLE_MIDDLE_THRESHOLD = 10
"""Young collections that make a middle one worth its time when no request is running."""
IDLE_FULL_THRESHOLD = 5
"""Middle collections after which the next idle moment is used for a full one."""
BUSY_FULL_THRESHOLD = 100
"""Middle collections after which a full one waits for no idle moment."""
FULL_OBJECTS = 100_000
"""Most objects that are new since the start, at which a full collection is short enough."""
MOST_OBJECTS = 2_000_000
"""The same, at which a gate that is never idle collects nevertheless: its memory must not grow without end."""
FEW_CLIENTS = 8
"""Client connections that may have to wait for a longer one, in an idle moment."""
QUIET_CHECKS = 30
"""Checks that found no more clients before that: what the others left is taken to pieces by then."""
IDLE_CHECK_SECONDS = 0.1


def check_version(version: str) -> None:
    """Raise SettingsError for a mitmproxy that this addon does not support.

    Older versions have vulnerabilities of their own (CVE-2025-57804); newer ones may have changed the internals that
    proxy/ depends on: nothing that nobody has read is in front of Ollama.
    """
    found = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:3])
    if not OLDEST <= found < NEXT:
        oldest, following = (".".join(map(str, numbers)) for numbers in (OLDEST, NEXT))
        fault = f"needs {oldest}" if found < OLDEST else f"was reviewed with those before {following} alone"
        raise SettingsError(
            f"this is mitmproxy {version}, and this version of ollama-auth {fault}: "
            f"pip install 'mitmproxy>={oldest},<{following}' with Python 3.12 or newer"
        )


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one: each request takes two sockets, and shells often set 1024."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def has_terminal() -> bool:
    """Whether somebody sees this program in a terminal: one that was closed is none any more."""
    return os.isatty(0) or os.isatty(1)


def listening(addresses: Sequence[tuple[str, int]]) -> str:
    """Addresses as text; `*:PORT` is all addresses of both families."""
    found = set(addresses)
    for _, port in addresses:
        if found >= (both := {("0.0.0.0", port), ("::", port)}):  # noqa: S104, not listened on here
            found = found - both | {("*", port)}
    return " and ".join(sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found))


def open_files() -> int:
    """The number of files that this process has open."""
    with suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 32


def most_connections(wanted: int, others: int) -> int:
    """The number of client connections that there are file descriptors for, at most `wanted`.

    A client takes two, with the one for its request upstream. `others` are open for other things.
    """
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError, ValueError):
        return wanted
    if limit == resource.RLIM_INFINITY:
        return wanted
    return max(min(wanted, (limit - others - SPARE_FILES) // 2), min(wanted, FEWEST_CONNECTIONS))


def force_exit_status(status: int) -> None:
    """End the process with this status when Python exits, before it unloads its modules.

    For an https endpoint mitmproxy also listens on UDP, in threads that are not Python's; while these stop, they often
    crash the interpreter (mitmproxy_rs 0.12; seen without this addon as well).
    """

    atexit.register(lambda: (sys.stdout.flush(), sys.stderr.flush(), os._exit(status)))


def freeze_startup_objects() -> None:
    """Exempt all objects that exist now from garbage collection, and set the thresholds from here on."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(YOUNG_THRESHOLD, MIDDLE_THRESHOLD, NEVER)


async def collect_when_idle(idle: Callable[[], bool], clients: Callable[[], int] = lambda: 0) -> None:
    """Collect garbage whenever `idle()` is true and enough has gathered; runs until cancelled.

    `clients` returns the number of client connections.
    """
    at_start, quiet = sys.getallocatedblocks(), 0
    while True:
        await asyncio.sleep(IDLE_CHECK_SECONDS)
        quiet = quiet + 1 if clients() <= FEW_CLIENTS and idle() else 0
        _, young, middle = gc.get_count()  # Collections of each age since the last one of the next age.
        if middle < IDLE_FULL_THRESHOLD and young < IDLE_MIDDLE_THRESHOLD:
            continue
        now_idle, grown = idle(), sys.getallocatedblocks() - at_start
        short, due = grown <= FULL_OBJECTS, middle >= (IDLE_FULL_THRESHOLD if now_idle else BUSY_FULL_THRESHOLD)
        if (due and (short or quiet > QUIET_CHECKS)) or grown > MOST_OBJECTS:
            gc.collect(2)
            if not short:  # What is left will stay: many keys, or flows that are looked at.
                gc.freeze()
                at_start = sys.getallocatedblocks()
        elif now_idle and young >= IDLE_MIDDLE_THRESHOLD:
            gc.collect(1)
