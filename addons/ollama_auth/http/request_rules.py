"""Rules that hold for every request, with or without a credential (RFC 9110, RFC 9112). Pure."""

from .head import Bounds, Head, HeadError, check_fields, values

type Address = tuple[str, int]
"""(IP address, port)."""
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")


def check_request(head: Head, server: Address | None, bounds: Bounds) -> bytes:
    """Refuse what this server does for nobody, and return the request target in origin form. Raises HeadError.

    `server` is the address that the client connected to.
    """
    if head.method not in METHODS:
        raise HeadError(405, "this method is not served here", (b"allow", b", ".join(METHODS)))
    if {value.strip().lower() for value in values(head.fields, b"upgrade")} - {b"h2c"}:
        # Java's client offers h2c with its first request. A server may ignore that: RFC 9113 section 3.1.
        raise HeadError(400, "this server upgrades to no other protocol")
    if {value.lower() for value in values(head.fields, b"expect")} - {b"100-continue"}:
        raise HeadError(417, "the only expectation met here is 100-continue")
    if head.version == b"HTTP/2.0":  # An HTTP/1 head was checked by parse_head().
        check_fields(head.fields, head.target, bounds, ended=head.body == 0)
    target = origin_form(head.target, server)
    if target is None:
        raise HeadError(421, "this is not a proxy: send the path alone as the request target")
    return target


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
