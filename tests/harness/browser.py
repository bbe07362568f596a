"""A real chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.harness.base import wait_until

PATIENCE = 30.0
"""Seconds that the browser may take on a busy machine before it counts as hanging."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


class Fault(Exception):
    """What the browser could not do."""


class Page:
    """A tab. `requests` are the addresses it asked for, `complaints` what it wrote to its console."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def read(self) -> None:
        """Takes what the browser says until it ends."""
        while (message := await self._socket.read_message()) is not None:
            said = json.loads(message)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.complaints.append(json.dumps(said["params"]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol -> its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        said = await asyncio.wait_for(answer, PATIENCE)
        if "error" in said:
            raise Fault(said["error"]["message"])
        result: dict[str, Any] = said["result"]
        return result

    async def create(self, **context: str) -> str:
        """A new tab, which is not attached yet -> its name."""
        return str((await self.send("Target.createTarget", url="about:blank", **context))["targetId"])

    async def attach(self, target: str) -> None:
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        said = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise Fault(said["exceptionDetails"])
        return said["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first true value of an expression, whatever page is loaded meanwhile."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(Fault):
                if value := await self.evaluate(expression):
                    return value
            await asyncio.sleep(0.02)
        shown = await self.evaluate("document.body.innerText")
        raise AssertionError(f"waited {PATIENCE} s for {expression}; the page shows {shown}")

    async def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Has a screen of that many pixels, in that colour scheme, on which nothing fades in."""
        prefers = {"color-scheme": "dark" if dark else "light", "reduced-motion": "reduce"}
        features = [{"name": f"prefers-{name}", "value": value} for name, value in prefers.items()]
        await self.send("Emulation.setEmulatedMedia", features=features)
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def screenshot(self) -> bytes:
        """All of the page, as PNG."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A browser whose profile is an empty directory -> where it listens. Skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        try:
            yield wait_until(lambda: address(profile), "chromium to start", PATIENCE)
        finally:
            os.killpg(run.pid, signal.SIGKILL)


def address(profile: Path) -> str | None:
    """It writes its port and a path into a file."""
    file = profile / "DevToolsActivePort"
    lines = file.read_text().splitlines() if file.exists() else []
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) == 2 else None


@asynccontextmanager
async def tab(browser: str, kept: list[str] | None = None) -> AsyncIterator[Page]:
    """A new page, which shares nothing with the others; or the one of that list, which is made once and stays open."""
    socket = await websocket_connect(browser, max_message_size=2**26)
    page = Page(socket)
    reader = asyncio.create_task(page.read())
    try:
        if kept is None:
            context = await page.send("Target.createBrowserContext", disposeOnDetach=True)
            await page.attach(await page.create(browserContextId=context["browserContextId"]))
        else:
            kept[:] = kept or [await page.create()]
            await page.attach(kept[0])
        yield page
    finally:
        socket.close()
        await asyncio.wait_for(reader, PATIENCE)
