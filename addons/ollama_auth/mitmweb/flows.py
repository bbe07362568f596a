"""Label flows for mitmweb, mitmproxy and files of flows, show answers while they stream, and bound what is kept.

A flow says whose request it is and how it went. Old flows are dropped, refused ones are not replayed, and commands
filter the list. This is an addon inside the gateway's own: mitmproxy calls its hooks before those of its viewers.
Nothing here decides about a request or delays one.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from mitmproxy import contentviews, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Server
from mitmproxy.hooks import UpdateHook
from mitmproxy.proxy.context import Context
from mitmproxy.utils import asyncio_utils

from ..auth.forwarding import FORWARDED
from ..auth.redaction import MAX_SEARCHED, mask_path, mask_value
from ..bounded_copy import BoundedCopy, Recording
from ..exchange import Exchange, Outcome, Refusal
from ..http.responses import error
from ..ollama_api.usage import UsageReader
from ..runtime import ActiveConfig
from ..telemetry import audit_log
from ..telemetry.access_log import path
from ..telemetry.figures import completion, current_model, stream_speed
from .contentview import ConversationView, route_of

REPLAY = "replay"
"""The client of a request that the operator sends again, in the logs."""
TICK = 0.5
"""Minimum seconds between two rounds of showing running answers."""
COPIED = 512 * 1024
"""Maximum bytes per second that are copied to show one answer: a long one is shown less often."""
SHARE = 10
"""Showing answers takes at most one part in SHARE of the time."""
MAX_HELD = 256 * 1024 * 1024
"""Bytes of the bodies of ended flows; beyond it the oldest are dropped, however few there are."""
RUNNING, REFUSED, FAILED, DONE = ":arrow_forward:", ":heavy_multiplication_x:", ":warning:", ""
"""Markers of flows, chosen among those that old fonts and terminals have."""
COLUMNS: list[str] = ["comment"]
"""Columns of mitmweb's list, unless the user chose some. Beside an open request others would leave the comment too
little room at 1280 pixels, and the column of the path has the constant address before each."""
MAX_KEY, MAX_MODEL = 16, 22
"""Characters of a name at the beginning of a comment; a longer one is cut there, and stands whole at the end."""


class LiveBody:
    """A running request, and its answer as far as it has come."""

    def __init__(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        self.exchange = exchange
        self.flow = flow
        self.due = 0.0
        """When it may be shown again, by `time.monotonic`."""
        self.comment = flow.comment
        self._copy: BoundedCopy | None = None
        self._shown = 0

    def keep(self, pass_on: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """Wrap `pass_on` for `flow.response.stream`, so that what passes can be shown."""
        self._copy = copy = BoundedCopy()

        def chunk(data: bytes) -> bytes:
            copy.add(data)
            return pass_on(data)

        return chunk

    @property
    def grown(self) -> bool:
        """Whether more has come than is shown."""
        return self._copy is not None and not self._copy.truncated and len(self._copy.data) > self._shown

    def show(self, now: float) -> None:
        """Show what has come, or nothing once the copy is truncated. Showing never changes what is sent."""
        if self.flow.response and self._copy:
            self.flow.response.raw_content = None if self._copy.truncated else bytes(self._copy.data)
            self._shown = len(self._copy.data)
            self.due = now + max(TICK, self._shown / COPIED)

    def label(self, mark: str) -> None:
        """Label the flow; a comment or marker that the user set stays."""
        flow, exchange = self.flow, self.exchange
        labels = {
            "ollama_model": current_model(exchange),
            "ollama_speed": stream_speed(exchange),
            "ollama_failure": exchange.reason,
        }
        flow.metadata.update({name: value for name, value in labels.items() if value is not None})
        if flow.comment == self.comment:
            running = "▶ " if mark == RUNNING else ""  # mitmweb shows a marker beside the path alone.
            flow.comment = self.comment = running + comment(exchange)
        if flow.marked in (RUNNING, REFUSED, FAILED, DONE):
            flow.marked = mark


def comment(exchange: Exchange) -> str:
    """The comment of a flow: status, key, model, tokens, speed, reason and path, as far as known."""
    rate, names = stream_speed(exchange), (exchange.key or "", current_model(exchange) or "")
    short = [shortened(name, most) for name, most in zip(names, (MAX_KEY, MAX_MODEL), strict=True)]
    status = str(exchange.status or "")
    words = [status, *short, tokens(exchange), f"{rate}/s" if rate else None, exchange.reason, path(exchange)]
    return " · ".join(filter(None, [*words, *(name for name in names if name not in short)]))


def shortened(name: str, most: int) -> str:
    """Leave out the middle of a long name: names that differ mostly do so at an end."""
    end = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


def tokens(exchange: Exchange) -> str | None:
    """`5 + 20 tokens` for prompt and answer, as far as known; `~20 tokens` while it streams."""
    used = exchange.used
    if used is None:
        return f"~{exchange.tokens} tokens" if exchange.tokens else None
    prompt = None if used.prompt_tokens is None else str(used.prompt_tokens)
    known = " + ".join(filter(None, (prompt, completion(used))))
    return f"{known} tokens" if known else None


def refused_flow(context: Context, request: http.Request, exchange: Exchange, refusal: Refusal) -> http.HTTPFlow:
    """Return a labelled flow of a refused request, without all that may be a credential."""
    flow = http.HTTPFlow(context.client, context.server)
    flow.live = True
    flow.request = request
    request.headers.fields = tuple(
        (name, mask_value(value)) for name, value in request.headers.fields if name.lower() in FORWARDED
    )
    request.data.path = quote(exchange.path or b"/", safe="/:@!$&'()*+,;=~").encode()
    request.data.method = exchange.method.encode("ascii", "replace")
    request.data.content = b""
    address_request(request, context.server)
    answer = refusal.answer
    flow.response = http.Response.make(answer.status, answer.body, http.Headers(answer.fields))
    flow.comment = " · ".join(filter(None, [f"refused: {refusal.reason}", exchange.key, path(exchange)]))
    flow.marked = REFUSED
    flow.metadata |= {"ollama_reason": refusal.reason, "ollama_id": exchange.id, "ollama_key": exchange.key}
    if exchange.model:
        flow.metadata["ollama_model"] = exchange.model
    return flow


def address_request(request: http.Request, upstream: Server) -> None:
    """Let a request name the upstream, and no longer the authority that the client sent: it may hold a credential."""
    request.data.authority = b""
    if upstream.address:
        request.data.host, request.data.port = upstream.address[0], upstream.address[1]
    request.scheme = "https" if upstream.tls else "http"


class FlowViews:
    """The addon that labels flows; one per gateway."""

    name = "ollama_viewing"

    def __init__(self, config: ActiveConfig, options: Any) -> None:
        self.config = config
        self.options = options
        self.live: dict[str, LiveBody] = {}
        """By the id of the flow."""
        self.seen: OrderedDict[str, int] = OrderedDict()
        """The bytes of the bodies of ended flows (0 before) by flow id, oldest first."""
        self.held = 0
        """The sum of `seen`."""

    # Called by the lifecycle.

    def watched(self) -> bool:
        """Whether flows are looked at: in mitmweb, in mitmproxy or in a file of flows."""
        to_file = self.options.save_stream_file or self.options.hardump
        return ctx.master.addons.get("view") is not None or bool(to_file)

    def begin(self, exchange: Exchange, flow: http.HTTPFlow) -> None:
        """Label a request that goes upstream."""
        self.live[flow.id] = live = LiveBody(exchange, flow)
        flow.metadata |= {"ollama_key": exchange.key, "ollama_id": exchange.id}
        live.label(RUNNING)

    def response_started(self, exchange: Exchange, flow: http.HTTPFlow) -> Callable[[bytes], bytes]:
        """The function for `flow.response.stream`."""
        live = self.live.get(flow.id)
        return live.keep(exchange.response_chunk) if live else exchange.response_chunk

    def end(self, exchange: Exchange) -> None:
        """Label a request that has ended, and update viewers if mitmproxy has not called the end hooks."""
        for live in [live for live in self.live.values() if live.exchange is exchange]:
            self.response(live.flow)
            ctx.master.addons.trigger(UpdateHook([live.flow]))

    # Called by mitmproxy.

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
        """Show answers while they come, at a bounded rate and cost, until cancelled."""
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
        """Make room for a new flow; do not replay a refused one."""
        if flow.is_replay != "request":
            self._drop_old(flow)
            return
        exchange, message = self._replayed(flow), "the gate refused this request, so it is not sent again"
        if "ollama_reason" in flow.metadata:
            refusal = error(flow.metadata.get("ollama_id", flow.id), 403, message)
            flow.response = http.Response.make(refusal.status, refusal.body, http.Headers(refusal.fields))
            exchange.status, exchange.reason = 403, flow.metadata["ollama_reason"]
            self._log(exchange)
            return
        if self.config.audit and audit_log.concerns(exchange):
            exchange.recording = Recording()
        exchange.request_chunk(flow.request.raw_content or b"")
        self.begin(exchange, flow)

    def _replayed(self, flow: http.HTTPFlow) -> Exchange:
        """The record of a request that the operator sends again: of the client `replay`, with the key of the first."""
        base, settings = str(flow.metadata.get("ollama_base_path", "")).encode(), self.config.settings
        exchange = Exchange(REPLAY, flow.request.method, route_of(flow))
        exchange.key = flow.metadata.get("ollama_key")
        if settings:
            sent = flow.request.data.path.removeprefix(base).partition(b"?")[0]
            exchange.path = mask_path(sent, settings.ring.holds, MAX_SEARCHED)
        return exchange

    def _log(self, exchange: Exchange) -> None:
        """Write a replay into the logs. It is charged to nobody."""
        exchange.finish()
        self.config.log.write(exchange)
        if self.config.audit:
            self.config.audit.write(exchange)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Stream and label the answer to a replayed request like any other."""
        live = self.live.get(flow.id)
        if flow.is_replay != "request" or not flow.response or live is None:
            return
        exchange, get = live.exchange, flow.response.headers.get
        exchange.first_byte, exchange.status = time.monotonic(), flow.response.status_code
        kinds = get("content-type", ""), get("content-encoding", "")
        if exchange.route:
            exchange.usage = UsageReader(exchange.route.usage, *kinds, exchange.status)
        flow.response.stream = self.response_started(exchange, flow)

    def response(self, flow: http.HTTPFlow) -> None:
        """Label a flow before viewers and files get its end."""
        live = self.live.pop(flow.id, None)
        if live:
            exchange = live.exchange
            exchange.used = exchange.charged_usage()
            if exchange.client == REPLAY:
                exchange.reason = "upstream broken" if flow.error else None
                self._log(exchange)
            live.show(0)
            # A replay sends the content; it would not be used while a stream function is set.
            flow.request.stream = False
            if flow.response:
                flow.response.stream = False
            if flow.id in self.seen:
                size = sum(len(message.raw_content or b"") for message in (flow.request, flow.response) if message)
                self.held += size - self.seen[flow.id]
                self.seen[flow.id] = size
            if exchange.outcome is Outcome.REFUSED:
                flow.metadata["ollama_reason"] = exchange.reason
            marks = {Outcome.ANSWERED: DONE, Outcome.REFUSED: REFUSED}
            live.label(FAILED if flow.error else marks.get(exchange.outcome, FAILED))

    error = response

    def _drop_old(self, new: http.HTTPFlow) -> None:
        """Remove the oldest flows until there is room for another; running ones stay."""
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
    """A regular expression for exactly that name. Raises CommandError for a name that nothing can have."""
    if not name or not name.isprintable():
        raise exceptions.CommandError("that is not a name of a key or a model")
    return re.escape(name)


def quoted(expression: str) -> str:
    """Quote a regular expression for a filter expression of mitmproxy."""
    return '"' + expression.replace("\\", "\\\\").replace('"', '\\"') + '"'
