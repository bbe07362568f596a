"""A keys file is parsed whole: it gives keys, or says all that is wrong with it and never what a secret may be."""

import base64
import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_auth.auth import keys_file
from ollama_auth.auth.keys import DEFAULT_SCOPES, Key, KeyRing, Principal, Scope
from ollama_auth.auth.keys_file import KeysFileError, load, parse, stamp
from tests.harness.cases import each_of

SECRET = "sk-ollama-0123456789abcdef0123456789abcdef"
A, B = "aa" * 32, "bb" * 32
PUBLIC = bytes(range(32))
NEW_YEAR = 1798761600.0  # 2027-01-01T00:00:00Z
DAY = 86400.0


def wire(public: bytes, kind: bytes = b"ssh-ed25519") -> str:
    """A public key as it stands between the type and the comment of OpenSSH's line."""
    return base64.b64encode(b"".join(len(part).to_bytes(4) + part for part in (kind, public))).decode()


SSH = f"ssh-ed25519 {wire(PUBLIC)} bob"


def key(*lines: str, name: str = "alice", sha256: str = A) -> str:
    """A [[keys]] table with these lines in it."""
    return "\n".join(["[[keys]]", f'name = "{name}"', f'sha256 = "{sha256}"', *lines, ""])


def the(text: str) -> Principal:
    """The principal of the one key in a file."""
    (found,) = parse(text.encode(), "keys.toml")
    return found.principal


def faults(text: str | bytes) -> tuple[str, ...]:
    """What is wrong with a file, or nothing."""
    try:
        parse(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "keys.toml")
    except KeysFileError as error:
        return error.faults or ("none was told",)
    return ()


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
    ("written", "seconds"),
    [
        ("2027-01-01T00:00:00Z", NEW_YEAR),
        ("2027-01-01 00:00:00z", NEW_YEAR),
        ("2027-01-01T00:00:00.5Z", NEW_YEAR + 0.5),
        ("2027-01-01T02:00:00+02:00", NEW_YEAR),
        ("2026-12-31", NEW_YEAR),  # A day without a time is over when it ends.
        ("2027-01-01", NEW_YEAR + DAY),
        ("1970-01-01T00:00:00Z", 0.0),
        ("9999-12-30", 253402300800 - DAY),
    ],
)
def test_a_date(written: str, seconds: float) -> None:
    assert the(key(f"expires = {written}")).expires == seconds


@each_of(
    ("written", "fault"),
    [
        ("2027-01-01T00:00:00", "expires has no time zone; write Z behind it for UTC, as in 2027-01-01T00:00:00Z"),
        ('"2027-01-01"', "expires is not a date; write it without quotes"),
        ("00:00:00", "expires is not a date"),
        ("1798761600", "expires is not a date"),
        ("1969-12-30", "expires is before 1970 or after 9999"),
        ("0001-01-01T00:00:00+23:00", "expires is before 1970 or after 9999"),
        ("9999-12-31", "expires is before 1970 or after 9999"),
        ("9999-12-31T23:59:59-01:00", "expires is before 1970 or after 9999"),
    ],
)
def test_a_date_that_is_none(written: str, fault: str) -> None:
    (line,) = faults(key(f"expires = {written}"))
    assert line.startswith(f"keys.toml: alice: {fault}")


@each_of("limit", ["requests_per_minute", "concurrent_requests", "tokens_per_day"])
@each_of(
    ("written", "fault"),
    [
        ("0", "is not from 1 to 999999999999999"),
        ("-1", "is not from 1 to 999999999999999"),
        ("1_000_000_000_000_000", "is not from 1 to 999999999999999"),
        ("1.0", "is not a whole number"),
        ("inf", "is not a whole number"),
        ("true", "is not a whole number"),
        ('"60"', "is not a whole number; write it without quotes"),
        ("[60]", "is not a whole number"),
    ],
)
def test_a_limit_that_is_none(limit: str, written: str, fault: str) -> None:
    (line,) = faults(key(f"{limit} = {written}"))
    assert line.startswith(f"keys.toml: alice: {limit} {fault}")


@each_of("name", ["a", "A.b_c-9", "7", "_", "x" * 64, "Zo\u00eb", "Ёлка", "山田", "\u091c\u094b\u0908", "x\u0323" * 32])
def test_a_name(name: str) -> None:
    assert the(key(name=name)).name == name


