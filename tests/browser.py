"""A headless Chromium that tests drive by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from support import wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
SECONDS = 20.0
"""That a page may take on a busy machine."""


class Page:
    """One page."""

    def __init__(self, runner: asyncio.Runner, socket: WebSocketClientConnection) -> None:
        self._runner = runner
        self._socket = socket
        self._count = 0

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        return self._runner.run(self._call(method, params))

    async def _call(self, method: str, params: dict[str, object]) -> dict[str, Any]:
        self._count += 1
        await self._socket.write_message(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            text = await asyncio.wait_for(self._socket.read_message(), SECONDS)
            assert text is not None, "the browser is gone"
            said = json.loads(text)
            if said.get("id") == self._count:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """What an expression of JavaScript is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, *texts: str) -> str:
        """The text of the page once all of these are in it."""
        until, shown = time.monotonic() + SECONDS, ""
        while time.monotonic() < until:
            shown = str(self.evaluate("document.body ? document.body.innerText : ''"))
            if all(text in shown for text in texts):
                return shown
            time.sleep(0.05)
        raise AssertionError(f"waited {SECONDS} s for {texts} in {shown!r}")

    def click(self, selector: str, text: str) -> None:
        """Click the first element of that selector with exactly that text."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.innerText === {json.dumps(text)})"
        self.evaluate(f"{found}.click()")

    def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browse(url: str, profile: Path, width: int = 1200, height: int = 750) -> Iterator[Page]:
    """A page in a browser of its own; the test is skipped where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    process = subprocess.Popen(
        [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with asyncio.Runner() as runner:
            socket = runner.run(_connect(_new_page(profile)))
            page = Page(runner, socket)
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            page.call("Emulation.setDeviceMetricsOverride", **size)
            page.call("Page.navigate", url=url)
            yield page
            socket.close()
    finally:
        process.kill()
        process.wait(SECONDS)


def _new_page(profile: Path) -> str:
    """The address of the protocol of a new page, once the browser has said where it listens."""
    file = profile / "DevToolsActivePort"
    port = wait_until(lambda: file.exists() and file.read_text().split(), "the browser to start", 30)[0]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=SECONDS)
    connection.request("PUT", "/json/new?about:blank")
    address: str = json.load(connection.getresponse())["webSocketDebuggerUrl"]
    connection.close()
    return address


async def _connect(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=64 * 1024 * 1024)
