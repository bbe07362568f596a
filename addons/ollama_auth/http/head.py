"""Parse the head of an HTTP/1 request, more strictly than RFC 9112 requires of a server. Pure.

A request that two parsers read differently can be smuggled past one of them, so nothing ambiguous is repaired: it is
refused, and the connection closed.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from ..errors import RefusedError

type Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in their order: (name as sent, value without white space around it)."""

CHUNKED = -1
"""The body length of a chunked request: known when it ends."""

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token, such as a method or the name of a field (RFC 9110 section 5.6.2)."""
# RFC 3986: a URI is printable ASCII, and the fragment is never sent.
_TARGET = re.compile(rb"[!\"$-~]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
# Control characters but HTAB (RFC 9110 section 5.5).
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# 18 digits are an exabyte less one, and fit every integer type on the way.
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

MAX_METHOD = 32


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest head that is read: all of it (bytes), its fields (count) and the request target (bytes)."""

    head: int = 32 * 1024
    fields: int = 100
    target: int = 8 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A request head. `body` is its length in bytes, or CHUNKED."""

    method: bytes
    target: bytes
    version: bytes
    fields: Fields
    body: int
    close: bool
    """The client asked for the connection to be closed after this request, or speaks HTTP/1.0."""


class HeadError(RefusedError):
    """A malformed head; the message for the client quotes none of it."""

    def __init__(self, status: int, message: str, *fields: tuple[bytes, bytes]) -> None:
        super().__init__("malformed", status, message, *fields)


def late() -> HeadError:
    """Make the error of a head that did not arrive in time."""
    return HeadError(408, "the request head took too long")


class Incoming(Protocol):
    """The part of h11's ReceiveBuffer that is used here."""

    def __bytes__(self) -> bytes: ...
    def maybe_extract_at_most(self, count: int) -> bytearray | None: ...


def take_head(buffer: Incoming, bounds: Bounds) -> bytes | None:
    """Cut one head off the buffer, without the empty line that ends it.

    Returns None while it is incomplete. Raises HeadError as soon as what is there can't become a good head.
    """
    data = bytes(buffer)
    if empty := _EMPTY_LINES.match(data):  # RFC 9112 section 2.2: empty lines before a request are ignored.
        buffer.maybe_extract_at_most(empty.end())
        data = data[empty.end() :]
    end = data.find(b"\r\n\r\n", 0, bounds.head + 4)
    seen = data[: bounds.head] if end < 0 else data[:end]
    if bare(seen):
        raise HeadError(400, "the request head has a bare CR, a bare LF or a NUL in it")
    line = seen.split(b"\r\n", 1)[0].removesuffix(b"\r")  # Half a line end, so far.
    if len(line) > bounds.target + MAX_METHOD + len(" HTTP/1.1 "):
        raise HeadError(414, f"the request target is longer than {bounds.target} bytes")
    if end < 0:
        if len(data) >= bounds.head + 4:  # With less, the end of a head that is just not too long may still come.
            raise HeadError(431, f"the request head is longer than {bounds.head} bytes")
        return None
    buffer.maybe_extract_at_most(end + 4)
    return seen


def bare(data: bytes) -> bool:
    """Whether there is a bare LF, CR or NUL. RFC 9112 section 2.2 lets parsers take the first two for a line end.

    Counted and not matched, for speed: all of a head is looked at again whenever a byte of it comes.
    """
    lines = data.count(b"\r\n")
    return data.count(b"\n") != lines or data.count(b"\r") != lines + data.endswith(b"\r") or b"\0" in data


def parse_head(raw: bytes, bounds: Bounds) -> Head:
    """Parse a head as `take_head` cuts it. Raises HeadError."""
    line, *lines = raw.split(b"\r\n")
    method, target, version = _request_line(line, bounds)
    if len(lines) > bounds.fields:
        raise HeadError(431, f"the request has more than {bounds.fields} header fields")
    fields = tuple(map(_field, lines))
    _check_host(fields, required=version == b"HTTP/1.1")
    close = version == b"HTTP/1.0" or b"close" in listed(fields, b"connection")
    return Head(method, target, version, fields, _body(fields, version), close)


