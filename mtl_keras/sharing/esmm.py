"""Entire space multi-task model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mtl_keras.errors import InputError
from mtl_keras.sharing.base import Sharing, at_least_float32, task_towers


@keras.saving.register_keras_serializable(package="mtl_keras")
class ConditionalProduct(keras.layers.Multiply):
    """P(A and B) = P(A) · P(B | A), from outputs `[P(A), P(B | A)]` of one shape.

    In float32 under mixed precision too.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": at_least_float32(), **kwargs})


@keras.saving.register_keras_serializable(package="mtl_keras")
class ESMM(Sharing):
    """Entire space multi-task model: conversions learnt from all impressions.

    A tower for each task, over inputs (embeddings) that all share. The output of
    the conversion task is P(conversion | click) for any impression, clicked or
    not. It has no loss of its own, since its labels exist for clicked impressions
    only and those are no fair sample; it learns through the product

        P(click and conversion) = P(click) · P(conversion | click),

    whose labels, as those of the click, are known for all impressions. Further
    tasks have a tower each and nothing more.

    Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating
    Post-Click Conversion Rate", SIGIR 2018, arXiv 1804.07931. Differs from the
    paper in that the towers are copies of all backbone stages of any kind.

    Args:
        click: Name of the task whose output is P(click).
        conversion: Name of the task whose output is P(conversion | click); it
            takes no loss.
        click_and_conversion: Name of the task whose output is the product; it has
            no features and no head.

    Raises:
        InputError: When two of the names are the same.

    Example:

    ```pycon
    >>> sharing = mtl_keras.sharing.ESMM(
    ...     click="click", conversion="conversion", click_and_conversion="both"
    ... )
    >>> features = sharing(
    ...     keras.Input((8,)), [keras.layers.Dense(4)], ["click", "conversion", "both"]
    ... )
    >>> sorted(features)
    ['click', 'conversion']
    ```
    """

    method = "esmm"

    def __init__(
        self,
        click: str = "click",
        conversion: str = "conversion",
        click_and_conversion: str = "click_and_conversion",
    ):
        self.click = click
        self.conversion = conversion
        self.click_and_conversion = click_and_conversion
        names = list(self.get_config().values())
        if len(set(names)) < 3:
            raise InputError(f"Expected three different tasks. Received: {names}.")

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        with_head = [task for task in tasks if task != self.click_and_conversion]
        return task_towers(inputs, stages, with_head)

    def connect_outputs(
        self, outputs: Mapping[str, keras.KerasTensor]
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect_outputs`: adds the product."""
        factors = [outputs[self.click], outputs[self.conversion]]
        product = ConditionalProduct(name=self.click_and_conversion)(factors)
        return {**outputs, self.click_and_conversion: product}

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See `Sharing.check_tasks`: all three have to be there."""
        missing = [name for name in self.get_config().values() if name not in tasks]
        if missing:
            raise InputError(
                f"Expected the tasks {list(self.get_config().values())} for esmm; its "
                f"arguments name them. Received: tasks={list(tasks)}."
            )

    def untrained(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """See `Sharing.untrained`: the conversion task."""
        return tuple(task for task in tasks if task == self.conversion)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "click": self.click,
            "conversion": self.conversion,
            "click_and_conversion": self.click_and_conversion,
        }
