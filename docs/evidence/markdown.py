"""Results files, and tables in Markdown."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_keras.evaluation import PairedTest

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


def results(name: str) -> dict[str, Any]:
    """Returns a results file."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def label(size: int | None) -> str:
    """Returns a number of labels as text."""
    return "all" if size is None else f"{size:,}"


def interval(test: PairedTest, digits: int) -> str:
    """Returns a difference with its interval; bold where Holm's p is below 0.05."""
    text = f"{test.difference:+.{digits}f}"
    if test.p_corrected < 0.05:
        text = f"**{text}**"
    return f"{text} ({test.low:+.{digits}f} to {test.high:+.{digits}f})"


def spread(values: Sequence[float] | np.ndarray, digits: str = ".3f") -> str:
    """Returns a mean with its standard deviation, which one value alone has none of."""
    mean = format(np.mean(values), digits)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), digits.lstrip('+'))}"


def span(values: Sequence[float] | np.ndarray, digits: str) -> str:
    """Returns the least and the largest value, as "0.98 to 1.02"."""
    return f"{format(min(values), digits)} to {format(max(values), digits)}"


def power(value: float, digits: int = 0) -> str:
    """Returns a small number by its power of ten, as "6.9e-4"."""
    return f"{value:.{digits}e}".replace("e-0", "e-")


def mean_and_std(measured: Mapping[str, float], digits: str = ".2f") -> str:
    """Returns a mean with its standard deviation, as a results file has both."""
    return f"{measured['mean']:{digits}} ± {measured['std']:{digits}}"


def method_title(name: str) -> str:
    """Returns a method's title; runs name it with its `solve`, as in "nash running"."""
    method, *solve = name.split()
    return f"`{method}`" + (f', `solve="{solve[0]}"`' if solve else "")
