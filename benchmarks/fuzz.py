"""Malformed inputs for every reader and for the command line.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --cases 200 --only study --seed 3

Each case starts from a whole input and damages it: bytes are changed, moved, cut off
and repeated; values are put in the place of others; command lines are drawn out of
commands, options, names and odd text; tables are those of
`tests/data/damaged_tables.py`, and every tenth that is read also trains a model for a
step. A reader may then give a result or raise an
`InputError` of one line; a command may end with code 0, or with code 2, one line on
standard error, and nothing written. Anything else is a defect, and so is a case that
takes more than 20 seconds of processor time.

What would take long on inputs that are right after all (the training itself, a search,
preparing data) is left out: a command line that gets so far counts as accepted.
Writes benchmarks/results/fuzz.json, where the results of kinds that are not run again
(`--only`) stay; a defect ends the script with code 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
import typer
from scipy.io import wavfile
from tensorflow_serving.apis import prediction_log_pb2
from typer.testing import CliRunner

from mtl_keras import (
    applications,
    balancing,
    callbacks,
    compare,
    data,
    runs,
    search,
    sharing,
)
from mtl_keras.data import catalog
from mtl_keras.decoding import decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.runs import checkpoints, worker
from mtl_keras.runs.records import made_with
from mtl_keras.runs.results import metric_names
from mtl_keras.runs.scheduler import Job, Scheduler
from mtl_keras.serving import warmup
from mtl_keras_cli.app import app

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "data"))

import damaged_tables  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / "results"
SECONDS = 20
# How many cases each kind has, or which share of `--cases`.
SHARES = {
    "study": 2_300,
    "study_folder": 400,
    "comparison": 400,
    "callback": 200,
    "run": 1_600,
    "metrics": 300,
    "model": 700,
    "model_config": 60,
    "checkpoint": 740,
    "recording": 1_200,
    "records": 700,
    "originals": 300,
    "prepared": 100,
    "command": 1_000,
    "table": 1_000,
}

WORDS = (
    *("", " ", "a", "vision", "text", "equal", "pcgrad", "hard", "mmoe", "left", "cnn"),
    *("visoin", "../..", "/", ".", "~", "/dev/null", "nan", "-1", "1e999", "0x10"),
    *("٣", "ü\u0301", "😀", "a\nb", "\u202e", "{}", "%s%n", "a" * 3_000, "$(true)"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308),
    *(float("inf"), float("nan"), [], [[]], {}, {"": {}}, [None], [0, "a", []]),
    *WORDS,
    {"class_name": "pcgrad", "config": {"scale": "sum"}},
    {"class_name": "mmoe", "config": {"num_experts": -1}},
    {"class_name": "Lambda", "config": {}, "registered_name": "Lambda"},
    {"min": 3, "max": 1},
    {"min": 1, "max": 4, "log": True, "step": 2},
    ["equal", "uncertainty", "mgda"],
)


class Hang(BaseException):
    """A case that took too long; no handler of the program may take it."""


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Returns bytes with one to four kinds of damage."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(changed) + 1)
        end = min(len(changed), place + rng.choice((1, 1, 2, 4, 8, 64)))
        choice = rng.randrange(7)
        if choice == 0:
            del changed[place:end]
        elif choice == 1:
            del changed[place:]
        elif choice == 2:
            changed[place:place] = changed[place:end] * rng.randrange(1, 9)
        elif choice == 3:
            changed[place:end] = rng.randbytes(end - place)
        elif choice == 4:
            changed[place:end] = rng.choice((b"\xff", b"\x00", b"\x7f")) * (end - place)
        elif choice == 5:
            changed[place:place] = rng.choice(WORDS).encode("utf-8")
        elif changed:
            changed[min(place, len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def replaced(rng: random.Random, tree: Any) -> Any:
    """Returns a copy of a JSON-like tree with one to three places changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randrange(1, 4)):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.6:
                node = node[key]
                continue
            choice = rng.random()
            if choice < 0.15:
                del node[key]
            elif choice < 0.3 and isinstance(node, dict):
                node[rng.choice(WORDS)] = node.pop(key)
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return tree


