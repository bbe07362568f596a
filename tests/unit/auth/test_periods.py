"""Days and months of a calendar, whatever the clocks of its time zone do."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ollama_auth.auth.periods import Calendar
from tests.harness.cases import each_of


@each_of(
    ("zone", "day", "hours"),
    [
        ("UTC", (2026, 12, 31), 24),
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("Asia/Kathmandu", (2024, 2, 29), 24),
        ("Africa/Cairo", (2026, 4, 24), 23),  # Has no midnight.
        ("America/Havana", (2026, 11, 1), 25),  # Has two.
    ],
)
def test_each_time_is_in_one_day_and_one_month(zone: str, day: tuple[int, int, int], hours: int) -> None:
    noon = datetime(*day, 12, tzinfo=ZoneInfo(zone)).timestamp()
    calendar = Calendar(ZoneInfo(zone))
    today = calendar.day(noon)
    assert (today.name, (today.end - today.start) / 3600) == (f"{datetime(*day):%Y-%m-%d}", hours)
    for now in (today.start, today.end - 0.001):
        assert calendar.day(now) == Calendar(ZoneInfo(zone)).day(now) == today
    assert calendar.day(today.start - 0.001).end == today.start
    assert calendar.day(today.end).start == today.end
    month = calendar.month(noon)
    assert month.name == f"{datetime(*day):%Y-%m}"
    assert month.start <= today.start < today.end <= month.end
    assert calendar.month(month.end).start == month.end


def test_a_year_of_utc() -> None:
    calendar, now = Calendar(UTC), datetime(2027, 1, 1, tzinfo=UTC)
    assert calendar.day((now - timedelta(seconds=1)).timestamp()).end == now.timestamp()
    assert calendar.month((now - timedelta(seconds=1)).timestamp()).end == now.timestamp()
