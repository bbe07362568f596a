"""The stamp of a file, which tells that it was changed."""

import os
import time
from pathlib import Path

from ollama_auth.auth.keys_file import load
from ollama_auth.auth.watched_file import stamp
from tests.harness.keys_file import A, B, key, written


def test_a_stamp_stays_while_a_file_is_only_read(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml")
    before = stamp(file)
    load(file)
    assert before
    assert stamp(file) == stamp(str(file)) == before


def test_a_stamp_is_none_while_there_is_no_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert stamp(file) is stamp(file / "below") is stamp("keys\0.toml") is None
    assert stamp(written(file)) is not None
    file.unlink()
    assert stamp(file) is None


def test_a_stamp_tells_a_rename_from_what_was(tmp_path: Path) -> None:
    file, other = written(tmp_path / "keys.toml"), written(tmp_path / "other")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    before = stamp(file)
    other.rename(file)
    assert stamp(file) != before


def test_a_stamp_tells_what_was_written_into_a_file(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml", key(sha256=A))
    os.utime(file, (1, 1))
    before = stamp(file)
    with file.open("r+") as opened:
        opened.truncate()
        opened.write(key(sha256=B))
    assert stamp(file) != before


def test_a_stamp_tells_a_change_that_leaves_size_and_time(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml", key(sha256=A))
    os.utime(file, ns=(1, 1))
    before = stamp(file)
    time.sleep(0.02)  # The clock of a file system ticks every few milliseconds.
    written(file, key(sha256=B))
    os.utime(file, ns=(1, 1))
    assert stamp(file) != before


def test_a_stamp_tells_a_swap_of_the_directory_behind_links(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: keys.toml -> ..data/keys.toml, and ..data -> the directory of a version."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        os.utime(written(tmp_path / version / "keys.toml"), ns=(1, 1))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.toml").symlink_to("..data/keys.toml")
    before = stamp(tmp_path / "keys.toml")
    (tmp_path / "..data_tmp").symlink_to("v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert stamp(tmp_path / "keys.toml") != before
