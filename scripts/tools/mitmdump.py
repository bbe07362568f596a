"""mitmdump on uvloop, where that is installed: about a quarter less processor time a request and a token.

mitmdump makes its event loop before it loads any script, so this can't be done in auth.py. One of several workers
(supervisor.py) shares its port with the others besides, and does not outlive their supervisor.
"""

import asyncio
import ctypes
import os
import signal
import sys
from functools import partial
from typing import Any

from mitmproxy.proxy.mode_servers import ReverseInstance
from mitmproxy.tools.main import mitmdump

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""


async def listen(instance: ReverseInstance, host: str, port: int) -> list[asyncio.Server]:
    """As mitmproxy's, on a port that others listen on too, and in TCP alone."""
    return [await asyncio.start_server(instance.handle_stream, host, port, reuse_port=True)]


def join_workers() -> None:
    """Become one of them."""
    shared: Any = listen
    ReverseInstance.listen = shared  # type: ignore[method-assign]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        print("ollama-auth: without uvloop (pip install 'uvloop>=0.22.1,<0.23'), so a little slower", file=sys.stderr)
    else:
        asyncio.run = partial(asyncio.run, loop_factory=uvloop.new_event_loop)
    if "OLLAMA_WORKER" in os.environ:
        join_workers()
    sys.argv[0] = "mitmdump"
    sys.exit(mitmdump())
