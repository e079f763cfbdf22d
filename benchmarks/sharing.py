"""Times, sizes and drawings of the ways to share.

    python benchmarks/sharing.py times     forward and backward of MMoE against loops
    python benchmarks/sharing.py limits    parts of MMoE, and rates of the machine
    python benchmarks/sharing.py sizes     parameters and operations of every way
    python benchmarks/sharing.py drawings  docs/images/sharing/<name>.png

The first three write benchmarks/results/sharing_<what>.json.

Times: 8 experts, 2 tasks, batch 1024. `loop over pairs` computes an expert where a task
uses it, one small layer for each of the T x E pairs; `loop over experts` computes each
expert once and stacks them. Both are stock Keras layers. All are traced first and take
turns in one run. Limits: the same in processor time, which other processes on the
machine change little, beside parts of it: a call that does nothing, the two products of
forward and backward alone, experts without gates, gates without experts; and the rates
of one large product and of one large copy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import mtl_keras
from mtl_keras import backbones, sharing
from mtl_keras.model.keras_compat import graph_nodes
from mtl_keras.model.task_variables import split_variables
from mtl_keras.runs.records import versions
from mtl_keras.sharing.base import copy_stage
from mtl_keras.sharing.experts import Experts

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DRAWINGS = ROOT / "docs" / "images" / "sharing"
EXPERTS, BATCH, ROUNDS = 8, 1024, 100
ESMM = {
    "class_name": "esmm",
    "config": {"click": "a", "conversion": "b", "click_and_conversion": "c"},
}


def dense(*units: int) -> keras.layers.Layer:
    """Returns an expert of dense layers."""
    layers = [keras.layers.Dense(count, "relu") for count in units]
    return keras.Sequential(layers, name="stage")


def normalised() -> keras.layers.Layer:
    """Returns an expert with normalisation and dropout."""
    return keras.Sequential(
        [
            keras.layers.Dense(32),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.1),
        ],
        name="stage",
    )


# Width of the inputs, and the expert. The first is of the size in the MMoE paper.
KINDS = {
    "100 inputs, dense 16": (100, lambda: dense(16)),
    "16 inputs, dense 16": (16, lambda: dense(16)),
    "100 inputs, dense 64": (100, lambda: dense(64)),
    "100 inputs, dense 32 and 16": (100, lambda: dense(32, 16)),
    "100 inputs, dense 32, batch normalisation, dropout": (100, normalised),
}


def loop(stage: Callable, inputs: keras.KerasTensor, once: bool) -> dict:
    """Returns MMoE's features as a loop over small layers makes them."""
    experts = [copy_stage(stage(), f"expert_{index}") for index in range(EXPERTS)]
    known = [expert(inputs) for expert in experts] if once else []
    features = {}
    for task in "ab":
        gate = keras.layers.Dense(EXPERTS, "softmax", use_bias=False)(inputs)
        if once:
            stacked = ops.stack(known, axis=1)
            features[task] = ops.sum(ops.expand_dims(gate, -1) * stacked, axis=1)
            continue
        parts = [e(inputs) * gate[:, i : i + 1] for i, e in enumerate(experts)]
        features[task] = keras.layers.Add()(parts)
    return features


def compiled(model: keras.Model, x: tf.Tensor, jit_compile: bool = False) -> Callable:
    """Returns a graph of forward and backward."""

    @tf.function(jit_compile=jit_compile)
    def step():
        with tf.GradientTape() as tape:
            outputs = model(x, training=True).values()
            loss = tf.add_n([tf.reduce_mean(tf.square(y)) for y in outputs])
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return step.get_concrete_function()


