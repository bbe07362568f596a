"""Whether the certificate is valid, if there is one, and whether one is needed."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from .findings import Finding, Level, bad, ok, warn
from .target import Target, is_loopback

MAX_FILE = 1 << 20
"""Bytes."""
RENEW_BEFORE = timedelta(days=21)


def certificates(target: Target) -> Iterator[Finding]:
    if target.launched.certificates:
        for path in target.launched.certificates:
            yield from certificate(path, datetime.now(UTC))
    elif target.launched.listen_host in ("", "0.0.0.0", "::") or not is_loopback(str(target.address.hostname)):  # noqa: S104
        remedy = "put TLS in front and add --listen-host 127.0.0.1, or run with --certs cert.pem"
        yield warn("TLS", "the gate takes keys and chats in clear text from other machines", remedy)
    else:
        yield ok("TLS", "none, and only this machine can connect")


def certificate(path: Path, now: datetime) -> Iterator[Finding]:
    """Check a file with a certificate, its chain and its key, as mitmproxy's --certs takes it."""
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE)
        leaf, *chain = x509.load_pem_x509_certificates(data)
        key = serialization.load_pem_private_key(data, None)
    except OSError as error:
        yield bad(where, f"can't be read ({error.strerror})", "name a file that you may read")
        return
    except (ValueError, TypeError):
        remedy = "put the certificate, its chain and its key without a password into that file, in PEM"
        yield bad(where, "has no certificate and key that can be used", remedy)
        return
    faults = [*dates(leaf, now), *contents(leaf, chain, key)]
    yield from (Finding(level, where, what, remedy) for level, what, remedy in faults)
    if not faults:
        days = (leaf.not_valid_after_utc - now).days
        yield ok(where, f"good for {', '.join(names(leaf))}, for {days} days")


def dates(leaf: x509.Certificate, now: datetime) -> Iterator[tuple[Level, str, str]]:
    if now < leaf.not_valid_before_utc:
        yield Level.BAD, "it is not valid yet", "look at this machine's clock, or wait"
    elif now > leaf.not_valid_after_utc:
        yield Level.BAD, f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d}", "renew it, and start the gate again"
    elif leaf.not_valid_after_utc - now < RENEW_BEFORE:
        yield Level.WARN, f"it expires on {leaf.not_valid_after_utc:%Y-%m-%d}", "renew it, and start the gate again"


def contents(leaf: x509.Certificate, chain: Sequence[x509.Certificate], key: Any) -> Iterator[tuple[Level, str, str]]:
    if key.public_key() != leaf.public_key():
        yield Level.BAD, "its key is another one's, or it is not the first in the file", "put the certificate first"
    if not names(leaf):
        yield Level.BAD, "it names no host that clients would accept (subjectAltName)", "have it made with one"
    public = leaf.public_key()
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < 2048:
        yield Level.BAD, f"its RSA key has only {public.key_size} bits", "have it made with 2048 or more, or with P-256"
    for lower, upper in zip([leaf, *chain], chain, strict=False):
        if lower.issuer != upper.subject:
            yield Level.WARN, "its chain is not in order", "put each certificate after the one that it signed"
            return


def names(leaf: x509.Certificate) -> list[str]:
    """The hosts in its subjectAltName. Clients ignore the common name (RFC 9110 section 4.3.4)."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
