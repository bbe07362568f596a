"""A bar chart of the figures of scripts/bench."""

from collections.abc import Iterator, Mapping
from html import escape

WIDTH, LABEL, BAR, GAP = 860, 90, 16, 34
COLOURS = {"direct": "#999999", "Caddy": "#0072b2", "nginx": "#56b4e9", "bare": "#d55e00", "ours": "#009e73"}
OTHER = "#cc79a7"


def plot(rows: Mapping[str, Mapping[str, float]], title: str) -> str:
    """An SVG with a bar for each program in each row; the longest bar of a row has the full width."""
    top, parts = 30, [f'<text x="8" y="18" class="note">{escape(title)}</text>']
    for row, columns in rows.items():
        parts += [f'<text x="8" y="{top + 12}" class="row">{escape(row)}</text>', *bars(columns, top + 18)]
        top += 18 + BAR * len(columns) + GAP - 18
    style = "text{font:12px sans-serif}.row{font-weight:bold}.note{font-size:10px;fill:#555}"
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def bars(columns: Mapping[str, float], top: int) -> Iterator[str]:
    longest = max(*columns.values(), 1e-9)
    for number, (name, value) in enumerate(columns.items()):
        y = top + number * BAR
        width = max(1.0, value / longest * (WIDTH - LABEL - 100))
        colour = COLOURS.get(name, OTHER)
        yield f'<text x="8" y="{y + 12}">{escape(name)}</text>'
        yield f'<rect x="{LABEL}" y="{y + 2}" width="{width:.1f}" height="{BAR - 4}" fill="{colour}"/>'
        yield f'<text x="{LABEL + width + 6:.1f}" y="{y + 12}">{value:,.4g}</text>'
