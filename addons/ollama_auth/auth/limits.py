"""The limits of principals: requests a minute, concurrent requests, tokens by calendar day and month.

Requests and leases are counted in this process, or in a Redis that several gateways share (`shared_limits.py`). Tokens
that were used are in the ledger, which knows principals by their name alone. While a request runs it also holds a
reservation: the tokens of its prompt, and those that its answer may or usually does have. So requests that come
together don't all pass because nothing was used yet.

No minute may last longer because the clock of the system was set back, or end early because it was set ahead: in memory
a monotonic clock is used, and in Redis its own. Days and months are those of the system's clock.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from math import ceil
from secrets import token_hex
from typing import Any, NamedTuple

from .. import clock
from .keys import Principal
from .periods import Calendar, Period
from .shared_limits import Leases, SharedPlaces, SharedRequests, SharedTokens, Shares, open_storage, storage_errors

KNOWN = 3600
"""Seconds for which a storage remembers a limiter that renews nothing."""
RENEW = 2.0
"""Seconds between two renewals of the leases. After a Redis restart, counts are low for at most this long."""
MINUTE = 60
RETRY = 5
"""Seconds after which tokens that others reserved may be free again."""
USUAL_ANSWER, LEAST_USUAL = 500, 64
"""Tokens of an answer of a principal about whom nothing is known, and the least that is reserved later."""
WEIGHT = 8
"""Of an answer among the recent ones: each counts 1/8 of the mean."""
MAX_MEANS = 10_000
"""Principals and models whose mean is kept."""
NOBODY_ELSE: Shares = lambda key, since, until: {}  # noqa: E731


class Window(NamedTuple):
    """What is left of a limit, as clients are told: its name in the keys file, and seconds until it is whole again."""

    name: str
    limit: int
    remaining: int
    reset: int
    length: int


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that is used up: its name in the keys file, its amount, and the seconds after which to retry.

    `reserved`: it is not used up, but running requests may need what is left of it.
    """

    name: str
    limit: int
    retry_after: int
    windows: tuple[Window, ...] = ()
    reserved: bool = False


def limited(principal: Principal) -> bool:
    """Whether a principal has any limit."""
    return counted_here(principal) or principal.tokens_limited


def counted_here(principal: Principal) -> bool:
    """Whether it has a limit that is counted by each process for itself, where no storage is shared."""
    return (principal.requests_per_minute, principal.concurrent_requests) != (None, None)


