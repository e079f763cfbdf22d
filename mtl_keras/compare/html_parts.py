"""Pieces of an HTML page. All take plain words and escape them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_keras.compare import svg


def section(title: str, words: str, content: str) -> str:
    """Returns a titled part of the page, with a paragraph before its content."""
    inner = f"<h2>{html.escape(title)}</h2>\n{paragraph(words)}\n{content}"
    return f"<section>\n{inner}\n</section>\n"


def charts(figures: Sequence[str]) -> str:
    """Returns figures side by side, as many as the page is wide."""
    return f'<div class="charts">{"".join(figures)}</div>'


def figure(title: str, content: str) -> str:
    """Returns a titled figure; `content` is HTML."""
    return f"<figure><h3>{html.escape(title)}</h3>{content}</figure>\n"


def paragraph(words: str) -> str:
    """Returns a paragraph."""
    return f'<p class="quiet">{html.escape(words)}</p>'


def legend(names: Iterable[str], numbered: bool = False) -> str:
    """Returns the names with their lines, or else with their numbered points."""
    items = []
    for index, name in enumerate(names):
        mark = svg.line_key(index)
        if numbered:
            mark = f'<b class="f{index % svg.COLOURS}">{index + 1}</b>'
        items.append(f"<li>{mark}{html.escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def table(
    rows: Iterable[Sequence[str]],
    heads: Sequence[str] = (),
    bold: Mapping[tuple[int, int], bool] | None = None,
) -> str:
    """Lays out rows of cells, which scroll sideways where the page is narrow.

    Args:
        rows: The cells; what follows a mean, `± ...`, stands below it.
        heads: Names of the columns; a line break stays one.
        bold: `{(row, column): True}` for cells that stand out.
    """
    names = [html.escape(head).replace("\n", "<br>") for head in heads]
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for number, cells in enumerate(rows):
        parts = []
        for column, cell in enumerate(cells):
            strong = (bold or {}).get((number, column))
            opening = '<td class="best">' if strong else "<td>"
            mean, sign, rest = html.escape(cell).partition(" ± ")
            below = f"<small>± {rest}</small>" if sign else ""
            parts.append(f"{opening}{mean}{below}</td>")
        lines.append(f"<tr>{''.join(parts)}</tr>\n")
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    body = f"<tbody>{''.join(lines)}</tbody>"
    kind = "" if heads else ' class="pairs"'
    return f'<div class="wide"><table{kind}>{top}{body}</table></div>\n'


def is_finite(value: Any) -> bool:
    """Whether this is a number that can be shown."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int) -> str:
    """Writes a number, or a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def mean_and_std(found: Mapping[str, Any], digits: int = 4, sign: bool = False) -> str:
    """Writes mean ± standard deviation, what there is of them."""
    if not is_finite(found["mean"]):
        return "–"
    mean = f"{found['mean']:{'+' if sign else ''}.{digits}f}"
    if not is_finite(found["std"]):
        return mean
    return f"{mean} ± {found['std']:.{digits}f}"


def span(numbers: Iterable[int]) -> str:
    """Writes whole numbers as a range."""
    there = sorted(set(numbers))
    if len(there) < 2:
        return "".join(map(str, there))
    return f"{there[0]}–{there[-1]}"


def p_value(value: float | None) -> str:
    """Writes a p-value."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
