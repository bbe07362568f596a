"""Model names as Ollama reads them: their canonical form, cloud models, and the patterns of a key. Pure.

The rules are those of Ollama's types/model and internal/modelref (0.33). Names are compared without case; a registry,
namespace or tag that is left out is `registry.ollama.ai`, `library` or `latest`.
"""

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py

_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""White space to Go's unicode.IsSpace. Python's str.strip() strips U+001C to U+001F too."""

# Registry, namespace, model and tag. In a pattern, "*" may stand anywhere in each of them.
_PARTS = (
    re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}"),
    re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
)
_PATTERN_PARTS = tuple(re.compile(part.pattern.replace("[a-z", "[*a-z")) for part in _PARTS)

type _Name = tuple[str, str, str, str]


def canonical(name: str) -> str | None:
    """Return a model's name as `ollama list` shows it, such as `llama3.2:latest`; None if Ollama rejects the name.

    Lower case, without the default registry and namespace. A scheme before the registry is dropped, as Ollama does.
    """
    parsed = _parse(name, _PARTS)
    if parsed is None:
        return None
    registry, namespace, model, tag = parsed
    if registry != _REGISTRY:
        return f"{registry}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"


@lru_cache(maxsize=1024)
def short(name: str) -> str:
    """One name for all ways to write that of a model: canonical, without the tag `latest`; any other text as it is."""
    return (canonical(name) or name).removesuffix(f":{_TAG}")


def reference(text: str) -> str | None:
    """Return the canonical name of the model that a request refers to, or None.

    White space around the name and a suffix `:local` are ignored. `m:cloud` and `m:8b:cloud` are the cloud models
    that Ollama lists as `m:cloud` and `m:8b-cloud`.
    """
    base, source = _split_source(text.strip(WHITE_SPACE))
    if source and _split_source(base)[1]:
        return None
    if source == "cloud":
        base += "-cloud" if base.rfind(":") > base.rfind("/") else ":cloud"
    return canonical(base)


def is_cloud(name: str) -> bool:
    """Whether a name, as sent or canonical, stands for a model that runs at ollama.com.

    A cloud model that was copied to another name can't be recognized.
    """
    return _split_source(name)[1] == "cloud"


def _split_source(text: str) -> tuple[str, str]:
    """(the name without its source, "cloud" or "local" or ""). A tag such as 8b-cloud is the tag 8b in the cloud."""
    base, colon, suffix = text.rpartition(":")
    suffix = suffix.strip(WHITE_SPACE)
    lower = suffix.lower()
    if colon and lower in ("cloud", "local"):
        return base, lower
    if colon and "/" not in suffix and lower.endswith("-cloud"):
        return f"{base}:{suffix[: -len('-cloud')]}", "cloud"
    return text, ""


def _parse(text: str, parts: Iterable[re.Pattern[str]]) -> _Name | None:
    if not text.isascii():  # lower() turns U+212A into an ASCII letter.
        return None
    text, tag, namespace, registry = text.lower(), None, _NAMESPACE, _REGISTRY
    if text.rfind(":") > text.rfind("/"):
        text, _, tag = text.rpartition(":")
    rest, slash, model = text.rpartition("/")
    if slash:
        rest, slash, namespace = rest.rpartition("/")
    if slash:
        before, scheme, after = rest.partition("://")
        registry = (after or _REGISTRY) if scheme else before
    if tag is None:
        tag = "*" if "*" in model else _TAG
    name = (registry, namespace, model, tag)
    return name if all(part.fullmatch(text) for part, text in zip(parts, name, strict=True)) else None


@lru_cache(maxsize=16384)
def _pattern(text: str) -> _Name | None:
    return None if "://" in text else _parse(text, _PATTERN_PARTS)


def check_pattern(text: str) -> str | None:
    """Return what is wrong with a pattern, in words that follow its name; None if it is valid."""
    if _pattern(text):
        return None
    return (
        "is not a valid name of a model: write it as `ollama list` does, such as llama3.2, llama3.2:*, qwen* "
        "or hf.co/*/*"
    )


def allowed(patterns: Collection[str], name: str) -> bool:
    """Whether one of the patterns matches a name. Invalid names and invalid patterns match nothing.

    `llama3.2` matches that model's tag `latest` only, `llama3.2:*` all its tags, and `qwen*` every tag of every model
    whose name begins so. A pattern without registry or namespace means the default ones: "*" never crosses a "/".
    """
    parsed = _parse(name, _PARTS)
    valid = filter(None, map(_pattern, patterns))
    return parsed is not None and any(all(map(fnmatchcase, parsed, pattern)) for pattern in valid)
