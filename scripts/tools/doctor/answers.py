"""Does Ollama answer, with a clock like ours, and is the gate's own port free or a gate's?"""

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

from .findings import Finding, Level, Patient, bad, is_loopback, ok, warn

PATIENCE = 5.0
"""Seconds that the endpoint and the gate have to answer."""
MAX_ANSWER = 64 * 1024
FAR_OFF = 5.0
"""Seconds by which two clocks may differ before it is worth a word; the times compared are in whole seconds."""
TOO_FAR_OFF = 60.0
"""Seconds after which signatures of the CLI are refused (`ollama_signature_window`)."""
OLLAMA = (0, 17, 1)
"""Older ones give their memory, with keys and chats in it, to whoever may create models (CVE-2026-7482)."""


class Answer(NamedTuple):
    status: int
    fields: http.client.HTTPMessage
    body: bytes


def ask(url: SplitResult, path: str, context: ssl.SSLContext | None = None) -> Answer:
    """One GET, without a key. Raises OSError or http.client.HTTPException."""
    host, port = str(url.hostname), url.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
        if url.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=PATIENCE)
    )
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read(MAX_ANSWER))
    finally:
        connection.close()


def ollama(patient: Patient) -> Iterator[Finding]:
    """Is it there, is it Ollama, do its clock and its version do?"""
    where = patient.upstream.geturl()
    try:
        asked = time.time()
        answer = ask(patient.upstream, "/api/version")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        yield bad(where, f"nothing answers there ({why})", "start Ollama, or set OLLAMA_ENDPOINT to where it is")
        return
    version = version_in(answer)
    if is_a_gate(answer):
        yield bad(where, "a gate like this one answers there", "set OLLAMA_ENDPOINT to where Ollama itself is")
    elif version is None:
        yield bad(where, f"what answers there is no Ollama (status {answer.status})", "set OLLAMA_ENDPOINT rightly")
    elif numbers(version) < OLLAMA:
        remedy = "update Ollama; until then give no key the scope write"
        yield bad(where, f"Ollama {version} gives its memory away (CVE-2026-7482)", remedy)
    else:
        yield ok(where, f"Ollama {version} answers")
    yield from clock(answer.fields.get("Date"), (asked + time.time()) / 2)


def version_in(answer: Answer) -> str | None:
    """What Ollama calls itself, if it is one."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        version = json.loads(answer.body)["version"]
        if answer.status == 200 and isinstance(version, str) and numbers(version):
            return re.sub(r"[^\w.+-]", "", version)[:32]
    return None


def numbers(version: str) -> tuple[int, ...]:
    """`"0.17.1-rc2"` -> (0, 17, 1)."""
    match = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def is_a_gate(answer: Answer) -> bool:
    challenge = answer.fields.get("WWW-Authenticate", "")
    return answer.status == 401 and challenge.startswith(f'Bearer realm="{responses.REALM}"')


def clock(date: str | None, ours: float) -> Iterator[Finding]:
    """Signatures of the CLI, expiry and certificates are judged by our clock."""
    if date is None:
        return
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return
    apart = abs(theirs - ours)
    if apart <= FAR_OFF:
        yield ok("clock", "it agrees with Ollama's")
    else:
        level = Level.WARN if apart < TOO_FAR_OFF else Level.BAD
        remedy = "set both by NTP: timedatectl set-ntp on"
        yield Finding(level, "clock", f"it is {apart:.0f} s away from Ollama's", remedy)


def gate(patient: Patient) -> Iterator[Finding]:
    where = patient.address.geturl()
    shown = patient.given("ollama_metrics_listen")
    if shown and not is_loopback(shown.rpartition(":")[0].strip("[]")):
        remedy = "127.0.0.1:9464, or a network that only Prometheus is in"
        yield warn("status page", "other machines may see who uses what: it has no key", remedy)
    if same_place(patient):
        yield bad(where, "the gate would be its own endpoint", "give it another port, or set OLLAMA_ENDPOINT")
        return
    try:
        answer = ask(patient.address, "/", unverified())
    except ConnectionRefusedError:
        yield ok(where, "the port is free")
    except (OSError, http.client.HTTPException) as error:
        what = f"what listens there does not answer as the gate would ({type(error).__name__})"
        yield bad(where, what, "stop it, or give the gate another port with --listen-port")
    else:
        if is_a_gate(answer):
            yield ok(where, "a gate runs there, and wants a key")
        else:
            what = f"something else answers there (status {answer.status}), and without a key"
            yield bad(where, what, "stop it, or give the gate another port with --listen-port")


def same_place(patient: Patient) -> bool:
    both = (patient.upstream, patient.address)
    return len({url.port for url in both}) == 1 and all(is_loopback(str(url.hostname)) for url in both)


def unverified() -> ssl.SSLContext:
    """The certificate was looked at already, and nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
