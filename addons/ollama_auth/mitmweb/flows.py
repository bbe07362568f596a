"""What those see who look at flows, in mitmweb, mitmproxy or a file of flows: whose request it is, how it went, and an
answer while it streams. Old flows are dropped, refused ones are not sent again, commands filter the list.

An addon inside the gate: mitmproxy calls its hooks before those of its own viewers. Nothing here decides or delays.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mitmproxy import contentviews, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.hooks import UpdateHook
from mitmproxy.utils import asyncio_utils

from ..exchange import MAX_KEPT, Exchange
from ..http.responses import error
from ..ollama_api.routes import route
from ..ollama_api.usage import UsageReader
from ..runtime import ActiveConfig
from .contentview import ConversationView

TICK = 0.5
"""Seconds between two looks at running answers, at least."""
COPIED = 512 * 1024
"""Bytes of one answer that are copied in a second to be shown, at most: a long one is shown less often."""
SHARE = 10
"""Showing answers takes at most one part in so many of the time."""
MAX_HELD = 256 * 1024 * 1024
"""Bytes of the bodies of flows that have ended; beyond it the oldest are dropped, however few they are."""
RUNNING, REFUSED, FAILED, DONE = ":arrow_forward:", ":heavy_multiplication_x:", ":warning:", ""
"""Markers of flows, of those that old fonts and terminals have."""
COLUMNS: list[str] = ["path", "status", "comment", "time"]
"""Of mitmweb's list, where the user has chosen none; more leave no room for the comment."""


