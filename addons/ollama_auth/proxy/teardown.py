"""Take a connection that has ended to pieces, so that its memory is freed by reference counting.

mitmproxy's handler, contexts and layers refer to each other, and layers to their own methods. Such cycles are left to
garbage collection, which stops all requests for a time that grows with the number of connections (0.7 s at 4,000).
"""

import asyncio
from typing import Any

from h2.connection import H2Connection
from mitmproxy.proxy import layer
from mitmproxy.proxy.server import ConnectionHandler

from .events import ignore_event

DELAY = 1.0
"""Seconds after the end of a connection in which what is still on its way to its layers may arrive."""


class EndedLayer(layer.Layer):
    """Takes every event and does nothing."""

    handle_event = _handle_event = staticmethod(ignore_event)  # type: ignore[assignment]

    def __init__(self) -> None:
        pass  # Without a context: that would be part of a cycle.


def take_apart_at_end(handler: ConnectionHandler) -> None:
    """Arrange for it. Call this in the task that serves the client."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    reader = handler.transports[handler.client].reader
    if task:
        task.add_done_callback(lambda _: loop.call_later(DELAY, take_apart, handler, reader))


def take_apart(handler: ConnectionHandler, reader: Any) -> None:
    """Empty the layers and contexts of a connection whose tasks have ended; `reader` is the one of its client."""
    reader._exception = None  # Its traceback refers to the reader.
    found: dict[int, layer.Layer] = {}
    find_layers(handler.layer, found)
    handler.layer = EndedLayer()
    for one in found.values():
        one.context.layers.clear()
        for part in vars(one).values():
            if isinstance(part, H2Connection):
                vars(part).clear()
        vars(one).clear()
    vars(handler.timeout_watchdog).clear()
    handler.transports.clear()


def find_layers(one: layer.Layer, found: dict[int, layer.Layer]) -> None:
    """Add a layer and all that it refers to, by Python's id."""
    if id(one) in found or not vars(one):
        return
    found[id(one)] = one
    for value in [*vars(one).values(), *one.context.layers]:
        for part in value.values() if isinstance(value, dict) else (value,):
            if isinstance(part, layer.Layer):
                find_layers(part, found)
