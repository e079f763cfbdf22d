"""Small charts as inline SVG, which follow the page's colours and width.

Pictures by Matplotlib would need one for light and one for dark pages and shrink their
text on a phone. These take their colours from the page's style sheet, are as wide as
one column on a phone, and show each value when pointed at, without a script.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from mtl_keras import optional

# With the module: a comparison should not find out at its end.
with optional.extra("plots", "matplotlib", "The report of a comparison"):
    from matplotlib.ticker import MaxNLocator

WIDTH = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 38
_DASHES = ("", "7 4", "2 4")  # with ten colours, thirty different lines
COLOURS = 10
_RADIUS = 9


class Bar(NamedTuple):
    """One bar, from 0 to a mean."""

    label: str
    mean: float | None
    spread: float | None
    """Half the length of the whisker; None for no whisker."""
    text: str
    """What is written at the end of the row."""


class Series(NamedTuple):
    """One line of a chart."""

    label: str
    values: Sequence[float]
    """By epoch; what is not finite leaves a gap."""


class Point(NamedTuple):
    """One numbered point of a chart."""

    label: str
    x: float
    y: float


def bars(rows: Sequence[Bar], unit: str, about: str) -> str:
    """Draws horizontal bars around 0, with whiskers.

    Args:
        rows: The bars, from above.
        unit: What the axis says.
        about: What the chart shows, for those who cannot see it.
    """
    ends = [
        row.mean + sign * (row.spread or 0.0)
        for row in rows
        if row.mean is not None
        for sign in (-1, 1)
    ]
    axis = _Axis([0.0, *ends], 16, WIDTH - 16)
    step, top = 38, 6
    height = top + step * len(rows) + 34
    parts = [_vertical_grid(axis, top, height - 34)]
    zero = axis.place(0.0)
    parts.append(f'<path class="zero" d="M{zero:.1f} {top}V{height - 34}"/>')
    for number, row in enumerate(rows):
        y = top + step * number
        parts.append(_text(4, y + 12, row.label, "start", "halo"))
        parts.append(_text(WIDTH - 4, y + 12, row.text, "end", "value halo"))
        if row.mean is None or not math.isfinite(row.mean):
            continue
        end = axis.place(row.mean)
        sign = "gain" if row.mean >= 0 else "loss"
        parts.append(
            f'<rect class="{sign}" x="{min(zero, end):.1f}" y="{y + 18}" '
            f'width="{max(abs(end - zero), 1):.1f}" height="12">'
            f"{_title(f'{row.label}: {row.text}')}</rect>"
        )
        if row.spread:
            low, high = (axis.place(row.mean + s * row.spread) for s in (-1, 1))
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 20}v8m0-4H{high:.1f}'
                f'm0-4v8"/>'
            )
    parts.append(_text(WIDTH / 2, height - 4, unit, "middle"))
    return _svg(height, parts, about)


def lines(rows: Sequence[Series], x_name: str, y_name: str, about: str) -> str:
    """Draws values by epoch, the first at 1.

    Args:
        rows: The lines; their place tells their colour and dashes.
        x_name: Label of the axis of epochs.
        y_name: Label of the other.
        about: What the chart shows, for those who cannot see it.
    """
    height = 230
    count = max((len(row.values) for row in rows), default=1)
    x = _Axis([1, max(count, 2)], _LEFT, WIDTH - _RIGHT, margin=0.0, whole=True)
    y = _Axis([v for row in rows for v in row.values], height - _BOTTOM, _TOP)
    parts = _frame(x, y, height, x_name, y_name)
    for number, row in enumerate(rows):
        path, pen = [], "M"
        for epoch, value in enumerate(row.values, start=1):
            if math.isfinite(value):
                path.append(f"{pen}{x.place(epoch):.1f} {y.place(value):.1f}")
                pen = "L"
            else:
                pen = "M"
        parts.append(_line(number, "".join(path), _title(row.label)))
    return _svg(height, parts, about)


def line_key(number: int) -> str:
    """Returns a piece of a chart's line, for a legend."""
    return f'<svg class="key" viewBox="0 0 30 8">{_line(number, "M0 4H30")}</svg>'


def _line(number: int, path: str, inside: str = "") -> str:
    # Dashed, so that one which covers another lets it be seen.
    return (
        f'<path class="line s{number % COLOURS}" '
        f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}" d="{path}">'
        f"{inside}</path>"
    )


def scatter(
    points: Sequence[Point],
    front: Sequence[int],
    x_name: str,
    y_name: str,
    about: str,
) -> str:
    """Draws numbered points, those of a front joined by a line.

    A number that would cover another stands beside its point, tied to it by a line.

    Args:
        points: The points; they bear the numbers 1, 2, … What is not finite is not
            drawn.
        front: Indices of the points on the front.
        x_name: Label of the horizontal axis.
        y_name: Label of the vertical axis.
        about: What the chart shows, for those who cannot see it.
    """
    height = 260
    x = _Axis([p.x for p in points], _LEFT, WIDTH - _RIGHT, margin=0.12)
    y = _Axis([p.y for p in points], height - _BOTTOM, _TOP, margin=0.12)
    parts = _frame(x, y, height, x_name, y_name)
    joined = sorted((points[i] for i in front), key=lambda point: point.x)
    if joined:
        path = "L".join(f"{x.place(p.x):.1f} {y.place(p.y):.1f}" for p in joined)
        parts.append(f'<path class="front" d="M{path}"/>')
    drawn = [
        number
        for number, point in enumerate(points)
        if math.isfinite(point.x) and math.isfinite(point.y)
    ]
    places = [(x.place(points[n].x), y.place(points[n].y)) for n in drawn]
    marks = _apart(places, height)
    for number, place, mark in zip(drawn, places, marks, strict=True):
        if mark != place:
            parts.append(
                f'<path class="tie" d="M{place[0]:.1f} {place[1]:.1f}'
                f'L{mark[0]:.1f} {mark[1]:.1f}"/>'
                f'<circle class="f{number % COLOURS}" cx="{place[0]:.1f}" '
                f'cy="{place[1]:.1f}" r="3"/>'
            )
    for number, mark in zip(drawn, marks, strict=True):
        point = points[number]
        ring = " ring" if number in front else ""
        label = f"{point.label}: {point.x:.4g}, {point.y:.4g}"
        parts.append(
            f'<circle class="f{number % COLOURS}{ring}" cx="{mark[0]:.1f}" '
            f'cy="{mark[1]:.1f}" r="{_RADIUS}">{_title(label)}</circle>'
            + _text(mark[0], mark[1] + 4, str(number + 1), "middle", "dot")
        )
    return _svg(height, parts, about)


