"""The command line of scripts/keys."""

import argparse
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ollama_auth.auth import key_fields

from ..terminal import shown
from . import commands
from .commands import UNSET, Result
from .values import argument, duration, public_key, reader

DESCRIPTION = """\
Makes, lists and revokes the keys in a keys file, which the gate reads while it runs.

Output for other programs goes to standard output, messages for people to standard error. A key is shown once: the file
holds its digest. A change keeps comments and order, and replaces the file atomically.
"""
EXAMPLES = """\
examples:
  scripts/keys add alice --expires 30d --rpm 60
  scripts/keys add reader --scope infer list --model llama3.2 'qwen*'
  scripts/keys add bob-laptop --ssh ~/.ollama/id_ed25519.pub
  scripts/keys edit alice --rpm 120 --unset expires
  scripts/keys rotate alice --grace 24h
  scripts/keys check alice DELETE /api/delete llama3.2
  OLLAMA_API_KEY=$(scripts/keys new)

exit status: 0 done; 1 not done, or check found a fault or a refusal; 2 a command line that can't be understood
"""
STYLE: dict[str, Any] = {
    "epilog": shown(EXAMPLES),
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}


def parse(command_line: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; `run` is the command. Exits with 2 if they are not valid."""
    parser = argparse.ArgumentParser(prog=shown("scripts/keys"), description=DESCRIPTION, **STYLE)
    add_options(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], Result], name: str, text: str, more: str = "") -> Any:
        what = f"{text[0].upper()}{text[1:]}. {more}".strip()
        added = subparsers.add_parser(name, help=text, description=what, **STYLE)
        add_options(added, default=argparse.SUPPRESS)
        added.set_defaults(run=run, fault=added.error)
        return added

    add_commands(command)
    arguments = parser.parse_args(command_line)
    if fault := contradiction(arguments):
        arguments.fault(fault)
    arguments.file = (arguments.file or Path(os.environ.get("OLLAMA_KEYS_FILE") or "keys.toml")).expanduser()
    return arguments


def contradiction(arguments: argparse.Namespace) -> str | None:
    """What is wrong with arguments that are valid one by one."""
    if arguments.run is commands.check and arguments.name is not None and not (arguments.path or "").startswith("/"):
        return "give NAME, METHOD, a PATH that begins with / and perhaps a MODEL, or none of them"
    if arguments.run is commands.edit:
        if both := [option for option in arguments.unset if getattr(arguments, UNSET[option]) is not None]:
            return f"--{both[0]} is to be set and unset: give one of them"
        if not commands.changes(arguments):
            return "name what to change, such as --rpm 60 or --unset expires"
    return None


def add_commands(command: Callable[..., Any]) -> None:
    """Add all commands, by a function that adds one."""
    command(commands.new, "new", "print a new key, and change no file")
    adding = command(commands.add, "add", "make a key, print it this once and keep its digest")
    adding.add_argument("name", metavar="NAME", type=argument(key_fields.key_name), help="whom or what the key is for")
    add_options_of_fields(adding, "; default: ")
    adding.add_argument("--ssh", metavar="FILE|LINE", type=argument(public_key),
                        help="let the stock ollama command line in by its public key; no key is made")  # fmt: skip
    editing = command(commands.edit, "edit", "change what a key may do; it stays the same key")
    editing.add_argument("name", metavar="NAME")
    add_options_of_fields(editing, "; when unset: ")
    editing.add_argument("--unset", metavar="OPTION", nargs="+", action="extend", default=[], choices=list(UNSET),
                         help=f"remove what was set: {', '.join(UNSET)}")  # fmt: skip
    command(commands.list_keys, "list", "show who has a key and what they may do, never a key")
    for run, text in (
        (commands.show, "show all about one key, but not the key"),
        (commands.disable, "refuse a key until it is enabled"),
        (commands.enable, "let in again who was disabled"),
        (commands.revoke, "remove a key: its next request is denied"),
    ):
        command(run, run.__name__, text).add_argument("name", metavar="NAME")
    noting = command(commands.note, "note", "write down whose a key is", "Without TEXT, removes that.")
    noting.add_argument("name", metavar="NAME")
    noting.add_argument("note", metavar="TEXT", nargs="?", type=argument(key_fields.note))
    rotating = command(commands.rotate, "rotate", "make a new key for a name and print it this once",
                       "The old one works a little longer; until its end there is no second rotation.")  # fmt: skip
    rotating.add_argument("name", metavar="NAME")
    rotating.add_argument("--grace", metavar="SPAN", type=argument(duration), default=timedelta(hours=24),
                          help="how long the old key works: 90m, 24h, 7d; 0 ends all now; default: 24h")  # fmt: skip
    checking = command(commands.check, "check", "look for faults in the file, or say what a request would get and why",
                       "Without arguments, checks the file. Changes nothing.")  # fmt: skip
    for name in ("name", "method", "path", "model"):
        checking.add_argument(name, metavar=name.upper(), nargs="?")


def add_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    parser.add_argument("--file", metavar="PATH", type=Path, **default,
                        help="the keys file; default: $OLLAMA_KEYS_FILE, else keys.toml")  # fmt: skip
    parser.add_argument("--json", action="store_true", **default, help="answer with JSON on standard output")


def add_options_of_fields(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add the options for the fields of a key; `otherwise` comes before what holds without one."""
    for field in key_fields.FIELDS.values():
        if option := field.option:
            choices = f", of {', '.join(field.choices)}" if field.choices else ""
            default = f"{otherwise}{option.default}" if option.default else ""
            several: dict[str, Any] = {"nargs": "+", "action": "extend"} if field.many else {}
            parser.add_argument(f"--{option.name}", dest=field.name, metavar=option.value, type=argument(reader(field)),
                                help=f"{option.meaning}{choices}{default}", **several)  # fmt: skip