def check_fields(fields: Fields, target: bytes, bounds: Bounds, *, ended: bool = False) -> None:
    """Apply the same rules to an HTTP/2 head, which its own library has parsed. `ended`: no body follows it.

    The parts of a Cookie field that was split count as one field (RFC 9113 section 8.2.3). Raises HeadError.
    """
    crumbs = len(values(fields, b"cookie"))
    if len(fields) - max(0, crumbs - 1) > bounds.fields or sum(len(n) + len(v) + 4 for n, v in fields) > bounds.head:
        raise HeadError(431, f"the request has more than {bounds.fields} header fields or {bounds.head} bytes of them")
    _check_target(target, bounds)
    for name, value in fields:
        _check_field(name, value)
    _check_host(fields, required=False)
    # The length is forwarded to an HTTP/1 upstream, where it frames the body.
    if _body(fields, b"HTTP/2.0") and ended:
        raise HeadError(400, "the Content-Length announces a body, and there is none")


def _request_line(line: bytes, bounds: Bounds) -> tuple[bytes, bytes, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3:
        raise HeadError(400, "the request line is not METHOD TARGET VERSION")
    method, target, version = parts
    if not _VERSION.fullmatch(version):
        raise HeadError(400, "the request line does not end in an HTTP version")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HeadError(505, "this HTTP version is not supported: use HTTP/1.1, HTTP/1.0, or HTTP/2 over TLS")
    if len(method) > MAX_METHOD or not TOKEN.fullmatch(method):
        raise HeadError(400, "the request method is malformed")
    _check_target(target, bounds)
    return method, target, version


def _check_target(target: bytes, bounds: Bounds) -> None:
    if len(target) > bounds.target:
        raise HeadError(414, f"the request target is longer than {bounds.target} bytes")
    if not _TARGET.fullmatch(target):
        raise HeadError(400, "the request target has characters that do not belong there")


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon:
        raise HeadError(400, "a header field has no colon")
    value = value.strip(b" \t")
    _check_field(name, value)
    return name, value


def _check_field(name: bytes, value: bytes) -> None:
    # A token has no spaces, so this also refuses obsolete line folding and a space before the colon.
    if not TOKEN.fullmatch(name):
        raise HeadError(400, "a header field has a malformed name")
    if _CONTROL.search(value):
        raise HeadError(400, "a header field has a control character in it")


def check_text(fields: Fields) -> None:
    """Refuse fields that are not UTF-8: two readers may take other bytes differently (RFC 9110 section 5.5).

    For the fields that go upstream; of the others only ASCII is ever read. Raises HeadError.
    """
    for name, value in fields:
        try:
            value.decode()
        except UnicodeDecodeError:
            raise HeadError(400, f"the header field {name.decode()} has bytes that are not UTF-8") from None


def values(fields: Fields, name: bytes) -> list[bytes]:
    """All values of the fields of that name (in lower case)."""
    return [value for field, value in fields if field.lower() == name]


def listed(fields: Fields, name: bytes) -> set[bytes]:
    """What the fields of that name list, in lower case and without empty elements (RFC 9110 section 5.6.1)."""
    items = {item.strip(b" \t").lower() for value in values(fields, name) for item in value.split(b",")}
    return items - {b""}


def _check_host(fields: Fields, required: bool) -> None:
    hosts = values(fields, b"host")
    if len(hosts) > 1 or (required and not hosts):
        raise HeadError(400, "the request needs exactly one Host header field")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HeadError(400, "the Host header field is malformed")


def _body(fields: Fields, version: bytes) -> int:
    """The length of the body (RFC 9112 section 6.3), without anything there that is allowed but ambiguous."""
    codings = values(fields, b"transfer-encoding")
    lengths = values(fields, b"content-length")
    if codings and lengths:
        raise HeadError(400, "the request has both Transfer-Encoding and Content-Length")
    if codings:
        if version != b"HTTP/1.1" or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HeadError(400, "the only Transfer-Encoding taken is chunked, once, in HTTP/1.1")
        return CHUNKED
    if len(lengths) > 1:
        raise HeadError(400, "the request has more than one Content-Length")
    if not lengths:
        return 0
    if not _LENGTH.fullmatch(lengths[0]):
        raise HeadError(400, "the Content-Length is not a number, or too large a one")
    return int(lengths[0])
