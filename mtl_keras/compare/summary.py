"""Summary of a comparison: means over seeds, gains, ranks, tests and affinity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_keras import evaluation, optional, sharing
from mtl_keras.balancing.conflicts import confidence
from mtl_keras.callbacks.task_affinity import mean_where_finite
from mtl_keras.compare.cell import CellResult
from mtl_keras.compare.comparison import (
    COMBINATION,
    PAIR,
    SINGLE,
    WITHOUT,
    Cell,
    Plan,
)
from mtl_keras.encoding import encode
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.runs.records import Record
from mtl_keras.runs.results import defined_mean, main_metrics

# With the module: a comparison should not find out at its end.
with optional.extra("evaluation", "scipy", "The tests of a comparison"):
    import scipy.stats  # noqa: F401

Summary = dict[str, Any]
_COSTS = ("step_ms", "step_cpu_ms", "peak_memory_mb", "peak_gpu_memory_mb")


def summarise(plan: Plan, records: Mapping[str, Record]) -> Summary:
    """Returns the values of `results.json`; `docs/compare.md` names the keys."""
    return _Summary(plan, records).all()


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, sample standard deviation and the values of all seeds.

    The deviation is None with fewer than two values, the mean with none.
    """
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()) if array.size else None,
        "std": float(array.std(ddof=1)) if array.size > 1 else None,
        "values": array.tolist(),
    }


def corrected_p(summary: Summary, family: str, method: str) -> float | None:
    """Returns the corrected p-value of a paired t-test; None where none was made."""
    tests = summary["tests"].get(family, {}).get("t", {})
    return tests[method]["p_corrected"] if method in tests else None


def shown_tasks(summary: Summary) -> list[str]:
    """Returns the tasks that are shown one by one: none where they are many."""
    tasks = list(summary["tasks"])
    return tasks if len(tasks) <= MANY_TASKS else []


def metrics_of(summary: Summary, method: str | None) -> list[dict[str, Any]]:
    """Returns the main metrics of the shown tasks, else their mean, as `spread` does.

    Of a method, or of the single tasks where `method` is None.
    """
    shown, single = shown_tasks(summary), summary["single"]
    if method is not None:
        values = summary["methods"][method]
        return [values["test"][task] for task in shown] or [values["mean"]]
    own = {task: one["test"][task] for task, one in single.items()}
    means = [one["mean"] for one in own.values() if one["mean"] is not None]
    mean = {**spread([defined_mean(means)]), "std": None}
    return [own[task] for task in shown] or [mean]


class _Trained(NamedTuple):
    """A finished cell, with the tasks' main metrics on the test split."""

    cell: Cell
    seconds: float
    result: CellResult
    test: dict[str, float]

    @property
    def seed(self) -> int:
        return self.cell.config.seed


