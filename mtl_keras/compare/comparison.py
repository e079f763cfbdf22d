"""Settings of a comparison, and the trainings that follow from them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtl_keras import balancing
from mtl_keras.errors import InputError, check_integer, unknown_name
from mtl_keras.registry import spec_name
from mtl_keras.runs.config import RunConfig, Spec, TrainingConfig

# Half of them weigh losses, half combine gradients; the first is the reference.
DEFAULT_BALANCING = (
    "equal",
    "uncertainty",
    "imtl_l",
    "famo",
    "pcgrad",
    "cagrad",
    "nash",
    "upgrad",
)

_IDENTITY_DIGITS = 12
_LABEL_LENGTH = 50  # characters of up to four bytes; a name may have 255 bytes

# With a main task: methods that know of it.
PRIMARY_BALANCING = (
    "equal",
    "gradient_cosine",
    "metabalance",
    "auxinash",
    "pcd",
    "auto_lambda",
)

SINGLE, PAIR, COMBINATION = "single", "pair", "combination"
WITHOUT = "without"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a comparison.

    Attributes:
        name: Name of its folder: a readable label, shortened, and a hash of kind and
            settings, which alone tells trainings apart.
        kind: `"single"` (one task alone), `"pair"` (two tasks, for affinity),
            `"combination"` (all tasks, one sharing and balancing) or `"without"` (all
            but one helper of a main task).
        method: Name of the combination, task, pair or helper, the same for all seeds.
        config: The settings.
        identity: The hash.
    """

    name: str
    kind: str
    method: str
    config: TrainingConfig
    identity: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it trains."""
        return self.config.tasks

    def __str__(self) -> str:
        return f"{self.method}, seed {self.config.seed}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ways to balance and to share, compared at the same budget and data order.

    Attributes:
        base: The settings that all trainings have in common: application, data,
            tasks, backbone, sizes, epochs, limit. Its balancing, sharing and seed
            are not read, and its `accumulate` is True by default where the application
            has it. With `build` it may be left out.
        balancing: The ways to balance: each a name, a config dictionary, or a list
            of a loss balancer and a gradient balancer. The first is the reference
            that the others are tested against. None is `DEFAULT_BALANCING`, or, with
            `primary`, `PRIMARY_BALANCING`.
        sharing: The ways to share: names or config dictionaries; None is the
            application's default.
        seeds: How many seeds, counted from 0. Seed s means the same first weights,
            where models have the same layers, and the same order of the data.
        pairs: Whether to train every pair of tasks as well, for the task affinity:
            T · (T - 1) / 2 trainings for each seed.
        single_tasks: Whether to train each task alone, T trainings for each seed, and
            measure Δm against these; else Δm is against the reference.
        primary: The main task, where the others only help it: it alone is trained
            alone, every training keeps the epoch that is best for it, Δm is its gain,
            and each helper is left out once, with the first way to balance and to
            share, to tell whether it helps. Methods with an argument `primary` get it.
        build: In place of an application: a function that builds a
            `MultiTaskModel`, or its name, `FILE.py:NAME` or `PACKAGE.MODULE:NAME`.
        data: Beside `build`: path of a data file; or a function that returns data
            sets, or its name. Functions are at the top level of a file, as trainings
            run in processes of their own.
    """

    base: RunConfig | None = None
    balancing: tuple[Spec | list[Spec], ...] | None = None
    sharing: tuple[Spec, ...] | None = None
    seeds: int = 3
    pairs: bool = False
    single_tasks: bool = True
    primary: str | None = None
    build: str | Callable[..., Any] | None = None
    data: str | os.PathLike | Callable[..., Any] | None = None

    def validate(self) -> Plan:
        """Returns the trainings of the comparison, all settings checked.

        Raises:
            InputError: If a name is unknown, a number out of range, or something is
                named twice.
        """
        check_integer("seeds", self.seeds, low=1)
        # The reference stands in for the settings that differ by cell.
        settings = dataclasses.replace(self._settings(), balancing="equal", seed=0)
        base = settings.validate()
        if len(base.tasks) < 2:
            raise InputError(
                "Expected at least two tasks to compare on. "
                f"Received: {', '.join(base.tasks)}."
            )
        if self.pairs and not self.single_tasks:
            raise InputError(
                "Expected single_tasks=True with pairs=True: what a pair gains is "
                "measured against its tasks alone. Received: single_tasks=False."
            )
        ways = self._checked_balancing(base.tasks)
        sharing = (base.sharing,) if self.sharing is None else tuple(self.sharing)
        for setting, values in (("balancing", ways), ("sharing", sharing)):
            names = [spec_name(value) for value in values]
            if not names:
                raise InputError(f"Expected at least one {setting}. Received: none.")
            repeated = [name for name in names if names.count(name) > 1]
            if repeated:
                raise InputError(
                    f"Expected each {setting} once. Received twice: {repeated[0]}."
                )
        own = (self.seeds, self.pairs, self.single_tasks, self.primary)
        plan = Plan(base, ways, sharing, *own)
        known: dict[str, Cell] = {}
        for cell in plan.cells():
            same = known.setdefault(cell.identity, cell)
            if same is not cell:
                raise InputError(
                    "Expected each combination once. Received the same twice: "
                    f"{same.method} and {cell.method}."
                )
        return plan

    def _checked_balancing(self, tasks: Sequence[str]) -> tuple[Spec | list[Spec], ...]:
        """Returns the ways to balance, told of the main task, which is checked."""
        default = DEFAULT_BALANCING if self.primary is None else PRIMARY_BALANCING
        ways = tuple(default if self.balancing is None else self.balancing)
        if self.primary is None:
            return ways
        if self.primary not in tasks:
            raise unknown_name("primary task", self.primary, tasks)
        if self.pairs or not self.single_tasks:
            raise InputError(
                "Expected pairs=False and single_tasks=True with a primary task, which "
                f"is measured against itself alone. Received: pairs={self.pairs}, "
                f"single_tasks={self.single_tasks}."
            )
        return tuple(_told(spec, self.primary) for spec in ways)

    def _settings(self) -> RunConfig:
        """Returns `base` with the names of `build` and `data`."""
        from mtl_keras import applications

        base = self.base
        if self.build is not None:
            name = applications.allow(self.build)
            base = dataclasses.replace(base or RunConfig(name), application=name)
        if base is None:
            raise InputError("Expected a RunConfig, or `build`. Received: neither.")
        if self.data is not None:
            base = dataclasses.replace(base, data=applications.allow(self.data))
        application = applications.get(base.application)
        if base.accumulate is None and application.accumulates:
            # Else there would be nothing for gradient balancers to balance.
            base = dataclasses.replace(base, accumulate=True)
        return base


