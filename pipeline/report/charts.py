"""Charts as inline SVG, drawn with classes only: colours are the page's, and its policy allows no style attribute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

_WIDTH = 720
_ROW = 26
_NAMES = 210
_VALUES = 90
_HEIGHT = 180
_EDGE = 64


class Bar(NamedTuple):
    """A bar: its name, its length, and the length as text."""

    name: str
    value: float
    text: str


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars, the longest as wide as there is room."""
    longest = max((row.value for row in rows), default=0) or 1
    room = _WIDTH - _NAMES - _VALUES
    drawn = []
    for n, row in enumerate(rows):
        width = max(0.0, row.value) / longest * room
        y = n * _ROW
        drawn.append(
            Markup(
                '<text class="name" x="{}" y="{}">{}</text><rect class="bar" x="{}" y="{}" width="{:.1f}" height="{}" '
                'rx="2"/><text class="value" x="{:.1f}" y="{}">{}</text>'
            ).format(
                _NAMES - 8,
                y + 17,
                _short(row.name),
                _NAMES,
                y + 4,
                width,
                _ROW - 8,
                _NAMES + width + 6,
                y + 17,
                row.text,
            )
        )
    return _svg(title, max(1, len(rows)) * _ROW, drawn)


def line(
    title: str, points: Sequence[tuple[float, float]], x: Callable[[float], str], y: Callable[[float], str]
) -> Markup:
    """Return a line through points sorted by x, from 0 up; the scales' ends are named by `x` and `y`."""
    first, last = points[0][0], points[-1][0]
    top = max(value for _, value in points) or 1
    across, up = _WIDTH - _EDGE - _VALUES, _HEIGHT - 40

    def place(at: float, value: float) -> tuple[float, float]:
        share = (at - first) / (last - first) if last > first else 0.5
        return _EDGE + share * across, 10 + up - value / top * up

    placed = [place(*point) for point in points]
    grid = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_EDGE, _EDGE + across, at, at)
        for at in (10, 10 + up / 2, 10 + up)
    ]
    scale = [
        Markup('<text class="value end" x="{}" y="{:.1f}">{}</text>').format(_EDGE - 8, at + 4, y(value))
        for at, value in ((10, top), (10 + up / 2, top / 2), (10 + up, 0))
    ]
    lines = [
        Markup('<line class="line" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(*one, *next_)
        for one, next_ in pairwise(placed)
    ]
    dots = [
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}: {}</title></circle>').format(
            *at, x(point[0]), y(point[1])
        )
        for at, point in zip(placed, points, strict=True)
    ]
    ends = [
        Markup('<text class="value" x="{}" y="{}">{}</text>').format(_EDGE, _HEIGHT - 8, x(first)),
        Markup('<text class="value end" x="{}" y="{}">{}</text>').format(_EDGE + across, _HEIGHT - 8, x(last)),
    ]
    return _svg(title, _HEIGHT, [*grid, *scale, *lines, *dots, *(ends if last > first else ends[:1])])


def _svg(title: str, height: int, drawn: Sequence[Markup]) -> Markup:
    return Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        title, _WIDTH, height, Markup("").join(drawn)
    )


def _short(name: str) -> Markup:
    """Return a name that fits beside a bar, the whole of it when pointed at."""
    if len(name) <= 28:
        return escape(name)
    return Markup("{}…<title>{}</title>").format(name[:27], name)
