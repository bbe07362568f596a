"""The ledger loses nothing that was counted, and no fault of its file costs a request."""

import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ollama_auth import clock
from ollama_auth.exchange import Exchange, Outcome
from ollama_auth.ollama_api.routes import route
from ollama_auth.ollama_api.usage import Usage, UsageReader
from ollama_auth.telemetry import ledger as module
from ollama_auth.telemetry import usage_db
from ollama_auth.telemetry.ledger import MAX_MODELS, OTHER, Ledger, entry_of, shown_model
from ollama_auth.telemetry.spent import MAX_QUARTERS, Spent
from ollama_auth.telemetry.usage_db import Entry
from ollama_auth.telemetry.usage_queries import Chosen, latest, sums
from tests.harness.base import ROOT, wait_until
from tests.harness.cases import each_of

MAX_WAITING = 100
NOON = datetime(2026, 11, 26, 12, tzinfo=ZoneInfo("UTC")).timestamp()
LATER = 10.0**10
ENTRY = Entry(
    NOON, NOON + 2, "id", "127.0.0.1", "POST", "infer", "/api/chat", 200, 10, 20, False, 100, 200, 500.0, 2000.0,
    1500.0, "", "alice", "m", "answered", "",
)  # fmt: skip


def written(ledger: Ledger) -> Ledger:
    """The ledger, once nothing waits to be written."""
    wait_until(lambda: not (ledger._rows or ledger._sums or ledger._work.is_set()), "the ledger to be written")
    with ledger._using:
        return ledger


