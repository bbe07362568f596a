"""mitmdump as scripts/serve and the image run it, with what can't be done in auth.py, which is loaded too late.

It runs on uvloop, if that is installed, which saves about a quarter of the processor time of a request or a token. What
of mitmproxy a gate hardly uses is imported when it is used. An error is one line. Once it listens, it asks itself
without a key, and ends if that is let in. A worker of supervisor.py also shares its port with the others, and ends when
the supervisor does.
"""

# ruff: noqa: E402, because SIGINT, which the program before this one has blocked, comes first.
import os
import signal


def interrupted(*_: object) -> None:
    """End with one line, before and after the gate handles the signal itself."""
    os.write(2, b"ollama-auth: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

import asyncio
import ctypes
import gc
import logging
import ssl
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property, partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any, NoReturn


class ImportLater(MetaPathFinder):
    """Imports LDAP, which mitmproxy imports as a whole for its option `proxyauth`, when something of it is used."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "ldap3" else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


class Page:
    """mitmproxy's page at mitm.it (PEP 3333), for which it imports Flask: here when somebody asks for it."""

    module = "mitmproxy.addons.onboardingapp"

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        stand_in = sys.modules[self.module] = ModuleType(self.module)
        stand_in.app = self  # type: ignore[attr-defined]

    @cached_property
    def app(self) -> Any:
        del sys.modules[self.module]
        made = import_module(self.module).app
        made.config.update(self.config)
        return made

    def __call__(self, *request: Any) -> Any:
        return self.app(*request)


if __name__ == "__main__":  # This saves a tenth of the time to start, and of the memory.
    gc.disable()  # Little of what the start makes is garbage; freeze_startup_objects() enables it again.
    sys.meta_path.insert(0, ImportLater())
    Page()

from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import ReverseInstance
from mitmproxy.tools import cmdline, dump
from mitmproxy.tools.main import mitmdump
from mitmproxy.utils import asyncio_utils

SELF_CHECK, GUIDANCE = "OLLAMA_AUTH_SELF_CHECK", "OLLAMA_AUTH_GUIDANCE"
"""Variables of scripts/serve and the entrypoint: the id of the request in which the gate asks itself, which it does not
log; and what to say once it is open."""
PATIENCE = 30.0
"""Seconds that scripts may take to load, and the gate to answer."""
PR_SET_PDEATHSIG = 1
"""PR_SET_PDEATHSIG(2const): the signal to send to this process when its parent ends."""


async def listen(instance: ReverseInstance, host: str, port: int) -> list[asyncio.Server]:
    """Replace mitmproxy's own: share the port (SO_REUSEPORT), and listen on TCP alone."""
    return [await asyncio.start_server(instance.handle_stream, host, port, reuse_port=True)]


class Started:
    """An addon that asks the gate for something without a key when it listens, and then says that it is open."""

    def __init__(self, master: dump.DumpMaster, request_id: str) -> None:
        self.master = master
        self.request_id = request_id
        self.guidance = os.environ.pop(GUIDANCE, "")

    def running(self) -> None:
        asyncio_utils.create_task(self.check(), name="self-check", keep_ref=True)

    async def check(self) -> None:
        """End the process if a stranger is let in: mitmproxy alone, without the gate, serves everybody."""
        scripts = self.master.addons.get("scriptloader").addons
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not all(script.ns for script in scripts):  # noqa: ASYNC110, mitmproxy has no event for it
                    await asyncio.sleep(0.05)
        gate = self.master.addons.get("ollama_gate")
        status = await self.ask()
        if gate is None or not gate.is_open() or status not in (b"401", b"503", b""):
            what = f" (status {status.decode()})" if status else ""
            print(f"ollama-auth: strangers were let in{what}: auth.py is not the gate's; restore it", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        if self.guidance:
            print(self.guidance, flush=True)

    async def ask(self) -> bytes:
        """Send a request without a key. Returns the status; empty if there is no answer."""
        host, port = self.master.addons.get("proxyserver").listen_addrs()[0][:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104, the wildcard is no address to connect to
        context = None
        if self.master.options.certs:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with suppress(OSError, IndexError):  # TimeoutError is an OSError.
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(host, port)
                settings = getattr(self.master.addons.get("ollama_gate"), "settings", None)
                if settings and settings.proxy_protocol and writer.get_extra_info("sockname")[0] in settings.proxies:
                    writer.write(b"PROXY UNKNOWN\r\n")  # As every trusted proxy.
                if context:
                    await writer.start_tls(context)
                head = f"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {self.request_id}\r\n\r\n"
                writer.write(head.encode())
                line = await reader.readline()
                writer.close()
                return line.split()[1][:3]
        return b""


class Master(dump.DumpMaster):
    """mitmdump's master, which says what is wrong and nothing behind it."""

    def __init__(self, options: Options, **rest: Any) -> None:
        super().__init__(options, **rest)
        logging.getLogger("mitmproxy.addons.script").setLevel(logging.WARNING)  # It says each script that it loads.
        errors: Any = self.addons.get("errorcheck")

        async def exit_if_errored() -> None:
            await asyncio.sleep(0)  # As mitmproxy does, until all is logged.
            if errors.logger.has_errored:
                sys.exit(1)

        errors.shutdown_if_errored = exit_if_errored
        if request_id := os.environ.get(SELF_CHECK):
            self.addons.add(Started(self, request_id))


def make_parser(options: Options) -> ArgumentParser:
    """mitmdump's parser of the command line, whose errors are one line."""
    parser = _make_parser(options)

    def error(message: str) -> NoReturn:
        known = [name for action in parser._actions for name in action.option_strings]
        wrong = next((word for word in message.split() if word.startswith("--")), "")
        close = get_close_matches(wrong.partition("=")[0], known, n=1)
        hint = f"did you mean {close[0]}? " if close and close[0] != wrong else ""
        print(f"ollama-auth: {message}; {hint}`mitmdump --help` lists them all", file=sys.stderr, flush=True)
        os._exit(1)

    parser.error = error  # type: ignore[method-assign]
    return parser


_make_parser: Callable[[Options], ArgumentParser] = cmdline.mitmdump


def join_workers() -> None:
    """Make this process a worker of the supervisor."""
    shared: Any = listen
    ReverseInstance.listen = shared  # type: ignore[method-assign]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ != "__main__":
    raise ImportError("this is a program, and no script for mitmdump")
if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        print("ollama-auth: without uvloop (pip install 'uvloop>=0.22.1,<0.23'), so a little slower", file=sys.stderr)
    else:
        asyncio.run = partial(asyncio.run, loop_factory=uvloop.new_event_loop)
    if "OLLAMA_WORKER" in os.environ:
        join_workers()
    sys.argv[0] = "ollama-auth"
    dump.DumpMaster, cmdline.mitmdump = Master, make_parser  # type: ignore[assignment,misc]
    try:
        sys.exit(mitmdump())
    finally:
        signal.signal(signal.SIGINT, interrupted)