def test_one_name_may_be_written_in_two_ways() -> None:
    assert the(key(name="Zoe\u0308")).name == "Zo\u00eb"
    assert "name is that of key number 1 too" in faults(key(name="Zo\u00eb") + key(name="Zoe\u0308", sha256=B))[0]


@each_of(
    ("name", "fault"),
    [
        *(
            (name, "name is not 1 to 64 letters, digits")
            for name in ("", " ", "a b", "a/b", "a:b", "½", "a\u200bb", "a\u202eb", "🔑", "x" * 65)
        ),
        *((name, "name is not 1 to 64 letters, digits") for name in (r"a\n", r"\u0000", r"a\tb")),
        ("default", "name default stands for the key that the environment holds; choose another"),
        ("-", "name - stands for a request without a key, in the log; choose another"),
        ("sk-ollama-1", "name seems to be a key; say whom the key is for"),
    ],
)
def test_a_name_that_cannot_be_had(name: str, fault: str) -> None:
    (line,) = faults(key(name=name))
    assert line.startswith(f"keys.toml: key number 1: {fault}")


@each_of(
    "line",
    [SSH, f"ssh-ed25519 {wire(PUBLIC)}", f"  {SSH}  ", f"ssh-ed25519   {wire(PUBLIC)}  bob and more", SSH + r"\n"],
)
def test_a_public_key_as_openssh_writes_it(line: str) -> None:
    (found,) = parse(f'[[keys]]\nname = "bob"\nssh_ed25519 = "{line}"'.encode(), "keys.toml")
    assert (found.ssh_ed25519, found.digest, found.principal.name) == (PUBLIC, None, "bob")


@each_of(
    ("line", "fault"),
    [
        ("", "is not one line"),
        (wire(PUBLIC), "is not one line"),
        ("ssh-ed25519", "is not one line"),
        ("ssh-ed25519 ", "is not one line"),
        (f"ssh-rsa {wire(PUBLIC)}", "is not one line"),
        (f"restrict {SSH}", "is not one line"),
        (rf"{SSH}\n{SSH}", "is not one line"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "is a private key, which only its owner may have"),
        (SSH.replace("ssh-ed25519", "ssh-ed25519 x"), "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC)}=", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC)[:-4]}", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC)}AAAA", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC)[:-1]}é", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC[1:])}", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC + PUBLIC)}", "is not whole"),
        (f"ssh-ed25519 {wire(PUBLIC, b'ssh-ed25518')}", "is not whole"),
    ],
)
def test_a_public_key_that_is_none(line: str, fault: str) -> None:
    (found,) = faults(f'[[keys]]\nname = "bob"\nssh_ed25519 = "{line}"')
    assert found.startswith(f"keys.toml: bob: ssh_ed25519 {fault}")


@each_of(
    ("line", "fault"),
    [
        ("scopes = []", "scopes is empty; leave it out for the default"),
        ('scopes = "infer"', "scopes is not a list"),
        ('scopes = ["pul"]', "scopes number 1 is not a valid scope; did you mean pull?"),
        ('scopes = ["infer", "INFER"]', "scopes number 2 is not a valid scope; did you mean infer?"),
        ("scopes = [[]]", "scopes number 1 is not a valid scope; the scopes are infer, embed, list, pull"),
        ("models = []", "models is empty"),
        ("models = {}", "models is not a list"),
        ('models = ["llama3.2", "a b"]', "models number 2 is not a valid name of a model"),
        ("models = [7]", "models number 1 is not text; write it in quotes"),
        ("expirs = 1", "there is no field expirs; did you mean expires?"),
        ("rpm = 1", "there is no field rpm; there are name, sha256, "),
        ('"a\\nb" = 1', "there is no field of such a name; there are name, sha256, "),
        ("keys.name = 1", "there is no field keys; "),
        (f'key = "{SECRET}"', "key seems to hold a key; store the digest"),
        (f'API_KEY = "{SECRET}"', "API_KEY seems to hold a key; store the digest"),
        (f'ssh_ed25519 = "{SSH}"', "has both sha256 and ssh_ed25519; make it two keys"),
        (f'previous_sha256 = "{B}"', "has one of previous_sha256 and previous_until; write both or neither"),
        ("previous_until = 2027-01-01", "has one of previous_sha256 and previous_until; write both or neither"),
    ],
)
def test_a_field_that_cannot_be(line: str, fault: str) -> None:
    (found,) = faults(key(line))
    assert found.startswith(f"keys.toml: alice: {fault}")


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


