"""What the README has of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evidence import recommendation, text
from evidence.markdown import interval, label, results, spread, table
from evidence.worth import DATA, SHOWN, Runs, tested, vision_comparison


def summary(all_runs: Mapping[str, Runs]) -> str:
    """Returns the rows of the README: single tasks beside shared ones."""
    rows = []
    for data, runs in all_runs.items():
        size = SHOWN[data]
        if not runs.share("equal", size):
            continue
        alone, joint = (list(runs.means(m, size).values()) for m in ("alone", "equal"))
        tasks = [test.difference > 0 for test in runs.by_task("equal", size).values()]
        rows.append(
            [
                f"{DATA[data]}, {label(size)} labels",
                runs.measure,
                f"{np.mean(alone):.{runs.digits}f}",
                f"{np.mean(joint):.{runs.digits}f}",
                interval(runs.tests()["equal", size], runs.digits),
                f"{sum(tasks)} of {len(tasks)}",
                runs.share("equal", size).split()[0],
            ]
        )
    head = ["", "", "each alone", "shared, `equal`", "gain (95 %)", "tasks better"]
    return table([*head, "training time"], rows)


def vision_in_short(comparison: Mapping[str, Any]) -> str:
    """Returns what one model and models of each task alone reach on `vision`."""
    alone = comparison["single"]
    methods = comparison["methods"]
    default = list(methods)[-1]
    shown = {
        "each task alone": {task: one["test"][task] for task, one in alone.items()},
        "one model, `hard, equal`": methods["hard, equal"]["test"],
        f"one model, `{default}`": methods[default]["test"],
    }
    rows = [
        [name, *(spread(test["values"]) for test in reached.values())]
        for name, reached in shown.items()
    ]
    head = [f"{task}, {one['metric']}" for task, one in comparison["tasks"].items()]
    return table(["", *head], rows)


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    return [
        *steps(results("step"), results("step_running")["runs"]),
        solvers(results("peers")["rows"]),
        demo(results("vision_demo")["demo"]),
        generated_texts(results("text_generated")["models"]),
        real_texts(results("text_real")),
        modalities(results("multimodal_real")["runs"]),
        census(),
        embedding_tables(results("sparse_embedding")["cases"]),
        equal_step(results("equal_step")),
        experts(results("sharing_times")),
    ]


def steps(step: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns sentences on steps of task gradients and of running solves."""
    rows = {
        (run["tasks"], row["model"]): row for run in step["runs"] for row in run["rows"]
    }
    floor, stock = (rows[8, model]["ms"]["median"] for model in ("floor", "stock"))
    to_floor = [row["ratio"] for row in rows.values() if row["against"] == "floor"]
    at_boundary = [
        row["ratio"] for (_, name), row in rows.items() if name == "representation"
    ]
    solved: dict[bool, list[float]] = {True: [], False: []}
    for run in running:
        for row in run["rows"]:
            if row["model"] not in ("stock", "floor"):
                solved[run["tasks"] <= 32].append(row["ratio"])
    few, many = (f"{np.mean(solved[size]):.1f}" for size in (True, False))
    most = max(run["tasks"] for run in running)
    return [
        f"with eight tasks a step takes {floor / stock:.1f} times a stock step",
        f"a step takes {few} times a stock step for 2 to 32 tasks, and {many} times "
        f"for {most}",
        f"takes at most {max(to_floor):.2f} times the bare task gradients, for two, "
        'four and eight tasks; with `gradients_of="representation"` it takes '
        f"{np.mean(at_boundary):.2f} times a stock Keras step",
    ]


