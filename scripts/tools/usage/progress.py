"""How far the reading of files is, shown on a terminal."""

import os
import sys
import time
from collections.abc import Sequence

from .. import PACKAGE  # noqa: F401, not a script: see there

PERIOD = 0.1
"""Seconds between two updates of the progress."""


class Progress:
    """Show progress on a terminal: a share of the bytes, or the number of lines when the total is unknown."""

    def __init__(self, names: Sequence[str]) -> None:
        self._shown = sys.stderr.isatty()
        self._sizes = [0 if name == "-" else os.path.getsize(name) for name in names]
        self._total = 0 if "-" in names else sum(self._sizes)
        self._before = 0
        self._due = time.monotonic() + 5 * PERIOD
        self._width = 0

    def tell(self, position: int, lines: int) -> None:
        if self._shown and time.monotonic() >= self._due:
            self._due = time.monotonic() + PERIOD
            share = min(99, 100 * (self._before + position) // self._total) if self._total else 0
            self._write(f"{share} %" if self._total else f"{lines:,} lines")

    def next_file(self) -> None:
        self._before += self._sizes.pop(0)

    def done(self) -> None:
        if self._width:
            self._write("")
            self._write("")

    def _write(self, text: str) -> None:
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)
