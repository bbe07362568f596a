"""HTTP/2 with the client (over TLS): mitmproxy's, with the same guarantees as our HTTP/1."""

import math
import time

import h2.errors
import h2.events
from h2.settings import SettingCodes
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._events import ResponseEndOfMessage, ResponseTrailers
from mitmproxy.proxy.layers.http._http2 import Http2Server, StreamState

from ..http.responses import Answer
from .connections import ClientConnection, Drain, Expire
from .events import Commands, Failure, Lifecycle, Refuse
from .http1 import LINGER_BYTES, LINGER_SECONDS

MAX_STREAMS = 128
"""Concurrent streams of a connection."""
MAX_RESETS = 200
"""Streams that a client may open and reset at once before its connection is closed (CVE-2023-44487, rapid reset)."""
RESETS_PER_SECOND = 2.0
"""How fast MAX_RESETS refills."""
FRAME_HEAD = 9
"""Bytes of a frame header (RFC 9113 section 4.1)."""
MAX_FRAME = 32 * 1024
"""Bytes of a frame; h2 would buffer up to 16 MB of one before it rejects it."""
MAX_UNSENT = 64
"""Parts of a response, each at most a frame (16 KB), that may wait for the client to open its flow control window; with
more, the upstream is not read any further."""


class EventHandled(events.Event):
    """Tells BoundedHttp2Server that an event and all that followed from it has been handled."""


