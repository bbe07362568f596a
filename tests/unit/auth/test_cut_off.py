"""A file that was cut off widens no right."""

from pathlib import Path

import pytest

from ollama_auth.auth.cut_off import ANNOUNCEMENT, END
from ollama_auth.auth.keys import KeyRing, Principal
from ollama_auth.auth.keys_file import KeysFileError, load, parse
from tests.harness.keys_file import NEW_YEAR, A, B, faults, key

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
MARKED = f"{ANNOUNCEMENT}\n{WHOLE}\n{END}\n"
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
        WHOLE.replace("requests_per_minute = 3\n", "") + "\n" + END,
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
        f"{path}: bob: the last key has lost models, expires, requests_per_minute, concurrent_requests, "
        "tokens_per_day, scopes, as in a file that was cut off; write it again, or, if you mean it, "
        "make `# end of the keys` the last line"
    )
