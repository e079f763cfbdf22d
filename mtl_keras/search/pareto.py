"""Searching a trade-off: a KerasTuner oracle for several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as hp_types

from mtl_keras import optional
from mtl_keras.errors import InputError
from mtl_keras.evaluation.pareto import pareto_front

_SAMPLES = 64  # of the objectives' values, under the Gaussian processes
_STARTS = 512  # of the acquisition's search, all over the space
_ELITE = 16  # starts that are improved at a time
_ROUNDS = 10  # of improving them, in ever smaller steps
_NEAR = 0.01  # a hundredth of each range: nearer to a trial is the trial again


class ParetoOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """Finds a set of trade-offs between several objectives.

    KerasTuner's own oracles minimise the sum of several objectives and find one
    compromise. This one follows ParEGO (Knowles, "ParEGO: A Hybrid Algorithm with
    On-Line Landscape Approximation for Expensive Multiobjective Optimization
    Problems", IEEE Transactions on Evolutionary Computation 10(1), 2006): each
    trial draws a random weight per objective and takes the settings from which
    the augmented Chebyshev norm of the weighted objectives is expected to improve
    most,

    ```
    s(z) = max_j w_j z_j + rho * sum_j w_j z_j
    ```

    so that over the trials every part of the front is sought, a concave one too.
    Departures from the paper:

    - One Gaussian process (KerasTuner's: Matern 5/2) models each objective, and
      the norm is taken of samples of all, as in Daulton, Balandat and Bakshy,
      "Differentiable Expected Hypervolume Improvement for Parallel Multi-Objective
      Bayesian Optimization" (NeurIPS 2020, arXiv:2006.05078), for qParEGO. The
      paper models the norm itself, which has kinks that a smooth process misses.
    - `z` is scaled by the front alone, from the best value that each process
      holds possible to the worst one on the front. Scaled by the best observed
      values, a front of one point would be the optimum for every weight.
    - The weights are uniform on the simplex rather than on a lattice, and the
      first trials are few and spread by a Sobol sequence.
    - As long as all trials score the same, the sequence goes on.
    - Expected improvement is maximised from many starts by evolution, which suits
      names and whole numbers as well. Settings within a hundredth of each range of
      a trial's are left out: trainings are noisy, and would tell nothing new.

    Trials that run meanwhile on other workers count with the values that the
    processes expect of them. All randomness follows from the seed and the number
    of trials, so that a search that was stopped resumes as it would have gone.

    ```python
    oracle = ParetoOracle(
        objective=[
            keras_tuner.Objective("val_left_accuracy", "max"),
            keras_tuner.Objective("val_level_mae", "min"),
        ],
        max_trials=40,
    )
    tuner = keras_tuner.Tuner(oracle=oracle, hypermodel=build, directory="search")
    tuner.search(data, validation_data=validation, epochs=5)
    front = oracle.pareto_trials()
    ```

    As with KerasTuner's own oracles for several objectives, a `HyperModel.fit`
    that returns a dictionary has to have the sum in it as `"multi_objective"`;
    one that returns Keras's history does not.

    Args:
        objective: A list of two or more `keras_tuner.Objective`.
        max_trials: How many trials to run at most; `None` until the space is
            exhausted.
        num_initial_points: How many trials explore before the processes guide the
            search; `None` for two more than there are hyperparameters, and at
            most half of the trials.
        rho: Weight of the sum in the norm, which keeps the search away from
            points that are worse in one objective and no better in another.
        **kwargs: As in `keras_tuner.oracles.BayesianOptimizationOracle`.

    Raises:
        InputError: With fewer than two objectives.
        MissingExtraError: Without scikit-learn and SciPy.
    """

    def __init__(
        self,
        objective: Sequence[keras_tuner.Objective],
        max_trials: int | None = 10,
        num_initial_points: int | None = None,
        rho: float = 0.05,
        **kwargs: Any,
    ):
        if isinstance(objective, (str, keras_tuner.Objective)) or len(objective) < 2:
            raise InputError(
                "Expected `objective` to be a list of at least two objectives. "
                f"Received: objective={objective!r}."
            )
        check_bayesian("ParetoOracle")
        super().__init__(
            objective=list(objective),
            max_trials=max_trials,
            num_initial_points=num_initial_points,
            **kwargs,
        )
        self.rho = rho

    @property
    def directions(self) -> list[str]:
        """`"max"` or `"min"` for each objective."""
        return [objective.direction for objective in self.objective.objectives]

    def objectives_of(self, trial: Any) -> list[float]:
        """Returns a completed trial's objectives, in their own directions."""
        return [
            float(trial.metrics.get_last_value(objective.name))
            for objective in self.objective.objectives
        ]

    def score_trial(self, trial: Any) -> None:
        """Scores a trial by KerasTuner's sum; NaN in one objective makes it NaN."""
        names = [objective.name for objective in self.objective.objectives]
        values = dict(zip(names, self.objectives_of(trial), strict=True))
        trial.score = self.objective.get_value(values)
        trial.best_step = trial.metrics.get_history(names[0])[-1].step

    def pareto_trials(self) -> list[Any]:
        """Returns the completed trials that no other one dominates."""
        trials = self._completed()
        points = [self.objectives_of(trial) for trial in trials]
        return [trials[i] for i in pareto_front(points, self.directions)]

    def get_best_trials(self, num_trials: int = 1) -> list[Any]:
        """Returns the best trials: those on the front first.

        Behind them comes the front of the others, and so on; within a front the
        trial with the best mean of its objectives, each scaled to [0, 1], leads.
        """
        trials = self._completed()
        costs = self._costs(trials)
        low = costs.min(axis=0, initial=np.inf)
        span = costs.max(axis=0, initial=-np.inf) - low
        means = ((costs - low) / np.where(span > 0.0, span, 1.0)).mean(axis=1)
        ranked: list[Any] = []
        left = list(range(len(trials)))
        while left:
            front = pareto_front(costs[left], ["min"] * costs.shape[1])
            members = sorted((left[i] for i in front), key=lambda i: means[i])
            ranked += [trials[i] for i in members]
            left = [i for i in left if i not in members]
        rest = [trial for trial in self.trials.values() if trial not in trials]
        return (ranked + rest)[:num_trials]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the next trial's values: nothing that was tried before."""
        encoding = SpaceEncoding(self.hyperparameters.space)
        started = len(self.trials)
        rng = np.random.default_rng([self.seed, started])
        if not self._is_guided(encoding.dimensions):
            sobol = _quasi_random().Sobol(encoding.dimensions, seed=self.seed)
            proposals = sobol.random_base2((2 * started + 1).bit_length())[started:]
        else:
            proposals = self._proposals(encoding, rng)
        for point in proposals:
            values = self._vector_to_values(point.tolist())
            if not self._duplicate(values):
                return {"status": "RUNNING", "values": values}
        return self._random_populate_space()

    def _is_guided(self, dimensions: int) -> bool:
        """Returns whether the processes know enough to guide the search."""
        most = self.max_trials // 2 if self.max_trials else dimensions + 2
        first = self.num_initial_points or max(2, min(dimensions + 2, most))
        costs = self._costs(self._completed())
        if len(costs) < first:
            return False
        # The same in all trials, they would be sure of it everywhere.
        return bool(np.any(costs.max(axis=0) > costs.min(axis=0)))

    def _completed(self) -> list[Any]:
        # A reloaded state has its trials in any order.
        trials = [self.trials[trial_id] for trial_id in sorted(self.trials)]
        return [trial for trial in trials if trial.status == "COMPLETED"]

    def _costs(self, trials: Sequence[Any]) -> np.ndarray:
        """Returns the objectives `[N, T]`, all to be minimised."""
        signs = [1.0 if d == "min" else -1.0 for d in self.directions]
        points = [self.objectives_of(trial) for trial in trials]
        return np.asarray(points, np.float64).reshape(-1, len(signs)) * signs

    def _proposals(
        self, encoding: SpaceEncoding, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns points `[N, D]`, the most promising first."""
        trials = self._completed()
        points = np.stack([encoding.point(t.hyperparameters) for t in trials])
        costs = self._costs(trials)
        models = self._models(encoding, points, costs)
        qmc = _quasi_random()
        starts = qmc.Sobol(encoding.dimensions, seed=rng).random(_STARTS)
        front = pareto_front(costs, ["min"] * costs.shape[1])
        mean, deviation = _predict(
            models, encoding.features(np.concatenate([starts, points]))
        )
        # The lower confidence bound of two standard deviations, over all points.
        ideal = np.minimum((mean - 2.0 * deviation).min(axis=0), costs.min(axis=0))
        span = costs[front].max(axis=0) - ideal
        span[span <= 0.0] = 1.0
        weights = rng.dirichlet(np.ones(costs.shape[1]))
        # An objective that was the same in all trials has nothing to trade.
        varied = costs.max(axis=0) > costs.min(axis=0)
        weights *= varied
        normal = qmc.MultivariateNormalQMC(np.zeros(len(weights)), seed=rng)
        noise = normal.random(_SAMPLES)

        def norm(values: np.ndarray) -> np.ndarray:
            weighted = weights * (values - ideal) / span
            return weighted.max(axis=-1) + self.rho * weighted.sum(axis=-1)

        best = norm(costs).min()

        def improvement(at: np.ndarray) -> np.ndarray:
            mean, deviation = _predict(models, encoding.features(at))
            samples = mean + deviation * noise[:, None, :]
            return np.maximum(best - norm(samples), 0.0).mean(axis=0)

        near = points[rng.choice(front, _STARTS)]
        starts = np.concatenate([starts, _mutate(near, 0.1, rng)])
        candidates = _maximise(improvement, starts, rng)
        known = [encoding.point(t.hyperparameters) for t in self.trials.values()]
        return candidates[_distances(encoding, candidates, np.stack(known)) > _NEAR]

    def _models(
        self, encoding: SpaceEncoding, points: np.ndarray, costs: np.ndarray
    ) -> list[Any]:
        """Fits one Gaussian process per objective, trials under way included."""
        features = encoding.features(points)
        pending = [
            encoding.point(t.hyperparameters) for t in self.ongoing_trials.values()
        ]
        models = []
        for cost in costs.T:
            model = self._make_gpr()
            # KerasTuner's kernel has one parameter; its 20 restarts change nothing.
            model.set_params(n_restarts_optimizer=3)
            model.fit(features, cost)
            if pending:
                known = encoding.features(np.stack(pending))
                expected = model.predict(known)
                model.set_params(kernel=model.kernel_, optimizer=None)
                model.fit(
                    np.concatenate([features, known]), np.concatenate([cost, expected])
                )
            models.append(model)
        return models


def _quasi_random() -> Any:
    """Returns SciPy's quasi-random sequences, on first use."""
    with optional.extra("search", "scipy", "ParetoOracle"):
        from scipy.stats import qmc

    return qmc


def check_bayesian(user: str) -> None:
    """Raises a MissingExtraError without the packages of Gaussian processes."""
    with optional.extra("search", "scikit-learn", user):
        import sklearn.gaussian_process  # noqa: F401
    with optional.extra("search", "scipy", user):
        import scipy.optimize  # noqa: F401


def _predict(models: Sequence[Any], features: np.ndarray) -> tuple[Any, Any]:
    """Returns means and standard deviations `[N, T]`."""
    pairs = [model.predict(features, return_std=True) for model in models]
    means, deviations = zip(*pairs, strict=True)
    return np.stack(means, axis=1), np.stack(deviations, axis=1)


def _distances(
    encoding: SpaceEncoding, points: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Returns how far each point is from the nearest known one, in one feature."""
    differences = encoding.features(points)[:, None] - encoding.features(known)
    return np.abs(differences).max(axis=-1).min(axis=-1)


def _mutate(points: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Moves about half of the coordinates by a normal step of this size."""
    step = rng.normal(0.0, size, points.shape) * (rng.random(points.shape) < 0.5)
    return np.clip(points + step, 0.0, 1.0)


def _maximise(function: Any, starts: np.ndarray, rng: np.random.Generator) -> Any:
    """Improves the best starts by mutation; returns all points, best first."""
    points, values = starts, function(starts)
    for round_ in range(_ROUNDS):
        elite = points[np.argsort(-values, kind="stable")[:_ELITE]]
        moved = _mutate(np.repeat(elite, _ELITE, axis=0), 0.2 * 0.7**round_, rng)
        points = np.concatenate([points, moved])
        values = np.concatenate([values, function(moved)])
    return points[np.argsort(-values, kind="stable")]


class SpaceEncoding:
    """Settings as points of the unit cube, and these as features.

    Every hyperparameter that is not fixed has one coordinate in [0, 1], by
    KerasTuner's own `prob_to_value` and `value_to_prob`. Features differ from
    coordinates in two ways: values without an order (names of methods) take one
    column each, so that no two of them are nearer to each other than others; and
    a hyperparameter that its conditions switch off reads as its default, so that
    settings which train the same model have the same features.
    """

    def __init__(self, space: Sequence[Any]):
        self._space = [hp for hp in space if not isinstance(hp, hp_types.Fixed)]
        self.dimensions = len(self._space)

    def point(self, settings: keras_tuner.HyperParameters) -> np.ndarray:
        """Returns the coordinates `[D]` of a trial's settings."""
        coordinates = []
        for hp in self._space:
            values = settings.values if settings.is_active(hp) else {}
            coordinates.append(hp.value_to_prob(values.get(hp.name, hp.default)))
        return np.asarray(coordinates)

    def features(self, points: np.ndarray) -> np.ndarray:
        """Returns the features `[N, F]` of points `[N, D]`."""
        columns: list[np.ndarray] = []
        drawn: dict[str, np.ndarray] = {}
        count = len(points)
        for hp, coordinates in zip(self._space, points.T, strict=True):
            active = np.ones(count, bool)
            for condition in hp.conditions:
                parent = drawn.get(condition.name)
                # A parent that is fixed switches nothing.
                if parent is not None:
                    active &= np.isin(parent, np.asarray(condition.values, object))
            if isinstance(hp, hp_types.Float) and not hp.step:
                default = hp.value_to_prob(hp.default)
                columns.append(np.where(active, coordinates, default))
                continue
            values = np.empty(count, object)
            values[:] = [hp.prob_to_value(float(c)) for c in coordinates]
            # An inactive value of a name may be declared again for another parent.
            others = drawn.get(hp.name, np.full(count, None, object))
            drawn[hp.name] = np.where(active, values, others)
            values[~active] = hp.default
            if isinstance(hp, hp_types.Choice) and not hp.ordered:
                # At a distance of 1 from each other, as the ends of a range are.
                same = values[:, None] == np.asarray(hp.values, object)
                columns.extend((same / np.sqrt(2.0)).T)
            else:
                columns.append(np.array([hp.value_to_prob(v) for v in values]))
        return np.stack(columns, axis=1).astype(np.float64)
