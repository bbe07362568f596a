"""How much a principal may do: requests a minute, concurrent requests, tokens a day.

Counted by the `limits` library, in memory or in a Redis that several gates share. Only principals with a limit come
here, so that a gate without limits needs neither.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from .keys import Principal

AWAY = 1.0
"""Seconds a shared storage has to answer, before it counts as away."""
LEASE = 30.0
"""Seconds after which a concurrent request of a gate that died no longer counts."""
RENEW = 2.0
"""Seconds after which a gate says that its requests still run: so long a Redis that lost its memory counts too few."""
HOW_TO_INSTALL = "pip install 'limits[redis]>=5.8'"


class LimitsError(ValueError):
    """Limits that can't be counted here: one line with the remedy."""


class StorageUnavailableError(Exception):
    """The shared storage does not answer."""


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that is used up: which (as the keys file names it), how much it is, and in how many seconds to retry."""

    name: str
    limit: int
    retry_after: int


@dataclass(frozen=True, slots=True)
class Granted:
    """What is left of the requests of this minute: (limit, remaining, seconds until one more). None: not limited."""

    requests: tuple[int, int, int] | None = None


def limited(principal: Principal) -> bool:
    """A principal who may do only so much."""
    limits = (principal.requests_per_minute, principal.concurrent_requests, principal.tokens_per_day)
    return limits != (None, None, None)


class Limiter:
    """Counts what principals do, in memory (`url` None) or at `redis://…`, `rediss://…`, `redis+sentinel://…`."""

    def __init__(self, url: str | None = None) -> None:
        """Raises LimitsError where the library is missing or the URL is none."""
        try:
            from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
            from limits.errors import ConfigurationError
            from limits.storage import storage_from_string
        except ImportError as missing:
            raise LimitsError(f"limits need the library that counts them: {HOW_TO_INSTALL}") from missing
        options: dict[str, Any] = (
            {"socket_timeout": AWAY, "socket_connect_timeout": AWAY, "implementation": "redispy"} if url else {}
        )
        try:
            storage: Any = storage_from_string(f"async+{url or 'memory://'}", **options)
            self._redis = storage.bridge.get_connection() if url else None
        except (ConfigurationError, ValueError, AssertionError, AttributeError) as fault:
            raise LimitsError(
                f"ollama_limits_storage: not the URL of a storage, or its client is missing: {HOW_TO_INSTALL}"
            ) from fault
        self._storage = storage
        self._requests = MovingWindowRateLimiter(self._storage)
        self._tokens = FixedWindowRateLimiter(self._storage)
        self._leases: Leases = SharedLeases(self._redis) if url else Leases()

    async def enter(self, principal: Principal, request_id: str) -> Granted | Exceeded:
        """Take what a request needs, all of it or nothing. Raises StorageUnavailableError.

        A request that was let in must `leave`.
        """
        async with _answering():
            if principal.tokens_per_day is not None:
                spent, item = await self._spent(principal, principal.tokens_per_day)
                if spent >= principal.tokens_per_day:
                    reset = (await self._tokens.get_window_stats(item, principal.name)).reset_time
                    return Exceeded("tokens_per_day", principal.tokens_per_day, _seconds_until(reset))
            limit = principal.concurrent_requests
            if limit is not None and not await self._leases.take(principal.name, request_id, limit):
                return Exceeded("concurrent_requests", limit, 1)
            granted: Granted | Exceeded | None = None
            try:
                granted = await self._take_request(principal)
            finally:  # Also where the storage fails here: a lease that is held is renewed for ever.
                if not isinstance(granted, Granted):
                    await self._leases.give_back(principal.name, request_id)
            return granted

    async def _take_request(self, principal: Principal) -> Granted | Exceeded:
        from limits import RateLimitItemPerMinute

        limit = principal.requests_per_minute
        if limit is None:
            return Granted()
        item = RateLimitItemPerMinute(limit)
        taken = await self._requests.hit(item, principal.name)
        stats = await self._requests.get_window_stats(item, principal.name)
        if not taken:
            return Exceeded("requests_per_minute", limit, _seconds_until(stats.reset_time))
        return Granted((limit, max(0, stats.remaining), _seconds_until(stats.reset_time)))

    async def _spent(self, principal: Principal, limit: int) -> tuple[int, Any]:
        from limits import RateLimitItemPerDay

        item = RateLimitItemPerDay(limit)
        return await self._storage.get(item.key_for(principal.name)), item

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Count tokens that were used; more than were left is counted too. Raises StorageUnavailableError."""
        if principal.tokens_per_day is not None and tokens > 0:
            from limits import RateLimitItemPerDay

            async with _answering():
                await self._tokens.hit(RateLimitItemPerDay(principal.tokens_per_day), principal.name, cost=tokens)

    async def leave(self, principal: Principal, request_id: str) -> None:
        """A request that was let in has ended. Raises StorageUnavailableError; the lease then ends by itself."""
        if principal.concurrent_requests is not None:
            async with _answering():
                await self._leases.give_back(principal.name, request_id)

    async def age(self, signature: bytes, window: float) -> float:
        """Seconds since that signature, good within `window` of its time, was first used at a gate that shares them.

        Raises StorageUnavailableError. By the clock of Redis alone.
        """
        if self._redis is None:
            return 0.0
        good = int(2000 * window) + 1000  # From so long before its time to so long after, in ms.
        key = f"ollama_auth:signature:{signature.hex()}"
        async with _answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, 1, nx=True, px=good)
            pipe.pttl(key)
            return float(good - (await pipe.execute())[1]) / 1000

    async def renew(self) -> None:
        """Say that the requests at work still are, every RENEW seconds. Raises StorageUnavailableError."""
        async with _answering():
            await self._leases.renew()


