"""What a request takes of the limits of its key, and gives back at its end: a lease, and the tokens it may use."""

from collections.abc import Callable, Iterable

from .auth.limits import Exceeded, Limiter, Window
from .auth.shared_limits import StorageUnavailableError
from .auth.throttle import REPLAY_GRACE
from .authorizer import replayed
from .errors import RefusedError
from .exchange import Exchange, UpstreamRequest
from .http.head import Fields
from .http.responses import DO_NOT_RETRY, RETRY_SECONDS, retry_after
from .ollama_api.routes import RouteClass
from .settings import Settings

MOST_WAITED = 60
"""Seconds of Retry-After that the libraries wait; after more they ask again and again, or wait for hours."""
UNITS = {"requests_per_minute": b"requests", "tokens_per_day": b"tokens", "tokens_per_month": b"tokens-month"}
"""Limits that have a window, and what RateLimit fields call them."""


class Leases:
    """Those of all requests."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    async def ask(self, exchange: Exchange, request: UpstreamRequest, limiter: Limiter, settings: Settings) -> None:
        """Take a lease, or if there is one, reserve tokens for the body, which is here then. Raises RefusedError.

        While the storage of limits is not available, a request passes without them if the operator chose so.
        """
        try:
            if exchange.state.reserved:
                await self._reserve_tokens(exchange, request, limiter)
            else:
                await self._take(exchange, request, limiter, settings.signature_window)
        except StorageUnavailableError as error:
            self._say(error)
            if settings.limits_unavailable == "closed":
                retry = retry_after(RETRY_SECONDS)
                raise RefusedError("limits unavailable", 503, "limits can't be counted now", retry) from None

    @staticmethod
    async def _take(exchange: Exchange, request: UpstreamRequest, limiter: Limiter, signature_window: int) -> None:
        signature = request.single_use_signature
        if signature and await limiter.signature_age(signature, signature_window) > REPLAY_GRACE:
            raise replayed()
        granted = await limiter.enter(request.principal, exchange.state.lease)
        if isinstance(granted, Exceeded):
            raise exceeded(granted)
        exchange.state.limiter, exchange.state.holds_lease = limiter, True
        exchange.state.limit_fields = limit_fields(granted)

    @staticmethod
    async def _reserve_tokens(exchange: Exchange, request: UpstreamRequest, limiter: Limiter) -> None:
        prompt, name, asked = exchange.prompt, request.principal.name, exchange.state.asked
        if prompt is None:
            raise PermissionError("a body was not read")
        if not exchange.state.holds_lease:  # The storage was not available, and that was no reason to refuse.
            return
        tokens = prompt.tokens
        if exchange.route and exchange.route.route_class is RouteClass.INFER:
            usual = limiter.usual_answer(name, asked.names[0] if asked and asked.names else "")
            most = prompt.most_of_answer(usual)
            exchange.state.learns = most == usual
            tokens += most
        if over := await limiter.reserve(request.principal, exchange.state.lease, tokens):
            raise exceeded(over)

    async def give_back(self, exchange: Exchange) -> None:
        """Give back what an exchange that has ended held; what it used is in the ledger by now. Raises nothing."""
        request, limiter, used = exchange.state.upstream_request, exchange.state.limiter, exchange.used
        if request is None or limiter is None:
            return
        asked = exchange.state.asked
        if exchange.state.learns and used and used.complete and asked and asked.names:
            limiter.learn(request.principal.name, asked.names[0], used.completion_tokens or 0)
        try:
            await limiter.leave(request.principal, exchange.state.lease)
        except StorageUnavailableError as error:
            self._say(error)

    def _say(self, error: StorageUnavailableError) -> None:
        self._warn(f"the storage of limits does not answer ({error})")


def exceeded(limit: Exceeded) -> RefusedError:
    """Make the error of a limit that is used up, or that running requests may use up."""
    what = "what is left of the limit of this key is reserved for its running requests"
    message = f"{what if limit.reserved else 'the limit of this key is used up'}: {limit.name} is {limit.limit}"
    fields = (retry_after(limit.retry_after), *limit_fields(limit.windows))
    used_up = limit.name in ("tokens_per_day", "tokens_per_month") and not limit.reserved
    if used_up and limit.retry_after > MOST_WAITED:
        fields = (DO_NOT_RETRY, *fields)
    error = RefusedError(limit.name, 429, message, *fields)
    error.used_up = used_up
    return error


def limit_fields(windows: Iterable[Window]) -> Fields:
    """Return the RateLimit fields of draft-ietf-httpapi-ratelimit-headers."""
    known = [(UNITS[window.name], window) for window in windows]
    if not known:
        return ()
    return (
        (b"ratelimit-policy", b", ".join(b'"%s";q=%d;w=%d' % (unit, one.limit, one.length) for unit, one in known)),
        (b"ratelimit", b", ".join(b'"%s";r=%d;t=%d' % (unit, one.remaining, one.reset) for unit, one in known)),
    )
