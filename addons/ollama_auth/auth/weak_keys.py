"""Texts that are no key: what a broken configuration has left of one, and what others would guess. Pure."""

import hashlib
import re
from functools import cache

from .keys import SHORT, InvalidKeyError

_LINE = re.compile(r"\s*(?:(?:export|set)\s+|\$env:)?(?:OLLAMA_\w*\s*[=:]|[A-Za-z_]\w*\s*=(?!=|$))", re.IGNORECASE)
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_VARIABLE = re.compile(r"\$[A-Za-z_{(]|\$[0-9?*@]$|%[A-Za-z_]\w*%|\{\{|`.*`|^<.*>$")
_COMMON = re.findall(
    r"\w+",
    """
    abcdefghijklmnopqrstuvwxyz access account admin ai anthropic api apikey auth bar basic battery baz bearer change
    changeit changeme client correct default demo dev docker dummy example fixme foo gate gateway generate guest hello
    here horse insert key letmein llama local localhost me mine model my myself new none null ollama one openai pass
    passphrase passwd password placeholder please private prod production proxy public qwerty qwertyuiop random replace
    replaceme root sample secret server shared sk some staple string super test tester testing the this todo token top
    user value very webui welcome with word world xxx your yours
    """,
)
"""Words, in lower case, of which a key must not be made."""
_WORDS_AND_DIGITS = re.compile(rf"(?:{'|'.join(sorted(_COMMON, key=len, reverse=True))})*+(\d*)")
_DIGEST = re.compile(r"[0-9A-Fa-f]{32,64}")
_COUNTED = "01234567890123456789012345678901234567890 9876543210"
_LEFT_OF_ONE = ("", "$KEY", "$OLLAMA_API_KEY", "${OLLAMA_API_KEY}", "THE_KEY", "YOUR_KEY", "YOUR-KEY")
_FEWEST, _FEWEST_DIFFERENT = 6, 4
"""Characters besides those words; a key with fewer is made of nothing else."""


def check(secret: str) -> None:
    """Refuse what was not meant to be a key, whether or not a header could hold it. Raises InvalidKeyError."""
    if _LINE.match(secret):
        raise InvalidKeyError("the key is a whole line NAME=value: set it to what stands behind the sign")
    text = secret.strip()
    if text and (text[0] in _QUOTES or text[-1] in _QUOTES):
        raise InvalidKeyError(
            "the key begins or ends with a quote, which would be part of it: take the quotes away, which files for "
            "Docker's --env-file and key files don't need"
        )
    if _VARIABLE.search(text):
        raise InvalidKeyError("the key has the name of a variable in it, which nothing has replaced by its value")


def check_strength(secret: str) -> None:
    """Refuse a key that others would guess. Raises InvalidKeyError."""
    if len(secret) < SHORT:
        raise InvalidKeyError(f"the key has fewer than {SHORT} characters and may be guessed")
    if hash_of_common(secret):
        raise InvalidKeyError("the key is the digest of a well-known word, or of nothing")
    words = [secret.lower(), *re.split(r"[^a-z0-9]+", secret.lower())]
    rest = "" if _is_common(words[0]) else "".join(word for word in words[1:] if word.isdigit() or not _is_common(word))
    if len(rest) < _FEWEST or len(set(rest)) < _FEWEST_DIFFERENT:
        raise InvalidKeyError("the key is made of well-known words, or repeats itself, and may be guessed")


def _is_common(word: str) -> bool:
    """Whether it is made of well-known words, with a short number or one that counts up or down behind them."""
    found = _WORDS_AND_DIGITS.fullmatch(word)
    return found is not None and (len(found[1]) <= 4 or found[1] in _COUNTED)


def hash_of_common(digest: str) -> bool:
    """Whether hex digits are the SHA-256 digest (or SHA-1, or MD5) of a well-known word, or of nothing."""
    return bool(_DIGEST.fullmatch(digest)) and digest.lower() in _hashes_of_common()


@cache
def _hashes_of_common() -> frozenset[str]:
    words = [*_LEFT_OF_ONE, *(_COUNTED[:length] for length in range(2, 11)), *map(str, range(1, 1000))]
    words += [_COUNTED[1 : 1 + length] for length in range(2, 17)]
    for word in _COMMON:
        words += [word, word.upper(), word.capitalize(), f"sk-{word}", f"sk-ollama-{word}", f"{word}1", f"{word}123"]
    texts = [f"{word}{end}".encode() for word in words for end in ("", "\n")]
    makers = (hashlib.sha256, hashlib.sha1, hashlib.md5)
    return frozenset(make(text, usedforsecurity=False).hexdigest() for make in makers for text in texts)
