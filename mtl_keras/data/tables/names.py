"""Names of layers for columns and tasks, whatever these are called."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from mtl_keras.registry import RESERVED_INPUTS

# Two dots are for layers inside the model.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
# Names that layers of backbones, ways to share and heads have, or signatures.
_TAKEN = re.compile(
    r"features|from_examples|serving_default|classify_.*|experts|gate|mixture"
    r"|(shared|common)_(experts|gate|mixture).*|mlp_stage_\d+",
    re.IGNORECASE,
)
# What follows a task's name in names of its layers.
_OF_TASK = re.compile(
    r"hidden|dropout|flatten|standardised|layers|transfer|calibrator|label"
    r"|(mixture|gate|experts|stitch|attention).*|mlp_stage_\d+",
    re.IGNORECASE,
)


def layer_names(titles: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Returns a layer's name for each title: the title itself where it can be one.

    A name is of ASCII letters, digits, `_`, `-` and single dots, and starts with a
    letter or digit. That of a column is no keyword of Python, such as `class`: inputs
    of a SavedModel's signature cannot have those.

    Args:
        titles: Names of columns or tasks, each once.
        taken: Names of the tasks where these are columns. Layers of a task begin with
            its name.
    """
    titles = list(titles)
    used = {name.lower() for name in taken}
    reserved = RESERVED_INPUTS if used else frozenset()
    tasks = [*used, *(_ascii(title).lower() for title in titles if not used)]
    # Titles that are names already come first: the others make way.
    names: dict[str, str] = {}
    for title in sorted(titles, key=lambda title: _ascii(title) != title):
        name = next(
            name
            for name in _candidates(_ascii(title))
            if name.lower() not in used
            and not _TAKEN.fullmatch(name)
            and name not in reserved
            and not _is_of(name, tasks)
        )
        used.add(name.lower())
        names[title] = name
    return {title: names[title] for title in titles}


def _candidates(base: str) -> Iterator[str]:
    """Yields candidate names without end, the best first."""
    yield from (base, f"{base}_2", f"{base}_3", f"column_{base}", f"{base}_column")
    for number in itertools.count(1):
        yield f"column_{number}"


def _is_of(name: str, tasks: Iterable[str]) -> bool:
    """Returns whether a layer of one of the tasks may have this name."""
    lower = name.lower()
    return any(
        lower.startswith(f"{task}_") and _OF_TASK.fullmatch(lower[len(task) + 1 :])
        for task in tasks
    )


def _ascii(title: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")
    if _NAME.fullmatch(title):
        return title
    return name if name[:1].isalpha() else f"column_{name}".rstrip("_")
