"""The database of the ledger: its schema, opening it, and writing to it. `usage_queries.py` reads it.

Three tables, and the names they share in `groups`. `requests` has a row for each of the latest requests. `hours` has
sums for ever, by the hour in which the requests began. `spent` has what each key used in a quarter of an hour, the unit
in which the days of all time zones begin, as each process counted it when requests ended: the limits of keys are asked
of it. Only what it needs of the standard library is imported here, for scripts/usage.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..errors import OllamaAuthError

PATIENCE = 2.0
"""Seconds to wait for a lock of another process."""
MAX_ROWS = 1_000_000
"""Requests that have a row."""
UNKNOWN_SHARE = 10
"""One in so many may be of a request without a known key: strangers must not push out the rows of others."""
MAX_DELETED = 50_000
"""Rows that are deleted in one transaction: others wait for it."""
QUARTER, HOUR, DAY = 900, 3600, 86_400
"""Seconds."""
SPENT_DAYS = 40
"""Days that `spent` reaches back: a month, and some."""
NO_KEY, UNKNOWN_KEY, FORGOTTEN = "", "(unknown)", "(forgotten)"
"""The key of requests that came with none, with one that is not known, with one whose name was taken out.

No name of a key has parentheses in it.
"""

_MIGRATIONS = (
    """
    CREATE TABLE groups (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
        UNIQUE (key, model, outcome, reason)
    );
    CREATE TABLE requests (
        time REAL NOT NULL, ended REAL NOT NULL, id TEXT NOT NULL, group_id INTEGER NOT NULL, client TEXT NOT NULL,
        method TEXT NOT NULL, class TEXT NOT NULL, path TEXT NOT NULL, status INTEGER,
        prompt_tokens INTEGER, completion_tokens INTEGER, estimated INTEGER NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, ttft_ms REAL, duration_ms REAL NOT NULL,
        generation_ms REAL, stripped TEXT NOT NULL
    );
    CREATE INDEX requests_by_end ON requests (ended);
    CREATE TABLE hours (
        hour INTEGER NOT NULL, group_id INTEGER NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, estimated INTEGER NOT NULL, bytes_in INTEGER NOT NULL,
        bytes_out INTEGER NOT NULL, generation_ms REAL NOT NULL, PRIMARY KEY (hour, group_id)
    ) WITHOUT ROWID;
    CREATE TABLE spent (
        key TEXT NOT NULL, quarter INTEGER NOT NULL, process INTEGER NOT NULL, tokens INTEGER NOT NULL,
        PRIMARY KEY (key, quarter, process)
    ) WITHOUT ROWID;
    """,
)
"""What makes version n + 1 of the schema of version n; the version is in PRAGMA user_version."""
NEWEST = len(_MIGRATIONS)
_SUMS = ("requests", "prompt_tokens", "completion_tokens", "estimated", "bytes_in", "bytes_out", "generation_ms")
ADD_TO_HOURS = "ON CONFLICT DO UPDATE SET " + ", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)
ROW = (
    "time", "ended", "id", "client", "method", "class", "path", "status", "prompt_tokens", "completion_tokens",
    "estimated", "bytes_in", "bytes_out", "ttft_ms", "duration_ms", "generation_ms", "stripped",
)  # fmt: skip
"""Columns of `requests`, in the order of an Entry."""
_INSERT = f"INSERT INTO requests ({', '.join(ROW)}, group_id) VALUES ({', '.join('?' * (len(ROW) + 1))})"

type Group = tuple[str, str, str, str]
"""(key, model, outcome, reason)"""
type Sums = dict[tuple[int, Group], list[float]]
"""By (hour, group), in the order of the columns of `hours`."""
type Spent = dict[tuple[str, int], int]
"""All tokens that a process counted, by (key, quarter)."""


class UnusableError(OllamaAuthError):
    """The file is no database of this or an older release."""


class Entry(NamedTuple):
    """A request that has ended. Times in Unix seconds; no content, no secret."""

    time: float
    ended: float
    id: str
    client: str
    method: str
    route_class: str
    path: str
    status: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool
    bytes_in: int
    bytes_out: int
    ttft_ms: float | None
    duration_ms: float
    generation_ms: float | None
    """The time in which its tokens were made."""
    stripped: str
    """Names of header fields and parameters that did not go upstream, with commas between them."""
    key: str
    model: str
    outcome: str
    reason: str

    @property
    def tokens(self) -> int:
        """Those that count for the limits of its key."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


def add_to(sums: Sums, entry: Entry) -> None:
    """Add a request to the sums of its hour."""
    time, _, _, _, _, _, _, _, prompt, completion, estimated, received, sent, _, _, generation, *_ = entry
    place = (int(time) // HOUR * HOUR, entry[-4:])
    if (found := sums.get(place)) is None:
        found = sums[place] = [0] * len(_SUMS)
    found[0] += 1
    found[1] += prompt or 0
    found[2] += completion or 0
    found[3] += estimated
    found[4] += received
    found[5] += sent
    found[6] += generation or 0


def connect(path: Path | None, *, write: bool = False, timeout: float = PATIENCE) -> sqlite3.Connection:
    """Open a database for any one thread at a time; None is one in memory. Raises sqlite3.Error.

    `timeout` is in seconds, for a lock of another process.
    """
    if path is None:
        return without_files(sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None))
    uri = f"file:{quote(str(path.absolute()))}?mode={'rw' if write else 'ro'}"
    return sqlite3.connect(uri, timeout=timeout, uri=True, check_same_thread=False, isolation_level=None)


