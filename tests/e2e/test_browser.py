"""A real browser calls through the gate with `fetch`: from an origin that may, and from one that may not."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.harness.base import BEARER, KEY, free_port
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import ask

ALLOWED = "http://127.0.0.1:{}"
PAGE = """<!doctype html><title>test</title><pre id=out></pre><script>
const key = {key}, gate = {gate};
async function attempt(path, options) {{
  try {{
    const answer = await fetch(gate + path, options);
    return [answer.status, answer.headers.get("x-request-id") !== null, (await answer.text()).slice(0, 200)];
  }} catch (error) {{ return [String(error)]; }}
}}
(async () => {{
  const headers = {{"Authorization": "Bearer " + key, "Content-Type": "application/json"}};
  const body = JSON.stringify({{model: "demo", messages: [{{role: "user", content: "hello"}}], stream: false}});
  document.getElementById("out").textContent = JSON.stringify({{
    chat: await attempt("/api/chat", {{method: "POST", headers, body}}),
    list: await attempt("/api/tags", {{headers}}),
    none: await attempt("/api/tags", {{}}),
    wrong: await attempt("/api/tags", {{headers: {{"Authorization": "Bearer wrong"}}}}),
  }});
}})();
</script>"""


@contextmanager
def page(text: str, port: int) -> Iterator[str]:
    """A page on an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def browse(url: str, profile: Path) -> dict[str, list[object]]:
    """What the page at that address has found out."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=5000")
    done = subprocess.run([browser, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre id=\"?out\"?>(.*?)</pre>", done.stdout, re.S)
    assert found, done.stdout + done.stderr
    said = json.loads(unescape(found[1]))
    assert isinstance(said, dict)
    return said


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_that_may_and_one_that_may_not(upstream: Upstream, tmp_path: Path) -> None:
    friend, stranger = free_port(), free_port()
    origin = f"http://127.0.0.1:{friend}"
    with Gate(upstream.url, "--set", f"ollama_cors_origins={origin}") as gate:
        text = PAGE.format(key=json.dumps(KEY), gate=json.dumps(gate.url))
        with page(text, friend) as url:
            seen = browse(url, tmp_path / "friend")
        assert seen["chat"][0] == 200
        assert seen["chat"][1] is True
        assert "message" in str(seen["chat"][2])
        assert seen["list"][0] == 200
        assert seen["none"][0] == 401, "a page can read a refusal"
        assert "Bearer" in str(seen["none"][2])
        assert seen["wrong"][0] == 401
        assert "origin" not in {name.lower() for request in upstream.requests for name, _ in request.headers}
        with page(text, stranger) as url, upstream.untouched():
            refused = browse(url, tmp_path / "stranger")
            assert "Failed to fetch" in str(refused["chat"][0])
            assert "Failed to fetch" in str(refused["list"][0])


def test_preflights(upstream: Upstream) -> None:
    asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")
    with Gate(upstream.url, "--set", "ollama_cors_origins=https://chat.example") as gate, upstream.untouched():
        answer = ask(gate.port, "OPTIONS", "/api/chat", "Origin: https://chat.example", *asked)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        for origin in ("https://evil.example", "https://chat.example.evil", "null", "http://chat.example"):
            foreign = ask(gate.port, "OPTIONS", "/api/chat", f"Origin: {origin}", *asked)
            assert foreign.status == 401
            assert "access-control-allow-origin" not in foreign.headers


def test_off_by_default(gate: Gate, upstream: Upstream) -> None:
    with upstream.untouched():
        answer = ask(
            gate.port, "OPTIONS", "/api/chat", "Origin: https://a.example", "Access-Control-Request-Method: POST"
        )
    assert answer.status == 401
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert ask(gate.port, "GET", "/api/tags", BEARER, "Origin: https://a.example").status == 200