class LiveBody:
    """A request at work, and what has come of its answer."""

    def __init__(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        self.exchange = exchange
        self.flow = flow
        self.due = 0.0
        """When it may be shown again, by `time.monotonic`."""
        self.comment = flow.comment
        self._kept: bytearray | None = None
        self._shown = 0

    def keep(self, pass_on: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """For `flow.response.stream`: as `pass_on`, and what passes can be shown. Of more than MAX_KEPT nothing is."""
        self._kept = bytearray()

        def chunk(data: bytes) -> bytes:
            if self._kept is not None and len(self._kept) + len(data) <= MAX_KEPT:
                self._kept += data
            else:
                self._kept = None
            return pass_on(data)

        return chunk

    @property
    def grown(self) -> bool:
        """More has come than is shown."""
        return self._kept is not None and len(self._kept) > self._shown

    def show(self, now: float) -> None:
        """Let viewers see what has come. A stream sends what it is given, whatever the content of its message is."""
        if self.flow.response and self._kept is not None:
            self.flow.response.raw_content = bytes(self._kept)
            self._shown = len(self._kept)
            self.due = now + max(TICK, self._shown / COPIED)
        elif self.flow.response and self._shown:
            self.flow.response.raw_content, self._shown = None, 0

    def label(self, mark: str) -> None:
        """Say in the flow whose it is and how it goes, unless the user has written something else there."""
        flow, exchange = self.flow, self.exchange
        told = {"ollama_model": model(exchange), "ollama_speed": speed(exchange), "ollama_failure": exchange.reason}
        flow.metadata.update({name: value for name, value in told.items() if value is not None})
        if flow.comment == self.comment:
            flow.comment = self.comment = comment(exchange)
        if flow.marked in (RUNNING, REFUSED, FAILED, DONE):
            flow.marked = mark


def model(exchange: Exchange) -> str | None:
    """As the answer names it, else the request."""
    return (exchange.usage and exchange.usage.model) or exchange.model


def speed(exchange: Exchange) -> float | None:
    """Tokens a second of a stream."""
    return round(exchange.speed, 1) if exchange.stream and exchange.speed else None


def comment(exchange: Exchange) -> str:
    """The line about a request in the list of flows."""
    rate = speed(exchange)
    words = [exchange.key, model(exchange), tokens(exchange), f"{rate}/s" if rate else None, exchange.reason]
    return " · ".join(filter(None, words))


def tokens(exchange: Exchange) -> str | None:
    """`5 + 20 tokens`: of the prompt and of the answer, as far as they are known; `~20 tokens` by what has passed."""
    used = exchange.used
    if used is None:
        return f"~{exchange.tokens} tokens" if exchange.tokens else None
    about = "~" if used.estimated else ""
    known = [str(used.prompt_tokens)] if used.prompt_tokens is not None else []
    known += [f"{about}{used.completion_tokens}"] if used.completion_tokens is not None else []
    return " + ".join(known) + " tokens" if known else None


def label_refused(flow: http.HTTPFlow, exchange: Exchange, reason: str) -> None:
    """Say in a refused flow why it went nowhere."""
    flow.comment = " · ".join(filter(None, [f"refused: {reason}", exchange.key]))
    flow.marked = REFUSED
    flow.metadata["ollama_reason"] = reason
    flow.metadata["ollama_id"] = exchange.id
    flow.metadata["ollama_key"] = exchange.key
    if exchange.model:
        flow.metadata["ollama_model"] = exchange.model


class FlowViews:
    """One for a gate."""

    name = "ollama_viewing"

    def __init__(self, config: ActiveConfig, options: Any) -> None:
        self.config = config
        self.options = options
        self.live: dict[str, LiveBody] = {}
        """By the id of the flow."""
        self.seen: OrderedDict[str, int] = OrderedDict()
        """By the ids of flows, in the order in which they came: the bytes of their bodies, once they have ended."""
        self.held = 0
        """Bytes of all of them."""

    # For the desk.

    def watched(self) -> bool:
        """Somebody looks at flows: mitmweb, mitmproxy, or a file of flows."""
        options = self.options
        return ctx.master.addons.get("view") is not None or bool(options.save_stream_file or options.hardump)

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """A request goes upstream."""
        self.live[flow.id] = live = LiveBody(exchange, flow)
        flow.metadata["ollama_key"] = exchange.key
        flow.metadata["ollama_id"] = exchange.id
        live.label(RUNNING)

    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> Callable[[bytes], bytes]:
        """What is to be done with each chunk of its answer."""
        live = self.live.get(flow.id)
        return live.keep(exchange.response_chunk) if live else exchange.response_chunk

    def end(self, exchange: Exchange) -> None:
        """It is over; where mitmproxy has told nobody yet, viewers are told."""
        for live in [live for live in self.live.values() if live.exchange is exchange]:
            self._end(live.flow)
            ctx.master.addons.trigger(UpdateHook([live.flow]))

    # What mitmproxy calls.

    def load(self, loader: Loader) -> None:
        contentviews.add(ConversationView())
        loader.add_command("ollama.all", self.everything)
        loader.add_command("ollama.refused", self.only_refused)
        for name in ("ollama.by_key", "ollama.key"):  # mitmweb's command bar takes no name with an underscore.
            loader.add_command(name, self.only_key)
        for name in ("ollama.by_model", "ollama.model"):
            loader.add_command(name, self.only_model)

    def running(self) -> None:
        asyncio_utils.create_task(self.show(), name="gate viewing", keep_ref=True)

    async def show(self) -> None:
        """Show answers while they come, at a bounded rate and cost."""
        while True:
            started = time.monotonic()
            for live in [live for live in self.live.values() if live.grown and live.due <= started]:
                if live.flow.id in self.live:
                    live.show(started)
                    live.label(RUNNING)
                    ctx.master.addons.trigger(UpdateHook([live.flow]))
                await asyncio.sleep(0)  # Streams first.
            await asyncio.sleep(max(TICK, SHARE * (time.monotonic() - started)))

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """A new flow, or an old one that an operator has sent again."""
        if flow.is_replay != "request":
            self._drop_old(flow)
        elif "ollama_reason" in flow.metadata:
            refusal = error(403, "the gate refused this request, so it is not sent again")
            flow.response = http.Response.make(refusal.status, refusal.body, http.Headers(refusal.fields))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """The answer to what an operator has sent again streams as any other."""
        if flow.is_replay != "request" or not flow.response or "ollama_reason" in flow.metadata:
            return
        request, get = flow.request, flow.response.headers.get
        exchange = Exchange("replay", request.method, route(request.data.method, request.data.path))
        exchange.key, exchange.first_byte = flow.metadata.get("ollama_key"), time.monotonic()
        assert exchange.route
        kinds = get("content-type", ""), get("content-encoding", "")
        exchange.usage = UsageReader(exchange.route.usage, *kinds, flow.response.status_code)
        self.begin(exchange, flow)
        flow.response.stream = self.response_started(exchange, flow)

    def response(self, flow: http.HTTPFlow) -> None:
        self._end(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self._end(flow)

    def _end(self, flow: http.HTTPFlow) -> None:
        """Before any viewer or file is told of the end: the whole answer, and how it went."""
        live = self.live.pop(flow.id, None)
        if live:
            exchange = live.exchange
            if exchange.usage:
                exchange.used = exchange.usage.finish(clean=exchange.reason is None)
            live.show(0)
            # Who sends it again sends what was kept of it; and nothing else is to be kept.
            flow.request.stream = False
            if flow.response:
                flow.response.stream = False
            self._weigh(flow)
            live.label(FAILED if exchange.reason or flow.error else DONE)

    def _drop_old(self, new: http.HTTPFlow) -> None:
        """Make room for a flow. Those at work stay."""
        view = ctx.master.addons.get("view")
        if view is None:
            return
        most = self.config.settings.max_flows if self.config.settings else 1
        for _ in range(len(self.seen)):
            if len(self.seen) < most and self.held <= MAX_HELD:
                break
            flow_id, size = self.seen.popitem(last=False)
            oldest = view.get_by_id(flow_id)
            if oldest and (oldest.live or oldest.intercepted):
                self.seen[flow_id] = size
                continue
            self.held -= size
            if oldest:
                view.remove([oldest])
        self.seen[new.id] = 0

    def _weigh(self, flow: http.HTTPFlow) -> None:
        """Note how much is held of a flow that has ended."""
        if flow.id in self.seen:
            size = sum(len(message.raw_content or b"") for message in (flow.request, flow.response) if message)
            self.held += size - self.seen[flow.id]
            self.seen[flow.id] = size

    # Commands.

    def only_refused(self) -> None:
        """Show the requests that were refused, and no others."""
        self._filter(f"~meta {quoted('^ollama_reason: ')}")

    def only_key(self, name: str) -> None:
        """Show the requests with the key of that name."""
        self._filter(f"~meta {quoted(f'^ollama_key: (?-i:{escaped(name)})$')}")

    def only_model(self, name: str) -> None:
        """Show the requests for that model; without a tag in the name, for any of its tags."""
        tag = "" if ":" in name else "(:.*)?"
        self._filter(f"~meta {quoted(f'^ollama_model: (?-i:{escaped(name)}){tag}$')}")

    def everything(self) -> None:
        """Show all requests again."""
        self._filter(None)

    def _filter(self, expression: str | None) -> None:
        if ctx.master.addons.get("view") is None:
            raise exceptions.CommandError("there is no list of flows here: run mitmweb or mitmproxy")
        ctx.options.update(view_filter=expression)


def escaped(name: str) -> str:
    """A regular expression for exactly that name. Raises CommandError where nothing can have it."""
    if not name or not name.isprintable():
        raise exceptions.CommandError("that is not a name")
    return re.escape(name)


def quoted(expression: str) -> str:
    """A regular expression in a filter expression of mitmproxy."""
    return '"' + expression.replace("\\", "\\\\").replace('"', '\\"') + '"'
