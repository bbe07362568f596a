"""The fields of a key: each value is read, or a fault that says what to do and never what a secret may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.auth.key_fields import FIELDS, FieldError
from ollama_auth.auth.keys_file import parse
from tests.harness.cases import each_of
from tests.harness.keys_file import DAY, NEW_YEAR, PUBLIC, SECRET, SSH, A, B, faults, key, the, wire


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


MISPLACED = [
    *(f'{field} = "{SECRET}"' for field in (*FIELDS, "key", "token", "other", "Sha256")),
    *(f'{field} = ["{SECRET}"]' for field in FIELDS if field != "models"),
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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def fault(field: str, value: object) -> str:
    try:
        FIELDS[field].parse(value)
    except FieldError as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(VALUES)
def test_whatever_a_field_holds_is_read_or_a_fault_with_a_remedy(value: object) -> None:
    for told in filter(None, (fault(field, value) for field in FIELDS)):
        assert "; " in told or ": " in told
        assert len(told.splitlines()) == 1