class _Summary:
    def __init__(self, plan: Plan, records: Mapping[str, Record]):
        self._plan = plan
        application = plan.base.get_application()
        self._tasks = list(plan.tasks)
        own = {task: application.tasks[task] for task in self._tasks}
        self._metrics = {task: about.objective for task, about in own.items()}
        self._directions = {task: about.direction for task, about in own.items()}
        self._trained: list[_Trained] = []
        self._failed: dict[str, str] = {}
        for cell in plan.cells():
            record = records[cell.name]
            if record.completed:
                test = main_metrics(record.result.test, application)
                self._trained.append(
                    _Trained(cell, record.seconds, record.result, test)
                )
            else:
                self._failed[cell.name] = record.error
        # {task: {seed: metric}} of the tasks alone, on the test split; without these
        # of the reference.
        compared = self._of(SINGLE)
        if not plan.single_tasks:
            compared = self._of(COMBINATION, plan.methods[0])
        self._single: dict[str, dict[int, float]] = {
            task: {one.seed: one.test[task] for one in compared if task in one.test}
            for task in self._tasks
        }
        # Δm is over these: all tasks, or the main one.
        self._compared = [plan.primary] if plan.primary else self._tasks
        # For all seeds where it is so for one: values of Δm are then of the same tasks.
        self._excluded = [
            task
            for task, by_seed in self._single.items()
            if task in self._compared
            and not all(map(evaluation.has_relative_gain, by_seed.values()))
        ]

    def _of(self, kind: str, method: str | None = None) -> list[_Trained]:
        return [
            one
            for one in self._trained
            if one.cell.kind == kind and method in (None, one.cell.method)
        ]

    def all(self) -> Summary:
        methods = {name: self._method(name) for name in self._plan.methods}
        self._add_ranks(methods)
        self._add_front(methods)
        return {
            "comparison": encode(self._plan),
            "tasks": {
                task: {"metric": metric, "direction": self._directions[task]}
                for task, metric in self._metrics.items()
            },
            "single": {
                task: _common(self._of(SINGLE, f"single {task}"))
                | {"test": {task: spread(list(self._single[task].values()))}}
                for task in self._tasks
                if self._plan.single_tasks
            },
            "methods": methods,
            "excluded": self._excluded,
            "tests": self._tests(methods),
            "helpers": self._helpers(),
            "affinity": self._affinity(),
            "failed": self._failed,
        }

    def _method(self, name: str) -> dict[str, Any]:
        trained = self._of(COMBINATION, name)
        results = [one.result for one in trained]
        # The gain over the task alone with the same seed: what a seed does to the
        # order of the data does it to both.
        gains = {
            task: [self._gain(task, one.test[task], one.seed) for one in trained]
            for task in self._tasks
        }
        compared = [gains[t] for t in self._compared if t not in self._excluded]
        deltas = np.mean(compared, axis=0) if compared else [math.nan] * len(trained)
        # None where the tasks' metrics are not one.
        means = [defined_mean(list(one.test.values())) for one in trained]
        return _common(trained) | {
            "test": {t: spread([one.test[t] for one in trained]) for t in self._tasks},
            "mean": spread(means if len(set(self._metrics.values())) == 1 else []),
            "gain": {task: spread(gains[task]) for task in self._tasks},
            "delta_m": spread(list(deltas)),
            "validation_delta_m": spread([r.validation_delta_m for r in results]),
            "metrics": {
                task: {
                    metric: spread(
                        [r.test[task].get(metric, math.nan) for r in results]
                    )
                    for metric in (results[0].test[task] if results else ())
                }
                for task in self._tasks
            },
            "history": _mean_history([result.history for result in results]),
            "cosines": self._mean_table(trained, "cosines"),
            "shared_samples": self._mean_table(trained, "shared"),
            "conflict_confidence": self._confidence(trained),
        }

    def _gain(self, task: str, value: float, seed: int) -> float:
        """Returns the relative gain in percent; NaN over a baseline of 0 or none.

        None is of a seed whose single task was tried again and failed.
        """
        baseline = self._single[task].get(seed, math.nan)
        if not evaluation.has_relative_gain(baseline):
            return math.nan
        return evaluation.delta_m({task: value}, {task: baseline}, self._directions)

    def _complete(self, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Returns the methods with a Δm for every seed, for paired statistics."""
        return [
            name
            for name, method in methods.items()
            if len(method["seeds"]) == self._plan.seeds
            and np.isfinite(method["delta_m"]["values"]).all()
        ]

    def _add_ranks(self, methods: dict[str, dict[str, Any]]) -> None:
        complete = self._complete(methods)
        ranks = []
        for seed in range(self._plan.seeds if complete else 0):
            values = {
                name: {t: s["values"][seed] for t, s in methods[name]["test"].items()}
                for name in complete
            }
            ranks.append(evaluation.average_rank(values, self._directions))
        for name, method in methods.items():
            method["rank"] = spread([rank[name] for rank in ranks if name in rank])

    def _add_front(self, methods: dict[str, dict[str, Any]]) -> None:
        means = {
            name: {task: method["test"][task]["mean"] for task in self._tasks}
            for name, method in methods.items()
            if method["seeds"]
        }
        # A task that has no value on the test split has one by no method.
        tasks = [
            task
            for task in self._tasks
            if not all(math.isnan(own[task]) for own in means.values())
        ] or self._tasks
        points = {name: [own[task] for task in tasks] for name, own in means.items()}
        directions = [self._directions[task] for task in tasks]
        front = evaluation.pareto_front(list(points.values()), directions)
        for index, name in enumerate(points):
            methods[name]["on_front"] = index in front

    def _tests(self, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Tests Δm against single tasks (0) and against the first combination.

        Without single tasks Δm is against the first combination itself.
        """
        reference, seeds = self._plan.methods[0], self._plan.seeds
        deltas = {n: methods[n]["delta_m"]["values"] for n in self._complete(methods)}
        others = {name: v for name, v in deltas.items() if name != reference}
        families: dict[str, Any] = {}
        if self._plan.single_tasks:
            families["against_single"] = (deltas, 0.0)
        if reference in deltas:
            families["against_reference"] = (others, deltas[reference])
        tests: dict[str, Any] = {
            "reference": reference,
            "seeds": seeds,
            "smallest_wilcoxon_p": 2.0 / 2.0**seeds,
            "detectable": None,
        }
        if seeds > 1 and others:
            tests["detectable"] = {
                "one_comparison": evaluation.detectable_difference(seeds),
                "all_comparisons": evaluation.detectable_difference(seeds, len(others)),
            }
        for family, (values, other) in families.items():
            tests[family] = {}
            for test in ("t", "wilcoxon"):
                results = evaluation.paired_tests(values, other, test)
                tests[family][test] = {name: vars(r) for name, r in results.items()}
        return tests

    def _mean_table(self, trained: Sequence[_Trained], key: str) -> Any:
        """Returns a mean of `TaskAffinity` over cells and epochs, tasks in order.

        None where no two tasks ever met in a batch, as in streams that take the
        batches of one task after those of another.
        """
        tables = [mean_where_finite(cell) for cell in self._measured(trained, key)]
        if not tables:
            return None
        mean = mean_where_finite(np.stack(tables))
        between = mean[~np.eye(len(mean), dtype=bool)]
        return mean.tolist() if np.isfinite(between).any() else None

    def _confidence(self, trained: Sequence[_Trained]) -> Any:
        """Returns how sure it is that cosines are negative, over all epochs."""
        measured = self._measured(trained, "cosines")
        if not measured:
            return None
        values = np.concatenate(measured)
        count = np.isfinite(values).sum(axis=0)
        mean, square = (np.nan_to_num(mean_where_finite(values**n)) for n in (1, 2))
        return confidence(mean, square, count).tolist()

    def _measured(self, trained: Sequence[_Trained], key: str) -> list[np.ndarray]:
        """Returns a measurement `[epochs, T, T]` of each cell, tasks in order."""
        by_cell = []
        for one in trained:
            tables = [getattr(epoch, key) for epoch in one.result.affinity or ()]
            tables = [table for table in tables if table is not None]
            if not tables:
                continue
            # A model sorts its tasks by name, and leaves out those without a loss.
            untrained = sharing.get(one.cell.config.sharing).untrained(self._tasks)
            own = sorted(task for task in self._tasks if task not in untrained)
            order = [self._tasks.index(task) for task in own]
            ordered = np.full((len(tables), *(len(self._tasks),) * 2), np.nan)
            ordered[np.ix_(range(len(tables)), order, order)] = np.array(tables)
            by_cell.append(ordered)
        return by_cell

    def _affinity(self) -> dict[str, Any]:
        """Returns who helps whom by each measure, and the groups they suggest.

        Of more tasks than `suggest_groups` takes there are no groups.
        """
        reference = self._of(COMBINATION, self._plan.methods[0])
        tables = {
            "lookahead": self._mean_table(reference, "affinity"),
            "cosines": self._mean_table(reference, "cosines"),
            "pairs": self._pair_gains(),
        }
        groups = {
            name: evaluation.suggest_groups(table, self._tasks)._asdict()
            for name, table in tables.items()
            if table is not None and len(self._tasks) <= evaluation.affinity.MOST_TASKS
        }
        return {**tables, "groups": groups}

    def _helpers(self) -> dict[str, Any] | None:
        """Returns whether helpers help the main task, over seeds that have all."""
        primary = self._plan.primary
        if primary is None:
            return None
        sources = {
            "alone": self._of(SINGLE, f"single {primary}"),
            "together": self._of(COMBINATION, self._plan.methods[0]),
        }
        for helper in self._plan.helpers:
            sources[helper] = self._of(WITHOUT, f"without {helper}")
        by_seed = {
            name: {one.seed: one.test[primary] for one in trained}
            for name, trained in sources.items()
        }
        seeds = [
            seed
            for seed in range(self._plan.seeds)
            if all(math.isfinite(v.get(seed, math.nan)) for v in by_seed.values())
        ]
        values = {name: [v[seed] for seed in seeds] for name, v in by_seed.items()}
        alone, together = values.pop("alone"), values.pop("together")
        best = self._directions[primary]
        gains = evaluation.helper_gains(alone, together, values, best) if seeds else {}
        return {
            "primary": primary,
            "method": self._plan.methods[0],
            "alone": spread(alone),
            "together": spread(together),
            "without": {name: spread(reached) for name, reached in values.items()},
            "gains": {name: gain._asdict() for name, gain in gains.items()},
        }

    def _pair_gains(self) -> list[list[float]] | None:
        by_seed = []
        for seed in range(self._plan.seeds):
            pairs = {
                (one.cell.tasks[0], one.cell.tasks[1]): one.test
                for one in self._of(PAIR)
                if one.seed == seed
            }
            alone = {t: v[seed] for t, v in self._single.items() if seed in v}
            if pairs and len(alone) == len(self._tasks):
                gains = evaluation.task_affinity(pairs, alone, self._directions)
                by_seed.append(gains)
        return mean_where_finite(np.stack(by_seed)).tolist() if by_seed else None


def _common(trained: Sequence[_Trained]) -> dict[str, Any]:
    """Returns seeds, chosen epochs and costs of a method's cells."""
    results = [one.result for one in trained]
    costs = {name: [getattr(result, name) for result in results] for name in _COSTS}
    return {
        "seeds": [one.seed for one in trained],
        "epochs": [result.epoch for result in results],
        "jobs": [result.jobs for result in results],
        **{name: spread(list(filter(math.isfinite, v))) for name, v in costs.items()},
        "seconds": spread([one.seconds for one in trained]),
    }


def _mean_history(
    histories: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, list[float]]:
    """Returns the mean of each column over the seeds that reached an epoch."""
    first = histories[0] if histories else {}
    keys = [key for key in first if all(key in history for history in histories)]
    return {
        key: [
            float(np.mean([value for value in values if value is not None]))
            for values in itertools.zip_longest(*(own[key] for own in histories))
        ]
        for key in keys
    }