def as_toml(value: Any) -> str:
    """Writes a tree as inline TOML, as far as TOML has its values."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(k))} = {as_toml(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


STUDY = {
    "application": "vision",
    "data": "multi_digits/digits",
    "tasks": ["left", "mask"],
    "oracle": "bayesian",
    "trials": 4,
    "epochs": 2,
    "limit": 100,
    "seed": 1,
    "objective": "mean",
    "space": {
        "balancing": ["equal", {"class_name": "dwa", "config": {"temperature": 1.0}}],
        "sharing": ["hard", {"class_name": "mmoe", "search": True}],
        "width": [8, 16],
        "depth": {"min": 2, "max": 3},
        "learning_rate": {"min": 5e-4, "max": 5e-3, "log": True},
        "loss_weights": {"max_ratio": 4.0},
    },
}


# Two searches, whose folders differ in what they hold.
STUDIES: tuple[dict[str, Any], ...] = (
    {"objective": "delta_m"},
    {"oracle": "pareto", "objective": ["left", "mask"]},
)


class Place:
    """Whole inputs to start from, made once, and a folder for damaged ones."""

    def __init__(self, root: pathlib.Path):
        self.whole = root / "whole"
        self.folder = root / "case"
        self.whole.mkdir()
        self.config = runs.RunConfig(
            "vision",
            tasks=("left", "even_sum"),
            width=1,
            depth=1,
            sharing={"class_name": "hard"},
            balancing=["dwa", "pcgrad"],
            loss_weights={"left": 2.0},
            optimizer={"class_name": "Adam", "config": {"beta_1": 0.8}},
            limit=10,
        ).validate()
        model = runs.compiled_model(self.config, 3)
        model.optimizer.build(model.trainable_variables)
        model.save(self.whole / "model.keras")
        values = {**encode(self.config), "made_with": made_with()}
        (self.whole / "config.json").write_text(json.dumps(values))
        self.metrics = {
            "left": {"accuracy": 0.5, "loss": 1.0},
            "even_sum": {"auc": 0.1},
        }
        (self.whole / "metrics.json").write_text(json.dumps(self.metrics))
        (self.whole / "checkpoints").mkdir()
        checkpoints.save(
            self.whole / "checkpoints", model, checkpoints.Progress(1, 0, 3)
        )
        (self.checkpoint,) = (self.whole / "checkpoints").iterdir()
        wave = np.sin(np.arange(800) / 9)
        for name, kind in (("int16", 2**14), ("float32", 1), ("uint8", 100)):
            sound = (wave * kind + 100 * (name == "uint8")).astype(name)
            wavfile.write(self.whole / f"{name}.wav", 8_000, sound)
        self.record = self._record()

    def _record(self) -> bytes:
        image = np.zeros((2, 36, 36, 1), "uint8")
        log = prediction_log_pb2.PredictionLog()
        request = warmup.predict_request("vision", "left", {"image": image})
        log.predict_log.request.CopyFrom(request)
        answer = tf.make_tensor_proto(np.zeros((2, 10), "float32"))
        log.predict_log.response.outputs["left"].CopyFrom(answer)
        return log.SerializeToString()

    def renew(self) -> pathlib.Path:
        """Returns the emptied folder for a case."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def run(self) -> pathlib.Path:
        """Returns a copy of the whole run folder."""
        folder = self.renew() / "run"
        shutil.copytree(self.whole, folder)
        return folder


# Each takes a generator and the place, damages an input and reads it.
Case = Callable[[random.Random, Place], Any]


def study(rng: random.Random, place: Place) -> None:
    table = STUDY if rng.random() < 0.5 else replaced(rng, STUDY)
    text = "".join(f"{json.dumps(str(k))} = {as_toml(v)}\n" for k, v in table.items())
    content = text.encode()
    if table is STUDY or rng.random() < 0.2:
        content = damaged(rng, content)
    path = place.renew() / "study.toml"
    path.write_bytes(content)
    search.load_study(path)


def run(rng: random.Random, place: Place) -> None:
    path = place.renew() / "run"
    path.mkdir()
    for name in ("metrics.json", "model.keras"):
        (path / name).write_bytes(b"{}")
    content = (place.whole / "config.json").read_bytes()
    if rng.random() < 0.7:
        content = json.dumps(replaced(rng, json.loads(content))).encode()
    else:
        content = damaged(rng, content)
    (path / "config.json").write_bytes(content)
    runs.load_run(path)


