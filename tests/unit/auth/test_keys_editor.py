"""The keys file is changed by functions: one writer at a time, nothing else touched. See also test_keys_cli.py."""

import base64
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from ollama_auth.auth import cut_off, keys_editor, keys_file
from ollama_auth.auth.keys import DEFAULT_SCOPES, Key, KeyRing, Principal, Scope
from ollama_auth.auth.keys_file import KeysFileError

HOUR = timedelta(hours=1)
SSH = f"ssh-ed25519 {base64.b64encode(b'\0\0\0\x0bssh-ed25519\0\0\0\x20' + bytes(32)).decode()} bob@laptop"
WRITTEN = f"""\
# The keys of the lab.

[[keys]]  # the first
name = "alice"  # Room 7
sha256 = "{"aa" * 32}"   # made in May
scopes = [
  "list",  # small
]

# Bob's laptop, until June.
[[keys]]
"name" = 'bob'
"sha256" = '{"bb" * 32}'
# The end.
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(WRITTEN)
    path.chmod(0o600)
    return path


def ring(file: Path) -> KeyRing:
    return KeyRing(keys_file.load(file)[0])


def who(file: Path, name: str) -> Principal:
    return ring(file).principals[name]


def fault(do: Callable[[], object]) -> str:
    with pytest.raises(KeysFileError) as caught:
        do()
    return str(caught.value)


def test_a_life_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = keys_editor.add(file, "carol", {"scopes": ["admin", "list"], "note": "Büro 7", "expires": "30d"})
    assert key is not None
    assert ring(file).find(key.encode()) == who(file, "carol")
    assert who(file, "carol").scopes == frozenset({Scope.ADMIN, Scope.LIST})
    assert who(file, "carol").note == "Büro 7"
    keys_editor.edit(file, "carol", {"scopes": None, "note": "Room 8", "models": ["a", "b*"], "expires": None})
    assert who(file, "carol") == Principal("carol", DEFAULT_SCOPES, ("a", "b*"), note="Room 8")
    keys_editor.edit(file, "carol", {"disabled": True})
    assert who(file, "carol").disabled
    keys_editor.edit(file, "carol", {"disabled": True})
    rotated = keys_editor.rotate(file, "carol", HOUR)
    keys_editor.edit(file, "carol", {"disabled": None})
    keys_editor.edit(file, "carol", {"disabled": None})
    assert not who(file, "carol").disabled
    assert [ring(file).find(one.encode()) for one in (key, rotated.key)] == [who(file, "carol")] * 2
    keys_editor.revoke(file, "carol")
    assert ring(file).principals == {}
    assert keys_editor.add(file, "bob", {"ssh_ed25519": SSH}) is None
    assert ring(file).find_ssh(bytes(32)) == who(file, "bob")


def test_a_change_touches_nothing_else(file: Path) -> None:
    keys_editor.edit(file, "alice", {"note": 'says "hi"', "requests_per_minute": 5})
    expected = WRITTEN.replace("]\n\n# Bob", ']\nnote = "says \\"hi\\""\nrequests_per_minute = 5\n\n# Bob')
    assert file.read_text() == expected
    keys_editor.edit(file, "alice", {"note": None, "requests_per_minute": None})
    assert file.read_text() == WRITTEN


def test_lines_end_as_they_did_and_a_mark_stays(file: Path) -> None:
    """Also where Windows and Unix have both written into a file."""
    lines = WRITTEN.split("\n")
    mixed = "".join(line + ("\r\n" if number % 3 else "\n") for number, line in enumerate(lines[:-1]))
    for first in ("# First.\n", "# First.\r\n"):
        for mark in (b"", b"\xef\xbb\xbf"):
            for cut in (0, 2):
                start = mark + first.encode() + mixed.encode()
                start = start[: len(start) - cut]
                file.write_bytes(start)
                keys_editor.add(file, "carol", {})
                added = file.read_bytes()
                assert added.startswith(start.rstrip())
                keys_editor.edit(file, "bob", {"note": "x"})
                before, _, after = file.read_bytes().partition(b'note = "x"')
                assert added.startswith(before)
                assert added.endswith(after.removeprefix(b"\r").removeprefix(b"\n"))
                keys_editor.edit(file, "bob", {"note": None})
                assert file.read_bytes() == added
                keys_editor.revoke(file, "carol")
                assert file.read_bytes().rstrip() == start.rstrip()
                end = first.removeprefix("# First.").encode()
                made = added[len(start.rstrip()) :].partition(b"\n")[2]
                assert (made.count(b"\n"), made.count(b"\r")) == (made.count(end), made.count(b"\n") * (len(end) - 1))


def test_what_a_key_loses_on_purpose_is_no_cut_off_file(file: Path) -> None:
    """The gate refuses a file whose last key has lost a restriction and whose end is nowhere said."""
    keys_editor.edit(file, "bob", {"disabled": True})
    keys_editor.edit(file, "bob", {"scopes": ["list"], "requests_per_minute": 1})
    before = ring(file)
    assert cut_off.END not in file.read_text()
    keys_editor.edit(file, "bob", {"disabled": None})
    assert cut_off.END in file.read_text()
    assert keys_file.load(file, before)
    keys_editor.edit(file, "bob", {"scopes": None, "requests_per_minute": None})
    assert file.read_text().count(cut_off.END) == 1
    assert keys_file.load(file, before)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scopes": ["pul"]}, "scopes number 1 is not a valid scope; did you mean pull?"),
        ({"models": []}, "models is empty; leave it out for the default"),
        ({"expires": "yesterday"}, "expires is not a time; write it as in 30d"),
        ({"expires": "2020-01-01"}, "expires is over already; name a time to come"),
        ({"expires": 5}, "expires is not a date"),
        ({"requests_per_minute": True}, "requests_per_minute is not a whole number"),
        ({"disabled": "yes"}, "disabled is neither true nor false; write one of them without quotes"),
        ({"note": "two\nlines"}, "note is not one line of up to 256 characters"),
        ({"note": "\ud800"}, "note is not one line"),
        ({"note": "x" * 257}, "note is not one line"),
        ({"model": ["a"]}, "there is no field model; did you mean models?"),
        ({"models": ["\ud800"]}, "models number 1 is not a valid name of a model"),
        ({"models": {"a": "b"}}, "models is not a list"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_changed(file: Path, fields: dict[str, object], words: str) -> None:
    assert words in fault(lambda: keys_editor.edit(file, "bob", fields))
    assert words in fault(lambda: keys_editor.add(file, "carol", fields))
    assert file.read_text() == WRITTEN


def test_what_is_no_value_can_not_be_edited(file: Path) -> None:
    for field in ("name", "sha256", "ssh_ed25519", "previous_sha256", "previous_until"):
        assert f"{field} can't be edited; rotate the key" in fault(lambda: keys_editor.edit(file, "bob", {field: None}))  # noqa: B023
    assert "has no key bo; did you mean bob?" in fault(lambda: keys_editor.edit(file, "bo", {"disabled": True}))
    assert "name is not 1 to 64 letters" in fault(lambda: keys_editor.add(file, "a b", {}))
    assert "has a key bob already" in fault(lambda: keys_editor.add(file, "bob", {}))
    assert file.read_text() == WRITTEN


def test_a_change_that_would_touch_others_is_not_made(file: Path) -> None:
    def change(old: str, new: str) -> Callable[[str, object], str]:
        return lambda text, _: text.replace(old, new)

    assert "was left alone, as others than alice would change; edit it by hand" in fault(
        lambda: keys_editor.change(file, "alice", change("bb", "cc"))
    )
    assert "was left alone, as it would become faulty: " in fault(
        lambda: keys_editor.change(file, "alice", change("scopes", "x"))
    )
    assert file.read_text() == WRITTEN


def test_a_reader_sees_the_old_file_or_the_new_one(file: Path) -> None:
    file.write_text("# Nobody.\n")
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            seen.append(len(keys_file.load(file)[0]))

    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read)
        for number in range(50):
            keys_editor.add(file, f"user-{number}", {})
        done.set()
        reading.result()
    assert seen == sorted(seen)
    assert len(ring(file)) == 50


def test_what_a_killed_writer_left_is_removed(file: Path) -> None:
    outside = file.with_name("outside")
    outside.write_text("mine")
    (left := file.with_name(".keys.toml.new")).symlink_to(outside)
    keys_editor.edit(file, "bob", {"disabled": True})
    assert (left.exists(), left.is_symlink(), outside.read_text()) == (False, False, "mine")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else")
def test_whose_permission_is_missing() -> None:
    """The lock that root made, and a folder of somebody else, are named with their owner."""
    folder = Path(tempfile.mkdtemp())  # pytest's own one is closed to others.
    (file := folder / "keys.toml").write_text(WRITTEN)
    for path, mode in ((folder, 0o755), (file, 0o600)):
        path.chmod(mode)
        os.chown(path, 4321, 4321)
    keys_editor.edit(file, "bob", {"disabled": True})
    lock = folder / ".keys.toml.lock"
    assert [path.stat().st_uid for path in (file, lock)] == [4321, 4321], "as root, for its owner"
    file.chmod(0o644)

    def fault_as(user: int) -> str:
        os.seteuid(user)
        try:
            return fault(lambda: keys_editor.edit(file, "bob", {"disabled": None}))
        finally:
            os.seteuid(0)

    try:
        assert f"{lock} can't be written (Permission denied); run this as its owner" in fault_as(4322)
        lock.unlink()
        assert f"{folder} can't be written (Permission denied); run this as its owner" in fault_as(4322)
        folder.chmod(0o777)
        assert f"{file} can't be written (Operation not permitted); run this as its owner" in fault_as(4322)
        assert not file.with_name(".keys.toml.new").exists()
        lock.unlink()
        os.setegid(4321)
        os.seteuid(4321)
        keys_editor.edit(file, "bob", {"disabled": None})
        os.seteuid(0)
        assert Key(bytes.fromhex("bb" * 32), who(file, "bob")) in keys_file.load(file)[0]
    finally:
        os.seteuid(0)
        os.setegid(0)
        shutil.rmtree(folder)
