"""Limits that several gates count together, in Redis: leases and reservations, tokens that were used, signatures.

All names begin with `ollama_auth:` and the name of the deployment. All times are those of Redis, so that the clocks of
the gates do not matter. What a key used is published by each gate from its ledger, and only ever increases; so a Redis
that lost its memory has it again once each gate has asked it something.
"""

import asyncio
import contextlib
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import OllamaAuthError
from .periods import Period

STORAGE_TIMEOUT = 1.0
"""Seconds a shared storage has to answer, before it counts as unavailable."""
LEASE = 30.0
"""Seconds after which what a gate that died held no longer counts."""
CLOCK_CHECK = 10.0
"""Seconds after which the clock of Redis is asked for again."""
KEPT_AFTER = 86_400
"""Seconds that the tokens of a period are kept after its end."""
HOW_TO_INSTALL = "pip install 'limits[redis]>=5.8'"
SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster")

type Shares = Callable[[str, float, float], Mapping[int, int]]
"""Returns the tokens that a key used in [since, until), by the process that counted them: what the ledger knows."""


class LimitsError(OllamaAuthError, ValueError):
    """Limits that can't be counted here: one line with the remedy, without the URL, which may hold a password."""


class StorageUnavailableError(OllamaAuthError):
    """The shared storage does not answer, or can't be written."""


@contextlib.asynccontextmanager
async def storage_errors() -> Any:
    """Raise StorageUnavailableError for all that a storage raises, and for its silence."""
    try:
        async with asyncio.timeout(STORAGE_TIMEOUT * 2):
            yield
    except Exception as fault:
        raise StorageUnavailableError(type(fault).__name__) from fault


# -- Opening -----------------------------------------------------------------------------------------------------------

_TEMPORARY = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "OOM", "LOADING", "BUSY")
"""Errors of a Redis that may work later: its disk or memory is full, it is a replica until a failover, it starts."""


def open_storage(url: str, deployment: str) -> tuple[Any, Any]:
    """Return (the storage of the `limits` library, its client). Raises LimitsError for a URL that is not valid."""
    storage = _storage(f"async+{url}", deployment, implementation="redispy")
    return storage, storage.bridge.get_connection()


def check_storage(url: str, deployment: str) -> str | None:
    """Ask a storage for all that will be asked of it; return why it does not answer now, or None. Blocks.

    Raises LimitsError where it can never work: with another password, other rights or another kind of server.
    """
    try:
        with contextlib.closing(_storage(url, deployment).get_connection()) as redis:
            _try_commands(redis, f"ollama_auth:{deployment}:")
    except LimitsError:
        raise
    except Exception as error:
        if why := _never(error):
            raise LimitsError(f"ollama_limits_storage: {why}") from error
        return type(error).__name__
    return None


def _storage(url: str, deployment: str, **more: str) -> Any:
    try:
        from limits.errors import ConfigurationError
        from limits.storage import storage_from_string
        from redis.exceptions import RedisClusterException
    except ImportError as missing:
        raise LimitsError(f"ollama_limits_storage needs a library: {HOW_TO_INSTALL}") from missing
    _check_url(url.removeprefix("async+"))
    timeouts = {"socket_timeout": STORAGE_TIMEOUT, "socket_connect_timeout": STORAGE_TIMEOUT}
    try:
        return storage_from_string(url, **more, **timeouts, key_prefix=f"ollama_auth:{deployment}")
    except RedisClusterException:
        raise  # Asked at once by the client that does not wait.
    except (ConfigurationError, ValueError, AssertionError, AttributeError, TypeError) as fault:
        raise LimitsError(
            "ollama_limits_storage: not the URL of a Redis, or its client is missing: write redis://HOST:6379/0, or "
            f"redis+sentinel://HOST:26379/NAME; {HOW_TO_INSTALL}"
        ) from fault


