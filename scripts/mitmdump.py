"""mitmdump on uvloop, where that is installed: a third less time for each thing that happens on a socket.

mitmdump makes its event loop before it loads any script, so this can't be done in auth.py.
"""

import asyncio
import sys
from functools import partial

from mitmproxy.tools.main import mitmdump

if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        print("ollama-auth: without uvloop (pip install 'uvloop>=0.22.1,<0.23'), so a little slower", file=sys.stderr)
    else:
        asyncio.run = partial(asyncio.run, loop_factory=uvloop.new_event_loop)
    sys.argv[0] = "mitmdump"
    sys.exit(mitmdump())
