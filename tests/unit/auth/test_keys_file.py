"""A keys file is parsed whole: it gives keys, or says all that is wrong with it."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_auth.auth.key_fields import FIELDS
from ollama_auth.auth.keys import DEFAULT_SCOPES, Key, KeyRing, Principal, Scope
from ollama_auth.auth.keys_file import MAX_FILE, KeysFileError, load, parse
from ollama_auth.auth.watched_file import stamp
from tests.harness.cases import each_of
from tests.harness.keys_file import NEW_YEAR, PUBLIC, SECRET, SSH, A, B, faults, key, the, written


def test_a_file_as_in_the_readme() -> None:
    text = f"""
        [[keys]]
        name = "alice"
        sha256 = "{hashlib.sha256(SECRET.encode()).hexdigest()}"
        scopes = ["infer", "pull"]
        models = ["llama3.2", "qwen*"]
        expires = 2027-01-01T00:00:00Z
        requests_per_minute = 60
        concurrent_requests = 2
        tokens_per_day = 200_000
        [[keys]]
        name = "bob-laptop"
        ssh_ed25519 = "{SSH}"
        """
    ring = KeyRing(parse(text.encode(), "keys.toml"))
    alice = Principal(
        "alice", frozenset({Scope.INFER, Scope.PULL}), ("llama3.2", "qwen*"), NEW_YEAR, 60, 2, 200_000
    )  # fmt: skip
    bob = Principal("bob-laptop", DEFAULT_SCOPES)
    assert ring.principals == {"alice": alice, "bob-laptop": bob}
    assert (ring.find(SECRET.encode()), ring.find_ssh(PUBLIC)) == (alice, bob)


def test_a_key_that_says_nothing_may_use_models_without_limits() -> None:
    assert the(key()) == Principal("alice", DEFAULT_SCOPES)


def test_a_replaced_key_has_the_same_owner_and_an_end() -> None:
    new, old = parse(key(f'previous_sha256 = "{B}"', "previous_until = 2027-01-01T00:00:00Z").encode(), "keys.toml")
    assert new == Key(bytes.fromhex(A), Principal("alice", DEFAULT_SCOPES))
    assert old == Key(bytes.fromhex(B), new.principal, until=NEW_YEAR)
    assert old.principal is new.principal


@each_of("text", ["# Nobody yet.", "keys = []", "\ufeff# Made with an editor that marks UTF-8.\n"])
def test_a_file_may_let_nobody_in(text: str) -> None:
    assert parse(text.encode(), "keys.toml") == ()


def test_lines_may_end_as_windows_ends_them() -> None:
    assert the("\ufeff" + key("models = [", '"m",', "]").replace("\n", "\r\n")).models == ("m",)


def test_hex_has_no_case() -> None:
    assert parse(key(sha256=A.upper()).encode(), "") == parse(key().encode(), "")


@each_of(
    ("text", "fault"),
    [
        ("", "is empty; add a key"),
        (" \n\t\n", "is empty; add a key"),
        ("\ufeff", "is empty; add a key"),
        (b"# \xff", "byte 3 is not UTF-8"),
        ("[keys]\nname = 'alice'", "keys are not given as tables; begin each key with a line [[keys]]"),
        ("keys = 'alice'", "keys are not given as tables"),
        ("keys = ['alice']", "keys are not given as tables"),
        ("[[keys]]\nname = alice", "line 2, column 8: this is not TOML (Invalid value); put text in quotes"),
        ("[[keys]]\nname = 'alice", "end of document: this is not TOML (Expected)"),
        ("[[keys]", "line 1, column 7: this is not TOML (Expected)"),
        ("n = " + "1" * 5000, "somewhere: this is not TOML (Invalid value)"),
        ("n = " + "[" * 100_000, "its brackets nest too deep"),
        ("n = '\udcff'", "byte 6 is not UTF-8"),
        ("name = 'alice'", "name stands above the first key; begin each key with a line [[keys]]"),
        ("key = 'alice'", "key seems to hold a key"),
        ("[[key]]\nname = 'alice'", "there is no field key; did you mean keys?"),
        ("title = 'mine'", "there is no field title; there are keys"),
        ("[[keys]]", "key number 1: has no name; say whom the key is for"),
        ("[[keys]]\nname = 'a'", "a: has neither sha256 nor ssh_ed25519; `scripts/keys add NAME` makes"),
        ("[[keys]]\nname = 'a'\nsha256 = 7", "a: sha256 is not 64 hex digits in quotes"),
        *(
            (key(sha256=hashlib.sha256(word).hexdigest()), "alice: sha256 is the digest of a")
            for word in (b"", b"test\n")
        ),
        (
            key(sha256=hashlib.sha256(b"password").hexdigest().upper()),
            "alice: sha256 is the digest of a well-known word",
        ),
        (
            key(f"previous_sha256 = '{hashlib.sha256(b'').hexdigest()}'"),
            "alice: previous_sha256 is the digest of a well",
        ),
    ],
)
def test_a_file_that_cannot_be(text: str | bytes, fault: str) -> None:
    assert faults(text)[0].startswith(f"keys.toml: {fault}")


@each_of(
    ("text", "fault"),
    [
        (key() + key(sha256=B), "key number 2: name is that of key number 1 too"),
        (key() + key(name="bob"), "bob: sha256 is that of key number 1 too; give each key its own"),
        (key() + key(name="bob", sha256=A.upper()), "bob: sha256 is that of key number 1 too"),
        (key(f"previous_sha256 = '{A}'", "previous_until = 2020-01-01"), "alice: previous_sha256 is that of key num"),
        (
            key() + key(f"previous_sha256 = '{A}'", "previous_until = 2020-01-01", name="bob", sha256=B),
            "bob: previous_sha256 is that of key number 1 too",
        ),
        (
            f"[[keys]]\nname = 'a'\nssh_ed25519 = '{SSH}'\n[[keys]]\nname = 'b'\nssh_ed25519 = '{SSH} at home'",
            "b: ssh_ed25519 is that of key number 1 too",
        ),
    ],
)
def test_what_two_keys_cannot_have(text: str, fault: str) -> None:
    (line,) = faults(text)
    assert line.startswith(f"keys.toml: {fault}")


def test_every_fault_is_told_at_once_and_each_in_a_line() -> None:
    told = faults("title = 1\n" + key("x = 1", "expires = 1") + key(name="a b", sha256="") + key(name="ok", sha256=B))
    assert [line.split(" ")[1:3] for line in told] == [
        ["there", "is"],
        ["alice:", "there"],
        ["alice:", "expires"],
        ["key", "number"],
        ["key", "number"],
    ]
    assert not any("\n" in line for line in told)


@given(st.binary())
@example(b"\x00")
def test_whatever_the_bytes_are_there_are_keys_or_faults(data: bytes) -> None:
    assert all(fault.startswith("keys.toml: ") for fault in faults(data))


FRAGMENTS = [
    *("[[keys]]", "[keys]", "[[keys]", "\n", "=", " ", ".", ",", "[", "]", "{", "}", '"', "'", '"""', "\\", "#", "\r"),
    *FIELDS,
    *(f'"{A}"', f'"{B}"', f'"{SSH}"', '"alice"', '"infer"', "true", "1", "-1", "1e400", "nan", "0x", "9" * 5000),
    *("2027-01-01", "2027-01-01T00:00:00", "2027-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "24:00:00", "\ud800"),
]


