"""Text of a keys file, and what becomes of it."""

import base64
from pathlib import Path

from ollama_auth.auth.keys import Principal
from ollama_auth.auth.keys_file import KeysFileError, parse

SECRET = "sk-ollama-0123456789abcdef0123456789abcdef"
A, B = "aa" * 32, "bb" * 32
PUBLIC = bytes(range(32))
NEW_YEAR = 1798761600.0  # 2027-01-01T00:00:00Z
DAY = 86400.0


def wire(public: bytes, kind: bytes = b"ssh-ed25519") -> str:
    """A public key as it stands between the type and the comment of OpenSSH's line."""
    return base64.b64encode(b"".join(len(part).to_bytes(4) + part for part in (kind, public))).decode()


SSH = f"ssh-ed25519 {wire(PUBLIC)} bob"


def key(*lines: str, name: str = "alice", sha256: str = A) -> str:
    """A [[keys]] table with these lines in it."""
    return "\n".join(["[[keys]]", f'name = "{name}"', f'sha256 = "{sha256}"', *lines, ""])


def the(text: str) -> Principal:
    """The principal of the one key in a file."""
    (found,) = parse(text.encode(), "keys.toml")
    return found.principal


def faults(text: str | bytes) -> tuple[str, ...]:
    """What is wrong with a file, or nothing."""
    try:
        parse(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "keys.toml")
    except KeysFileError as error:
        return error.faults or ("none was told",)
    return ()


def written(path: Path, text: str | bytes = key(), mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path
