"""An exchange is what is known of a request; an admission lets it go upstream, and is granted in one place."""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ollama_auth
from ollama_auth import exchange as module
from ollama_auth.auth.keys import Principal
from ollama_auth.exchange import Admission, Exchange, Outcome, UpstreamRequest
from tests.harness.cases import each_of

ADDONS = Path(ollama_auth.__file__).parent.parent


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Everything in the source of all of the package."""
    for path in sorted(ADDONS.rglob("*.py")):
        name = path.relative_to(ADDONS).as_posix()
        yield from ((name, node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))


def calls() -> list[tuple[str, str]]:
    """(file, what is called)."""
    return [(name, ast.unparse(node.func)) for name, node in nodes() if isinstance(node, ast.Call)]


def test_an_admission_is_constructed_in_exactly_one_place() -> None:
    made = [(name, called) for name, called in calls() if called.rpartition(".")[2] == "Admission"]
    assert made == [("ollama_auth/lifecycle.py", "Admission")]


@pytest.mark.slow
def test_an_admission_is_made_in_no_other_way() -> None:
    """Not by another name, not by a copy with changes, not by a subclass, not by name or from a file."""
    ways = {"replace", "dataclasses.replace", "copy.replace", "copy.copy", "deepcopy", "copy.deepcopy", "getattr"}
    ways |= {"pickle.loads", "eval", "exec", "object.__new__", "Admission.__new__", "object.__setattr__"}
    found = [(name, called) for name, called in calls() if called in ways]
    assert set(found) <= {
        ("ollama_auth/http/responses.py", "replace"),
        ("ollama_auth/ollama_api/routes.py", "replace"),
        ("ollama_auth/runtime.py", "replace"),
        ("ollama_auth/settings.py", "getattr"),
        ("ollama_auth/auth/key_fields.py", "getattr"),
        ("ollama_auth/option_table.py", "getattr"),
        ("ollama_auth/proxy/option_cache.py", "getattr"),
    }
    imported = [alias for _, node in nodes() if isinstance(node, ast.ImportFrom) for alias in node.names]
    renamed = {alias.asname for alias in imported if alias.asname != alias.name}
    bases = [ast.unparse(base) for _, node in nodes() if isinstance(node, ast.ClassDef) for base in node.bases]
    assigned = [ast.unparse(node.value) for _, node in nodes() if isinstance(node, ast.Assign)]
    assert renamed - {None} <= {"wall_clock", "formats", "models"}
    assert not {"Admission", "exchange.Admission"} & {*bases, *assigned}


def test_an_admission_can_not_be_changed() -> None:
    admission = Admission(UpstreamRequest(Principal("anna"), b"/", ()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        admission.request = UpstreamRequest(Principal("bert"), b"/", ())  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        admission.request.target = b"/api/delete"  # type: ignore[misc]


def test_our_own_request_ids_are_all_different() -> None:
    assert len({Exchange("client").id for _ in range(1000)}) == 1000


@given(st.lists(st.binary(max_size=5)))
def test_chunks_pass_as_they_are_and_are_counted(chunks: list[bytes]) -> None:
    exchange = Exchange("client")
    assert [exchange.request_chunk(chunk) for chunk in chunks] == chunks
    assert [exchange.response_chunk(chunk) for chunk in chunks] == chunks
    assert exchange.bytes_in == exchange.bytes_out == len(b"".join(chunks))


def test_the_first_byte_is_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """mitmproxy calls a stream with b"" at its end, which is no byte."""
    clock = iter([1.0, 2.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    exchange = Exchange("client", started=0.5)
    for chunk in (b"", b"a", b"b", b""):
        exchange.response_chunk(chunk)
    assert exchange.first_byte == 1.0


def test_two_requests_are_never_the_same() -> None:
    one, two = Exchange("client"), Exchange("client")
    assert (one.stripped, one.bytes_in) == (two.stripped, two.bytes_in)
    assert one != two


@each_of(
    ("status", "reason", "outcome"),
    [
        (200, None, Outcome.ANSWERED),
        (404, None, Outcome.ANSWERED),
        (204, "preflight", Outcome.ANSWERED),
        (401, "missing", Outcome.REFUSED),
        (413, "body too large", Outcome.REFUSED),
        (503, "error", Outcome.REFUSED),
        (500, None, Outcome.FAILED),
        (503, "upstream unreachable", Outcome.FAILED),
        (200, "upstream broken", Outcome.FAILED),
        (200, "client left", Outcome.BROKEN_OFF),
        (502, "killed", Outcome.BROKEN_OFF),
        (None, None, Outcome.BROKEN_OFF),
    ],
)
def test_how_a_request_ended(status: int | None, reason: str | None, outcome: Outcome) -> None:
    for admitted in (False, True):
        assert Exchange("client", status=status, reason=reason, admitted=admitted).outcome is outcome


def test_no_two_requests_count_as_the_same() -> None:
    """Gates that share limits are processes of their own: an address in memory would not tell them apart."""
    leases = {Exchange("client", id="the same").state.lease for _ in range(100)}
    assert len(leases) == 100