def solvers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the sentence on solvers here and in TorchJD."""
    of_eight = [row for row in rows if row["tasks"] == 8]
    slowest = max(row["native"]["median"] for row in of_eight)
    least, *_, most = sorted(of_eight, key=lambda row: row["times_faster"])
    return (
        f"with eight tasks each takes less than {np.ceil(slowest):.0f} µs, "
        f"{least['times_faster']:.0f} times ({least['solver']}) to "
        f"{most['times_faster']:,.0f} times ({most['solver']}) faster"
    )


def demo(measured: Mapping[str, Any]) -> str:
    """Returns the sentence on `make demo`."""
    spent, took = (
        f"{measured[key] // 60:.0f}:{measured[key] % 60:02.0f}"
        for key in ("cpu_seconds", "wall_seconds")
    )
    return (
        f"`make demo` took {spent} minutes of processor time, install and compilation "
        f"included ({took} minutes by the clock"
    )


def generated_texts(models: Mapping[str, Any]) -> str:
    """Returns the sentence on the generated corpus."""
    reached, bag = (
        (
            f"{test['sentiment']['accuracy']:.2f}",
            f"{test['answer']['exact_match']:.2f}",
            f"{test['translation']['token_accuracy']:.2f}",
        )
        for test in (models[name]["test"] for name in ("rnn", "mlp"))
    )
    return (
        f"sentiment accuracy {reached[0]}, answers {reached[1]} exact match, "
        f"translation {reached[2]} token accuracy on the generated corpus, where a bag "
        f"of words reaches {bag[0]}, {bag[1]} and {bag[2]}."
    )


def real_texts(measured: Mapping[str, Any]) -> str:
    """Returns the sentence on three data sets of text."""
    joint, alone = text.texts(measured)
    shared = {seed: run["test"] for seed, run in joint["joint"].items()}
    (accuracy, _, f1, bleu), (accuracy_alone, _, f1_alone, bleu_alone) = (
        text.text_metrics(of) for of in (shared, alone)
    )
    return (
        f"accuracy {accuracy}, F1 {f1}, BLEU {bleu}; one model per task: "
        f"{accuracy_alone}, {f1_alone}, {bleu_alone}"
    )


def modalities(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the sentence on images, recordings and texts."""

    def mean(key: str, model: str) -> str:
        values = [run["accuracy"][key] for run in runs if run["model"] == model]
        return spread(values) if key == "digit/audio" else f"{np.mean(values):.3f}"

    keys = ("digit/image", "digit/audio", "sentiment/text", "speaker/audio")
    joint = [mean(key, "joint") for key in keys]
    alone = [mean(key, f"{key.partition('/')[0]} alone") for key in keys]
    return (
        f"digits seen {joint[0]}, heard {joint[1]}, sentiment {joint[2]}, speaker "
        f"{joint[3]}; one model per task: {', '.join(alone)}"
    )


def census() -> str:
    """Returns the sentence on Census-Income."""

    def mean(sharing: str, group: str, task: str) -> str:
        runs = results(f"census_income_{group}_{sharing}")["runs"]
        return f"{np.mean([run['auc'][task] for run in runs]):.4f}"

    hard, single, mmoe = (
        [mean(sharing, *key) for key in list(recommendation.CENSUS)[:3]]
        for sharing in ("hard", "single", "mmoe")
    )
    return (
        f"AUC of income {hard[0]}, of never married {hard[1]}, of college {hard[2]}; "
        f"one model per task {', '.join(single)}, so that nothing is gained "
        f"here; MMoE {', '.join(mmoe)}"
    )


def embedding_tables(cases: Mapping[str, Any]) -> str:
    """Returns the sentence on tables of embeddings."""
    least, most = sorted(
        cases[f"sparse, {method}, 8,000 ids"]["times"]["ratio"]
        for method in ("pcgrad", "upgrad")
    )
    return (
        f"an embedding table of a million rows takes {least:.1f} to {most:.1f} times "
        "one with ten thousand"
    )


def equal_step(measured: Mapping[str, Any]) -> str:
    """Returns the sentence on equal weights."""
    return (
        f'`balancing="equal"` takes {measured["ratio_of_medians"]:.2f} times a stock '
        f"Keras step (median of {measured['steps_each']} steps each"
    )


def experts(times: Mapping[str, Any]) -> str:
    """Returns the sentence on experts side by side."""
    faster = [
        times[f"{inputs} inputs, dense {widths}"]["speed_up"]["loop over experts"]
        for inputs, widths in ((100, "16"), (16, "16"), (100, "64"), (100, "32 and 16"))
    ]
    return (
        f"Eight experts side by side are {min(faster):.1f} to {max(faster):.1f} times "
        "as fast as a loop over them"
    )


OTHERS = (
    "gains with 95 % intervals over seeds",
    "(its paper's means: 0.9359, 0.9927, 0.8826",
    "Keras is pinned to 3.15",
)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {
        "worth": summary(tested(results("worth"))),
        "vision in short": vision_in_short(vision_comparison()),
    }
