"""Public data sets as tables of one's own, through every command.

    python benchmarks/own_tables.py --data FOLDER
    python benchmarks/own_tables.py --data FOLDER tox21 school --steps init,train

FOLDER holds the original files: `molnet/tox21.csv.gz`,
`fdu_mtl/fdu_mtl_reviews.tar.gz`, `census_income_kdd/*.gz`, `school/school.csv.gz`.
Each becomes a table as somebody might have it, and goes through `init`, `train`, `tune`
(6 trials), `compare` (3 methods, 2 seeds), `export --check`, `serve-check` and
`predict`, each a process of its own, in `build/own_tables/NAME` (`--to`). Trainings of
`tune` and `compare` are cut short by `limit`, so that all goes through on two cores
within the hour.

What a command did before with the same line is not done again. Writes
benchmarks/results/own_tables.json: exit code, seconds and main results of each command.
A command that fails ends the script with code 1, after the others of its data set.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = pathlib.Path(__file__).parent / "results" / "own_tables.json"
BALANCING = "equal,uncertainty,pcgrad"
NEW_ROWS = 200


def tox21(data: pathlib.Path, folder: pathlib.Path) -> None:
    """The file as it is: SMILES, 12 assays, empty where not measured."""
    shutil.copy(data / "molnet" / "tox21.csv.gz", folder)
    with gzip.open(folder / "tox21.csv.gz", "rt") as file:
        write(folder / "new.csv", ([row[-1]] for row in head(csv.reader(file))))


def reviews(data: pathlib.Path, folder: pathlib.Path) -> None:
    """One table of all domains: `domain`, `positive`, `text`, `split`."""
    rows = [["domain", "positive", "text", "split"]]
    path = data / "fdu_mtl" / "fdu_mtl_reviews.tar.gz"
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = re.fullmatch(r".*?([^/]+)\.task\.(train|test)", member.name)
            content = archive.extractfile(member)
            if name is None or content is None:
                continue
            for line in io.TextIOWrapper(content, "utf-8", errors="replace"):
                label, _, text = line.rstrip("\n").partition("\t")
                rows.append([name[1], label, text, name[2]])
    write(folder / "reviews.csv", rows)
    held_out = [row for row in rows[1:] if row[3] == "test"]
    step = len(held_out) // NEW_ROWS
    new = [row[:1] + row[2:3] for row in [rows[0], *held_out[::step]]]
    write(folder / "new.csv", new)


def census(data: pathlib.Path, folder: pathlib.Path) -> None:
    """The two files as they are: no header, `?` for what is not known."""
    for kind in ("data", "test"):
        shutil.copy(data / "census_income_kdd" / f"census-income.{kind}.gz", folder)
    with gzip.open(folder / "census-income.test.gz", "rt") as file:
        write(folder / "new.csv", head(csv.reader(file)))


def school(data: pathlib.Path, folder: pathlib.Path) -> None:
    """The file as it is: a score of each pupil, 139 schools."""
    shutil.copy(data / "school" / "school.csv.gz", folder)
    with gzip.open(folder / "school.csv.gz", "rt") as file:
        write(folder / "new.csv", head(csv.reader(file)))


def head(rows: Iterable[list[str]]) -> Iterable[list[str]]:
    """Gives the first rows, the header among them."""
    return (row for _, row in zip(range(NEW_ROWS + 1), rows, strict=False))


def write(path: pathlib.Path, rows: Iterable[list[str]]) -> None:
    """Writes a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set and what its commands are given.

    Attributes:
        prepare: Writes the table's files and `new.csv` into a folder.
        init: Arguments of `init`.
        train: Options of `train`.
        short: `limit` and `epochs` of `tune` and `compare`.
        compare: Further options of `compare`.
    """

    prepare: Callable[[pathlib.Path, pathlib.Path], None]
    init: str
    train: str
    short: Mapping[str, int]
    compare: str = ""


CASES = {
    "tox21": Case(tox21, "tox21.csv.gz", "--epochs 6", {"limit": 1_500, "epochs": 3}),
    "reviews": Case(
        reviews,
        "reviews.csv --task-by domain --tasks positive",
        "--epochs 3",
        # 200 labels of each domain.
        {"limit": 3_200, "epochs": 4},
    ),
    "census": Case(
        census,
        "census-income.data.gz census-income.test.gz --tasks column_42,column_8",
        "--epochs 2",
        {"limit": 20_000, "epochs": 2},
    ),
    "school": Case(
        school,
        "school.csv.gz --task-by school --tasks score",
        "--epochs 20",
        {"limit": 12_000, "epochs": 10},
        "--no-single-tasks",
    ),
}


def lines(name: str, case: Case) -> dict[str, str]:
    """Returns a data set's command lines by step, as the documentation has them."""
    short = " ".join(f"--{key} {value}" for key, value in case.short.items())
    return {
        "init": f"init {case.init} --to {name}.toml",
        "train": f"train {name}.toml --out run {case.train}",
        "evaluate": "evaluate run --json",
        "export": f"export run --to models/{name} --check",
        "serve-check": f"serve-check models/{name}",
        "predict": "predict run new.csv",
        "tune": "tune study.toml --out study",
        "compare": f"compare {name}.toml --balancing {BALANCING} --seeds 2 --out "
        f"compare {short} {case.compare}".strip(),
    }


