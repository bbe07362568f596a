"""Guessing is hopeless, and people behind the same address go on working."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.auth import throttle
from ollama_auth.auth.throttle import REPLAY_GRACE, WINDOW, ReplayCache, Throttle

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
    assert not counter.seconds_blocked("a")


def test_many_are(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    assert 0 < counter.seconds_blocked("a") <= WINDOW + 1
    assert not counter.seconds_blocked("b")


def test_a_key_that_is_right_only_now_is_not_taken(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    assert counter.seconds_blocked("a", "alice")


def test_a_key_that_was_good_from_there_still_is(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    counter.succeeded("a", "alice")
    fail(counter, MOST)
    assert not counter.seconds_blocked("a", "alice")
    assert counter.seconds_blocked("a", "bob")
    assert counter.seconds_blocked("a")


def test_failures_are_forgotten(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    clock.now += WINDOW + 1
    assert not counter.seconds_blocked("a")
    fail(counter, MOST - 1)
    assert not counter.seconds_blocked("a")


def test_who_goes_on_stays_out(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    fail(counter, MOST)
    for _ in range(10):
        clock.now += WINDOW / 2
        counter.failed("a")
        assert counter.seconds_blocked("a")


def test_slow_failures_add_up_to_nothing(clock: Clock) -> None:
    counter = Throttle(MOST, clock)
    for _ in range(10 * MOST):
        clock.now += WINDOW / (MOST - 2)
        counter.failed("a")
    assert not counter.seconds_blocked("a")


def test_off(clock: Clock) -> None:
    counter = Throttle(0, clock)
    fail(counter, 1000)
    assert not counter.seconds_blocked("a")


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_NETWORKS", 10)
    counter = Throttle(MOST, clock)
    for number in range(1000):
        counter.failed(str(number))
        counter.succeeded(str(number), "alice")
    assert len(counter._failures) == len(counter._trusted) == 10


# Replays.


def test_equal_requests_may_follow_each_other_for_two_seconds() -> None:
    replays = ReplayCache()
    assert not replays.replayed(b"one", 100.0)
    assert not replays.replayed(b"one", 101.0)
    assert not replays.replayed(b"one", 100.0 + REPLAY_GRACE)
    assert replays.replayed(b"one", 100.1 + REPLAY_GRACE)
    assert replays.replayed(b"one", 1000.0)
    assert not replays.replayed(b"two", 1000.0)


def test_a_clock_that_goes_back_makes_no_replay_good() -> None:
    replays = ReplayCache()
    assert not replays.replayed(b"one", 100.0)
    assert replays.replayed(b"one", 50.0)


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    replays = ReplayCache(3)
    assert not any(replays.replayed(b"%d" % count, float(count)) for count in range(4))
    assert [replays.replayed(b"%d" % count, 100.0) for count in (3, 2, 1)] == [True] * 3
    assert not replays.replayed(b"0", 100.0)
    assert not replays.replayed(b"1", 100.0)  # Pushed out by the one before.


@given(st.lists(st.tuples(st.sampled_from(b"abc"), st.floats(0, 10)), max_size=20))
def test_a_signature_is_good_from_its_first_use_on_and_no_longer(uses: list[tuple[int, float]]) -> None:
    replays, first = ReplayCache(), dict[int, float]()
    for name, now in sorted(uses, key=lambda use: use[1]):
        assert replays.replayed(b"%c" % name, now) is (now - first.setdefault(name, now) > REPLAY_GRACE)
