"""Self-signed certificates, a client context that trusts one, and an HTTPS server that presents one."""

import ipaddress
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


def key_and_certificate(
    names: Sequence[str] = ("localhost",),
    days: tuple[int, int] = (-1, 90),
    own_key: bool = True,
    weak: bool = False,
    issuer: str = "localhost",
) -> bytes:
    """A private key and a certificate for `names` in PEM, valid between two days counted from now.

    Without `own_key` the key belongs to another certificate; a `weak` one is RSA with 1024 bits.
    """
    key = rsa.generate_private_key(65537, 1024) if weak else ec.generate_private_key(ec.SECP256R1())  # noqa: S505, a finding to test
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    private = key if own_key else ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    text = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return text + signed.public_bytes(pem)


def general_name(name: str) -> x509.GeneralName:
    """A subject alternative name from a host name or an IP address."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def certificate(folder: Path) -> Path:
    """A PEM file, as `--certs` takes it, for localhost and 127.0.0.1."""
    path = folder / "localhost.pem"
    path.write_bytes(key_and_certificate(("localhost", "127.0.0.1")))
    return path


class Secure(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"secure")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_tls(folder: Path) -> Iterator[tuple[int, Path]]:
    """(port, certificate) of an HTTPS server on localhost that answers every GET "secure"."""
    file = certificate(folder)
    server = HTTPServer(("127.0.0.1", 0), Secure)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    with suppress(GeneratorExit):
        yield server.server_address[1], file
    server.shutdown()
    thread.join()
    server.server_close()


def trusting(path: Path, *alpn: str) -> ssl.SSLContext:
    """A client context that trusts this certificate alone and offers these protocols."""
    context = ssl.create_default_context(cafile=str(path))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
