"""Lines reach a file in their order, rotated and private where asked; test_access_log.py has disks that fail."""

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ollama_auth.telemetry import line_writer
from ollama_auth.telemetry.line_writer import LineWriter

PATIENCE = 10.0


def test_a_private_file_is_its_owners_alone_also_one_that_was_open_to_all(tmp_path: Path) -> None:
    (old := tmp_path / "old").touch(0o644)
    for path in (old, tmp_path / "new"):
        LineWriter("it", str(path), private=True).close()
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_file_is_put_aside_and_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(5):
        writer = LineWriter("it", str(path), private=True, rotate_at=10, keep=2)
        writer.write(f"line {number}!")
        writer.close()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "log": "line 4!\n",
        "log.1": "line 3!\n",
        "log.2": "line 2!\n",
    }
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_a_line_longer_than_a_file_may_be_is_written_whole(tmp_path: Path) -> None:
    writer = LineWriter("it", str(tmp_path / "log"), rotate_at=10, keep=1)
    writer.write("a" * 100)
    writer.close()
    assert (tmp_path / "log").read_text() == "a" * 100 + "\n"


def test_a_file_that_can_not_be_opened_anew_stays_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    writer = LineWriter("it", str(folder / "log"))
    writer.write("one")
    (tmp_path / "folder").rename(tmp_path / "moved")
    writer.reopen()
    writer.write("two")
    writer.close()
    assert (tmp_path / "moved" / "log").read_text() == "one\ntwo\n"
    assert caplog.messages == ["it can't be written (No such file or directory): lines are lost until it can"]


def test_what_waits_is_bounded_in_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "MAX_WAITING_CHARACTERS", 10)
    entered, ready = threading.Event(), threading.Event()
    writer = LineWriter("it", str(tmp_path / "log"))
    write = writer._write

    def slow(data: bytes) -> tuple[int, Exception | None]:
        entered.set()
        ready.wait(PATIENCE)
        return write(data)

    monkeypatch.setattr(writer, "_write", slow)
    writer.write("123456")
    assert entered.wait(PATIENCE)
    writer.write("too long")
    writer.write("fits")
    ready.set()
    writer.close()
    assert (tmp_path / "log").read_text() == "123456\nfits\n"


def test_of_two_that_write_one_file_one_puts_it_aside(tmp_path: Path) -> None:
    """Else the other would put aside the new one, and of so many old files half would be all but empty."""
    one, two = (LineWriter("it", str(tmp_path / "log"), rotate_at=30, keep=3) for _ in range(2))
    for text in ("1" * 19, "2" * 9):
        (one if text[0] == "1" else two)._attempt([text])
    one._attempt(["3" * 9])
    two._attempt(["4" * 9])
    one._attempt(["5" * 9])
    for writer in (one, two):
        writer.close()
    assert (tmp_path / "log").read_text().split() == ["3" * 9, "4" * 9, "5" * 9]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["log", "log.1"]


def test_of_all_the_old_files_none_is_deleted_unless_it_was_told(tmp_path: Path) -> None:
    writer = LineWriter("it", str(tmp_path / "log"), rotate_at=10)
    for number in range(12):
        writer._attempt([f"line {number:02}!"])
    writer.close()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "log": "line 11!\n",
        **{f"log.{11 - number}": f"line {number:02}!\n" for number in range(11)},
    }


def test_a_file_that_can_not_be_put_aside_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    writer = LineWriter("it", str(tmp_path / "log"), rotate_at=10)
    monkeypatch.setattr(Path, "replace", fail)
    for number in range(3):
        writer._attempt([f"line {number}!"])
    writer.close()
    assert (tmp_path / "log").read_text() == "line 0!\nline 1!\nline 2!\n"
    assert caplog.messages == ["it can't be put aside (Permission denied): it grows beyond its size"]


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "Invalid argument"), ValueError(), RuntimeError()])
def test_nothing_that_a_wait_raises_ends_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    entered = threading.Semaphore(0)

    def fail(_: float) -> None:
        entered.release()
        raise error

    monkeypatch.setattr(line_writer, "time", SimpleNamespace(sleep=fail))
    writer = LineWriter("it", str(tmp_path / "log"))
    for number in range(5):
        writer.write(f"line {number}")
        assert entered.acquire(timeout=PATIENCE)
    writer.close()
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(5)]


def test_a_line_that_can_not_be_made_is_lost_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise MemoryError

    writer = LineWriter("it", str(tmp_path / "log"))
    writer._attempt(["one"])
    writer._attempt([fail])
    writer._attempt(["two", lambda: b"three", "half a pair \ud800"])
    writer.close()
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nhalf a pair \\ud800\n"
    assert caplog.messages == [
        "it can't be written (MemoryError): lines are lost until it can",
        "it is written again; 1 lines were lost",
    ]


@pytest.mark.parametrize("moment", ["the start", "a hang-up"])
def test_a_line_that_was_torn_before_does_not_spoil_the_next_one(tmp_path: Path, moment: str) -> None:
    """By a full disk or a kill: what is in the file counts, not what this process remembers."""
    path = tmp_path / "log"
    if moment == "the start":
        path.write_text("one\nto")
    writer = LineWriter("it", str(path))
    if moment == "a hang-up":
        writer._attempt(["one"])
        with path.open("a") as other:
            other.write("to")
        writer._reopen()
    writer._attempt(["two"])
    writer.close()
    assert path.read_text() == "one\nto\ntwo\n"


def test_a_torn_line_that_was_emptied_away(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("to")
    writer = LineWriter("it", str(path))
    path.write_text("")  # As logrotate's copytruncate does.
    writer._attempt(["one"])
    writer.close()
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("room", range(16))
def test_lines_that_were_lost_are_counted_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    """Of some that are written at once, with room for so many bytes; a line is whole once all but its end is there."""
    path = tmp_path / "log"
    writer = LineWriter("it", str(path))
    assert writer._file
    left = [room]

    def write(data: bytes) -> int:
        piece = data[: left[0]]
        if not piece:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(piece)
        return file.write(piece)

    file = writer._file
    monkeypatch.setattr(writer, "_file", SimpleNamespace(write=write, fileno=file.fileno, close=file.close))
    writer._attempt(["aaa", "bbb", "ccc"])
    writer._dropped += 2
    left[0] = 100
    writer._attempt(["ddd"])
    writer.close()
    found = path.read_text().splitlines()
    whole = [line for line in found if len(line) == 3]
    assert found[-1] == "ddd"
    lost = 3 + 1 + 2 - len(whole)
    assert f"it is written again; {lost} lines were lost" in caplog.messages
