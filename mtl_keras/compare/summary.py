"""From the records of a comparison's cells to what they say together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_keras import evaluation, optional, sharing
from mtl_keras.balancing.conflicts import confidence
from mtl_keras.callbacks.task_affinity import mean_over_epochs
from mtl_keras.compare.comparison import (
    COMBINATION,
    PAIR,
    SINGLE,
    WITHOUT,
    Cell,
    Plan,
)
from mtl_keras.compare.records import CellResult
from mtl_keras.encoding import encode
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.runs.records import Record
from mtl_keras.runs.results import main_metrics

# With the module: a comparison should not find out at its end.
with optional.extra("evaluation", "scipy", "The tests of a comparison"):
    import scipy.stats  # noqa: F401

Summary = dict[str, Any]
_COSTS = ("step_ms", "step_cpu_ms", "peak_memory_mb", "peak_gpu_memory_mb")


def summarise(comparison: Plan, records: Mapping[str, Record]) -> Summary:
    """Puts the results of all cells together.

    Args:
        comparison: What `validate` has returned.
        records: `{cell name: record}` of its cells.

    Returns:
        What `results.json` holds; `docs/compare.md` names the keys.
    """
    return _Summary(comparison, records).all()


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
    """Returns what is shown of a method's metrics, each as `spread` gives it.

    Args:
        summary: The summary.
        method: The method; None for the single tasks.

    Returns:
        The main metric of each task that is shown, or else their mean over tasks.
    """
    shown, single = shown_tasks(summary), summary["single"]
    if method is not None:
        found = summary["methods"][method]
        return [found["test"][task] for task in shown] or [found["mean"]]
    own = {task: one["test"][task] for task, one in single.items()}
    means = [one["mean"] for one in own.values() if one["mean"] is not None]
    return [own[task] for task in shown] or [{**spread([np.mean(means)]), "std": None}]


class _Summary:
    def __init__(self, comparison: Plan, records: Mapping[str, Record]):
        self._comparison = comparison
        self._records = records
        self._application = comparison.base.get_application()
        self._tasks = list(comparison.tasks)
        self._directions = {
            task: self._application.tasks[task].direction for task in self._tasks
        }
        self._cells = comparison.cells()
        # {task: {seed: metric}} of the tasks alone, on the test split; without these
        # of the reference.
        self._single: dict[str, dict[int, float]] = {task: {} for task in self._tasks}
        compared = self._finished(SINGLE)
        if not comparison.single_tasks:
            compared = self._finished(COMBINATION, comparison.methods[0])
        for cell in compared:
            for task, value in self._test(cell).items():
                self._single[task][self._seed(cell)] = value
        # Δm is over these: all tasks, or the main one.
        self._compared = self._tasks
        if comparison.primary is not None:
            self._compared = [comparison.primary]
        # For all seeds where it is so for one: values of Δm are then of the same tasks.
        self._excluded = [
            task
            for task, values in self._single.items()
            if task in self._compared
            and not all(map(evaluation.has_relative_gain, values.values()))
        ]

    def _finished(self, kind: str, method: str | None = None) -> list[Cell]:
        return [
            cell
            for cell in self._cells
            if cell.kind == kind
            and method in (None, cell.method)
            and self._records[cell.name].completed
        ]

    def _result(self, cell: Cell) -> CellResult:
        result: CellResult = self._records[cell.name].result
        return result

    @staticmethod
    def _seed(cell: Cell) -> int:
        return cell.config.seed

    def _test(self, cell: Cell) -> dict[str, float]:
        """Returns the tasks' main metrics on the test split."""
        return main_metrics(self._result(cell).test, self._application)

    def all(self) -> Summary:
        methods = {name: self._method(name) for name in self._comparison.methods}
        self._add_ranks(methods)
        self._add_front(methods)
        tests = self._tests(methods)
        return {
            "comparison": encode(self._comparison),
            "tasks": {
                task: {
                    "metric": self._application.tasks[task].objective,
                    "direction": self._directions[task],
                }
                for task in self._tasks
            },
            "single": {
                task: self._common(f"single {task}", SINGLE)
                | {"test": {task: spread(list(self._single[task].values()))}}
                for task in self._tasks
                if self._comparison.single_tasks
            },
            "methods": methods,
            "excluded": self._excluded,
            "tests": tests,
            "helpers": self._helpers(),
            "affinity": self._affinity(),
            "failed": {
                cell.name: self._records[cell.name].error
                for cell in self._cells
                if not self._records[cell.name].completed
            },
        }

    def _common(self, method: str, kind: str) -> dict[str, Any]:
        """Returns what a method's cells cost, and which epochs they chose."""
        cells = self._finished(kind, method)
        results = [self._result(cell) for cell in cells]

        def known(name: str) -> dict[str, Any]:
            values = [getattr(result, name) for result in results]
            return spread([value for value in values if math.isfinite(value)])

        return {
            "seeds": [self._seed(cell) for cell in cells],
            "epochs": [result.epoch for result in results],
            "jobs": [result.jobs for result in results],
            **{name: known(name) for name in _COSTS},
            "seconds": spread([self._records[cell.name].seconds for cell in cells]),
        }

    def _method(self, name: str) -> dict[str, Any]:
        cells = self._finished(COMBINATION, name)
        results = [self._result(cell) for cell in cells]
        tests = [self._test(cell) for cell in cells]
        # The gain over the task alone with the same seed: what a seed does to the
        # order of the data does it to both.
        gains = {
            task: [
                self._gain(task, test[task], self._seed(cell))
                for cell, test in zip(cells, tests, strict=True)
            ]
            for task in self._tasks
        }
        compared = [task for task in self._compared if task not in self._excluded]
        everything = {
            task: {
                metric: spread([r.test[task].get(metric, math.nan) for r in results])
                for metric in (results[0].test[task] if results else ())
            }
            for task in self._tasks
        }
        return self._common(name, COMBINATION) | {
            "test": {
                task: spread([test[task] for test in tests]) for task in self._tasks
            },
            "mean": spread(self._means(tests)),
            "gain": {task: spread(gains[task]) for task in self._tasks},
            "delta_m": spread(
                [
                    float(np.mean([gains[task][index] for task in compared]))
                    if compared
                    else math.nan
                    for index in range(len(cells))
                ]
            ),
            "validation_delta_m": spread([r.validation_delta_m for r in results]),
            "metrics": everything,
            "history": _mean_history([result.history for result in results]),
            "cosines": self._over_cells(cells, "cosines"),
            "shared_samples": self._over_cells(cells, "shared"),
            "conflict_confidence": self._confidence(cells),
        }

    def _means(self, tests: Sequence[Mapping[str, float]]) -> list[float]:
        """Returns means over tasks by seed; none where their metrics are not one."""
        metrics = {self._application.tasks[task].objective for task in self._tasks}
        if len(metrics) > 1:
            return []
        return [float(np.mean(list(test.values()))) for test in tests]

    def _gain(self, task: str, value: float, seed: int) -> float:
        """Returns the relative gain in percent; NaN where there is none.

        That is over a baseline of 0, and over the single task of a seed whose
        training was tried again and failed, after it had served the others.
        """
        baseline = self._single[task].get(seed, math.nan)
        if not evaluation.has_relative_gain(baseline):
            return math.nan
        return evaluation.delta_m({task: value}, {task: baseline}, self._directions)

    def _complete(self, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Returns the methods with a Δm for every seed, for paired statistics."""
        return [
            name
            for name, found in methods.items()
            if len(found["seeds"]) == self._comparison.seeds
            and np.isfinite(found["delta_m"]["values"]).all()
        ]

    def _add_ranks(self, methods: dict[str, dict[str, Any]]) -> None:
        complete = self._complete(methods)
        for found in methods.values():
            found["rank"] = spread([])
        if not complete:
            return
        ranks = [
            evaluation.average_rank(
                {
                    name: {
                        t: methods[name]["test"][t]["values"][s] for t in self._tasks
                    }
                    for name in complete
                },
                self._directions,
            )
            for s in range(self._comparison.seeds)
        ]
        for name in complete:
            methods[name]["rank"] = spread([rank[name] for rank in ranks])

    def _add_front(self, methods: dict[str, dict[str, Any]]) -> None:
        points = {
            name: [found["test"][task]["mean"] for task in self._tasks]
            for name, found in methods.items()
            if found["seeds"]
        }
        front = evaluation.pareto_front(
            list(points.values()), [self._directions[task] for task in self._tasks]
        )
        for index, name in enumerate(points):
            methods[name]["on_front"] = index in front

    def _tests(self, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Tests Δm against single tasks (0) and against the first combination.

        Without single tasks Δm is against the first combination itself.
        """
        complete = self._complete(methods)
        reference = self._comparison.methods[0]
        deltas = {name: methods[name]["delta_m"]["values"] for name in complete}
        others = {name: v for name, v in deltas.items() if name != reference}
        seeds = self._comparison.seeds
        families: dict[str, Any] = {}
        if self._comparison.single_tasks:
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
            tests[family] = {
                test: {
                    name: dataclasses.asdict(found)
                    for name, found in evaluation.paired_tests(
                        values, other, test
                    ).items()
                }
                for test in ("t", "wilcoxon")
            }
        return tests

    def _over_cells(self, cells: Sequence[Cell], what: str) -> Any:
        """Returns the mean table over cells and epochs, in the order of the tasks.

        None where no two tasks ever met in a batch, as in streams that take the
        batches of one task after those of another.
        """
        tables = [
            {"epoch": 0, what: mean_over_epochs(records, what)}
            for records in self._measured(cells, what)
        ]
        if not tables:
            return None
        mean = mean_over_epochs(tables, what)
        between = mean[~np.eye(len(mean), dtype=bool)]
        return mean.tolist() if np.isfinite(between).any() else None

    def _confidence(self, cells: Sequence[Cell]) -> Any:
        """Returns how sure it is that cosines are negative; None without cosines.

        Over the epochs of all cells.
        """
        measured = self._measured(cells, "cosines")
        records = [record["cosines"] for of_cell in measured for record in of_cell]
        if not records:
            return None
        values = np.stack(records)
        finite = np.isfinite(values)
        count = finite.sum(axis=0)
        values = np.where(finite, values, 0.0)
        mean, mean_square = (
            np.divide(v.sum(axis=0), count, out=np.zeros(count.shape), where=count > 0)
            for v in (values, values**2)
        )
        return confidence(mean, mean_square, count).tolist()

    def _measured(self, cells: Sequence[Cell], what: str) -> list[list[dict[str, Any]]]:
        """Returns a table of each cell and epoch, in the order of the tasks."""
        by_cell = []
        for cell in cells:
            # A model sorts its tasks by name, and leaves out those without a loss.
            untrained = sharing.get(cell.config.sharing).untrained(self._tasks)
            order = [
                self._tasks.index(task)
                for task in sorted(self._tasks)
                if task not in untrained
            ]
            measured = self._result(cell).affinity
            if measured is None:
                continue
            records = []
            for record in measured:
                table = np.full((len(self._tasks),) * 2, np.nan)
                values = getattr(record, what)
                if values is None:
                    continue
                table[np.ix_(order, order)] = np.array(values, np.float64)
                records.append({"epoch": record.epoch, what: table})
            if records:
                by_cell.append(records)
        return by_cell

    def _affinity(self) -> dict[str, Any]:
        """Returns who helps whom by each measure, and the groups they suggest."""
        reference = self._finished(COMBINATION, self._comparison.methods[0])
        found: dict[str, Any] = {
            "lookahead": self._over_cells(reference, "affinity"),
            "cosines": self._over_cells(reference, "cosines"),
            "pairs": self._pair_gains(),
        }
        found["groups"] = {
            name: evaluation.suggest_groups(table, self._tasks)._asdict()
            for name, table in found.items()
            if table is not None
        }
        return found

    def _helpers(self) -> dict[str, Any] | None:
        """Returns whether helpers help the main task, over seeds that have all."""
        primary = self._comparison.primary
        if primary is None:
            return None
        sources = {
            "alone": self._finished(SINGLE, f"single {primary}"),
            "together": self._finished(COMBINATION, self._comparison.methods[0]),
            **{
                helper: self._finished(WITHOUT, f"without {helper}")
                for helper in self._comparison.helpers
            },
        }
        by_seed = {
            name: {self._seed(cell): self._test(cell)[primary] for cell in cells}
            for name, cells in sources.items()
        }
        seeds = [
            seed
            for seed in range(self._comparison.seeds)
            if all(math.isfinite(v.get(seed, math.nan)) for v in by_seed.values())
        ]
        values = {name: [v[seed] for seed in seeds] for name, v in by_seed.items()}
        alone, together = values.pop("alone"), values.pop("together")
        gains = {}
        if seeds:
            gains = evaluation.helper_gains(
                alone, together, values, self._directions[primary]
            )
        return {
            "primary": primary,
            "method": self._comparison.methods[0],
            "alone": spread(alone),
            "together": spread(together),
            "without": {name: spread(reached) for name, reached in values.items()},
            "gains": {name: gain._asdict() for name, gain in gains.items()},
        }

    def _pair_gains(self) -> list[list[float]] | None:
        by_seed = []
        for seed in range(self._comparison.seeds):
            cells = [c for c in self._finished(PAIR) if self._seed(c) == seed]
            alone = {t: v[seed] for t, v in self._single.items() if seed in v}
            if cells and len(alone) == len(self._tasks):
                pairs = {(c.tasks[0], c.tasks[1]): self._test(c) for c in cells}
                gains = evaluation.task_affinity(pairs, alone, self._directions)
                by_seed.append({"epoch": seed, "pairs": gains})
        return mean_over_epochs(by_seed, "pairs").tolist() if by_seed else None


def _mean_history(
    histories: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, list[float]]:
    """Returns the mean of each column over the seeds, epoch by epoch."""
    first = histories[0] if histories else {}
    keys = [key for key in first if all(key in history for history in histories)]
    return {
        key: np.mean([history[key] for history in histories], axis=0).tolist()
        for key in keys
    }
