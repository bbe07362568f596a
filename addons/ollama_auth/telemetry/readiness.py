"""Ask Ollama for `/readyz` and the console, verifying its certificate as mitmproxy does (see its tlsconfig addon)."""

import os
import ssl
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

import certifi
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from .. import IMPORTED  # noqa: F401, not a script: see ollama_auth/__init__.py


async def fetch(
    url: str, seconds: float, *, insecure: bool, ca_file: str | None, ca_folder: str | None, client_certs: str | None
) -> tuple[int, bytes]:
    """The status and the body that a GET of `url` is answered with within so many seconds; 0 without an answer.

    The others are mitmproxy's options ssl_insecure, ssl_verify_upstream_trusted_ca,
    ssl_verify_upstream_trusted_confdir and client_certs.
    """
    with suppress(OSError, HTTPClientError):
        target = urlsplit(url)
        secure = target.scheme == "https"
        response = await AsyncHTTPClient().fetch(
            url,
            raise_error=False,
            connect_timeout=seconds,
            request_timeout=seconds,
            follow_redirects=False,
            decompress_response=False,
            user_agent="ollama-auth",
            ssl_options=tls_context(target.hostname, insecure, ca_file, ca_folder, client_certs) if secure else None,
        )
        return response.code, response.body
    return 0, b""


@lru_cache(1)
def tls_context(
    host: str | None, insecure: bool, ca_file: str | None, ca_folder: str | None, client_certs: str | None
) -> ssl.SSLContext:
    """The same trust as mitmproxy's; made once, because loading certificates takes some 10 ms. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Without the strict flags of create_default_context.
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if ca_file is None and ca_folder is None:
        ca_file = certifi.where()
    context.load_verify_locations(ca_file, ca_folder)
    if client_certs:
        path = os.path.expanduser(client_certs)
        path = path if os.path.isfile(path) else os.path.join(path, f"{host}.pem")
        if os.path.isfile(path):
            context.load_cert_chain(path)
    return context