class Leases:
    """Requests at work, by principal, in this process."""

    def __init__(self) -> None:
        self._held: defaultdict[str, set[str]] = defaultdict(set)

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Take one of `limit`, if there is one left."""
        if len(self._held[name]) >= limit:
            return False
        self._held[name].add(request_id)
        return True

    async def give_back(self, name: str, request_id: str) -> None:
        """Give it back; twice is no harm."""
        self._held[name].discard(request_id)
        if not self._held[name]:
            del self._held[name]

    async def renew(self) -> None:
        """Say that those at work still are."""


class SharedLeases(Leases):
    """The same in Redis: a sorted set a principal, of request ids by when their lease ends."""

    def __init__(self, redis: Any) -> None:
        super().__init__()
        self._redis = redis

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Enter first and count then: of two at once for the last place none may get it, but never both."""
        now = time.time()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(self._key(name), "-inf", now)
            pipe.zadd(self._key(name), {request_id: now + LEASE})
            pipe.zcard(self._key(name))
            pipe.expire(self._key(name), int(LEASE * 2))
            count = (await pipe.execute())[2]
        if count > limit:
            await self._redis.zrem(self._key(name), request_id)
            return False
        self._held[name].add(request_id)
        return True

    async def give_back(self, name: str, request_id: str) -> None:
        await super().give_back(name, request_id)
        await self._redis.zrem(self._key(name), request_id)

    async def renew(self) -> None:
        renewed = {name: set(held) for name, held in self._held.items()}
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, held in renewed.items():
                pipe.zadd(self._key(name), dict.fromkeys(held, time.time() + LEASE))
                pipe.expire(self._key(name), int(LEASE * 2))
            await pipe.execute()
            # What ended meanwhile may have been given back before it was renewed.
            for name, held in renewed.items():
                if ended := held - self._held.get(name, set()):
                    pipe.zrem(self._key(name), *ended)
            await pipe.execute()

    @staticmethod
    def _key(name: str) -> str:
        return f"ollama_auth:concurrent:{name}"


@contextlib.asynccontextmanager
async def _answering() -> Any:
    """Whatever a storage raises, and its silence, is StorageUnavailableError."""
    try:
        async with asyncio.timeout(AWAY * 2):
            yield
    except Exception as fault:
        raise StorageUnavailableError(type(fault).__name__) from fault


def _seconds_until(moment: float) -> int:
    return max(1, int(moment - time.time() + 0.999))