def _check_url(url: str) -> None:
    """Refuse what would be read as something else. Raises LimitsError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise LimitsError(f"ollama_limits_storage: not the URL of a Redis: it begins with {', '.join(SCHEMES)}")
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and not (database == "" or (database.isascii() and database.isdigit())):
        raise LimitsError("ollama_limits_storage: the database in the URL is not a number: write redis://HOST:6379/0")


def _try_commands(redis: Any, prefix: str) -> None:
    """Use each command once that the gate uses. Raises what the client raises."""
    name = f"{prefix}{{start}}:probe"
    redis.ping()
    redis.time()
    with redis.pipeline(transaction=True) as pipe:
        pipe.zremrangebyscore(name, "-inf", 0)
        pipe.zadd(name, {"probe": 1}, gt=True)
        pipe.zrange(name, 0, -1, withscores=True)
        pipe.zcard(name)
        pipe.expire(name, 1)
        pipe.zrem(name, "probe")
        pipe.execute()
    redis.eval("return redis.call('llen', KEYS[1])", 1, f"{prefix}{{start}}:list")
    redis.set(f"{prefix}{{start}}:text", 1, nx=True, px=1)
    redis.pttl(f"{prefix}{{start}}:text")


def _never(error: BaseException) -> str | None:
    """Why a storage that raised this can never work; None: it may, later."""
    from redis import exceptions

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and len(causes) < 10:
        causes.append(cause)
    text = str(error).upper()
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "TLS with it fails: check its certificate and ssl_ca_certs in the URL, and that it speaks TLS at all"
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in text:
        return "the user in the URL lacks rights: scripts/docs/replicas.md has what its ACL needs"
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthenticationWrongNumberOfArgsError):
        return "the user name or password in the URL is wrong, or missing"
    if isinstance(error, exceptions.RedisClusterException) or text.startswith(("MOVED", "ASK")):
        return "redis+cluster:// is for a cluster alone, and a cluster needs it"
    if isinstance(error, exceptions.InvalidResponse):
        return "what listens there is not a Redis"
    wrong = isinstance(error, exceptions.ResponseError | exceptions.DataError | TypeError | ValueError | AttributeError)
    if wrong and not any(word in text for word in _TEMPORARY):
        return f"it does not work with this URL ({type(error).__name__}): check its database and its parameters"
    return None


# -- Counting ----------------------------------------------------------------------------------------------------------


class Leases:
    """Sorted sets in Redis, of what requests hold until the end of their lease; those of this process are renewed."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._ahead, self._asked = 0.0, float("-inf")
        """Seconds that its clock is ahead of our monotonic one, and when that was asked for."""
        self.held: defaultdict[str, set[str]] = defaultdict(set)
        """Members by the name of their set."""

    async def now(self) -> float:
        """The time of Redis."""
        asked = time.monotonic()
        if asked - self._asked > CLOCK_CHECK:
            seconds, microseconds = await self._redis.time()
            self._ahead, self._asked = seconds + microseconds / 1e6 - asked, asked
        return asked + self._ahead

    @staticmethod
    def add(pipe: Any, name: str, members: Sequence[str], now: float) -> None:
        """Add to a pipeline that these are held from now on."""
        pipe.zadd(name, dict.fromkeys(members, now + LEASE))
        pipe.expire(name, int(LEASE * 2))

    def holds(self, name: str, member: str) -> None:
        """Renew it from now on."""
        self.held[name].add(member)

    def forget(self, name: str, member: str) -> None:
        """Renew it no longer."""
        self.held[name].discard(member)
        if not self.held[name]:
            del self.held[name]

    async def renew(self) -> None:
        if not self.held:
            return
        now = await self.now()
        renewed = {name: set(members) for name, members in self.held.items()}
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, members in renewed.items():
                self.add(pipe, name, sorted(members), now)
            await pipe.execute()
            # What was given back meanwhile may have been removed before it was renewed.
            for name, members in renewed.items():
                if gone := members - self.held.get(name, set()):
                    pipe.zrem(name, *gone)
            await pipe.execute()


