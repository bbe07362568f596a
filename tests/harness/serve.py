"""scripts/serve as a process of its own, in a directory of the test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.base import ROOT

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
CLEAN["OLLAMA_METRICS_LISTEN"] = ""  # The port of the default may be taken by another test.


@contextmanager
def served(folder: Path, *arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """scripts/serve.py in `folder`, and what it said until it was open."""
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "serve", *arguments]
    with subprocess.Popen(command, cwd=folder, env=CLEAN | variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = []
            for line in process.stdout:
                said.append(line)
                if "curl -N" in line:
                    break
            yield process, said
        finally:
            process.terminate()
