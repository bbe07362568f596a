"""Messages to the terminal, and the error that ends a tool with one."""

import io
import re
import signal
import sys

from ollama_auth.errors import OllamaAuthError, command

from . import PACKAGE  # noqa: F401, not a script: see there


class ToolError(OllamaAuthError):
    """A reason why a tool can't go on, with the remedy; never holds a secret."""


def shown(text: str) -> str:
    """The text, with the commands named as this installation has them."""
    return re.sub(r"\bscripts/(serve|keys|usage|doctor)\b", lambda match: command(match[1]), text)


def say(text: str) -> None:
    """Write one message to standard error."""
    print(f"ollama-auth: {shown(text)}", file=sys.stderr, flush=True)


def prepare_output() -> None:
    """Let a reader such as `head` stop in the middle, and show names that the terminal can't show."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
