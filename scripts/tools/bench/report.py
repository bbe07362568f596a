"""How long scripts/usage takes for the ledger of a year."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import batched
from pathlib import Path

from ollama_auth.telemetry import usage_db
from ollama_auth.telemetry.usage_db import Entry

from .. import TOOLS

YEAR = 365 * usage_db.DAY
BATCH = 20_000
BY = ("key", "month,key", "day", "key,model,day", "outcome,reason", "client", "day,client", "month,key,client,outcome")


def measure(folder: Path, requests: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds, and those of processor, by COLUMNS. Each of 20 keys has two clients, and two models."""
    file = folder / "usage.db"
    file.touch()
    connection = usage_db.connect(file, write=True)
    usage_db.prepare(connection)
    for rows in batched(entries(requests), BATCH):
        sums: usage_db.Sums = {}
        for row in rows:
            usage_db.add_to(sums, row)
        usage_db.write(connection, rows, sums)
    connection.close()
    found: dict[str, dict[str, list[float]]] = {}
    for by in BY * repeats:
        begun, before = time.perf_counter(), os.times()
        command = [sys.executable, str(TOOLS), "usage", "--by", by, "--timezone", "Europe/Berlin", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took, after = time.perf_counter() - begun, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        for name, seconds in {f"{by}, s": took, f"{by}, CPU s": cpu}.items():
            found.setdefault(name, {}).setdefault("usage", []).append(seconds)
    return found


def entries(count: int) -> Iterator[Entry]:
    chance = random.Random(1)  # noqa: S311, a load
    first = int(time.time()) - YEAR
    for number in range(count):
        key, began = chance.randrange(20), first + number * YEAR / count
        answered = chance.random() < 0.9
        prompt, completion, ttft, made = None, None, None, None
        if answered:
            prompt, completion, made = chance.randrange(1000), chance.randrange(500), 1500.0
            ttft = round(chance.random() * 1000, 1)
        yield Entry(
            began, began + 2, f"{number:016x}", f"10.0.{key}.{chance.randrange(2)}", "POST", "infer", "/api/chat",
            200 if answered else 401, prompt, completion, False, 1000, 5000, ttft, 2000.0, made, "", f"key-{key}",
            f"model-{(key + chance.randrange(2)) % 6}", *(("answered", "") if answered else ("refused", "model")),
        )  # fmt: skip
