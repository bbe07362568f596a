"""scripts/usage, mostly as somebody at a terminal uses it."""

import csv
import gzip
import io
import json
import math
import os
import re
import shlex
import sqlite3
import statistics
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from datetime import UTC
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ollama_auth.telemetry import usage_db, usage_queries
from ollama_auth.telemetry.ledger import Ledger
from ollama_auth.telemetry.usage_queries import Chosen
from scripts.tools.usage import __main__ as cli
from scripts.tools.usage import access_logs, progress
from scripts.tools.usage import ledger as usage_ledger
from scripts.tools.usage.ledger import open_ledger
from tests.harness.base import BEARER, ROOT, wait_until
from tests.harness.gate import Gate
from tests.harness.tools import CLEAN, TOOLS, call, execute
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

BIDI = "\N{RIGHT-TO-LEFT OVERRIDE}"


def entry(**fields: Any) -> dict[str, Any]:
    """The fields of a line, as the gate writes them for an answered chat."""
    usual = {
        "time": "2026-11-23T17:04:24.636Z",
        "id": "71d49e44be519bca",
        "client": "127.0.0.1",
        "key": "alice",
        "method": "POST",
        "path": "/api/chat",
        "status": 200,
        "outcome": "answered",
        "model": "llama3.2:latest",
        "stream": True,
        "stripped": ["authorization"],
        "bytes_in": 100,
        "bytes_out": 4000,
        "duration_ms": 2004.4,
        "ttft_ms": 200.0,
        "prompt_tokens": 11,
        "completion_tokens": 700,
        "complete": True,
    }
    return {name: value for name, value in (usual | fields).items() if value is not None}


REFUSED = entry(
    key=None, model=None, stream=None, status=401, outcome="refused", reason="missing", bytes_out=60, ttft_ms=None,
    prompt_tokens=None, completion_tokens=None, complete=None,
)  # fmt: skip
LOG = [
    entry(),
    entry(ttft_ms=400.0, completion_tokens=1300, estimated=True),
    entry(key="bob", time="2026-11-24T00:00:00.000Z", model="llama3.2", outcome="failed", reason="upstream broken"),
    entry(
        key="bob",
        time="2026-11-25T00:00:00.000Z",
        model="qwen3:32b",
        outcome="broken_off",
        reason="client left",
        complete=False,
    ),
    REFUSED,
    REFUSED | {"key": "unknown:aabbccdd", "reason": "unknown"},
    REFUSED | {"key": "unknown:00112233", "reason": "unknown"},
]


def text_of(*entries: Any) -> str:
    return "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in entries)


