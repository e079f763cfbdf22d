"""A picture of the front of one model, by Matplotlib."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from mtl_keras.evaluation.plots import trade_off
from mtl_keras.pareto.front import Front


def plot_front(
    front: Front,
    path: str | pathlib.Path,
    *,
    names: Sequence[str] | None = None,
    directions: Sequence[str] | None = None,
    title: str = "",
) -> pathlib.Path:
    """Draws the results at every preference against each other, as a PNG.

    One panel for each pair of tasks; each point bears its preference.

    Args:
        front: `front`'s result.
        path: Where to write the picture. An existing file is replaced.
        names: Results to draw, at least two; None for the tasks' losses.
        directions: `"min"` or `"max"` for each name; None for `"min"`.
        title: Text above the panels.

    Returns:
        The path.

    Raises:
        InputError: For a name that no result has.

    Example:

    ```python
    front = mtl_keras.pareto.Front(
        ("a", "b"),
        np.eye(2),
        ({"a_loss": 0.1, "b_loss": 0.5}, {"a_loss": 0.5, "b_loss": 0.1}),
    )
    mtl_keras.pareto.plot_front(front, "front.png")
    ```
    """
    names = [f"{task}_loss" for task in front.tasks] if names is None else list(names)
    return trade_off(
        front.points(names),
        names,
        directions or ["min"] * len(names),
        path,
        labels=["/".join(f"{share:.2g}" for share in p) for p in front.preferences],
        title=title,
    )