def _apart(
    places: Sequence[tuple[float, float]], height: int
) -> list[tuple[float, float]]:
    """Returns where to mark each place: there, or nearby if another is in the way."""
    marks: list[tuple[float, float]] = []
    for place in places:
        around = (
            (place[0] + far * math.cos(turn), place[1] + far * math.sin(turn))
            for far in range(2 * _RADIUS, 7 * _RADIUS, 6)
            for turn in (math.tau * step / 16 for step in range(16))
        )
        others = [other for other in places if other != place]
        free = (
            spot
            for spot in around
            if spot[0] - _RADIUS > _LEFT
            and spot[0] + _RADIUS < WIDTH
            and spot[1] - _RADIUS > 0
            and spot[1] + _RADIUS < height - _BOTTOM
            and all(math.dist(spot, other) > _RADIUS + 4 for other in others)
            and all(math.dist(spot, mark) > 2 * _RADIUS + 2 for mark in marks)
        )
        crowded = any(math.dist(place, mark) < 2 * _RADIUS for mark in marks)
        marks.append(next(free, place) if crowded else place)
    return marks


def heat(
    table: Sequence[Sequence[float | None]],
    names: Sequence[str],
    digits: int,
    largest: float,
    about: str,
) -> str:
    """Draws a square table as colours: one above 0, another below.

    Args:
        table: Rows of numbers; None and NaN stay blank.
        names: Names of the rows and of the columns.
        digits: Digits after the point.
        largest: The number that gets the full colour.
        about: What the chart shows, for those who cannot see it.
    """
    count = len(names)
    left, top = 76, 70
    side = (WIDTH - left - 4) / count
    height = top + side * count + 6
    parts = []
    for index, name in enumerate(names):
        middle = left + side * (index + 0.5)
        parts.append(_text(left - 6, top + side * (index + 0.5) + 4, name, "end"))
        parts.append(
            f'<text transform="translate({middle + 4:.1f} {top - 6}) rotate(-45)">'
            f"{html.escape(name)}</text>"
        )
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if value is None or not math.isfinite(value):
                continue
            x, y = left + side * column, top + side * row
            strength = min(1.0, abs(value) / largest) if largest > 0 else 0.0
            sign = "gain" if value >= 0 else "loss"
            # Adding 0 takes the sign off what is rounded to 0.
            words = f"{round(value, digits) + 0.0:.{digits}f}"
            parts.append(
                f'<rect class="heat {sign}" x="{x:.1f}" y="{y:.1f}" '
                f'width="{side - 1:.1f}" height="{side - 1:.1f}" '
                f'fill-opacity="{strength:.2f}">'
                f"{_title(f'{names[row]}, {names[column]}: {words}')}</rect>"
                + _text(x + side / 2, y + side / 2 + 4, words, "middle")
            )
    return _svg(height, parts, about)


class _Axis:
    """Places numbers between two ends of the picture, with round ticks."""

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        margin: float = 0.06,
        whole: bool = False,
    ):
        finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        room = (high - low) * margin or (0.0 if high > low else abs(high) * 0.1 or 1.0)
        self._low, self._high = low - room, high + room
        self._start, self._end = start, end
        locator = MaxNLocator(nbins=4, integer=whole, steps=[1, 2, 2.5, 5, 10])
        self.ticks = [
            float(tick)
            for tick in locator.tick_values(self._low, self._high)
            if self._low <= tick <= self._high
        ]

    def place(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _frame(x: _Axis, y: _Axis, height: int, x_name: str, y_name: str) -> list[str]:
    parts = [_vertical_grid(x, _TOP, height - _BOTTOM)]
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 4, at + 4, f"{tick:.4g}", "end"))
    parts.append(_text((WIDTH + _LEFT) / 2, height - 6, x_name, "middle"))
    middle = (_TOP + height - _BOTTOM) / 2
    parts.append(
        f'<text class="middle" transform="translate(11 {middle:.0f}) rotate(-90)">'
        f"{html.escape(y_name)}</text>"
    )
    return parts


def _vertical_grid(axis: _Axis, top: float, bottom: float) -> str:
    return "".join(
        f'<path class="grid" d="M{axis.place(tick):.1f} {top}V{bottom}"/>'
        + _text(axis.place(tick), bottom + 15, f"{tick:.4g}", "middle")
        for tick in axis.ticks
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    return (
        f'<text class="{f"{anchor} {kind}".strip()}" x="{x:.1f}" y="{y:.1f}">'
        f"{html.escape(words)}</text>"
    )


def _title(words: str) -> str:
    return f"<title>{html.escape(words)}</title>"


def _svg(height: float, parts: Sequence[str], about: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(about)}">{"".join(parts)}</svg>'
    )