@dataclasses.dataclass(frozen=True)
class Plan:
    """The trainings of a comparison, every one checked; `Comparison.validate` makes it.

    The attributes are those of `Comparison`, with every default filled in.
    """

    base: TrainingConfig
    balancing: tuple[Spec | list[Spec], ...]
    sharing: tuple[Spec, ...]
    seeds: int
    pairs: bool
    single_tasks: bool
    primary: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks."""
        return self.base.tasks

    @property
    def methods(self) -> list[str]:
        """The names of the combinations, in order; the first is the reference."""
        return [name for name, _, _ in self._combinations()]

    def cells(self) -> list[Cell]:
        """Returns all trainings.

        Seed by seed, so that a comparison that was stopped has whole seeds; of each
        those first that the others are measured against, pairs last.
        """
        return [cell for seed in range(self.seeds) for cell in self._of_seed(seed)]

    def _of_seed(self, seed: int) -> list[Cell]:
        alone = self.tasks if self.primary is None else (self.primary,)
        cells = [
            self._cell(SINGLE, f"single {task}", (task,), seed)
            for task in (alone if self.single_tasks else ())
        ]
        cells += [
            self._cell(COMBINATION, name, self.tasks, seed, share, balance)
            for name, share, balance in self._combinations()
        ]
        _, share, balance = self._combinations()[0]
        for helper in self.helpers:
            rest = tuple(task for task in self.tasks if task != helper)
            name = f"without {helper}"
            cells.append(self._cell(WITHOUT, name, rest, seed, share, balance))
        if self.pairs:
            cells += [
                self._cell(PAIR, f"pair {' + '.join(pair)}", pair, seed)
                for pair in itertools.combinations(self.tasks, 2)
            ]
        return cells

    @property
    def helpers(self) -> tuple[str, ...]:
        """The tasks that are left out in turn; none where that leaves one task."""
        if self.primary is None or len(self.tasks) < 3:
            return ()
        return tuple(task for task in self.tasks if task != self.primary)

    def _combinations(self) -> list[tuple[str, Any, Any]]:
        return [
            (
                f"{spec_name(share)}, " * (len(self.sharing) > 1) + spec_name(balance),
                share,
                balance,
            )
            for share, balance in itertools.product(self.sharing, self.balancing)
        ]

    def _cell(
        self,
        kind: str,
        method: str,
        tasks: tuple[str, ...],
        seed: int,
        sharing: Any = "hard",
        balancing: Any = "equal",
    ) -> Cell:
        config = dataclasses.replace(
            self.base, tasks=tasks, seed=seed, sharing=sharing, balancing=balancing
        )
        parts = [method]
        if kind == COMBINATION:
            parts = [spec_name(sharing), spec_name(balancing)]
        label = "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)
        key = f"{kind} {config.identity()}"
        if self.primary is not None and kind != SINGLE:
            key += f" for {self.primary}"
        if not self.single_tasks:
            # The reference of a combination decides on its epoch.
            _, share, balance = self._combinations()[0]
            against = dataclasses.replace(config, sharing=share, balancing=balance)
            key += f" against {against.identity()}"
        identity = hashlib.sha256(key.encode()).hexdigest()[:_IDENTITY_DIGITS]
        name = f"{label[:_LABEL_LENGTH]}-seed{seed}-{identity}"
        return Cell(name, kind, method, config, identity)


def _told(spec: Any, primary: str) -> Any:
    """Returns a way to balance whose methods know the main task, where they can."""
    if isinstance(spec, (list, tuple)):
        return [_told(member, primary) for member in spec]
    name, config = spec, {}
    if isinstance(spec, Mapping):
        name, config = spec["class_name"], dict(spec.get("config") or {})
    parameters = inspect.signature(balancing.get_class(name)).parameters
    if "primary" not in parameters or "primary" in config:
        return spec
    return {"class_name": name, "config": {"primary": primary, **config}}
