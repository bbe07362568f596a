"""Remember who used what: every request that ended, in a SQLite file that several processes may share, or in memory.

`add` is called by the event loop, and only puts in memory; a thread writes, at most a second later, so a full disk or a
lock of another process costs rows and one line of the log, never a request. That line is a warning, because an error
at the start ends mitmproxy. A file that is damaged, or of a later release, is set aside, and a new one is begun.
Limits are counted by `tokens`.
"""

import logging
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from secrets import randbits

from .. import clock
from ..exchange import Exchange
from ..ollama_api.model_names import short
from . import usage_db
from .access_log import MAX_MODEL, shown
from .figures import UNKNOWN_MODEL
from .spent import Spent
from .usage_db import HOUR, MAX_ROWS, QUARTER, Entry, UnusableError

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Rows that wait to be written; further ones are dropped and counted."""
MAX_ROWS_IN_MEMORY = 50_000
MAX_MODELS = 200
"""Models of an hour that are named although they did not answer; clients may ask for as many as they like."""
MAX_COUNT = 10**12
"""The largest count of bytes or tokens: sums over many must fit 64 bits."""
PAUSE = 0.5
"""Seconds between two writes."""
TRIM = 60.0
"""Seconds between two looks for rows that are too old or too many."""
FRESH = 1.0
"""Seconds after which what other processes wrote is read again."""
MAX_KNOWN = 10_000
"""Keys and times for which it is kept."""
OTHER = "(other)"


class Ledger:
    """The ledger of one process."""

    def __init__(self, file: str | None = None, days: int = 30) -> None:
        """Keep it in `file`, or in memory, with rows for so many days. Raises OSError where the file can't be made."""
        self.days = days
        self._path = Path(file).expanduser() if file else None
        self._process = randbits(62)
        self._lock = threading.Lock()
        """For what waits to be written; never held while something is."""
        self._rows: list[Entry] = []
        self._summed = 0
        """How many of the first rows are in the sums already; the thread adds the others, in one go."""
        self._sums: usage_db.Sums = {}
        self._spent: set[tuple[str, int]] = set()
        """(key, quarter) of which the file is to be told."""
        self._own: defaultdict[str, Spent] = defaultdict(Spent)
        self._others: dict[tuple[str, int, int], tuple[float, dict[int, int]]] = {}
        """(when it was read, tokens by process) by key and quarters."""
        self._models: set[str] = set()
        self._hour = 0
        """When the first of these was named."""
        self._lost = 0
        self._failing = self._doubted = False
        self._work, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._trimmed = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode: Inode = None
        self._inode_read: Inode = None
        """What each of them has opened."""
        self._using = threading.Lock()
        """For the connection, which also reads if the database is in memory."""
        if self._path:
            try:
                self._connection = self._open()
            except sqlite3.Error:
                self._start()  # It tries again, and says what is wrong if it still is.
                self._work.set()

    def add(self, entry: Entry, *, row: bool = True) -> None:
        """Count a request, and give it a row. Never blocks, never raises."""
        try:
            with self._lock:
                if self._thread is None:
                    self._start()
                if entry.model not in self._models:
                    entry = self._with_bounded_model(entry)
                if row and len(self._rows) < MAX_WAITING:
                    self._rows.append(entry)
                else:
                    self._lost += row
                    usage_db.add_to(self._sums, entry)
                if tokens := entry.tokens:
                    quarter = int(clock.wall()) // QUARTER
                    self._own[entry.key].add(quarter, tokens)
                    self._spent.add((entry.key, quarter))
            if not self._work.is_set():
                self._work.set()
        except Exception as error:
            logger.error("ollama_auth: a request is missing in the ledger: %s", type(error).__name__)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def _with_bounded_model(self, entry: Entry) -> Entry:
        if (hour := int(entry.ended) // HOUR) != self._hour:
            self._hour = hour
            self._models.clear()
        if entry.status != 200 and len(self._models) >= MAX_MODELS:
            return entry._replace(model=OTHER)
        self._models.add(entry.model)
        return entry

    def tokens(self, key: str, since: float, until: float) -> int:
        """The tokens that a key used between the beginnings of two quarters of an hour, in Unix seconds.

        For the event loop. It includes what was not written yet, and what other processes wrote until a second ago.
        """
        return sum(self.shares(key, since, until).values())

    def shares(self, key: str, since: float, until: float) -> dict[int, int]:
        """The same, by the process that counted them; those of earlier runs are in the file.

        What counts after `until` was used while the clock was wrong: it must not lock a key out until then.
        """
        quarters = int(since) // QUARTER, int(until) // QUARTER
        own = self._own[key].between(*quarters) if key in self._own else 0
        return {**(self._spent_by_others(key, *quarters) if self._path else {}), self._process: own}

    def _spent_by_others(self, key: str, first: int, end: int) -> dict[int, int]:
        read, tokens = self._others.get((key, first, end), (float("-inf"), {}))
        if time.monotonic() - read < FRESH:
            return tokens
        try:
            tokens = usage_db.spent_by_others(self._current_reader(), key, first, end, self._process)
        except sqlite3.Error:
            self._forget_reader()  # What was known stays.
            self._doubt()
        if len(self._others) >= MAX_KNOWN:
            self._others.clear()
        self._others[key, first, end] = time.monotonic(), tokens
        return tokens

    def _current_reader(self) -> sqlite3.Connection:
        """A connection that reads, opened anew where the file is another one. Raises sqlite3.Error."""
        assert self._path
        if (found := inode(self._path)) != self._inode_read:
            self._forget_reader()
        if self._reader is None:
            self._reader, self._inode_read = usage_db.connect(self._path, timeout=0), found
        return self._reader

    def _forget_reader(self) -> None:
        if reader := self._reader:
            self._reader = None
            leave(reader, self._path, self._inode_read)

    def query[T](self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a function of usage_queries reads. Blocks: call it in a thread. Raises sqlite3.Error."""
        if self._path:
            try:
                with closing(usage_db.without_files(usage_db.connect(self._path))) as connection:
                    connection.execute("BEGIN")  # All of it is of one moment.
                    return ask(connection)
            except sqlite3.Error:
                self._doubt()
                raise
        with self._using:
            return ask(self._current())

    def _doubt(self) -> None:
        """Have the thread open the file anew, which could not be read: it says what is wrong, or begins another."""
        with self._lock:
            self._start()
        self._doubted = True
        self._work.set()

    def close(self, timeout: float = usage_db.PATIENCE + 1) -> None:
        """Write what waits, for at most so many seconds: long enough to say that it can't be written."""
        self._stop.set()
        self._work.set()
        if self._thread:
            self._thread.join(timeout)
        elif self._connection:
            leave(self._connection, self._path, self._inode)
        self._forget_reader()

    # In the thread.

    def _run(self) -> None:
        """Write until stopped; nothing that is raised ends this."""
        last = False
        while not last:
            self._work.wait()
            last = self._stop.wait(PAUSE)
            with suppress(Exception), self._using:
                self._write_waiting()
        with suppress(Exception), self._using:
            if self._connection:
                leave(self._connection, self._path, self._inode)
            self._connection = None

    def _write_waiting(self) -> None:
        self._work.clear()
        with self._lock:
            rows, summed, sums, spent = self._rows, self._summed, self._sums, self._spent
            self._rows, self._summed, self._sums, self._spent = [], 0, {}, set()
            tokens = {(key, at): self._own[key].between(at, at + 1) for key, at in spent}
        try:
            for row in rows[summed:]:
                usage_db.add_to(sums, row)
            self._attempt(rows, sums, tokens)
        except (sqlite3.OperationalError, OSError) as error:  # Such as a lock, or a full disk: it may be over soon.
            self._put_back(rows, sums, spent)
            self._say_failing(error)
        except Exception as error:
            self._lost += len(rows)
            self._say_failing(error)
        else:
            if self._failing:
                logger.warning(
                    "ollama_auth: the ledger %s is written again; %d requests are missing in it", self._path, self._lost
                )
            self._failing, self._lost = False, 0

    def _attempt(self, rows: list[Entry], sums: usage_db.Sums, spent: usage_db.Spent) -> None:
        try:
            connection = self._current()
            usage_db.write(connection, rows, sums, spent, self._process)
            if time.monotonic() - self._trimmed >= TRIM:
                self._trimmed = time.monotonic()
                usage_db.trim(connection, clock.wall(), self.days, MAX_ROWS if self._path else MAX_ROWS_IN_MEMORY)
        except sqlite3.Error as error:
            if self._path and self._connection:
                leave(self._connection, self._path, self._inode)
                self._connection = None
            if not usage_db.is_damage(error):
                raise
            self._connection = self._open()
            usage_db.write(self._connection, rows, sums, spent, self._process)

    def _put_back(self, rows: list[Entry], sums: usage_db.Sums, spent: set[tuple[str, int]]) -> None:
        """Let it wait for the next write."""
        self._work.set()
        with self._lock:
            room = max(0, MAX_WAITING - len(self._rows))
            self._lost += len(rows[room:])
            self._rows, self._summed = rows[:room] + self._rows, len(rows[:room])
            for place, numbers in self._sums.items():
                sums[place] = [sum(pair) for pair in zip(numbers, sums.get(place, [0] * len(numbers)), strict=True)]
            self._sums = sums
            self._spent |= spent

    def _current(self) -> sqlite3.Connection:
        """The connection, opened anew where its file was moved away or emptied. Raises sqlite3.Error or OSError."""
        if self._connection and self._path and (self._doubted or self._inode != inode(self._path)):
            leave(self._connection, self._path, self._inode)
            self._connection = None
        self._doubted = False
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        """Open the file, or a new one where it can't work. Raises sqlite3.Error, OSError or UnusableError."""
        try:
            return self._opened()
        except UnusableError as error:
            if self._path and inode(self._path) == self._inode:
                self._set_aside(self._path, error)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        before = self._inode
        if self._path:
            if make_private(self._path) and before:  # Its log may be that of the one before, which others use still.
                for suffix in ("-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._inode = inode(self._path)
        connection = usage_db.connect(self._path, write=True)
        try:
            begun = usage_db.prepare(connection)
        except BaseException:
            connection.close()
            raise
        if self._path:
            self._inode = inode(self._path)
            if begun or self._inode != before:
                self._tell_all()
        return connection

    def _tell_all(self) -> None:
        """Have all that this process counted for limits written: the file is another one."""
        with self._lock:
            self._spent |= {(key, quarter) for key, own in self._own.items() for quarter in own.quarters}
            if self._spent:
                self._work.set()

    def _set_aside(self, file: Path, error: Exception) -> None:
        aside = file.with_name(f"{file.name}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{file}{suffix}").rename(f"{aside}{suffix}")
        logger.warning(
            "ollama_auth: the ledger %s can't be used (%s): it is now %s, and a new one begun", file, error, aside
        )

    def _say_failing(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            logger.warning(
                "ollama_auth: the ledger %s can't be written (%s): requests are not recorded until it can",
                self._path,
                error,
            )


def make_private(file: Path) -> bool:
    """Make a file that only its owner may read, also where it exists with another mode; return whether it did not.

    Raises OSError.
    """
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        with suppress(PermissionError):  # It belongs to another user, who lets us write.
            file.chmod(0o600)
        return False
    return True


def leave(connection: sqlite3.Connection, file: Path | None, opened: "Inode") -> None:
    """Close a connection; where its file is another one by now, do not delete the log of that one, as SQLite does."""
    if file and inode(file) != opened:
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
    connection.close()


type Inode = tuple[int, int] | None


def inode(file: Path) -> Inode:
    """What tells a file from another one in its place; None where there is none, or it is empty."""
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def entry_of(exchange: Exchange) -> Entry:
    """The row of an exchange that has ended."""
    used, status, key = exchange.used, exchange.status, exchange.key
    method, where, stripped, duration, ttft = shown(exchange)
    if not exchange.usage:
        ttft = None
    prompt, completion, estimated, made = None, None, False, None
    if used:
        prompt, completion, estimated = bounded(used.prompt_tokens), bounded(used.completion_tokens), used.estimated
        if completion:
            made = round(duration - ttft, 1) if exchange.stream and ttft else duration
    return Entry(
        exchange.time, exchange.time + (exchange.ended or exchange.started) - exchange.started, exchange.id,
        exchange.client, method, str(exchange.route.route_class) if exchange.route else "", where, status, prompt,
        completion, estimated, min(exchange.bytes_in, MAX_COUNT), min(exchange.bytes_out, MAX_COUNT), ttft, duration,
        made, stripped, key if key and exchange.identified else usage_db.UNKNOWN_KEY if key else usage_db.NO_KEY,
        shown_model(exchange.model) if exchange.model else UNKNOWN_MODEL if used else "", str(exchange.outcome),
        exchange.reason or "",
    )  # fmt: skip


def bounded(count: int | None) -> int | None:
    return None if count is None else min(count, MAX_COUNT)


def shown_model(name: str) -> str:
    """A name of a model as text for a database, bounded."""
    found = short(name[:MAX_MODEL])
    return found if found.isprintable() else found.encode("unicode_escape").decode("ascii")
