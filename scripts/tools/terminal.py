"""Messages to the terminal, and the error that ends a tool with one."""

import sys

from ollama_auth.errors import OllamaAuthError


class ToolError(OllamaAuthError):
    """A reason why a tool can't go on, with the remedy; never holds a secret."""


def say(text: str) -> None:
    """Write one message to standard error."""
    print(f"ollama-auth: {text}", file=sys.stderr, flush=True)
