"""The limits of principals: requests a minute, concurrent requests, tokens a day.

The `limits` library counts in a Redis that several gateways share; without one, this module does. Only principals with
a limit are counted.

No window may last longer because the clock of the system was set back, or end early because it was set ahead. In memory
a monotonic clock is used. In Redis windows and leases expire by its own clock; what the `limits` library compares with
the clock of this machine is forgotten after a minute without a granted request, at the latest.
"""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from .. import clock
from ..errors import OllamaAuthError
from .keys import Principal

STORAGE_TIMEOUT = 1.0
"""Seconds a shared storage has to answer, before it counts as unavailable."""
LEASE = 30.0
"""Seconds after which a concurrent request of a gateway that died no longer counts."""
RENEW = 2.0
"""Seconds between two renewals of the leases. After a Redis restart, counts are low for at most this long."""
CLOCK_CHECK = 10.0
"""Seconds after which the clock of Redis is asked for again."""
_LEASES = "ollama_auth:concurrent:"
HOW_TO_INSTALL = "pip install 'limits[redis]>=5.8'"


class LimitsError(OllamaAuthError, ValueError):
    """Limits that can't be counted here: one line with the remedy."""


class StorageUnavailableError(OllamaAuthError):
    """The shared storage does not answer."""


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that is used up: its name in the keys file, its amount, and the seconds after which to retry."""

    name: str
    limit: int
    retry_after: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The requests left in this minute: (limit, remaining, seconds until one more). None: not limited."""

    requests: tuple[int, int, int] | None = None


def limited(principal: Principal) -> bool:
    """Whether a principal has any limit."""
    limits = (principal.requests_per_minute, principal.concurrent_requests, principal.tokens_per_day)
    return limits != (None, None, None)


class Limit(Protocol):
    """The part of the library's RateLimitItem that is used here."""

    amount: int

    def get_expiry(self) -> int: ...


class Limiter:
    """Counts by principal, in memory (`url` None) or at `redis://…`, `rediss://…`, `redis+sentinel://…`."""

    def __init__(self, url: str | None = None) -> None:
        """Open the storage. Raises LimitsError where the library is missing or the URL is not valid."""
        try:
            from limits import RateLimitItemPerDay, RateLimitItemPerMinute
            from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
            from limits.errors import ConfigurationError
            from limits.storage import storage_from_string
        except ImportError as missing:
            raise LimitsError(f"limits need the library `limits`: {HOW_TO_INSTALL}") from missing
        timeouts = {"socket_timeout": STORAGE_TIMEOUT, "socket_connect_timeout": STORAGE_TIMEOUT}
        options: dict[str, Any] = {"implementation": "redispy", **timeouts}
        try:
            storage: Any = storage_from_string(f"async+{url}", **options) if url else None
            self._redis = storage.bridge.get_connection() if url else None
        except (ConfigurationError, ValueError, AssertionError, AttributeError) as fault:
            raise LimitsError(
                f"ollama_limits_storage: not the URL of a storage, or its client is missing: {HOW_TO_INSTALL}"
            ) from fault
        self._per_day, self._per_minute = RateLimitItemPerDay, RateLimitItemPerMinute
        self._requests: Any = MovingWindowRateLimiter(storage) if url else LocalMovingWindow()
        self._tokens: Any = FixedWindowRateLimiter(storage) if url else LocalFixedWindow()
        self._leases = RedisLeases(self._redis) if url else LocalLeases()
        self._now = time.time if url else clock.monotonic

    async def enter(self, principal: Principal, request_id: str) -> Granted | Exceeded:
        """Take what a request needs, all of it or nothing. Raises StorageUnavailableError.

        A request that was granted must `leave`.
        """
        async with _storage_errors():
            if (tokens := principal.tokens_per_day) is not None:
                item = self._per_day(tokens)
                if not await self._tokens.test(item, principal.name):
                    stats = await self._tokens.get_window_stats(item, principal.name)
                    return Exceeded("tokens_per_day", tokens, self._seconds_left(item, stats))
            limit = principal.concurrent_requests
            if limit is not None and not await self._leases.take(principal.name, request_id, limit):
                return Exceeded("concurrent_requests", limit, 1)
            granted: Granted | Exceeded | None = None
            try:
                granted = await self._take_request(principal)
            finally:  # Also where the storage fails here: a lease is renewed for as long as it is held.
                if not isinstance(granted, Granted):
                    await self._leases.give_back(principal.name, request_id)
            return granted

    async def _take_request(self, principal: Principal) -> Granted | Exceeded:
        limit = principal.requests_per_minute
        if limit is None:
            return Granted()
        item = self._per_minute(limit)
        taken = await self._requests.hit(item, principal.name)
        stats = await self._requests.get_window_stats(item, principal.name)
        reset = self._seconds_left(item, stats)
        if not taken:
            return Exceeded("requests_per_minute", limit, reset)
        return Granted((limit, max(0, stats.remaining), reset))

    def _seconds_left(self, item: Limit, stats: Any) -> int:
        """The whole seconds until a window has room; no more than it is long, whatever the clock was set to."""
        return max(1, min(int(stats.reset_time - self._now() + 0.999), item.get_expiry()))

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens that were used, also those beyond the limit. Raises StorageUnavailableError."""
        if principal.tokens_per_day is not None and tokens > 0:
            async with _storage_errors():
                await self._tokens.hit(self._per_day(principal.tokens_per_day), principal.name, cost=tokens)

    async def leave(self, principal: Principal, request_id: str) -> None:
        """End a request that was granted. Raises StorageUnavailableError; the lease then expires."""
        if principal.concurrent_requests is not None:
            async with _storage_errors():
                await self._leases.give_back(principal.name, request_id)

    async def signature_age(self, signature: bytes, window: float) -> float:
        """Return the seconds since a signature was first used at any gateway that shares the storage.

        `window` is how far the time of a valid signature may be from now. By the clock of Redis alone; 0 without one.
        Raises StorageUnavailableError.
        """
        if self._redis is None:
            return 0.0
        good = int(2000 * window) + 1000  # From `window` before the signed time to `window` after it, in ms.
        key = f"ollama_auth:signature:{signature.hex()}"
        async with _storage_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, 1, nx=True, px=good)
            pipe.pttl(key)
            return float(good - (await pipe.execute())[1]) / 1000

    async def renew(self) -> None:
        """Renew the leases of running requests, every RENEW seconds. Raises StorageUnavailableError."""
        if isinstance(self._leases, RedisLeases):
            async with _storage_errors():
                await self._leases.renew()

    @property
    def holds_leases(self) -> bool:
        """Whether a request that was granted has not left yet."""
        return bool(self._leases.held)

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._redis is not None:
            async with _storage_errors():
                await self._redis.aclose()


@dataclass(frozen=True, slots=True)
class WindowStats:
    """What is left of a limit, and when there is more, by the monotonic clock: as the `limits` library has it."""

    reset_time: float
    remaining: int


class LocalMovingWindow:
    """The times of the latest requests of each principal. Its methods are those of the `limits` library."""

    def __init__(self) -> None:
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    async def hit(self, item: Limit, name: str) -> bool:
        """Count a request, if there is room for one."""
        times = self._current(item, name)
        if len(times) >= item.amount:
            return False
        times.append(clock.monotonic())
        return True

    async def get_window_stats(self, item: Limit, name: str) -> WindowStats:
        times = self._current(item, name)
        reset = times[0] + item.get_expiry() if times else clock.monotonic()
        return WindowStats(reset, item.amount - len(times))

    def _current(self, item: Limit, name: str) -> deque[float]:
        times, start = self._times[name], clock.monotonic() - item.get_expiry()
        while times and times[0] <= start:
            times.popleft()
        return times


class LocalFixedWindow:
    """What each principal has used in a window that began with its first use. The methods are those of the library."""

    def __init__(self) -> None:
        self._used: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        """The end of the window, and what was used in it."""

    async def test(self, item: Limit, name: str) -> bool:
        """Whether anything is left."""
        return self._current(item, name)[1] < item.amount

    async def hit(self, item: Limit, name: str, cost: int) -> bool:
        """Count a use, also beyond the limit."""
        end, used = self._current(item, name)
        self._used[name] = end, used + cost
        return used + cost <= item.amount

    async def get_window_stats(self, item: Limit, name: str) -> WindowStats:
        end, used = self._current(item, name)
        return WindowStats(end, max(0, item.amount - used))

    def _current(self, item: Limit, name: str) -> tuple[float, int]:
        end, used = self._used[name]
        now = clock.monotonic()
        return (end, used) if now < end else (now + item.get_expiry(), 0)


class LocalLeases:
    """Concurrent requests by principal, in this process."""

    def __init__(self) -> None:
        self.held: defaultdict[str, set[str]] = defaultdict(set)

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Take one of `limit` leases, if there is one left."""
        if len(self.held[name]) >= limit:
            return False
        self.held[name].add(request_id)
        return True

    async def give_back(self, name: str, request_id: str) -> None:
        """Give a lease back; it may have been given back before."""
        self.held[name].discard(request_id)
        if not self.held[name]:
            del self.held[name]


