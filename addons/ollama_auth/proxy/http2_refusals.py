"""An HTTP/2 connection after the first refusal of a request without a valid credential.

h2 sees no further stream of it, and no rule is asked about one. A request with the same credential gets the same
answer, any other is reset with REFUSED_STREAM: a client may send it again on another connection (RFC 9113 section
8.7). The connection ends when the bodies have come, and all is quiet.
"""

import time
from collections.abc import Iterable

from h2.connection import H2Connection
from h2.errors import ErrorCodes

from ..http.head import Fields
from ..http.responses import Answer
from .http1_server import LINGER_SECONDS
from .http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_STREAMS,
    FrameError,
    frame,
    goaway,
    reset,
)

MAX_DISCARDED = 32 << 20
"""Bytes to drop of a request that is answered already."""
QUIET_SECONDS = 0.1
"""Time in which requests that a client sends together arrive."""
PING_SECONDS = 0.5
"""Time to wait for the answer to a PING, which shows that the client has read what was sent before it."""
BODILESS = (b"HEAD", b"OPTIONS")
"""Methods whose answer is not that of the others."""


class FirstRefusal:
    """The refusal that ends a connection, and what it means for the requests after it.

    `quiet`, where it is asked for, says that the bodies of all refused requests have come, and all answers have gone.
    """

    def __init__(
        self,
        conn: H2Connection,
        stream_id: int,
        head: Fields,
        answer: Answer,
        head_timeout: float,
        goaway_ends_streams: bool,
    ) -> None:
        """`head` is that of the refused request; for `goaway_ends_streams` see BoundedHttp2Server."""
        now = time.monotonic()
        method, credential = credential_of(head)
        self._conn = conn
        self._answer = answer
        self._credential = credential if answer.status in (401, 429) and method not in BODILESS else None
        """The fields that hold it; None if the answer does not depend on them alone."""
        self._goaway_ends_streams = goaway_ends_streams
        self._until = now + LINGER_SECONDS
        """When to wait no longer for the bodies of refused requests."""
        self._latest = now + max(head_timeout, LINGER_SECONDS)
        """The last moment to which a client that sends may push that."""
        self._last_stream = stream_id
        """The latest stream that was answered."""
        self._unanswered: list[int] = []
        """Streams that were not looked at."""
        self._turned_away = 0
        self._budget = MAX_DISCARDED
        self.pings = 0
        """PINGs that were sent since all was quiet."""

    def answer_to(self, stream_id: int, head: Fields) -> bytes:
        """Return the frames that answer a further request; none if it is reset at the end. Raises FrameError."""
        self._turned_away += 1 + len(head) // 32  # Long heads take their time.
        if self._turned_away > 2 * MAX_STREAMS:
            raise FrameError("too many requests after one that was refused", ErrorCodes.ENHANCE_YOUR_CALM)
        if not self._is_answered_alike(head):
            self._unanswered.append(stream_id)
            return b""
        self._conn.outbound_flow_control_window -= len(self._answer.body)
        self._last_stream = stream_id
        block = self._conn.encoder.encode([(b":status", b"%d" % self._answer.status), *self._answer.fields])
        return frame(HEADERS, END_HEADERS, stream_id, block) + frame(DATA, END_STREAM, stream_id, self._answer.body)

    def _is_answered_alike(self, head: Fields) -> bool:
        """Tell whether to give this request the answer that the first one got."""
        method, credential = credential_of(head)
        window = min(self._conn.outbound_flow_control_window, self._conn.remote_settings.initial_window_size)
        return (
            credential == self._credential
            and method not in BODILESS
            and window >= len(self._answer.body)
            and not (self._goaway_ends_streams and self._unanswered)
            and self._turned_away <= MAX_STREAMS
            and self._budget > MAX_DISCARDED * 3 // 4
        )

    def note_dropped(self, size: int, awaited: bool) -> None:
        """Count what came of a refused request; wait longer if it was part of a body that is `awaited`."""
        self._budget -= size
        if awaited:
            self._until = min(time.monotonic() + LINGER_SECONDS, self._latest)

    def is_over(self, quiet: bool) -> bool:
        """Tell whether to end the connection now: too much has come, or much, and this is a good moment."""
        full = self._turned_away > MAX_STREAMS // 2 or self._budget < MAX_DISCARDED * 7 // 8
        return self._budget < 0 or (full and quiet and not self._goaway_ends_streams)

    def deadline(self, now: float, quiet: bool) -> float:
        """Return when to ask the client whether it has read all, or to end the connection if it was asked."""
        answer_to_ping = LINGER_SECONDS if self._goaway_ends_streams else PING_SECONDS
        return min(self._until, now + (answer_to_ping if self.pings else QUIET_SECONDS)) if quiet else self._until

    def ping(self) -> None:
        """Send a PING, whose answer shows what the client has read."""
        self.pings += 1
        self._conn.ping(bytes(8))

    def all_is_read(self, quiet: bool) -> bool:
        """Tell, at the answer to a PING, whether what was sent has been read, and nothing is on its way.

        In httpcore each request that waits may read for the others, and all but it get what was read one PING later.
        """
        if not quiet:
            self.pings = 0
        elif self._goaway_ends_streams and self.pings <= len(self._unanswered):
            self.ping()
        else:
            return True
        return False

    def last_words(self, discarding: Iterable[int]) -> bytes:
        """Return the frames that tell which requests were not looked at; `discarding` are those that are not ended."""
        # GOAWAY comes last: the library h2 takes no frame after it.
        away = [s for s in self._unanswered if s < self._last_stream or not self._goaway_ends_streams]
        resets = [reset(stream_id, ErrorCodes.REFUSED_STREAM) for stream_id in away]
        resets += [reset(s, ErrorCodes.NO_ERROR) for s in discarding if s not in self._unanswered]
        return b"".join(resets) + goaway(self._last_stream)


def credential_of(head: Fields) -> tuple[bytes, Fields]:
    """Return the method of a request, and the fields in which a credential may be."""
    method = next((value for name, value in head if name == b":method"), b"")
    return method, tuple(pair for pair in head if pair[0] in (b"authorization", b"x-api-key"))
