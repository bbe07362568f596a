"""Count exchanges in Prometheus metrics. Every label has a bounded set of values, whatever clients send.

Where PROMETHEUS_MULTIPROC_DIR is set, `render` gives the sums over all processes.
"""

import os
import platform
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Literal

from mitmproxy import version

from .. import __version__
from ..exchange import Exchange, Outcome
from .figures import answering_model, key_of

# Seconds. A model may take minutes to load and to think, and makes from 1 to 300 tokens a second.
_FIRST_TOKEN = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1800, 3600)
_INTER_TOKEN = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


OTHER = "(other)"
"""The label for all names beyond a bound. No key and no model has parentheses in its name."""
MAX_NAMES = 200
"""Models that are counted separately."""


class BoundedLabels:
    """Keep the first names as they are and map all further ones to OTHER, so that clients cannot grow a table."""

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._most = most
        self._names: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._names:
            if len(self._names) >= self._most:
                return OTHER
            self._names.add(name)
        return name


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        """Raises ImportError when prometheus-client is not installed."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]  # Start times would double the number of samples.
        self._registry = CollectorRegistry()
        self._key_label, self._model_label = BoundedLabels(1000), BoundedLabels()

        def counter(name: str, what: str, *labels: str) -> Any:
            return Counter(f"ollama_auth_{name}", what, labels, registry=self._registry)

        def gauge(name: str, what: str, *labels: str, mode: Literal["livesum", "livemax"] = "livesum") -> Any:
            return Gauge(f"ollama_auth_{name}", what, labels, registry=self._registry, multiprocess_mode=mode)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Any:
            return Histogram(f"ollama_auth_{name}_seconds", what, buckets=buckets, registry=self._registry)

        self._requests = counter("requests_total", "Requests that have ended.", "key", "class", "status")
        self._refusals = counter("refusals_total", "Requests that were refused.", "reason")
        self._tokens = counter("tokens_total", "Tokens as the answers tell them.", "key", "model", "kind")
        self._upstream_errors = counter("upstream_errors_total", "Requests that failed behind the gate.", "reason")
        self._first_token = histogram("time_to_first_token", "From a request to its first token.", _FIRST_TOKEN)
        self._duration = histogram("request_duration", "From a request to the end of its answer.", _DURATION)
        self._inter_token = histogram("inter_token", "From a token to the next one.", _INTER_TOKEN)
        self._in_flight = gauge("in_flight_requests", "Requests under way.")
        self._connections = gauge("connections", "Client connections.")
        build = gauge("build_info", "What runs here.", "version", "mitmproxy", "python", mode="livemax")
        build.labels(__version__, version.VERSION, platform.python_version()).set(1)

    def ended(self, exchange: Exchange) -> None:
        key = self._key_label(key_of(exchange))
        route_class = exchange.route.route_class if exchange.route else "unknown"
        self._requests.labels(key, str(route_class), status_of(exchange)).inc()
        if exchange.outcome is Outcome.REFUSED:
            self._refusals.labels(exchange.reason).inc()
        elif exchange.outcome is Outcome.FAILED:
            self._upstream_errors.labels(exchange.reason or "upstream error").inc()
        if exchange.admitted and exchange.ended:
            self._duration.observe(exchange.ended - exchange.started)
        if exchange.first_token:
            self._first_token.observe(exchange.first_token - exchange.started)
        if (used := exchange.used) and (model := answering_model(exchange)):
            model = self._model_label(model)
            self._tokens.labels(key, model, "prompt").inc(used.prompt_tokens or 0)
            self._tokens.labels(key, model, "completion").inc(used.completion_tokens or 0)

    def add_token_intervals(self, intervals: Iterable[float]) -> None:
        for interval in intervals:
            self._inter_token.observe(interval)

    def gauge(self, in_flight: int, connections: int) -> None:
        self._in_flight.set(in_flight)
        self._connections.set(connections)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics and their media type: text or OpenMetrics, as the Accept header prefers."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            MultiProcessCollector(registry := CollectorRegistry())  # type: ignore[no-untyped-call]
        encoder, media_type = choose_encoder(accept)
        return encoder(registry), media_type


def status_of(exchange: Exchange) -> str:
    """The status as a label: "none" without an answer, "9xx" for a number that HTTP does not define."""
    if exchange.status is None:
        return "none"
    return str(exchange.status) if exchange.status in HTTPStatus else f"{exchange.status // 100}xx"
