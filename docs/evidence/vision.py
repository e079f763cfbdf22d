"""What the page on images has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.markdown import results, table
from mtl_keras import applications


def scores(measured: Mapping[str, Any]) -> str:
    """Returns the main metrics of `make demo` and of the application's defaults."""
    tasks = applications.get("vision").tasks
    titles = {
        "demo": f"`make demo`, best of {measured['demo']['trials']} trials",
        "defaults": "`mtl-keras train vision`",
    }
    rows = []
    for run, title in titles.items():
        metrics = measured[run]["test"]
        values = [metrics[name][task.objective] for name, task in tasks.items()]
        rows.append([title, *(f"{value:.3f}" for value in values)])
    return table(["", *tasks], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {"vision demo": scores(results("vision_demo"))}
