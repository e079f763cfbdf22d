"""A study as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_keras.runs.folder import write_text
from mtl_keras.runs.progress import duration
from mtl_keras.search.records import Record, flat_settings, front_of
from mtl_keras.search.study import Study
from mtl_keras.search.values import epochs, main_values, short

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
       padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
tr.front td { font-weight: 600; }
tr.failed td { color: #777; }
img { max-width: 100%; }
"""


def write_page(
    study: Study,
    records: Sequence[Record],
    path: pathlib.Path,
    pictures: Sequence[pathlib.Path],
) -> None:
    """Writes the page: what was searched, all trials, and the pictures in it.

    Whatever a user named (tasks, data, errors) is escaped; there are no scripts.

    Args:
        study: The study.
        records: Its trials, best first.
        path: The page. An existing file is replaced.
        pictures: PNG files, whose bytes go into the page.
    """
    title = f"{study.application} on {study.data}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(_summary(study, records))}</p>",
    ]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(
            f'<p><img alt="{_text(picture.stem)}" src="data:image/png;base64,{data}">'
        )
    parts += [_table(study, records), "</body></html>"]
    write_text(path, "\n".join(parts) + "\n")


def _summary(study: Study, records: Sequence[Record]) -> str:
    failed = sum(record["score"] is None for record in records)
    objectives = ", ".join(o.label for o in study.objectives)
    return (
        f"{len(records)} trials of {epochs(study)} by {study.oracle} search for "
        f"{objectives} over {', '.join(study.searched)}; {failed} failed. Values are "
        "those of the validation split; rows in bold are on the front."
    )


def _table(study: Study, records: Sequence[Record]) -> str:
    application = study.base_config().get_application()
    objectives = [objective.label for objective in study.objectives]
    tasks = [f"{t} {application.tasks[t].objective}" for t in study.tasks or ()]
    settings = [flat_settings(record, short) for record in records]
    names = [
        name
        for name in dict.fromkeys(name for values in settings for name in values)
        if name in study.searched or name.startswith("loss_weight/")
    ]
    front = [record["trial"] for record in front_of(records)]
    rows = [_row("th", ["trial", *objectives, *tasks, *names, "time", ""])]
    for record, values in zip(records, settings, strict=True):
        failed = record["score"] is None
        cells: list[Any] = [record["trial"]]
        cells += ["" if failed else record["objectives"][name] for name in objectives]
        cells += ["" if failed else value for value in main_values(study, record)]
        cells += [values.get(name, "") for name in names]
        cells += [duration(record["seconds"]), record["error"]]
        kind = "failed" if failed else "front" if record["trial"] in front else ""
        rows.append(_row("td", cells, kind))
    return "<table>" + "\n".join(rows) + "</table>"


def _row(tag: str, cells: Sequence[Any], kind: str = "") -> str:
    inner = "".join(f"<{tag}>{_text(short(cell))}</{tag}>" for cell in cells)
    return f'<tr class="{kind}">{inner}</tr>'


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
