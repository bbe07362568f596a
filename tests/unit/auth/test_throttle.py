"""Wrong keys are counted by network, each once, and signatures are used once."""

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
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("ollama_auth.clock.monotonic", clock := Clock())
    return clock


@pytest.fixture
def counter(clock: Clock) -> Throttle:
    counter = Throttle()
    counter.most = MOST
    return counter


def guess(counter: Throttle, times: int, network: str = "a") -> list[bool]:
    """What was said of so many different wrong keys."""
    return [counter.failed(network, str(number)) for number in range(times)]


def test_different_wrong_keys_are_counted(counter: Throttle) -> None:
    assert guess(counter, MOST + 2) == [False] * (MOST - 1) + [True] * 3
    assert not counter.failed("b", "0"), "another network"


def test_the_same_one_counts_once(counter: Throttle, clock: Clock) -> None:
    for _ in range(10 * MOST):
        clock.now += 1
        assert not counter.failed("a", "stale")
    assert guess(counter, MOST - 1)[-1], "it is one of them"


def test_they_are_forgotten(counter: Throttle, clock: Clock) -> None:
    guess(counter, 2 * MOST)
    clock.now += WINDOW + 0.1
    assert not any(guess(counter, MOST - 1))
    assert counter._counts == {"a": MOST - 1}


def test_who_goes_on_stays_throttled(counter: Throttle, clock: Clock) -> None:
    guess(counter, MOST)
    for number in range(10 * MOST):
        clock.now += WINDOW / (MOST + 1)
        assert counter.failed("a", f"another {number}")


def test_slow_failures_add_up_to_nothing(counter: Throttle, clock: Clock) -> None:
    for number in range(10 * MOST):
        clock.now += WINDOW / (MOST - 2)
        assert not counter.failed("a", str(number))


def test_off() -> None:
    assert not any(guess(Throttle(), 1000))


def test_memory_is_bounded(counter: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 10)
    for number in range(1000):
        counter.failed(str(number % 100), str(number))
    assert len(counter._seen) == sum(counter._counts.values()) == 10
    assert len(counter._counts) <= 10


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


def test_memory_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_SIGNATURES", 3)
    replays = ReplayCache()
    assert not any(replays.replayed(b"%d" % count, float(count)) for count in range(4))
    assert [replays.replayed(b"%d" % count, 100.0) for count in (3, 2, 1)] == [True] * 3
    assert not replays.replayed(b"0", 100.0)
    assert not replays.replayed(b"1", 100.0)  # Pushed out by the one before.


@given(st.lists(st.tuples(st.sampled_from(b"abc"), st.floats(0, 10)), max_size=20))
def test_a_signature_is_good_from_its_first_use_on_and_no_longer(uses: list[tuple[int, float]]) -> None:
    replays, first = ReplayCache(), dict[int, float]()
    for name, now in sorted(uses, key=lambda use: use[1]):
        assert replays.replayed(b"%c" % name, now) is (now - first.setdefault(name, now) > REPLAY_GRACE)
