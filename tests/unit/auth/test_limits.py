"""What a principal takes is given back, also where the storage fails half-way."""

import asyncio
import time
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from ollama_auth import clock
from ollama_auth.auth import shared_limits
from ollama_auth.auth.keys import Principal
from ollama_auth.auth.limits import LEAST_USUAL, USUAL_ANSWER, Exceeded, Limiter, Window
from ollama_auth.auth.periods import Calendar
from ollama_auth.auth.shared_limits import StorageUnavailableError

BERLIN = ZoneInfo("Europe/Berlin")
ONE = Principal("one", concurrent_requests=1)


async def test_a_place_is_given_back() -> None:
    limiter = Limiter()
    assert await limiter.enter(ONE, "a") == ()
    assert isinstance(await limiter.enter(ONE, "b"), Exceeded)
    await limiter.leave(ONE, "a")
    assert await limiter.enter(ONE, "b") == ()


@pytest.mark.parametrize("how", ["raises", "is silent"])
async def test_a_storage_that_fails_between_two_limits(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The place among the concurrent ones was taken already: nobody would ever give it back, and it is renewed."""
    limiter, both = Limiter(), replace(ONE, requests_per_minute=9)

    async def fail(*_: object) -> bool:
        if how == "is silent":
            await asyncio.Event().wait()
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(shared_limits, "STORAGE_TIMEOUT", 0.01)
        patch.setattr(limiter._requests, "take", fail)
        with pytest.raises(StorageUnavailableError):
            await limiter.enter(both, "a")
    assert isinstance(await limiter.enter(both, "b"), tuple)


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
async def test_the_clock_of_the_system_is_set(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Nobody is locked out for longer than a window, and nobody gets more in one."""
    limiter = Limiter()
    both = Principal("one", requests_per_minute=2)
    real = time.time
    assert await limiter.enter(both, "a") == minute(2, 1, 60)
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert isinstance(await limiter.enter(both, "b"), tuple)
    over = await limiter.enter(both, "c")
    assert isinstance(over, Exceeded)
    assert 55 < over.retry_after <= 60
    monkeypatch.setattr(clock, "offset", 61.0)
    assert isinstance(await limiter.enter(both, "d"), tuple)


def minute(limit: int, remaining: int, reset: int) -> tuple[Window, ...]:
    return (Window("requests_per_minute", limit, remaining, reset, 60),)


async def test_windows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute moves on with the time; a limit may be changed meanwhile."""
    limiter = Limiter()
    three, two = (Principal("one", requests_per_minute=limit) for limit in (3, 2))
    for offset in (0.0, 20.0, 40.0):
        monkeypatch.setattr(clock, "offset", offset)
        assert isinstance(await limiter.enter(three, "a"), tuple)
    over = await limiter.enter(three, "a")
    assert isinstance(over, Exceeded)
    assert (over.name, over.limit, over.retry_after) == ("requests_per_minute", 3, 20)
    monkeypatch.setattr(clock, "offset", 60.5)
    assert isinstance(await limiter.enter(two, "a"), Exceeded)
    assert await limiter.enter(three, "a") == minute(3, 0, 20)


MANY = Principal("many", tokens_per_day=100, tokens_per_month=1000)


async def test_tokens_are_those_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the principal alone, in a calendar day and month; a limit may be changed meanwhile."""
    noon = datetime(2026, 3, 29, 12, tzinfo=BERLIN).timestamp()  # The day has 23 hours, the month an hour less.
    now = noon
    monkeypatch.setattr(clock, "wall", lambda: now)
    used: list[tuple[float, int]] = [(noon - 86_400, 700)]
    limiter = Limiter(lambda key, *ends: {1: sum(n for at, n in used if ends[0] <= at < ends[1])}, Calendar(BERLIN))
    month = 31 * 86_400 - 3600
    left = int(month - 28 * 86_400 - 11 * 3600)
    granted = await limiter.enter(MANY, "a")
    assert granted == (
        Window("tokens_per_day", 100, 100, 12 * 3600, 23 * 3600),
        Window("tokens_per_month", 1000, 300, left, month),
    )
    used.append((now, 120))
    over = await limiter.enter(MANY, "b")
    assert isinstance(over, Exceeded)
    assert (over.name, over.limit, over.retry_after, over.reserved) == ("tokens_per_day", 100, 12 * 3600, False)
    over = await limiter.enter(replace(MANY, tokens_per_day=120), "b")
    assert isinstance(over, Exceeded)
    assert isinstance(await limiter.enter(replace(MANY, tokens_per_day=121), "b"), tuple)
    over = await limiter.enter(replace(MANY, tokens_per_month=820), "b")
    assert isinstance(over, Exceeded)
    assert (over.name, over.retry_after) == ("tokens_per_month", left), "of two, the end of the later one"
    now += 12 * 3600
    assert isinstance(await limiter.enter(MANY, "c"), tuple)
    used.append((now, 180))
    over = await limiter.enter(replace(MANY, tokens_per_day=None), "d")
    assert isinstance(over, Exceeded)
    assert (over.name, over.limit) == ("tokens_per_month", 1000)
    now += 2 * 86_400
    assert isinstance(await limiter.enter(MANY, "d"), tuple)


async def test_running_requests_reserve_what_they_may_use() -> None:
    """A request is not kept out by what it needs itself, but by what those before it may need."""
    limiter = Limiter()
    for name in ("a", "b", "c"):
        assert isinstance(await limiter.enter(MANY, name), tuple)
    assert await limiter.reserve(MANY, "a", 60) is None
    assert await limiter.reserve(MANY, "b", 5000) is None
    over = await limiter.reserve(MANY, "c", 1)
    assert over
    assert (over.name, over.retry_after, over.reserved) == ("tokens_per_day", 5, True)
    await limiter.leave(MANY, "c")
    await limiter.leave(MANY, "b")
    await limiter.leave(MANY, "b")
    assert await limiter.reserve(MANY, "d", 1) is None


async def test_the_length_of_answers_is_learned() -> None:
    limiter = Limiter()
    assert limiter.usual_answer("one", "m") == USUAL_ANSWER
    limiter.learn("one", "m", 1000)
    assert (limiter.usual_answer("one", "m"), limiter.usual_answer("one", "other")) == (1000, 1000)
    for _ in range(50):
        limiter.learn("one", "other", 200)
    assert (limiter.usual_answer("one", "m"), limiter.usual_answer("one", "third")) == (1000, 202)
    limiter.learn("two", "m", 1)
    assert limiter.usual_answer("two", "m") == LEAST_USUAL