class Terminal:
    """A shell in a directory of its own, with a log in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "access.log"
        self.log.write_text(text_of(*LOG))

    def run(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> tuple[str, str]:
        """(output, words on standard error) of `scripts/usage ARGUMENTS`."""
        said = call(cli.main, *arguments, folder=self.folder, stdin=stdin)
        assert said.status == status, said.err
        return said.out, said.err

    def json(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self.run("--format", "json", *arguments, **more)[0])


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def test_a_table_for_people(terminal: Terminal) -> None:
    out, err = terminal.run("access.log")
    assert err == ""
    assert [re.split(r" {2,}", line) for line in out.splitlines()] == [
        ["KEY", "MODEL", "DAY", "REQUESTS", "REFUSED", "FAILED", "BROKEN OFF", "PROMPT", "COMPLETION", "TOKENS/S",
         "TTFT P50", "TTFT P95", "BYTES IN", "BYTES OUT"],
        ["-", "-", "2026-11-23", "1", "1", "0", "0", "0", "0", "-", "-", "-", "100 B", "60 B"],
        ["(unknown)", "-", "2026-11-23", "2", "2", "0", "0", "0", "0", "-", "-", "-", "200 B", "120 B"],
        ["alice", "llama3.2", "2026-11-23", "2", "0", "0", "0", "22", "~2,000", "586.7", "200 ms", "400 ms", "200 B",
         "8 kB"],
        ["bob", "llama3.2", "2026-11-24", "1", "0", "1", "0", "11", "700", "387.9", "200 ms", "200 ms", "100 B",
         "4 kB"],
        ["bob", "qwen3:32b", "2026-11-25", "1", "0", "0", "1", "11", "700", "387.9", "200 ms", "200 ms", "100 B",
         "4 kB"],
        ["total", "7", "3", "1", "1", "44", "~3,400", "484.5", "200 ms", "400 ms", "700 B", "16.2 kB"],
    ]  # fmt: skip
    assert len({len(line) for line in out.splitlines()}) == 1


def test_a_table_for_spreadsheets(terminal: Terminal) -> None:
    rows = list(csv.DictReader(io.StringIO(terminal.run("--format", "csv", "access.log")[0])))
    assert len(rows) == 5
    assert rows[2] == {
        "key": "alice", "model": "llama3.2", "day": "2026-11-23", "requests": "2", "refused": "0", "failed": "0",
        "broken_off": "0", "prompt_tokens": "22", "completion_tokens": "2000", "estimated": "true",
        "tokens_per_second": "586.7", "ttft_p50_ms": "200.0", "ttft_p95_ms": "400.0", "bytes_in": "200",
        "bytes_out": "8000",
    }  # fmt: skip
    assert (rows[0]["key"], rows[0]["ttft_p50_ms"], rows[0]["estimated"]) == ("", "", "false")


def test_a_table_for_programs(terminal: Terminal) -> None:
    said = terminal.json("access.log")
    assert said["rows"][0] | {"key": None, "model": None, "ttft_p50_ms": None, "refused": 1} == said["rows"][0]
    assert said["rows"][2]["completion_tokens"] == 2000
    assert said["rows"][2]["estimated"] is True
    assert said["rows"][3]["estimated"] is False
    assert said["total"]["requests"] == 7
    assert said["broken_lines"] == 0


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("day", [["2026-11-23"], ["2026-11-24"], ["2026-11-25"]]),
        ("model", [["-"], ["llama3.2"], ["qwen3:32b"]]),
        ("day,key", [["2026-11-23", "-"], ["2026-11-23", "(unknown)"], ["2026-11-23", "alice"], ["2026-11-24", "bob"],
                     ["2026-11-25", "bob"]]),
        ("month", [["2026-11"]]),
        ("outcome,reason", [["answered", "-"], ["broken_off", "client"], ["failed", "upstream"], ["refused", "missing"],
                            ["refused", "unknown"]]),
        ("client", [["127.0.0.1"]]),
    ],
)  # fmt: skip
def test_rows_by_what_is_asked_for(terminal: Terminal, by: str, rows: list[list[str]]) -> None:
    out, _ = terminal.run("--by", by, "access.log")
    assert [line.split()[: by.count(",") + 1] for line in out.splitlines()[1:-1]] == rows


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        (("--since", "2026-11-24"), 2),
        (("--until", "2026-11-24"), 6),
        (("--since", "2026-11-24", "--until", "2026-11-24"), 1),
        (("--key", "bob"), 2),
        (("--key", "bob", "--until", "2026-11-24"), 1),
        (("--model", "llama3.2:latest"), 3),
        (("--outcome", "refused", "--reason", "unknown"), 2),
        (("--client", "127.0.0.1", "--until", "2026-11-23"), 5),
        (("--since", "2026-11-25", "--timezone", "Asia/Tokyo"), 1),
        (("--until", "2026-11-23", "--timezone", "America/New_York"), 6),
    ],
)
def test_some_days_or_one_key(terminal: Terminal, options: tuple[str, ...], requests: int) -> None:
    assert terminal.json(*options, "access.log")["total"]["requests"] == requests


def test_several_files_compressed_ones_and_standard_input(terminal: Terminal) -> None:
    packed = gzip.compress(text_of(*LOG).encode())
    (terminal.folder / "old.gz").write_bytes(packed + packed)
    assert terminal.json("access.log", "old.gz", "-", stdin=packed)["total"]["requests"] == 4 * 7
    assert terminal.json("-", stdin=text_of(*LOG).encode())["total"]["requests"] == 7


def test_the_real_command(terminal: Terminal) -> None:
    """What python.sh starts is the program, with the options as they are."""
    script = (ROOT / "scripts" / "usage").read_text()
    assert script == (ROOT / "scripts" / "keys").read_text().replace(" keys ", " usage ")
    assert os.access(ROOT / "scripts" / "usage", os.X_OK)
    said = execute(sys.executable, TOOLS, "usage", "--help", folder=terminal.folder)
    assert (said.status, said.err) == (0, "")
    for option in ("--by", "--format", "--since", "--until", "--key", "exit status"):
        assert option in said.out


BROKEN = [
    b"listening on 8081",
    b"{",
    b"[]",
    b"3",
    b"null",
    b'{"time":5}',
    b"\xff\xfe",
    b"[" * 60_000,
    b"x" * 300_000,
    json.dumps(entry(time=None)).encode(),
    json.dumps(entry(time="2026-13-01T00:00:00Z")).encode(),
    json.dumps(entry(time="20261101T000000Z")).encode(),
    json.dumps(entry(time="9999-12-31T23:59:59Z")).encode(),
    json.dumps(entry(time="0001-01-01T00:00:00Z")).encode(),
    json.dumps(entry(prompt_tokens="12")).encode(),
    json.dumps(entry(prompt_tokens=-1)).encode(),
    json.dumps(entry(completion_tokens=True)).encode(),
    json.dumps(entry(bytes_in=1.5)).encode(),
    json.dumps(entry(bytes_in=10**30)).encode(),
    json.dumps(entry()).replace("4000", "9" * 5000).encode(),
    json.dumps(entry(ttft_ms=float("nan"))).encode(),
    json.dumps(entry(ttft_ms=float("inf"))).encode(),
    json.dumps(entry(ttft_ms="1")).encode(),
    json.dumps(entry(key=["a"])).encode(),
    json.dumps(entry(outcome={"a": 1})).encode(),
    json.dumps(entry(outcome=None)).encode(),
]


def test_broken_lines_are_skipped_and_counted(terminal: Terminal) -> None:
    good = text_of(entry()).encode()
    terminal.log.write_bytes(good + b"\n".join(BROKEN) + b"\n\n \n" + good)
    out, err = terminal.run("--format", "json", "access.log")
    assert json.loads(out)["total"]["requests"] == 2
    assert json.loads(out)["broken_lines"] == len(BROKEN)
    assert err == f"ollama-auth: skipped {len(BROKEN)} lines that the gate did not write so\n"


def test_a_line_that_is_being_written_is_not_broken(terminal: Terminal) -> None:
    whole = text_of(entry())
    for rest, requests in (("", 1), (whole[:50], 1), (whole[:-1], 2)):
        terminal.log.write_text(whole + rest)
        assert terminal.json("access.log")["total"]["requests"] == requests
        assert terminal.json("access.log")["broken_lines"] == 0


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_cell_is_a_formula(terminal: Terminal, name: str) -> None:
    terminal.log.write_text(text_of(entry(model=name, key=name)))
    out, _ = terminal.run("--format", "csv", "access.log")
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["key"], row["model"]) == (f"'{name}", f"'{name}")
    assert terminal.json("access.log")["rows"][0]["model"] == name


def test_no_name_moves_the_cursor(terminal: Terminal) -> None:
    terminal.log.write_text(text_of(entry(model=f"\x1b[2J\r\n\x07{BIDI}\ud800", key="k\0")))
    for form in ("text", "csv"):
        out, _ = terminal.run("--format", form, "access.log")
        assert r"\x1b[2J\r\n\x07\u202e\ud800" in out
        assert r"k\x00" in out
        assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("nowhere.log",), "there is no nowhere.log: name the ledger"),
        (("access.log", "nowhere.log"), "there is no nowhere.log"),
        ((".",), "is a directory"),
        (("empty.log",), "ollama_access_log=PATH"),
        ((), "there is no usage.db: name the file of the ledger"),
        (("forget", "alice"), "there is no usage.db"),
        (("--key", "carol", "access.log"), "leave out --key"),
        (("--since", "2027-01-01", "access.log"), "leave out --key, --since or --until"),
    ],
)
def test_nothing_to_count(terminal: Terminal, arguments: tuple[str, ...], remedy: str) -> None:
    (terminal.folder / "empty.log").touch()
    out, err = terminal.run(*arguments, status=1)
    assert out == ""
    assert remedy in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--by", "key,key", "access.log"),
        ("--by", "day,month", "access.log"),
        ("--timezone", "Mars", "access.log"),
        ("--by", "", "access.log"),
        ("--by", "year", "access.log"),
        ("--format", "xml", "access.log"),
        ("--since", "yesterday", "access.log"),
        ("--since", "2026-02-30", "access.log"),
        ("--since", "2026-11-24", "--until", "2026-11-23", "access.log"),
        ("-", "-"),
    ],
)
def test_a_command_line_that_can_not_be_understood(terminal: Terminal, arguments: tuple[str, ...]) -> None:
    out, err = terminal.run(*arguments, status=2)
    assert out == ""
    assert err.startswith("usage: scripts/usage")


@pytest.mark.slow
def test_a_damaged_file_is_counted_as_far_as_it_goes(terminal: Terminal) -> None:
    packed = gzip.compress(text_of(*LOG * 2000).encode())
    for damaged in (packed[:-9], packed[:-8] + bytes(8)):
        (terminal.folder / "torn.gz").write_bytes(damaged)
        out, err = terminal.run("--format", "json", "torn.gz", status=1)
        assert 0 < json.loads(out)["total"]["requests"] <= 2000 * 7
        assert "torn.gz could not be read to its end" in err


def test_the_log_of_a_real_gate(terminal: Terminal, upstream: Upstream) -> None:
    log = terminal.folder / "real.log"
    with Gate(upstream.url, "--set", f"ollama_access_log={log}") as gate:
        assert ask(gate.port, "POST", "/api/chat", BEARER, body=chat()).status == 200
        assert ask(gate.port, "POST", "/api/chat", body=chat()).status == 401
        assert ask(gate.port, "POST", "/api/chat", "Authorization: Bearer nobody-has-this", body=chat()).status == 401
        wait_until(lambda: log.read_text().count("\n") == 3, "the log to be written")
    said = terminal.json("--by", "key,model", "real.log")
    assert said["broken_lines"] == 0
    assert [[row["key"], row["model"], row["requests"], row["refused"]] for row in said["rows"]] == [
        [None, None, 1, 1], ["(unknown)", None, 1, 1], ["default", "demo", 1, 0]
    ]  # fmt: skip
    assert said["rows"][2]["completion_tokens"] > 0
    assert said["rows"][2]["ttft_p50_ms"] > 0


def test_messages_are_no_requests(terminal: Terminal) -> None:
    """The image writes messages as JSON among the lines, and Docker wraps each line."""
    message = {"time": "2026-11-23T17:04:24.636Z", "message": "listening on *:8081"}
    wrapped = [{"log": text_of(one), "stream": "stdout", "time": "2026-11-23T17:04:25Z"} for one in (entry(), message)]
    plain = {"log": "no JSON\n", "stream": "stderr", "time": "2026-11-23T17:04:25Z"}
    terminal.log.write_text(text_of(message, entry(), *wrapped, plain))
    said = terminal.json("access.log")
    assert (said["total"]["requests"], said["broken_lines"]) == (2, 0)


def test_names_are_bounded(terminal: Terminal) -> None:
    terminal.log.write_text(text_of(entry(model="m" * 1000, key="k" * 1000)))
    (row,) = terminal.json("access.log")["rows"]
    assert (len(row["model"]), len(row["key"])) == (access_logs.MAX_NAME, access_logs.MAX_NAME)


def test_percentiles_are_those_of_all_rows_together(terminal: Terminal) -> None:
    normal = statistics.NormalDist(6, 1)
    times = [round(math.exp(x), 1) for x in normal.samples(3000, seed=7)]
    terminal.log.write_text(text_of(*(entry(ttft_ms=ms, key=f"k{i % 7}") for i, ms in enumerate(times))))
    total = terminal.json("--by", "day", "access.log")["total"]
    assert total["ttft_p50_ms"] == pytest.approx(statistics.median(times), rel=0.03)
    assert total["ttft_p95_ms"] == pytest.approx(statistics.quantiles(times, n=20)[-1], rel=0.03)


# The ledger.


@pytest.fixture
def ledger(terminal: Terminal) -> Path:
    """usage.db, with what is in the log."""
    file = terminal.folder / "usage.db"
    written = Ledger(str(file))
    for line in text_of(*LOG).splitlines():
        if row := access_logs.read(line.encode()):
            written.add(row)
    written.close()
    return file


@pytest.mark.parametrize("by", ["key,model,day", "month", "client,outcome,reason", "hour,key"])
def test_the_ledger_and_the_log_have_the_same_figures(terminal: Terminal, ledger: Path, by: str) -> None:
    for more in ((), ("--key", "bob"), ("--timezone", "Asia/Tokyo", "--since", "2026-11-24")):
        assert terminal.json("--by", by, *more) == terminal.json("--by", by, *more, "access.log")
        assert terminal.run("--by", by, *more, "usage.db")[0] == terminal.run("--by", by, *more, "access.log")[0]


@pytest.mark.parametrize("times", [1, 1000])
def test_all_of_a_report_is_of_one_moment(ledger: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """All connections see the same, also when somebody writes between, once or again and again, and go on to see it."""
    row = access_logs.read(text_of(LOG[0]).encode())
    assert row
    asked, plain = [], usage_ledger.data_version
    with ExitStack() as stack:
        writer = stack.enter_context(closing(open_ledger(str(ledger), write=True)))

        def data_version(connection: sqlite3.Connection) -> int:
            asked.append(connection)
            found = plain(connection)
            if connection is not asked[0] and len(asked) <= 2 * times:
                usage_db.write(writer, [row], {})
            return found

        monkeypatch.setattr(usage_ledger, "data_version", data_version)
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
        connections = [stack.enter_context(closing(one)) for one in usage_ledger.open_all(str(ledger))]
        assert len(connections) == (3 if times == 1 else 1)
        for _ in range(2):
            assert len({(usage_queries.newest(one), len(usage_queries.latest(one))) for one in connections}) == 1
            usage_db.write(writer, [row], {})
        assert usage_queries.newest(writer) > usage_queries.newest(connections[0])


@pytest.mark.parametrize("by", [["key", "model", "day"], ["month", "client", "outcome"], []])
def test_several_connections_take_shares(ledger: Path, monkeypatch: pytest.MonkeyPatch, by: list[str]) -> None:
    with ExitStack() as stack:
        one, *others = [stack.enter_context(closing(open_ledger(str(ledger)))) for _ in range(3)]
        times = partial(usage_queries.first_tokens, one, by, Chosen(), UTC, 7)
        alone = usage_queries.sums(one, by), times()
        monkeypatch.setattr(usage_queries, "PART_ROWS", 2)
        monkeypatch.setattr(usage_queries, "PART_HOURS", 1)
        shared = usage_queries.sums(one, by, others=others), times(others)
        assert shared == alone


def test_the_ledger_of_a_real_gate_and_its_log(terminal: Terminal, upstream: Upstream) -> None:
    log, file = terminal.folder / "real.log", terminal.folder / "real.db"
    with Gate(upstream.url, "--set", f"ollama_access_log={log}", env={"OLLAMA_USAGE_DB": str(file)}) as gate:
        for body in (chat(), chat("demo:latest", stream=False), chat(model="none")):
            ask(gate.port, "POST", "/api/chat", BEARER, body=body)
        ask(gate.port, "POST", "/v1/chat/completions", BEARER, body=chat(stream=True))
        ask(gate.port, "GET", "/api/tags", BEARER)
        ask(gate.port, "POST", "/api/chat", body=chat())
        ask(gate.port, "POST", "/api/chat", "Authorization: Bearer nobody-has-this", body=chat())
        gate.signal()
        assert gate.wait() == 0
    for by in ("key,model,day", "client,outcome,reason"):
        of_log, of_ledger = terminal.json("--by", by, "real.log"), terminal.json("--by", by, "real.db")
        assert of_log == of_ledger
        assert of_log["total"]["requests"] == 7


def test_the_commands_of_the_page(terminal: Terminal, ledger: Path) -> None:
    (terminal.folder / "access.log.1.gz").write_bytes(gzip.compress(text_of(*LOG).encode()))
    page = (ROOT / "scripts" / "docs" / "logging.md").read_text()
    commands = re.findall(r"^scripts/usage (.+)$", page, re.M)
    assert len(commands) == 3
    for command in commands:
        assert terminal.run(*command.split())[0].count("\n") >= 3
    (backup,) = re.findall(r"`python3 -m (sqlite3 usage.db .*?)`", page)
    said = execute(sys.executable, "-m", *shlex.split(backup), folder=terminal.folder)
    assert said.status == 0, said.err
    assert terminal.json("backup.db") == terminal.json("usage.db")


def test_where_the_ledger_is(terminal: Terminal, ledger: Path) -> None:
    assert terminal.json()["total"]["requests"] == 7
    ledger.rename(terminal.folder / "other.db")
    (terminal.folder / ".env.local").write_text("OLLAMA_USAGE_DB=other.db\n")
    assert terminal.json()["total"]["requests"] == 7
    said = call(cli.main, folder=terminal.folder, env=CLEAN | {"OLLAMA_USAGE_DB": "nowhere.db"})
    assert (said.status, said.out) == (1, "")
    assert "there is no nowhere.db" in said.err


def test_a_person_is_taken_out(terminal: Terminal, ledger: Path) -> None:
    before = terminal.json()["total"]
    out, _ = terminal.run("forget", "bob")
    assert out == "bob is taken out of usage.db: 2 requests count for nobody now\n"
    said = terminal.json("--by", "key")
    assert [(row["key"], row["requests"]) for row in said["rows"]] == [
        (None, 1), ("(forgotten)", 2), ("(unknown)", 2), ("alice", 2),
    ]  # fmt: skip
    times = {"ttft_p50_ms": 0, "ttft_p95_ms": 0}
    assert said["total"] | times == before | times, "sums stay"
    assert terminal.json("--by", "client")["total"]["requests"] == 5, "rows are deleted"
    assert b"bob" not in b"".join(one.read_bytes() for one in terminal.folder.glob("usage.db*"))
    assert "has no request of bob" in terminal.run("forget", "bob", status=1)[1]
    terminal.run("forget", "alice", "usage.db")
    assert terminal.json("--by", "key")["rows"][1]["requests"] == 4


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        ("PRAGMA user_version = 99", "is the ledger of another release (version 99)"),
        ("PRAGMA user_version = 0", "is the database of another program"),
    ],
)
def test_a_database_that_is_no_ledger(terminal: Terminal, ledger: Path, spoil: str, remedy: str) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute(spoil)
    assert remedy in terminal.run(status=1)[1]
    assert remedy in terminal.run("forget", "bob", status=1)[1]
    assert "name one ledger" in terminal.run("usage.db", "access.log", status=1)[1]


def test_a_table_that_nobody_reads_to_its_end(terminal: Terminal) -> None:
    terminal.log.write_text(text_of(*(entry(model=f"m{i}") for i in range(5000))))
    command = f"{sys.executable} {TOOLS} usage access.log | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=terminal.folder, capture_output=True, check=True, timeout=120)
    assert done.stdout.startswith(b"KEY")
    assert done.stderr == b""


# Progress.


def test_progress_on_a_terminal_while_lines_come(terminal: Terminal) -> None:
    """Nobody knows how many will come, so that lines are told. What it wrote is gone at the end."""
    if sys.platform == "win32":
        pytest.skip("there are no pseudo-terminals")
    leader, follower = os.openpty()
    command = [sys.executable, TOOLS, "usage", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=follower) as run:
        os.close(follower)
        assert run.stdin
        assert run.stdout
        seen = Reader(leader)
        block = text_of(*[entry()] * 1000).encode()
        sent = 0
        while b"lines" not in seen.data:
            run.stdin.write(block)
            run.stdin.flush()
            sent += 1000
        run.stdin.close()
        assert f"{sent:,}".encode() in run.stdout.read()
    seen.thread.join(10)
    os.close(leader)
    assert re.fullmatch(rb"(\r[\d,]+ lines *)+\r +\r", seen.data)


class Reader:
    """What comes from a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.data = b""
        self._descriptor = descriptor
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while data := os.read(self._descriptor, 4096):
                self.data += data
        except OSError:
            pass  # The other end of a pseudo-terminal was closed.


