"""Tools of scripts/tools, called in the test's process: a process of their own costs a third of a second each time."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.harness.base import PATIENCE, ROOT

TOOLS = str(ROOT / "scripts" / "tools")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
"""The environment without the gate's variables."""


@dataclass
class Said:
    """What a command wrote to standard output and to standard error, and its exit status."""

    out: str
    err: str
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(
    main: Callable[[], int], *arguments: str, folder: Path, env: Mapping[str, str] = CLEAN, stdin: bytes = b""
) -> Said:
    """Call a tool's `main` as its process would, with that working directory, environment and input."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.object(sys, "argv", [TOOLS, *arguments]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)), "utf-8")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main()
        except SystemExit as end:
            status = int(end.code or 0)
        out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return Said(out.buffer.getvalue().decode(), err.getvalue(), status)


def execute(*command: str, folder: Path, env: Mapping[str, str] = CLEAN) -> Said:
    """Run a command as a process of its own."""
    ran = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE * 3
    )
    return Said(ran.stdout, ran.stderr, ran.returncode)
