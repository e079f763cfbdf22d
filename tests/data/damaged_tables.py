"""Damaged and awkward tables, drawn from a number."""

from __future__ import annotations

import json
import pathlib
import random

NAMES = (
    *("x", "y", "name", "dtype", "training", "self", "inputs", "loss", "by", "label"),
    *("a b", "a.b", "a..b", "a/b", "a\\b", "价格", "Preis (€)", "é", "x" * 200, "1st"),
    *("", "mean", "features", "serving_default", "inputs_label", "A", "a", "_x", "a-b"),
    *("cells", "experts", "metrics", "weight", "😀", "tab\tname", "0", "None", "%s"),
)
CELLS = (
    *("", "nan", "NaN", "null", "NA", "?", " ", "-", "0", "1", "1.0", "-0", "1e400"),
    *("-1e400", "inf", "1e39", "1,5", "1_000", "0x10", "٣", "true", "yes", "Zürich"),
    *("2024-02-30", "2024-02-29", "12:30", "a,b", 'say "x"', "two\nlines", "[UNK]"),
    *("x" * 5_000, "\x00", "\u202e", "😀", "'", "=1+1", "1e-320", "9" * 400),
)
KINDS = ("number", "category", "text")
TASKS = ("number", "binary", "multiclass")
# Values of a column, and the kinds that suit them as a feature and as a task.
COLUMNS = (
    ([str(n) for n in range(9)], "number", "number"),
    ([str(n) for n in range(9)], "category", "multiclass"),
    (["0", "1"], "number", "binary"),
    (["a", "b", "c"], "category", "multiclass"),
    (["", "1", "2.5"], "number", "number"),
    (["same"], "category", "multiclass"),
    ([""], "category", "number"),
    (["2024-01-01", "2024-05-03"], "number", "number"),
    ([f"some words {n} and more" for n in range(50)], "text", "multiclass"),
)


def quoted(rng: random.Random, cell: str, delimiter: str) -> str:
    """Returns a cell as CSV has it; now and then as it should not be."""
    if rng.random() < 0.01:
        return cell
    if any(mark in cell for mark in (delimiter, '"', "\n", "\r")):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def content_of(
    rng: random.Random,
) -> tuple[list[tuple[str, str, str]], str, str]:
    """Returns `(name, feature kind, task kind)` of columns, the text, the delimiter."""
    count = rng.randrange(2, 6)
    draw = rng.choices if rng.random() < 0.1 else rng.sample
    names = draw(NAMES, k=count)
    delimiter = rng.choice(",,,;\t")
    rows = rng.choice((0, 1, 3, 30, 60, 60, 60))
    awkward = rng.choice((0.0, 0.0, 0.02, 0.3))
    columns, suited = [], []
    for name in names:
        values, *kinds = rng.choice(COLUMNS)
        suited.append((name, *kinds))
        cells = rng.choices(values, k=rows)
        columns.append(
            [rng.choice(CELLS) if rng.random() < awkward else c for c in cells]
        )
    table = [names, *zip(*columns, strict=True)]
    lines = [
        delimiter.join(quoted(rng, cell, delimiter) for cell in row) for row in table
    ]
    if rng.random() < 0.1 and len(lines) > 1:
        place = rng.randrange(len(lines))
        lines[place] += delimiter.join(["", "x"][: rng.randrange(3)])
    return suited, rng.choice(("\n", "\r\n")).join(lines) + "\n", delimiter


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Returns bytes as they are, or with one kind of damage."""
    place = rng.randrange(len(content) + 1)
    return rng.choice(
        (
            *[content] * 5,
            b"",
            b"\xef\xbb\xbf" + content,
            content[:place],
            content[:place] + rng.randbytes(3) + content[place:],
            content[:place] + b'"' + content[place:],
            content.replace(b"\n", b"\n\n"),
        )
    )


def write(number: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes the table of a number and a data file for it; returns the latter."""
    rng = random.Random(f"table {number}")
    columns, text, delimiter = content_of(rng)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "latin1", "utf-16"))
    content = damaged(rng, text.encode(encoding, errors="replace"))
    (folder / "t.csv").write_bytes(content)
    task, _, task_kind = rng.choice(columns)
    features = {
        name: kind for name, kind, _ in columns if name != task or rng.random() < 0.02
    }
    if rng.random() < 0.2:
        # Kinds that may suit the column or not.
        features = {name: rng.choice(KINDS) for name in features}
        task_kind = rng.choice(TASKS)
    lines = ["[data]", 'files = "t.csv"', f"delimiter = {toml(delimiter)}"]
    if encoding != "utf-8" or rng.random() < 0.5:
        lines.append(f"encoding = {toml(encoding)}")
    lines += ["[features]"]
    lines += [f"{toml(name)} = {toml(kind)}" for name, kind in features.items()]
    lines += ["[tasks]", f"{toml(task)} = {toml(task_kind)}"]
    (folder / "t.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "t.toml"


def toml(text: str) -> str:
    """Writes text as a TOML string."""
    return json.dumps(text, ensure_ascii=False)
