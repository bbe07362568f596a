"""HTTP/2 with the client (over TLS): mitmproxy's, with the same guarantees as our HTTP/1.

Streams that end before their request does: an answer of our own, or of the upstream, may be complete while the client
still sends a body. What it sends is then dropped for a while, because many clients lose the answer to a stream that is
reset, although RFC 9113 section 8.1 lets a server do that.

What a refusal means for the requests after it is in http2_refusals.py; what waits for the client, in http2_unsent.py.
"""

import math
import time
from collections.abc import Iterator

import h2.events
import h2.stream
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import HPACKError
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http2 import Http2Server, StreamState

from ..http.head import Fields
from ..http.responses import Answer
from .client_connection import ClientConnection, Drain, Expire, Resume
from .events import Commands, Failure, Lifecycle, Refuse
from .http1_server import LINGER_BYTES, LINGER_SECONDS
from .http2_frames import (
    DATA,
    END_STREAM,
    HEADERS,
    MAX_FRAME,
    MAX_STREAMS,
    RST_STREAM,
    SMALL,
    Frame,
    FrameError,
    FrameReader,
    frame,
    goaway,
    header_block,
    reset,
)
from .http2_refusals import MAX_DISCARDED, FirstRefusal
from .http2_unsent import UnsentResponses, WindowedH2Connection

MAX_RESETS = 200
"""Streams that a client may open and reset at once before its connection is closed (CVE-2023-44487, rapid reset)."""
RESETS_PER_SECOND = 2.0
"""How fast MAX_RESETS refills."""
MAX_ENCODER_TABLE = 4096
"""Bytes of HPACK's table for what we send. A client may ask for 4 GB, and hpack searches it from end to end."""
PART = 16 * 1024
"""Bytes of a frame that we send: the default of RFC 9113, whatever a client may take."""
MAX_HEADS = 8
"""Requests of a connection that are looked at before others have their turn: each takes about a millisecond."""


class EventHandled(events.Event):
    """Tells BoundedHttp2Server that an event and all that followed from it has been handled."""


