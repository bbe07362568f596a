"""Authentication on the status listener, and the lines that the access log has of it.

A key comes as `Authorization: Bearer` and in no other way. Browsers remember passwords and cookies, and send them with
requests that pages of others make; a Bearer key they never send by themselves.
"""

from collections.abc import Container

from tornado.httputil import HTTPServerRequest

from ..auth import policy
from ..auth.client_ip import network_of
from ..auth.credentials import CredentialError
from ..auth.keys import Principal, Scope
from ..auth.redaction import MASK
from ..errors import RefusedError
from ..exchange import Exchange
from ..http import responses
from ..http.head import Head
from ..runtime import ActiveConfig
from ..settings import UNCONFIGURED

HOW = "send a key as `Authorization: Bearer <key>`"


def head_of(request: HTTPServerRequest) -> Head:
    """The request as the authorizer reads it: of its fields only those that may hold the key."""
    sent = [value.encode("latin-1", "replace") for value in request.headers.get_list("Authorization")]
    method, target = (request.method or "").encode(), (request.uri or "").encode("latin-1", "replace")
    return Head(method, target, b"HTTP/1.1", tuple((b"authorization", value) for value in sent), 0, False)


def client_of(request: HTTPServerRequest, config: ActiveConfig) -> str:
    """Return the address of the client, also behind a trusted proxy."""
    address, proxies = request.remote_ip or "unknown", (config.settings or UNCONFIGURED).proxies
    sent = [value.encode("latin-1", "replace") for value in request.headers.get_list(proxies.header)]
    return proxies.client_of(address, tuple((proxies.header.encode(), value) for value in sent))


def sign_in(request: HTTPServerRequest, config: ActiveConfig) -> Principal:
    """Return whose key a request holds. Raises RefusedError."""
    head = head_of(request)
    try:
        if config.authorizer is None:
            raise RefusedError(
                "closed", 503, "the gateway is not ready", responses.retry_after(responses.RETRY_SECONDS)
            )
        if not head.fields:
            raise CredentialError("missing", HOW)
        if any(not value.lower().startswith(b"bearer ") for _, value in head.fields):
            raise CredentialError("malformed", HOW)
        return config.authorizer.sign_in(head, network_of(client_of(request, config)))
    except RefusedError as error:
        if error.status == 401:
            sent = error.reason != "missing"
            error.fields = (*responses.challenges(sent=sent, basic=False), *error.fields)
        raise


def is_admin(principal: Principal) -> bool:
    """Whether a principal may see and change everything here."""
    return policy.holds(principal, Scope.ADMIN)


def check_admin(principal: Principal) -> None:
    """Raises RefusedError for who is no administrator."""
    if not is_admin(principal):
        error = RefusedError("scope", 403, "this key lacks the scope admin: it sees only itself, and changes nothing")
        error.key = principal.name
        raise error


def log(
    config: ActiveConfig, request: HTTPServerRequest, path: str, key: str | None, status: int, reason: str | None
) -> None:
    """Write a line of the access log, for a change or a refusal. `path` is as it may be shown."""
    method = request.method if request.method in ("GET", "HEAD", "POST", "PATCH", "DELETE") else MASK.decode()
    exchange = Exchange(client_of(request, config), method, path=path.encode())
    exchange.key, exchange.status, exchange.reason = key, status, reason
    exchange.finish()
    config.log.write(exchange)


def shown_path(path: str, words: Container[str]) -> str:
    """Return a path with all but these words masked: a client may have put its key there."""
    return "/".join(part if part in words else MASK.decode() for part in path.split("/"))
