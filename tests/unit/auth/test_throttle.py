"""Guessing is hopeless, and people behind the same address go on working."""

import pytest

from ollama_auth.auth import throttle
from ollama_auth.auth.throttle import WINDOW, Throttle

MOST = 20


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(counter: Throttle, times: int, network: str = "a") -> None:
    for _ in range(times):
        counter.failed(network)


def test_a_few_failures_are_no_reason(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST - 1)
    assert not counter.blocks("a")


def test_many_are(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    assert 0 < counter.blocks("a") <= WINDOW + 1
    assert not counter.blocks("b")


def test_a_key_that_is_right_only_now_is_not_taken(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    assert counter.blocks("a", "alice")


def test_a_key_that_was_good_from_there_still_is(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    counter.succeeded("a", "alice")
    fail(counter, MOST)
    assert not counter.blocks("a", "alice")
    assert counter.blocks("a", "bob")
    assert counter.blocks("a")


def test_failures_are_forgotten(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    clock.now += WINDOW + 1
    assert not counter.blocks("a")
    fail(counter, MOST - 1)
    assert not counter.blocks("a")


def test_who_goes_on_stays_out(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    for _ in range(10):
        clock.now += WINDOW / 2
        counter.failed("a")
        assert counter.blocks("a")


def test_slow_failures_add_up_to_nothing(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    for _ in range(10 * MOST):
        clock.now += WINDOW / (MOST - 2)
        counter.failed("a")
    assert not counter.blocks("a")


def test_off(clock: Clock) -> None:
    counter = Throttle(0, clock)
    fail(counter, 1000)
    assert not counter.blocks("a")


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "NETWORKS", 10)
    counter = Throttle(MOST, clock)
    for number in range(1000):
        counter.failed(str(number))
        counter.succeeded(str(number), "alice")
    assert len(counter._failures) == len(counter._trusted) == 10
