"""Keys as the tools make them."""

import secrets


def new_key() -> str:
    """A key of 128 random bits."""
    return f"sk-ollama-{secrets.token_hex(16)}"
