"""A Chromium that has a page open, over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

from .targets import program

PAINT = """new Promise(done => new PerformanceObserver(found => done(found.getEntries()[0].startTime))
  .observe({type: "paint", buffered: true}))"""
"""Milliseconds from the navigation to the first paint."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


class Browser:
    """One tab. Its commands raise TimeoutError where the browser does not answer."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count()
        self._session: dict[str, str] = {}

    async def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.write_message(
            json.dumps({"id": number, "method": method, "params": parameters} | self._session)
        )
        while (said := json.loads(await self._socket.read_message() or "{}")).get("id") != number:
            if not said:
                raise OSError("the browser has ended")
        result: dict[str, Any] = said["result"]
        return result

    async def start(self) -> None:
        target = await self._send("Target.createTarget", url="about:blank")
        attached = await self._send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    async def open(self, url: str) -> None:
        await self._send("Page.navigate", url=url)

    async def first_paint(self) -> float:
        """Milliseconds that the page took to paint anything (PerformancePaintTiming)."""
        said = await self._send("Runtime.evaluate", expression=PAINT, awaitPromise=True, returnByValue=True)
        return float(said["result"]["value"])


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser with an empty profile. Raises OSError where there is none."""
    found = program("chromium") or program("chromium-browser") or program("google-chrome")
    if not found:
        raise OSError("there is no chromium here; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="bench-browser-", ignore_cleanup_errors=True) as profile:
        command = [found, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        nothing = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, stdout=nothing, stderr=nothing)
        try:
            while len(lines := _lines(Path(profile, "DevToolsActivePort"))) < 2:  # noqa: ASYNC110, another process writes it
                await asyncio.sleep(0.05)
            socket = await websocket_connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_message_size=1 << 26)
            opened = Browser(socket)
            await opened.start()
            yield opened
            socket.close()
        finally:
            process.terminate()
            await process.wait()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
