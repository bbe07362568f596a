"""Cached options always have the values of the options behind them."""

from collections import Counter

import pytest
from mitmproxy import exceptions, options
from mitmproxy.tools.dump import DumpMaster

from ollama_auth.proxy.option_cache import CachedOptions


class Counting(options.Options):
    """Counts how often each option is asked for."""

    def __getattr__(self, name: str) -> object:
        if name in self._options:
            asked[name] += 1
        return super().__getattr__(name)  # type: ignore[no-untyped-call]


asked: Counter[str] = Counter()


def test_it_is_read_once_until_it_changes() -> None:
    real = Counting()
    remembered = CachedOptions(real)
    asked.clear()
    for _ in range(3):
        assert remembered.http2 is True
    assert asked["http2"] == 1
    real.update(http2=False)  # type: ignore[no-untyped-call]
    for _ in range(3):
        assert remembered.http2 is False
    assert asked["http2"] == 2


def test_all_of_them_are_reset() -> None:
    real = options.Options()
    remembered = CachedOptions(real)
    real.update(http2=False)
    assert remembered.http2 is False
    real.reset()
    assert remembered.http2 is True


def test_it_is_set_where_it_is_kept() -> None:
    real = options.Options()
    remembered = CachedOptions(real)
    assert remembered.http2 is True
    remembered.http2 = False
    assert (real.http2, remembered.http2) == (False, False)


def test_lists_are_not_kept_for_others_to_change() -> None:
    real = options.Options()
    remembered = CachedOptions(real)
    remembered.ignore_hosts.append("evil")
    assert remembered.ignore_hosts == []


def test_what_is_no_option() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = CachedOptions(options.Options()).nonsense


async def test_a_change_that_is_taken_back() -> None:
    """An addon refuses it: all of them are told of the old value again."""

    class Picky:
        def configure(self, updated: set[str]) -> None:
            if "anticache" in updated and master.options.anticache:
                assert remembered.anticache in (True, False)  # Whichever: it is forgotten again.
                raise exceptions.OptionsError("no")

    master = DumpMaster(options.Options(), with_termlog=False)
    remembered = CachedOptions(master.options)
    master.addons.add(Picky())
    with pytest.raises(exceptions.OptionsError):
        master.options.update(anticache=True)
    assert master.options.anticache is False
    assert remembered.anticache is False
