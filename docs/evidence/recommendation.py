"""What the page on recommendation has of results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import results, spread, table

# Ids in a batch of `benchmarks/sparse_embedding.py`: 20 in each of 1,024 samples.
_IDS = 20 * 1_024
EMBEDDINGS = {
    "sparse, pcgrad, 8,000 ids": "`pcgrad`, 8,000 ids spread over either table",
    "sparse, upgrad, 8,000 ids": "`upgrad`, the same",
    "sparse, pcgrad, all ids": "`pcgrad`, ids of the whole table",
    "sparse, upgrad, all ids": "`upgrad`, the same",
    "keras, equal, 8,000 ids": "Keras's Embedding and Adam, `equal`, 8,000 ids",
}
CENSUS = {
    ("income", "income"): "income",
    ("income", "never_married"): "never married",
    ("education", "college"): "college",
    ("education", "never_married"): "never married",
}
WAYS_TO_SHARE = {"single": "single task", "hard": "hard", "mmoe": "MMoE", "ple": "PLE"}
MOVIELENS_METRICS = {
    "rating_rmse": "rating, RMSE",
    "liked_auc": "liked, AUC",
    "ndcg_at_10": "NDCG@10 by user",
}
MOVIELENS_BASELINES = {
    "biases": "user + movie biases, regularised",
    "running_means": "running means of user and movie",
}
MOVIELENS_MODELS = {
    "multi": "multi-task, `mmoe` (default)",
    "hard": "multi-task, `hard`",
    "rating": "rating alone",
    "liked": "liked alone",
}
CONVERSION_METRICS = {
    "auc_all_impressions": "AUC, all impressions",
    "auc_clicked": "AUC, clicked",
    "calibration_error_all_impressions": "calibration error, all",
    "calibration_error_clicked": "calibration error, clicked",
}
CONVERSION_MODELS = {
    "esmm": "ESMM",
    "clicks only": "tower trained on clicks only",
    "hard": "one tower, click beside it (hard sharing)",
}


def embeddings(measured: Mapping[str, Any]) -> str:
    """Returns ratios of step times of the two tables, and memory of steps."""
    rows = []
    for name, title in EMBEDDINGS.items():
        case = measured["cases"][name]
        memory = [f"{size['steps']:.1f}" for size in case["memory_mib"].values()]
        rows.append([title, f"{case['times']['ratio']:.3g}", ", ".join(memory)])
    memory_head = "memory of ten steps, MiB: 10 thousand, 1 million rows"
    return table(["", "ratio of step times", memory_head], rows)


def census() -> str:
    """Returns AUCs on Census-Income by way to share, beside those of the paper."""
    files = {
        (group, way): results(f"census_income_{group}_{way}")
        for (group, _), way in itertools.product(CENSUS, WAYS_TO_SHARE)
    }
    rows = []
    for way, title in WAYS_TO_SHARE.items():
        cells = [
            spread([run["auc"][task] for run in files[group, way]["runs"]], ".4f")
            for group, task in CENSUS
        ]
        rows.append([title, *cells])
    published = []
    for group, task in CENSUS:
        best, mean = files[group, "mmoe"]["paper_best_and_mean"]["mmoe"][task]
        published.append(f"{mean:.4f} ({best:.4f})")
    rows.append(["paper, MMoE, mean (best)", *published])
    return table(["", *CENSUS.values()], rows)


def movielens(baselines: Mapping[str, Any]) -> str:
    """Returns metrics on MovieLens of baselines and models."""
    rows = [
        [title, *(f"{baselines[name][metric]:.4f}" for metric in MOVIELENS_METRICS)]
        for name, title in MOVIELENS_BASELINES.items()
    ]
    for name, title in MOVIELENS_MODELS.items():
        runs = results(f"movielens_{name}")["runs"]
        cells = [
            spread([run[metric] for run in runs], ".4f") if metric in runs[0] else ""
            for metric in MOVIELENS_METRICS
        ]
        rows.append([title, *cells])
    return table(["", *MOVIELENS_METRICS.values()], rows)


def conversions(measured: Mapping[str, Any]) -> str:
    """Returns metrics of conversions by model, and of their true probability."""
    rows = []
    for name, title in CONVERSION_MODELS.items():
        runs = [run["conversion"] for run in measured["models"][name]["runs"]]
        cells = [
            spread([run[m] for run in runs], ".4f" if m.startswith("auc") else ".3f")
            for m in CONVERSION_METRICS
        ]
        rows.append([title, *cells])
    true = measured["true_probability"]["conversion"]
    cells = [f"{true[metric]:.4g}" for metric in CONVERSION_METRICS]
    rows.append(["the true probability", *cells])
    return table(["conversion", *CONVERSION_METRICS.values()], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {
        "sparse embeddings": embeddings(results("sparse_embedding")),
        "census income": census(),
        "movielens": movielens(results("movielens_baselines")),
        "conversions": conversions(results("behaviour")),
    }


def of_embeddings(measured: Mapping[str, Any]) -> list[str]:
    """Returns sentences on tables of embeddings."""
    small, large = measured["rows"]
    # Distinct rows to be expected among ids that are drawn alike.
    distinct = [rows * (1 - (1 - 1 / rows) ** _IDS) for rows in (small, large)]
    more = {}
    for name, case in measured["cases"].items():
        sizes = case["memory_mib"].values()
        first, second = (size["resident_beyond_them"] for size in sizes)
        more[name] = second - first
    balanced = np.mean([size for name, size in more.items() if "equal" not in name])
    return [
        f"Ids of the whole table are {distinct[1] / distinct[0]:.1f} times as many "
        "distinct rows in the larger one",
        f"the process takes some {round(balanced, -1):.0f} MiB more than table and "
        "slots explain under `pcgrad` and `upgrad`, and "
        f"{more['sparse, equal, 8,000 ids']:.0f} MiB more under `equal`",
    ]


def of_streaming(measured: Mapping[str, Any]) -> str:
    """Returns the sentences on streamed rows."""
    prepare, read = measured["prepare"], measured["read"]
    taken, of_hundredth = (
        part["peak_mib"] - part["peak_mib_before"]
        for part in (read, measured["read_a_hundredth"])
    )
    memory = read["peak_mib_by_tenths"]
    return (
        f"read {read['rows'] / 1e6:.2f} million rows of the training split, which has "
        f"8 million, in batches of {measured['batch']:,} at "
        f"{read['rows_per_cpu_second'] / 1e3:.0f} thousand rows per second of CPU time "
        f"({read['rows_per_second'] / 1e3:.0f} thousand per second of wall time). "
        "The process peaked at "
        f"{read['peak_mib']:.0f} MiB, {taken:.0f} MiB above what it took before the "
        "first batch, and grew by "
        f"{memory[-1] - memory[1]:.1f} MiB over the last nine tenths; a hundredth of "
        f"the rows took {of_hundredth:.0f} MiB. "
        f"Making the rows took {prepare['cpu_seconds']:.0f} s of CPU time and "
        f"{prepare['peak_mib'] / 1024:.1f} GiB at its peak, for TensorFlow Datasets "
        "sorts them in memory; they take "
        f"{prepare['bytes_per_row'] * prepare['rows'] / 1e9:.1f} GB of disk."
    )


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    trials = {
        way: results(f"census_income_income_{way}")["trials"] for way in ("hard", "ple")
    }
    users, movies = (
        100 * results("movielens_baselines")[f"share_of_rows_of_unseen_{what}"]
        for what in ("users", "movies")
    )
    clicks = [run["click"] for run in results("behaviour")["models"]["esmm"]["runs"]]
    auc, group_auc, error = (
        spread([click[metric] for click in clicks])
        for metric in ("auc", "group_auc", "calibration_error")
    )
    return [
        *of_embeddings(results("sparse_embedding")),
        f"({trials['hard']} trials for hard sharing, {trials['ple']} each for MMoE and "
        "PLE;",
        f"{users:.1f} % of its rows are by users, and {movies:.1f} % of movies, that "
        "training never saw.",
        f"ESMM's click: AUC {auc}, within users {group_auc}, calibration error "
        f"{error}.",
        of_streaming(results("streaming_large")),
    ]
