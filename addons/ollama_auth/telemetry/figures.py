"""Read the figures of an exchange in one way, for log, metrics, console and the flow list of mitmweb."""

from ..exchange import Exchange
from ..ollama_api.model_names import short
from ..ollama_api.usage import Usage

NO_KEY, UNKNOWN_MODEL = "(none)", "(unknown)"
"""Labels for a request without a known key and for an answer that names no model. Real names have no parentheses."""


def key_of(exchange: Exchange) -> str:
    """The name of the key, or NO_KEY."""
    return exchange.key if exchange.key and exchange.identified else NO_KEY


def answering_model(exchange: Exchange) -> str | None:
    """The model of a successful answer; the name in a refused request may be any text, so it is no label."""
    return short(exchange.used.model or UNKNOWN_MODEL) if exchange.used else None


def current_model(exchange: Exchange) -> str | None:
    """The model as far as it is known: named by the answer, else by the request."""
    named = exchange.usage and exchange.usage.model
    return exchange.shown_model(named) if named else exchange.model


def stream_speed(exchange: Exchange) -> float | None:
    """Tokens per second of a stream, to one decimal."""
    return round(exchange.speed, 1) if exchange.stream and exchange.speed else None


def completion(used: Usage) -> str | None:
    """The tokens of an answer; `~` marks an estimate."""
    return None if used.completion_tokens is None else f"{'~' if used.estimated else ''}{used.completion_tokens}"
