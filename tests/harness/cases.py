"""Many cases of one pure function as one test: each test costs pytest some 5 ms, and each worker lists them all."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def each_of(
    names: str | Sequence[str],
    values: Iterable[Any],
    *,
    ids: Iterable[str] | Callable[[Any], object] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Do as pytest.mark.parametrize in one test, for tests without fixtures. It shows all cases that fail."""
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    cases = list(values)
    assert cases, f"there are no cases of {names}"
    shown = list(map(ids, cases)) if callable(ids) else list(ids) if ids is not None else cases

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**rest: Any) -> None:
            failures = []
            for case, name in zip(cases, shown, strict=True):
                given = dict(zip(arguments, case if len(arguments) > 1 else (case,), strict=True))
                try:
                    test(**given, **rest)
                except Exception as failure:
                    failure.add_note(f"the case {names} = {name!r}"[:500])
                    failures.append(failure)
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)

        signature = inspect.signature(test)
        kept = [one for one in signature.parameters.values() if one.name not in arguments]
        vars(run)["__signature__"] = signature.replace(parameters=kept)
        return run

    return decorate
