"""The root of all errors that this package raises on purpose, and the one that refuses a request."""

from pathlib import Path

from . import IMPORTED  # noqa: F401, not a script: see __init__.py

CHECKOUT = Path(__file__).parents[1].joinpath("auth.py").exists()


def command(tool: str) -> str:
    """How a user runs a tool, for remedies: `scripts/TOOL` in a checkout, `ollama-auth TOOL` where a wheel is."""
    return f"scripts/{tool}" if CHECKOUT else f"ollama-auth {tool}"


def why_unreadable(error: Exception) -> str:
    """Why a path can't be read, from the error of reading it; it may be no path."""
    return (isinstance(error, OSError) and error.strerror) or "it is not a path"


def place_of(error: BaseException) -> str:
    """Where an exception was raised, for logs: its message is in none, since it may hold what a client sent."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "somewhere"


class OllamaAuthError(Exception):
    """Base class. Messages say where, what is wrong and what to do next, never a secret."""


class RefusedError(OllamaAuthError):
    """A request that may not go upstream.

    `reason` is its word in the log, `status` the HTTP status, `message` the text for the client; `fields` are added to
    the response; `worth_retrying` says that the very same request may succeed at once, and `used_up` that none will for
    long. For the log alone: `key` is the name or fingerprint of its sender, where that is known by now; `suppress_log`
    says that it is one of so many that they are counted and not logged.
    """

    key: str | None = None
    suppress_log = False
    worth_retrying = used_up = False

    def __init__(self, reason: str, status: int, message: str, *fields: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.message = message
        self.fields = fields
