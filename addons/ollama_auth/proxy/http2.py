"""HTTP/2 with the client (over TLS): mitmproxy's, with the promises of HTTP/1."""

import math
import time

import h2.errors
import h2.events
from h2.settings import SettingCodes
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._events import (
    ResponseEndOfMessage,
    ResponseTrailers,
)
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
"""How many more, as time goes by."""
FRAME_HEAD = 9
MAX_FRAME = 32 * 1024
"""Bytes of a frame; h2 would keep up to 16 MB of one before it finds it too long."""
MAX_UNSENT = 64
"""Parts of an answer, each of a frame (16 KB) at most, that wait for a client to open its window for them, before no
more of it is read from the server."""


class Settle(events.Event):
    """For the HTTP/2 edge: all that came of an event is done; is there anything left to do?"""


class BoundedHttp2Server(Http2Server):
    """HTTP/2 with the client."""

    def __init__(self, context: Context, lifecycle: Lifecycle, peer: ClientConnection) -> None:
        super().__init__(context)
        self.lifecycle = lifecycle
        self.peer = peer
        self.budget = LINGER_BYTES
        self.resets, self.reset_at = 0.0, time.monotonic()
        self.refusals = 0
        self.leaving = False
        """Nothing more is wanted from this client: close when the streams at work have ended."""
        self.throttled: dict[int, Connection] = {}
        """Streams whose answers wait for the client, and the servers that are held for them."""
        self.h2_conn.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = MAX_STREAMS
        self.h2_conn.local_settings[SettingCodes.MAX_HEADER_LIST_SIZE] = lifecycle.bounds.head
        self.h2_conn.local_settings[SettingCodes.MAX_FRAME_SIZE] = MAX_FRAME
        self.h2_conn.max_inbound_frame_size = MAX_FRAME
        self.h2_conn.local_settings.acknowledge()
        self.h2_conn.decoder.max_header_list_size = lifecycle.bounds.head

    @property
    def idle(self) -> bool:
        """No request is under way, and nothing is left to send to somebody who was let in."""
        return not self.peer.exchanges and not (self.unsent and self.peer.known)

    @property
    def unsent(self) -> bool:
        """Parts of answers wait for the client to open its window."""
        return any(self.h2_conn.stream_buffers.values())

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            self.peer.protocol = self
            self.peer.deadline = time.monotonic() + self.lifecycle.head_timeout
            yield from super()._handle_event(event)
        elif isinstance(event, (Expire, Drain)):
            self.leaving = True
        elif isinstance(event, Settle):
            yield from self.settle()
        elif isinstance(event, Refuse) or (isinstance(event, Failure) and self.unanswered(event.stream_id)):
            yield from self.refuse(event.stream_id, event.answer)
        else:
            if isinstance(event, ResponseTrailers):  # HTTP/2 has all names in lower case.
                event.trailers.fields = tuple((name.lower(), value) for name, value in event.trailers.fields)
            yield from super()._handle_event(event)
            if isinstance(event, ResponseEndOfMessage):
                yield from self.stop_reading(event.stream_id)
            elif isinstance(event, events.DataReceived):
                self.go_on()
                if self.hoards and self._handle_event != self.done:
                    yield from self.protocol_error("too long a frame", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.TrailersReceived):
            return False  # Dropped, as in HTTP/1; the end of the stream is an event of its own.
        if isinstance(event, h2.events.DataReceived) and not event.data and not event.stream_ended:
            # mitmproxy would send it upstream as a chunk of length 0, which ends a body.
            self.h2_conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return False
        if isinstance(event, h2.events.StreamReset):
            # mitmproxy forgets a stream that ended and was reset in one read, and would tell nobody.
            self.streams.setdefault(event.stream_id, StreamState.HEADERS_RECEIVED)
            now = time.monotonic()
            self.resets = max(0.0, self.resets - (now - self.reset_at) * RESETS_PER_SECOND) + 1
            self.reset_at = now
            if self.resets > MAX_RESETS:
                yield from self.protocol_error("too many resets", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        return (yield from super().handle_h2_event(event))

    def protocol_error(self, message: str, error_code: int = h2.errors.ErrorCodes.PROTOCOL_ERROR) -> Commands:
        """As mitmproxy's, without the end of the message: that is where h2 quotes what the client sent."""
        yield from super().protocol_error(message.partition(":")[0], error_code)

    def unanswered(self, stream_id: int) -> bool:
        """The head of a response can still be sent."""
        stream = self.h2_conn.streams.get(stream_id)
        return self.is_open_for_us(stream_id) and stream is not None and not stream.state_machine.headers_sent

    def refuse(self, stream_id: int, answer: Answer) -> Commands:
        """Answer with something of our own, and stop the request if more of it was to come."""
        self.refusals += 1
        if self.unanswered(stream_id):
            head = [(b":status", b"%d" % answer.status), *answer.fields]
            self.h2_conn.send_headers(stream_id, head, end_stream=False)
            self.h2_conn.send_data(stream_id, answer.body, end_stream=True)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.stop_reading(stream_id)

    def stop_reading(self, stream_id: int) -> Commands:
        """A whole answer was sent before the request was: ask for no more of it (RFC 9113 section 8.1)."""
        if self.h2_conn.stream_buffers.get(stream_id):
            return
        if not self.is_closed(stream_id):
            self.h2_conn.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        self.streams.pop(stream_id, None)

    @property
    def hoards(self) -> bool:
        """h2 keeps more of a frame, or of the frames of one head, than any that it will take."""
        buffer = self.h2_conn.incoming_buffer
        head = sum(len(frame.data) for frame in buffer._headers_buffer)
        return len(buffer._data) > MAX_FRAME + FRAME_HEAD or head > self.lifecycle.bounds.head

    def throttle(self, stream_id: int, server: Connection) -> None:
        """A client that opens no window must not make us keep all of an answer."""
        if len(self.h2_conn.stream_buffers.get(stream_id, ())) > MAX_UNSENT:
            self.throttled[stream_id] = server
            self.peer.hold(server, stream_id)

    def go_on(self) -> None:
        """Read again what was held for answers that are sent now."""
        for stream_id, server in list(self.throttled.items()):
            if len(self.h2_conn.stream_buffers.get(stream_id, ())) <= MAX_UNSENT // 2:
                del self.throttled[stream_id]
                self.peer.release(server, stream_id)

    def settle(self) -> Commands:
        """Where nothing is under way: leave, if there is a reason to, or wait for the next request a while."""
        if self._handle_event in (self.linger, self.done):
            return
        if self.peer.exchanges:
            self.peer.deadline, self.peer.told = None, False
        elif not self.unsent and (self.leaving or (self.refusals and not self.peer.known)):
            yield from self.leave()
        elif self.refusals and not self.peer.known:  # Who opens no window for a refusal has less time for it.
            self.peer.deadline = min(self.peer.deadline or math.inf, time.monotonic() + LINGER_SECONDS)
        elif self.peer.deadline is None or (self.unsent and self.peer.known and not self.leaving):
            self.peer.deadline = time.monotonic() + self.lifecycle.idle_timeout

    def leave(self) -> Commands:
        """Say goodbye, and drop what still comes for a while, so that the client can read its answers."""
        self.h2_conn.close_connection(h2.errors.ErrorCodes.NO_ERROR)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        self._handle_event = self.linger  # type: ignore[method-assign]
        self.peer.deadline, self.peer.told = time.monotonic() + LINGER_SECONDS, False

    def linger(self, event: events.Event) -> Commands:
        """After the goodbye: the end, or a bounded amount of nothing."""
        if isinstance(event, events.DataReceived):
            self.budget -= len(event.data)
        if isinstance(event, (events.ConnectionClosed, Expire)) or self.budget < 0:
            yield commands.CloseConnection(self.conn)
            self._handle_event = self.done  # type: ignore[assignment,method-assign]

    def done(self, _: events.Event) -> Commands:
        yield from ()

    def last_words(self, answer: Answer) -> Commands:
        """Something broke on our side; the caller closes the connection."""
        del answer  # Which stream it would be for is not known any more.
        self._handle_event = self.done  # type: ignore[assignment,method-assign]
        yield from ()
