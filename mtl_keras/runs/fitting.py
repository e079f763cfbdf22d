"""Training one configuration into a run folder, anew or from a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from mtl_keras.callbacks import TaskProgress
from mtl_keras.data import catalog
from mtl_keras.encoding import encode
from mtl_keras.errors import (
    InputError,
    check_integer,
    is_of_full_gpu,
    system_reason,
)
from mtl_keras.files import write_json
from mtl_keras.model import MultiTaskModel
from mtl_keras.registry import spec_name
from mtl_keras.runs import checkpoints, folder, strategies, unfinished
from mtl_keras.runs.config import RunConfig, TrainingConfig
from mtl_keras.runs.progress import EpochTensorBoard, StepBar, say
from mtl_keras.runs.records import made_with
from mtl_keras.runs.training import (
    EarlyStop,
    TaskLogs,
    compiled_model,
    count_batches,
    load_split,
    test_metrics,
    training_batches,
)


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of a finished training.

    Attributes:
        path: The run folder.
        metrics: `{task: {metric: value}}` on the test split.
        seconds: Wall time of the training, in seconds.
    """

    path: pathlib.Path
    metrics: dict[str, dict[str, float]]
    seconds: float


def train(
    config: RunConfig | TrainingConfig,
    out: str | pathlib.Path,
    *,
    checkpoint_steps: int | None = None,
    deterministic: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    strategy: tf.distribute.Strategy | None = None,
    console: Console | None = None,
) -> Results:
    """Trains one configuration and writes its run folder, or resumes it.

    The folder appears under its name only when everything is written. After every
    epoch there is a checkpoint beside it: a training that was stopped in whatever
    way, called again with the same config and folder, resumes there, to the
    same end as if it had never been stopped.

    A finished run is trained further by more epochs: called again with the same
    settings and folder but larger `epochs`, it starts from the state of the model,
    the optimizer and the balancing, and its result takes the folder's place. With
    the schedule `"constant"` the end is that of one training; a schedule that decays
    does so over all epochs of the new config, so that the learning rate rises again.

    Args:
        config: The settings; None in a field means the application's default.
        out: The run folder to make.
        checkpoint_steps: Steps between checkpoints within an epoch; None for none.
        deterministic: Whether TensorFlow may use deterministic ops only, for the
            whole process: the same weights then bit for bit.
        callbacks: Further callbacks of the training, which come first. The model is
            tested and saved as they leave it.
        strategy: Over what to train, as `strategies.make` gives it; None for one
            device. The batch size is that of all devices together.
        console: Where to show progress; None trains in silence.

    Returns:
        The results on the test split.

    Raises:
        InputError: If the config does not hold, the data cannot be had, `out` is
            in use, or an unfinished run with other settings is there, all before
            training; or if the disk is full.
        KeyboardInterrupt: When interrupted; the message says whether the run can be
            resumed.
        WorkerError: If another worker has ended.
        NonFiniteError: If a loss or a gradient is not finite.
    """
    over = strategy or tf.distribute.get_strategy()
    settings = config.validate()
    if checkpoint_steps is not None:
        check_integer("checkpoint_steps", checkpoint_steps, low=1)
    if console is None or not strategies.is_chief(over):
        console = Console(quiet=True)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if strategies.is_chief(over):
        unfinished.restore_replaced(out)
    finished = unfinished.with_fewer_epochs(out, settings)
    with (
        strategies.folders(over, out, settings, finished is not None) as (run, saved),
        strategies.one_for_all(over),
        catalog.reading(settings.data),
    ):
        with _out_of_room():
            fitting = _Fitting(settings, saved, over, console)
            progress = fitting.run(
                run / folder.LOGS, checkpoint_steps, callbacks, finished
            )
        with console.status("Testing"):
            metrics = test_metrics(settings, fitting.model, fitting.test)
        with folder.disk_errors(run):
            fitting.model.save(run / folder.MODEL)
            folder.write_history(run / folder.HISTORY, progress.history)
            described = {**encode(settings), "made_with": made_with()}
            write_json(run / folder.CONFIG, described)
            write_json(run / folder.METRICS, metrics)
    return Results(pathlib.Path(out), metrics, progress.seconds)


@contextlib.contextmanager
def _out_of_room() -> Iterator[None]:
    """Context manager: raises `InputError` where memory or disk space runs out."""
    try:
        yield
    except (MemoryError, tf.errors.OpError) as error:
        is_full = isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError))
        if not is_full and not is_of_full_gpu(error):
            raise
        raise InputError(
            "The training has run out of memory, of which a smaller width, depth or "
            f"batch size takes less, or of disk space: {system_reason(error):.200}."
        ) from error


