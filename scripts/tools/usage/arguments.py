"""The command line of scripts/usage."""

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from ollama_auth.ollama_api.model_names import short
from ollama_auth.telemetry.usage_queries import COLUMNS, FOREVER, PERIODS, Chosen

from ..terminal import shown
from .table import FORMATS

DEFAULT = ("key", "model", "day")
NAMES = ("key", "model", "client", "outcome", "reason")
DESCRIPTION = """\
Sum up who used what, of the gate's ledger or of access logs, by day, month, key, model, client, outcome or reason.

Without FILE, the ledger is the one at OLLAMA_USAGE_DB, in the environment or in .env.local, or else usage.db beside
that. Access logs are the JSON lines that the option ollama_access_log writes: from files, also ones compressed with
gzip or still being written, or from - for standard input.
"""
EXAMPLES = """\
examples:
  scripts/usage --by month,key
  scripts/usage --by day,key --since 2026-11-01 --timezone Europe/Berlin access.log access.log.1.gz
  scripts/usage --by outcome,reason --key alice
  scripts/usage --format csv --by model > models.csv
  scripts/usage forget alice           take a person out of the ledger; sums stay, without the name
  ssh gpu-box cat /var/log/ollama-auth.log | scripts/usage --key alice -

A ~ marks estimated tokens; CSV and JSON have a field `estimated`.
exit status: 0 done; 1 nothing to count, or a file that can't be read; 2 an invalid command line
"""


def columns(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(COLUMNS) or len({*PERIODS} & {*names}) > 1:
        raise argparse.ArgumentTypeError(
            "write it as key,model,day: some of " + ", ".join(COLUMNS) + ", with at most one of the first three"
        )
    return names


def day(text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("it is not a valid day; write it as 2026-11-30")


def zone(text: str) -> tzinfo:
    try:
        return UTC if text == "UTC" else ZoneInfo(text)
    except (OSError, ValueError, KeyError):  # A name of no zone, a folder of them, no path.
        raise argparse.ArgumentTypeError("it is not known here; write it as UTC or Europe/Berlin") from None


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=shown("scripts/usage"), description=DESCRIPTION, epilog=shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("files", metavar="FILE", nargs="*", help="a ledger, or access logs, also compressed; - is standard input")
    add("--by", metavar="COLUMNS", type=columns, default=DEFAULT,
        help=f"what makes a row, such as month,key; default: {','.join(DEFAULT)}")  # fmt: skip
    add("--format", choices=FORMATS, default="text", help="default: text, a table")
    add("--since", metavar="DAY", type=day, help="the first day, such as 2026-11-01")
    add("--until", metavar="DAY", type=day, help="the last day")
    add("--timezone", metavar="ZONE", type=zone, default=UTC, help="of days and months; default: UTC")
    for column in NAMES:
        add(f"--{column}", metavar="NAME", help=f"count this {column} alone")
    arguments = parser.parse_args(command_line)
    if arguments.files.count("-") > 1:
        parser.error("standard input can be read once: name - once")
    if arguments.since and arguments.until and arguments.since > arguments.until:
        parser.error("--since is after --until: no day is left")
    return arguments


def chosen_by(arguments: argparse.Namespace) -> Chosen:
    """The requests that the options choose."""

    def midnight(of: date) -> float:
        return datetime(of.year, of.month, of.day, tzinfo=arguments.timezone).timestamp()

    names = {column: vars(arguments)[column] for column in NAMES}
    if names["model"]:
        names["model"] = short(names["model"])
    last = arguments.until
    return Chosen(
        midnight(arguments.since) if arguments.since else 0,
        midnight(last + timedelta(days=1)) if last and last < date.max else FOREVER,
        {column: [name] for column, name in names.items() if name is not None},
    )
