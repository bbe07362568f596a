"""A copy of a body holds its beginning, says whether there was more, and changes nothing that passes."""

import pytest
from mitmproxy.http import Message
from mitmproxy.test import tutils

from ollama_auth import bounded_copy
from ollama_auth.bounded_copy import BoundedCopy, keeping
from tests.harness.cases import each_of


def test_the_first_of_a_body_is_kept_and_that_there_was_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_copy, "MAX_KEPT", 5)
    kept = BoundedCopy()
    for piece, truncated in ((b"123", False), (b"45", False), (b"", False), (b"6", True), (b"7", True)):
        kept.add(piece)
        assert kept.truncated is truncated
    assert kept.data == b"12345"


@each_of("message", [tutils.treq(), tutils.tresp()])
def test_a_body_that_is_kept_passes_as_it_is(message: Message) -> None:
    passed: list[bytes] = []
    chunk = keeping(message, lambda data: passed.append(data) or data)  # type: ignore[func-returns-value]
    assert [chunk(data) for data in (b"one ", b"two", b"")] == [b"one ", b"two", b""] == passed
    assert message.raw_content == b"one two"


@pytest.mark.parametrize("chunks", [[b"12345", b""], [b"123", b"45", b"6", b""], [b"1234", b"5", b""]])
def test_nothing_is_kept_of_a_body_that_is_too_large(chunks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_copy, "MAX_KEPT", 4)
    message = tutils.tresp(content=None)
    chunk = keeping(message, bytes)
    assert [chunk(data) for data in chunks] == chunks
    assert message.raw_content is None
