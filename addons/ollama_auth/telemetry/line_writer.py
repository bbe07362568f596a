"""Write lines to a file or to standard output from a thread, so that a slow pipe or a full disk costs log lines, never
a request.

logging's QueueHandler and QueueListener take seven times as long per line on the event loop (measured: 185 against 26
microseconds), wake the thread for each line, and neither bound what waits nor report how many lines were lost.
"""

import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO, TextIOWrapper
from itertools import count
from pathlib import Path

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Lines that wait to be written; further ones are dropped and counted."""
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
"""The same bound in characters."""
type Line = str | Callable[[], bytes]
"""A line without its end, or what makes it in the thread."""
BATCH = 1024 * 1024
"""Characters after which waiting lines are written without the further ones."""
PAUSE = 0.01
"""Seconds between two writes: waking the thread for each line would take the interpreter from the requests."""


class LineWriter:
    """Write lines in order; count those that can't be written, and log how many were lost."""

    def __init__(
        self, what: str, path: str | None, *, private: bool = False, rotate_at: int = 0, keep: int | None = None
    ) -> None:
        """`what` names the log in messages; `path` None is standard output; a `private` file has mode 0600.

        A file that would grow beyond `rotate_at` bytes (0: no bound) becomes PATH.1, that PATH.2, up to PATH.`keep`;
        where `keep` is None none is ever deleted. Raises OSError when the file can't be opened.
        """
        self._what = what
        self._path = Path(path).expanduser() if path is not None else None
        self._private, self._rotate_at, self._keep = private, rotate_at, keep
        self._items: queue.Queue[tuple[Line, int] | Callable[[], None]] = queue.Queue(MAX_WAITING)
        """Lines with their sizes, and what the thread is to do between two of them."""
        self._stopped = False
        self._accepted = self._dropped = 0
        """Characters that were queued, and lines that were not; changed by the event loop's thread alone."""
        self._written = self._lost = self._told = 0
        """Characters that wait no more; lines that were lost here; lost lines that were told of. By this thread."""
        self._failing = self._stuck = False
        self._torn = False
        """What is in the file ends within a line."""
        self._thread: threading.Thread | None = None
        self._file = self._open()
        if self._file is None and isinstance(sys.stdout, TextIOWrapper):
            # Whole lines, also with python -u: mitmproxy prints the end of a line separately.
            sys.stdout.reconfigure(line_buffering=True, write_through=False)

    @property
    def room(self) -> int:
        """Characters that may be queued now."""
        return MAX_WAITING_CHARACTERS - (self._accepted - self._written)

    def write(self, line: Line, size: int | None = None) -> None:
        """Queue one line, of about `size` characters. Never blocks, never raises OSError."""
        size = len(line) if isinstance(line, str) else size or 0
        if size > self.room or not self._put((line, size)):
            self._dropped += 1
        else:
            self._accepted += size

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

    def _put(self, item: tuple[Line, int] | Callable[[], None]) -> bool:
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
        """Write until stopped; nothing that is raised ends this."""
        while not self._stopped:
            try:
                self._write_waiting()
            except Exception as error:
                self._say_failing(type(error).__name__)
            with suppress(Exception):
                time.sleep(PAUSE)

    def _write_waiting(self) -> None:
        """Wait for a line or a command; write it, with the lines that have come meanwhile."""
        lines: list[Line] = []
        size, command = 0, None
        while not command and not (lines and self._items.empty()) and size < BATCH:
            item = self._items.get()
            if isinstance(item, tuple):
                lines.append(item[0])
                size += item[1]
            else:
                command = item
        try:
            if lines:
                self._attempt(lines)
        finally:
            self._written += size
            if command:
                self._run_command(command)

    def _run_command(self, command: Callable[[], None]) -> None:
        try:
            command()
        except (OSError, ValueError) as error:
            self._say_failing(reason(error))

    def _stop(self) -> None:
        self._stopped = True

    def _attempt(self, lines: list[Line]) -> None:
        """Write lines, and count exactly those that are not whole in the file."""
        whole, failure = 0, None
        try:
            data = b"".join(made(line) + b"\n" for line in lines)
            self._rotate_if_full(len(data))
            written, failure = self._write(data)
            whole = data.count(b"\n", 0, written + 1) if written else 0  # The next write ends a torn line.
        except Exception as error:
            failure = error
        self._lost += len(lines) - whole
        if failure:
            self._say_failing(reason(failure))
            return
        self._failing = False
        if lost := self._lost + self._dropped - self._told:
            self._told += lost
            logger.warning("%s is written again; %d lines were lost", self._what, lost)

    def _say_failing(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            logger.error("%s can't be written (%s): lines are lost until it can", self._what, why)

    def _write(self, data: bytes) -> tuple[int, Exception | None]:
        """Write whole lines; return (the bytes that were written, what went wrong then)."""
        # Standard output past Python's buffer, which holds unfinished lines of mitmproxy.
        write = self._file.write if self._file else partial(os.write, sys.stdout.fileno())
        written = 0
        try:
            if self._torn and not self._is_empty():
                write(b"\n")
            self._torn = False
            while written < len(data):
                written += write(data[written:] if written else data)
        except (OSError, ValueError) as error:
            self._torn |= written > 0 and not data[:written].endswith(b"\n")
            return written, error
        return written, None

    def _is_empty(self) -> bool:
        """Whether the file was emptied in place (logrotate's copytruncate)."""
        return self._file is not None and os.fstat(self._file.fileno()).st_size == 0

    def _rotate_if_full(self, more: int) -> None:
        if not (self._file and self._rotate_at):
            return
        size = os.fstat(self._file.fileno()).st_size
        if not size or size + more <= self._rotate_at:
            return
        with exclusive(self._file) as locked:  # Other processes may rotate it, too.
            if not locked:
                return
            try:
                self._rotate()
                self._stuck = False
            except OSError as error:
                if not self._stuck:
                    self._stuck = True
                    logger.error("%s can't be put aside (%s): it grows beyond its size", self._what, reason(error))

    def _rotate(self) -> None:
        assert self._path and self._file
        try:
            moved_away = not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            moved_away = True
        if not moved_away:  # Another process may have rotated it.
            names = [self._path]
            for number in range(1, self._keep + 1) if self._keep else count(1):
                names.append(self._path.with_name(f"{self._path.name}.{number}"))
                if not names[-1].exists():
                    break
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                with suppress(FileNotFoundError):
                    newer.replace(older)
        self._reopen()

    def _reopen(self) -> None:
        old, self._file = self._file, self._open()  # If that raises, the old file stays in use.
        if old:
            old.close()

    def _open(self) -> FileIO | None:
        if self._path is None:
            return None
        if self._private:
            self._path.touch(0o600)  # A new file is readable by its owner alone from the start,
            self._path.chmod(0o600)  # and so is one that existed with another mode.
        # Unbuffered: data that a full disk refuses must not wait in a buffer to fail again.
        opened = self._path.open("ab", buffering=0)
        self._torn = ends_within_line(self._path)
        return opened


def made(line: Line) -> bytes:
    return line.encode("utf-8", "backslashreplace") if isinstance(line, str) else line()


def reason(error: Exception) -> str:
    """Why a log can't be written."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is closed" if isinstance(error, ValueError) else type(error).__name__


def ends_within_line(path: Path) -> bool:
    """Whether the last line of a file has no end, as where the disk was full or the writer was killed."""
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):  # Opening a pipe would block.
            with path.open("rb") as file:
                return bool(file.seek(0, os.SEEK_END)) and bool(file.seek(-1, os.SEEK_END)) and file.read() != b"\n"
    return False


@contextmanager
def exclusive(file: FileIO) -> Iterator[bool]:
    """Hold the lock of an open file; False if another process has it. A system without locks gives it to everyone."""
    locked = True
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        locked = False
    except (ImportError, OSError):
        pass
    try:
        yield locked
    finally:
        with suppress(ImportError, OSError, ValueError):
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)