class SharedRequests:
    """The requests of each principal in the last minute."""

    def __init__(self, storage: Any) -> None:
        from limits import RateLimitItemPerMinute
        from limits.aio.strategies import MovingWindowRateLimiter

        class Named(RateLimitItemPerMinute):
            """Counted under the name of the principal alone: an edit of the limit forgets nothing."""

            def key_for(self, *identifiers: bytes | str | float) -> str:
                return "/".join(("requests", *map(str, identifiers)))

        self._windows, self._limit = MovingWindowRateLimiter(storage), Named

    async def take(self, name: str, limit: int) -> tuple[bool, int, float]:
        """Count a request, as LocalRequests does."""
        item = self._limit(limit)
        taken = await self._windows.hit(item, name)
        stats = await self._windows.get_window_stats(item, name)
        return taken, stats.remaining, stats.reset_time - time.time()


class SharedPlaces:
    """The concurrent requests of each principal."""

    def __init__(self, redis: Any, leases: Leases, prefix: str) -> None:
        self._redis, self._leases, self._prefix = redis, leases, f"{prefix}concurrent:"

    async def take(self, name: str, request_id: str, limit: int) -> bool:
        """Take one of `limit` places: enter first and count then, so that two at once never both get the last one."""
        place, now = self._prefix + name, await self._leases.now()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(place, "-inf", now)
            self._leases.add(pipe, place, [request_id], now)
            pipe.zcard(place)
            count = (await pipe.execute())[-1]
        if count > limit:
            await self._redis.zrem(place, request_id)
            return False
        self._leases.holds(place, request_id)
        return True

    async def give_back(self, name: str, request_id: str) -> None:
        self._leases.forget(self._prefix + name, request_id)
        await self._redis.zrem(self._prefix + name, request_id)


class SharedTokens:
    """The tokens of each principal: what it used in a period, by process, and what running requests have reserved."""

    def __init__(self, redis: Any, leases: Leases, prefix: str, shares: Shares) -> None:
        self._redis, self._leases, self._shares = redis, leases, shares
        self._prefix: Final = f"{prefix}tokens:"
        self._members: dict[str, str] = {}
        """What a request holds, by its id."""

    def _name(self, key: str, of: str) -> str:
        return f"{self._prefix}{{{key}}}:{of}"  # In a cluster all names of a key are on one node.

    async def look(
        self, key: str, periods: Sequence[Period], request_id: str | None = None, tokens: int = 0
    ) -> tuple[list[int], int]:
        """Return (tokens used in each of the periods, tokens reserved by others), and reserve some for a request.

        This writes even if it reserves nothing: a storage that can't be written must not let requests pass.
        """
        reserved, now = self._name(key, "reserved"), await self._leases.now()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zremrangebyscore(reserved, "-inf", now)
            pipe.zrange(reserved, 0, -1)
            for period in periods:
                self._publish(pipe, key, period, now)
                pipe.zrange(self._name(key, period.name), 0, -1, withscores=True)
            if request_id is not None:
                self._members[request_id] = f"{request_id}:{tokens}"
                self._leases.add(pipe, reserved, [self._members[request_id]], now)
            _, members, *rest = await pipe.execute()
        if request_id is not None:
            self._leases.holds(reserved, self._members[request_id])
        used = [int(sum(score for _, score in scores)) for scores in rest[2 : 3 * len(periods) : 3]]
        return used, sum(int(member.rpartition(b":")[2]) for member in members)

    def _publish(self, pipe: Any, key: str, period: Period, now: float) -> None:
        name = self._name(key, period.name)
        shares = {str(process): tokens for process, tokens in self._shares(key, period.start, period.end).items()}
        pipe.zadd(name, shares or {"0": 0}, gt=True)
        pipe.expire(name, max(1, int(period.end - now)) + KEPT_AFTER)

    async def give_back(self, key: str, periods: Sequence[Period], request_id: str = "") -> None:
        """Publish what was used, and end the reservation of a request."""
        reserved, member = self._name(key, "reserved"), self._members.pop(request_id, None)
        if member is not None:
            self._leases.forget(reserved, member)
        now = await self._leases.now()
        async with self._redis.pipeline(transaction=True) as pipe:
            for period in periods:
                self._publish(pipe, key, period, now)
            if member is not None:
                pipe.zrem(reserved, member)
            await pipe.execute()
