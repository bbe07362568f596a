"""What a principal may see of Ollama's answers: its models in a list, and little of the operator's account."""

from mitmproxy import http

from .auth import policy
from .auth.keys import Scope
from .exchange import Exchange
from .ollama_api import listings
from .ollama_api.routes import Route


def is_filtered(exchange: Exchange) -> bool:
    """Tell whether the response, whose status is known, has to be read as a whole before it goes to the client."""
    request, route = exchange.state.upstream_request, exchange.route
    if request is None or route is None:
        return False
    if exchange.status == 401:
        return not policy.holds(request.principal, Scope.ACCOUNT)
    return request.filters_response and (exchange.status == 200 or listings.is_account(route))


def filter_response(exchange: Exchange, route: Route, response: http.Response) -> None:
    """Take out of a response what the principal may not see. Raises BodyError if it can't be read."""
    request, body = exchange.state.upstream_request, response.raw_content or b""
    assert request
    headers = response.headers
    if listings.is_account(route):
        headers["content-type"] = "application/json"
        body = listings.filter_account(body, response.status_code)
    elif response.status_code == 401:
        body = listings.without_sign_in(body)
    else:
        body = listings.filter_listing(route.path, body, policy.usable(request.principal))
    headers.pop("transfer-encoding", None)
    headers.pop("content-encoding", None)
    headers["content-length"] = str(len(body))
    response.raw_content = body
    exchange.bytes_out = len(body)
