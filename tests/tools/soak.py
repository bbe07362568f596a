"""Usage: PYTHONPATH=addons:. python -m tests.tools.soak [--seconds 600] [--clients 12] [--tls] [--steady]

A gate under a mixed load for minutes, and then the sums: what clients saw, lines of the access log, rows and sums of
the ledger, and scripts/usage of both must agree to the request and to the token. Meanwhile the keys file is rewritten
each 10 s, and the access log is moved away and reopened by SIGHUP each 20 s. Ollama is restarted each 40 s and the gate
each 60 s, in the middle of requests; with --steady they are not, and metrics must agree, too. Memory and descriptors at
the begin and at the end show what grows.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing, suppress
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ollama_auth.telemetry import usage_db
from tests.harness.base import ROOT
from tests.harness.certificates import certificate
from tests.harness.credentials import entry, secret
from tests.harness.gate import Place, Ready
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
AWAY = (502, 503)
"""What is answered while Ollama or the gate is restarted."""
SUMS = ("requests", "prompt_tokens", "completion_tokens")
KINDS = ("prompt", "completion")
MADE = re.compile(rb'"(?:eval_count|completion_tokens|output_tokens)":([0-9]+)')


class Client(threading.Thread):
    """It sends one request after the other, each with an id of its own, and counts what it saw."""

    def __init__(self, url: str, until: float, number: int, http2: bool, steady: bool) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(number)  # noqa: S311, a load
        self.until = until
        hooks = {"request": [self.name_it]}
        self.http = httpx.Client(base_url=url, verify=False, http2=http2, timeout=60, event_hooks=hooks)  # noqa: S501, our own
        self.prefix, self.away = f"c{number}", () if steady else AWAY
        self.ids: list[str] = []
        self.no_answer: set[str] = set()
        self.made: dict[str, int] = {}
        """The tokens that an answer told, by the id of its request."""
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.step()
            except Exception as error:
                self.seen["no answer"] += 1
                self.no_answer.add(self.ids[-1])
                if not (self.away and isinstance(error, httpx.TransportError)):
                    self.faults.append(f"{type(error).__name__}: {error}")
                time.sleep(0.1)

    def name_it(self, request: httpx.Request) -> None:
        self.ids.append(f"{self.prefix}-{len(self.ids)}")
        request.headers["X-Request-Id"] = self.ids[-1]

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
                self.check(answer.status_code != 200 or answer.json() == {"bytes": size}, "another upload")
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
                if answer.status_code == 200 and (told := MADE.findall(answer.content)):
                    self.made[self.ids[-1]] = int(told[-1])

    def note(self, answer: httpx.Response, *expected: int) -> None:
        self.seen[str(answer.status_code)] += 1
        self.check(
            answer.status_code in (*expected, *self.away), f"{answer.request.method} {answer.request.url}: {answer}"
        )

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


class Stage:
    """Ollama and the gate on ports that stay, whatever is restarted."""

    def __init__(self, folder: Path, tls: bool) -> None:
        self.folder, self.upstream = folder, Upstream(token_delay=0.005)
        self.place, self.output, self.restarts = Place.free(), "", Counter[str]()
        files = {"access_log": "access.log", "keys_file": "keys.toml", "usage_db": "usage.db"}
        self.options = [
            word for option, file in files.items() for word in ("--set", f"ollama_{option}={folder / file}")
        ]
        self.options += ["--set", "ollama_max_wrong_keys=0", *(["--certs", str(certificate(folder))] if tls else [])]
        write_keys(folder / "keys.toml")
        self.gate = self.start()

    def start(self) -> Ready:
        return Ready(self.upstream.url, *self.options, key=None, fork=False, place=self.place)

    def restart_gate(self) -> None:
        self.restarts["gate"] += 1
        self.end_gate()
        self.gate = self.start()

    def end_gate(self) -> None:
        self.gate.signal()
        self.gate.wait(60)
        self.output += self.gate.output
        self.gate.stop()

    def restart_ollama(self) -> None:
        self.restarts["ollama"] += 1
        self.upstream.restart()

    def disturb(self, until: float, steady: bool) -> None:
        """Rewrite keys, move the log away and send SIGHUP, restart, until that time; say how it stands each minute."""
        for number in range(1, 10**6):
            time.sleep(min(10, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until:
                return
            assert self.gate.process.poll() is None, self.gate.output[-4000:]
            write_keys(self.folder / "keys.toml")
            if number % 2 == 0:
                (self.folder / "access.log").rename(self.folder / f"access.log.{number:06}")
                os.kill(self.gate.process.pid, 1)
            if not steady and number % 4 == 3:
                self.restart_ollama()
            if not steady and number % 6 == 5:
                self.restart_gate()
            if number % 6 == 0:
                now = f"{self.gate.rss / 2**20:.0f} MiB, {descriptors(self.gate)} descriptors"
                print(f"{number // 6} min: {now}", file=sys.stderr, flush=True)


def usage(*files: Path) -> dict[str, int]:
    """What scripts/usage says of access logs or a ledger."""
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "usage", "--format", "json", *map(str, files)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["total"]
    return {name: said[name] for name in SUMS}


def ledger_sums(file: Path, table: str) -> dict[str, int]:
    count = "sum(requests)" if table == "hours" else "count(*)"
    with closing(usage_db.connect(file)) as connection:
        row = connection.execute(f"SELECT {count}, {', '.join(f'sum({name})' for name in SUMS[1:])} FROM {table}")  # noqa: S608, two names
        return dict(zip(SUMS, row.fetchone(), strict=True))


def soak(seconds: float, clients: int, tls: bool, steady: bool) -> bool:
    """Run it and print the sums. Returns whether they agree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = Stage(folder, tls)
        at_start = stage.gate.rss, descriptors(stage.gate)
        until = time.monotonic() + seconds
        url = f"http{'s' * tls}://127.0.0.1:{stage.place.port}"
        threads = [Client(url, until, number, tls and number % 2 == 0, steady) for number in range(clients)]
        for thread in threads:
            thread.start()
        stage.disturb(until, steady)
        for thread in threads:
            thread.join()
            thread.http.close()
        time.sleep(3)  # What clients left ends.
        metrics, at_end = figures(stage.gate), (stage.gate.rss, descriptors(stage.gate))
        stage.end_gate()
        files = sorted(folder.glob("access.log*"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        table = {
            "log": {"requests": len(lines)} | {kind: sum(line.get(kind, 0) for line in lines) for kind in SUMS[1:]},
            "ledger's rows": ledger_sums(folder / "usage.db", "requests"),
            "ledger's sums": ledger_sums(folder / "usage.db", "hours"),
            "usage of log": usage(*files),
            "usage of ledger": usage(folder / "usage.db"),
        }
        with closing(usage_db.connect(folder / "usage.db")) as connection:
            rows = Counter(row for (row,) in connection.execute("SELECT id FROM requests"))
    with suppress(Exception):
        stage.upstream.stop()
    if steady:
        told = [metrics["ollama_auth_requests_total"], *(metrics[f"ollama_auth_tokens_total {kind}"] for kind in KINDS)]
        table["metrics"] = {kind: int(number) for kind, number in zip(SUMS, told, strict=True)}
    for title, sums in table.items():
        print(f"{title:16}" + "".join(f"{name.replace('_', ' ')} {sums[name]:>10,}   " for name in SUMS))
    # A client without an answer can't know whether the gate ever had its request.
    logged = Counter(line["id"] for line in lines)
    unanswered = set().union(*(thread.no_answer for thread in threads))
    answered = set().union(*(thread.ids for thread in threads)) - unanswered
    print(
        f"requests that clients sent: {len(answered):,} with an answer, of which {len(answered - logged.keys())} are "
        f"missing in the log; {len(unanswered):,} without one, of which the log has {len(unanswered & logged.keys()):,}"
    )
    made = {one: tokens for thread in threads for one, tokens in thread.made.items()}
    counted = {line["id"]: line.get("completion_tokens") for line in lines}
    wrong = {one for one, tokens in made.items() if counted.get(one) != tokens}
    print(f"tokens that answers told: {sum(made.values()):,} in {len(made):,} answers, {len(wrong)} counted otherwise")
    same = logged == rows and set(logged) == answered | (unanswered & logged.keys()) and max(logged.values()) == 1
    print(f"each request has one line and one row: {same}")
    seen: Counter[str] = sum((thread.seen for thread in threads), Counter())
    print(f"by status, as clients saw them: {dict(sorted(seen.items()))}; restarts: {dict(stage.restarts)}")
    faults = [fault for thread in threads for fault in thread.faults]
    print(f"faults that clients saw: {len(faults)} {faults[:3] or ''}")
    for title, (memory, files_open) in {"at the begin": at_start, "at the end": at_end}.items():
        print(f"{title}: {memory / 2**20:.0f} MiB, {files_open} descriptors")
    bad = [line for line in stage.output.splitlines() if "Traceback" in line or "denied" in line]
    print(f"lines of errors in the gate's log: {len(bad)} {bad[:2] or ''}")
    agree = all(sums == table["log"] for sums in table.values())
    return agree and same and not wrong and not faults and not bad


def main() -> int:
    parser = argparse.ArgumentParser(description="A gate under a mixed load; see the top of this file.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--tls", action="store_true", help="with TLS, half of the clients over HTTP/2")
    parser.add_argument("--steady", action="store_true", help="restart neither Ollama nor the gate")
    arguments = parser.parse_args()
    return not soak(arguments.seconds, arguments.clients, arguments.tls, arguments.steady)


if __name__ == "__main__":
    sys.exit(main())
