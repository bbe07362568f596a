"""What a principal takes is given back, also where the storage fails half-way."""

import asyncio
from dataclasses import replace

import pytest

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
