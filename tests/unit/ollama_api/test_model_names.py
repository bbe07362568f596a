"""Names of models and patterns mean what they mean to Ollama (its own types/model and modelref)."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api.model_names import allowed, canonical, check_pattern, is_cloud, reference
from tests.harness.cases import each_of

# Names.


@each_of(
    ("text", "expected"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:latest", "llama3.2:latest"),
        ("LLAMA3.2:Latest", "llama3.2:latest"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2", "llama3.2:latest"),
        ("Registry.Ollama.AI/Library/Llama3.2:LATEST", "llama3.2:latest"),
        ("https://registry.ollama.ai/library/llama3.2", "llama3.2:latest"),
        ("http:///library/m", "m:latest"),
        ("m:8b-q4_K_M", "m:8b-q4_k_m"),
        ("alice/m", "alice/m:latest"),
        ("hf.co/alice/m:Q4", "hf.co/alice/m:q4"),
        ("http://localhost:5000/alice/m", "localhost:5000/alice/m:latest"),
        ("localhost:5000/alice/m:8b", "localhost:5000/alice/m:8b"),
        ("_m", "_m:latest"),
        ("m:local", "m:local"),
        ("m:cloud", "m:cloud"),
        ("m" * 80, "m" * 80 + ":latest"),
        ("h" * 350 + "/n/m", "h" * 350 + "/n/m:latest"),
    ],
)
def test_the_canonical_name(text: str, expected: str) -> None:
    assert canonical(text) == expected
    assert canonical(expected) == expected


@each_of(
    "text",
    [
        *("", " ", ":", "m:", ":8b", "/", "/m", "m/", "a//b", "//m", "http://m", "http://n/m", "a/b/c/d", "h:5000/m"),
        *("m:8b:9b", "m@sha256:ab", "-m", ".m", "m:-x", "m m", " m", "m ", "m\n", "m\0", "m*", "*", "n.n/m", "mé"),
        *("\N{KELVIN SIGN}", "m\N{KELVIN SIGN}", "\N{FULLWIDTH LATIN SMALL LETTER M}", "m:\N{ARABIC-INDIC DIGIT ONE}"),
        *(
            "m" * 81,
            "m:" + "t" * 81,
            "n" * 81 + "/m",
            "h" * 351 + "/n/m",
            "../m",
            "x/../m",
            "..",
            "m:..",
            "x://y://h/n/m",
        ),
        *("\ud800", "m" * 1_000_000, "/" * 100_000, ":" * 100_000),
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert canonical(text) is None
    assert not allowed(["*", "*:*", "*/*", "*/*/*:*"], text)


@given(st.text() | st.text("aA0_-.:/ @é", max_size=12))
def test_any_text_has_a_canonical_name_or_none(text: str) -> None:
    name = canonical(text)
    assert name is None or (canonical(name) == name and name == name.lower() and name.isascii() and len(name) < 600)


@each_of(
    ("text", "expected"),
    [
        ("m", "m:latest"),
        (" m\n", "m:latest"),
        ("\u2003m:8b\x85", "m:8b"),
        ("m:local", "m:latest"),
        ("m:8b:LOCAL", "m:8b"),
        ("m: local ", "m:latest"),
        ("m:cloud", "m:cloud"),
        ("m:CLOUD", "m:cloud"),
        ("m: cloud ", "m:cloud"),
        ("m:8b:cloud", "m:8b-cloud"),
        ("m:8b-cloud", "m:8b-cloud"),
        ("M:8B-Cloud ", "m:8b-cloud"),
        ("n/m:8b:cloud", "n/m:8b-cloud"),
        ("h:5000/n/m-cloud", "h:5000/n/m-cloud:latest"),
        ("m:locally", "m:locally"),
        ("m-cloud", "m-cloud:latest"),
        ("m:cloudy", "m:cloudy"),
        ("", None),
        (" \t", None),
        ("\x1cm", None),
        ("\u200bm", None),
        ("m:", None),
        (":cloud", None),
        ("m:-cloud", None),
        ("m:local:cloud", None),
        ("m:cloud:local", None),
        ("m:8b-cloud:cloud", None),
        ("m :cloud", None),
        ("m\0:cloud", None),
    ],
)
def test_what_a_request_refers_to(text: str, expected: str | None) -> None:
    assert reference(text) == expected


@given(st.sampled_from(["m:cloud", "m:8b:cloud", "m:8b-CLOUD", " m:8b-cloud", "n/m: cloud", "m:8b", "m", "m:local"]))
def test_a_cloud_model_is_one_however_it_is_written(text: str) -> None:
    name = reference(text)
    assert name
    assert is_cloud(text) is is_cloud(name) is ("cloud" in text.lower())


@each_of("text", ["", "m", "cloud", "m-cloud", "cloud/m", "m:cloudy", "h:5000/n/m-cloud", "m:local", "é"])
def test_what_is_no_cloud_model(text: str) -> None:
    assert not is_cloud(text)


# Patterns.


@each_of(
    ("pattern", "name", "expected"),
    [
        ("llama3.2", "llama3.2", True),
        ("llama3.2", "llama3.2:latest", True),
        ("llama3.2", "registry.ollama.ai/library/LLAMA3.2", True),
        ("LLama3.2:Latest", "llama3.2", True),
        ("llama3.2", "llama3.2:1b", False),
        ("llama3.2", "llama3.20", False),
        ("llama3.2", "llama312", False),
        ("llama3.2", "alice/llama3.2", False),
        ("llama3.2", "evil.example/library/llama3.2", False),
        ("llama3.2:1b", "llama3.2:1b", True),
        ("llama3.2:1b", "llama3.2", False),
        ("llama3.2:*", "llama3.2", True),
        ("llama3.2:*", "llama3.2:1b", True),
        ("llama3.2:*", "llama3.2-vision:1b", False),
        ("llama3.2:1b*", "llama3.2:1b-q4", True),
        ("llama3.2:*-q4", "llama3.2:1b-q8", False),
        ("qwen*", "qwen", True),
        ("qwen*", "qwen2.5-coder:7b", True),
        ("qwen*", "alice/qwen2.5", False),
        ("qwen*", "hf.co/library/qwen2.5", False),
        ("qwen*:7b", "qwen2.5:7b", True),
        ("qwen*:7b", "qwen2.5:14b", False),
        ("*", "anything:8b", True),
        ("*", "alice/anything", False),
        ("*:latest", "anything:8b", False),
        ("*/*", "alice/anything:8b", True),
        ("*/*", "anything", True),
        ("*/*", "hf.co/alice/anything", False),
        ("*/llama3.2", "alice/llama3.2", True),
        ("*/llama3.2", "alice/llama3.2:1b", False),
        ("alice/*", "alice/m:8b", True),
        ("alice/*", "bob/m:8b", False),
        ("hf.co/*/*", "hf.co/alice/m:q4", True),
        ("hf.co/*/*", "hf.cox/alice/m:q4", False),
        ("hf*/alice/m", "hf.co:443/alice/m", True),
        ("*/*/*", "evil.example:5000/a/b:c", True),
        ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud", True),
        ("gpt-oss:20b", "gpt-oss:20b-cloud", False),
        ("*coder*", "qwen2.5-coder:7b", True),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxcyyb", False),
    ],
)
def test_what_a_pattern_allows(pattern: str, name: str, expected: bool) -> None:
    assert check_pattern(pattern) is None
    assert allowed((pattern,), name) is expected


@each_of(
    "pattern",
    [
        *("", " ", "m ", " m", "m:", ":*", "/m", "*/", "a/b/c/d", "*/*/*/*", "http://h/n/m", "*://h/n/m", "m:8b:cloud"),
        *("qwen?", "qwen[23]", "qwen\\*", "{a,b}", "m*\n", "mé*", "m;x", "m,n", "!m", "-m", "m" * 81),
    ],
)
def test_a_faulty_pattern_is_said_to_be_one_and_matches_nothing(pattern: str) -> None:
    assert check_pattern(pattern)
    assert not any(allowed((pattern,), name) for name in ("m", "qwen2", pattern, "h/n/m"))


def test_no_pattern_allows_nothing_and_one_of_several_is_enough() -> None:
    assert not allowed((), "m")
    assert allowed(("a", "m*"), "mistral")


part = st.text("ab*", min_size=1, max_size=4)


@given(
    st.builds("{}/{}/{}:{}".format, part, part, part, part),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=4, max_size=4),
)
def test_a_pattern_matches_part_by_part(pattern: str, parts: list[str]) -> None:
    """Against a matcher that is as slow as it is simple."""

    def matches(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(matches(pattern[1:], text[i:]) for i in range(len(text) + 1))
        return text[:1] == pattern[0] and matches(pattern[1:], text[1:])

    expected = all(map(matches, pattern.replace(":", "/").split("/"), parts))
    assert allowed((pattern,), "{}/{}/{}:{}".format(*parts)) is expected


@given(st.text(max_size=10), st.text(max_size=10))
def test_any_text_is_a_pattern_or_matches_nothing(pattern: str, name: str) -> None:
    assert not (allowed((pattern,), name) and check_pattern(pattern))