def write_study(name: str, case: Case, folder: pathlib.Path) -> None:
    """Writes the file of a study of six trials."""
    settings = {"application": f"{name}.toml", "trials": 6, **case.short, "seed": 0}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    text += (
        '\n[space]\nbalancing = ["equal", "uncertainty"]\nsharing = ["hard", "mmoe"]'
    )
    text += "\nlearning_rate = { min = 5e-4, max = 1e-2, log = true }\n"
    (folder / "study.toml").write_text(text, encoding="utf-8")


def execute(line: str, folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """Runs a command of `mtl-keras` and returns its exit code and times."""
    code = "from mtl_keras_cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, *shlex.split(line)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": f"mtl-keras {line}",
        "code": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu, 1),
    }


def found(step: str, name: str, folder: pathlib.Path, log: str) -> dict[str, Any]:
    """Returns the main results of a command that went well."""
    if step == "init":
        file = tomllib.loads((folder / f"{name}.toml").read_text("utf-8"))
        return {"data": file["data"], "features": len(file["features"])}
    if step == "train":
        return objectives(json.loads((folder / "run" / "metrics.json").read_text()))
    if step == "evaluate":
        return objectives(json.loads(log[log.index("{") :]))
    if step in ("export", "serve-check"):
        return {"last_line": log.strip().splitlines()[-1]}
    if step == "predict":
        with (folder / "new.predictions.csv").open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
        return {"rows": len(rows) - 1, "columns": len(rows[0])}
    if step == "tune":
        trials = sorted((folder / "study" / "trials").glob("*.json"))
        return {"trials": len(trials)}
    summary = json.loads((folder / "compare" / "results.json").read_text())
    return compared(summary)


def objectives(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Returns the mean over tasks of each metric."""
    names = {name for values in metrics.values() for name in values}
    means = {}
    for name in sorted(names):
        values = [v[name] for v in metrics.values() if v.get(name) is not None]
        means[name] = round(sum(values) / len(values), 4)
    return {"tasks": len(metrics), "mean over tasks": means}


def compared(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean test scores of a comparison, alone and by method."""

    def mean(scores: Iterable[Mapping[str, Any]]) -> float:
        values = [score["mean"] for score in scores]
        return round(sum(values) / len(values), 4)

    tasks, single = summary["tasks"], summary["single"]
    result: dict[str, Any] = {"failed": len(summary["failed"]), "mean over tasks": {}}
    if single:
        alone = mean(single[task]["test"][task] for task in tasks)
        result["mean over tasks"]["single tasks"] = alone
    for name, method in summary["methods"].items():
        result["mean over tasks"][name] = mean(method["test"].values())
        result.setdefault("delta_m", {})[name] = method["delta_m"]["mean"]
    return result


def run_case(
    name: str, case: Case, data: pathlib.Path, folder: pathlib.Path, chosen: list[str]
) -> bool:
    """Runs the steps that were not run yet; returns whether all went well."""
    from mtl_keras.runs.records import made_with

    kept = folder / "steps.json"
    steps = json.loads(kept.read_text()) if kept.is_file() else {}
    if not folder.is_dir():
        folder.mkdir(parents=True)
        case.prepare(data, folder)
        write_study(name, case, folder)
    for step, line in lines(name, case).items():
        before = steps.get(step, {})
        if chosen and step not in chosen:
            continue
        if before.get("code") == 0 and before["command"] == f"mtl-keras {line}":
            continue
        log = folder / f"{step}.log"
        record = execute(line, folder, log)
        text = log.read_text("utf-8")
        if record["code"] == 0:
            record["found"] = found(step, name, folder, text)
        else:
            record["said"] = text.strip().splitlines()[-1:]
        steps[step] = {**record, "made_with": made_with()}
        kept.write_text(json.dumps(steps, indent=2, ensure_ascii=False) + "\n")
        print(name, json.dumps(record, ensure_ascii=False), flush=True)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    text = json.dumps({**results, name: steps}, indent=2, ensure_ascii=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    return all(step["code"] == 0 for step in steps.values())


def main() -> None:
    """Runs the data sets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"out of {', '.join(CASES)}; else all")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, default="build/own_tables")
    parser.add_argument("--steps", help="with commas between; else all")
    arguments = parser.parse_args()
    chosen = arguments.steps.split(",") if arguments.steps else []
    for name in arguments.names:
        if name not in CASES:
            parser.error(f"{name!r} is none of {', '.join(CASES)}")
    well = True
    for name in arguments.names or CASES:
        folder = (arguments.to / name).absolute()
        well &= run_case(name, CASES[name], arguments.data, folder, chosen)
    sys.exit(not well)


if __name__ == "__main__":
    main()
