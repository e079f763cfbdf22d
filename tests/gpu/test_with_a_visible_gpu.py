"""Decisions that depend on a visible GPU, on a machine that pretends to have one."""

from __future__ import annotations

import collections
import functools
import importlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import cross_device_ops
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

import mtl_keras
from mtl_keras import balancing, ops, serving
from mtl_keras.backbones.sequences import SequenceGRU
from mtl_keras.balancing.base import GramBalancer
from mtl_keras.compare.cell import GpuMemory
from mtl_keras.embeddings import LazyAdam, SparseEmbedding
from mtl_keras.errors import InputError
from mtl_keras.ops import native, solvers
from mtl_keras.runs import RunConfig, compiled_model, scheduler
from mtl_keras.serving.served_model import served_model
from mtl_keras.serving.signatures import signatures
from mtl_keras.serving.stock_ops import check_stock, nodes, without_cudnn
from mtl_keras_cli import doctor
from mtl_keras_cli import tensorflow as start


@pytest.fixture
def gpu(monkeypatch):
    """TensorFlow's lists of devices with a GPU at their end."""
    physical = context.PhysicalDevice("/physical_device:GPU:0", "GPU")
    logical = context.LogicalDevice("/device:GPU:0", "GPU")
    for name, device in (
        ("list_physical_devices", physical),
        ("get_visible_devices", physical),
        ("list_logical_devices", logical),
    ):
        listed = functools.partial(with_one_more, getattr(tf.config, name), device)
        monkeypatch.setattr(tf.config, name, listed)


def with_one_more(real, device, kind=None):
    return [*real(kind), *([device] if kind in (None, "GPU") else [])]


def recurrent_model():
    x = keras.Input((None, 5))
    features = SequenceGRU(3)(x)[:, 0]
    return mtl_keras.MultiTaskModel(
        x, {task: keras.layers.Dense(1, name=task)(features) for task in "ab"}
    )


def operations(function):
    return {node.op for node in nodes(function.graph.as_graph_def())}


@pytest.mark.skipif(not ops.native_available(), reason="no compiled ops")
@pytest.mark.usefixtures("gpu")
def test_solvers_run_compiled_and_task_gradients_stay_on_the_gpu():
    gradients = [[tf.ones((3,)) * task] for task in (1.0, 2.0)]

    @tf.function(autograph=False)
    def weights():
        return solvers.upgrad(ops.gramian(gradients))[0]

    with ops.implementation("auto"):
        names = operations(weights.get_concrete_function())
    assert [name for name in names if "MtlKeras" in name] == ["MtlKeras>UpGrad"]
    with ops.implementation("native"), pytest.raises(RuntimeError, match="no visible"):
        ops.gramian(gradients)


