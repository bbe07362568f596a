"""The ledger: where it is, opening it, and taking a person out of it."""

import argparse
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ollama_auth.telemetry import usage_db

from ..terminal import ToolError, shown
from .files import check

MOST_CONNECTIONS = 4
ATTEMPTS = 5
"""To open several at one moment; a gate writes once a second."""


def ledger_file() -> str:
    """The ledger of this folder, or of the environment. Raises ToolError if there is none."""
    name = "OLLAMA_USAGE_DB"
    from ..serve import read_env_file  # It needs mitmproxy, and --help does not.

    found = os.environ.get(name) or read_env_file().get(name) or "usage.db"
    if not Path(found).expanduser().is_file():
        raise ToolError(
            f"there is no {found}: name the file of the ledger (ollama_usage_db), or access logs; "
            "scripts/serve keeps usage.db in the folder in which it is started"
        )
    return found


def open_ledger(name: str, *, write: bool = False) -> sqlite3.Connection:
    """Open a ledger. Raises ToolError."""
    check(name)
    connection = usage_db.connect(Path(name).expanduser(), write=write)
    try:
        found = usage_db.version(connection)
    except sqlite3.Error as error:
        connection.close()
        raise ToolError(f"{name} can't be read: {error}") from error
    if found != usage_db.NEWEST:
        connection.close()
        raise ToolError(
            f"{name} is the ledger of another release (version {found}): run the scripts/usage of that one"
            if found
            else f"{name} is the database of another program: name the file of the ledger"
        )
    return connection


def open_all(name: str) -> list[sqlite3.Connection]:
    """Open a ledger once for each processor, all to see the same moment. Raises ToolError and sqlite3.Error."""
    first, *others = [open_ledger(name) for _ in range(min(os.cpu_count() or 1, MOST_CONNECTIONS))]
    for _ in range(ATTEMPTS):
        before = data_version(first)
        for connection in (*others, first):
            connection.execute("BEGIN")
            data_version(connection)  # The first that is read fixes the moment.
        if data_version(first) == before:  # Nobody has written meanwhile.
            return [first, *others]
        for connection in (*others, first):
            connection.execute("ROLLBACK")
    for connection in others:
        connection.close()
    first.execute("BEGIN")
    return [first]


def data_version(connection: sqlite3.Connection) -> int:
    """A number that changes whenever another connection has written."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def forget(command_line: Sequence[str]) -> None:
    """Take a name out of the ledger. Raises ToolError."""
    parser = argparse.ArgumentParser(
        prog=shown("scripts/usage forget"), allow_abbrev=False,
        description="Take a person out of the ledger. Requests are deleted; sums stay, without the name. Access logs "
        "are files of their own: delete them yourself. While the key is in use, its name comes back.",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the name of the key")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the ledger; default: as for scripts/usage")
    arguments = parser.parse_args(command_line)
    file = arguments.file or ledger_file()
    with closing(open_ledger(file, write=True)) as connection:
        requests = usage_db.forget(connection, arguments.name)
    if not requests:
        raise ToolError(f"{file} has no request of {arguments.name}: see the names with scripts/usage --by key")
    print(f"{arguments.name} is taken out of {file}: {requests:,} requests count for nobody now")
