"""The column of `model.summary()` that names the tasks of each layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import keras

_TITLE = "Tasks"
_WIDEST = 24
# The characters of Rich's tables: a border's right end, and where columns meet.
_JUNCTIONS = {"┓": "┳", "┩": "╇", "┤": "┼", "┘": "┴", "+": "+", "|": "+"}
_BORDERS = ("━", "─", "-")
_SIDES = ("┃", "│", "|")


def described(tasks: Sequence[str], of: int) -> str:
    """Returns the tasks of a layer in a few letters.

    Args:
        tasks: Names of the tasks that depend on the layer.
        of: How many tasks the model has.

    Returns:
        The name of a single task, `"shared"` for all, `"3 of 8"` for more than one
        and fewer than all, `"-"` for none.
    """
    if not tasks:
        return "-"
    if len(tasks) == 1:
        return tasks[0]
    return "shared" if len(tasks) == of else f"{len(tasks)} of {of}"


def printed_layers(
    layers: Sequence[keras.Operation], expand_nested: bool
) -> Iterator[keras.Operation]:
    """Yields layers in the order in which Keras prints them."""
    for layer in layers:
        yield layer
        if expand_nested:
            yield from printed_layers(getattr(layer, "layers", None) or [], True)


def column_width(cells: Sequence[tuple[str, str]]) -> int:
    """Returns how many characters the column takes, its border included."""
    return 3 + min(_WIDEST, max(len(text) for text in (_TITLE, *dict(cells).values())))


def with_column(text: str, cells: Sequence[tuple[str, str]]) -> str:
    """Returns the text of Keras's summary with one column more.

    Args:
        text: The summary that Keras prints.
        cells: Names of layers and what stands in the column, in Keras's order, of
            which it may leave out the first and the last.
    """
    width = column_width(cells) - 3
    lines = text.split("\n")
    starts: list[int] = []  # lines with which a row begins; the first is the title
    for index, line in enumerate(lines):
        end = line[-1:]
        if line[:-1].endswith(_BORDERS):
            lines[index] = line[:-1] + _JUNCTIONS[end] + line[-2] * (width + 2) + end
            starts.append(index + 1)
    *starts, after = starts
    rows = [lines[start] for start in starts]
    offset = _offset(rows, cells) if len(rows) > 1 else 0
    column = [_TITLE, *(cell for _, cell in cells[offset:])]
    for index in range(starts[0], after):
        if lines[index].endswith(_SIDES) and not lines[index][:-1].endswith(_BORDERS):
            cell = column[starts.index(index)] if index in starts else ""
            cell = cell if len(cell) <= width else f"{cell[: width - 1]}…"
            lines[index] += f" {cell:{width}} {lines[index][-1]}"
    return "\n".join(lines)


def _offset(rows: Sequence[str], cells: Sequence[tuple[str, str]]) -> int:
    """Returns which layer the first row is of; a long name ends in an ellipsis."""
    first = re.split("[┃│|]", rows[1])[1].split()[0].rstrip("….")
    return next(
        index for index, (name, _) in enumerate(cells) if name.startswith(first)
    )
