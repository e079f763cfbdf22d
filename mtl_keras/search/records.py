"""What a study keeps of its trials: JSON per trial, one CSV, the best config."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.evaluation.pareto import hypervolume, pareto_front
from mtl_keras.files import atomic_write
from mtl_keras.runs.config import RunConfig, spec_name
from mtl_keras.runs.folder import is_json_number, is_table, read_json, write_json

STUDY = "study.json"
TRIALS = "trials"
TABLE = "results.csv"

BASELINES = "baselines.json"
# Raised when what a study folder holds is read in another way.
VERSION = 3

Record = dict[str, Any]


def write_record(out: pathlib.Path, record: Record) -> None:
    """Writes one trial's results to `trials/<id>.json`."""
    folder = out / TRIALS
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{record['trial']}.json", record)


def read_records(out: pathlib.Path) -> list[Record]:
    """Reads all trials' results, best first, failed ones last.

    With several objectives those on the front come first, and on it those with the
    best mean of their objectives, each scaled to the front's extent.
    """
    records = [_read(path) for path in sorted((out / TRIALS).glob("*.json"))]
    for record in records[1:]:
        if record["directions"] != records[0]["directions"]:
            raise InputError(
                f"The trials in {str(out / TRIALS)!r} have different objectives: "
                "the study folder is broken."
            )
    records.sort(key=_rank)
    front = front_of(records)
    if len(front) and len(records[0]["objectives"]) > 1:
        points = objective_points(front)
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / np.where(high > low, high - low, 1.0)
        order = np.argsort(-scaled.mean(axis=1), kind="stable")
        rest = [record for record in records if record not in front]
        records = [front[i] for i in order] + rest
    return records


def _read(path: pathlib.Path) -> Record:
    """Reads and checks one trial's record."""
    record = read_json(path)
    for key, is_right in _CHECKS.items():
        if key not in record or not is_right(record[key]):
            raise InputError(
                f"Expected another {key!r} in {path}: the study folder is broken or "
                f"of another version. Received: {str(record.get(key))!r:.100}."
            )
    try:
        RunConfig.from_dict(record["config"]).validate()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    done = record["score"] is not None
    if (
        record["trial"] != path.stem
        or done != (record["status"] == _DONE)
        or list(record["objectives"]) != list(record["directions"])
        or (done and None in record["objectives"].values())
    ):
        raise InputError(f"{path} contradicts itself: the study folder is broken.")
    return record


_DONE = "COMPLETED"
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "trial": lambda value: (
        isinstance(value, str) and value.isdecimal() and len(value) < 11
    ),
    "status": lambda value: value in (_DONE, "FAILED"),
    "score": is_json_number,
    "objectives": lambda value: value and is_table(value, is_json_number),
    "directions": lambda value: is_table(value, lambda way: way in ("min", "max")),
    "seconds": lambda value: value is not None and is_json_number(value),
    "error": lambda value: isinstance(value, str),
    "metrics": lambda value: is_table(value, lambda own: is_table(own, is_json_number)),
    "config": lambda value: isinstance(value, dict),
}


def finished(records: Sequence[Record]) -> list[Record]:
    """Returns those that did not fail."""
    return [record for record in records if record["score"] is not None]


def objective_points(records: Sequence[Record]) -> np.ndarray:
    """Returns the objectives `[N, T]` of finished trials, higher being better."""
    return np.asarray(
        [
            [
                value if record["directions"][name] == "max" else -value
                for name, value in record["objectives"].items()
            ]
            for record in records
        ],
        np.float64,
    )


def front_of(records: Sequence[Record]) -> list[Record]:
    """Returns the finished trials that no other one dominates."""
    done = finished(records)
    if not done:
        return []
    points = objective_points(done)
    return [done[i] for i in pareto_front(points, ["max"] * points.shape[1])]


def hypervolume_curve(records: Sequence[Record]) -> list[float]:
    """Returns the hypervolume after each trial, in the order they started.

    The reference is the worst value of each objective in any trial, so that only
    curves of one search compare.
    """
    done = sorted(finished(records), key=lambda record: int(record["trial"]))
    if not done:
        return []
    points = objective_points(done)
    directions = ["max"] * points.shape[1]
    return [
        hypervolume(points[: n + 1], points.min(axis=0), directions)
        for n in range(len(points))
    ]


def _rank(record: Record) -> tuple[float, int]:
    score = record["score"]
    return (-score if score is not None else math.inf, int(record["trial"]))


def write_table(out: pathlib.Path, records: Sequence[Record]) -> None:
    """Writes `results.csv`: one row per trial, in the order they ran."""
    settings: dict[str, None] = {}
    metrics: dict[str, None] = {}
    objectives: dict[str, None] = {}
    for record in records:
        settings.update(dict.fromkeys(flat_settings(record)))
        metrics.update(dict.fromkeys(_flat_metrics(record)))
        objectives.update(dict.fromkeys(record["objectives"]))
    first = ["trial", "status", "score", *objectives, "seconds"]
    with (
        atomic_write(out / TABLE) as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, [*first, *metrics, *settings, "error"])
        writer.writeheader()
        for record in sorted(records, key=lambda record: int(record["trial"])):
            row = {name: record.get(name, "") for name in (*first, "error")}
            row |= record["objectives"]
            writer.writerow({**row, **_flat_metrics(record), **flat_settings(record)})


def flat_settings(record: Record, write: Callable[[Any], str] = repr) -> dict[str, Any]:
    """Returns a trial's settings with one entry per loss weight.

    Args:
        record: The trial.
        write: How to write the arguments of methods.
    """
    settings: dict[str, Any] = {}
    for name, value in record["config"].items():
        if name == "loss_weights":
            for task, weight in (value or {}).items():
                settings[f"loss_weight/{task}"] = round(weight, 6)
        elif name == "tasks":
            settings[name] = ",".join(value)
        elif isinstance(value, (dict, list)):
            settings[name] = spec_name(value, write)
        else:
            settings[name] = value
    return settings


def _flat_metrics(record: Record) -> dict[str, float | None]:
    return {
        f"val_{task}_{name}": value
        for task, values in record["metrics"].items()
        for name, value in values.items()
    }


def best_config(
    out: str | pathlib.Path, trial: str | None = None
) -> tuple[str, RunConfig]:
    """Returns a trial of a study, made ready for a full training.

    Epochs and the limit of training samples are what made the trial cheap;
    they go back to the application's defaults.

    Args:
        out: The folder that `mtl-keras tune` has written.
        trial: The trial's name; None means the best one, which is with several
            objectives one on the front.

    Returns:
        The trial's name and its config, with `epochs` and `limit` None.

    Raises:
        InputError: If the folder holds no study, no finished trial, or no trial of
            that name.
    """
    out = pathlib.Path(out)
    if not (out / STUDY).is_file():
        raise InputError(
            f"{str(out)!r} is not a study folder. `mtl-keras tune STUDY --out {out}` "
            "makes one."
        )
    done = finished(read_records(out))
    if not done:
        raise InputError(f"The study in {str(out)!r} has no finished trial yet.")
    by_number = {int(record["trial"]): record for record in done}
    best = done[0]
    if trial is not None:
        if not trial.isdecimal() or int(trial) not in by_number:
            names = [record["trial"] for record in done]
            raise unknown_name(f"finished trial of {str(out)!r}", trial, sorted(names))
        best = by_number[int(trial)]
    settings = {**best["config"], "epochs": None, "limit": None}
    return str(best["trial"]), RunConfig.from_dict(settings)
