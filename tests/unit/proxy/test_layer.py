"""What one event has for a connection is sent in one piece."""

from mitmproxy.connection import Server
from mitmproxy.proxy import commands

from ollama_auth.proxy.layer import JOINED, joined


def test_pieces_for_one_connection_are_joined_and_keep_their_order() -> None:
    one, other = Server(address=("one", 1)), Server(address=("other", 1))
    large = bytes(JOINED)

    def work() -> object:
        for connection, data in ((one, b"a"), (one, b"b"), (other, b"c"), (one, b"d"), (one, large), (one, b"e")):
            yield commands.SendData(connection, data)
        yield commands.CloseConnection(one)
        yield commands.SendData(other, b"f")

    found = list(joined(work()))  # type: ignore[arg-type]
    sent = [(c.connection, c.data) if isinstance(c, commands.SendData) else None for c in found]
    assert sent == [(one, b"ab"), (other, b"c"), (one, b"d" + large), (one, b"e"), None, (other, b"f")]