def damage_file(rng: random.Random, path: pathlib.Path) -> None:
    """Removes a file, or damages its bytes or, mostly, what its JSON holds."""
    choice = rng.random()
    if choice < 0.1:
        path.unlink()
    elif choice < 0.3 or path.suffix != ".json":
        path.write_bytes(damaged(rng, path.read_bytes()))
    else:
        tree = replaced(rng, json.loads(path.read_bytes()))
        path.write_text(json.dumps(tree))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns all files of a folder."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def without_training() -> Iterator[None]:
    """Gives trials and cells results that nobody has trained for."""
    # One seed for all: a trial that is run again gets what it had.
    rng = np.random.default_rng(0)

    def fit(model: Any, hp: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        keys = [f"val_{t}_{m}" for t, own in model._names.items() for m in own]
        return model.results({key: float(rng.random()) for key in [*keys, "loss"]})

    def start(scheduler: Scheduler, slot: int, job: Job) -> None:
        worker.run(job.folder, job.function)
        scheduler._end(job, 1.0)

    def train_cell(path: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any]:
        config = decode(runs.TrainingConfig, settings["config"])
        return cell_result(settings, config)

    model = "mtl_keras.search.hypermodel.StudyHyperModel"
    with (
        mock.patch(f"{model}.build"),
        mock.patch(f"{model}.fit", fit),
        mock.patch("mtl_keras.search.running.load_split"),
        mock.patch("mtl_keras.search.running.count_batches"),
        mock.patch("mtl_keras.search.trial.train_baseline", return_value=0.5),
        mock.patch("mtl_keras.runs.scheduler.Scheduler._start", start),
        mock.patch("mtl_keras.compare.cell.train_cell", train_cell),
    ):
        yield


def cell_result(
    settings: dict[str, Any], config: runs.TrainingConfig
) -> dict[str, Any]:
    """Returns what the training of a cell might have given."""
    tasks = metric_names(config.get_application(), config.tasks)
    test = {t: dict.fromkeys([*own, "loss"], 0.4) for t, own in tasks.items()}
    table = [[1.0 / (1 + abs(i - j)) for j in range(2)] for i in range(2)]
    found = {"epoch": 0, "cosines": table, "affinity": table}
    single = settings["kind"] == "single"
    return {
        "epoch": 1,
        "validation": dict.fromkeys(tasks, 0.5),
        "validation_delta_m": None if single else 1.5,
        "test": test,
        "jobs": settings["jobs"],
        **dict.fromkeys(("step_ms", "step_cpu_ms"), 2.0),
        **{"peak_memory_mb": 900.0, "peak_gpu_memory_mb": None},
        "history": {f"val_{task}_loss": [0.3] for task in tasks},
        "affinity": [found] if settings["kind"] == "combination" else None,
    }


def goes_on(
    rng: random.Random, place: Place, kind: str, work: Callable[[pathlib.Path], Any]
) -> None:
    """Makes a folder whole, damages one of its files, and goes on with it.

    A folder that is refused must be left as it was.
    """
    whole = place.whole / kind
    with without_training():
        if not whole.exists():
            work(whole)
            # Undamaged, it is gone on with.
            work(whole)
        folder = place.renew() / kind
        shutil.copytree(whole, folder)
        files = sorted(folder.rglob("*.json"))
        damage_file(rng, rng.choice(files))
        before = contents(folder)
        try:
            work(folder)
        except InputError:
            assert contents(folder) == before, "refused, but written to"
            raise


def study_folder(rng: random.Random, place: Place) -> None:
    changes = rng.choice(STUDIES)
    number = STUDIES.index(changes)
    text = "".join(f"{k} = {as_toml(v)}\n" for k, v in {**STUDY, **changes}.items())
    path = place.whole / f"study-{number}.toml"
    path.write_text(text)
    checked = search.load_study(path)

    def work(folder: pathlib.Path) -> None:
        search.run_study(checked, folder)
        search.best_config(folder)

    goes_on(rng, place, f"study-{number}", work)


def comparison(rng: random.Random, place: Place) -> None:
    base = runs.RunConfig("vision", tasks=("left", "mask"), epochs=1, limit=10)
    settings = compare.Comparison(base, balancing=("equal", "pcgrad"), seeds=2)

    def work(folder: pathlib.Path) -> None:
        compare.run_comparison(settings, folder)

    goes_on(rng, place, "comparison", work)


def callback(rng: random.Random, place: Place) -> None:
    """What callbacks keep, read when a training goes on."""
    folder = place.renew()
    best, affinity = folder / "best.keras", folder / "affinity.json"
    with zipfile.ZipFile(best, "w", zipfile.ZIP_DEFLATED) as file:
        found = {"epoch": 0, "delta_m": 1.5, "metrics": {"a": 0.5}}
        file.writestr("delta_m.json", json.dumps(found))
    table = [[1.0, None], [0.5, 1.0]]
    found = {"epoch": 0, "cosines": table, "affinity": table}
    affinity.write_text(json.dumps([found, {**found, "epoch": 1}]))
    damage_file(rng, rng.choice((best, affinity)))
    keep = callbacks.DeltaCheckpoint(best, {"a": 1.0}, {"a": "a"}, {"a": "max"})
    measure = callbacks.TaskAffinity([], path=affinity)
    for one in (keep, measure):
        one.on_epoch_begin(2)


def metrics(rng: random.Random, place: Place) -> None:
    from mtl_keras_cli.app import _print_metrics
    from mtl_keras_cli.text import make_console

    path = place.run()
    content = json.dumps(replaced(rng, place.metrics)).encode()
    if rng.random() < 0.5:
        content = damaged(rng, content)
    (path / "metrics.json").write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()):
        _print_metrics(make_console(), runs.load_run(path).metrics)