class BoundedHttp2Server(Http2Server):
    """HTTP/2 with the client."""

    def __init__(self, context: Context, lifecycle: Lifecycle, peer: ClientConnection) -> None:
        super().__init__(context)
        self.lifecycle = lifecycle
        self.peer = peer
        self.linger_budget = LINGER_BYTES
        self.resets, self.reset_at = 0.0, time.monotonic()
        self.refusals = 0
        self.closing = False
        """Close the connection when the running streams have ended."""
        self.paused_servers: dict[int, Connection] = {}
        """Upstream connections that are not read, by the stream whose response waits for the client."""
        ours = self.h2_conn.local_settings
        ours[SettingCodes.MAX_CONCURRENT_STREAMS] = MAX_STREAMS
        ours[SettingCodes.MAX_HEADER_LIST_SIZE] = lifecycle.settings.bounds.head
        ours[SettingCodes.MAX_FRAME_SIZE] = self.h2_conn.max_inbound_frame_size = MAX_FRAME
        ours.acknowledge()
        self.h2_conn.decoder.max_header_list_size = lifecycle.settings.bounds.head

    @property
    def idle(self) -> bool:
        """Tell whether no request is running, and nothing is left to send to an authenticated client."""
        return not self.peer.exchanges and not (self.unsent and self.peer.authenticated_before)

    @property
    def unsent(self) -> bool:
        """Tell whether parts of responses wait for the client to open its flow control window."""
        return any(self.h2_conn.stream_buffers.values())

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            self.peer.http_server = self
            self.peer.deadline = time.monotonic() + self.lifecycle.settings.head_timeout
            yield from super()._handle_event(event)
        elif isinstance(event, (Expire, Drain)):
            self.closing = True
        elif isinstance(event, EventHandled):
            yield from self.after_event()
        elif isinstance(event, Refuse) or (isinstance(event, Failure) and self.unanswered(event.stream_id)):
            yield from self.refuse(event.stream_id, event.answer, isinstance(event, Refuse) and event.keep_alive)
        else:
            if isinstance(event, ResponseTrailers):  # Names are in lower case in HTTP/2.
                event.trailers.fields = tuple((name.lower(), value) for name, value in event.trailers.fields)
            yield from super()._handle_event(event)
            if isinstance(event, ResponseEndOfMessage):
                yield from self.stop_reading(event.stream_id)
            elif isinstance(event, events.DataReceived):
                self.resume_reading()
                if self.buffers_too_much and self._handle_event != self.done:
                    yield from self.protocol_error("too long a frame", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.TrailersReceived):
            return False  # Drop trailers, as in HTTP/1; the end of the stream is an event of its own.
        if isinstance(event, h2.events.DataReceived) and not event.data and not event.stream_ended:
            # mitmproxy would send it upstream as a chunk of length 0, which ends a body.
            self.h2_conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return False
        if isinstance(event, h2.events.StreamReset):
            # mitmproxy forgets a stream that ended and was reset in one read, and would not report the reset.
            self.streams.setdefault(event.stream_id, StreamState.HEADERS_RECEIVED)
            now = time.monotonic()
            self.resets = max(0.0, self.resets - (now - self.reset_at) * RESETS_PER_SECOND) + 1
            self.reset_at = now
            if self.resets > MAX_RESETS:
                yield from self.protocol_error("too many resets", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        return (yield from super().handle_h2_event(event))

    def protocol_error(self, message: str, error_code: int = h2.errors.ErrorCodes.PROTOCOL_ERROR) -> Commands:
        """Do as mitmproxy, but cut the message where h2 quotes what the client sent."""
        yield from super().protocol_error(message.partition(":")[0], error_code)

    def unanswered(self, stream_id: int) -> bool:
        """Tell whether a response head can still be sent on this stream."""
        stream = self.h2_conn.streams.get(stream_id)
        return self.is_open_for_us(stream_id) and stream is not None and not stream.state_machine.headers_sent

    def refuse(self, stream_id: int, answer: Answer, keep_alive: bool) -> Commands:
        """Send an answer of our own, and stop the request if more of it may come."""
        if not keep_alive:
            self.refusals += 1
        elif self.peer.deadline is not None and not self.closing:
            self.peer.await_request(self.lifecycle.settings.head_timeout, self.lifecycle.settings.idle_timeout)
        if self.unanswered(stream_id):
            head = [(b":status", b"%d" % answer.status), *answer.fields]
            self.h2_conn.send_headers(stream_id, head, end_stream=False)
            self.h2_conn.send_data(stream_id, answer.body, end_stream=True)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.stop_reading(stream_id)

    def stop_reading(self, stream_id: int) -> Commands:
        """Ask for no more of a request whose response is complete (RFC 9113 section 8.1)."""
        if self.h2_conn.stream_buffers.get(stream_id):
            return
        if not self.is_closed(stream_id):
            self.h2_conn.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        self.streams.pop(stream_id, None)

    @property
    def buffers_too_much(self) -> bool:
        """Tell whether h2 buffers more of a frame, or of the frames of one head, than it will accept."""
        buffer = self.h2_conn.incoming_buffer
        head = sum(len(frame.data) for frame in buffer._headers_buffer)
        return len(buffer._data) > MAX_FRAME + FRAME_HEAD or head > self.lifecycle.settings.bounds.head

    def apply_backpressure(self, stream_id: int, server: Connection) -> None:
        """Stop reading from `server` if the client opens no window, so that we need not buffer the whole response."""
        if len(self.h2_conn.stream_buffers.get(stream_id, ())) > MAX_UNSENT:
            self.paused_servers[stream_id] = server
            self.peer.hold_reading(server, stream_id)

    def resume_reading(self) -> None:
        """Read again from the servers whose responses the client has caught up with."""
        for stream_id, server in list(self.paused_servers.items()):
            if len(self.h2_conn.stream_buffers.get(stream_id, ())) <= MAX_UNSENT // 2:
                del self.paused_servers[stream_id]
                self.peer.release_reading(server, stream_id)

    def after_event(self) -> Commands:
        """Once no request is running, close the connection if there is a reason to, or set its idle deadline."""
        if self._handle_event in (self.linger, self.done):
            return
        if self.peer.exchanges:
            self.peer.deadline, self.peer.expiry_sent = None, False
        elif not self.unsent and (self.closing or (self.refusals and not self.peer.authenticated_before)):
            yield from self.close_gracefully()
        elif self.refusals and not self.peer.authenticated_before:
            # A refusal is unsent, because the client opens no window for it.
            self.peer.deadline = min(self.peer.deadline or math.inf, time.monotonic() + LINGER_SECONDS)
        elif self.peer.deadline is None or (self.unsent and self.peer.authenticated_before and not self.closing):
            self.peer.await_request(self.lifecycle.settings.head_timeout, self.lifecycle.settings.idle_timeout)

    def close_gracefully(self) -> Commands:
        """Send GOAWAY and linger, so that the client can read its responses."""
        self.h2_conn.close_connection(h2.errors.ErrorCodes.NO_ERROR)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        self._handle_event = self.linger  # type: ignore[method-assign]
        self.peer.deadline, self.peer.expiry_sent = time.monotonic() + LINGER_SECONDS, False

    def linger(self, event: events.Event) -> Commands:
        """Drop what still arrives after GOAWAY, up to the budget, until the client closes."""
        if isinstance(event, events.DataReceived):
            self.linger_budget -= len(event.data)
        if isinstance(event, (events.ConnectionClosed, Expire)) or self.linger_budget < 0:
            yield commands.CloseConnection(self.conn)
            self._handle_event = self.done  # type: ignore[assignment,method-assign]

    def done(self, _: events.Event) -> Commands:
        yield from ()
