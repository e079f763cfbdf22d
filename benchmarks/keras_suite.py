"""Keras's own tests, with functional models replaced by `MultiTaskModel`.

    python benchmarks/keras_suite.py [--eager] [--resume] [NAMES ...]

Keras's wheel holds its tests. Those of models, trainers, callbacks and saving run
twice in this environment: as they are, and with every functional model (also a
`Sequential` one and the layer-based models of the trainer's tests, where the shape of
their inputs is known) built as a `MultiTaskModel` with `balancing="equal"`. Counted are
the tests that pass as they are and make such a model. A failure that `EXPLAINED` does
not name ends with exit code 1. Adds to benchmarks/results/keras_suite.json; outcomes
are kept in build/keras_suite as they come, and `--resume` runs what is missing there.

The stand-in takes any structure of outputs: it trains them as a dict by name and gives
results in the structure that the test expects, without the logs of the balancing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fnmatch
import importlib.machinery
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras import MultiTaskModel
from mtl_keras.runs.records import made_with

BENCHMARKS = pathlib.Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results" / "keras_suite.json"
REPORTS = BENCHMARKS.parent / "build" / "keras_suite"
SOURCES = pathlib.Path(keras.__file__).parent / "src"
FILES = (
    "models/model_test",
    "models/functional_test",
    "models/cloning_test",
    "trainers/trainer_test",
    "callbacks/backup_and_restore_test",
    "callbacks/csv_logger_test",
    "callbacks/early_stopping_test",
    "callbacks/lambda_callback_test",
    "callbacks/learning_rate_scheduler_test",
    "callbacks/model_checkpoint_test",
    "callbacks/monitor_callback_test",
    "callbacks/reduce_lr_on_plateau_test",
    "callbacks/swap_ema_weights_test",
    "callbacks/tensorboard_test",
    "callbacks/terminate_on_nan_test",
    "saving/file_editor_test",
    "saving/saving_api_test",
    "saving/saving_lib_test",
    "saving/serialization_lib_test",
    "legacy/saving/legacy_h5_format_test",
)

# Test, as a pattern of `fnmatch`: kind and reason. The first that fits counts.
CHECKED = (
    "difference",
    "A name that is no output is an InputError of `compile`; Keras finds it in `fit`.",
)
HDF5 = ("difference", "Whole models are refused in HDF5 files, at `save`.")
EXPLAINED: dict[str, tuple[str, str]] = {
    "test_functional_*_losses_invalid_keys": CHECKED,
    "test_functional_*_metrics_invalid_keys": CHECKED,
    "test_functional_*_no_output_names": CHECKED,
    "test_functional_*_with_undefined_loss": (
        "difference",
        "A dict of losses names every output; None leaves one untrained.",
    ),
    "LegacyH5WholeModelTest::*": HDF5,
    "test_directory_creation_on_save": HDF5,
    "test_model_api_endpoint_h5": HDF5,
    "SavingBattleTest::test_*legacy_h5_format": HDF5,
    "test_TensorBoard_weight_images": (
        "difference",
        "Diverges from one in four random starts; such a loss ends `fit`.",
    ),
    "test_terminate_on_nan_graceful_stop": (
        "difference",
        "A loss that is not finite ends `fit` with NonFiniteError before it is logged.",
    ),
    "test_on_batch_methods_*": (
        "difference",
        "One of its sample weights is 0: the loss is the mean over the other samples.",
    ),
    "test_functional_*struct_losses*": (
        "difference",
        "A loss of several outputs together belongs to no task.",
    ),
    "FunctionalTest::test_basic_flow_dict_io": (
        "difference",
        "Outputs that are no dict of tensors have a message of their own.",
    ),
}

# Shapes of the inputs of `Sequential` models that are built by their first batch.
SHAPES: dict[str, tuple[int, ...] | None] = {
    "backup_and_restore_test": None,
    "csv_logger_test": (3,),
    "early_stopping_test": (5,),
    "lambda_callback_test": None,
    "learning_rate_scheduler_test": (3,),
    "model_checkpoint_test": (3,),
    "monitor_callback_test": (5,),
    "reduce_lr_on_plateau_test": (3,),
    "swap_ema_weights_test": (3,),
    "tensorboard_test": None,
    "terminate_on_nan_test": (1,),
    "file_editor_test": None,
    "legacy_h5_format_test": None,
    "saving_api_test": None,
    "saving_lib_test": None,
    "serialization_lib_test": None,
}


# Of the inputs that the models of a test get, in turn, where it does not give them the
# width that the others of its file do.
WIDTHS: dict[str, tuple[int, ...]] = {
    "test_early_stopping_reuse": (1,),
    "test_evaluate_return_list_respect_metrics_order": (2,),
    "test_loss_weights": (4, 4),
    "test_multiple_compiles": (4, 3),
    "test_nested_inputs": (2, 3),
    "test_recompile": (2,),
    "test_stop_loop_evaluate": (2,),
    "test_stop_loop_fit": (2,),
    "test_stop_loop_predict": (2,),
    "test_validation_data_infinite_generator": (2,),
}

widths: list[int] = []  # Of the running test, those not used yet.
made: list[str] = []  # What the stand-ins of the running test did.
outcomes: list[tuple[str, str]] = []  # Of its phases that did not pass.


def _is_ours(caller: types.FrameType) -> bool:
    return caller.f_globals["__name__"].startswith("mtl_keras")


def _values(structure: Any) -> list[Any]:
    return list(structure.values() if isinstance(structure, dict) else structure)


@keras.saving.register_keras_serializable(package="keras_suite")
class StandIn(MultiTaskModel):
    """A `MultiTaskModel` with outputs in any structure."""

    def __init__(self, inputs: Any, outputs: Any, name: Any = None, **kwargs: Any):
        made.append("model")
        flat = keras.tree.flatten(outputs)
        if not all(isinstance(t, keras.KerasTensor) for t in flat):  # An error.
            by_task = {f"output_{index}": t for index, t in enumerate(flat)}
            super().__init__(inputs, by_task, name=name, **kwargs)
        if isinstance(outputs, dict) and len(flat) == len(outputs):
            tasks = sorted(outputs)
        else:
            tasks = [t._keras_history.operation.name for t in flat]
        if len(set(tasks)) < len(tasks):
            tasks = [f"output_{index}" for index in range(len(flat))]
        by_task = dict(zip(tasks, flat, strict=True))
        super().__init__(inputs, by_task, name=name, **kwargs)
        # Keras clones a graph that starts at other tensors than inputs.
        flat = [self._outputs_struct[task] for task in tasks]
        # Past `__setattr__`, which would wrap lists and dicts.
        vars(self)["_task_names"] = tasks
        vars(self)["_trained"] = {
            name: vars(self)[name]
            for name in ("_outputs_struct", "_outputs", "output_names")
        }
        vars(self)["_shown"] = {
            "_outputs_struct": keras.tree.pack_sequence_as(outputs, flat),
            "_outputs": flat,
            "output_names": [tensor._keras_history.operation.name for tensor in flat],
        }
        self.__dict__.update(self._shown)

    @contextlib.contextmanager
    def _as_tasks(self) -> Any:
        before = {name: vars(self)[name] for name in self._shown}
        self.__dict__.update(self._trained)
        try:
            yield
        finally:
            self.__dict__.update(before)

    @property
    def output(self) -> Any:
        """Outputs by task for the library, in the tests' structure for them."""
        if _is_ours(sys._getframe(1)):
            return self._trained["_outputs_struct"]
        return super().output

    @property
    def layers(self) -> list[keras.Layer]:
        """As `Sequential` lists them, in place of one."""
        layers = super().layers
        return layers[1:] if vars(self).get("_sequential") else layers

    @layers.setter
    def layers(self, value: Any) -> None:
        keras.Model.layers.fset(self, value)

    def _by_task(self, value: Any) -> Any:
        """Returns a value in the structure of the outputs as a dict by task."""
        tasks, outputs = self._task_names, self._shown["_outputs_struct"]
        names = self._shown["output_names"]
        if value is None or not isinstance(value, (dict, list, tuple)):
            return value
        nested = keras.tree.is_nested(outputs)
        if nested and any(keras.tree.is_nested(o) for o in _values(outputs)):
            flat = keras.tree.flatten(value)
            same = len(flat) == len(tasks)
            return dict(zip(tasks, flat, strict=True)) if same else value
        if isinstance(value, dict):
            if not set(value) <= set(tasks) and set(value) <= set(names):
                return {tasks[names.index(name)]: v for name, v in value.items()}
            return value
        if nested and not isinstance(outputs, dict) and len(value) == len(tasks):
            return dict(zip(tasks, value, strict=True))
        return value

    def compile(self, *args: Any, **kwargs: Any) -> None:
        made.append("compile")
        names = ("optimizer", "loss", "loss_weights", "metrics", "weighted_metrics")
        kwargs |= dict(zip(names, args, strict=False))
        for name in names[1:]:
            if name in kwargs:
                kwargs[name] = self._by_task(kwargs[name])
        if kwargs.get("loss") is None:
            kwargs["loss"] = "mse"
        with self._as_tasks():
            super().compile(**kwargs)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if data_batch is None:
            for _, _, batches in iterator:
                data_batch = next(batches)
                break
        with self._as_tasks():
            super()._symbolic_build(data_batch=self._data_by_task(data_batch))

    def _data_by_task(self, data: Any) -> tuple[Any, Any, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return x, self._by_task(y), self._by_task(sample_weight)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains the outputs by task; logs what Keras logs."""
        made.append("train")
        with self._as_tasks():
            logs = super().train_step(self._data_by_task(data))
        for name in self._pipeline.logs():
            logs.pop(name)
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the outputs by task."""
        with self._as_tasks():
            return super().test_step(self._data_by_task(data))


def replace_models() -> None:
    """Has Keras build functional models as `MultiTaskModel`s."""
    from keras.src.models import functional, model, sequential

    def new_model(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            cls is model.Model
            and model.functional_init_arguments(args, kwargs)
            and not _is_ours(sys._getframe(1))
        ):
            return StandIn.__new__(StandIn, *args, **kwargs)
        return stock_model(cls, *args, **kwargs)

    def new_functional(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is functional.Functional and not _is_ours(sys._getframe(1)):
            return StandIn.__new__(StandIn, *args, **kwargs)
        return stock_functional(cls, *args, **kwargs)

    def new_sequential(cls: Any, layers: Any = None, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals["__name__"].rpartition(".")[2]
        if cls is sequential.Sequential and layers and caller in SHAPES:
            layers = list(layers)
            shape = (widths.pop(0),) if widths else SHAPES[caller]
            inputs = keras.Input(shape) if shape else None
            if isinstance(layers[0], keras.layers.InputLayer):
                inputs = layers.pop(0).output
            elif isinstance(layers[0], keras.KerasTensor):
                inputs = layers.pop(0)
            if inputs is not None:
                outputs = inputs
                for layer in layers:
                    outputs = layer(outputs)
                replaced = StandIn(inputs, outputs, *args, **kwargs)
                vars(replaced)["_sequential"] = True
                return replaced
        return stock_sequential(cls, layers, *args, **kwargs)

    stock_model = model.Model.__new__
    stock_functional = functional.Functional.__new__
    stock_sequential = sequential.Sequential.__new__
    model.Model.__new__ = new_model
    functional.Functional.__new__ = new_functional
    sequential.Sequential.__new__ = new_sequential


def replace_example_models(module: Any) -> None:
    """Gives the trainer's tests functional models for their layer-based ones."""

    def dense(units: int) -> keras.layers.Layer:
        return keras.layers.Dense(units, use_bias=False, kernel_initializer="ones")

    def entry(width: int) -> keras.KerasTensor:
        return keras.Input(
            (widths.pop(0) if widths else width,), sparse="sparse" in made
        )

    def example(units: int) -> keras.Model:
        x = entry(4)
        return keras.Model(x, dense(units)(x))

    def struct(units: int) -> keras.Model:
        x = {name: keras.Input((4,), name=name) for name in ("x_one", "x_two")}
        one, two = (dense(units)(x[name]) for name in ("x_one", "x_two"))
        return keras.Model(x, {"y_one": one, "y_two": two})

    def list_input(units: int) -> keras.Model:
        x = [entry(2), entry(2)]
        return keras.Model(x, dense(units)(x[0]) + dense(units)(x[1]))

    def list_output(units: int) -> keras.Model:
        x = entry(2)
        return keras.Model(x, [dense(units)(x), dense(units)(x)])

    module.ExampleModel = example
    module.StructModel = struct
    module.ListInputModel = list_input
    module.ListOutputModel = list_output


def pytest_configure(config: Any) -> None:
    tf.config.run_functions_eagerly("KERAS_SUITE_EAGER" in os.environ)
    for marker in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{marker}: of Keras's tests")
    if "jax" not in sys.modules:  # Imported by the trainer's tests, unused here.
        jax = types.ModuleType("jax")
        jax.__spec__ = importlib.machinery.ModuleSpec("jax", None)
        sys.modules["jax"] = jax
    if os.environ["KERAS_SUITE"] == "replaced":
        replace_models()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    import pytest

    recorded = read(pathlib.Path(os.environ["KERAS_SUITE_REPORT"]))
    items[:] = [item for item in items if item.nodeid not in recorded]
    for item in items:
        if item.get_closest_marker("multi_device"):
            item.add_marker(pytest.mark.skip(reason="needs several devices"))
    if os.environ["KERAS_SUITE"] == "replaced":
        for module in {item.module for item in items}:
            if module.__name__.endswith("trainer_test"):
                replace_example_models(module)


def pytest_runtest_setup(item: Any) -> None:
    made[:] = ["sparse"] if "_sparse_" in item.name else []
    widths[:] = WIDTHS.get(item.name, ())


def pytest_runtest_logreport(report: Any) -> None:
    """Writes one line for each test, when it is over."""
    if report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash else str(report.longrepr)
        outcomes.append((report.outcome, message.strip().partition("\n")[0]))
    if report.when == "teardown":
        outcome, message = outcomes[0] if outcomes else ("passed", "")
        outcomes.clear()
        done = sorted(set(made) - {"sparse"})
        entry = (report.nodeid, outcome, message, done)
        with open(os.environ["KERAS_SUITE_REPORT"], "a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


class Test(NamedTuple):
    """The outcome of one test, and what its stand-ins did."""

    name: str
    outcome: str
    message: str
    made: list[str]


def read(report: pathlib.Path) -> dict[str, Test]:
    """Returns the outcomes that a report holds, by name."""
    if not report.exists():
        return {}
    lines = report.read_text(encoding="utf-8").splitlines()
    tests = [Test(*json.loads(line)) for line in lines]
    return {test.name: test for test in tests}


def run(files: list[pathlib.Path], replaced: bool, report: pathlib.Path) -> None:
    """Runs Keras's tests in a process of its own, but for those in the report."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "KERAS_SUITE": "replaced" if replaced else "stock",
            "KERAS_SUITE_REPORT": str(report),
            "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path]),
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "keras_suite"]
        command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-c"]
        command += [os.devnull, f"--rootdir={SOURCES}", *map(str, files)]
        subprocess.run(command, cwd=folder, env=environment, check=False)


def explanation(name: str) -> tuple[str, str] | None:
    """Returns kind and reason of a failure, or None."""
    for pattern, explained in EXPLAINED.items():
        if fnmatch.fnmatch(name, f"*::{pattern}"):
            return explained
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--eager", action="store_true", help="without graphs")
    parser.add_argument("--resume", action="store_true", help="keep what has run")
    parser.add_argument("names", nargs="*", help="of files, such as models/model_test")
    arguments = parser.parse_args()
    mode = "eager" if arguments.eager else "graph"
    if arguments.eager:
        os.environ["KERAS_SUITE_EAGER"] = "1"
    names = arguments.names or FILES
    files = [SOURCES / f"{name}.py" for name in names]
    reports = [REPORTS / f"{mode}_{models}.jsonl" for models in ("stock", "replaced")]
    for report in reports:
        report.parent.mkdir(parents=True, exist_ok=True)
        if not arguments.resume:
            report.unlink(missing_ok=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(run, [files] * 2, (False, True), reports))
    stock, replaced = map(read, reports)
    by_file: dict[str, dict[str, int]] = {}
    failures, unexplained = [], []
    for name, test in stock.items():
        own = replaced[name]
        if test.outcome != "passed" or not (own.made or own.outcome == "failed"):
            continue
        file = name.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        counts = by_file.setdefault(file, {"tests": 0, "pass": 0})
        counts["tests"] += 1
        counts["pass"] += own.outcome == "passed"
        if own.outcome != "passed":
            kind, reason = explanation(name) or ("unexplained", own.message)
            failures.append({"test": name, "kind": kind, "reason": reason})
            if kind == "unexplained":
                unexplained.append(name)
    total = {key: sum(c[key] for c in by_file.values()) for key in ("tests", "pass")}
    result = {"made_with": made_with(), **total, "files": by_file}
    result["failures"] = failures
    print(json.dumps(result, indent=1))
    if names is FILES:
        results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        results[mode] = result
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