def model(rng: random.Random, place: Place) -> None:
    path = place.run()
    (path / "model.keras").write_bytes(
        damaged(rng, (path / "model.keras").read_bytes())
    )
    runs.load_run(path).model()


def model_config(rng: random.Random, place: Place) -> None:
    path = place.run()
    with zipfile.ZipFile(path / "model.keras") as file:
        members = {name: file.read(name) for name in file.namelist()}
    config = replaced(rng, json.loads(members["config.json"]))
    with zipfile.ZipFile(path / "model.keras", "w") as file:
        for name, content in members.items():
            file.writestr(
                name, json.dumps(config) if name == "config.json" else content
            )
    runs.load_run(path).model()


def checkpoint(rng: random.Random, place: Place) -> None:
    folder = place.renew()
    path = folder / place.checkpoint.name
    path.write_bytes(damaged(rng, place.checkpoint.read_bytes()))
    found, broken = checkpoints.newest(folder)
    if found is None:
        (line,) = broken
        raise InputError(line)
    whole, _ = checkpoints.newest(place.checkpoint.parent)
    assert whole is not None
    assert found.progress == whole.progress
    for key in whole.values | found.values:
        np.testing.assert_array_equal(whole.values[key], found.values[key])


def recording(rng: random.Random, place: Place) -> None:
    source = place.whole / f"{rng.choice(('int16', 'float32', 'uint8'))}.wav"
    content = source.read_bytes()
    # The header, mostly: damaged samples are samples.
    head = damaged(rng, content[:60])
    path = place.renew() / "a.wav"
    path.write_bytes(head + content[60 : rng.choice((len(content), 300))])
    data.read_wav(path)


def records(rng: random.Random, place: Place) -> None:
    path = place.renew() / warmup.FILE
    path.parent.mkdir()
    message = place.record if rng.random() < 0.4 else damaged(rng, place.record)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(message)
        writer.write(place.record)
    if message is place.record:
        path.write_bytes(damaged(rng, path.read_bytes()))
    for record in warmup.read_records(place.folder):
        warmup.arrays(record.request.inputs)
        warmup.arrays(record.response.outputs)


def originals(rng: random.Random, place: Place) -> None:
    names = [name for name in data.names() if data.info(name).needs_downloads]
    name = rng.choice(names)
    folder = place.renew()
    builder = catalog.builder(name, folder / "data")
    for info in (builder.url_infos or {}).values():
        if rng.random() < 0.9:
            (folder / (info.filename or "a")).write_bytes(rng.randbytes(64))
    data.prepare(name, downloads=folder, data_dir=folder / "data")


def prepared(rng: random.Random, place: Place) -> None:
    folder = place.renew()
    source = place.whole / "data"
    if not source.exists():
        data.prepare("mmoe_synthetic", data_dir=source)
    shutil.copytree(source, folder / "data")
    files = sorted(p for p in (folder / "data").rglob("*") if p.is_file())
    path = rng.choice(files)
    if rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    with catalog.reading("mmoe_synthetic", folder / "data"):
        for split in ("train", "test"):
            examples = data.load("mmoe_synthetic", split, data_dir=folder / "data")
            for _ in examples.batch(512):
                pass


