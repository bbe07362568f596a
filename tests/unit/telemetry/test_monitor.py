"""What is under way, by key."""

from time import monotonic
from types import SimpleNamespace

from ollama_auth.exchange import Exchange
from ollama_auth.telemetry import monitor


def exchange(key: str, number: int) -> Exchange:
    one = Exchange("192.0.2.1", started=monotonic() - 1000 + number)
    one.key, one.admitted = key, True
    return one


async def test_more_requests_are_counted_than_are_listed() -> None:
    under_way = [exchange("team" if number % 3 else "phone", number) for number in range(300)]
    gate = SimpleNamespace(under_way=under_way, connection_count=300)
    now = await monitor.Monitor(gate, lambda: None).now()  # type: ignore[arg-type, return-value]
    assert now["running"] == {"phone": 100, "team": 200}
    assert (now["in_flight_total"], now["stalled"], now["tokens_per_second"]) == (300, 300, 0)
    assert len(now["in_flight"]) == monitor.MAX_SHOWN
    assert now["in_flight"][0]["seconds"] > now["in_flight"][-1]["seconds"], "the oldest"
