"""mitmdump on uvloop, if that is installed. It saves about a quarter of the processor time of a request or a token.

This can't be done in auth.py: mitmdump makes its event loop before it loads scripts. A worker of supervisor.py also
shares its port with the others, and ends when the supervisor does.
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
"""PR_SET_PDEATHSIG(2const): the signal to send to this process when its parent ends."""


async def listen(instance: ReverseInstance, host: str, port: int) -> list[asyncio.Server]:
    """Replace mitmproxy's own: share the port (SO_REUSEPORT), and listen on TCP alone."""
    return [await asyncio.start_server(instance.handle_stream, host, port, reuse_port=True)]


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
    sys.argv[0] = "mitmdump"
    sys.exit(mitmdump())
