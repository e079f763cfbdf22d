"""A study as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Sequence

from mtl_keras.files import atomic_write
from mtl_keras.runs.progress import duration
from mtl_keras.search.records import Record, flat_settings, front_of
from mtl_keras.search.study import Study
from mtl_keras.search.values import epochs, main_values, short

# What the pictures show, by the names of their files.
_ABOUT = {
    "trade_off": "Every trial in each pair of objectives or, with one objective, of "
    "the tasks' metrics. A line joins the front of the pair, a ring marks the front "
    "of all together.",
    "parallel": "Every trial as a line through its settings to its objectives: the "
    "more it stands out, the better; thick lines are those in bold above.",
    "hypervolume": "How much the trials so far dominate.",
}
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #57606a;
  --rule: #d8dee4; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem;
  padding: 1rem; background: var(--page); color: var(--text);
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
p { max-width: 46rem; color: var(--quiet); }
.wide { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px;
  margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--quiet); vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
tr:last-child td { border-bottom: 0; }
tr.front td { font-weight: 600; }
tr.failed td { color: var(--quiet); }
td div { position: sticky; left: .6rem; text-align: left; white-space: normal;
  width: max-content; max-width: min(70rem, calc(100vw - 4rem)); }
img { display: block; max-width: max(100%, 45rem); }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --text: #e8ebef; --quiet: #a3adb8; --rule: #333b44; }
  /* Black on white becomes white on black, and colours keep their hue. */
  img { filter: invert(.92) hue-rotate(180deg); }
}
"""


def write_page(
    study: Study,
    records: Sequence[Record],
    path: pathlib.Path,
    pictures: Sequence[pathlib.Path],
) -> None:
    """Writes the page: what was searched, all trials, and the pictures in it.

    Whatever a user named (tasks, data, errors) is escaped; there are no scripts. What
    is wider than the screen is moved sideways by itself.

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
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(_summary(study, records))}</p>",
        _table(study, records),
    ]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(
            f"<p>{_text(_ABOUT[picture.stem])}</p>"
            f'<div class="wide"><img alt="{_text(picture.stem)}" '
            f'src="data:image/png;base64,{data}"></div>'
        )
    parts.append("</body></html>")
    with atomic_write(path) as beside:
        beside.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _summary(study: Study, records: Sequence[Record]) -> str:
    failed = sum(record["score"] is None for record in records)
    objectives = ", ".join(o.label for o in study.objectives)
    several = len(study.objectives) > 1
    bold = "rows in bold are on the front" if several else "the best row is bold"
    return (
        f"{len(records)} trials of {epochs(study)} by {study.oracle} search for "
        f"{objectives} over {', '.join(study.searched)}; {failed} failed. Values are "
        f"those of the validation split; {bold}."
    )


def _table(study: Study, records: Sequence[Record]) -> str:
    application = study.base_config().get_application()
    objectives = [objective.label for objective in study.objectives]
    tasks = [f"{t}\n{application.tasks[t].objective}" for t in study.tasks or ()]
    settings = [flat_settings(record, short) for record in records]
    names = [
        name
        for name in dict.fromkeys(name for values in settings for name in values)
        if name in study.searched or name.startswith("loss_weight/")
    ]
    front = [record["trial"] for record in front_of(records)]
    heads = ["trial", *objectives, *tasks]
    heads += [name.replace("/", "\n").replace("_", " ") for name in names]
    rows = [_row("th", [*heads, "time"])]
    for record, values in zip(records, settings, strict=True):
        failed = record["score"] is None
        cells = [record["trial"]]
        if failed:
            cells += [""] * (len(objectives) + len(tasks))
        else:
            cells += [f"{record['objectives'][name]:.4f}" for name in objectives]
            cells += [f"{value:.4f}" for value in main_values(study, record)]
        cells += [short(values.get(name, "")) for name in names]
        cells.append(duration(record["seconds"]))
        kind = "failed" if failed else "front" if record["trial"] in front else ""
        rows.append(_row("td", cells, kind))
        if failed:
            words = _text(record["error"])
            rows.append(
                f'<tr class="failed"><td colspan="{len(cells)}"><div>{words}</div>'
                "</td></tr>"
            )
    return '<div class="wide"><table>' + "\n".join(rows) + "</table></div>"


def _row(tag: str, cells: Sequence[str], kind: str = "") -> str:
    inner = "".join(f"<{tag}>{_lines(cell)}</{tag}>" for cell in cells)
    return f'<tr class="{kind}">{inner}</tr>'


def _lines(text: str) -> str:
    return _text(text).replace("\n", "<br>")


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
