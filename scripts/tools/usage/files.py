"""The files that are named: whether each can be read, and whether it is a ledger."""

import os

from ..terminal import ToolError


def check(name: str) -> None:
    """Raise ToolError if that is not a readable file."""
    if not os.path.exists(name):
        raise ToolError(
            f"there is no {name}: name the ledger (the option ollama_usage_db) or access logs (ollama_access_log)"
        )
    if os.path.isdir(name):
        raise ToolError(f"{name} is a directory: name the files in it")
    if not os.access(name, os.R_OK):
        raise ToolError(f"{name} can't be read: run this as a user who may")


def is_ledger(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return file.read(15) == b"SQLite format 3"
    except OSError:
        return False
