"""What the page on multimodal data has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.markdown import mean_and_std, results, spread, table
from evidence.worth import SENSES

OTHERS = (
    "Of paired samples each modality is missing with a chance of 0.3, never all three",
    # 1 / 250.
    "the spoken test split has 250, and one of them is 0.004",
)


def multimodal(measured: Mapping[str, Any]) -> str:
    """Returns accuracies on images, recordings and texts, by model."""
    by_model: dict[str, dict[str, list[float]]] = {}
    for run in measured["runs"]:
        for key, value in run["accuracy"].items():
            by_model.setdefault(run["model"], {}).setdefault(key, []).append(value)
    alone = {
        key: values
        for model, accuracies in by_model.items()
        if model.endswith(" alone")
        for key, values in accuracies.items()
    }
    joint = {m: of for m, of in by_model.items() if not m.endswith(" alone")}
    rows, keys = [], list(measured["runs"][0]["accuracy"])
    for model, of in (joint | {"one model for each task": alone}).items():
        rows.append([model, *(spread(of[key]) for key in keys)])
    heads = (key.split("/") for key in keys)
    return table(
        ["", *(f"{task}, {SENSES[modality]}" for task, modality in heads)], rows
    )


def fusion(measured: Mapping[str, Any]) -> str:
    """Returns accuracies on one modality each, and on all by ways to fuse."""
    accuracies = {f"{name} alone": of for name, of in measured["one_modality"].items()}
    for name, of in measured["fused"].items():
        # With no modality taken away.
        accuracies[f"`{name}`"] = {"mean": of["mean"][0], "std": of["std"][0]}
    row = [mean_and_std(of, ".3f") for of in accuracies.values()]
    return table(list(accuracies), [row])


def absent(measured: Mapping[str, Any]) -> str:
    """Returns times of steps on all modalities and without the most expensive one."""
    rows = []
    for data, of in measured.items():
        name, times = of["most_expensive"], of["median_ms"]
        rows.append(
            [
                f"`{data}`",
                f"{times['full']:.1f} ms",
                f"{times[f'without {name}']:.1f} ms ({name})",
                f"{of['ratio_without_it']:.2f}",
            ]
        )
    return table(["samples of", "all", "without the most expensive", "share"], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {
        "multimodal": multimodal(results("multimodal_real")),
        "fusion": fusion(results("multimodal_paired")),
        "absent modalities": absent(results("multimodal_absent")),
    }


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    paired = results("multimodal_paired")
    (batch,) = {of["batch_size"] for of in results("multimodal_absent").values()}
    (steps,) = {of["steps_each"] for of in results("multimodal_absent").values()}
    return [
        f"accuracy of `digit` on {paired['test_samples']:,} samples that have all "
        "three modalities",
        f"steps on batches of {batch} that have all modalities, and without the most "
        f"expensive one, medians of {steps} in turns",
    ]
