"""Text that a spreadsheet would run."""

import pytest

from ollama_auth.telemetry.spreadsheet import harmless


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_begins_like_a_formula(begin: str) -> None:
    """Not after white space either, nor where a spreadsheet that expects semicolons has its next cell."""
    for before in ("", " ", "\t", "\r", "\n", "a;", "a; ", "a\r\n", ";;"):
        assert harmless(f"{before}{begin}1+1") == f"{before}'{begin}1+1"


def test_other_text_stays() -> None:
    for text in ("", "llama3.2", "qwen-coder=1", "a, -b", "2026-11-26", "alice@example.org", "'=1"):
        assert harmless(text) == text
