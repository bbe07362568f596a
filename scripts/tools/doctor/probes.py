"""Whether Ollama answers, with a clock like ours, and whether the gate's own port is free or a gate's."""

import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import SplitResult

from ollama_auth.http import responses

from .findings import Finding, Level, bad, ok, warn
from .target import Target, is_loopback

TIMEOUT = 5.0
"""Seconds that the endpoint and the gate have to answer."""
MAX_BODY = 64 * 1024
"""Bytes."""
SKEW_WARN, SKEW_BAD = 5.0, 60.0
"""Seconds between two clocks. From SKEW_BAD the gate refuses signatures of the CLI (`ollama_signature_window`)."""
OLDEST_SAFE, ADVISORY = (0, 17, 1), "CVE-2026-7482"
"""Before this version a client that may create models can read Ollama's memory, with keys and chats in it.

Before each release of ours, raise both to the latest of https://github.com/ollama/ollama/security/advisories.
"""


class Response(NamedTuple):
    """A response; at most MAX_BODY of its body."""

    status: int
    fields: http.client.HTTPMessage
    body: bytes


def ask(url: SplitResult, path: str, context: ssl.SSLContext | None = None) -> Response:
    """Send one GET without a key. Raises OSError or http.client.HTTPException."""
    host, port = str(url.hostname), url.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
        if url.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    )
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read(MAX_BODY))
    finally:
        connection.close()


def ollama(target: Target) -> Iterator[Finding]:
    """Check that the endpoint is an Ollama server, not vulnerable, with a clock like ours."""
    if target.launched.demo:
        yield ok("Ollama", "none is needed: --demo brings a fake one")
        return
    where = target.upstream.geturl()
    try:
        asked = time.time()
        response = ask(target.upstream, f"{target.upstream.path}/api/version")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        yield bad(where, f"nothing answers there ({why})", "start Ollama, or set OLLAMA_ENDPOINT to where it is")
        return
    version = version_in(response)
    if is_gate(response):
        yield bad(where, "a gate like this one answers there", "set OLLAMA_ENDPOINT to where Ollama itself is")
    elif version is None:
        yield bad(where, f"what answers there is not Ollama (status {response.status})", "correct OLLAMA_ENDPOINT")
    elif numbers(version) < OLDEST_SAFE:
        remedy = "update Ollama; until then give no key the scope write"
        yield bad(where, f"Ollama {version} lets clients read its memory ({ADVISORY})", remedy)
    else:
        yield ok(where, f"Ollama {version} answers")
    yield from clock(response.fields.get("Date"), (asked + time.time()) / 2)


def version_in(response: Response) -> str | None:
    """The version, if this is a response of Ollama."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        version = json.loads(response.body)["version"]
        if response.status == 200 and isinstance(version, str) and numbers(version):
            return re.sub(r"[^\w.+-]", "", version)[:32]
    return None


def numbers(version: str) -> tuple[int, ...]:
    """`"0.17.1-rc2"` -> (0, 17, 1)."""
    match = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def is_gate(response: Response) -> bool:
    """Whether this is the 401 of a gate."""
    challenges = response.fields.get_all("WWW-Authenticate") or ()
    ours = f'Bearer realm="{responses.REALM}"'
    return response.status == 401 and any(challenge.startswith(ours) for challenge in challenges)


def clock(date: str | None, ours: float) -> Iterator[Finding]:
    """Compare Ollama's clock with ours, which decides on signatures of the CLI, expiry dates and certificates."""
    if date is None:
        return
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return
    apart = abs(theirs - ours)
    if apart <= SKEW_WARN:
        yield ok("clock", "it agrees with Ollama's")
    else:
        level = Level.WARN if apart < SKEW_BAD else Level.BAD
        remedy = "set both by NTP: timedatectl set-ntp on"
        yield Finding(level, "clock", f"it is {apart:.0f} s away from Ollama's", remedy)


def gate(target: Target) -> Iterator[Finding]:
    """Check that the gate's own address is free, or a gate's, and that the status page is not for everybody."""
    where = target.address.geturl()
    status_page = target.value("ollama_metrics_listen")
    if status_page and not is_loopback(status_page.rpartition(":")[0].strip("[]")):
        remedy = "set ollama_metrics_public=false, or listen on 127.0.0.1:9464; the console needs a key there"
        yield warn("status page", "other machines may see who uses what: /metrics requires no key", remedy)
    if is_own_upstream(target) and not target.launched.demo:
        yield bad(where, "the gate would be its own endpoint", "give it another port, or set OLLAMA_ENDPOINT")
        return
    try:
        response = ask(target.address, "/", unverified())
    except ConnectionRefusedError:
        yield ok(where, "the port is free")
    except (OSError, http.client.HTTPException) as error:
        what = f"what listens there does not answer as the gate would ({type(error).__name__})"
        yield bad(where, what, "stop it, or give the gate another port with --listen-port")
    else:
        if is_gate(response):
            yield ok(where, "a gate runs there, and requires a key")
        else:
            what = f"something else answers there (status {response.status}), and without a key"
            yield bad(where, what, "stop it, or give the gate another port with --listen-port")


def is_own_upstream(target: Target) -> bool:
    """Whether the endpoint is the gate's own address."""
    both = (target.upstream, target.address)
    return len({url.port for url in both}) == 1 and all(is_loopback(str(url.hostname)) for url in both)


def unverified() -> ssl.SSLContext:
    """A context without verification: another check covers the certificate, and nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