_OPTIONS = {
    "train": "--data --tasks --backbone --sharing --balancing --width --depth --epochs "
    "--batch-size --learning-rate --limit --seed --from-study --out --reuse "
    "--checkpoint-steps --deterministic --strategy",
    "compare": "--balancing --sharing --seeds --pairs --data --tasks --backbone "
    "--width --depth --epochs --batch-size --learning-rate --limit --jobs --out",
    "tune": "--out",
    "evaluate": "--json",
    "export": "--to --tasks --weights --check --reuse",
    "serve-check": "--tolerance --seconds",
    "datasets": "prepare list --downloads",
    "doctor": "",
}


def command_line(rng: random.Random, place: Place) -> list[str]:
    """Draws a command line: mostly the right words in the wrong places."""
    command = rng.choice([*_OPTIONS, rng.choice(WORDS)])
    pool = [
        *WORDS,
        *balancing.names()[:5],
        *sharing.names()[:5],
        *("10", "0", "8", "0.01", "run", "study.toml", "run/config.json", "absent"),
        *("--help", "--", "-x", "--verbose=3", "--out=run", "multi_digits/digits"),
    ]
    line = [command]
    options = _OPTIONS.get(command, "").split()
    if command in ("train", "compare") and rng.random() < 0.8:
        line.append(rng.choice(("vision", "text", "recommendation", "multimodal")))
    for _ in range(rng.randrange(5)):
        if options and rng.random() < 0.7:
            line.append(rng.choice(options))
        line.append(rng.choice(pool))
    # No process is ever given these two.
    return [word.replace("\0", "") for word in line]


def command(rng: random.Random, place: Place) -> None:
    folder = place.run().parent
    (folder / "study.toml").write_bytes(damaged(rng, b"trials = 3\n"))
    line = command_line(rng, place)
    before = sorted(folder.rglob("*"))
    accepted = mock.Mock(side_effect=typer.Exit(0))
    with (
        contextlib.chdir(folder),
        mock.patch("mtl_keras.runs.fitting._Fitting", accepted),
        mock.patch("mtl_keras.search.run_study", accepted),
        mock.patch("mtl_keras.compare.running.run_cells", accepted),
        mock.patch("mtl_keras.data.preparation._build", accepted),
        mock.patch("mtl_keras.runs.training.load_split", accepted),
        mock.patch("mtl_keras.runs.exporting.load_split", accepted),
    ):
        result = CliRunner().invoke(app, line)
    check_command(line, result.exit_code, result.stderr, result.exception)
    if result.exit_code == 2:
        assert sorted(folder.rglob("*")) == before, f"{line} has written"
        raise InputError(result.stderr.strip())


def table(rng: random.Random, place: Place) -> None:
    """Proposes a data file for a table; opens, reads and trains with another one."""
    folder = place.renew()
    damaged_tables.write(rng.randrange(1 << 32), folder)
    lines = []
    accepted = mock.Mock(side_effect=typer.Exit(0))
    with (
        contextlib.chdir(folder),
        mock.patch("mtl_keras.runs.fitting._Fitting", accepted),
    ):
        for line in (["init", "t.csv", "--to", "new.toml"], ["train", "t.toml"]):
            result = CliRunner().invoke(app, line)
            check_command(line, result.exit_code, result.stderr, result.exception)
            lines.append(result.stderr.strip())
    if lines[-1]:
        assert "t.csv" in lines[-1] or "t.toml" in lines[-1], lines[-1]
        raise InputError(lines[-1])
    opened = applications.Table(folder / "t.toml")
    samples = opened.load("train", batch_size=16)
    for batch in samples:
        assert all(np.isfinite(label).all() for label in batch[1].values())
    if rng.random() < 0.1:
        model = opened.build(width=4)
        model.compile(
            "sgd", opened.losses(), metrics=opened.metrics(), run_eagerly=True
        )
        logs = model.fit(samples.take(1), shuffle=False, verbose=0).history
        titles = [name for name in opened.tasks if f"{name}_loss" in logs]
        assert titles or len(opened.tasks) == 1, f"{list(logs)} lack the tasks' names"
        for inputs, *_ in samples.take(1):
            answers = model.predict_on_batch(inputs)
        assert all(np.isfinite(answer).all() for answer in answers.values())


def check_command(
    line: list[str], code: int, errors: str, error: BaseException | None = None
) -> None:
    """Raises an AssertionError unless a command ended as it should."""
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError(f"{line}: {error!r}") from error
    assert code in (0, 2), f"{line}: code {code}"
    assert code == 0 or len(errors.splitlines()) == 1, f"{line}: {errors}"
    assert "Traceback" not in errors, f"{line}: {errors}"


