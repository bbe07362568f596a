"""Replicas behind HAProxy under load, while one is killed and one is upgraded, keys are changed and Redis is away: see
tests/tools/replicas.py, which measures the same for longer."""

import asyncio
import shutil

import pytest

from tests.harness.base import PATIENCE
from tests.tools import replicas
from tests.tools.replicas import ASKERS, DAY, DELAY, MINUTE, SOME, Report, peak

SECONDS = 60.0
"""Within a minute no request of it becomes free again, however slow the machine."""


# All of it happens in the fixture: 20 s, or longer where others work too.
pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.redis]


@pytest.fixture(scope="module")
def report() -> Report:
    for program in ("haproxy", "redis-server"):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"):
            pytest.skip(f"there is no {program} here; on Debian: apt-get install {program}")
    return asyncio.run(replicas.play(streams=30, seconds=9, pause=0.05))


def test_no_admitted_stream_breaks_but_on_the_gate_that_was_killed(report: Report) -> None:
    assert report.elsewhere(report.broken) == []
    assert all(any(one.whole and one.gate == name for one in report.of("free")) for name in report.counts)


def test_every_request_is_answered_but_on_the_gate_that_was_killed(report: Report) -> None:
    assert report.elsewhere(report.unanswered) == []


def test_the_gate_that_was_upgraded_ended_well(report: Report) -> None:
    assert report.exit_status == 0
    assert report.drained >= DELAY


def test_strangers_are_refused_and_never_seen_upstream(report: Report) -> None:
    strangers = report.of("stranger")
    assert {one.status for one in report.elsewhere(strangers)} == {401}
    assert report.upstream("stranger") == []


def test_keys_that_were_changed(report: Report) -> None:
    """Seen by all gates within the two seconds that README promises, and what a busy machine adds."""
    assert report.revoked < 2 + PATIENCE


def test_requests_a_minute_hold(report: Report) -> None:
    """Redis came back empty, so they are counted from nothing again: but neither before nor after one too many."""
    since, back = report.away
    start = report.seen[0].begun
    for some in (report.upstream("minute", 0, since), report.upstream("minute", back)):
        assert 0 < replicas.most_in_a_minute(some) <= MINUTE + (some[-1].begun - start > SECONDS) * ASKERS["minute"]


def test_concurrent_requests_hold(report: Report) -> None:
    """The places of the gate that was killed stay taken for LEASE seconds: too few may run, but never too many."""
    since, back = report.away
    assert 0 < peak(report.upstream("some", 0, since)) <= SOME
    assert 0 < peak(report.upstream("some", back)) <= SOME
    assert peak(report.upstream("some")) <= SOME * 2, "those of before are known again when they are renewed"


def test_tokens_a_day_hold(report: Report) -> None:
    """But for those of streams that run when it is used up, or are lost with the gate that is killed."""
    since, _ = report.away
    answers = [one for one in report.of("day") if one.whole and one.tokens]
    each = max(one.tokens for one in answers)
    assert 0 < len(report.upstream("day", 0, since)) <= DAY / each + ASKERS["day"] * 2


def test_while_redis_is_away_nothing_with_a_limit_passes(report: Report) -> None:
    since, back = report.away
    for name, askers in ASKERS.items():
        assert len(report.upstream(name, since, back)) <= askers, "what was let in before may be on its way"
        assert any(map(report.closed, report.of(name)))
    assert any(one.whole and since < one.begun < back for one in report.of("free")), "those without one pass"


def test_metrics_add_up(report: Report) -> None:
    """Each gate counts what its clients saw; of the one that was stopped its access log tells."""
    assert len(report.counts) == 3
    for seen, counted in report.counts.values():
        assert seen == counted
        assert sum(seen.values()) > 0