class _Fitting:
    """One training: data and model, made the same way whether new or resumed."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: pathlib.Path,
        strategy: tf.distribute.Strategy,
        console: Console,
    ):
        # Before loading too, should anything draw from the global seed.
        keras.utils.set_random_seed(config.seed)
        self._config = config
        self._folder = folder
        self._console = console
        self._epochs = config.epochs
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        with console.status(f"Loading {config.data}"):
            splits = {"train": self._epoch, "validation": None, "test": None}
            self._train, self._validation, self.test = (
                strategies.sharded(load_split(config, split, epoch))
                for split, epoch in splits.items()
            )
        batches = count_batches(self._train)
        if batches == 0:
            raise InputError(f"The training split of {config.data!r} is empty.")
        with strategy.scope():
            self.model: MultiTaskModel = compiled_model(config, batches * self._epochs)
            self.model.optimizer.build(self.model.trainable_variables)
        self._train = training_batches(self._train, self.model, config.batch_size)
        self._per_epoch = count_batches(self._train)

    def run(
        self,
        logs: pathlib.Path,
        checkpoint_steps: int | None,
        callbacks: Sequence[keras.callbacks.Callback],
        finished: folder.Run | None,
    ) -> checkpoints.Progress:
        """Trains up to the last epoch; returns the progress, with the history of all.

        Without a checkpoint it starts from `finished`, a run of fewer epochs, if any.
        """
        checkpoint = self._newest()
        if checkpoint is None and finished is not None:
            checkpoint = self._end_of(finished, logs)
        self._announce(checkpoint)
        config, application = self._config, self._config.get_application()
        stop = None
        if config.patience is not None:
            stop = EarlyStop(application, config.tasks, config.patience)
        callbacks = [*callbacks, EpochTensorBoard(logs, write_graph=False)]
        if not self._console.quiet:
            metrics = {task: application.tasks[task].objective for task in config.tasks}
            if self.model.columns:
                # The mean over tasks, by which the logs of one output go.
                metrics = {f"{len(metrics)} tasks": next(iter(metrics.values()))}
            callbacks.append(TaskProgress(metrics, config.epochs, self._console))
        done = 0
        if checkpoint is not None:
            progress = checkpoint.progress
            done = progress.epoch * self._per_epoch + progress.step
        with StepBar(self._console, self._per_epoch * self._epochs, done) as bar:
            callbacks += bar.callbacks
            if checkpoint is not None and checkpoint.progress.step:
                # The rest of the epoch; the next ones begin at its own checkpoint.
                # Metrics have their variables first, which else the first batch makes.
                self.model.evaluate(self._validation.take(1), verbose=0)
                self._fit(callbacks, checkpoint_steps, checkpoint)
                checkpoint = self._newest()
            if stop is not None:
                if checkpoint is not None and stop.resume(checkpoint.progress.history):
                    checkpoint.restore(self.model)
                    return checkpoint.progress
                callbacks.append(stop)
            return self._fit(callbacks, checkpoint_steps, checkpoint)

    def _end_of(self, run: folder.Run, logs: pathlib.Path) -> checkpoints.Checkpoint:
        """Returns the end of a finished run as a checkpoint, and copies its logs."""
        state = run.model().state()
        history = folder.read_history(run.path / folder.HISTORY)
        epochs = max(map(len, history.values()), default=0)
        shutil.copytree(run.path / folder.LOGS, logs, dirs_exist_ok=True)
        return checkpoints.Checkpoint(
            run.path / folder.MODEL,
            checkpoints.Progress(epochs, 0, self._per_epoch, history=history),
            {key: np.asarray(variable.numpy()) for key, variable in state.items()},
        )

    def _fit(
        self,
        callbacks: list[keras.callbacks.Callback],
        checkpoint_steps: int | None,
        start: checkpoints.Checkpoint | None,
    ) -> checkpoints.Progress:
        """Fits from a checkpoint to the end, or to the end of its epoch within one."""
        train, last = self._train, self._epochs
        progress = checkpoints.Progress(0, 0, self._per_epoch)
        application = self._config.get_application()
        # The data give the order of the epoch.
        set_epoch = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self._epoch.assign(epoch)
        )
        own = [set_epoch, TaskLogs(application)]
        if start is not None:
            progress = start.progress
            own.append(checkpoints.Restore(start))
            if progress.step:
                train, last = train.skip(progress.step), progress.epoch + 1
        saving = checkpoints.Save(self._folder, progress, checkpoint_steps)
        self.model.fit(
            train,
            validation_data=self._validation,
            initial_epoch=progress.epoch,
            epochs=last,
            callbacks=[*own, *callbacks, saving],
            # The data shuffle themselves; Keras warns about its own default.
            shuffle=False,
            verbose=0,
        )
        return progress

    def _newest(self) -> checkpoints.Checkpoint | None:
        checkpoint, broken = checkpoints.newest(self._folder)
        for line in broken:
            warning = f"{line} Resuming from the one before it."
            if self._console.quiet:
                warnings.warn(warning, stacklevel=2)
            else:
                say(self._console, f"Warning: {warning}")
        steps = checkpoint.progress.steps_per_epoch if checkpoint else self._per_epoch
        if steps != self._per_epoch:
            raise InputError(
                f"The unfinished run in {str(self._folder.parent)!r} had {steps} steps "
                f"in an epoch. Received: data of {self._per_epoch}. Remove it to train "
                "anew."
            )
        return checkpoint

    def _announce(self, checkpoint: checkpoints.Checkpoint | None) -> None:
        config = self._config
        conditioned = ""
        if config.preferences is not None:
            conditioned = f"preferences by {spec_name(config.preferences)}, "
        say(
            self._console,
            f"Training {config.application} on {config.data}: {config.backbone} with "
            f"{self.model.count_params():,} parameters, {spec_name(config.sharing)} "
            f"sharing, {spec_name(config.balancing)} balancing, {conditioned}"
            f"{self._epochs} epochs of {self._per_epoch} steps",
        )
        if checkpoint is not None:
            progress = checkpoint.progress
            within = f" and {progress.step} steps" if progress.step else ""
            kind = "finished" if checkpoint.path.name == folder.MODEL else "unfinished"
            say(
                self._console,
                f"Resuming the {kind} run, after {progress.epoch} of "
                f"{self._epochs} epochs{within}.",
            )
