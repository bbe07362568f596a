"""Lines reach a file in their order, rotated and private where asked; test_access_log.py has disks that fail."""

import threading
from pathlib import Path

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

    def slow(text: str) -> None:
        entered.set()
        ready.wait(PATIENCE)
        write(text)

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
        (one if text[0] == "1" else two)._write(text + "\n")
    one._write("3" * 9 + "\n")
    two._write("4" * 9 + "\n")
    one._write("5" * 9 + "\n")
    for writer in (one, two):
        writer.close()
    assert (tmp_path / "log").read_text().split() == ["3" * 9, "4" * 9, "5" * 9]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["log", "log.1"]
