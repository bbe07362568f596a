"""Named keys for a keys file, the header fields that present them, and the signatures of the stock Ollama CLI."""

import base64
import hashlib
import json
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CLI = Ed25519PrivateKey.generate()


def secret(name: str) -> str:
    return f"sk-ollama-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def entry(name: str, **fields: object) -> str:
    """A [[keys]] table; the secret is `secret(name)`."""
    fields = {"name": name, "sha256": hashlib.sha256(secret(name).encode()).hexdigest()} | fields
    lines = [f"{field} = {value if field == 'expires' else json.dumps(value)}" for field, value in fields.items()]
    return "\n".join(["[[keys]]", *lines, ""])


def bearer(name: str) -> str:
    return f"Authorization: Bearer {secret(name)}"


def public_line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


PUBLIC = public_line(CLI)


def signature(method: str, target: str, key: Ed25519PrivateKey = CLI) -> str:
    """The Authorization field as the stock CLI makes it."""
    public = public_line(key).split()[1]
    return f"Authorization: {public}:{base64.b64encode(key.sign(f'{method},{target}'.encode())).decode()}"


def signed(path: str, at: float | None = None) -> str:
    return f"{path}{'&' if '?' in path else '?'}ts={int(at or time.time())}"
