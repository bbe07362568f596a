"""What the status page shows is counted right, and whoever sends what, it stays small."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.exchange import Exchange
from ollama_auth.ollama_api.routes import route
from ollama_auth.ollama_api.usage import Usage
from ollama_auth.telemetry.figures import NO_KEY, UNKNOWN_MODEL
from ollama_auth.telemetry.history import (
    MAX_NAMES,
    MINUTES,
    OTHER,
    BoundedLabels,
    History,
    in_flight,
)
from ollama_auth.telemetry.log_histogram import LogHistogram

CHAT = route(b"POST", b"/api/chat")


def answered(key: str = "anna", model: str | None = "m", **more: Any) -> Exchange:
    """An answer of 10 tokens to a prompt of 5, the first after 250 ms, the last after 1250 ms, all done in 1500 ms."""
    used = Usage(model, 5, 10, complete=True)
    times = {"started": 100.0, "first_token": 100.25, "last_token": 101.25, "ended": 101.5}
    fields: dict[str, Any] = {"key": key, "status": 200, "admitted": True, "used": used, "route": CHAT}
    return Exchange("10.0.0.1", **(times | fields | more))


def refused(reason: str = "missing", **more: Any) -> Exchange:
    return Exchange("10.0.0.1", status=401, reason=reason, route=CHAT, ended=1.0, started=1.0, **more)


def test_what_each_key_and_each_model_used() -> None:
    history = History()
    for exchange in (
        answered(),
        answered(),
        answered("ben", "n"),
        refused(),
        refused("unknown", key="unknown:01234567"),
    ):
        history.ended(exchange)
    shown: Any = history.shown()
    assert [
        [row[name] for name in ("key", "requests", "refused", "prompt_tokens", "completion_tokens", "speed")]
        for row in shown["keys"]
    ] == [[NO_KEY, 2, 2, 0, 0, None], ["anna", 2, 0, 10, 20, 9.0], ["ben", 1, 0, 5, 10, 9.0]]
    assert [(row["model"], row["requests"], row["completion_tokens"]) for row in shown["models"]] == [
        ("m", 2, 20),
        ("n", 1, 10),
    ]
    assert shown["refusals"] == {"missing": 1, "unknown": 1}


def test_an_answer_that_names_no_model_and_an_error_that_has_none() -> None:
    history = History()
    history.ended(answered(model=None))
    history.ended(answered(status=404, used=None))
    shown: Any = history.shown()
    assert [(row["model"], row["requests"]) for row in shown["models"]] == [(UNKNOWN_MODEL, 1)]
    assert shown["keys"][0]["completion_tokens"] == 10


def test_the_last_hour_by_minute() -> None:
    now = [60_000.0]
    history = History(lambda: now[0])
    history.ended(answered())
    history.add_token_intervals([0.1])
    now[0] += 60 * (MINUTES - 1)
    history.ended(answered(status=502, used=None))
    history.ended(refused())
    shown: Any = history.shown()
    minutes = shown["minutes"]
    assert [minute["time"] for minute in minutes] == list(range(60_000, 60_000 + 3600, 60))
    first, last = minutes[0], minutes[-1]
    assert (first["requests"], first["prompt_tokens"], first["completion_tokens"]) == (1, 5, 10)
    assert first["ttft_ms"] == pytest.approx([250, 250], rel=0.1)
    assert first["duration_ms"] == pytest.approx([1500, 1500], rel=0.1)
    assert first["token_ms"] == pytest.approx([100, 100], rel=0.1)
    assert (last["requests"], last["refused"], last["failed"], last["token_ms"]) == (2, 1, 1, None)
    assert {minute["requests"] for minute in minutes[1:-1]} == {0}
    now[0] += 60
    shown = history.shown()
    assert [minute["requests"] for minute in shown["minutes"]] == [0] * (MINUTES - 2) + [2, 0]


def test_a_clock_that_is_put_back_loses_nothing() -> None:
    now = [60_000.0]
    history = History(lambda: now[0])
    history.ended(answered())
    now[0] -= 30
    history.ended(answered())
    now[0] += 30
    shown: Any = history.shown()
    assert [minute["requests"] for minute in shown["minutes"][-2:]] == [1, 1]


def test_the_memory_of_minutes_is_bounded_whatever_the_clock_does() -> None:
    now = [60_000_000.0]
    history = History(lambda: now[0])
    for step in range(500):
        now[0] += 60 * (-1) ** step * step
        history.ended(answered())
    assert len(history.plain()["minutes"]) <= MINUTES


def test_gates_that_share_a_port_count_together() -> None:
    one, two = History(lambda: 60_000.0), History(lambda: 60_000.0)
    both = History(lambda: 60_000.0)
    for history in (one, both):
        history.ended(answered())
        history.ended(refused())
        history.add_token_intervals([0.1])
    for history in (two, both):
        history.ended(answered("ben", "n"))
        history.ended(answered())
    shown, expected = one.with_others([json.loads(json.dumps(two.plain()))]).shown(), both.shown()
    for rows in (shown["keys"], shown["models"], expected["keys"], expected["models"]):
        for row in rows:  # type: ignore[attr-defined]
            row["last"] = 0
    assert shown == expected


def test_names_beyond_the_bound_are_counted_as_one() -> None:
    history = History()
    for number in range(MAX_NAMES + 50):
        history.ended(answered(f"key-{number}", f"model-{number}"))
    shown: Any = history.shown()
    for rows, name in ((shown["keys"], "key"), (shown["models"], "model")):
        assert len(rows) == MAX_NAMES + 1
        assert (rows[0][name], rows[0]["requests"]) == (OTHER, 50)


@given(st.lists(st.text(max_size=3)))
def test_a_fold_keeps_a_name_once_it_has_it(names: list[str]) -> None:
    fold = BoundedLabels(3)
    first = {name: fold(name) for name in names}
    assert {name: fold(name) for name in names} == first
    assert len({*first.values()} - {OTHER}) <= 3


@given(st.lists(st.floats(0.02, 1e8), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_near_the_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    spread = LogHistogram()
    for value in values:
        spread.add(value)
    found = spread.percentiles(share)
    exact = sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]
    assert found
    assert exact * 0.97 - 0.01 <= found[0] <= exact * 1.03 + 0.01


@given(st.lists(st.floats()))
def test_no_number_breaks_a_spread_or_makes_it_large(values: list[float]) -> None:
    spread = LogHistogram()
    for value in values:
        if value == value:
            spread.add(value)
    assert len(spread.counts) < 600


def test_nothing_has_no_percentiles() -> None:
    assert LogHistogram().percentiles(0.5, 0.95) is None


def test_a_request_under_way() -> None:
    shown = in_flight(answered(ended=None, used=None, path=b"/api/chat", method="POST", id="x"), 103.0)
    assert shown == {
        "id": "x",
        "key": "anna",
        "method": "POST",
        "path": "/api/chat",
        "model": None,
        "stream": None,
        "seconds": 3.0,
        "ttft_ms": 250.0,
        "tokens": 0,
        "speed": None,
    }