def without_files(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Have a gate's connection keep in memory what it sorts: an image may have no folder for it. It takes longer."""
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def prepare(connection: sqlite3.Connection) -> bool:
    """Bring a database to this release's schema; return whether there was none.

    Raises UnusableError where it is damaged or not ours, another sqlite3.Error where it can't be used now.
    """
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if (found := version(connection)) > NEWEST:
            raise UnusableError(f"a later release wrote it: version {found}")
        if found < NEWEST:
            migrate(connection)
        if not found:
            connection.execute("PRAGMA wal_checkpoint")  # An empty file is taken for one that somebody has emptied.
        connection.execute("SELECT 1 FROM groups, hours, spent, requests LIMIT 1")
    except sqlite3.Error as error:
        if is_damage(error) or primary_code(error) == sqlite3.SQLITE_ERROR:
            raise UnusableError(str(error)) from error
        raise
    return not found


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older schema, or none, to the newest. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        for step in _MIGRATIONS[version(connection) :]:  # Another process may have done it meanwhile.
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {NEWEST}")


def version(connection: sqlite3.Connection) -> int:
    """The version of its schema; 0 is none."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def write(
    connection: sqlite3.Connection, rows: Sequence[Entry], sums: Sums, spent: Spent | None = None, process: int = 0
) -> None:
    """Write it all in one transaction, or nothing. Raises sqlite3.Error."""
    groups = {group for _, group in sums} | {row[-4:] for row in rows}
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        connection.executemany(
            "INSERT INTO groups (key, model, outcome, reason) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", groups
        )
        found = "SELECT id FROM groups WHERE key = ? AND model = ? AND outcome = ? AND reason = ?"
        ids = {group: connection.execute(found, group).fetchone()[0] for group in groups}
        connection.executemany(_INSERT, ((*row[:-4], ids[row[-4:]]) for row in rows))
        connection.executemany(
            f"INSERT INTO hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) {ADD_TO_HOURS}",
            ((hour, ids[group], *numbers) for (hour, group), numbers in sums.items()),
        )
        connection.executemany(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET tokens = excluded.tokens",
            ((key, quarter, process, tokens) for (key, quarter), tokens in (spent or {}).items()),
        )


def trim(connection: sqlite3.Connection, now: float, days: int, most: int) -> None:
    """Delete rows that are older than `days`, and the oldest of more than `most`. Raises sqlite3.Error."""
    connection.execute("DELETE FROM spent WHERE quarter < ?", ((now - SPENT_DAYS * DAY) // QUARTER,))
    unknown = f"group_id IN (SELECT id FROM groups WHERE key IN ('{NO_KEY}', '{UNKNOWN_KEY}'))"
    for which, kept in ((f"ended < {now - days * DAY}", 0), (unknown, most // UNKNOWN_SHARE), ("true", most)):
        (count,) = connection.execute(f"SELECT count(*) FROM requests WHERE {which}").fetchone()
        for excess in range(count - kept, 0, -MAX_DELETED):
            connection.execute(
                "DELETE FROM requests WHERE rowid IN "
                f"(SELECT rowid FROM requests WHERE {which} ORDER BY rowid LIMIT ?)",
                (min(excess, MAX_DELETED),),
            )


def forget(connection: sqlite3.Connection, key: str) -> int:
    """Take the name of a key out: its rows go, its sums become those of FORGOTTEN. Return how many there were.

    Raises sqlite3.Error.
    """
    names, sums = "model, outcome, reason", ", ".join(_SUMS)
    connection.execute("PRAGMA secure_delete = ON")  # What is deleted is overwritten.
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (count,) = connection.execute(
            "SELECT sum(requests) FROM hours JOIN groups ON id = group_id WHERE key = ?", (key,)
        ).fetchone()
        connection.execute(
            f"INSERT OR IGNORE INTO groups (key, {names}) SELECT ?, {names} FROM groups WHERE key = ?", (FORGOTTEN, key)
        )
        connection.execute(
            f"INSERT INTO hours (hour, group_id, {sums}) SELECT hour, new.id, {sums} "
            f"FROM hours JOIN groups AS old ON old.id = group_id JOIN groups AS new USING ({names}) "
            f"WHERE old.key = ? AND new.key = ? {ADD_TO_HOURS}",
            (key, FORGOTTEN),
        )
        for table in ("hours", "requests"):
            connection.execute(f"DELETE FROM {table} WHERE group_id IN (SELECT id FROM groups WHERE key = ?)", (key,))
        for table in ("groups", "spent"):
            connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return count or 0


def spent_by_others(connection: sqlite3.Connection, key: str, first: int, end: int, process: int) -> dict[int, int]:
    """The tokens that a key used from a quarter on, and before another, as each other process counted them.

    Raises sqlite3.Error.
    """
    found = connection.execute(
        "SELECT process, sum(tokens) FROM spent WHERE key = ? AND quarter >= ? AND quarter < ? AND process <> ? "
        "GROUP BY process",
        (key, first, end, process),
    )
    return dict(found.fetchall())


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a file is no database, or a damaged one."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code, without what it adds in higher bits."""
    return error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else sqlite3.SQLITE_OK
