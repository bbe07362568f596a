"""The scanner finds what a parser finds, however the document comes, and keeps nothing else."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api import json_scanner
from ollama_auth.ollama_api.json_scanner import MAX_TOKEN, Scanner, Wanted
from tests.harness.cases import each_of


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


WANTED: Wanted = {b"a": "A", b"b": {b"a": "BA", b"c": {b"a": "BCA"}}, b"c": "C", b"\xc3\xa9": "E"}
names = st.sampled_from(["a", "b", "c", "é", "d", 'a"', "a\\", ""]) | st.text(max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=25
)
documents = st.dictionaries(names, values, max_size=6)
arrays = st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=6), max_leaves=50)
numbers = st.dictionaries(names, arrays, max_size=6)


def expected_of(document: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """What a parser of whole documents finds in the places the scanner looks at."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        inner = wanted.get(name.encode("utf-8", "surrogatepass"))
        if isinstance(inner, str):
            found |= {} if isinstance(value, dict | list) else {inner: value}
        elif inner is not None:
            for item in value if isinstance(value, list) else [value]:
                found |= expected_of(item, inner) if isinstance(item, dict) else {}
    return found


@given(documents | numbers, st.integers(1, 30), st.sampled_from([None, 1, "\t"]), st.sampled_from([4, 1024]))
def test_the_scanner_finds_what_a_parser_finds(
    document: dict[str, Any], size: int, indent: int | str | None, long: int
) -> None:
    """Also if `long` bytes are enough for the way in which long arrays of numbers are skipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scanner, "_LONG", long)
        scan(document, size, indent)


def scan(document: dict[str, Any], size: int, indent: int | str | None) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    for pieces in ((text,), cut(text, size), cut(text, 1)):
        scanner = Scanner(WANTED)
        for piece in pieces:
            assert not scanner.closed
            scanner.feed(piece)
        assert scanner.closed
        found = {name: json.loads(raw.decode("utf-8", "surrogatepass")) for name, raw in scanner.found.items()}
        assert found == expected_of(document, WANTED)


@each_of("size", [1, 1000, 100_000])
def test_long_names_and_values_are_passed_over(size: int) -> None:
    long = b'"' + b'\\"' * MAX_TOKEN + b'"'
    scanner = Scanner({b"a": "A", b"b": "B"})
    for piece in cut(b'{%s:"a","b":%s,"c":[%s,{%s:"a"}],"a":1}' % ((long,) * 4), size):
        scanner.feed(piece)
    assert (scanner.found, scanner.closed) == ({"A": b"1", "B": b""}, True)


def test_what_follows_the_object_is_not_read() -> None:
    scanner = Scanner({b"a": "A"})
    scanner.feed(b'{"a":1}{"a":2}')
    scanner.feed(b'{"a":3}')
    assert scanner.found == {"A": b"1"}
