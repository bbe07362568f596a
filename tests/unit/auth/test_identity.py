"""Who sent a request, and what is told of the credential that proved it."""

from ollama_auth.auth.identity import Identity, find_again, identify
from ollama_auth.auth.keys import Key, KeyRing, Principal, digest
from ollama_auth.exchange import UpstreamRequest
from ollama_auth.http.head import Head

KEY = "sk-ollama-0123456789abcdef"
ANNA = Principal("anna")
HEAD = Head(b"GET", b"/", b"HTTP/1.1", ((b"Authorization", f"Bearer {KEY}".encode()),), 0, close=False)


def test_a_credential_is_in_no_text_that_is_made_of_an_identity() -> None:
    identity = identify(HEAD, b"/", KeyRing([Key(digest(KEY), ANNA)]), 0, 60)
    assert identity == Identity(ANNA, KEY.encode())
    assert KEY not in f"{identity!r} {UpstreamRequest(ANNA, b'/', (), identity=identity)!r}"


def test_a_principal_is_looked_up_in_the_ring_of_now() -> None:
    identity = Identity(ANNA, KEY.encode())
    narrowed = Principal("anna", models=("demo",))
    assert find_again(identity, KeyRing([Key(digest(KEY), narrowed)])) is narrowed
    assert find_again(identity, KeyRing([])) is None