MISPLACED = [
    *(f'{field} = "{SECRET}"' for field in (*keys_file.FIELDS, "key", "token", "other", "Sha256")),
    *(f'{field} = ["{SECRET}"]' for field in keys_file.FIELDS if field != "models"),
    *(f'"{SECRET}" = 1', f'"{SECRET} " = 1', f"{SECRET} = 1", f'models = [" {SECRET}"]', f"name = {SECRET}"),
    *(f'name = "{SECRET}', f"[{SECRET}]", f"[[keys]]\n{SECRET} = 1\n{SECRET} = 2", f"x = {{{SECRET}=1, {SECRET}=1}}"),
    *(f"{SECRET}", f"[[{SECRET}]]\n[{SECRET}]", f'ssh_ed25519 = "ssh-ed25519 {SECRET}"', f'sha256 = "{A}{SECRET}"'),
]


@each_of("line", MISPLACED)
@each_of("before", ["", "[[keys]]\n"])
def test_a_key_in_the_wrong_place_is_a_fault_that_does_not_show_it(before: str, line: str) -> None:
    told = faults(before + line)
    assert told
    assert not any(SECRET[10:] in fault for fault in told)


@given(st.binary())
@example(b"\x00")
def test_whatever_the_bytes_are_there_are_keys_or_faults(data: bytes) -> None:
    assert all(fault.startswith("keys.toml: ") for fault in faults(data))


