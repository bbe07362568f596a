"""Rules that hold for every request, with or without a credential (RFC 9110, RFC 9112). Pure."""

from .head import Bounds, Fields, Head, HeadError, check_fields, listed, values

type Address = tuple[str, int]
"""(IP address, port)."""
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")

_OF_BROWSERS = frozenset({b"accept-language", b"origin", b"referer", b"sec-fetch-mode", b"sec-fetch-site"})


def check_request(head: Head, server: Address | None, bounds: Bounds) -> bytes:
    """Refuse what this server does for nobody, and return the request target in origin form. Raises HeadError.

    `server` is the address that the client connected to.
    """
    if head.method not in METHODS:
        raise HeadError(405, "this method is not served here", (b"allow", b", ".join(METHODS)))
    if listed(head.fields, b"expect") - {b"100-continue"}:
        raise HeadError(417, "the only expectation met here is 100-continue")
    if head.version == b"HTTP/2.0":  # An HTTP/1 head was checked by parse_head().
        check_fields(head.fields, head.target, bounds, ended=head.body == 0)
    target = origin_form(head.target, server)
    if target is None:
        raise HeadError(421, "this is not a proxy: send the path alone as the request target")
    return target


def wants_websocket(head: Head) -> bool:
    """Tell whether the client asks for a WebSocket. Every other Upgrade is ignored, which a server may do (RFC 9110
    section 7.8): Java's client offers h2c with its first request, and proxies send an empty one."""
    return head.version == b"HTTP/1.1" and b"websocket" in listed(head.fields, b"upgrade")


def from_browser(fields: Fields) -> bool:
    """Tell whether a request looks like a browser's, which would ask its user for a password if it was told to, and
    then send that with the requests of every page."""
    agent = b" ".join(values(fields, b"user-agent"))
    return b"mozilla/" in agent.lower() or any(name.lower() in _OF_BROWSERS for name, _ in fields)


def origin_form(target: bytes, server: Address | None) -> bytes | None:
    """Return path and query of a request target (RFC 9112 section 3.2), or None if it is for another server.

    The absolute form is accepted for `server`, the address that the client connected to, and for localhost if that is
    a loopback address. The gate cannot know its other names, so any other authority is an attempt to use a proxy.
    """
    if target.startswith(b"/"):
        return target
    scheme, _, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if not server or scheme.lower() not in (b"http", b"https"):
        return None
    host = f"[{server[0]}]" if ":" in server[0] else server[0]
    names = {host, "localhost"} if server[0] in ("127.0.0.1", "::1") else {host}
    return slash + path or b"/" if authority.lower() in {f"{name}:{server[1]}".encode() for name in names} else None