class Limiter:
    """Counts by principal, in memory (`url` None) or at `redis://…`, `rediss://…`, `redis+sentinel://…`."""

    def __init__(
        self,
        shares: Shares = NOBODY_ELSE,
        calendar: Calendar | None = None,
        url: str | None = None,
        deployment: str = "main",
    ) -> None:
        """`shares` is what the ledger knows, `deployment` a part of the names in the storage. Raises LimitsError."""
        self.calendar = calendar or Calendar(UTC)
        self._leases: Leases | None = None
        self._redis: Any = None
        self._prefix = f"ollama_auth:{deployment}:"
        self._means: dict[tuple[str, str], float] = {}
        self._unpublished: set[str] = set()
        """Names of principals whose use Redis was not told of."""
        self.principals: Mapping[str, Principal] = {}
        """Those in force."""
        self._id, self._renewals = token_hex(8), 0
        if url is None:
            self._requests: SharedRequests | LocalRequests = LocalRequests()
            self._places: SharedPlaces | LocalPlaces = LocalPlaces()
            self._tokens: SharedTokens | LocalTokens = LocalTokens(shares)
            return
        storage, self._redis = open_storage(url, deployment)
        self._requests = SharedRequests(storage)
        self._leases = Leases(self._redis)
        self._places = SharedPlaces(self._redis, self._leases, self._prefix)
        self._tokens = SharedTokens(self._redis, self._leases, self._prefix, shares)

    async def enter(self, principal: Principal, request_id: str) -> tuple[Window, ...] | Exceeded:
        """Take what a request needs before its body is here, all of it or nothing. Raises StorageUnavailableError.

        Returns what is left of the limits that have a window, before this request for tokens, and after it for
        requests. A request that was granted must `leave`.
        """
        async with storage_errors():
            windows, _ = await self._token_windows(principal)
            if over := _used_up(windows):
                return over
            limit = principal.concurrent_requests
            if limit is not None and not await self._places.take(principal.name, request_id, limit):
                return Exceeded("concurrent_requests", limit, 1)
            granted: tuple[Window, ...] | Exceeded | None = None
            try:
                granted = await self._take_request(principal, windows)
            finally:  # Also where the storage fails here: a lease is renewed for as long as it is held.
                if not isinstance(granted, tuple) and limit is not None:
                    await self._places.give_back(principal.name, request_id)
            return granted

    async def _take_request(self, principal: Principal, tokens: tuple[Window, ...]) -> tuple[Window, ...] | Exceeded:
        limit = principal.requests_per_minute
        if limit is None:
            return tokens
        taken, remaining, wait = await self._requests.take(principal.name, limit)
        # No longer than the window is long, whatever the clock was set to.
        reset = max(1, min(ceil(wait), MINUTE))
        requests = Window("requests_per_minute", limit, max(0, remaining) if taken else 0, reset, MINUTE)
        windows = (requests, *tokens)
        return windows if taken else Exceeded(requests.name, limit, reset, windows)

    async def _token_windows(
        self, principal: Principal, request_id: str | None = None, tokens: int = 0
    ) -> tuple[tuple[Window, ...], int]:
        """Return (what is left of limits on tokens, the tokens reserved by others), and reserve some for a request."""
        limits = self._token_limits(principal)
        if not limits:
            return (), 0
        periods = [period for _, _, period in limits]
        used, reserved = await self._tokens.look(principal.name, periods, request_id, tokens)
        windows, now = [], clock.wall()
        for (name, limit, period), spent in zip(limits, used, strict=True):
            reset, length = max(1, ceil(period.end - now)), round(period.end - period.start)
            windows.append(Window(name, limit, max(0, limit - spent), reset, length))
        return tuple(windows), reserved

    def _token_limits(self, principal: Principal) -> list[tuple[str, int, Period]]:
        now = clock.wall()
        limits = (
            ("tokens_per_day", principal.tokens_per_day, self.calendar.day(now)),
            ("tokens_per_month", principal.tokens_per_month, self.calendar.month(now)),
        )
        return [(name, limit, period) for name, limit, period in limits if limit is not None]

    async def reserve(self, principal: Principal, request_id: str, tokens: int) -> Exceeded | None:
        """Reserve tokens for a request that was granted. Raises StorageUnavailableError.

        What it needs itself does not keep it out, only what was used, and what requests before it may need.
        """
        async with storage_errors():
            windows, reserved = await self._token_windows(principal, request_id, tokens)
            if over := _used_up(windows):
                return over
            for one in windows:
                if one.remaining <= reserved:
                    return Exceeded(one.name, one.limit, min(RETRY, one.reset), windows, reserved=True)
        return None

    def usual_answer(self, name: str, model: str) -> int:
        """The tokens that answers to a principal have: the recent mean of this model, else of all."""
        mean = self._means.get((name, model)) or self._means.get((name, "")) or USUAL_ANSWER
        return max(LEAST_USUAL, ceil(mean))

    def learn(self, name: str, model: str, tokens: int) -> None:
        """Count a whole answer, whose request named no cap."""
        if len(self._means) >= MAX_MEANS:
            self._means.clear()
        for place in ((name, model), (name, "")):
            mean = self._means.get(place, float(tokens))
            self._means[place] = mean + (tokens - mean) / WEIGHT

    async def leave(self, principal: Principal, request_id: str) -> None:
        """End a request that was granted, once the ledger has it. May raise StorageUnavailableError."""
        async with storage_errors():
            try:
                if principal.concurrent_requests is not None:
                    await self._places.give_back(principal.name, request_id)
            finally:
                if limits := self._token_limits(principal):
                    self._unpublished.add(principal.name)
                    await self._tokens.give_back(principal.name, [period for _, _, period in limits], request_id)
                    self._unpublished.discard(principal.name)

    async def signature_age(self, signature: bytes, window: float) -> float:
        """Return the seconds since a signature was first used at any gateway that shares the storage.

        `window` is how far the time of a valid signature may be from now. By the clock of Redis alone; 0 without one.
        Raises StorageUnavailableError.
        """
        if self._redis is None:
            return 0.0
        good = int(2000 * window) + 1000  # From `window` before the signed time to `window` after it, in ms.
        key = f"{self._prefix}signature:{signature.hex()}"
        async with storage_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, 1, nx=True, px=good)
            pipe.pttl(key)
            return float(good - (await pipe.execute())[1]) / 1000

    async def renew(self) -> None:
        """Renew the leases of running requests, every RENEW seconds. Raises StorageUnavailableError.

        A storage that does not know the last renewal lost its memory, or some of it as one that was started from an
        old file: it is told what all principals used.
        """
        if self._leases is None:
            return
        self._renewals += 1
        async with storage_errors():
            await self._leases.renew()
            known = await self._redis.set(f"{self._prefix}gate:{self._id}", self._renewals, ex=KNOWN, get=True)
        if known != b"%d" % (self._renewals - 1):
            self._unpublished |= {name for name, one in self.principals.items() if one.tokens_limited}
        for name in sorted(self._unpublished):
            if principal := self.principals.get(name):
                periods = [period for _, _, period in self._token_limits(principal)]
                async with storage_errors():
                    await self._tokens.give_back(name, periods)
            self._unpublished.discard(name)

    @property
    def holds_leases(self) -> bool:
        """Whether a request that was granted has something in Redis that is to be renewed."""
        return self._leases is not None and bool(self._leases.held)

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._redis is not None:
            async with storage_errors():
                await self._redis.aclose()


