"""Usage: PYTHONPATH=addons:. python -m tests.tools.soak [--seconds 600] [--clients 12] [--tls]

A gate under a mixed load for minutes, and then the sums: what clients saw, lines of the access log, metrics and
scripts/usage must agree to the request and to the token. Meanwhile the keys file is rewritten each 10 s, and the access
log is moved away and reopened by SIGHUP each 20 s. Memory and descriptors at the begin and at the end show what grows.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.base import ROOT
from tests.harness.certificates import certificate
from tests.harness.credentials import entry, secret
from tests.harness.gate import Ready
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

KEYS: dict[str, dict[str, object]] = {
    "free": {"scopes": ["all"]},
    "held": {"models": ["demo"], "scopes": ["infer", "list"]},
    "few": {"concurrent_requests": 2, "scopes": ["all"]},
    "day": {"tokens_per_day": 10**9, "models": ["demo"], "scopes": ["all"]},
}
CHATS = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages")
SIZES = (1_000, 100_000, 3_000_000)


class Client(threading.Thread):
    """It sends one request after the other, and counts what it saw."""

    def __init__(self, url: str, until: float, number: int, http2: bool) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(number)  # noqa: S311, a load
        self.until = until
        self.http = httpx.Client(base_url=url, verify=False, http2=http2, timeout=60)  # noqa: S501, our own
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.step()
            except Exception as error:
                self.seen["no answer"] += 1
                self.faults.append(f"{type(error).__name__}: {error}")

    def step(self) -> None:
        name = self.random.choice(list(KEYS))
        headers = {"Authorization": f"Bearer {secret(name)}"}
        match self.random.randrange(10):
            case 0:
                self.note(self.http.post("/api/chat", content=chat()), 401)
            case 1:
                self.note(self.http.get("/api/tags", headers={"Authorization": "Bearer sk-ollama-nobody"}), 401)
            case 2:
                self.note(self.http.post("/api/chat", content=chat("other"), headers=bearer("held")), 403)
            case 3:
                self.note(self.http.delete("/api/delete", headers=bearer("held")), 403)
            case 4:
                size = self.random.choice(SIZES)
                answer = self.http.post("/demo/sink", content=bytes(size), headers=bearer("free"))
                self.note(answer, 200)
                self.check(answer.json() == {"bytes": size}, "another upload")
            case 5:
                with self.http.stream("POST", "/api/chat", content=chat(), headers=headers) as answer:
                    self.seen[str(answer.status_code)] += 1
                    for _ in answer.iter_raw():
                        break  # It leaves after the first token.
            case _:
                body = chat(max_tokens=100, stream=True, prompt="hello")
                answer = self.http.post(self.random.choice(CHATS), content=body, headers=headers)
                self.note(answer, 200, *([429] if name == "few" else []))
                whole = any(end in answer.content[-400:] for end in (b'"done":true', b"[DONE]", b"message_stop"))
                self.check(whole or answer.status_code != 200, f"no end: {answer.content[-80:]!r}")

    def note(self, answer: httpx.Response, *expected: int) -> None:
        self.seen[str(answer.status_code)] += 1
        self.check(answer.status_code in expected, f"{answer.request.method} {answer.request.url}: {answer}")

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


def figures(gate: Ready) -> dict[str, float]:
    """Metrics, summed over everything but what names them and the kind of tokens."""
    found: defaultdict[str, float] = defaultdict(float)
    text = ask(gate.watch, "GET", "/metrics", "Host: localhost").body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[f"{sample.name} {sample.labels.get('kind', '')}".strip()] += sample.value
    return found


def descriptors(gate: Ready) -> int:
    return len(os.listdir(f"/proc/{gate.process.pid}/fd"))


def write_keys(file: Path) -> None:
    part = file.with_suffix(".part")
    part.write_text("".join(entry(name, **fields) for name, fields in KEYS.items()))
    part.chmod(0o600)
    part.rename(file)


def disturb(gate: Ready, folder: Path, until: float) -> None:
    """Rewrite the keys file, move the log away and send SIGHUP, until that time; say how it stands each minute."""
    for number in range(1, 10**6):
        time.sleep(min(10, max(0.0, until - time.monotonic())))
        if time.monotonic() >= until:
            return
        write_keys(folder / "keys.toml")
        if number % 2 == 0:
            (folder / "access.log").rename(folder / f"access.log.{number:06}")
            os.kill(gate.process.pid, 1)
        if number % 6 == 0:
            print(
                f"{number // 6} min: {gate.rss / 2**20:.0f} MiB, {descriptors(gate)} descriptors",
                file=sys.stderr,
                flush=True,
            )


def soak(seconds: float, clients: int, tls: bool) -> bool:
    """Run it and print the sums. Returns whether they agree."""
    upstream = Upstream(token_delay=0.005)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_keys(folder / "keys.toml")
        options = {"ollama_access_log": folder / "access.log", "ollama_keys_file": folder / "keys.toml"}
        arguments = [word for option, value in options.items() for word in ("--set", f"{option}={value}")]
        arguments += ["--set", "ollama_max_wrong_keys=0", *(["--certs", str(certificate(folder))] if tls else [])]
        with Ready(upstream.url, *arguments, key=None, fork=False) as gate:
            at_start = gate.rss, descriptors(gate)
            until = time.monotonic() + seconds
            url = f"http{'s' * tls}://127.0.0.1:{gate.port}"
            threads = [Client(url, until, number, http2=tls and number % 2 == 0) for number in range(clients)]
            for thread in threads:
                thread.start()
            disturb(gate, folder, until)
            for thread in threads:
                thread.join()
                thread.http.close()
            time.sleep(3)  # What clients left ends.
            metrics, at_end, log = figures(gate), (gate.rss, descriptors(gate)), gate.output
        files = sorted(folder.glob("access.log*"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        command = [sys.executable, str(ROOT / "scripts" / "tools"), "usage", "--format", "json", *map(str, files)]
        used = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with suppress(Exception):
        upstream.stop()
    seen: Counter[str] = sum((thread.seen for thread in threads), Counter())
    rows = used["rows"] if isinstance(used, dict) else used
    table = {
        "requests": [
            seen.total(),
            len(lines),
            metrics["ollama_auth_requests_total"],
            sum(row["requests"] for row in rows),
        ],
        **{
            f"{kind} tokens": [
                "",
                sum(line.get(f"{kind}_tokens", 0) for line in lines),
                metrics[f"ollama_auth_tokens_total {kind}"],
                sum(row[f"{kind}_tokens"] for row in rows),
            ]
            for kind in ("prompt", "completion")
        },
    }
    print(f"{'':20}{'clients':>12}{'log':>12}{'metrics':>12}{'usage':>12}")
    for title, row in table.items():
        print(f"{title:20}" + "".join(f"{value:>12,.0f}" if value != "" else " " * 12 for value in row))
    print(f"by status, as clients saw them: {dict(sorted(seen.items()))}")
    faults = [fault for thread in threads for fault in thread.faults]
    print(f"faults that clients saw: {len(faults)} {faults[:3] or ''}")
    for title, (memory, files_open) in {"at the begin": at_start, "at the end": at_end}.items():
        print(f"{title}: {memory / 2**20:.0f} MiB, {files_open} descriptors")
    bad = [line for line in log.splitlines() if "Traceback" in line or "denied" in line]
    print(f"lines of errors in the gate's log: {len(bad)} {bad[:2] or ''}")
    agree = all(len({value for value in row if value != ""}) == 1 for row in table.values())
    return agree and not faults and not bad


def main() -> int:
    parser = argparse.ArgumentParser(description="A gate under a mixed load; see the top of this file.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--tls", action="store_true", help="with TLS, half of the clients over HTTP/2")
    arguments = parser.parse_args()
    return not soak(arguments.seconds, arguments.clients, arguments.tls)


if __name__ == "__main__":
    sys.exit(main())
