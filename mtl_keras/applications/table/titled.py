"""A model whose logs name tasks as the table does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mtl_keras.model import MultiTaskModel
from mtl_keras.pareto import PreferenceModel


@keras.saving.register_keras_serializable(package="mtl_keras")
class TitledModel(MultiTaskModel):
    """A `MultiTaskModel` with outputs whose tasks have names that Keras cannot use.

    Outputs, losses and labels go by the outputs' names; logs of `fit` and `evaluate`,
    and so histories and results, by the titles.

    Args:
        *args: See `MultiTaskModel`.
        titles: Titles by output; outputs left out are their own.
        **kwargs: See `MultiTaskModel`.
    """

    def __init__(
        self, *args: Any, titles: Mapping[str, str] | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.titles = dict(titles or {})

    def _takes_data_as_it_is(self) -> bool:
        return True

    def get_metrics_result(self) -> dict[str, Any]:
        """See `keras.Model.get_metrics_result`."""
        return self._titled(super().get_metrics_result())

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `MultiTaskModel.train_step`."""
        return self._titled(super().train_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `keras.Model.test_step`."""
        return self._titled(super().test_step(*args, **kwargs))

    def _titled(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        titles = {name: self.titles.get(name, name) for name in self.output}
        return {titled(name, titles): value for name, value in logs.items()}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "titles": self.titles}

    @classmethod
    def from_config(cls, config: dict[str, Any], **kwargs: Any) -> Any:
        """Returns a model made from `get_config`'s result."""
        config = dict(config)
        titles = config.pop("titles", None)
        model = super().from_config(config, **kwargs)
        model.titles = dict(titles or {})
        return model


@keras.saving.register_keras_serializable(package="mtl_keras")
class TitledPreferenceModel(TitledModel, PreferenceModel):
    """A `PreferenceModel` with titles; see `TitledModel`."""


def titled(log: str, titles: Mapping[str, str]) -> str:
    """Returns a log's name with the title in place of the output that it is of.

    Args:
        log: `OUTPUT_METRIC`, or what else the balancing logs of an output; one that
            has the title already stays.
        titles: Titles by output, of all outputs.
    """
    # The longest name that fits decides, as one may begin as another is called.
    candidates = {**{title: title for title in titles.values()}, **titles}
    for name in sorted(candidates, key=len, reverse=True):
        if log == name or log.startswith(f"{name}_"):
            return candidates[name] + log.removeprefix(name)
        if log.endswith(f"/{name}"):
            return log.removesuffix(name) + candidates[name]
    return log
