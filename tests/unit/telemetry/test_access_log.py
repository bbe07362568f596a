"""One line a request, and nothing from outside can make it two or say more than it should."""

import json
import os
import signal
import sys
import threading
from datetime import datetime
from errno import ENOSPC
from io import FileIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.exchange import Exchange
from ollama_auth.ollama_api.routes import route
from ollama_auth.ollama_api.usage import UsageReader
from ollama_auth.telemetry import line_writer
from ollama_auth.telemetry.access_log import (
    MAX_MODEL,
    MAX_NAMES,
    MAX_PATH,
    AccessLog,
    as_json,
    as_text,
    escape,
    escape_name,
    names,
    path,
    record,
)
from tests.harness.base import BEARER, wait_until
from tests.harness.cases import each_of
from tests.harness.gate import Gate
from tests.harness.upstream import Upstream
from tests.harness.wire import ask, chat

FIELDS = ["time", "id", "client", "key", "method", "path", "status", "outcome", "reason", "stripped"]
FIELDS += ["bytes_in", "bytes_out", "duration_ms", "ttft_ms"]
PATIENCE = 10.0
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""All that str.splitlines takes for one."""


def exchange(target: bytes = b"/api/chat", **more: Any) -> Exchange:
    """An exchange that began at 0 seconds and took 1.5."""
    found = route(b"POST", target)
    fields: dict[str, Any] = {
        "method": "POST",
        "id": "id",
        "time": 0.0,
        "started": 100.0,
        "ended": 101.5,
        "status": 200,
    }
    return Exchange("10.0.0.1", route=found, path=found.path, **(fields | more))


def lines_of(file: Path) -> list[str]:
    return file.read_text("ascii").splitlines()


def test_all_fields_in_their_order() -> None:
    full = record(exchange(key="anna", reason="why", stripped=("cookie",), bytes_in=1, bytes_out=2, first_byte=100.25))
    assert list(full) == FIELDS
    assert full == {
        "time": "1970-01-01T00:00:00.000Z",
        "id": "id",
        "client": "10.0.0.1",
        "key": "anna",
        "method": "POST",
        "path": "/api/chat",
        "status": 200,
        "outcome": "refused",
        "reason": "why",
        "stripped": ["cookie"],
        "bytes_in": 1,
        "bytes_out": 2,
        "duration_ms": 1500.0,
        "ttft_ms": 250.0,
    }


def test_what_does_not_apply_is_left_out() -> None:
    nothing = Exchange("10.0.0.1", id="id", time=0.0, started=100.0)
    assert set(record(nothing)) == {"time", "id", "client", "outcome", "bytes_in", "bytes_out", "duration_ms"}
    assert as_text(nothing) == "1970-01-01T00:00:00.000Z id 10.0.0.1 - - - - in=0 out=0 0.0ms"


USAGE_FIELDS = ["prompt_tokens", "completion_tokens", "complete"]


def answered(usage: bytes, **more: Any) -> Exchange:
    """An exchange whose answer was a stream with that last line, and took half a second from its first token on."""
    seen = exchange(**more)
    assert seen.route
    seen.usage = UsageReader(seen.route.usage, "application/x-ndjson", "", 200)
    seen.response_chunk(b'{"model":"m","message":{"content":"a"},"done":false}\n' * 2 + usage)
    seen.first_byte, seen.first_token, seen.last_token, seen.ended = 100.1, 100.25, 100.75, None
    seen.finish()
    seen.ended = 101.5
    return seen


WHOLE = b'{"model":"m","done":true,"prompt_eval_count":5,"eval_count":3}\n'


def test_what_an_answer_used_follows() -> None:
    full = record(answered(WHOLE, key="anna"))
    assert list(full)[-3:] == USAGE_FIELDS
    assert [full[name] for name in ("model", "stream", "ttft_ms", *USAGE_FIELDS)] == ["m", True, 250.0, 5, 3, True]
    assert as_text(answered(WHOLE)).endswith("1500.0ms first=250.0ms model=m tokens=5+3 speed=4.0/s")


def test_a_cut_answer_is_marked_and_its_tokens_are_an_estimate() -> None:
    full = record(answered(b"", reason="client left"))
    assert (full["completion_tokens"], full["complete"], full["estimated"]) == (2, False, True)
    assert "prompt_tokens" not in full
    assert as_text(answered(b"", reason="client left")).endswith("tokens=?+~2 speed=2.0/s incomplete")


def test_an_answer_with_an_error_tells_of_no_tokens() -> None:
    assert not {"stream", *USAGE_FIELDS} & set(record(answered(WHOLE, status=404)))


def test_a_compressed_answer_is_marked() -> None:
    seen = exchange()
    assert seen.route
    seen.usage, seen.ended = UsageReader(seen.route.usage, "application/json", "gzip", 200), None
    seen.finish()
    assert record(seen)["compressed"] is True
    assert "completion_tokens" not in record(seen)


def test_the_name_of_a_model_is_bounded_and_adds_no_word() -> None:
    assert len(str(record(exchange(model="m" * 1000))["model"])) == MAX_MODEL
    assert as_text(exchange(model="a b\n")).endswith(" model=a\\x20b\\x0a")


def test_a_line_to_read() -> None:
    line = as_text(exchange(key="anna", status=401, reason="unknown", stripped=("cookie", "te"), first_byte=100.2))
    assert line == (
        "1970-01-01T00:00:00.000Z id 10.0.0.1 anna POST /api/chat 401 (unknown) in=0 out=0 1500.0ms stripped=cookie,te"
    )


def test_a_line_of_json() -> None:
    assert json.loads(as_json(exchange(key="anna"))) == record(exchange(key="anna"))


def test_the_time_is_in_utc_and_can_be_read_back() -> None:
    text = str(record(exchange(time=1790000000.1234))["time"])
    assert datetime.fromisoformat(text).timestamp() == 1790000000.123


def test_a_query_is_never_logged() -> None:
    seen = exchange(b"/api/chat?key=sk-ollama-0123456789abcdef&prompt=private")
    assert path(seen) == "/api/chat"
    assert "private" not in as_text(seen) + as_json(seen)


@each_of(
    ("target", "shown"),
    [
        (b"/", "/"),
        (b"/%61pi", "/api"),
        (b"/a%20b", "/a\\x20b"),
        (b"/a%0Ab", "/a\\x0ab"),
        (b"/a%0D%0Ab", "/a\\x0d\\x0ab"),
        (b"/%1b[2J", "/\\x1b[2J"),
        (b"/%00", "/\\x00"),
        (b"/%E2%80%A8", "/\\xe2\\x80\\xa8"),
        (b"/%C2%85", "/\\xc2\\x85"),
        (b"/\\x0a", "/\\x5cx0a"),
        (b"/%3Fkey=1", "/?key=1"),
        (b"/" + b"a" * MAX_PATH, "/" + "a" * (MAX_PATH - 1) + "..."),
        (b"/" + b"%0A" * MAX_PATH, "/" + "\\x0a" * (MAX_PATH - 1) + "..."),
        (b"/" + b"a" * (MAX_PATH - 1), "/" + "a" * (MAX_PATH - 1)),
    ],
)
def test_a_path_is_decoded_escaped_and_bounded(target: bytes, shown: str) -> None:
    assert path(exchange(target)) == shown


@given(st.binary())
def test_escape_never_yields_a_line_end_or_anything_but_printable_ascii(raw: bytes) -> None:
    text = escape(raw)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert not set(LINE_ENDS) & set(text)


@given(st.binary())
def test_escape_loses_nothing(raw: bytes) -> None:
    assert text_of(escape(raw)) == raw


def text_of(escaped: str) -> bytes:
    return escaped.encode("ascii").decode("unicode_escape").encode("latin-1")


@given(st.text())
def test_the_name_of_a_header_is_escaped_likewise(name: str) -> None:
    assert escape_name(name).isascii()
    assert escape_name(name).isprintable()


outside = st.text(max_size=12) | st.sampled_from(
    ["POST / 200\n1970 forged", "a\rb", "\x1b[2J", "\x85", "\u2028", "a b"]
)


@given(st.binary(max_size=40), outside, st.lists(outside, max_size=3))
def test_nothing_from_outside_ends_a_line_or_adds_a_word(raw: bytes, method: str, stripped: list[str]) -> None:
    """In HTTP/2 a method may be any text without line ends, so that it is no better than a path."""
    seen = exchange(key="anna", reason="unknown", stripped=tuple(stripped))
    seen.path, seen.method = raw, method
    for line in (as_text(seen), as_json(seen)):
        assert line.isascii()
        assert line.isprintable()
    assert len(as_text(seen).split(" ")) == 11 + bool(stripped)
    assert json.loads(as_json(seen))["bytes_out"] == 0


@each_of(
    "novel",
    [
        {"method": "A" * 30_000},
        {"stripped": ("a" * 30_000,)},
        {"stripped": tuple(f"header-{n}" for n in range(10_000))},
    ],
)
def test_a_novel_does_not_fill_the_log(novel: dict[str, Any]) -> None:
    assert len(as_text(exchange(**novel))) < 1000
    assert len(as_json(exchange(**novel))) < 1000


def test_that_more_headers_were_stripped_is_told() -> None:
    assert names([str(n) for n in range(MAX_NAMES)]) == [str(n) for n in range(MAX_NAMES)]
    assert names([str(n) for n in range(MAX_NAMES + 1)]) == [*(str(n) for n in range(MAX_NAMES)), "..."]


# Where lines go.


def test_readable_lines_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog()
    log.write(exchange())
    log.write(exchange(key="anna"))
    log.close()
    assert capfd.readouterr().out.splitlines() == [as_text(exchange()), as_text(exchange(key="anna"))]


def test_json_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("-")
    log.write(exchange())
    log.close()
    assert json.loads(capfd.readouterr().out) == record(exchange())


def test_json_in_a_file_that_is_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for key in ("anna", "ben"):
        log = AccessLog(str(file))
        log.write(exchange(key=key))
        log.close()
    assert [json.loads(line)["key"] for line in lines_of(file)] == ["anna", "ben"]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = AccessLog(str(file))
    log.write(exchange(key="anna"))
    log.reopen()
    log.write(exchange(key="ben"))
    log.close()
    assert [json.loads(line)["key"] for line in lines_of(file)] == ["anna", "ben"]
    log = AccessLog(str(file))
    file.rename(tmp_path / "old")
    log.write(exchange(key="carl"))
    log.reopen()
    log.write(exchange(key="dora"))
    log.close()
    assert [len(lines_of(tmp_path / name)) for name in ("old", "log")] == [3, 1]


def test_every_line_is_there_in_its_order(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"))
    for number in range(1000):
        log.write(exchange(bytes_in=number))
    log.close()
    assert [json.loads(line)["bytes_in"] for line in lines_of(tmp_path / "log")] == list(range(1000))


def test_readable_lines_for_a_function() -> None:
    taken: list[str] = []
    log = AccessLog(None, taken.append)
    log.write(exchange())
    log.close()
    assert taken == [as_text(exchange())]


def test_a_file_wins_over_a_function(tmp_path: Path) -> None:
    taken: list[str] = []
    log = AccessLog(str(tmp_path / "log"), taken.append)
    log.write(exchange())
    log.close()
    assert (len(lines_of(tmp_path / "log")), taken) == (1, [])


@pytest.mark.parametrize("name", ["", "no/such/directory/log"])
def test_a_file_that_can_not_be_written_is_an_error_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"directory"):
        AccessLog(str(tmp_path / name))


def test_closing_is_harmless_whenever(tmp_path: Path) -> None:
    unused = AccessLog(str(tmp_path / "log"))
    unused.close()
    used = AccessLog(str(tmp_path / "log"))
    used.write(exchange())
    used.close()
    used.close()
    assert len(lines_of(tmp_path / "log")) == 1


# Disks and pipes that fail.


class Disk(FileIO):
    """A file on a disk with room for some bytes. `full` is set once there was none; writing waits for `ready`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")
        self.path = str(path)
        self.room = 0
        self.entered, self.ready, self.full = threading.Event(), threading.Event(), threading.Event()
        self.ready.set()

    def write(self, data: Any) -> int:
        self.entered.set()
        self.ready.wait(PATIENCE)
        piece = bytes(data)[: self.room]
        self.room -= len(piece)
        if not piece:
            self.full.set()
            raise OSError(ENOSPC, "No space left on device")
        return super().write(piece)

    def content(self) -> list[str]:
        with FileIO(self.path) as file:
            return file.readall().decode("ascii").splitlines()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path / "log")
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    return disk


