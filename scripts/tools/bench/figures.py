"""The figures of a run, and what they are to be against those of others."""

import statistics
from collections.abc import Mapping
from typing import NamedTuple


class Figure(NamedTuple):
    """The result of a measurement over its repeats."""

    median: float
    least: float
    most: float


type Figures = dict[str, dict[str, Figure]]
"""Row -> name of a target -> figure."""


def summary(found: Mapping[str, Mapping[str, list[float]]]) -> Figures:
    return {
        row: {name: Figure(statistics.median(some), min(some), max(some)) for name, some in columns.items()}
        for row, columns in found.items()
    }


class Goal(NamedTuple):
    row: str
    against: str
    """The program with which the gate is compared; empty: the goal is a figure and no ratio."""
    most: float | None = None
    least: float | None = None
    added: bool = False
    """Compare the time that the programs add to that of a direct request."""
    plain: float | None = None
    """The bound for the gate in plain mitmdump, where it is another one."""


GOALS = (
    Goal("requests/s", "bare", least=4, plain=3),
    Goal("refusals/s", "bare", least=6),
    Goal("token late, 1 stream, p50 ms", "Caddy", most=1.2, added=True, plain=1.5),
    Goal("token late, 100 streams, p50 ms", "Caddy", most=1.5, added=True),
    Goal("token late, 100 in step, p50 ms", "Caddy", most=3, added=True),
    Goal("token late, 100 arrive, p99 ms", "bare", most=0.05),
    Goal("CPU a stream begun, us", "Caddy", most=3),
    Goal("embeddings of 256 MiB, s", "Caddy", most=1.5),
    Goal("HTTP/2 requests/s", "Caddy", least=0.3),
    Goal("token late, 100 HTTP/2 streams, p50 ms", "Caddy", most=3, added=True),
    Goal("memory a connection, 5000 idle ones, KB", "Caddy", most=2),
    Goal("1024 MiB up, s", "Caddy", most=1.7),
    Goal("1024 MiB down, s", "Caddy", most=1.7),
    Goal("token late, 5000 streams of 1 token/s, p99 ms", "", most=4, added=True),
    Goal("token late, 5000 streams of 1 token/s, max ms", "", most=25, added=True),
    Goal("longest wait while 5000 streams begin, ms", "", most=50, added=True),
    Goal("start to first answer, s", "", most=0.6),
    Goal("peak memory, MB", "", most=90),
)


def ratio(goal: Goal, figures: Figures, name: str) -> float | None:
    """Our figure divided by theirs. Refusals are compared with the requests of a program that refuses nothing."""
    ours = figures.get(goal.row, {}).get(name)
    their_row = "requests/s" if goal.row == "refusals/s" else goal.row
    theirs = figures.get(their_row, {}).get(goal.against)
    if ours is None or (goal.against and theirs is None):
        return None
    base = figures[goal.row]["direct"].median if goal.added else 0.0
    if theirs is None:
        return ours.median - base
    if theirs.median <= base:
        return None  # Smaller than the noise.
    return (ours.median - base) / (theirs.median - base)


def table(figures: Figures, names: list[str]) -> str:
    lines = [f"{'':34}" + "".join(f"{name:>24}" for name in names)]
    for row, columns in figures.items():
        cells = (f"{cell(columns[name]) if name in columns else '':>24}" for name in names)
        lines.append(f"{row:34}" + "".join(cells))
    return "\n".join(lines)


def cell(figure: Figure) -> str:
    digits = 0 if figure.median >= 100 else 1 if figure.median >= 10 else 2 if figure.median >= 1 else 3
    median, least, most = (f"{value:,.{digits}f}" for value in figure)
    return median if least == most else f"{median} ({least}-{most})"


def goals(figures: Figures, names: list[str]) -> str:
    lines = []
    for goal in GOALS:
        what = f"{goal.row}{', added' * goal.added}" + f", against {goal.against}'s" * bool(goal.against)
        for name in (name for name in names if name.startswith("ours")):
            value = ratio(goal, figures, name)
            if value is None:
                continue
            bound = goal.least if goal.most is None else goal.most
            if goal.plain is not None and name == "ours plain":
                bound = goal.plain
            met = value >= (bound or 0) if goal.most is None else value <= (bound or 0)
            wanted = f"at {'least' if goal.most is None else 'most'} {bound}"
            lines.append(f"{name:10} {what:68} {value:8.2f}   {wanted}: {'yes' if met else 'no'}")
    return "\n".join(lines)
