"""Training one configuration into a run folder, and evaluating it again."""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import time

import keras
import tensorflow as tf
from rich.console import Console

from mtl_keras import sharing
from mtl_keras.errors import InputError
from mtl_keras.runs import folder
from mtl_keras.runs.config import RunConfig, spec_name
from mtl_keras.runs.optimizers import learning_rate_schedule, make_optimizer
from mtl_keras.runs.progress import EpochLines, StepBar
from mtl_keras.runs.results import by_task, metric_names


@dataclasses.dataclass(frozen=True)
class Results:
    """What a finished training gives.

    Attributes:
        path: The run folder.
        metrics: `{task: {metric: value}}` on the test split.
        seconds: Wall time of the training, in seconds.
    """

    path: pathlib.Path
    metrics: dict[str, dict[str, float]]
    seconds: float


def load_split(config: RunConfig, split: str) -> tf.data.Dataset:
    """Loads one split as a validated config wants it.

    Args:
        config: A config that `validate` has returned.
        split: `"train"` (shuffled, and cut to `limit`), `"validation"` or
            `"test"`.

    Returns:
        Batches as `Application.load` gives them.

    Raises:
        InputError: If the data set is unknown or cannot be prepared here.
    """
    assert config.batch_size is not None
    training = split == "train"
    return config.get_application().load(
        split,
        data=config.data,
        batch_size=config.batch_size,
        tasks=config.tasks,
        shuffle=training,
        seed=config.seed,
        limit=config.limit if training else None,
    )


def count_batches(dataset: tf.data.Dataset) -> int:
    """Returns the number of batches, by counting where it is not known."""
    known = int(dataset.cardinality())
    return known if known >= 0 else sum(1 for _ in dataset)


def compiled_model(config: RunConfig, steps: int) -> keras.Model:
    """Builds and compiles the model of a validated config.

    Sets the global seeds, so that two calls give the same initial weights.

    Args:
        config: A config that `validate` has returned.
        steps: Training steps in all, over which the learning rate decays as the
            config says.
    """
    application = config.get_application()
    keras.utils.set_random_seed(config.seed)
    model = application.build(
        backbone=config.backbone,
        sharing=config.sharing,
        width=config.width,
        depth=config.depth,
        tasks=config.tasks,
    )
    losses = application.losses(config.tasks)
    losses |= dict.fromkeys(sharing.get(config.sharing).untrained(list(losses)))
    assert config.learning_rate is not None
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)
    weights = None
    if config.loss_weights is not None:
        assert config.tasks is not None
        weights = {task: config.loss_weights.get(task, 1.0) for task in config.tasks}
    model.compile(
        optimizer=make_optimizer(config.optimizer, rate, application),
        loss=losses,
        loss_weights=weights,
        metrics=application.metrics(config.tasks),
        balancing=config.balancing,
    )
    return model


def train(
    config: RunConfig,
    out: str | pathlib.Path,
    *,
    console: Console | None = None,
) -> Results:
    """Trains one configuration and writes its run folder.

    The folder appears under its name only when everything is written; a
    training that fails or is interrupted leaves nothing behind.

    Args:
        config: What to train; None in a field means the application's default.
        out: The run folder to make.
        console: Where to show progress; None trains in silence.

    Returns:
        The results on the test split.

    Raises:
        InputError: If the config does not hold, the data cannot be had, or
            `out` is in use or cannot be made; all before training.
    """
    config = config.validate()
    folder.check_free(out)
    console = console or Console(quiet=True)
    assert config.epochs is not None
    assert config.tasks is not None
    application = config.get_application()
    # Before loading too: TensorFlow's shuffling takes part of the global seed.
    keras.utils.set_random_seed(config.seed)
    with console.status(f"Loading {config.data}"):
        data = {s: load_split(config, s) for s in ("train", "validation", "test")}
    per_epoch = count_batches(data["train"])
    if per_epoch == 0:
        raise InputError(f"The training split of {config.data!r} is empty.")
    steps = per_epoch * config.epochs
    model = compiled_model(config, steps)

    with folder.staged(out) as work:
        callbacks: list[keras.callbacks.Callback] = [
            keras.callbacks.TensorBoard(work / folder.LOGS, write_graph=False)
        ]
        if not console.quiet:
            console.print(_headline(config, model, per_epoch), soft_wrap=True)
            callbacks.append(
                EpochLines(console, application, config.tasks, config.epochs)
            )
        started = time.monotonic()
        with StepBar(console, "training") as bar:
            history = model.fit(
                data["train"],
                validation_data=data["validation"],
                epochs=config.epochs,
                callbacks=callbacks + bar.callbacks,
                # The data shuffle themselves; Keras warns about its own default.
                shuffle=False,
                verbose=0,
            )
        seconds = time.monotonic() - started
        with console.status("Testing"):
            metrics = test_metrics(config, model, data["test"])
        model.save(work / folder.MODEL)
        folder.write_history(work / folder.HISTORY, history.history)
        folder.write_json(
            work / folder.CONFIG, {**config.to_dict(), "versions": versions()}
        )
        folder.write_json(work / folder.METRICS, metrics)
    return Results(pathlib.Path(out), metrics, seconds)


def evaluate(path: str | pathlib.Path) -> dict[str, dict[str, float]]:
    """Evaluates a run's model on the test split again; writes nothing.

    Args:
        path: A run folder.

    Returns:
        `{task: {metric: value}}`.

    Raises:
        InputError: If the folder is not a run, or the data cannot be had.
    """
    run = folder.load_run(path)
    config = run.config.validate()
    return test_metrics(config, run.model(), load_split(config, "test"))


def test_metrics(
    config: RunConfig, model: keras.Model, test: tf.data.Dataset
) -> dict[str, dict[str, float]]:
    """Returns all metrics on the test split, `{task: {metric: value}}`.

    Args:
        config: A config that `validate` has returned.
        model: The trained model.
        test: The test split, as `load_split` gives it.
    """
    assert config.tasks is not None
    assert config.batch_size is not None
    application = config.get_application()
    logs = model.evaluate(test, return_dict=True, verbose=0)
    metrics = by_task(logs, metric_names(application, config.tasks))
    measured = application.measure(
        model,
        "test",
        data=config.data,
        tasks=config.tasks,
        batch_size=config.batch_size,
    )
    for task, values in measured.items():
        metrics[task].update(values)
    return metrics


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    import numpy as np

    import mtl_keras

    return {
        "mtl_keras": mtl_keras.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _headline(config: RunConfig, model: keras.Model, per_epoch: int) -> str:
    return (
        f"Training {config.application} on {config.data}: {config.backbone} with "
        f"{model.count_params():,} parameters, {spec_name(config.sharing)} sharing, "
        f"{spec_name(config.balancing)} balancing, {config.epochs} epochs of "
        f"{per_epoch} steps"
    )
