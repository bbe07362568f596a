"""The lists of architecture.md name every place that one of its kind is in: what is there already shows it."""

import re
import subprocess

import pytest

from ollama_auth.auth.key_fields import OF_PRINCIPAL
from ollama_auth.auth.keys import Principal
from tests.harness.base import ROOT
from tests.harness.markdown import PAGES

PAGE = PAGES["scripts/docs/architecture.md"]
# What is searched for, and where it stands for another reason.
KINDS = {
    "A reason of a refusal": (
        r"""["`]expired["`]|\bexpired: """,
        r"docs/architecture|console/static|auth/key_fields|tools/doctor/|tools/keys/commands",
    ),
    "A field of a key": (
        r"\bexpires\b",
        r"README|docs/(architecture|clients|console|troubleshooting)|console/static|demo_upstream|doctor/|auth/limits|tools/keys/",
    ),
    "A scope": (r"Scope\.EMBED|\bEMBED = |^\| `embed`", r"ollama_api/routes|docs/options"),
    "A route": (r"/v1/embeddings", r"docs/"),
    "A dialect": (r"ANTHROPIC\b", r"docs/|ollama_api/(usage|conversation)"),
    "An option": (r"idle_timeout", r"docs/architecture|proxy/"),
}


def listed(kind: str) -> set[str]:
    """The files that the list of a kind names."""
    match = re.search(rf"^\*\*{re.escape(kind)}\*\*.*?(?=^\*\*|^For each of)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, kind
    return set(re.findall(r"^- `((?:addons|scripts)/[\w/.-]+)`", match[0], re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_names_every_place(kind: str) -> None:
    pattern, elsewhere = KINDS[kind]
    command = ["git", "grep", "-lP", pattern, "--", "addons", "scripts", "README.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in found if not re.search(elsewhere, name)} == listed(kind)


REASON = re.compile(
    r'(?:RefusedError|CredentialError|Refusal|Exceeded|__init__)\(\s*"([a-z_ ]+)"'
    r'|\("(tokens_per_[a-z]+)", principal|Denial\(\d+, "([a-z_ ]+)"|KEY_IN_PATH = "([a-z ]+)"'
)


def test_every_reason_in_the_code_is_in_the_pages() -> None:
    sources = [path.read_text() for path in (ROOT / "addons").rglob("*.py")]
    found = {"".join(match) for source in sources for match in REASON.findall(source)}
    assert {"expired", "key in path", "malformed body", "tokens_per_day"} <= found
    described = set(re.findall(r"^\| `([a-z_ ]+)` \|", PAGES["scripts/docs/logging.md"], re.MULTILINE))
    assert found - described == set()


def test_a_field_of_a_key_is_everywhere() -> None:
    """Where it is missing, a field can't be set, or nobody is told of it."""
    assert {field.name for field in OF_PRINCIPAL} == set(Principal.__slots__)
    assert {field.name for field in OF_PRINCIPAL if not field.option} == {"name", "disabled"}, (
        "there are commands for that"
    )


def test_modules_and_tests_that_are_named_exist() -> None:
    """Every module, every member of a class and every test that the page names is there."""
    for name in re.findall(r"`((?:proxy|auth|http|ollama_api|telemetry)/\w+\.py|\w+\.py)`", PAGE):
        places = [ROOT / "addons", ROOT / "addons" / "ollama_auth"]
        assert any((place / name).is_file() for place in places), name
    sources = "".join(path.read_text() for path in (ROOT / "addons").rglob("*.py"))
    for name, member in re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE):
        assert re.search(rf"^class {name}\b", sources, re.MULTILINE), name
        assert re.search(rf"^    (async )?(def )?{member}\b", sources, re.MULTILINE) or f"self.{member}" in sources, (
            member
        )
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests, name