def test_progress_is_a_share_ten_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sizes = {"one": 100, "two": 300}
    for name, length in sizes.items():
        (tmp_path / name).write_bytes(bytes(length))
    shown = progress.Progress([str(tmp_path / name) for name in sizes])
    shown.tell(50, 1)
    clock[0] += 1
    for _ in range(5):
        shown.tell(50, 1)
    shown.next_file()
    clock[0] += 1
    shown.tell(150, 2)
    shown.tell(200, 2)
    clock[0] += 1
    shown.tell(9999, 3)
    shown.done()
    assert capsys.readouterr().err == "\r12 %\r62 %\r99 %\r    \r"


def test_no_progress_where_nobody_looks(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.Progress([str(terminal.log)])
    shown.tell(50, 1)
    shown.done()
    assert capsys.readouterr().err == ""


def test_a_log_that_is_written_to_meanwhile(terminal: Terminal) -> None:
    """It ends, and counts whole lines only."""
    stop = threading.Event()

    def write() -> None:
        with terminal.log.open("a") as log:
            while not stop.wait(0.001):
                log.write(text_of(entry()))
                log.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        before = terminal.json("access.log")["total"]["requests"]
        wait_until(lambda: terminal.json("access.log")["total"]["requests"] > before, "it to see more")
        assert terminal.json("access.log")["broken_lines"] == 0
    finally:
        stop.set()
        writer.join()
