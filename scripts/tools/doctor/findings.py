"""A finding of the doctor."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .. import PACKAGE  # noqa: F401, not a script: see there


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One result of a check: the place, the fact, and the remedy. Never holds a secret."""

    level: Level
    where: str
    what: str
    next: str = ""


def ok(where: str, what: str) -> Finding:
    return Finding(Level.OK, where, what)


def warn(where: str, what: str, remedy: str) -> Finding:
    return Finding(Level.WARN, where, what, remedy)


def bad(where: str, what: str, remedy: str) -> Finding:
    return Finding(Level.BAD, where, what, remedy)


def some(names: Sequence[str]) -> str:
    """The first five names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
