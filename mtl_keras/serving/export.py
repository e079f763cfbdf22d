"""Export to `<path>/<version>/`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.serving.model_card import write_model_card
from mtl_keras.serving.served_model import ServedModel, merge, served_model
from mtl_keras.serving.server_files import BATCH_SIZES, write_server_files
from mtl_keras.serving.signatures import Signature, empty_inputs, signatures
from mtl_keras.serving.stock_ops import check_stock, without_cudnn
from mtl_keras.serving.versions import write_version
from mtl_keras.serving.warmup import as_inputs, write_records

SOURCE = "source.json"


def export(
    model: keras.Model | Sequence[keras.Model],
    path: str | pathlib.Path,
    *,
    tasks: Iterable[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    samples: Any = None,
    examples: bool = True,
    missing_values: Mapping[str, float] | None = None,
    source: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model as the next version under `path`, for TensorFlow Serving.

    The signatures, whose inputs and outputs bear the model's own names:

    - `serving_default`: all inputs to all outputs.
    - One for each output, named after it: runs the layers that this output needs,
      and takes the inputs that it can use.
    - `features`: the representation that the outputs share, where they do.
    - `from_examples`: all outputs, for serialized `tf.train.Example`s in `inputs`; a
      feature left out counts as `missing_values` says, as zeros or as empty.
    - `classify_<output>`: `scores` and `classes` for serialized examples, as
      TensorFlow Serving's Classify has them; for outputs with class names.

    Outputs are those of the model: probabilities, also where the model was compiled
    with a loss `from_logits=True`. An output `[batch, classes]` with class names is
    accompanied by `<output>_label`, the name of the likeliest class (of one
    probability `[batch, 1]`: the second name above 0.5).

    What training needs alone stays out: the optimizer, the balancing state, the seeds
    of dropout, and inputs and layers that no output needs when it is served. Layers
    with a method `serving_call` are called through it, as
    `mtl_keras.applications.Application.serving_model` tells.

    An output that `compile` made a group of tasks (`columns`) is served as it is,
    `[batch, T]`; the tasks' names are the lines of `assets/<output>.columns`. Those
    that `tasks` names get outputs and signatures of their own.

    Beside the SavedModel lie warm-up records for each signature, the names of the
    classes in `assets/<output>.classes`, and `MODEL_CARD.md`; beside the versions
    `models.config` and `batching.config` for `tensorflow_model_server`.

    Args:
        model: A built functional model whose outputs are a dict, or several with
            different outputs, which are served as one: inputs of the same name are
            then one input.
        path: The folder that holds the versions. TensorFlow Serving takes it as a
            model's base path; a version appears in it complete or not at all.
        tasks: Outputs to serve, and tasks that are columns of one; `None` for all.
        class_names: Names of the classes, `{output: [name, …]}`.
        samples: A batch of raw inputs by name, for the warm-up records, cast to the
            inputs' dtypes and ranks as `fit` does; an array alone for a model of one
            input; `None` for zeros and empty strings.
        examples: Whether to offer the signatures that take `tf.train.Example`s.
        missing_values: `{input: value}` of numbers that count as this where an
            example leaves them out, such as NaN for a model that knows what to do
            with it.
        source: Where the model comes from, written beside it as `source.json` and
            into the card; `metrics` and `versions` become tables there.

    Returns:
        The folder `<path>/<version>`.

    Raises:
        InputError: If the model cannot be served as it is, with the layer that is
            the reason, if the samples do not fit its inputs, or if `path` cannot be
            written.

    Example:

    ```python
    version = mtl_keras.serving.export(model, "models/mine", samples={"x": x})
    print(version / "MODEL_CARD.md")
    ```
    """
    path = pathlib.Path(path)
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    served = _served(models, tasks, class_names)
    chosen = signatures(served, with_examples=examples, missing_values=missing_values)
    with without_cudnn(models):
        functions = {signature.name: signature.function() for signature in chosen}
    for signature in chosen:
        check_stock(signature.name, functions[signature.name], signature.model)
    batches = _batches(chosen[0], samples)
    name = path.absolute().name
    source = dict(source or {})

    def write(version: pathlib.Path) -> None:
        # Files that the SavedModel copies into its assets; outside of it.
        assets = version.parent / "assets"
        assets.mkdir()
        root = _trackable(served, functions, assets)
        tf.saved_model.save(root, str(version), signatures=functions)
        write_records(version, name, chosen, batches)
        write_model_card(version, name, chosen, functions, source, served.columns)
        text = json.dumps(source, indent=2, ensure_ascii=False) + "\n"
        (version / SOURCE).write_text(text, encoding="utf-8")
        write_server_files(path, name)

    return write_version(path, write)


def _served(
    models: Sequence[keras.Model],
    tasks: Iterable[str] | None,
    class_names: Mapping[str, Sequence[str]] | None,
) -> ServedModel:
    if len(models) == 1:
        return served_model(models[0], tasks=tasks, class_names=class_names)
    if tasks is not None:
        raise InputError(
            "Expected `tasks` for one model only: each of several is served with all "
            f"its own. Received: tasks={list(tasks)} for {len(models)} models."
        )
    return merge([served_model(model, class_names=class_names) for model in models])


def _batches(default: Signature, samples: Any) -> list[dict[str, np.ndarray]]:
    """Returns a batch of each size that a server runs."""
    if samples is None:
        return [empty_inputs(default.inputs, size) for size in BATCH_SIZES]
    arrays = as_inputs(default.inputs, samples)
    count = len(next(iter(arrays.values())))
    # Repeated where there are fewer samples than the largest batch.
    return [
        {name: value[np.arange(size) % count] for name, value in arrays.items()}
        for size in BATCH_SIZES
    ]


def _trackable(
    served: ServedModel, functions: Mapping[str, Any], assets: pathlib.Path
) -> tf.Module:
    """Returns a module that tracks the captures of the functions, and nothing else."""
    root = tf.Module()
    captured = {
        id(tensor)
        for function in functions.values()
        for tensor in function.captured_inputs
    }
    whole = served.part({**served.outputs, **served.features})
    # A function gives its variables in no certain order; files are to be alike.
    order = {id(v.value): index for index, v in enumerate(whole.variables)}
    variables = {
        id(variable): variable
        for function in functions.values()
        for variable in function.variables
    }
    ordered = sorted(variables, key=lambda key: order.get(key, len(order)))
    tables = [
        table
        for table in tf.train.TrackableView(whole).descendants()
        if isinstance(table, tf.saved_model.experimental.TrackableResource)
        and id(table.resource_handle) in captured
    ]
    root.served_variables = [variables[key] for key in ordered]
    root.tables = tables
    root.class_names = [
        _asset(assets / f"{name}.classes", names)
        for name, names in served.class_names.items()
    ]
    root.columns = [
        _asset(assets / f"{name}.columns", names)
        for name, names in served.columns.items()
    ]
    return root


def _asset(file: pathlib.Path, names: Sequence[str]) -> tf.saved_model.Asset:
    file.write_text("\n".join(names) + "\n", encoding="utf-8")
    return tf.saved_model.Asset(str(file))
