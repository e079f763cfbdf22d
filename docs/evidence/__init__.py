"""What pages have of benchmarks/results: tables, pictures, and figures in sentences.

`python docs/generate.py` writes the tables and pictures. A sentence with a figure is
written by hand, and the tests compare it with the page's `sentences`, which have it as
the results do. A figure that is in neither must be in a passage of the page's `OTHERS`:
settings, bounds, and what papers and peers say.

There is a module for each page, which has those of `parts`, `sentences` and `OTHERS`
that the page needs.
"""

from __future__ import annotations

from types import ModuleType

from evidence import (
    architecture,
    balancing,
    compare,
    comparison,
    migrating,
    multimodal,
    ops,
    pareto,
    readme,
    recommendation,
    reliability,
    search,
    serving,
    sharing,
    tables,
    text,
    training,
    vision,
    worth,
)

PAGES: dict[str, ModuleType] = {
    "README.md": readme,
    "docs/architecture.md": architecture,
    "docs/balancing.md": balancing,
    "docs/compare.md": compare,
    "docs/comparison.md": comparison,
    "docs/migrating/keras.md": migrating,
    "docs/multimodal.md": multimodal,
    "docs/ops.md": ops,
    "docs/pareto.md": pareto,
    "docs/recommendation.md": recommendation,
    "docs/reliability.md": reliability,
    "docs/search.md": search,
    "docs/serving.md": serving,
    "docs/sharing.md": sharing,
    "docs/tables.md": tables,
    "docs/text.md": text,
    "docs/training.md": training,
    "docs/vision.md": vision,
    "docs/worth.md": worth,
}


def parts() -> dict[str, str]:
    """Returns the generated parts of all pages, by name."""
    generated = {}
    for page in PAGES.values():
        if hasattr(page, "parts"):
            generated |= page.parts()
    return generated


def sentences(page: str) -> list[str]:
    """Returns sentences of a page with figures, as the results have them."""
    about = PAGES.get(page)
    return about.sentences() if hasattr(about, "sentences") else []


def others(page: str) -> tuple[str, ...]:
    """Returns passages of a page with figures that are not results."""
    return getattr(PAGES.get(page), "OTHERS", ())


def draw() -> None:
    """Draws the pictures, docs/images/*.png."""
    worth.draw()
    balancing.draw()