def processor_ms(steps: dict[str, Callable], rounds: int, calls: int) -> dict:
    """Returns the median of processor time of a call, in ms, of steps in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name in list(steps)[:: 1 if round_ % 2 else -1]:
            begin = time.process_time()
            for _ in range(calls):
                for value in steps[name]():
                    value.numpy()
            if round_ >= 1:
                taken[name].append(1e3 * (time.process_time() - begin) / calls)
    return {name: float(np.median(values)) for name, values in taken.items()}


def limits(width: int, units: int) -> dict[str, float]:
    """Returns processor times of MMoE, of the loop and of parts, and its operations."""
    inputs, x = keras.Input((width,)), tf.random.normal((BATCH, width), seed=0)
    wide = tf.Variable(tf.random.normal((width, EXPERTS * units), seed=1))
    upstream = tf.random.normal((BATCH, EXPERTS * units), seed=2)

    @tf.function
    def nothing():
        return [tf.zeros(())]

    @tf.function
    def products():
        return tf.matmul(x, wide), tf.matmul(x, upstream, transpose_a=True)

    gate = sharing.MMoE(EXPERTS).gate
    parts = {
        "together": sharing.MMoE(EXPERTS)(inputs, [dense(units)], ["a", "b"]),
        "loop over experts": loop(lambda: dense(units), inputs, once=True),
        "experts alone": {"a": Experts(dense(units), EXPERTS)(inputs)},
        "gates alone": {task: gate(f"{task}_gate")(inputs) for task in "ab"},
    }
    steps = {n: compiled(keras.Model(inputs, f), x) for n, f in parts.items()}
    steps |= {
        "a call alone": nothing.get_concrete_function(),
        "products alone": products.get_concrete_function(),
    }
    calls = 15 if width < 200 else 2
    return {
        "processor_ms": processor_ms(steps, 20, calls),
        "operations_of_products": 2 * 2 * BATCH * width * EXPERTS * units,
        "bytes": 4 * (BATCH * width + 2 * EXPERTS * units * (width + BATCH)),
    }


def rates() -> dict[str, float]:
    """Returns operations and bytes a second of one core, in 1e9."""
    size = 1024
    square = tf.random.normal((size, size), seed=0)

    @tf.function
    def product():
        return [tf.matmul(square, square)]

    source = np.ones(2**24, "float32")
    target = np.empty_like(source)

    def copy():
        np.copyto(target, source)
        return []

    taken = processor_ms({"product": product, "copy": copy}, 10, 2)
    return {
        "operations": 2 * size**3 / taken["product"] / 1e6,
        "bytes": 2 * source.nbytes / taken["copy"] / 1e6,
    }


def times(width: int, stage: Callable, jit_compile: bool) -> dict[str, float]:
    """Returns median times of forward and backward, in ms."""
    inputs = keras.Input((width,))
    features = {
        "together": sharing.MMoE(EXPERTS)(inputs, [stage()], ["a", "b"]),
        "loop over experts": loop(stage, inputs, once=True),
        "loop over pairs": loop(stage, inputs, once=False),
    }
    x = tf.random.normal((BATCH, width), seed=0)
    steps = {
        n: compiled(keras.Model(inputs, f), x, jit_compile) for n, f in features.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 3):
        for name in list(steps)[:: 1 if round_ % 2 else -1]:
            begin = time.perf_counter()
            for gradient in steps[name]():
                gradient.numpy()
            if round_ >= 3:
                taken[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(values)) for name, values in taken.items()}


def model_of(name: str, inputs, stages) -> mtl_keras.MultiTaskModel:
    """Returns a model of three tasks whose outputs are the features' means."""
    way = sharing.get(ESMM if name == "esmm" else name)
    features = way(inputs, stages, ["a", "b", "c"])
    outputs = {
        task: keras.layers.Activation("linear", name=f"{task}_head")(x)
        for task, x in features.items()
    }
    return mtl_keras.MultiTaskModel(inputs, way.connect_outputs(outputs))


