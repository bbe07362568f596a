"""Lines to a file or to standard output, by a thread of its own: a slow pipe or a full disk costs lines, which are
counted, never a request.
"""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from io import FileIO, TextIOWrapper
from pathlib import Path

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Lines that wait to be written, before further ones are dropped."""
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
"""The same, in characters."""


PAUSE = 0.01
"""Seconds between two writes: a thread that is woken for each line would take the interpreter from the requests."""


class WriterCommand(Enum):
    """What the thread may be told between two lines."""

    REOPEN = "reopen"
    STOP = "stop"


class LineWriter:
    """Writes lines in their order; those that can't be written are counted, and that is told."""

    def __init__(
        self, what: str, path: str | None, *, private: bool = False, rotate_at: int = 0, keep: int = 0
    ) -> None:
        """`what` it writes, for messages; `path` None is standard output; a private file is its owner's alone (0600).

        A file that would grow beyond `rotate_at` bytes (0: no bound) becomes PATH.1, that PATH.2, up to PATH.`keep`.
        Raises OSError where the file can't be opened.
        """
        self._what = what
        self._path = Path(path).expanduser() if path is not None else None
        self._private, self._rotate_at, self._keep = private, rotate_at, keep
        self._items: queue.Queue[str | WriterCommand] = queue.Queue(MAX_WAITING)
        self._taken_in = self._written = 0  # Characters; each is counted by one thread alone.
        self._dropped = 0
        self._failing = False
        self._torn = False
        self._thread: threading.Thread | None = None
        self._file = self._open()
        if self._file is None and isinstance(sys.stdout, TextIOWrapper):
            # Whole lines only, also with python -u: mitmproxy prints the end of a line by itself.
            sys.stdout.reconfigure(line_buffering=True, write_through=False)

    def write(self, line: str) -> None:
        """Hand over one line. Never blocks, never raises OSError."""
        if self._taken_in - self._written + len(line) > MAX_WAITING_CHARACTERS or not self._hand_over(line):
            self._dropped += 1
        else:
            self._taken_in += len(line)

    def reopen(self) -> None:
        """Open the file by its name again, after the lines that wait: somebody moved the old one away."""
        if self._path:
            self._hand_over(WriterCommand.REOPEN)

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most that many seconds."""
        if self._thread:
            try:
                self._items.put(WriterCommand.STOP, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)
        if self._file:
            self._file.close()

    def _hand_over(self, item: str | WriterCommand) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._what, daemon=True)
            self._thread.start()
        try:
            self._items.put_nowait(item)
        except queue.Full:
            return False
        return True

    # In the thread.

    def _run(self) -> None:
        while True:
            lines, order = self._next()
            if lines:
                self._attempt(partial(self._write, "\n".join(lines) + "\n"), len(lines))
                self._written += sum(map(len, lines))
            if order is WriterCommand.REOPEN:
                self._attempt(self._reopen)
            elif order is WriterCommand.STOP:
                return
            time.sleep(PAUSE)

    def _next(self) -> tuple[list[str], WriterCommand | None]:
        """(all lines that wait, at least one; what is to be done after them)."""
        lines: list[str] = []
        while not lines or not self._items.empty():
            item = self._items.get()
            if isinstance(item, WriterCommand):
                return lines, item
            lines.append(item)
        return lines, None

    def _attempt(self, work: Callable[[], None], lines: int = 0) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            self._dropped += lines
            if not self._failing:
                self._failing = True
                why = (isinstance(error, OSError) and error.strerror) or "it is closed"
                logger.error("%s can't be written (%s): lines are lost until it can", self._what, why)
            return
        if self._dropped and lines:
            logger.warning("%s is written again; %d lines were lost", self._what, self._dropped)
            self._dropped = 0
        self._failing = False

    def _write(self, text: str) -> None:
        data = text.encode()
        if self._file and self._rotate_at:
            size = os.fstat(self._file.fileno()).st_size  # Others may write it, too.
            if size and size + len(data) > self._rotate_at:
                self._rotate()
        # Standard output past Python's buffer: mitmproxy's own half-written lines are in there.
        write = self._file.write if self._file else partial(os.write, sys.stdout.fileno())
        rest = (b"\n" if self._torn else b"") + data
        self._torn = True
        while rest:
            rest = rest[write(rest) :]
        self._torn = False

    def _rotate(self) -> None:
        assert self._path
        if self._put_aside():  # By another process that writes it.
            self._reopen()
            return
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with suppress(FileNotFoundError):
                newer.replace(older)
        self._reopen()

    def _put_aside(self) -> bool:
        """The file of that name is another one than ours by now."""
        assert self._path
        assert self._file
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return True

    def _reopen(self) -> None:
        old, self._file = self._file, self._open()  # The old one stays in use where there is no new one.
        self._torn = False
        if old:
            old.close()

    def _open(self) -> FileIO | None:
        if self._path is None:
            return None
        if self._private:
            # Nobody else may read it at any moment, also where it is there already.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
            os.close(descriptor)
        # Unbuffered: what a full disk refuses must not wait in a buffer to fail again.
        return self._path.open("ab", buffering=0)