@pytest.fixture(params=["memory", "file"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    one = Ledger(str(tmp_path / "usage.db") if request.param == "file" else None)
    yield one
    one.close()


def requests_in(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


def test_all_of_a_question_is_of_one_moment_and_needs_no_temporary_file(tmp_path: Path) -> None:
    """What is written meanwhile is not seen: the console looks up names after sums. An image may have no /tmp."""

    def ask(connection: sqlite3.Connection) -> tuple[list[int], int]:
        seen = [sums(connection, ())[()].requests]
        kept.add(ENTRY._replace(model="new"))
        written(kept)
        return [*seen, sums(connection, ())[()].requests], *connection.execute("PRAGMA temp_store").fetchone()

    with closing(Ledger(str(tmp_path / "usage.db"))) as kept:
        kept.add(ENTRY)
        written(kept)
        assert kept.query(ask) == ([1, 1], 2)
        assert kept.query(lambda connection: sums(connection, ())[()].requests) == 2
    with closing(Ledger()) as in_memory:
        assert in_memory.query(lambda connection: connection.execute("PRAGMA temp_store").fetchone()) == (2,)


def test_what_was_added_is_found_by_each_column(ledger: Ledger) -> None:
    ledger.add(ENTRY)
    ledger.add(ENTRY._replace(key="bob", model="n", client="::1", estimated=True))
    refused = ENTRY._replace(status=403, outcome="refused", reason="model", generation_ms=None)
    ledger.add(refused._replace(completion_tokens=None, prompt_tokens=None))
    ledger.add(ENTRY._replace(time=NOON + 86_400, outcome="failed", reason="upstream broken"))
    written(ledger)
    found = ledger.query(lambda connection: sums(connection, ("key",)))
    assert {key: (one.requests, one.refused, one.failed, one.answered) for key, one in found.items()} == {
        ("alice",): (3, 1, 1, 1),
        ("bob",): (1, 0, 0, 1),
    }
    assert found["alice",].speed == 13.3  # (20 + 20) tokens in 3 s
    assert ledger.query(lambda connection: sums(connection, ())) == {
        (): replace(found["alice",], requests=4, prompt_tokens=30, completion_tokens=60, estimated=1, bytes_in=400,
                    bytes_out=800, generation_ms=4500.0)
    }  # fmt: skip
    by_day = ledger.query(lambda connection: sums(connection, ("day", "outcome", "reason")))
    assert set(by_day) == {
        ("2026-11-26", "answered", ""), ("2026-11-26", "refused", "model"), ("2026-11-27", "failed", "upstream broken"),
    }  # fmt: skip
    assert set(ledger.query(lambda connection: sums(connection, ("client", "month")))) == {
        ("127.0.0.1", "2026-11"), ("::1", "2026-11"),
    }  # fmt: skip
    only = Chosen(until=NOON + 3600, where={"key": ["alice"], "client": ["127.0.0.1"]})
    assert ledger.query(lambda connection: sums(connection, (), only))[()].requests == 2
    rows = ledger.query(lambda connection: latest(connection, limit=3))
    assert [row["outcome"] for row in rows] == ["failed", "refused", "answered"]
    assert rows[2]["key"] == "bob"
    assert len(ledger.query(lambda connection: latest(connection, before=rows[2]["number"]))) == 1


@pytest.mark.parametrize(
    ("zone", "moment", "day"),
    [
        ("UTC", "2026-11-26T23:30+00:00", "2026-11-26"),
        ("Europe/Berlin", "2026-11-26T23:30+00:00", "2026-11-27"),
        ("Europe/Berlin", "2026-07-26T21:30+00:00", "2026-07-26"),
        ("Europe/Berlin", "2026-07-26T22:30+00:00", "2026-07-27"),
        ("America/New_York", "2026-11-27T04:30+00:00", "2026-11-26"),
    ],
)
def test_days_are_those_of_a_time_zone(ledger: Ledger, zone: str, moment: str, day: str) -> None:
    ledger.add(ENTRY._replace(time=datetime.fromisoformat("2026-01-01T12:00+00:00").timestamp()))
    ledger.add(ENTRY._replace(time=datetime.fromisoformat(moment).timestamp()))
    ledger.add(ENTRY._replace(time=datetime.fromisoformat("2026-12-31T12:00+00:00").timestamp()))
    written(ledger)
    for by in (("day",), ("day", "client")):
        found = ledger.query(lambda connection, by=by: sums(connection, by, zone=ZoneInfo(zone)))  # type: ignore[misc]
        assert sorted(place[0] for place in found) == ["2026-01-01", day, "2026-12-31"]


def test_tokens_are_known_at_once_and_after_a_restart(tmp_path: Path) -> None:
    file = str(tmp_path / "usage.db")
    ledger, now = Ledger(file), clock.wall()
    for _ in range(3):
        ledger.add(ENTRY._replace(time=now))
    assert ledger.tokens("alice", now, LATER) == 90
    assert ledger.tokens("alice", now + 900, LATER) == ledger.tokens("bob", 0, LATER) == 0
    ledger.close()
    again = Ledger(file)
    assert again.tokens("alice", now, LATER) == 90
    again.add(ENTRY)
    assert again.tokens("alice", now, LATER) == 120, "those that wait to be written"
    written(again)
    assert again.tokens("alice", now, LATER) == 120, "and those that were"
    again.close()


def test_processes_see_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", 0)
    ledgers = [Ledger(str(tmp_path / "usage.db")) for _ in range(3)]
    for ledger in ledgers:
        for _ in range(50):
            ledger.add(ENTRY)
    for ledger in ledgers:
        written(ledger)
    assert [ledger.tokens("alice", 0, LATER) for ledger in ledgers] == [4500] * 3
    assert ledgers[0].query(lambda connection: sums(connection, ()))[()].requests == 150
    for ledger in ledgers:
        ledger.close()


def test_a_clock_that_was_wrong_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used while it was days ahead counts in these days, for the process and for later ones."""
    ledger, now = Ledger(str(tmp_path / "usage.db")), clock.wall() // 900 * 900
    for days in (0, 3, 0, 0, 2):
        monkeypatch.setattr(clock, "offset", days * 86_400.0)
        ledger.add(ENTRY)
    days_from_now = [(now + day * 86_400, now + (day + 1) * 86_400) for day in range(5)]
    assert [ledger.tokens("alice", *one) for one in days_from_now] == [90, 0, 30, 30, 0]
    ledger.close()
    with closing(Ledger(str(tmp_path / "usage.db"))) as again:
        assert [again.tokens("alice", *one) for one in days_from_now] == [90, 0, 30, 30, 0]


def test_what_is_kept_of_a_key_has_a_bound() -> None:
    spent, most = Spent(), MAX_QUARTERS
    for quarter in range(5 * most):
        spent.add(quarter, 2)
    assert len(spent.quarters) <= 2 * most
    assert spent.between(4 * most, 5 * most) == spent.between(4 * most, 10**9) == 2 * most
    assert spent.total == 10 * most


def unlink(file: Path) -> None:
    file.unlink()


def unlink_all(file: Path) -> None:
    for one in file.parent.iterdir():
        one.unlink()


@pytest.mark.parametrize("take", [unlink, unlink_all])
def test_two_processes_whose_file_is_taken_away(
    take: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits hold: each tells the new file all that it counted, and asks the new one."""
    monkeypatch.setattr(module, "FRESH", 0)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    file = tmp_path / "usage.db"
    ledgers = [Ledger(str(file)) for _ in range(2)]
    for ledger in ledgers:
        ledger.add(ENTRY)
        written(ledger)
    assert [ledger.tokens("alice", 0, LATER) for ledger in ledgers] == [60, 60]
    take(file)
    for ledger in ledgers:
        ledger.add(ENTRY._replace(key="bob"))
    both = ("alice", "bob")
    wait_until(lambda: [[one.tokens(key, 0, LATER) for key in both] for one in ledgers] == [[60, 60]] * 2, "it")
    for ledger in ledgers:
        ledger.close()
    with closing(Ledger(str(file))) as again:
        assert [again.tokens(key, 0, LATER) for key in both] == [60, 60]
        assert again.query(lambda connection: sums(connection, ("key",)))["bob",].requests == 2


def test_a_file_that_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next program that opens the file deletes its write-ahead log, with all that the gate wrote since."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    file = tmp_path / "usage.db"
    with closing(Ledger(str(file))) as ledger:
        for _ in range(2):
            ledger.add(ENTRY)
            written(ledger)
            file.write_bytes(b"")
            with closing(sqlite3.connect(file)) as connection:
                assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == []
        ledger.add(ENTRY)
    assert requests_in(file) == 1
    with closing(Ledger(str(file))) as again:
        assert again.tokens("alice", 0, LATER) == 90


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_migration_is_made_once_and_loses_nothing(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "usage.db"
    with closing(Ledger(str(file))) as ledger:
        ledger.add(ENTRY)
    further = "ALTER TABLE requests ADD COLUMN gpu TEXT; INSERT INTO spent VALUES ('made', 1, 1, 1);"
    monkeypatch.setattr(usage_db, "_MIGRATIONS", (*usage_db._MIGRATIONS, further))
    monkeypatch.setattr(usage_db, "NEWEST", 2)
    barrier, real = threading.Barrier(at_once), usage_db.migrate

    def migrate(connection: sqlite3.Connection) -> None:
        barrier.wait(10)  # All have seen the old version.
        real(connection)

    monkeypatch.setattr(usage_db, "migrate", migrate)
    opened: list[Ledger] = []
    threads = [threading.Thread(target=lambda: opened.append(Ledger(str(file)))) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in opened:
        ledger.add(ENTRY)
        ledger.close()
    with closing(sqlite3.connect(file)) as connection:
        assert usage_db.version(connection) == 2
        assert connection.execute("SELECT count(gpu), count(*) FROM requests").fetchone() == (0, 1 + at_once)
        assert connection.execute("SELECT tokens FROM spent WHERE key = 'made'").fetchall() == [(1,)]
    assert [one.name for one in tmp_path.iterdir()] == ["usage.db"]


def test_a_disk_that_is_full_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No row is lost that there is room for in memory, and a line says when it begins and when it ends."""
    real, pages = usage_db.connect, 0

    def connect(path: Path | None, **more: Any) -> sqlite3.Connection:
        connection = real(path, **more)
        if pages:
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(usage_db, "connect", connect)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    file = tmp_path / "usage.db"
    with closing(Ledger(str(file))) as ledger:
        ledger.add(ENTRY)
        written(ledger)
        with ledger._using:
            pages = 1  # No more than there are.
            ledger._connection.execute("PRAGMA max_page_count = 1")  # type: ignore[union-attr]
        for _ in range(500):
            ledger.add(ENTRY)
        wait_until(lambda: caplog.messages, "a line")
        assert "full" in caplog.messages[0]
        assert ledger.tokens("alice", 0, LATER) == 501 * 30
        pages = 0
        written(ledger)
    assert requests_in(file) == 501
    assert caplog.messages[1:] == [f"ollama_auth: the ledger {file} is written again; 0 requests are missing in it"]
    with closing(Ledger(str(file))) as again:
        assert again.tokens("alice", 0, LATER) == 501 * 30


def test_a_folder_that_is_away_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a volume that is mounted anew."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    (folder := tmp_path / "data").mkdir()
    with closing(Ledger(f"{folder}/usage.db")) as ledger:
        folder.rename(tmp_path / "away")
        ledger.add(ENTRY)
        wait_until(lambda: caplog.messages, "a line")
        (tmp_path / "away").rename(folder)
        written(ledger)
    assert requests_in(folder / "usage.db") == 1
    assert len(caplog.messages) == 2


def test_the_file_is_private(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    file.touch(0o644)
    ledger = Ledger(str(file))
    ledger.add(ENTRY)
    written(ledger)
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) > 1, "the write-ahead log"
    ledger.close()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing" / "usage.db", tmp_path):
        with pytest.raises(OSError, match=r"."):
            Ledger(str(wrong))


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


def foreign(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE requests (a)")


def damaged(file: Path) -> None:
    Ledger(str(file)).close()
    with file.open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\xff" * 3000)


@pytest.mark.parametrize("spoil", [newer, foreign, damaged, lambda file: file.write_text("no database" * 100)])
def test_a_file_that_can_not_work_is_set_aside(spoil: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(spoil)
    file = tmp_path / "usage.db"
    spoil(file)
    before = file.read_bytes()
    ledger = Ledger(str(file))
    ledger.add(ENTRY)
    ledger.close()
    assert requests_in(file) == 1
    (aside,) = tmp_path.glob("usage.db.*Z")
    assert aside.read_bytes()[100:] == before[100:]
    (line,) = caplog.messages
    assert str(file) in line
    assert str(aside) in line


def test_a_file_that_is_damaged_or_removed_at_work_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "usage.db"
    ledger = Ledger(str(file))
    ledger.add(ENTRY)
    written(ledger)
    for one in tmp_path.iterdir():
        one.unlink()
    ledger.add(ENTRY)
    written(ledger)
    assert requests_in(file) == 1
    for one in tmp_path.iterdir():
        shutil.copy(one, tmp_path / "copy")
        (tmp_path / "copy").write_bytes(b"no database " * 1000)
        (tmp_path / "copy").replace(one)
    ledger.add(ENTRY)
    written(ledger)
    assert requests_in(file) == 1
    assert ledger.tokens("alice", 0, LATER) == 90, "for limits, all of it"
    ledger.close()
    assert len(caplog.messages) == 1


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def test_a_lock_costs_one_line_and_no_row_that_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_db.connect, "__kwdefaults__", {"write": False, "timeout": 0.01})
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "MAX_WAITING", MAX_WAITING)
    file = tmp_path / "usage.db"
    Ledger(str(file)).close()
    with locked(file):
        ledger = Ledger(str(file))
        for _ in range(3 * MAX_WAITING):
            ledger.add(ENTRY)
        wait_until(lambda: caplog.messages, "a line")
        assert ledger.tokens("alice", 0, LATER) == 90 * MAX_WAITING
    written(ledger)
    kept = requests_in(file)
    assert MAX_WAITING <= kept <= 2 * MAX_WAITING, "with those that the thread had"
    found = ledger.query(lambda connection: sums(connection, ("key",)))
    assert found["alice",].requests == 3 * MAX_WAITING, "sums lose nothing"
    ledger.close()
    with closing(Ledger(str(file))) as again:
        assert again.tokens("alice", 0, LATER) == 90 * MAX_WAITING
    assert len(caplog.messages) == 2
    assert "locked" in caplog.messages[0]
    assert f"written again; {3 * MAX_WAITING - kept} requests" in caplog.messages[1]


def test_what_raises_in_it_costs_a_row(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    ledger.add(ENTRY._replace(client="\ud800"))
    ledger.add(ENTRY._replace(time=float("nan")))
    written(ledger)
    ledger.add(ENTRY)
    written(ledger)
    assert ledger.query(lambda connection: latest(connection))[0]["client"] == "127.0.0.1"
    assert len(caplog.messages) == 2
    ledger.close()


def test_old_rows_and_rows_beyond_a_million_go_and_sums_stay(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 20)
    monkeypatch.setattr(module, "MAX_ROWS_IN_MEMORY", 20)
    monkeypatch.setattr(module, "TRIM", 0)
    now = clock.wall()
    for _ in range(10):
        ledger.add(ENTRY._replace(ended=now))
    for age in range(10):
        ledger.add(ENTRY._replace(key="", ended=now, id=str(age)))
    ledger.add(ENTRY._replace(ended=now - 31 * 86_400))
    written(ledger)
    rows = ledger.query(lambda connection: latest(connection))
    assert [row["key"] for row in rows] == [""] * 2 + ["alice"] * 10, "one in ten is of nobody known"
    assert [row["id"] for row in rows[:2]] == ["9", "8"]
    for age in range(30):
        ledger.add(ENTRY._replace(ended=now, id=str(age)))
    written(ledger)
    assert [row["id"] for row in ledger.query(lambda connection: latest(connection))] == [
        str(age) for age in range(29, 9, -1)
    ]
    assert ledger.query(lambda connection: sums(connection, ()))[()].requests == 51


def test_clients_cannot_grow_it_by_names_of_models(ledger: Ledger) -> None:
    for number in range(MAX_MODELS + 50):
        ledger.add(ENTRY._replace(model=f"m{number}", status=404))
    ledger.add(ENTRY._replace(model="real"))
    written(ledger)
    found = ledger.query(lambda connection: sums(connection, ("model",)))
    assert len(found) == MAX_MODELS + 2
    assert found[OTHER,].requests == 50
    assert found["real",].requests == 1


def test_a_request_without_a_row_counts(ledger: Ledger) -> None:
    ledger.add(ENTRY, row=False)
    written(ledger)
    assert ledger.query(lambda connection: latest(connection)) == []
    assert ledger.query(lambda connection: sums(connection, ()))[()].requests == 1


def test_many_threads_lose_nothing(ledger: Ledger) -> None:
    def add() -> None:
        for _ in range(500):
            ledger.add(ENTRY)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.tokens("alice", 0, LATER) == 8 * 500 * 30
    written(ledger)
    assert ledger.query(lambda connection: sums(connection, ()))[()].requests == 4000


def test_the_row_of_an_exchange() -> None:
    exchange = Exchange(
        "::1", "POST", route(b"POST", b"/api/chat"), b"/api/chat", key="alice", status=200, model="M:latest"
    )
    assert exchange.route
    exchange.usage = UsageReader(exchange.route.usage, "application/x-ndjson", "", 200)
    exchange.first_token, exchange.ended = exchange.started + 0.5, exchange.started + 2
    exchange.used = Usage(model="M:latest", prompt_tokens=10**15, completion_tokens=7, complete=True)
    entry = entry_of(exchange)
    assert entry == Entry(
        exchange.time, exchange.time + 2, exchange.id, "::1", "POST", "infer", "/api/chat", 200, module.MAX_COUNT, 7,
        False, 0, 0, 500.0, 2000.0, 1500.0, "", "alice", "m", str(Outcome.ANSWERED), "",
    )  # fmt: skip
    exchange = Exchange("::1", key="unknown:12345678", reason="unknown", status=401, first_byte=1e9, ended=1e9)
    refused = entry_of(exchange)
    assert (refused.key, refused.outcome, refused.reason) == (usage_db.UNKNOWN_KEY, "refused", "unknown")
    assert (refused.prompt_tokens, refused.ttft_ms, refused.generation_ms) == (None, None, None)


@each_of(
    ("name", "shown"),
    [
        ("llama3.2", "llama3.2"),
        ("llama3.2:latest", "llama3.2"),
        ("registry.ollama.ai/library/Llama3.2:8b", "llama3.2:8b"),
        ("no name\n\ud800", "no name\\n\\ud800"),
        ("x" * 500, "x" * 128),
    ],
)
def test_one_name_for_a_model(name: str, shown: str) -> None:
    assert shown_model(name) == shown


def test_a_kill_loses_no_more_than_the_last_second(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    program = (
        "import sys, time; from ollama_auth.telemetry.ledger import Ledger; "
        "from tests.unit.telemetry.test_ledger import ENTRY\n"
        f"ledger = Ledger({str(file)!r})\n"
        "for number in range(10**9):\n"
        "    ledger.add(ENTRY)\n"
        "    if number % 10 == 0: print(number + 1, time.monotonic(), flush=True); time.sleep(0.001)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'addons'}"}
    ) as process:
        assert process.stdout
        seen = [process.stdout.readline().split() for _ in range(500)]
        wait_until(lambda: file.exists() and requests_in(file) > 1000, "the ledger to be written")
        killed = time.monotonic()
        process.kill()
        seen += [line.split() for line in process.stdout.read().splitlines()]
    before = max((int(one[0]) for one in seen if len(one) == 2 and float(one[1]) < killed - 1), default=0)
    assert before <= requests_in(file)
    ledger = Ledger(str(file))
    assert ledger.tokens("alice", 0, LATER) == 30 * requests_in(file), "rows and sums agree"
    ledger.close()
