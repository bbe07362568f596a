"""Usage: python tests/tools/smoke.py COMMAND [ARGUMENTS]

Runs a command that starts the gate, such as `mitmdump -s addons/auth.py` or `ollama-auth`, in front of a small upstream
of its own: no request may reach that without the key, and each must with it. Needs the standard library alone, so that
it runs wherever the gate does.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

START = 60
"""Seconds that a start may take."""
ASKED = "/api/ps"
"""What is asked for here; the gate itself asks Ollama for other things."""
SEEN: list[str] = []
"""The requests of that kind that reached the upstream."""


class Upstream(BaseHTTPRequestHandler):
    """Answers each request with its own path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == ASKED:
            SEEN.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None: ...


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(port: int, **fields: str) -> tuple[int, bytes]:
    """(status, body) of the answer to a request with those header fields. Raises OSError and HTTPException."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", ASKED, headers=fields)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(port: int, key: str, process: "subprocess.Popen[bytes]") -> str:
    """What is wrong with the gate that listens there; empty if nothing is."""
    until = time.monotonic() + START
    while True:
        if process.poll() is not None or time.monotonic() > until:
            return f"it did not start (status {process.poll()})"
        with suppress(OSError, HTTPException):
            status, _ = ask(port)
            break
        time.sleep(0.2)
    wrong, _ = ask(port, Authorization=f"Bearer {key[:-1]}")
    if (status, wrong, SEEN) != (401, 401, []):
        return f"without the key it answered {status} and {wrong}, and Ollama saw {SEEN}"
    if (found := ask(port, Authorization=f"Bearer {key}")) != (200, ASKED.encode()) or SEEN != [ASKED]:
        return f"with the key it answered {found}, and Ollama saw {SEEN}"
    return ""


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it, and on Windows the processes that it has started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], check=False)
    else:
        process.send_signal(signal.SIGTERM)
    process.wait(60)


def main(command: list[str]) -> int:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, key = free_port(), f"sk-ollama-{secrets.token_hex(16)}"
    command += ["--mode", f"reverse:http://127.0.0.1:{upstream.server_port}"]
    command += ["--listen-host", "127.0.0.1", "--listen-port", str(port)]
    if "docker" not in command:
        command += ["--set", f"confdir={tempfile.mkdtemp()}"]
    with subprocess.Popen(command, env=os.environ | {"OLLAMA_API_KEY": key}) as process:
        try:
            fault = check(port, key, process)
        finally:
            stop(process)
    print(f"smoke: {fault or 'the gate guards'}", flush=True)
    return bool(fault)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