@given(st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_whatever_resembles_a_keys_file_gives_keys_or_faults(text: str) -> None:
    assert all(fault.startswith("keys.toml: ") for fault in faults(text))


def test_ten_thousand_keys_are_read_in_a_second() -> None:
    """On a machine that does nothing else; here it has three, as there may be other work."""
    lines = 'scopes = ["infer", "list"]', 'models = ["llama3.2", "qwen*"]', "tokens_per_day = 200_000"
    data = "".join(
        key(*lines, name=f"user-{n}", sha256=hashlib.sha256(b"key %d" % n).hexdigest()) for n in range(10_000)
    ).encode()
    start = time.process_time()
    assert len(KeyRing(parse(data, "keys.toml"))) == 10_000
    assert time.process_time() - start < 3


def test_a_file_is_loaded_and_named_in_its_faults(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml")
    assert load(file) == load(str(file)) == (parse(key().encode(), ""), ())
    with pytest.raises(KeysFileError, match=rf"^{file}: alice: there is no field x; "):
        load(written(file, key("x = 1")))


def test_a_file_may_be_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "keys.toml")
    assert load("~/keys.toml")[0]
    assert stamp("~/keys.toml")


@pytest.mark.parametrize(
    ("mode", "warning"),
    [
        (0o600, ""),
        (0o400, ""),
        (0o440, ""),
        (0o640, "read"),
        (0o604, "read"),
        (0o644, "read"),
        (0o620, "change"),
        (0o666, "change"),
    ],
)
def test_a_file_that_others_may_read_is_warned_about(tmp_path: Path, mode: int, warning: str) -> None:
    file = written(tmp_path / "keys.toml", mode=mode)
    assert load(file)[1] == ((f"{file}: others may {warning} it; run `chmod 600` on it",) if warning else ())


def test_a_file_without_keys_is_warned_about(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml", "# Nobody yet.\n")
    assert load(file) == ((), (f"{file}: no key is in it; add one with `scripts/keys add NAME`",))


def unloadable(path: str | Path) -> str:
    with pytest.raises(KeysFileError) as caught:
        load(path)
    (fault,) = caught.value.faults
    return fault


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert unloadable(path) == f"{path}: is not a file; name the file that holds the keys"
    assert unloadable(tmp_path / "none").startswith(f"{tmp_path / 'none'}: can't be read (No such file")
    assert unloadable(tmp_path / "loop").startswith(f"{tmp_path / 'loop'}: can't be read (Too many")
    assert "it is not a path" in unloadable("keys\0.toml")


def test_a_key_for_a_path_is_not_shown() -> None:
    assert unloadable(SECRET).startswith("the keys file: can't be read (No such file or directory); name a keys file")


def test_a_file_may_have_16_mebibytes(tmp_path: Path) -> None:
    file = written(tmp_path / "keys.toml", b"#" * MAX_FILE)
    assert load(file)[0] == ()
    with file.open("ab") as opened:
        opened.write(b"#")
    assert unloadable(file) == f"{file}: is larger than 16 MiB; name the file that holds the keys"
