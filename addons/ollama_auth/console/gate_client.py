"""Send a request to the gate itself with the key signed in: it is authorized, limited and logged as any other."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import h11

from ..telemetry.status_server import Problem
from . import access
from .router import Call, Text

PIECE = 64 * 1024
PASSED = (b"content-type", b"x-request-id", b"retry-after", b"ratelimit", b"ratelimit-policy")
"""Header fields of its answer that the console passes on."""


@dataclass(slots=True)
class Line:
    """A connection to the gate with one request on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection

    async def next(self) -> object:
        """The next event of the answer. Raises h11.RemoteProtocolError where the gate broke off."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(PIECE))
        return event


async def ask(call: Call, path: str, body: bytes) -> Text:
    """POST JSON to the gate; the answer, passed on as it comes. Raises Problem."""
    address = call.console.gate.address
    if address is None:
        raise Problem(503, "the gate does not listen yet")
    key = call.request.headers["Authorization"].encode("latin-1")
    try:
        with _on_behalf(call, address[0]) as local:
            line = await _connect(call, local, address)
            head = await _send(line, path, key, body)
    except (OSError, h11.RemoteProtocolError) as error:
        raise Problem(502, f"the gate could not be asked by its own address ({type(error).__name__})") from None
    given = {name.title().decode(): value.decode("latin-1") for name, value in head.headers if name in PASSED}
    return Text(given.pop("Content-Type", "application/json"), _body(line), given, head.status_code)


@contextmanager
def _on_behalf(call: Call, host: str) -> Iterator[socket.socket]:
    """A socket whose connection the gate takes for one of the client that is signed in here."""
    local = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    local.setblocking(False)
    local.bind((host, 0))
    place, known = local.getsockname()[:2], call.console.gate.on_behalf
    known[place] = access.client_of(call.request, call.console.config)
    try:
        yield local
    finally:
        known.pop(place, None)  # Another worker may have accepted it; what has the port next is not from here.


async def _connect(call: Call, local: socket.socket, address: tuple[str, int]) -> Line:
    try:
        await asyncio.get_running_loop().sock_connect(local, address)
        trust = None
        if call.console.config.settings and call.console.config.settings.tls:
            trust = ssl.create_default_context()
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # It is this very process.
        reader, writer = await asyncio.open_connection(sock=local, ssl=trust, server_hostname=trust and "localhost")
    except BaseException:
        local.close()
        raise
    return Line(reader, writer, h11.Connection(h11.CLIENT))


async def _send(line: Line, path: str, key: bytes, body: bytes) -> h11.Response:
    """Send the request, and return the head of the answer."""
    fields = [(b"host", b"localhost"), (b"authorization", key), (b"content-type", b"application/json")]
    fields += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    request = h11.Request(method=b"POST", target=path.encode(), headers=fields)
    try:
        for event in (request, h11.Data(body), h11.EndOfMessage()):
            line.writer.write(line.http.send(event) or b"")
        head = await line.next()
        while isinstance(head, h11.InformationalResponse):
            head = await line.next()
    except BaseException:
        line.writer.close()
        raise
    assert isinstance(head, h11.Response)
    return head


async def _body(line: Line) -> AsyncGenerator[bytes]:
    """Yield the pieces of the answer. Closing this generator closes the connection, which ends the request."""
    try:
        while isinstance(event := await line.next(), h11.Data):
            yield bytes(event.data)
    except (OSError, h11.RemoteProtocolError):
        return  # The gate broke off, and so does this answer.
    finally:
        line.writer.close()
        with suppress(OSError):
            await line.writer.wait_closed()
