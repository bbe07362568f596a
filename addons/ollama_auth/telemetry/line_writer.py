"""Write lines to a file or to standard output from a thread, so that a slow pipe or a full disk costs log lines, never
a request.

logging's QueueHandler and QueueListener take seven times as long per line on the event loop (measured: 185 against 26
microseconds), wake the thread for each line, and neither bound what waits nor report how many lines were lost.
"""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import FileIO, TextIOWrapper
from pathlib import Path

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Lines that wait to be written; further ones are dropped and counted."""
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
"""The same bound in characters."""
PAUSE = 0.01
"""Seconds between two writes: waking the thread for each line would take the interpreter from the requests."""


class LineWriter:
    """Write lines in order; count those that can't be written, and log how many were lost."""

    def __init__(
        self, what: str, path: str | None, *, private: bool = False, rotate_at: int = 0, keep: int = 0
    ) -> None:
        """`what` names the log in messages; `path` None is standard output; a `private` file has mode 0600.

        A file that would grow beyond `rotate_at` bytes (0: no bound) becomes PATH.1, that PATH.2, up to PATH.`keep`.
        Raises OSError when the file can't be opened.
        """
        self._what = what
        self._path = Path(path).expanduser() if path is not None else None
        self._private, self._rotate_at, self._keep = private, rotate_at, keep
        self._items: queue.Queue[str | Callable[[], None]] = queue.Queue(MAX_WAITING)
        """Lines, and what the thread is to do between two of them."""
        self._stopped = False
        self._accepted = self._written = 0
        """Characters; each of the two is changed by one thread alone."""
        self._lost = 0
        self._failing = False
        self._torn = False
        """The last write ended within a line."""
        self._thread: threading.Thread | None = None
        self._file = self._open()
        if self._file is None and isinstance(sys.stdout, TextIOWrapper):
            # Whole lines, also with python -u: mitmproxy prints the end of a line separately.
            sys.stdout.reconfigure(line_buffering=True, write_through=False)

    def write(self, line: str) -> None:
        """Queue one line. Never blocks, never raises OSError."""
        if self._accepted - self._written + len(line) > MAX_WAITING_CHARACTERS or not self._put(line):
            self._lost += 1
        else:
            self._accepted += len(line)

    def reopen(self) -> None:
        """Open the path again once the waiting lines are written: the old file was moved away."""
        if self._path:
            self._put(self._reopen)

    def close(self, timeout: float = 2.0) -> None:
        """Write the waiting lines, for at most so many seconds, and close the file."""
        if self._thread:
            try:
                self._items.put(self._stop, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)
        if self._file:
            self._file.close()

    def _put(self, item: str | Callable[[], None]) -> bool:
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
        while not self._stopped:
            lines: list[str] = []
            command = None
            while not command and not (lines and self._items.empty()):
                item = self._items.get()
                if isinstance(item, str):
                    lines.append(item)
                else:
                    command = item
            if lines:
                self._attempt(partial(self._write, "\n".join(lines) + "\n"), len(lines))
                self._written += sum(map(len, lines))
            if command:
                self._attempt(command)
            time.sleep(PAUSE)

    def _stop(self) -> None:
        self._stopped = True

    def _attempt(self, work: Callable[[], None], lines: int = 0) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            self._lost += lines
            if not self._failing:
                self._failing = True
                why = (isinstance(error, OSError) and error.strerror) or "it is closed"
                logger.error("%s can't be written (%s): lines are lost until it can", self._what, why)
            return
        if self._lost and lines:
            logger.warning("%s is written again; %d lines were lost", self._what, self._lost)
            self._lost = 0
        self._failing = False

    def _write(self, text: str) -> None:
        data = text.encode()
        if self._file and self._rotate_at:
            size = os.fstat(self._file.fileno()).st_size  # Other processes may write it, too.
            if size and size + len(data) > self._rotate_at:
                self._rotate()
        # Standard output past Python's buffer, which holds unfinished lines of mitmproxy.
        write = self._file.write if self._file else partial(os.write, sys.stdout.fileno())
        rest = (b"\n" if self._torn else b"") + data
        self._torn = True
        while rest:
            rest = rest[write(rest) :]
        self._torn = False

    def _rotate(self) -> None:
        assert self._path and self._file
        try:
            moved_away = not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            moved_away = True
        if not moved_away:  # Another process may have rotated it.
            names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1))]
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                with suppress(FileNotFoundError):
                    newer.replace(older)
        self._reopen()

    def _reopen(self) -> None:
        old, self._file = self._file, self._open()  # If that raises, the old file stays in use.
        self._torn = False
        if old:
            old.close()

    def _open(self) -> FileIO | None:
        if self._path is None:
            return None
        if self._private:
            self._path.touch(0o600)  # A new file is readable by its owner alone from the start,
            self._path.chmod(0o600)  # and so is one that existed with another mode.
        # Unbuffered: data that a full disk refuses must not wait in a buffer to fail again.
        return self._path.open("ab", buffering=0)
