"""From a template and its context to an HTML file."""

from __future__ import annotations

import functools
import importlib.resources
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from mtl_keras import optional
from mtl_keras.files import atomic_write

with optional.extra("plots", "jinja2", "A report"):
    import jinja2

NONE = "–"


def write_html(path: pathlib.Path, template: str, context: Mapping[str, Any]) -> None:
    """Renders a template and writes the page atomically.

    Args:
        path: The HTML file. An existing one is replaced.
        template: File name of a template in `mtl_keras/reports/templates`.
        context: The template's variables. All strings are escaped but the figures,
            which `svg` has made.
    """
    page = _environment().get_template(template).render(context)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{page}\n", encoding="utf-8")


@functools.cache
def _environment() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtl_keras.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = (
        importlib.resources.files(__package__)
        .joinpath("templates", "style.css")
        .read_text(encoding="utf-8")
    )
    for show in (mean_and_std, number, p_value, span):
        environment.filters[show.__name__] = show
    environment.globals["is_finite"] = is_finite
    return environment


def is_finite(value: float | None) -> TypeGuard[float]:
    """Returns whether a value is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with `digits` decimals, a dash for None and NaN."""
    return f"{value:.{digits}f}" if is_finite(value) else NONE


def mean_and_std(
    spread: Mapping[str, Any], digits: int = 4, *, sign: bool = False
) -> str:
    """Returns `"mean ± std"` of a summary's spread; a part without value is left out.

    Args:
        spread: `{"mean": float or None, "std": float or None}`.
        digits: Decimals.
        sign: Whether to write the mean's sign in any case.
    """
    if not is_finite(spread["mean"]):
        return NONE
    mean = f"{spread['mean']:{'+' if sign else ''}.{digits}f}"
    if not is_finite(spread["std"]):
        return mean
    return f"{mean} ± {spread['std']:.{digits}f}"


def span(numbers: Iterable[int]) -> str:
    """Returns whole numbers as a range: `"3–7"`, `"3"`, or empty."""
    ordered = sorted(set(numbers))
    if len(ordered) < 2:
        return "".join(map(str, ordered))
    return f"{ordered[0]}–{ordered[-1]}"


def p_value(value: float | None) -> str:
    """Returns a p-value with three decimals, a dash for None and NaN."""
    if is_finite(value) and value < 0.001:
        return "< 0.001"
    return number(value, 3)
