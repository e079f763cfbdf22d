"""What a study keeps of its trials: JSON per trial, one CSV, the best config."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_keras.errors import InputError
from mtl_keras.runs.config import RunConfig, spec_name
from mtl_keras.runs.folder import read_json, write_json

STUDY = "study.json"
TRIALS = "trials"
TABLE = "results.csv"
PLOT = "trade_off.png"

Record = dict[str, Any]


def write_record(out: pathlib.Path, record: Record) -> None:
    """Writes one trial's results to `trials/<id>.json`."""
    folder = out / TRIALS
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{record['trial']}.json", record)


def read_records(out: pathlib.Path) -> list[Record]:
    """Reads all trials' results, best score first, failed ones last."""
    records = [read_json(path) for path in (out / TRIALS).glob("*.json")]
    return sorted(records, key=_rank)


def _rank(record: Record) -> tuple[float, int]:
    score = record["score"]
    return (-score if score is not None else math.inf, int(record["trial"]))


def write_table(out: pathlib.Path, records: Sequence[Record]) -> None:
    """Writes `results.csv`: one row per trial, in the order they ran."""
    settings: dict[str, None] = {}
    metrics: dict[str, None] = {}
    for record in records:
        settings.update(dict.fromkeys(flat_settings(record)))
        metrics.update(dict.fromkeys(_flat_metrics(record)))
    first = ["trial", "status", "score", "seconds"]
    with (out / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*first, *metrics, *settings, "error"])
        writer.writeheader()
        for record in sorted(records, key=lambda record: int(record["trial"])):
            row = {name: record[name] for name in (*first, "error")}
            writer.writerow({**row, **_flat_metrics(record), **flat_settings(record)})


def flat_settings(record: Record) -> dict[str, Any]:
    """Returns a trial's settings with one entry per loss weight."""
    settings: dict[str, Any] = {}
    for name, value in record["config"].items():
        if name == "loss_weights":
            for task, weight in (value or {}).items():
                settings[f"loss_weight/{task}"] = round(weight, 6)
        elif name == "tasks":
            settings[name] = ",".join(value)
        elif isinstance(value, (dict, list)):
            settings[name] = spec_name(value)
        else:
            settings[name] = value
    return settings


def _flat_metrics(record: Record) -> dict[str, float | None]:
    return {
        f"val_{task}_{name}": value
        for task, values in record["metrics"].items()
        for name, value in values.items()
    }


def best_config(out: str | pathlib.Path) -> tuple[str, RunConfig]:
    """Returns the best trial of a study, made ready for a full training.

    Epochs and the limit of training samples are what made the trial cheap;
    they go back to the application's defaults.

    Args:
        out: The folder that `mtl-keras tune` has written.

    Returns:
        The trial's name and its config, with `epochs` and `limit` None.

    Raises:
        InputError: If the folder holds no study, or no finished trial.
    """
    out = pathlib.Path(out)
    if not (out / STUDY).is_file():
        raise InputError(
            f"{str(out)!r} is not a study folder. `mtl-keras tune STUDY --out {out}` "
            "makes one."
        )
    records = read_records(out)
    if not records or records[0]["score"] is None:
        raise InputError(f"The study in {str(out)!r} has no finished trial yet.")
    best = records[0]
    settings = {**best["config"], "epochs": None, "limit": None}
    return str(best["trial"]), RunConfig.from_dict(settings)