class BoundedHttp2Server(Http2Server):
    """HTTP/2 with the client."""

    def __init__(self, context: Context, lifecycle: Lifecycle, peer: ClientConnection) -> None:
        super().__init__(context)
        self.lifecycle = lifecycle
        self.peer = peer
        self.frames = FrameReader(lifecycle.settings.bounds.head)
        self.pending: Iterator[Frame] | None = None
        """Frames that have arrived, of which others have their turn; a Resume event is on its way."""
        self.arrived = b""
        """What came after these."""
        self.linger_budget = LINGER_BYTES
        self.resets, self.reset_at = 0.0, time.monotonic()
        self.head: Fields = ()
        """The fields of the latest request that was looked at."""
        self.refusal: FirstRefusal | None = None
        self.last_stream = math.inf
        """h2 sees no stream above this one: they are turned away."""
        self.latest_stream = 0
        """The latest stream that was turned away."""
        self.discarding: dict[int, int] = {}
        """Bytes that may still come of requests that are answered, by stream."""
        self.wakeups: dict[commands.Command, tuple[int, int]] = {}
        """Streams of which to ask whether their requests still come, and what `discarding` was."""
        self.goaway_ends_streams = False
        """The client is httpcore's, which takes GOAWAY for the end of all its streams, and retries what had none."""
        self.closing = False
        """Close the connection when the running streams have ended."""
        self.h2_conn = WindowedH2Connection(self.h2_conf)
        self.unsent = UnsentResponses(self.h2_conn, peer)
        ours = self.h2_conn.local_settings
        ours[SettingCodes.MAX_CONCURRENT_STREAMS] = MAX_STREAMS
        ours[SettingCodes.MAX_HEADER_LIST_SIZE] = lifecycle.settings.bounds.head
        ours[SettingCodes.MAX_FRAME_SIZE] = MAX_FRAME
        ours.acknowledge()
        self.h2_conn.max_inbound_frame_size = 1 << 24  # FrameReader checks frames, and joins them.
        self.h2_conn.decoder.max_header_list_size = lifecycle.settings.bounds.head

    @property
    def idle(self) -> bool:
        """Tell whether no request is running, and nothing is left to send to an authenticated client."""
        return not self.peer.exchanges and not (self.unsent.size and self.peer.authenticated_before)

    @property
    def ended(self) -> bool:
        """Tell whether the connection has ended, or only lingers."""
        return self._handle_event in (self.linger, self.done)

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.DataReceived):
            yield from self.receive(event.data)
            self.unsent.resume_reading()
        elif isinstance(event, EventHandled):
            yield from self.after_event()
        elif isinstance(event, Refuse) or (isinstance(event, Failure) and self.unanswered(event.stream_id)):
            yield from self.refuse(event.stream_id, event.answer, isinstance(event, Refuse) and event.keep_alive)
        elif isinstance(event, events.Start):
            self.peer.http_server = self
            self.peer.deadline = time.monotonic() + self.lifecycle.settings.head_timeout
            yield from super()._handle_event(event)
        elif isinstance(event, Drain):
            yield from self.drain()
        elif isinstance(event, Resume):
            yield from self.resume()
        elif isinstance(event, Expire):
            yield from self.expire()
        elif isinstance(event, events.Wakeup):
            yield from self.stop_discarding(event.command)
        else:
            if isinstance(event, ResponseTrailers):  # Names are in lower case in HTTP/2.
                event.trailers.fields = tuple((name.lower(), value) for name, value in event.trailers.fields)
            yield from super()._handle_event(event)
            if isinstance(event, ResponseData):
                self.note_sent(event.stream_id, len(event.data))
            elif isinstance(event, ResponseEndOfMessage):
                yield from self.stop_reading(event.stream_id)

    # Parts of responses that go past h2 (fast_path.py).

    def room(self, stream_id: int) -> int:
        """Return how many bytes of a response h2 would send at once, in one frame."""
        conn, stream = self.h2_conn, self.h2_conn.streams.get(stream_id)
        if stream is None or self.ended or conn.stream_buffers.get(stream_id) or not self.is_open_for_us(stream_id):
            return 0
        return min(conn.outbound_flow_control_window, stream.outbound_flow_control_window, PART)

    def data_frame(self, stream_id: int, data: bytes) -> bytes:
        """Return a part of a response, for which there is room, as h2 would send it, and count it as sent."""
        self.h2_conn.outbound_flow_control_window -= len(data)
        self.h2_conn.streams[stream_id].outbound_flow_control_window -= len(data)
        self.note_sent(stream_id, len(data))
        return frame(DATA, 0, stream_id, data)

    def note_sent(self, stream_id: int, size: int) -> None:
        """Count a part of a response."""
        self.frames.earned += 4 + (size >> 8)
        if self.unsent.taken_at is not None and not self.h2_conn.stream_buffers.get(stream_id):
            self.unsent.taken_at = time.monotonic()  # Other streams wait, but the client takes this one.

    # What the client sends.

    def receive(self, data: bytes) -> Commands:
        """Read what has arrived."""
        if self.pending:
            self.arrived += data
        else:
            self.pending = self.frames.feed(data)
            yield from self.read_frames(self.pending)

    def resume(self) -> Commands:
        """Read what was left for a later turn."""
        if self.pending:
            yield from self.read_frames(self.pending)
        if self.arrived and not self.pending:
            data, self.arrived = self.arrived, b""
            yield from self.receive(data)
        if not self.pending:
            self.peer.release_reading(self.peer.client, self)

    def read_frames(self, frames: Iterator[Frame]) -> Commands:
        """Give h2 frames: up to the head of a request, then what follows it. Leave the rest for a later turn."""
        batch, answers, heads = [], b"", 0
        self.pending = None
        try:
            for received in frames:
                if received.stream > self.last_stream:
                    answers += self.turn_away(received)
                    continue
                expected = received.stream in self.streams or received.stream in self.discarding
                if received.kind in (DATA, RST_STREAM) and not expected:
                    self.frames.count_idle(len(received.raw) < SMALL)
                batch.append(received.raw)
                if received.kind == HEADERS:
                    yield from self.hand_on(batch)
                    batch = []
                    heads += 1 + len(self.head) // 32  # Long ones take their time.
                    if self.ended:
                        return
                    self.peer.deadline = None  # Also if it was answered at once; after_event sets the next one.
                if heads >= MAX_HEADS:
                    self.pending = frames
                    self.peer.hold_reading(self.peer.client, self)
                    self.peer.send_event(Resume())
                    break
        except FrameError as error:
            yield from self.protocol_error(str(error), error.code)
            return
        yield from self.hand_on(batch)
        if answers and not self.ended:
            yield commands.SendData(self.conn, answers)

    def hand_on(self, batch: list[bytes]) -> Commands:
        if batch:
            yield from super()._handle_event(events.DataReceived(self.conn, b"".join(batch)))

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.RequestReceived):
            self.head = tuple(event.headers)
            self.frames.earned += 10
        elif isinstance(event, h2.events.TrailersReceived):
            return False  # Drop trailers, as in HTTP/1; the end of the stream is an event of its own.
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.bound_settings(event)
        elif isinstance(event, h2.events.PingAckReceived) and self.refusal and self.refusal.pings:
            self.closing |= self.refusal.all_is_read(self.quiet)
        elif isinstance(event, h2.events.StreamEnded):
            self.discarding.pop(event.stream_id, None)
        elif isinstance(event, h2.events.DataReceived) and event.stream_id in self.discarding:
            yield from self.discard(event.stream_id, len(event.data))
        elif isinstance(event, h2.events.StreamReset):
            self.discarding.pop(event.stream_id, None)
            # mitmproxy forgets a stream that ended and was reset in one read, and would not report the reset.
            self.streams.setdefault(event.stream_id, StreamState.HEADERS_RECEIVED)
            if self.resets_too_much():
                yield from self.protocol_error("too many resets", ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        return (yield from super().handle_h2_event(event))

    def bound_settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        """Bound what the client may choose the size of; forget settings that nobody knows."""
        changed, conn = event.changed_settings, self.h2_conn
        for code in changed:
            if not isinstance(code, SettingCodes):
                conn.remote_settings.pop(code, None)
        if conn.encoder.header_table_size > MAX_ENCODER_TABLE:
            conn.encoder.header_table_size = MAX_ENCODER_TABLE
        conn.max_outbound_frame_size = PART
        for stream in conn.streams.values():
            stream.max_outbound_frame_size = PART
        httpcore = {SettingCodes.MAX_CONCURRENT_STREAMS: 100, SettingCodes.MAX_HEADER_LIST_SIZE: 65536}
        if all(code in changed and changed[code].new_value == value for code, value in httpcore.items()):
            # Those are the defaults of the library h2, which sends this setting, too. httpcore deletes it.
            self.goaway_ends_streams = SettingCodes.ENABLE_CONNECT_PROTOCOL not in changed

    def resets_too_much(self) -> bool:
        """Count a stream that the client reset, or opened although it was told not to."""
        now = time.monotonic()
        self.resets = max(0.0, self.resets - (now - self.reset_at) * RESETS_PER_SECOND) + 1
        self.reset_at = now
        return self.resets > MAX_RESETS and not self.peer.shared

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> Commands:
        """Do as mitmproxy, but let the client read why, and cut the message where h2 quotes what the client sent."""
        message = message.partition(":")[0]
        streams, self.streams = self.streams, {}
        self.h2_conn.close_connection(error_code, message.encode())
        yield from self.end(self.h2_conn.data_to_send())
        if error_code == ErrorCodes.ENHANCE_YOUR_CALM:  # Who floods gets no time.
            yield commands.CloseConnection(self.conn)
            self._handle_event = self.done  # type: ignore[assignment,method-assign]
        for stream_id in streams:
            yield ReceiveHttp(RequestProtocolError(stream_id, message, self.ReceiveProtocolError.code))

    # Refusals, and requests that are answered before they have ended.

    def unanswered(self, stream_id: int) -> bool:
        """Tell whether a response head can still be sent on this stream."""
        stream = self.h2_conn.streams.get(stream_id)
        return self.is_open_for_us(stream_id) and stream is not None and not stream.state_machine.headers_sent

    def refuse(self, stream_id: int, answer: Answer, keep_alive: bool) -> Commands:
        """Send an answer of our own, and drop what may still come of the request."""
        if keep_alive:
            if self.peer.deadline is not None and not self.closing:
                self.peer.await_request(self.lifecycle.settings.head_timeout, self.lifecycle.settings.idle_timeout)
        elif not self.peer.authenticated_before and self.refusal is None:
            timeout, ends_streams = self.lifecycle.settings.head_timeout, self.goaway_ends_streams
            self.refusal = FirstRefusal(self.h2_conn, stream_id, self.head, answer, timeout, ends_streams)
            self.last_stream = self.latest_stream = self.h2_conn.highest_inbound_stream_id
        if self.unanswered(stream_id):
            head = [(b":status", b"%d" % answer.status), *answer.fields]
            self.h2_conn.send_headers(stream_id, head, end_stream=False)
            self.h2_conn.send_data(stream_id, answer.body, end_stream=True)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.stop_reading(stream_id)

    def turn_away(self, received: Frame) -> bytes:
        """Return the answer to a frame of a stream that h2 does not see. Raises FrameError."""
        stream_id, ends = received.stream, bool(received.flags & END_STREAM and received.kind in (DATA, HEADERS))
        answer = b""
        if received.kind == HEADERS:
            try:  # Also where it is not looked at, because the next one may refer to it.
                head = tuple(self.h2_conn.decoder.decode(header_block(received.raw), raw=True))
            except (HPACKError, IndexError, ValueError) as error:
                raise FrameError("a malformed head", ErrorCodes.COMPRESSION_ERROR) from error
            if stream_id > self.latest_stream:
                self.latest_stream = stream_id
                if self.refusal:
                    answer = self.refusal.answer_to(stream_id, head)
                    if not ends:
                        self.discarding[stream_id] = MAX_DISCARDED
                elif self.resets_too_much():  # The gateway is being stopped.
                    raise FrameError("too many requests after GOAWAY", ErrorCodes.ENHANCE_YOUR_CALM)
                else:
                    answer = reset(stream_id, ErrorCodes.REFUSED_STREAM)
        elif received.kind == DATA and self.refusal:
            self.refusal.note_dropped(len(received.raw), stream_id in self.discarding)
        if ends:
            self.discarding.pop(stream_id, None)
        return answer

    def stop_reading(self, stream_id: int) -> Commands:
        """Drop what still comes of a request whose response is complete."""
        stream, states = self.h2_conn.streams.get(stream_id), h2.stream.StreamState
        if stream and stream.state_machine.state in (states.OPEN, states.HALF_CLOSED_LOCAL):
            self.discarding[stream_id] = MAX_DISCARDED
            yield from self.wake_up(stream_id)
        self.streams.pop(stream_id, None)

    def wake_up(self, stream_id: int) -> Commands:
        """Ask in a while whether the request still comes; not for a stranger, whose connection has a deadline."""
        if self.refusal is None:
            wakeup = commands.RequestWakeup(LINGER_SECONDS)
            self.wakeups[wakeup] = stream_id, self.discarding[stream_id]
            yield wakeup

    def discard(self, stream_id: int, size: int) -> Commands:
        """Drop a part of a request."""
        self.discarding[stream_id] -= size
        if self.refusal:
            self.refusal.note_dropped(size, True)
        elif self.discarding[stream_id] < 0:
            yield from self.reset_answered(stream_id)

    def stop_discarding(self, wakeup: commands.Command) -> Commands:
        """Stop a request that does not come any more."""
        stream_id, before = self.wakeups.pop(wakeup)
        if stream_id in self.discarding:
            if self.discarding[stream_id] < before:
                yield from self.wake_up(stream_id)
            else:
                yield from self.reset_answered(stream_id)

    def reset_answered(self, stream_id: int) -> Commands:
        """Ask for no more of a request whose response is complete (RFC 9113 section 8.1), once all of it is sent."""
        if not self.h2_conn.stream_buffers.get(stream_id):
            self.discarding.pop(stream_id, None)
            if not self.is_closed(stream_id):
                self.h2_conn.reset_stream(stream_id, ErrorCodes.NO_ERROR)
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())

    # The end.

    def after_event(self) -> Commands:
        """Set the deadline of the connection, or close it if there is a reason to, and no request is running."""
        if self.ended:
            return
        now, had_waiting = time.monotonic(), self.unsent.taken_at is not None
        self.unsent.note_taken(now)
        if self.refusal:
            if self.closing or self.refusal.is_over(self.quiet):
                yield from self.end(self.h2_conn.data_to_send() + self.refusal.last_words(self.discarding))
            else:
                self.peer.deadline, self.peer.expiry_sent = self.refusal.deadline(now, self.quiet), False
        elif self.unsent.taken_at is not None:
            self.peer.deadline = self.unsent.taken_at + self.lifecycle.settings.idle_timeout
            self.peer.expiry_sent = False
        elif self.peer.exchanges or self.pending:
            self.peer.deadline, self.peer.expiry_sent = None, False
        elif self.closing:
            self.h2_conn.close_connection(ErrorCodes.NO_ERROR)
            yield from self.end(self.h2_conn.data_to_send())
        elif self.peer.deadline is None or had_waiting:
            self.peer.await_request(self.lifecycle.settings.head_timeout, self.lifecycle.settings.idle_timeout)

    def expire(self) -> Commands:
        """Act on a passed deadline, unless it has moved since."""
        taken_at, idle_timeout = self.unsent.taken_at, self.lifecycle.settings.idle_timeout
        if self.refusal and self.quiet and not self.refusal.pings:
            self.refusal.ping()
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif self.refusal or not (self.peer.exchanges or self.unsent.size):
            self.closing = True
        elif taken_at is not None and time.monotonic() - taken_at > idle_timeout:
            yield from self.close_connection("the client takes nothing of its responses")

    @property
    def quiet(self) -> bool:
        """Tell whether all requests have come that were refused, and the answers to them have gone."""
        return not self.discarding and not self.unsent.size

    def drain(self) -> Commands:
        """Begin nothing new; what runs may end (RFC 9113 section 6.8)."""
        self.closing = True
        if self.refusal is None and not self.idle:
            self.last_stream = self.latest_stream = self.h2_conn.highest_inbound_stream_id
            if not self.goaway_ends_streams:
                yield commands.SendData(self.conn, self.h2_conn.data_to_send() + goaway(self.latest_stream))

    def end(self, last_words: bytes) -> Commands:
        """Send this and linger, so that the client can read its responses."""
        yield commands.SendData(self.conn, last_words)
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        self._handle_event = self.linger  # type: ignore[method-assign]
        self.linger_budget = LINGER_BYTES
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
