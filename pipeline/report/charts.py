"""Charts as inline SVG. They use classes only, since the page's policy allows no style attribute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

# In units of the SVG's viewBox, which the page scales.
_WIDTH = 720
_BAR_ROW_HEIGHT = 26
_BAR_NAME_WIDTH = 210
_VALUE_WIDTH = 90
_LINE_HEIGHT = 180
_LINE_SCALE_WIDTH = 64
_MAX_NAME_CHARACTERS = 28
_LEGEND_COLUMNS = 4


class Bar(NamedTuple):
    """A bar: its name, its length, and the length as text."""

    name: str
    value: float
    text: str


class StackedBar(NamedTuple):
    """A bar of parts: its name, the bytes of each part by its place in the legend, and their sum as text."""

    name: str
    values: dict[int, float]
    text: str


class Point(NamedTuple):
    """A point of a line: its place, and its y as text."""

    x: float
    y: float
    text: str


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars, the longest as wide as there is room."""
    max_value = max((row.value for row in rows), default=0) or 1
    max_width = _WIDTH - _BAR_NAME_WIDTH - _VALUE_WIDTH
    elements = []
    for n, row in enumerate(rows):
        width = max(0.0, row.value) / max_value * max_width
        y = n * _BAR_ROW_HEIGHT
        elements.append(
            Markup(
                '<text class="name" x="{}" y="{}">{}</text><rect class="bar" x="{}" y="{}" width="{:.1f}" height="{}" '
                'rx="2"/><text class="value" x="{:.1f}" y="{}">{}</text>'
            ).format(
                _BAR_NAME_WIDTH - 8,
                y + 17,
                _short(row.name),
                _BAR_NAME_WIDTH,
                y + 4,
                width,
                _BAR_ROW_HEIGHT - 8,
                _BAR_NAME_WIDTH + width + 6,
                y + 17,
                row.text,
            )
        )
    return _svg(title, max(1, len(rows)) * _BAR_ROW_HEIGHT, elements)


def stacked_bars(title: str, legend: Sequence[str], rows: Sequence[StackedBar]) -> Markup:
    """Return horizontal bars of parts below their legend, the longest as wide as there is room."""
    max_value = max((sum(row.values.values()) for row in rows), default=0) or 1
    max_width = _WIDTH - _BAR_NAME_WIDTH - _VALUE_WIDTH
    column_width = _WIDTH / _LEGEND_COLUMNS
    elements = [
        Markup(
            '<rect class="part{}" x="{:.0f}" y="{}" width="12" height="12"/><text x="{:.0f}" y="{}">{}</text>'
        ).format(n, x, y, x + 18, y + 11, name)
        for n, name in enumerate(legend)
        for x, y in [(n % _LEGEND_COLUMNS * column_width, n // _LEGEND_COLUMNS * _BAR_ROW_HEIGHT + 4)]
    ]
    legend_height = -(-len(legend) // _LEGEND_COLUMNS) * _BAR_ROW_HEIGHT
    for n, row in enumerate(rows):
        y = legend_height + n * _BAR_ROW_HEIGHT
        elements.append(
            Markup('<text class="name" x="{}" y="{}">{}</text>').format(_BAR_NAME_WIDTH - 8, y + 17, _short(row.name))
        )
        x = float(_BAR_NAME_WIDTH)
        for part, value in sorted(row.values.items()):
            width = value / max_value * max_width
            elements.append(
                Markup(
                    '<rect class="part{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>'
                ).format(part, x, y + 4, width, _BAR_ROW_HEIGHT - 8, legend[part])
            )
            x += width
        elements.append(Markup('<text class="value" x="{:.1f}" y="{}">{}</text>').format(x + 6, y + 17, row.text))
    return _svg(title, legend_height + len(rows) * _BAR_ROW_HEIGHT, elements)


def line(
    title: str,
    points: Sequence[Point],
    x_label: Callable[[float], str],
    y_label: Callable[[float], str],
) -> Markup:
    """Return a line through points sorted by x. The y scale starts at 0, where points below it are drawn.

    :param x_label: text of an x, for both ends of the scale and each point.
    :param y_label: text of a y, for the scale.
    """
    min_x, max_x = points[0].x, points[-1].x
    max_y = max(0, *(point.y for point in points)) or 1
    width, height = _WIDTH - _LINE_SCALE_WIDTH - _VALUE_WIDTH, _LINE_HEIGHT - 40

    def position(point: Point) -> tuple[float, float]:
        share = (point.x - min_x) / (max_x - min_x) if max_x > min_x else 0.5
        return _LINE_SCALE_WIDTH + share * width, 10 + height - max(0, point.y) / max_y * height

    positions = [position(point) for point in points]
    grid = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LINE_SCALE_WIDTH, _LINE_SCALE_WIDTH + width, top, top
        )
        for top in (10, 10 + height / 2, 10 + height)
    ]
    scale = [
        Markup('<text class="value end" x="{}" y="{:.1f}">{}</text>').format(
            _LINE_SCALE_WIDTH - 8, top + 4, y_label(value)
        )
        for top, value in ((10, max_y), (10 + height / 2, max_y / 2), (10 + height, 0))
    ]
    lines = [
        Markup('<line class="line" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(*start, *end)
        for start, end in pairwise(positions)
    ]
    dots = [
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}: {}</title></circle>').format(
            *center, x_label(point.x), point.text
        )
        for center, point in zip(positions, points, strict=True)
    ]
    ends = [
        Markup('<text class="value" x="{}" y="{}">{}</text>').format(
            _LINE_SCALE_WIDTH, _LINE_HEIGHT - 8, x_label(min_x)
        ),
        Markup('<text class="value end" x="{}" y="{}">{}</text>').format(
            _LINE_SCALE_WIDTH + width, _LINE_HEIGHT - 8, x_label(max_x)
        ),
    ]
    return _svg(title, _LINE_HEIGHT, [*grid, *scale, *lines, *dots, *(ends if max_x > min_x else ends[:1])])


def _svg(title: str, height: int, elements: Sequence[Markup]) -> Markup:
    return Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        title, _WIDTH, height, Markup("").join(elements)
    )


def _short(name: str) -> Markup:
    """Return a name that fits beside a bar, with the full name as its tooltip if it was cut."""
    if len(name) <= _MAX_NAME_CHARACTERS:
        return escape(name)
    return Markup("{}…<title>{}</title>").format(name[: _MAX_NAME_CHARACTERS - 1], name)