FRAGMENTS = [
    *("[[keys]]", "[keys]", "[[keys]", "\n", "=", " ", ".", ",", "[", "]", "{", "}", '"', "'", '"""', "\\", "#", "\r"),
    *keys_file.FIELDS,
    *(f'"{A}"', f'"{B}"', f'"{SSH}"', '"alice"', '"infer"', "true", "1", "-1", "1e400", "nan", "0x", "9" * 5000),
    *("2027-01-01", "2027-01-01T00:00:00", "2027-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "24:00:00", "\ud800"),
]


@given(st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_whatever_resembles_a_keys_file_gives_keys_or_faults(text: str) -> None:
    assert all(fault.startswith("keys.toml: ") for fault in faults(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def fault(field: str, value: object) -> str:
    try:
        keys_file.FIELDS[field](value)
    except keys_file.FieldError as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(VALUES)
def test_whatever_a_field_holds_is_read_or_a_fault_with_a_remedy(value: object) -> None:
    for told in filter(None, (fault(field, value) for field in keys_file.FIELDS)):
        assert "; " in told or ": " in told
        assert len(told.splitlines()) == 1


def test_ten_thousand_keys_are_read_in_a_second() -> None:
    """On a machine that does nothing else; here it has three, as there may be other work."""
    lines = 'scopes = ["infer", "list"]', 'models = ["llama3.2", "qwen*"]', "tokens_per_day = 200_000"
    data = "".join(
        key(*lines, name=f"user-{n}", sha256=hashlib.sha256(b"key %d" % n).hexdigest()) for n in range(10_000)
    ).encode()
    start = time.process_time()
    assert len(KeyRing(parse(data, "keys.toml"))) == 10_000
    assert time.process_time() - start < 3


def written(path: Path, text: str | bytes = key(), mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


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
    file = written(tmp_path / "keys.toml", b"#" * keys_file.MAX_FILE)
    assert load(file)[0] == ()
    with file.open("ab") as opened:
        opened.write(b"#")
    assert unloadable(file) == f"{file}: is larger than 16 MiB; name the file that holds the keys"


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


# A file that was cut off.

WHOLE = f"""\
# Who may use the gate.

[[keys]]
name = "alice"
sha256 = "{A}"
requests_per_minute = 60

[[keys]]
name = "bob"
sha256 = "{B}"
scopes = ["list"]
models = ["tiny"]
requests_per_minute = 3
concurrent_requests = 1
tokens_per_day = 200_000
previous_sha256 = "{"cc" * 32}"
previous_until = 2027-01-01T06:00:00Z
expires = 2027-01-01T08:00:00Z
"""
MARKED = f"{keys_file.ANNOUNCEMENT}\n{WHOLE}\n{keys_file.END}\n"
LIMITS = ("requests_per_minute", "concurrent_requests", "tokens_per_day", "expires")


def wider(before: Principal, after: Principal) -> bool:
    """Whether a principal may do anything more."""
    limits = any(
        getattr(before, name) is not None and (getattr(after, name) or float("inf")) > getattr(before, name)
        for name in LIMITS
    )
    return limits or not after.scopes <= before.scopes or (before.models is not None and after.models != before.models)


@pytest.mark.parametrize("moved", [False, True])
def test_no_prefix_of_a_file_widens_a_right_while_the_gate_runs(tmp_path: Path, moved: bool) -> None:
    """Also of a new file that is longer than the old one, in which the key that is cut off has another place."""
    before = KeyRing(parse(WHOLE.encode(), "it"))
    text = WHOLE.replace("[[keys]]", key(name="carol", sha256="dd" * 32) + "\n[[keys]]", 1) if moved else WHOLE
    (path := tmp_path / "keys.toml").write_text(text)
    path.chmod(0o600)
    assert load(path, before)
    refused = 0
    for length in range(len(text)):
        path.write_text(text[:length])
        try:
            found, _ = load(path, before)
        except KeysFileError as error:
            refused += "the last key has lost" in str(error)
            continue
        for one in found:
            name = one.principal.name
            assert name == "carol" or not wider(before.principals[name], one.principal), text[:length]
            assert one.until is None or one.until <= NEW_YEAR + 6 * 3600
    assert refused > 20


def test_no_prefix_of_a_file_that_announces_its_end_is_taken_with_a_key_in_it() -> None:
    assert len(parse(MARKED.encode(), "it")) == 3
    for length in range(len(MARKED.rstrip())):
        assert faults(MARKED[:length]) or parse(MARKED[:length].encode(), "it") == ()
    assert parse(MARKED.rstrip().encode(), "it") == parse(MARKED.encode(), "it")
    assert parse(MARKED.replace("\n", "\r\n").encode() + b"\r\n\n", "it") == parse(MARKED.encode(), "it")


def test_keys_below_the_end_of_a_file_that_announces_it() -> None:
    (fault,) = faults(MARKED + key(name="carol", sha256="dd" * 32))
    assert fault == (
        "keys.toml: is cut off, or has keys below its end: its last line is not `# end of the keys`, "
        "which its first lines announce; write it again, or move that line to the end"
    )


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace("requests_per_minute = 60\n", ""),  # Not of the last key.
        WHOLE.replace("requests_per_minute = 3\n", "requests_per_minute = 300\n"),
        WHOLE.replace("requests_per_minute = 3\n", "").replace("tiny", "small"),
        WHOLE.replace('scopes = ["list"]', 'scopes = ["list", "infer"]'),
        WHOLE.replace("expires = 2027-01-01T08:00:00Z", "expires = 2028-01-01"),
        WHOLE.replace("requests_per_minute = 3\n", "") + "\n" + keys_file.END,
        WHOLE.replace('models = ["tiny"]\n', "") + "\n" + key(name="carol", sha256="dd" * 32),
        WHOLE[: WHOLE.index('[[keys]]\nname = "bob"')],
        key(name="carol", sha256="dd" * 32),
    ],
)
def test_a_change_that_is_meant_is_taken(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "keys.toml").write_text(text)
    path.chmod(0o600)
    assert load(path, KeyRing(parse(WHOLE.encode(), "it")))


def test_what_the_last_key_has_lost_is_told_with_the_remedy(tmp_path: Path) -> None:
    (path := tmp_path / "keys.toml").write_text(WHOLE[: WHOLE.index("scopes")])
    with pytest.raises(KeysFileError) as caught:
        load(path, KeyRing(parse(WHOLE.encode(), "it")))
    assert str(caught.value) == (
        f"{path}: bob: the last key has lost concurrent_requests, expires, models, requests_per_minute, "
        "tokens_per_day, scopes, as in a file that was cut off; write it again, or, if you mean it, "
        "make `# end of the keys` the last line"
    )
