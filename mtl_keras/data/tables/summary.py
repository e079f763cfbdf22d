"""The summary of a table: rows, labels, classes, ranges and warnings."""

from __future__ import annotations

import collections

from mtl_keras.data.tables.description import Description, FeatureStats, TaskStats
from mtl_keras.data.tables.schema import SPLITS

_MOST_TASKS = 20
_MOST_CLASSES = 6


def summarise(description: Description) -> str:
    """Returns the summary, some lines of text.

    Args:
        description: The table's.
    """
    rows = sum(description.rows.values())
    splits = ", ".join(f"{description.rows[s]:,} {s}" for s in SPLITS)
    lines = [f"{rows:,} rows: {splits}."]
    if unlabelled := sum(description.unlabelled.values()):
        lines.append(
            f"{unlabelled:,} rows label no task and are not read: "
            + ", ".join(f"{description.unlabelled[s]:,} {s}" for s in SPLITS)
            + "."
        )
    kinds = collections.Counter(f.kind for f in description.features.values())
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lines.append(f"{_counted(len(description.features), 'feature')}: {counted}.")
    lines += _missing(description)
    lines.append(f"{_counted(len(description.tasks), 'task')}:")
    heads = ("task", "kind", *(f"{s} labels" for s in SPLITS), "missing", "labels")
    tasks = list(description.tasks.values())
    cells = [heads, *(_task(task, description) for task in tasks[:_MOST_TASKS])]
    lines += _aligned(cells)
    if len(tasks) > _MOST_TASKS:
        lines.append(f"  and {len(tasks) - _MOST_TASKS} more.")
    named: list[FeatureStats | TaskStats] = list(description.features.values())
    named += description.tasks.values()
    mapped = [f"{s.title!r} is {s.name}" for s in named if s.title != s.name]
    if mapped:
        more = f" and {len(mapped) - 10} more" if len(mapped) > 10 else ""
        lines.append(f"Names in the model: {', '.join(mapped[:10])}{more}.")
    if description.warnings:
        lines += ["Look at:", *(f"  {line}" for line in description.warnings)]
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _missing(description: Description) -> list[str]:
    train = description.rows["train"]
    shares = [
        f"{f.title} {100 * f.missing / train:.1f} %"
        for f in sorted(description.features.values(), key=_by_missing)
        if f.missing
    ]
    if not shares:
        return []
    more = f" and {len(shares) - 10} more" if len(shares) > 10 else ""
    return [f"Missing in features: {', '.join(shares[:10])}{more}."]


def _by_missing(stats: FeatureStats) -> int:
    return -stats.missing


def _task(task: TaskStats, description: Description) -> tuple[str, ...]:
    labels = [task.labels[split] for split in SPLITS]
    missing = 1 - sum(labels) / sum(description.rows.values())
    if task.kind == "number":
        values = (
            f"{task.low:.6g} to {task.high:.6g}, mean {task.mean:.6g}, deviation "
            f"{task.deviation:.4g}"
        )
    else:
        train = sorted(
            zip(task.classes, task.counts["train"], strict=True), key=lambda c: -c[1]
        )
        shown = train[:_MOST_CLASSES]
        values = ", ".join(
            f"{name} {100 * count / task.labels['train']:.1f} %"
            for name, count in shown
        )
        if len(train) > _MOST_CLASSES:
            values += f" and {len(train) - _MOST_CLASSES} more"
    counts = [f"{count:,}" for count in labels]
    return (task.title, task.kind, *counts, f"{100 * missing:.1f} %", values)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        + f"  {row[-1]}"
        for row in rows
    ]
