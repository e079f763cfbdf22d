"""What the page on text has of results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from evidence.markdown import results, spread, table
from mtl_keras.evaluation import delta_m

TEXT_METRICS = (
    ("sentiment", "accuracy", "sentiment accuracy", 1.0),
    ("answer", "exact_match", "answer exact match", 100.0),
    ("answer", "f1", "F1", 100.0),
    ("translation", "bleu", "translation BLEU", 1.0),
)
MAIN_OF_TEXT = {"sentiment": "accuracy", "answer": "f1", "translation": "bleu"}


class Texts(NamedTuple):
    """Tested runs of `benchmarks/text_real.py`.

    Attributes:
        joint: `{model: {seed: run}}` of the joint models.
        alone: `{seed: {task: metrics}}` of the models of one task.
    """

    joint: dict[str, dict[int, Mapping[str, Any]]]
    alone: dict[int, dict[str, Mapping[str, float]]]


def texts(measured: Mapping[str, Any]) -> Texts:
    """Returns the text models' runs."""
    by_model: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in measured["runs"]:
        by_model.setdefault(run["model"], {})[run["seed"]] = run
    single = {task: by_model.pop(task) for task in measured["round"]}
    seeds = sorted(set.intersection(*map(set, single.values())))
    alone = {s: {t: runs[s]["test"][t] for t, runs in single.items()} for s in seeds}
    return Texts(by_model, alone)


def text(measured: Mapping[str, Any]) -> str:
    """Returns the text models' results: alone, jointly, and balanced."""
    joint, alone = texts(measured)
    rows = [["one model for each task", *text_metrics(alone), "0"]]
    for name, runs in joint.items():
        changes = [text_change(runs[seed]["test"], alone[seed]) for seed in runs]
        tests = {seed: run["test"] for seed, run in runs.items()}
        rows.append([text_title(name), *text_metrics(tests), spread(changes, "+.1f")])
    head = ["", *(name for _, _, name, _ in TEXT_METRICS), "Δm, %"]
    return table(head, rows)


def text_title(model: str) -> str:
    """Returns what a joint text model is called on the page."""
    method = model.removeprefix("balanced ")
    if method == model:
        return "joint, one source in each step"
    return f"joint, all sources in each step, `{method}`"


def text_metrics(by_seed: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Returns text models' metrics as cells."""
    cells = []
    for task, metric, _, unit in TEXT_METRICS:
        values = [unit * tasks[task][metric] for tasks in by_seed.values()]
        cells.append(spread(values, ".3f" if metric == "accuracy" else ".1f"))
    return cells


def text_change(
    joint: Mapping[str, Mapping[str, float]], alone: Mapping[str, Mapping[str, float]]
) -> float:
    """Returns Δm in percent of a joint text model over models of one task."""
    one, other = (
        {task: tasks[task][metric] for task, metric in MAIN_OF_TEXT.items()}
        for tasks in (joint, alone)
    )
    return delta_m(one, other, dict.fromkeys(MAIN_OF_TEXT, "max"))


def text_cosines(measured: Mapping[str, Any]) -> str:
    """Returns the cosines between the text tasks' gradients, by method, and costs."""
    joint, _ = texts(measured)
    equal = next(iter(joint["balanced equal"].values()))
    tasks = sorted(measured["round"])
    pairs = list(itertools.combinations(range(len(tasks)), 2))
    rows = []
    for name, runs in joint.items():
        run = next(iter(runs.values()))
        if "mean_cosines" in run:
            price = run["train_cpu_minutes"] / equal["train_cpu_minutes"]
            rows.append(
                [
                    f"`{name.removeprefix('balanced ')}`",
                    *(f"{run['mean_cosines'][a][b]:+.2f}" for a, b in pairs),
                    f"{100 * np.mean(run['conflicts']):.0f} %",
                    f"{price:.2f}",
                ]
            )
    names = [f"{tasks[a]}, {tasks[b]}" for a, b in pairs]
    return table(["", *names, "pairs in conflict", "processor time, `equal` = 1"], rows)


def generated(models: Mapping[str, Any]) -> str:
    """Returns the results on the generated corpus."""
    titles = {
        "rnn": "`mtl-keras train text`",
        "mlp": "the same with `--backbone mlp`",
    }
    rows = []
    for name, title in titles.items():
        test = models[name]["test"]
        rows.append(
            [
                title,
                f"{test['sentiment']['accuracy']:.3f}",
                f"{test['answer']['exact_match']:.3f}",
                f"{test['translation']['token_accuracy']:.3f}",
                f"{test['translation']['bleu']:.1f}",
            ]
        )
    head = ["sentiment accuracy", "answer exact match", "translation token accuracy"]
    return table(["", *head, "BLEU"], rows)


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    default = results("text_generated")["models"]["rnn"]
    speeds = results("text_throughput")
    toy, real = speeds.pop("generated_text"), next(iter(speeds.values()))
    return [
        f"The first took {default['train_wall_seconds']:.0f} seconds of training on 2 "
        f"cores, {default['whole_run_cpu_seconds']:.0f} seconds of CPU time in all.",
        f"gives {toy['pipeline_batches_per_second']:.0f} batches a second on the "
        f"default data, and training takes {toy['fit_batches_per_second']:.0f}: "
        f"{toy['ratio']:.1f} times faster",
        f"it is {real['pipeline_batches_per_second']:.0f} against "
        f"{real['fit_batches_per_second']:.1f}: {real['ratio']:.0f} times faster.",
        *real_data(results("text_real")),
    ]


def real_data(measured: Mapping[str, Any]) -> list[str]:
    """Returns the sentences on models of real data."""
    joint, alone = texts(measured)
    shared = joint["joint"]
    by_key = {(run["model"], run["seed"]): run for run in measured["runs"]}
    separate = {
        seed: [by_key[task, seed] for task in measured["round"]] for seed in shared
    }
    changes = [text_change(run["test"], alone[seed]) for seed, run in shared.items()]
    times = [
        run["train_cpu_minutes"] / sum(one["train_cpu_minutes"] for one in others)
        for run, others in zip(shared.values(), separate.values(), strict=True)
    ]
    weights = shared[0]["parameters"], sum(run["parameters"] for run in separate[0])
    return [
        f"The joint model has {weights[0] / 1e6:.1f} million parameters, the three "
        f"others {weights[1] / 1e6:.1f} million in all. With a source in each step its "
        f"Δm is {spread(changes, '+.1f')} %",
        f"takes {np.mean(times):.1f} times the processor time of the three others "
        "together.",
    ]


OTHERS = ("F1 20.2, its logistic regression 51.0",)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    measured = results("text_real")
    return {
        "generated text": generated(results("text_generated")["models"]),
        "text": text(measured),
        "cosines of text": text_cosines(measured),
    }