def check_whole(place: Place) -> None:
    """Reads all that the cases damage, while it is whole: else they say little."""
    run = runs.load_run(place.whole)
    assert run.config == place.config
    assert run.metrics == place.metrics
    run.model()
    path = place.renew() / "study.toml"
    path.write_text("".join(f"{k} = {as_toml(v)}\n" for k, v in STUDY.items()))
    search.load_study(path)
    for name in ("int16", "float32", "uint8"):
        assert len(data.read_wav(place.whole / f"{name}.wav")) == 800
    found, broken = checkpoints.newest(place.checkpoint.parent)
    assert found is not None
    assert not broken
    log = prediction_log_pb2.PredictionLog.FromString(place.record).predict_log
    assert warmup.arrays(log.request.inputs)["image"].shape == (2, 36, 36, 1)
    assert warmup.arrays(log.response.outputs)["left"].shape == (2, 10)


CASES: dict[str, Case] = {
    "study": study,
    "study_folder": study_folder,
    "comparison": comparison,
    "callback": callback,
    "run": run,
    "metrics": metrics,
    "model": model,
    "model_config": model_config,
    "checkpoint": checkpoint,
    "recording": recording,
    "records": records,
    "originals": originals,
    "prepared": prepared,
    "command": command,
    "table": table,
}


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises `Hang` after `SECONDS` of this process's time."""

    def ring(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def outcome(kind: str, number: int, seed: int, place: Place) -> str:
    """Runs one case; returns `"read"`, `"refused"`, or what went wrong."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    try:
        with limited():
            CASES[kind](rng, place)
    except InputError as error:
        if "\n" in str(error):
            return f"several lines: {error}"
        return "refused"
    except (Exception, Hang):
        return traceback.format_exc(limit=-6)
    return "read"


def real_processes(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Starts command lines that only a process of its own can be given."""
    (folder / "study.toml").write_bytes(b"trials = \xff\n")
    os.mkfifo(folder / "fifo")
    lines: list[list[str | bytes]] = [
        ["tune", "study.toml"],
        ["tune", "fifo"],
        ["train", b"vis\xff\xfeion"],
        ["evaluate", b"\xff"],
        ["train", "vision", "--out", "/dev/full/run"],
        ["train", "vision", "--learning-rate", "nan"],
    ]
    records = []
    for line in lines:
        code = "from mtl_keras_cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *line],
            capture_output=True,
            cwd=folder,
            timeout=1_200,
            stdin=subprocess.DEVNULL,
        )
        errors = done.stderr.decode(errors="replace")
        words = [w if isinstance(w, str) else repr(w) for w in line]
        check_command(words, done.returncode, errors)
        records.append(
            {"line": " ".join(words), "code": done.returncode, "said": errors.strip()}
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int)
    parser.add_argument("--only", choices=SHARES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = [arguments.only] if arguments.only else list(SHARES)
    whole = sum(SHARES[kind] for kind in kinds)
    cases = arguments.cases or whole
    path = RESULTS / "fuzz.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    results = {kind: kept["by_kind"].get(kind, {}) for kind in SHARES}
    defects = [defect for defect in kept["defects"] if defect["kind"] not in kinds]
    processes = kept["processes"]
    keras.utils.disable_interactive_logging()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(pathlib.Path(folder))
        check_whole(place)
        for kind in kinds:
            counts: collections.Counter[str] = collections.Counter()
            for number in range(max(1, cases * SHARES[kind] // whole)):
                result = outcome(kind, number, arguments.seed, place)
                if result not in ("read", "refused"):
                    defects.append({"kind": kind, "number": number, "what": result})
                    print(kind, number, result, flush=True)
                    result = "defect"
                counts[result] += 1
            results[kind] = {**counts, "made_with": made_with()}
            print(kind, dict(counts), flush=True)
        if not arguments.only:
            processes = real_processes(place.renew())
    if cases == whole:
        summary = {
            "command": "python benchmarks/fuzz.py",
            "seed": arguments.seed,
            "cases": sum(
                count
                for counts in results.values()
                for outcome, count in counts.items()
                if outcome != "made_with"
            ),
            "by_kind": results,
            "processes": processes,
            "defects": defects,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(defect["kind"] in kinds for defect in defects))


if __name__ == "__main__":
    main()
