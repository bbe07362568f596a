"""A second script beside auth.py: sends every body through all layers, for tests of what the fast path skips."""

from contextlib import suppress

with suppress(ImportError):  # Where auth.py is broken on purpose, the package may not be there.
    from ollama_auth.proxy import fast_path

    vars(fast_path)["find_fast_path"] = lambda *_: None
