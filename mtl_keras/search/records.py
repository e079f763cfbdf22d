"""Records of a study's trials: JSON per trial, one CSV, the best config."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictStr

from mtl_keras.decoding import Finite, Result, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.evaluation.pareto import hypervolume, pareto_front
from mtl_keras.files import make_folder, write_csv, write_json
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.registry import spec_name
from mtl_keras.runs.config import RunConfig, TrainingConfig
from mtl_keras.runs.records import Outcome, read_record
from mtl_keras.runs.results import flat
from mtl_keras.search.study import Study

STUDY = "study.json"
TRIALS = "trials"
TABLE = "results.csv"


@dataclasses.dataclass(frozen=True)
class TrialRecord(Outcome):
    """Record of a trial: its outcome, settings, and results on the validation split.

    `score` is the sum of the objectives, higher being better; None of a failed trial.
    """

    trial: Annotated[StrictStr, Field(pattern=r"^[0-9]{1,10}$")]
    score: Finite | None
    objectives: Annotated[dict[str, Result], Field(min_length=1)]
    directions: Mapping[str, Annotated[str, Field(pattern="^(max|min)$")]]
    metrics: dict[str, dict[str, Result]]
    config: TrainingConfig
    hyperparameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if (self.score is not None) != self.completed:
            raise InputError("Expected a score where the status is COMPLETED.")
        if list(self.objectives) != list(self.directions):
            raise InputError("Expected directions of the objectives, in their order.")
        if self.completed and not all(map(math.isfinite, self.objectives.values())):
            raise InputError("Expected numbers as objectives of a completed trial.")


def write_record(out: pathlib.Path, record: TrialRecord) -> None:
    """Writes one trial's results to `trials/<id>.json`."""
    make_folder(out / TRIALS)
    write_json(out / TRIALS / f"{record.trial}.json", record)


def read_records(out: pathlib.Path) -> list[TrialRecord]:
    """Returns all trials' results, best first, failed ones last.

    With several objectives those on the front come first, and on it those with the
    best mean of their objectives, each scaled to the front's extent.
    """
    # Without hidden files, of a process that was killed while it wrote one.
    records = [_read(path) for path in sorted((out / TRIALS).glob("[!.]*.json"))]
    for record in records[1:]:
        if record.directions != records[0].directions:
            raise InputError(
                f"The trials in {str(out / TRIALS)!r} have different objectives: "
                "the study folder is broken."
            )
    failed = math.inf
    records.sort(key=lambda r: (failed if r.score is None else -r.score, int(r.trial)))
    front = front_of(records)
    if len(front) and len(records[0].objectives) > 1:
        points = objective_points(front)
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / np.where(high > low, high - low, 1.0)
        order = np.argsort(-scaled.mean(axis=1), kind="stable")
        rest = [record for record in records if record not in front]
        records = [front[i] for i in order] + rest
    return records


def _read(path: pathlib.Path) -> TrialRecord:
    record = read_record(path, TrialRecord)
    if record.trial != path.stem:
        raise InputError(f"{path} is of trial {record.trial}: the folder is broken.")
    return record


def finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Returns those that did not fail."""
    return [record for record in records if record.completed]


def objective_points(records: Sequence[TrialRecord]) -> np.ndarray:
    """Returns the objectives `[N, T]` of finished trials, higher being better."""
    values = np.asarray([list(r.objectives.values()) for r in records], np.float64)
    return values * [1 if d == "max" else -1 for d in records[0].directions.values()]


def front_of(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Returns the finished trials that no other one dominates."""
    done = finished(records)
    if not done:
        return []
    points = objective_points(done)
    return [done[i] for i in pareto_front(points, ["max"] * points.shape[1])]


def hypervolume_curve(records: Sequence[TrialRecord]) -> list[float]:
    """Returns the hypervolume after each trial, in the order they started.

    The reference is the worst value of each objective in any trial.
    """
    done = sorted(finished(records), key=lambda record: int(record.trial))
    if not done:
        return []
    points = objective_points(done)
    directions = ["max"] * points.shape[1]
    return [
        hypervolume(points[: n + 1], points.min(axis=0), directions)
        for n in range(len(points))
    ]


def write_table(out: pathlib.Path, records: Sequence[TrialRecord]) -> None:
    """Writes `results.csv`: one row per trial, in the order they ran."""
    rows = [_row(record) for record in sorted(records, key=lambda r: int(r.trial))]
    # A completed trial has all columns, a failed one no metrics.
    completed_first = sorted(rows, key=lambda row: row["status"])
    fields = dict.fromkeys(key for row in completed_first for key in row)
    write_csv(out / TABLE, [fields, *([row.get(f) for f in fields] for row in rows)])


def _row(record: TrialRecord) -> dict[str, Any]:
    values = encode(record)
    return {
        **{key: values[key] for key in ("trial", "status", "score")},
        **values["objectives"],
        "seconds": record.seconds,
        **flat(values["metrics"]),
        **flat_settings(record.config),
        "error": record.error,
    }


def flat_settings(
    config: TrainingConfig, write: Callable[[Any], str] = repr
) -> dict[str, Any]:
    """Returns settings with an entry per loss weight; `write` is as in `spec_name`."""
    settings: dict[str, Any] = {}
    for name, value in encode(config).items():
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


def searched_settings(study: Study) -> list[str]:
    """Returns the keys of `flat_settings` that differ between trials."""
    names = [name for name in study.searched if name != "loss_weights"]
    if "loss_weights" in study.searched:
        names += [f"loss_weight/{task}" for task in study.tasks]
    return names


def short(value: Any) -> str:
    """Returns a setting's value as short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_tasks(study: Study) -> tuple[str, ...]:
    """Returns the tasks that are shown one by one: none where they are many."""
    return study.tasks if len(study.tasks) <= MANY_TASKS else ()


def main_values(study: Study, record: TrialRecord) -> list[float]:
    """Returns the shown tasks' main metrics of a trial, NaN for a failed one."""
    objectives = {t: study.application.tasks[t].objective for t in shown_tasks(study)}
    return [record.metrics.get(t, {}).get(o, math.nan) for t, o in objectives.items()]


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
    by_number = {int(record.trial): record for record in done}
    best = done[0]
    if trial is not None:
        if not trial.isdecimal() or int(trial) not in by_number:
            names = [record.trial for record in done]
            raise unknown_name(f"finished trial of {str(out)!r}", trial, sorted(names))
        best = by_number[int(trial)]
    values = {**encode(best.config), "epochs": None, "limit": None}
    return best.trial, decode(RunConfig, values)
