"""scripts/keys, mostly as somebody at a terminal uses it."""

import base64
import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ollama_auth.auth import cut_off, key_fields, keys_editor, keys_file, keys_text
from ollama_auth.auth.keys import DEFAULT_SCOPES, KeyRing, Principal, Scope
from scripts.tools.keys import __main__ as cli
from tests.harness.base import ROOT
from tests.harness.cases import each_of
from tests.harness.tools import CLEAN, TOOLS, Said, call, execute

KEY = re.compile(r"sk-ollama-[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DIGEST = re.compile(r"[0-9a-f]{64}")
SSH = f"ssh-ed25519 {base64.b64encode(b'\0\0\0\x0bssh-ed25519\0\0\0\x20' + bytes(32)).decode()} bob@laptop"
WRITTEN = f"""\
# The keys of the lab.

[[keys]]  # the first
name = "alice"  # Room 7
sha256 = "{"aa" * 32}"   # made in May
# She needs two.
models = [
  "llama3.2",  # small
  "qwen*",
]

# Bob's laptop, until June.
[[keys]]
"name" = 'bob'
"sha256" = '{"bb" * 32}'

# The end.
"""


class Terminal:
    """A shell in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "keys.toml"

    def run(self, *arguments: str, **variables: str) -> Said:
        """What `scripts/keys ARGUMENTS` says."""
        return call(cli.main, *arguments, folder=self.folder, env=CLEAN | variables)

    def execute(self, *arguments: str) -> Said:
        """What it says as a process of its own."""
        said = execute(sys.executable, TOOLS, "keys", *arguments, folder=self.folder)
        assert "Traceback" not in said.err
        return said

    def does(self, *arguments: str) -> str:
        """The standard output of a command that succeeds, without its line end."""
        said = self.run(*arguments)
        assert said.status == 0, said.err
        return said.out.removesuffix("\n")

    @property
    def ring(self) -> KeyRing:
        return KeyRing(keys_file.load(self.file)[0])

    def owner(self, key: str) -> str | None:
        """Whose key it is, to the gate."""
        found = self.ring.find(key.encode())
        return found.name if found else None


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


@pytest.fixture
def lab(terminal: Terminal) -> Terminal:
    """A terminal where there is a file that was written by hand."""
    terminal.file.write_text(WRITTEN)
    terminal.file.chmod(0o600)
    return terminal


def test_a_session(terminal: Terminal) -> None:
    said = terminal.execute("add", "alice", "--expires", "30d", "--rpm", "60")
    alice = said.out.strip()
    assert (said.status, KEY.fullmatch(alice) is not None) == (0, True)
    assert said.err == (
        "ollama-auth: alice is in keys.toml now; the key is shown only now\n"
        f"ollama-auth: the gate reads it with OLLAMA_KEYS_FILE={terminal.file}\n"
    )
    reader = terminal.does("add", "reader", "--scope", "list", "infer", "--model", "llama3.2", "qwen*")
    terminal.does("add", "bob-laptop", "--ssh", SSH, "--expires", "2127-01-01", "--concurrent", "2")
    assert (terminal.owner(alice), terminal.owner(reader)) == ("alice", "reader")

    assert TIME.sub("(a time)", terminal.does("list")).splitlines() == [
        "NAME        KIND  SCOPES            MODELS          LIMITS     EXPIRES",
        "alice       key   infer embed list  all             60/min     (a time)",
        "reader      key   infer list        llama3.2 qwen*  none       never",
        "bob-laptop  ssh   infer embed list  all             2 at once  (a time)",
    ]

    said = terminal.run("rotate", "alice", "--grace", "2h")
    newer = said.out.strip()
    assert TIME.sub("(a time)", said.err) == (
        "ollama-auth: alice has a new key, which is shown only now; the old one works until (a time)\n"
    )
    assert (terminal.owner(alice), terminal.owner(newer)) == ("alice", "alice")

    assert terminal.does("check") == "keys.toml: 3 keys, no fault"
    assert terminal.does("check", "reader", "POST", "/api/chat", "llama3.2") == (
        "reader: POST /api/chat llama3.2 is let in (infer)"
    )
    said = terminal.run("check", "reader", "DELETE", "/api/delete", "llama3.2")
    assert said.status == 1
    assert said.out.startswith("reader: DELETE /api/delete llama3.2 gets 403 ")

    said = terminal.run("revoke", "alice")
    assert (said.out, said.err, said.status) == ("", "ollama-auth: alice is no longer in keys.toml\n", 0)
    assert (terminal.owner(alice), terminal.owner(newer), terminal.owner(reader)) == (None, None, "reader")


def test_a_key_is_changed(terminal: Terminal) -> None:
    key = terminal.does("add", "Zoë", "--rpm", "60", "--note", "room 7")
    said = terminal.run("edit", "Zoë", "--rpm", "120", "--model", "a", "b*", "--scope", "list", "--unset", "note")
    assert (said.status, said.out, said.err) == (
        0,
        "",
        "ollama-auth: Zoë has changed: scopes, models, requests_per_minute, note (keys.toml)\n",
    )
    assert terminal.ring.find(key.encode()) == Principal(
        "Zoë", frozenset({Scope.LIST}), ("a", "b*"), requests_per_minute=120
    )
    fact = terminal.run("edit", "Zoë", "--unset", "rpm", "model", "scope", "--expires", "2127-01-01", "--json").json
    assert (fact["requests_per_minute"], fact["models"], fact["scopes"]) == (None, None, ["infer", "embed", "list"])
    assert terminal.run("note", "Zoe\u0308", "on leave").err == "ollama-auth: Zoe\u0308 has a note (keys.toml)\n"
    terminal.does("disable", "Zoë")
    assert terminal.does("show", "Zoë").splitlines() == [
        "name     Zoë",
        "kind     key (disabled)",
        "scopes   infer embed list",
        "models   all",
        "limits   none",
        "expires  2127-01-02T00:00:00Z",
        "note     on leave",
    ]
    assert terminal.run("check", "Zoë", "GET", "/api/tags").out.startswith("Zoë: GET /api/tags gets 401 (disabled): ")
    assert terminal.run("enable", "Zoë", "--json").json["disabled"] is False
    assert terminal.does("note", "Zoë") == ""
    assert terminal.ring.find(key.encode()) == Principal("Zoë", DEFAULT_SCOPES, None, 4954521600.0)


def test_names_are_of_any_letters(terminal: Terminal) -> None:
    """A letter that is written in two ways is one, and columns fit also where letters are wide."""
    key = terminal.does("add", "山田")
    terminal.does("add", "ज़ोई", "--note", "x")
    terminal.does("add", "Zoe\u0308")
    assert "has a key Zo\u00eb already" in terminal.run("add", "Zo\u00eb").err
    assert terminal.owner(key) == "山田"
    rows = terminal.does("list").splitlines()
    assert [row.partition("  ")[0] for row in rows[1:]] == ["山田", "ज़ोई", "Zo\u00eb"]
    assert rows[1].startswith("山田  key ")
    said = execute(
        sys.executable, TOOLS, "keys", "list", folder=terminal.folder, env=CLEAN | {"PYTHONIOENCODING": "ascii"}
    )
    assert (said.status, r"\u5c71\u7530" in said.out) == (0, True)
    for command in ("disable", "rotate", "revoke"):
        terminal.file.write_text(terminal.file.read_text().replace("Zoe\u0308", "Zo\u00eb"))
        terminal.does(command, "Zoe\u0308")
    assert list(terminal.ring.principals) == ["山田", "\u091c\u093c\u094b\u0908"]


def test_no_key_is_in_the_file_and_no_digest_is_shown(terminal: Terminal) -> None:
    keys = [terminal.does("add", "alice"), terminal.does("rotate", "alice")]
    text = terminal.file.read_text()
    assert not KEY.search(text)
    assert len(DIGEST.findall(text)) == 2
    shown = "".join(
        terminal.does(*command) for command in (["list"], ["list", "--json"], ["check"], ["check", "--json"])
    )
    assert not any(secret in shown for secret in keys + DIGEST.findall(text))


def test_a_new_key_alone_goes_to_standard_output(terminal: Terminal) -> None:
    said = terminal.run("new")
    assert KEY.fullmatch(said.out.removesuffix("\n"))
    assert DIGEST.search(said.err)
    assert not list(terminal.folder.iterdir())


@each_of(("when", "seconds"), [("90m", 5400), ("24h", 86400), ("30d", 30 * 86400), ("8w", 56 * 86400)])
def test_a_span_begins_now(when: str, seconds: int) -> None:
    expires = key_fields.instant(key_fields.expiry(when))
    assert 0 <= time.time() + seconds - expires < 2


def test_a_public_key_may_be_in_a_file(terminal: Terminal) -> None:
    (terminal.folder / "id_ed25519.pub").write_text(SSH + "\n")
    said = terminal.run("add", "bob", "--ssh", "id_ed25519.pub")
    assert (said.status, said.out) == (0, "")
    assert terminal.ring.find_ssh(bytes(32)) == terminal.ring.principals["bob"]
    assert f'ssh_ed25519 = "{SSH}"' in terminal.file.read_text()


def test_everything_is_said_as_json_too(lab: Terminal) -> None:
    made = lab.run("new", "--json").json
    assert (KEY.fullmatch(made["key"]) and DIGEST.fullmatch(made["sha256"])) is not None
    added = lab.run("add", "carol", "--json").json
    assert (added["name"], lab.owner(added["key"])) == ("carol", "carol")
    rotated = lab.run("--json", "rotate", "carol").json
    assert (lab.owner(rotated["key"]), TIME.fullmatch(rotated["old_key_until"]) is not None) == ("carol", True)
    assert lab.run("list", "--json").json[2]["old_key_until"] == rotated["old_key_until"]
    assert lab.run("revoke", "carol", "--json").json == {"file": "keys.toml", "name": "carol"}
    assert lab.run("check", "--json").json == {"file": "keys.toml", "keys": 2, "warnings": []}
    asked = lab.run("check", "bob", "GET", "/api/tags", "--json").json
    assert asked == {"name": "bob", "request": "GET /api/tags", "class": "list", "allowed": True}
    refused = lab.run("check", "bob", "POST", "/api/pull", "m", "--json")
    assert (refused.status, refused.json["allowed"], refused.json["status"]) == (1, False, 403)
    failed = lab.run("revoke", "carol", "--json")
    assert (failed.status, failed.json) == (
        1,
        {"faults": ["keys.toml has no key carol; `scripts/keys list` shows all"]},
    )


# What a change leaves as it was.


def test_a_key_is_added_below_all_that_is_there(lab: Terminal) -> None:
    lab.does("add", "carol", "--rpm", "1")
    before, after = lab.file.read_text().split('[[keys]]\nname = "carol"\n')
    assert before == WRITTEN + "\n"
    assert re.fullmatch(r'sha256 = "[0-9a-f]{64}"\nrequests_per_minute = 1\n', after)


def test_a_key_is_rotated_where_it_stands(lab: Terminal) -> None:
    lab.does("rotate", "alice")
    text = lab.file.read_text()
    digest, _ = DIGEST.findall(text)[:2]
    expected = WRITTEN.replace("aa" * 32, digest).replace(
        '  "qwen*",\n]\n', f'  "qwen*",\n]\nprevious_sha256 = "{"aa" * 32}"\nprevious_until = (a time)\n'
    )
    assert TIME.sub("(a time)", text) == expected


@pytest.mark.parametrize(
    ("name", "start", "end"), [("alice", "[[keys]]  # the first", "\n# Bob's"), ("bob", "[[keys]]\n", "\n# The end")]
)
def test_a_key_is_revoked_and_every_comment_beside_it_stays(lab: Terminal, name: str, start: str, end: str) -> None:
    lab.does("revoke", name)
    first, _, rest = WRITTEN.partition(start)
    left = first + rest[rest.index(end) :]
    assert lab.file.read_text() == left.replace("lab.\n\n\n", "lab.\n\n")


def test_the_last_key_may_go(terminal: Terminal) -> None:
    terminal.file.write_text('[[keys]]\nname = "a"\nsha256 = "' + "aa" * 32 + '"\n')
    terminal.does("revoke", "a")
    assert keys_file.load(terminal.file)[0] == ()
    terminal.does("add", "b")
    assert list(terminal.ring.principals) == ["b"]


@pytest.mark.parametrize("change", [["add", "carol"], ["rotate", "bob"], ["revoke", "bob"]])
def test_lines_end_as_they_did(lab: Terminal, change: list[str]) -> None:
    lab.file.write_bytes(b"\xef\xbb\xbf" + WRITTEN.replace("\n", "\r\n").encode())
    lab.does(*change)
    data = lab.file.read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n") > 0


@pytest.mark.parametrize("text", [WRITTEN.rstrip(), WRITTEN + "\n\n  \n", "# Nobody.", "", "\n"])
def test_a_key_can_be_added_to_any_good_file(terminal: Terminal, text: str) -> None:
    terminal.file.write_text(text)
    key = terminal.does("add", "carol")
    assert terminal.owner(key) == "carol"
    assert terminal.file.read_text().startswith(text.rstrip() or "# ")


def test_rotating_again_keeps_the_word_that_was_given(terminal: Terminal) -> None:
    """The first key works as long as was said, or all old ones end because that was asked for."""
    first, second = terminal.does("add", "alice"), terminal.does("rotate", "alice", "--grace", "30d")
    text = terminal.file.read_text()
    said = terminal.run("rotate", "alice", "--grace", "1h")
    assert (said.status, said.out, terminal.file.read_text()) == (1, "", text)
    assert TIME.sub("(a time)", said.err) == (
        "ollama-auth: keys.toml says that the key which alice had before this one works until (a time); "
        "rotate it again after that, or with a grace of 0, which ends both now\n"
    )
    assert [terminal.owner(key) for key in (first, second)] == ["alice", "alice"]
    third = terminal.does("rotate", "alice", "--grace", "0")
    fourth = terminal.does("rotate", "alice")
    assert [terminal.owner(key) for key in (first, second, third, fourth)] == [None, None, "alice", "alice"]
    terminal.file.write_text(re.sub("previous_until = .*", "previous_until = 2020-01-01", terminal.file.read_text()))
    assert terminal.owner(terminal.does("rotate", "alice")) == "alice", "the grace is over"


def test_rotating_without_grace_ends_the_old_key(terminal: Terminal) -> None:
    old, new = terminal.does("add", "alice"), terminal.does("rotate", "alice", "--grace", "0")
    assert [terminal.owner(key) for key in (old, new)] == [None, "alice"]
    assert "previous" not in terminal.file.read_text()


# Whose file it is.


def test_a_new_file_is_for_its_owner_alone(terminal: Terminal) -> None:
    mask = os.umask(0)
    try:
        terminal.does("add", "alice")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(terminal.file.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_mode_of_a_file_stays(lab: Terminal, mode: int) -> None:
    lab.file.chmod(mode)
    lab.does("add", "carol")
    assert stat.S_IMODE(lab.file.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_of_a_file_stays(lab: Terminal) -> None:
    os.chown(lab.file, 4321, 1234)
    lab.does("revoke", "bob")
    assert (lab.file.stat().st_uid, lab.file.stat().st_gid) == (4321, 1234)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_changed_and_the_link_stays(lab: Terminal, there: bool) -> None:
    (lab.folder / "real").mkdir()
    lab.file.rename(lab.folder / "real" / ("keys" if there else "gone"))
    lab.file.symlink_to("real/keys")
    key = lab.does("add", "carol")
    assert lab.file.is_symlink()
    assert lab.owner(key) == "carol"
    assert (
        (lab.folder / "real" / "keys").read_text().startswith("# The keys of the lab." if there else keys_text.HEADER)
    )


def test_which_file_it_is(terminal: Terminal) -> None:
    assert terminal.run("add", "a", OLLAMA_KEYS_FILE="other.toml").status == 0
    assert terminal.run("--file", "third.toml", "add", "b", OLLAMA_KEYS_FILE="other.toml").status == 0
    assert terminal.run("add", "c", "--file", "third.toml", HOME=str(terminal.folder)).status == 0
    assert terminal.run("list", OLLAMA_KEYS_FILE="~/third.toml", HOME=str(terminal.folder)).out.count(" key ") == 2
    assert {path.name for path in terminal.folder.iterdir() if path.suffix == ".toml"} == {"other.toml", "third.toml"}


# What is refused.


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("", 2, "required: COMMAND"),
        ("ad alice", 2, "invalid choice: 'ad'"),
        ("add", 2, "required: NAME"),
        ("add a/b", 2, "argument NAME: it is not 1 to 64 letters"),
        ("add default", 2, "argument NAME: it default stands for the key that the environment holds"),
        ("add x --scope zzz", 2, "argument --scope: it is not a valid scope; the scopes are infer, embed, "),
        ("edit alice", 2, "name what to change, such as --rpm 60 or --unset expires"),
        ("edit alice --rpm 5 --unset rpm", 2, "--rpm is to be set and unset: give one of them"),
        ("edit alice --unset rpms", 2, "argument --unset: invalid choice: 'rpms'"),
        ("edit zed --rpm 5", 1, "keys.toml has no key zed; `scripts/keys list` shows all"),
        ("edit alice --rpm 5 --file none", 1, "there is no none: `scripts/keys add NAME` makes it"),
        ("disable zed", 1, "keys.toml has no key zed; "),
        ("enable alic", 1, "keys.toml has no key alic; did you mean alice?"),
        ("show zed", 1, "keys.toml has no key zed; "),
        ("note zed", 1, "keys.toml has no key zed; "),
        ("add x --rpm=-1", 2, "argument --rpm: it is not from 1 to"),
        ("add x --tokens-per-day 1e9", 2, "argument --tokens-per-day: it is not a whole number"),
        ("add x --expires 0d", 2, "argument --expires: it is over already"),
        ("add x --expires 2127-01-01T00:00:00", 2, "argument --expires: it has no time zone; write Z"),
        ("add x --expires 7", 2, "argument --expires: it is not a time; write it as in 30d"),
        ("add x --ssh nothing", 2, "argument --ssh: it can't be read (No such file or directory); name a file"),
        ("add x --ssh .", 2, "argument --ssh: it can't be read (Is a directory); name a file"),
        ("add x --ssh keys.toml", 2, "argument --ssh: it is not one line"),
        ("rotate alice --grace 1y", 2, "argument --grace: it is not a span of time; write it as in"),
        ("check alice", 2, "give NAME, METHOD, a PATH that begins with / and perhaps a MODEL"),
        ("check alice GET tags", 2, "give NAME, METHOD, a PATH that begins with /"),
        ("add alice", 1, "keys.toml has a key alice already; choose another name, or rotate it"),
        ("revoke alic", 1, "keys.toml has no key alic; did you mean alice?"),
        ("rotate zed", 1, "keys.toml has no key zed; `scripts/keys list` shows all"),
        ("check zed GET /", 1, "keys.toml has no key zed; "),
        ("list --file none", 1, "there is no none: `scripts/keys add NAME` makes it, --file PATH names another"),
        ("check --file none", 1, "there is no none: "),
        ("revoke alice --file none", 1, "there is no none: "),
        ("rotate alice --file none", 1, "there is no none: "),
        ("check alice POST /api/chat a\tb", 1, "MODEL is not a valid name of a model: write it as `ollama list` does"),
        ("add x --file none/keys", 1, "none/keys can't be changed: No such file or directory; make the directory"),
        ("add x --file .", 1, ".: is not a file; name the file that holds the keys"),
        ("list --file .", 1, ".: is not a file; name the file that holds the keys"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_and_what_to_do(
    lab: Terminal, command: str, status: int, words: str
) -> None:
    said = lab.run(*command.split(" ") if command else ())
    assert (said.status, said.out) == (status, "")
    assert words in said.err
    assert lab.file.read_text() == WRITTEN


@pytest.mark.parametrize("command", [["add", "x"], ["revoke", "alice"], ["rotate", "alice"], ["list"], ["check"]])
def test_a_faulty_file_is_left_alone_and_all_its_faults_told(lab: Terminal, command: list[str]) -> None:
    faulty = WRITTEN.replace("models", "model").replace("bob", "alice")
    lab.file.write_text(faulty)
    said = lab.run(*command)
    assert (said.status, said.err.splitlines()) == (
        1,
        [
            "ollama-auth: keys.toml: alice: there is no field model; did you mean models?",
            "ollama-auth: keys.toml: key number 2: name is that of key number 1 too; give each key its own",
        ],
    )
    assert lab.file.read_text() == faulty
    assert lab.run(*command, "--json").json["faults"] == [line[13:] for line in said.err.splitlines()]


@pytest.mark.parametrize("command", [["revoke", "a"], ["rotate", "a"], ["add", "b"]])
def test_keys_in_a_list_are_for_their_owner_to_edit(terminal: Terminal, command: list[str]) -> None:
    terminal.file.write_text(text := f'keys = [{{name = "a", sha256 = "{"aa" * 32}"}}]\n')
    said = terminal.run(*command)
    assert (said.status, "begin each" in said.err) == (1, True)
    assert terminal.file.read_text() == text


def test_a_key_that_signs_is_not_rotated(terminal: Terminal) -> None:
    terminal.does("add", "bob", "--ssh", SSH)
    said = terminal.run("rotate", "bob")
    assert (said.status, said.out) == (1, "")
    assert "keys.toml has an ssh key for bob; revoke it, then add the new one" in said.err


def test_a_private_key_is_refused_and_not_shown(terminal: Terminal) -> None:
    (terminal.folder / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAAsecret\n")
    said = terminal.run("add", "bob", "--ssh", "id")
    assert "it is a private key, which only its owner may have; take the file beside it" in said.err
    assert "secret" not in said.err


@pytest.mark.parametrize(
    "command",
    ["new", "add", "edit", "list", "show", "disable", "enable", "revoke", "note", "rotate", "check", ""],
)
def test_help_has_examples_and_the_exit_status(lab: Terminal, command: str) -> None:
    said = lab.run(*filter(None, [command]), "--help")
    assert (said.status, said.err) == (0, "")
    assert "scripts/keys add alice --expires 30d --rpm 60" in said.out
    assert "exit status: 0 done; 1 not done" in said.out


# What could go wrong, and does not.


FORK = """
import os, sys
from scripts.tools.keys.__main__ import main
for name in sys.argv[1:]:
    if not os.fork():
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = ["keys", "add", name]
        sys.exit(main())
sys.exit(any(os.wait()[1] for _ in sys.argv[1:]))
"""
"""Adds each name in a process of its own, all at once, with what it says in a file of that name."""


def test_eight_writers_at_once_lose_nothing(terminal: Terminal) -> None:
    names = [f"user-{number}" for number in range(8)]
    path = f"{ROOT}:{ROOT}/addons"
    said = execute(sys.executable, "-c", FORK, *names, folder=terminal.folder, env=CLEAN | {"PYTHONPATH": path})
    assert said.status == 0, said.err
    keys = [(terminal.folder / name).read_text().removesuffix("\n") for name in names]
    assert [terminal.owner(key) for key in keys] == names


@pytest.mark.parametrize(
    ("step", "error", "remedy"),
    [
        ("replace", errno.EBUSY, "it is mounted alone, so that it can't be replaced; mount its directory instead"),
        ("fsync", errno.ENOSPC, "it is as it was"),
        ("fsync", errno.EROFS, "change it where it is not mounted read-only"),
    ],
)
@pytest.mark.parametrize("command", [["add", "x"], ["revoke", "bob"], ["rotate", "bob"]])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    lab: Terminal, monkeypatch: pytest.MonkeyPatch, command: list[str], step: str, error: int, remedy: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, step, fail)
    said = lab.run(*command)
    assert (said.out, said.status) == ("", 1)
    assert said.err == f"ollama-auth: keys.toml can't be changed: {os.strerror(error)}; {remedy}\n"
    assert lab.file.read_text() == WRITTEN
    assert {path.name for path in lab.folder.iterdir()} == {"keys.toml", ".keys.toml.lock"}


def test_a_writer_waits_for_another_and_not_for_ever(lab: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_editor, "LOCK_TIMEOUT", 0.1)
    with keys_editor._locked(lab.file):
        said = lab.run("add", "x")
    assert (said.status, lab.file.read_text()) == (1, WRITTEN)
    lock = lab.folder / ".keys.toml.lock"
    assert f"keys.toml is in use: another program has held {lock} for 0.1 s; end it, then try again" in said.err
    assert lab.run("add", "x").status == 0


@pytest.mark.parametrize(("command", "status"), [(["add", "x"], 1), (["list"], 0), (["check"], 0), (["new"], 0)])
def test_only_a_change_needs_tomlkit(
    lab: Terminal, monkeypatch: pytest.MonkeyPatch, command: list[str], status: int
) -> None:
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    said = lab.run(*command)
    assert said.status == status
    assert ("tomlkit is missing; pip install tomlkit" in said.err) == (status == 1)


def test_whoever_reads_a_list_may_stop(lab: Terminal) -> None:
    command = [sys.executable, TOOLS, "keys", "list"]
    with subprocess.Popen(
        command, cwd=lab.folder, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_file_that_it_makes_says_where_it_ends_whatever_is_changed(terminal: Terminal) -> None:
    def assert_whole() -> None:
        text = terminal.file.read_text()
        assert cut_off.ANNOUNCEMENT in text.splitlines()[1]
        assert text.endswith(f"\n\n{cut_off.END}\n")
        assert text.count(cut_off.END) == 2
        assert "\n\n\n" not in text

    for change in (["add", "a"], ["add", "b", "--rpm", "5"], ["rotate", "b"], ["revoke", "a"], ["add", "c"]):
        terminal.does(*change)
        assert_whole()
    for name in ("b", "c"):
        terminal.does("revoke", name)
        assert_whole()
    terminal.does("add", "a")
    assert_whole()
    terminal.file.write_text(terminal.file.read_text().replace(f"\n{cut_off.END}\n", ""))
    said = terminal.run("add", "b")
    assert said.status == 1
    assert "is cut off" in said.err
