"""Values on the command line, read into what the keys file holds."""

import argparse
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from ollama_auth.auth import key_fields
from ollama_auth.auth.key_fields import Field, FieldError
from ollama_auth.errors import why_unreadable
from ollama_auth.units import parse_duration

from .. import PACKAGE  # noqa: F401, not a script: see there

MAX_PUBLIC_KEY = 64 * 1024
"""Bytes of a file with a public key."""
NUMBER = re.compile(r"-?[0-9]{1,18}")


def argument(read: Callable[[str], object]) -> Callable[[str], object]:
    """Make a type for argparse from a function that raises FieldError."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except FieldError as fault:
            raise argparse.ArgumentTypeError(f"it {fault}") from None

    return convert


def duration(text: str) -> timedelta:
    """`"90m"`, `"24h"`, `"30d"`, `"8w"`, `"0"` -> a span of time. Raises FieldError."""
    if (span := parse_duration(text)) is None:
        raise FieldError("is not a span of time; write it as in 90m, 24h, 30d or 8w")
    return span


def limit(text: str) -> object:
    """A positive number. Raises FieldError."""
    if not NUMBER.fullmatch(text):
        raise FieldError("is not a whole number; write it as in 60")
    return key_fields.limit(int(text))


def reader(field: Field) -> Callable[[str], object]:
    """Make a function from an argument for a field to what the file holds. It raises FieldError."""

    def checked(text: str) -> str:
        field.read(text)
        return text

    return limit if field.unit else field.short or checked


def public_key(text: str) -> str:
    """A public key in OpenSSH's format, or the path of a file with one -> the key. Raises FieldError."""
    line = text
    if not text.startswith("ssh-"):
        try:
            with Path(text).expanduser().open(encoding="utf-8", errors="replace") as file:
                line = file.read(MAX_PUBLIC_KEY)
        except (OSError, ValueError) as error:
            why = why_unreadable(error)
            raise FieldError(f"can't be read ({why}); name a file such as ~/.ollama/id_ed25519.pub") from None
    key_fields.ssh_key(line)
    return line.strip()