LOST = "the access log can't be written (No space left on device): lines are lost until it can"


def test_a_full_disk_costs_lines_and_says_so_once(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("log")
    for _ in range(3):
        disk.full.clear()
        log.write(exchange())
        assert disk.full.wait(PATIENCE)
    log.close()
    assert caplog.messages == [LOST]


def test_what_a_full_disk_tore_does_not_spoil_the_next_line(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("log")
    disk.room = 20
    log.write(exchange())
    assert disk.full.wait(PATIENCE)
    disk.room = 10_000
    log.write(exchange(key="anna"))
    log.close()
    assert caplog.messages == [LOST, "the access log is written again; 1 lines were lost"]
    assert disk.content() == [as_json(exchange())[:20], as_json(exchange(key="anna"))]


def test_a_slow_disk_costs_lines_and_never_a_request(
    disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line is being written, one waits, and there is no room for a third."""
    monkeypatch.setattr(line_writer, "MAX_WAITING", 1)
    disk.room = 10_000
    disk.ready.clear()
    log = AccessLog("log")
    log.write(exchange(bytes_in=0))
    assert disk.entered.wait(PATIENCE)
    for number in (1, 2, 3):
        log.write(exchange(bytes_in=number))
    log.close(timeout=0.01)  # Gives up in time.
    disk.ready.set()
    log.close()
    assert [json.loads(line)["bytes_in"] for line in disk.content()] == [0, 1]
    assert caplog.messages == ["the access log is written again; 2 lines were lost"]


def test_a_standard_output_that_takes_a_few_bytes_at_a_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SimpleNamespace(write=lambda fd, data: os.write(fd, data[:7]))
    monkeypatch.setattr(line_writer, "os", few)
    log = AccessLog("-")
    for number in range(3):
        log.write(exchange(bytes_in=number))
    log.close()
    assert [json.loads(line)["bytes_in"] for line in capfd.readouterr().out.splitlines()] == [0, 1, 2]


def test_a_standard_output_that_was_closed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    closed = StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    log = AccessLog()
    log.write(exchange())
    log.close()
    assert caplog.messages == ["the access log can't be written (it is closed): lines are lost until it can"]


def test_sighup_opens_both_logs_anew(upstream: Upstream, tmp_path: Path) -> None:
    """As logrotate does: move the files away, send SIGHUP; no line is lost between."""
    files = [tmp_path / "access.log", tmp_path / "audit.log"]
    options = ("--set", f"ollama_access_log={files[0]}", "--set", f"ollama_audit_log={files[1]}")
    with Gate(upstream.url, *options) as gate:
        for moved in (False, True):
            if moved:
                for file in files:
                    file.rename(file.with_suffix(".1"))
                gate.signal(signal.SIGHUP)
            identity = ask(gate.port, "POST", "/api/chat", BEARER, body=chat()).headers["x-request-id"]
            wait_until(lambda: written(tmp_path).count(identity) == 2, "its lines")  # noqa: B023, at once
        for file in files:
            wait_until(file.exists, f"{file.name} to be there again")
        ask(gate.port, "GET", "/api/tags", BEARER)
        wait_until(lambda: "/api/tags" in files[0].read_text(), "a line in the new file")


def written(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.iterdir())
