"""scripts/usage: see arguments.py."""

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from ollama_auth.telemetry.usage_queries import sums

from ..terminal import ToolError, prepare_output, shown
from .access_logs import Counting, count
from .arguments import chosen_by, parse
from .files import is_ledger
from .ledger import forget, ledger_file, open_all
from .table import FORMATS, printable, report


def run(command_line: Sequence[str]) -> int:
    """Write the table. Raises ToolError and sqlite3.Error."""
    if command_line[:1] == ["forget"]:
        forget(command_line[1:])
        return 0
    arguments = parse(command_line)
    files = arguments.files or [ledger_file()]
    ledger = len(files) == 1 and is_ledger(files[0])
    if not ledger and any(map(is_ledger, files)):
        raise ToolError("name one ledger, or access logs: what is in both would count twice")
    faults: list[str] = []
    broken = 0
    # Lines of logs go into a database in a temporary file.
    connections = open_all(files[0]) if ledger else [sqlite3.connect("", isolation_level=None)]
    with ExitStack() as stack:
        for connection in connections:
            stack.callback(connection.close)
        if not ledger:
            counting = Counting(connections[0])
            faults, broken = count(files, counting), counting.broken
        found = replace(report(connections, arguments.by, chosen_by(arguments), arguments.timezone), broken=broken)
        empty = not found.rows and not sums(connections[0], ())
    if not empty and found.rows:
        sys.stdout.write(FORMATS[arguments.format](found))
    for fault in faults:
        say(fault)
    if broken:
        say(f"skipped {broken:,} line{'' if broken == 1 else 's'} that the gate did not write so")
    if empty:
        raise ToolError("there is no request in it: the gate writes access logs with --set ollama_access_log=PATH")
    if not found.rows:
        raise ToolError("no request has those names and days: leave out --key, --since or --until to see all")
    return 1 if faults else 0


def main() -> int:
    try:
        return run(sys.argv[1:])
    except ToolError as error:
        say(str(error))
    except sqlite3.Error as error:
        say(f"the ledger can't be read: {error}")
    except KeyboardInterrupt:
        return 130
    return 1


def say(text: str) -> None:
    print(f"ollama-auth: {printable(shown(text))}", file=sys.stderr)


if __name__ == "__main__":
    prepare_output()
    sys.exit(main())