@pytest.mark.usefixtures("gpu")
def test_exports_hold_operations_with_cpu_kernels_alone(tmp_path):
    model = recurrent_model()
    traced = tf.function(model).get_concrete_function(tf.TensorSpec((None, 7, 5)))
    assert "CudnnRNNV3" in operations(traced)
    with pytest.raises(InputError, match="CudnnRNNV3"):
        check_stock("serving_default", traced, model)
    version = serving.export(model, tmp_path / "model")
    loaded = tf.saved_model.load(str(version)).signatures["serving_default"]
    assert not [name for name in operations(loaded) if "Cudnn" in name]
    answer = loaded(tf.zeros((2, 7, 5)))  # Which cuDNN could not give here.
    assert set(answer) == set("ab")
    assert all(layer.use_cudnn == "auto" for layer in gru_layers(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("application", "backbone"),
    [("vision", "rnn"), ("text", "rnn"), ("multimodal", None)],
)
@pytest.mark.usefixtures("gpu")
def test_applications_are_served_without_cudnn(application, backbone):
    config = RunConfig(application, backbone=backbone, width=8).validate()
    model = compiled_model(config, steps=1)
    model = config.get_application().serving_model(model)
    (default, *_) = signatures(served_model(model))
    with pytest.raises(InputError, match="CudnnRNNV3"):
        check_stock(default.name, default.function(), model)
    with without_cudnn([model]):
        function = default.function()
    check_stock(default.name, function, model)


@pytest.mark.parametrize(
    ("application", "backbone", "compiled"),
    [
        ("vision", "mlp", True),
        pytest.param("vision", "cnn", True, marks=pytest.mark.slow),
        pytest.param("vision", "rnn", False, marks=pytest.mark.slow),
        pytest.param("recommendation", None, False, marks=pytest.mark.slow),
        pytest.param("multimodal", None, False, marks=pytest.mark.slow),
        pytest.param("text", None, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_which_applications_xla_compiles_by_itself(application, backbone, compiled):
    config = RunConfig(application, backbone=backbone).validate()
    assert compiled_model(config, steps=10_000).jit_compile is compiled
    assert not compiled_model(config, steps=100).jit_compile


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_doctor_names_the_applications_that_xla_compiles():
    assert doctor._compiled_applications() == "on for vision, from 2,000 steps on"


# What TensorFlow runs anywhere, or not at all.
ANYWHERE = {"Placeholder", "NoOp", "Const", "While", "StatelessWhile", "If"}
ANYWHERE |= {"StatelessIf", "PartitionedCall", "StatefulPartitionedCall", "Case"}


@functools.cache
def gpu_kernels(op):
    """The kernels of an operation for GPUs, or for any device."""
    found = kernels.get_registered_kernels_for_op(op).kernel
    return [kernel for kernel in found if kernel.device_type in ("GPU", "DEFAULT")]


def has_gpu_kernel(node):
    """Whether one of these takes the operation's dtypes."""
    return any(
        all(
            node.attr[constraint.name].type in constraint.allowed_values.list.type
            for constraint in kernel.constraint
            if node.attr[constraint.name].WhichOneof("value") == "type"
        )
        for kernel in gpu_kernels(node.op)
    )


def convolutional_step(method, policy, optimizer=keras.optimizers.Adam, **compiling):
    """The graph of a step on a convolutional network with an embedding table."""
    keras.config.set_dtype_policy(policy)
    layers = keras.layers
    image, ids = keras.Input((8, 8, 3)), keras.Input((4,), dtype="int32")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Dropout(0.1)(layers.Dense(16, "gelu")(layers.Flatten()(x)))
    rows = layers.Flatten()(SparseEmbedding(50, 4)(ids))
    x = layers.Concatenate()([x, rows])
    heads = {t: layers.Dense(3, "softmax", dtype="float32", name=t)(x) for t in "abcd"}
    model = mtl_keras.MultiTaskModel([image, ids], heads)
    model.compile(
        optimizer(),
        loss="sparse_categorical_crossentropy",
        balancing=method,
        jit_compile=False,
        **compiling,
    )
    model.optimizer.build(model.trainable_variables)
    batch = [tf.ones((8, 8, 8, 3)), tf.ones((8, 4), "int32")]
    labels = {t: tf.zeros((8,), "int64") for t in "abcd"}
    weights = {t: tf.ones((8,)) for t in "abcd"}
    step = tf.function(model.train_step, autograph=False)
    return step.get_concrete_function((batch, labels, weights)).graph.as_graph_def()


# One method for each way to a step.
METHODS = ("equal", "graddrop", "sdmgrad", "trimmed_mean", "gradvac")
SLOW_STEPS = [
    *((name, "float32", {}) for name in METHODS),
    ("pcgrad", "mixed_float16", {}),
    ("pcgrad", "mixed_bfloat16", {}),
    ("upgrad", "float32", {"on_nonfinite": "skip_task", "task_clipnorm": 1.0}),
    (
        {"class_name": "upgrad", "config": {"update_every": 4}},
        "float32",
        {"monitor": "conflicts"},
    ),
]


@pytest.mark.parametrize(
    ("method", "policy", "compiling"),
    [
        ("upgrad", "float32", {"optimizer": LazyAdam}),
        *(pytest.param(*step, marks=pytest.mark.slow) for step in SLOW_STEPS),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_all_of_a_step_but_the_solver_has_kernels_for_gpus(method, policy, compiling):
    before = keras.config.dtype_policy()
    try:
        graph = convolutional_step(method, policy, **compiling)
    finally:
        keras.config.set_dtype_policy(before)
    elsewhere = {
        node.op
        for node in nodes(graph)
        if node.op not in ANYWHERE and not has_gpu_kernel(node)
    }
    assert {op for op in elsewhere if not op.startswith("MtlKeras>")} == set()
    data_sized = ("Task", "Combine", "Mix")
    assert not [op for op in elsewhere if any(part in op for part in data_sized)]


def test_memory_of_the_first_epoch_does_not_count(gpu, monkeypatch):
    """In it XLA and cuDNN try algorithms."""
    held = {"peak": 5e9}
    memory = tf.config.experimental
    monkeypatch.setattr(memory, "get_memory_info", lambda device: held)
    monkeypatch.setattr(memory, "reset_memory_stats", lambda _: held.update(peak=1e9))
    watched = GpuMemory()
    watched.on_epoch_begin(0)
    assert watched.peak_mb() == 5000.0
    watched.on_epoch_begin(1)
    held["peak"] = 2e9
    watched.on_epoch_begin(2)
    assert watched.peak_mb() == 2000.0


def gru_layers(model):
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, keras.layers.GRU)]


@pytest.mark.parametrize(
    "present", [[[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 1, 0]]], ids=["empty", "holes"]
)
def test_recurrent_stages_have_masks_that_cudnn_takes(present, monkeypatch):
    layer = SequenceGRU(2)
    x = np.array(present, "float32")[..., None] * np.ones(4, "float32")
    layer(x)
    masks = []
    call = layer.gru.call

    def watched(sequences, mask=None, **kwargs):
        masks.append(mask)
        return call(sequences, mask=mask, **kwargs)

    monkeypatch.setattr(layer.gru, "call", watched)
    output = layer(x)
    # Of that name Keras exports a function.
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    rnn._assert_valid_mask(masks[0])
    assert not np.any(output.numpy()[np.array(present) == 0])


@pytest.mark.parametrize("solver", ["pcgrad", "gradvac"])
def test_loops_of_known_length_have_a_trip_count_under_xla(solver):
    orders = tf.constant([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    arguments = {"orders": orders}
    if solver == "gradvac":
        arguments["goals"] = tf.zeros((4, 4))

    @tf.function(jit_compile=True, autograph=False)
    def solve(gramian):
        return getattr(solvers, solver)(gramian, **arguments)

    rows = np.random.default_rng(0).normal(size=(4, 6))
    gramian = tf.constant(rows @ rows.T)
    text = solve.experimental_get_compiler_ir(gramian)(stage="optimized_hlo")
    loops = [line for line in text.splitlines() if " while(" in line]
    assert all("known_trip_count" in line for line in loops)


def test_loops_over_the_tasks_of_a_group_have_a_trip_count_under_xla():
    inputs = keras.Input((5,))
    h = keras.layers.Dense(4, "tanh")(inputs)
    model = mtl_keras.MultiTaskModel(inputs, {"all": keras.layers.Dense(3)(h)})
    columns = {"all": ["a", "b", "c"]}
    model.compile("sgd", "mse", balancing="mgda", columns=columns, jit_compile=True)
    batch = tf.ones((8, 5)), {"all": tf.ones((8, 3))}
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    text = step.experimental_get_compiler_ir(batch)(stage="optimized_hlo")
    loops = [line for line in text.splitlines() if " while(" in line]
    assert loops
    assert all("known_trip_count" in line for line in loops)


def test_sparse_gradients_have_neither_loops_nor_dynamic_shapes_under_xla():
    variable = tf.Variable(tf.ones((50, 3)))
    optimizer = LazyAdam()
    optimizer.build([variable])

    @tf.function(jit_compile=True, autograph=False)
    def step(values, indices):
        pairs = zip(tf.unstack(values), tf.unstack(indices), strict=True)
        rows = [[tf.IndexedSlices(v, i, tf.constant([50, 3]))] for v, i in pairs]
        optimizer.apply(ops.combine(tf.ones(2), rows), [variable])
        return ops.gramian(rows)

    arguments = tf.ones((2, 8, 3)), tf.ones((2, 8), "int32")
    program = step.experimental_get_compiler_ir(*arguments)
    text = program(stage="hlo")
    assert [word for word in (" while(", "<=") if word in text] == []
    # The sizes that TensorFlow's sorting sets are those that are there.
    assert "dimension-size" not in program(stage="optimized_hlo")


def step_in_hlo(method, num_tasks):
    """The HLO of a step on two shared layers, before XLA optimises it."""
    inputs = keras.Input((5,))
    h = keras.layers.Dense(4, "tanh")(keras.layers.Dense(6, "tanh")(inputs))
    tasks = [f"t{i}" for i in range(num_tasks)]
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1, name=task)(h) for task in tasks}
    )
    model.compile("sgd", loss="mse", balancing=method, jit_compile=True)
    batch = tf.ones((8, 5)), {task: tf.ones((8, 1)) for task in tasks}
    model.optimizer.build(model.trainable_variables)
    model.train_step(batch)  # Creates what is left of its variables.
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    return step.experimental_get_compiler_ir(batch)(stage="hlo")


def instructions(text):
    return sum(" = " in line for line in text.splitlines() if line.startswith("  "))


class Mean(GramBalancer):
    """The Gram matrix and a combination with constant weights: no solver."""

    def weights(self, gramian, precision=0.0):
        return tf.fill([gramian.shape[0]], 1.0 / gramian.shape[0])


@pytest.mark.skipif(
    not native.custom_calls_available(), reason="built without XLA's headers"
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "cagrad" else pytest.mark.slow)
        for name in balancing.names()
        if isinstance(balancing.get(name), GramBalancer)
    ],
)
def test_solvers_add_little_to_the_step_that_xla_compiles(name):
    slow = [" while(", "Eigh", "<="]
    if name != "auxinash":  # Which solves one linear system for its preferences.
        slow += [" cholesky(", " triangular-solve("]
    sizes = []
    for num_tasks in (4, 8):
        text = step_in_hlo(name, num_tasks)
        assert [operation for operation in slow if operation in text] == []
        sizes.append(instructions(text))
    method = balancing.get(name)
    if not (method.num_sub_batches or method.needs_probe or method.aligns_heads):
        assert sizes[1] <= 1.15 * instructions(step_in_hlo(Mean(), 8))


def ancestors(tensors):
    """All operations that these tensors wait for."""
    met, left = set(), [tensor.op for tensor in tensors]
    while left:
        operation = left.pop()
        if operation not in met:
            met.add(operation)
            left += [tensor.op for tensor in operation.inputs]
            left += operation.control_inputs
    return met


@pytest.mark.parametrize(
    ("method", "sums"), [("upgrad", {1: 1, 4: 3, 6: 1}), ("equal", {10: 1})]
)
def test_replicas_sum_each_gradient_once(method, sums, mirrored, monkeypatch):
    calls = collections.defaultdict(list)
    reduce = cross_device_ops.CrossDeviceOps.batch_reduce

    def counted(self, operation, pairs, options=None):
        pairs = list(pairs)
        summed = reduce(self, operation, pairs, options)
        # Others sum flags and totals, vectors of their own.
        if any(value.values[0].shape.rank == 2 for value, _ in pairs):
            given = [tensor for value, _ in pairs for tensor in value.values]
            calls[len(pairs)].append((given, summed[0].values))
        return summed

    monkeypatch.setattr(cross_device_ops.CrossDeviceOps, "batch_reduce", counted)
    with mirrored.scope():
        inputs = keras.Input((5,))
        h = keras.layers.Dense(4)(keras.layers.Dense(6, "tanh")(inputs))
        model = mtl_keras.MultiTaskModel(
            inputs, {t: keras.layers.Dense(1, name=t)(h) for t in "abc"}
        )
        model.compile("adam", loss="mse", balancing=method)
    model.fit(np.ones((8, 5)), {t: np.ones((8, 1)) for t in "abc"}, verbose=0)
    # The Gram matrix, each task's gradients on four shared variables, and those of the
    # heads.
    assert {number: len(of_it) for number, of_it in calls.items()} == sums
    # A task's sum does not wait for the gradients of later tasks, nor these for it.
    for (_, summed), (later, _) in itertools.combinations(calls[4], 2):
        assert not {t.op for t in later} & ancestors(summed)
        assert not {t.op for t in summed} & ancestors(later)
    # All that weights are solved for does.
    for gramian, _ in calls[1]:
        assert all({t.op for t in given} <= ancestors(gramian) for given, _ in calls[4])


@pytest.mark.parametrize(
    ("visible", "slot", "name"),
    [(None, 1, "0"), ("3", 1, "3"), ("GPU-a, GPU-b", 1, "GPU-b"), ("0, 2", 2, "0")],
)
def test_workers_are_given_one_gpu_each(visible, slot, name, gpu, monkeypatch):
    number = 1 if visible is None else len(visible.split(","))
    devices = tf.config.list_physical_devices("GPU") * number
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    share = scheduler.share_of(slot, 3)
    assert share["CUDA_VISIBLE_DEVICES"] == name
    assert share["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert int(share["TF_NUM_INTRAOP_THREADS"]) >= 1


def test_lines_about_a_gpu_that_cannot_be_used_are_shown(monkeypatch):
    line = "W0000 00:00:00.1 1 gpu_device.cc:1] Cannot dlopen some GPU libraries."
    monkeypatch.setattr(start, "has_gpu", lambda: False)
    assert start.is_noise(line)
    monkeypatch.setattr(start, "has_gpu", lambda: True)
    assert not start.is_noise(line)
    assert start.is_noise("I0000 00:00:00.1 1 port.cc:1] oneDNN is on.")


def test_native_choice_outside_of_a_gpu_is_for_all_ops():
    with ops.implementation("auto"):
        assert native.in_use() is native.solvers_in_use()