def operations(model: keras.Model) -> int:
    """Returns floating-point operations of one sample's forward pass."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    spec = tf.TensorSpec((1, *model.input_shape[1:]), "float32")
    function = tf.function(lambda x: model(x, training=False))
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(spec))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(frozen.graph, options=options)
    return int(profile.total_float_ops)


def sizes() -> dict[str, dict[str, dict[str, float]]]:
    """Returns parameters and operations of each way, and their ratios to hard."""
    result: dict = {}
    for backbone, shape, width in (("mlp", (100,), 64), ("cnn", (36, 36, 1), 16)):
        table = result.setdefault(f"{backbone}, width {width}, depth 3", {})
        for name in ["hard", *(n for n in sharing.names() if n != "hard")]:
            stages = backbones.get(backbone)(width, 3)
            model = model_of(name, keras.Input(shape), stages)
            row = {"parameters": model.count_params(), "flops": operations(model)}
            table[name] = row
            for key in ("parameters", "flops"):
                row[f"{key}_ratio"] = round(row[key] / table["hard"][key], 2)
    return result


def draw(name: str, target: pathlib.Path) -> None:
    """Draws the graph of two stages, coloured by the task that a part belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inputs = keras.Input((4,), name="input")
    stages = [keras.layers.Dense(4, name=f"stage_{i}") for i in (0, 1)]
    model = model_of(name, inputs, stages)
    loss = dict.fromkeys("abc", "mse")
    if name == "esmm":
        loss["b"] = None
    model.compile("sgd", loss=loss)
    split = split_variables(model, model._reached)
    owner = {id(v): task for task, own in split.own.items() for v in own}
    nodes = graph_nodes(model)
    depth: dict[int, int] = {}
    for node in nodes:
        level = 1 + max((depth[id(t)] for t in node.inputs), default=-1)
        depth |= {id(t): level for t in node.outputs}
    columns: dict[int, list] = {}
    for node in nodes:
        columns.setdefault(depth[id(node.outputs[0])], []).append(node)
    tallest = max(map(len, columns.values()))
    place = {}
    for level, members in columns.items():
        members.sort(key=lambda node: node.operation.name)
        for row, node in enumerate(members):
            y = (tallest - len(members)) / 2 + row
            place |= {id(t): (2.2 * level, -y) for t in node.outputs}
    figure = Figure(figsize=(1.45 * len(columns), 0.42 * tallest + 0.2), dpi=80)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    colours = {"a": "#cfe2f3", "b": "#fce5cd", "c": "#d9ead3"}
    for node in nodes:
        x, y = place[id(node.outputs[0])]
        for source in node.inputs:
            start = place[id(source)]
            axis.plot([start[0], x], [start[1], y], color="0.6", lw=0.7, zorder=0)
        variables = getattr(node.operation, "trainable_variables", [])
        owners = {owner.get(id(v), "shared") for v in variables}
        colour = colours.get(owners.pop(), "#d0d0d0") if owners else "white"
        axis.text(
            x,
            y,
            node.operation.name.replace("_", " "),
            ha="center",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "round", "fc": colour, "ec": "0.4", "lw": 0.6},
        )
    axis.set_xlim(-1.2, 2.2 * (len(columns) - 1) + 1.2)
    axis.set_ylim(-tallest + 0.4, 0.6)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["times", "limits", "sizes", "drawings"])
    what = parser.parse_args().what
    if what == "drawings":
        for name in sharing.names():
            draw(name, DRAWINGS / f"{name}.png")
        return
    report: dict = {"command": f"python benchmarks/sharing.py {what}"}
    report["versions"] = versions()
    report["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    if what == "sizes":
        report["sizes"] = sizes()
    elif what == "limits":
        report["compiled_ops"] = mtl_keras.ops.native_available()
        report["billions_a_second_of_one_core"] = rates()
        for width, units in ((100, 16), (512, 64)):
            report[f"{width} inputs, dense {units}"] = limits(width, units)
    else:
        report["compiled_ops"] = mtl_keras.ops.native_available()
        for jit_compile, (kind, (width, stage)) in itertools.product(
            (False, True), KINDS.items()
        ):
            median = times(width, stage, jit_compile)
            report[f"{kind}{', XLA' if jit_compile else ''}"] = {
                "median_ms": median,
                "speed_up": {
                    name: value / median["together"]
                    for name, value in median.items()
                    if name != "together"
                },
            }
    text = json.dumps(report, indent=2) + "\n"
    (RESULTS / f"sharing_{what}.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