def _used_up(windows: Sequence[Window]) -> Exceeded | None:
    """Of the limits that are used up, the one that is so for longest: a retry before its end would be refused again."""
    found = max((one for one in windows if not one.remaining), key=lambda one: one.reset, default=None)
    return Exceeded(found.name, found.limit, found.reset, tuple(windows)) if found else None


class LocalRequests:
    """The times of the latest requests of each principal, in this process."""

    def __init__(self) -> None:
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    async def take(self, name: str, limit: int) -> tuple[bool, int, float]:
        """Count a request, if there is room for one in this minute.

        Returns (whether there was, how many more there is room for, the seconds until there is room for another).
        """
        times, now = self._times[name], clock.monotonic()
        while times and times[0] <= now - MINUTE:
            times.popleft()
        if taken := len(times) < limit:
            times.append(now)
        return taken, limit - len(times), times[0] + MINUTE - now


class LocalPlaces:
    """Concurrent requests by principal, in this process."""

    def __init__(self) -> None:
        self.held: defaultdict[str, set[str]] = defaultdict(set)

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Take one of `limit` places, if there is one left."""
        if len(self.held[name]) >= limit:
            return False
        self.held[name].add(request_id)
        return True

    async def give_back(self, name: str, request_id: str) -> None:
        """Give a place back; it may have been given back before."""
        self.held[name].discard(request_id)
        if not self.held[name]:
            del self.held[name]


class LocalTokens:
    """The tokens of each principal: what it used, as the ledger knows it, and what requests here have reserved."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self.held: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Reserved tokens by principal and request."""

    async def look(
        self, key: str, periods: Sequence[Period], request_id: str | None = None, tokens: int = 0
    ) -> tuple[list[int], int]:
        """Return (tokens used in each of the periods, tokens reserved by others), and reserve some for a request."""
        reserved = sum(self.held[key].values()) if key in self.held else 0
        if request_id is not None:
            self.held[key][request_id] = tokens
        return [sum(self._shares(key, period.start, period.end).values()) for period in periods], reserved

    async def give_back(self, key: str, periods: Sequence[Period], request_id: str = "") -> None:
        """End the reservation of a request."""
        self.held[key].pop(request_id, None)
        if not self.held[key]:
            del self.held[key]