class RedisLeases:
    """Concurrent requests in Redis: for each principal a sorted set of request ids by the end of their lease.

    All times are those of Redis, so that the clocks of the gateways that share it do not matter.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._ahead, self._asked = 0.0, float("-inf")
        """Seconds that its clock is ahead of our monotonic one, and when that was asked for."""
        self.held: set[tuple[str, str]] = set()  # (principal, request id) of this process, to be renewed

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Take one of `limit` leases: enter first and count then, so that two at once never both get the last one."""
        now = await self._now()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(_LEASES + name, "-inf", now)
            pipe.zadd(_LEASES + name, {request_id: now + LEASE})
            pipe.zcard(_LEASES + name)
            pipe.expire(_LEASES + name, int(LEASE * 2))
            count = (await pipe.execute())[2]
        if count > limit:
            await self._redis.zrem(_LEASES + name, request_id)
            return False
        self.held.add((name, request_id))
        return True

    async def _now(self) -> float:
        asked = time.monotonic()
        if asked - self._asked > CLOCK_CHECK:
            seconds, microseconds = await self._redis.time()
            self._ahead, self._asked = seconds + microseconds / 1e6 - asked, asked
        return asked + self._ahead

    async def give_back(self, name: str, request_id: str) -> None:
        self.held.discard((name, request_id))
        await self._redis.zrem(_LEASES + name, request_id)

    async def renew(self) -> None:
        if not self.held:
            return
        end = await self._now() + LEASE
        renewed = set(self.held)
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, leases in groupby(sorted(renewed), key=itemgetter(0)):
                pipe.zadd(_LEASES + name, dict.fromkeys(map(itemgetter(1), leases), end))
                pipe.expire(_LEASES + name, int(LEASE * 2))
            await pipe.execute()
            # A lease that was given back meanwhile may have been removed before it was renewed.
            for name, request_id in renewed - self.held:
                pipe.zrem(_LEASES + name, request_id)
            await pipe.execute()


@contextlib.asynccontextmanager
async def _storage_errors() -> Any:
    """Raise StorageUnavailableError for all that a storage raises, and for its silence."""
    try:
        async with asyncio.timeout(STORAGE_TIMEOUT * 2):
            yield
    except Exception as fault:
        raise StorageUnavailableError(type(fault).__name__) from fault
