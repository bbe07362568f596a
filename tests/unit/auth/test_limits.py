"""What a principal takes is given back, also where the storage fails half-way."""

import asyncio
import time
from dataclasses import replace

import pytest

from ollama_auth import clock
from ollama_auth.auth import limits
from ollama_auth.auth.keys import Principal
from ollama_auth.auth.limits import Exceeded, Granted, Limiter, StorageUnavailableError

ONE = Principal("one", concurrent_requests=1)


async def test_a_place_is_given_back() -> None:
    limiter = Limiter()
    assert await limiter.enter(ONE, "a") == Granted()
    assert isinstance(await limiter.enter(ONE, "b"), Exceeded)
    await limiter.leave(ONE, "a")
    assert await limiter.enter(ONE, "b") == Granted()


@pytest.mark.parametrize("how", ["raises", "is silent"])
async def test_a_storage_that_fails_between_two_limits(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The place among the concurrent ones was taken already: nobody would ever give it back, and it is renewed."""
    limiter, both = Limiter(), replace(ONE, requests_per_minute=9)

    async def fail(*_: object) -> bool:
        if how == "is silent":
            await asyncio.Event().wait()
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(limits, "STORAGE_TIMEOUT", 0.01)
        patch.setattr(limiter._requests, "hit", fail)
        with pytest.raises(StorageUnavailableError):
            await limiter.enter(both, "a")
    assert isinstance(await limiter.enter(both, "b"), Granted)


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
async def test_the_clock_of_the_system_is_set(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Nobody is locked out for longer than a window, and nobody gets more in one."""
    limiter = Limiter()
    both = Principal("one", requests_per_minute=2, tokens_per_day=10)
    real = time.time
    assert await limiter.enter(both, "a") == Granted((2, 1, 60))
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert isinstance(await limiter.enter(both, "b"), Granted)
    over = await limiter.enter(both, "c")
    assert isinstance(over, Exceeded)
    assert 55 < over.retry_after <= 60
    monkeypatch.setattr(clock, "offset", 61.0)
    assert isinstance(await limiter.enter(both, "d"), Granted)
    await limiter.spend(both, 10)
    over = await limiter.enter(both, "e")
    assert isinstance(over, Exceeded)
    assert (over.name, over.retry_after > 86_000) == ("tokens_per_day", True)
    monkeypatch.setattr(clock, "offset", 61.0 + 86_401)
    assert isinstance(await limiter.enter(both, "f"), Granted)


async def test_windows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute moves on with the time, and a day begins with its first token; a limit may be changed meanwhile."""
    limiter = Limiter()
    three, two = (Principal("one", requests_per_minute=limit) for limit in (3, 2))
    for offset in (0.0, 20.0, 40.0):
        monkeypatch.setattr(clock, "offset", offset)
        assert isinstance(await limiter.enter(three, "a"), Granted)
    assert await limiter.enter(three, "a") == Exceeded("requests_per_minute", 3, 20)
    monkeypatch.setattr(clock, "offset", 60.5)
    assert isinstance(await limiter.enter(two, "a"), Exceeded)
    assert await limiter.enter(three, "a") == Granted((3, 0, 20))
    many = Principal("many", tokens_per_day=100)
    await limiter.spend(many, 60)
    assert await limiter.enter(many, "a") == Granted()
    await limiter.spend(many, 60)
    assert isinstance(await limiter.enter(many, "a"), Exceeded)
    assert isinstance(await limiter.enter(replace(many, tokens_per_day=99), "a"), Exceeded)
