"""Ways to share against known answers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from sharing_cases import (
    BACKBONES,
    TASKS,
    assert_same,
    batch,
    convolutional,
    dense,
    functional,
    model_of,
    outputs_of,
)

from mtl_keras import balancing
from mtl_keras import sharing as sharing_lib
from mtl_keras.errors import InputError
from mtl_keras.model.task_variables import split_variables
from mtl_keras.sharing.experts import Experts


def spec(name, **config):
    return {"class_name": name, "config": config}


def copy_weights(source, target):
    """Copies a layer's weights, whatever way they are laid out side by side."""
    target.set_weights(
        [
            w.reshape(v.shape)
            for w, v in zip(source.get_weights(), target.get_weights(), strict=True)
        ]
    )


def copy_by_name(source, target, names):
    """Copies each of the target's layers from its namesake, or `names`' one."""
    for layer in target.layers:
        if layer.weights and names.get(layer.name, layer.name) is not None:
            copy_weights(source.get_layer(names.get(layer.name, layer.name)), layer)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mmoe_with_one_expert_is_hard_sharing(backbone):
    hard = functional("hard", *backbone())
    one = functional(spec("mmoe", num_experts=1), *backbone())
    gates = dict.fromkeys([f"{task}_gate" for task in TASKS])
    copy_by_name(hard, one, {"experts": "last", **gates})
    x, _ = batch(hard)
    assert_same(outputs_of(hard, x), outputs_of(one, x))


def test_mmoe_against_numpy():
    """Dense experts and softmax gates, computed by hand."""
    model = functional(spec("mmoe", num_experts=3), *dense())
    x, _ = batch(model)

    def weights(name):
        return model.get_layer(name).get_weights()

    kernel, bias = weights("stem")
    trunk = np.maximum(x @ kernel + bias, 0.0)
    kernel, bias = (np.split(w, 3, axis=-1) for w in weights("experts"))
    experts = np.stack(
        [np.maximum(trunk @ k + b, 0.0) for k, b in zip(kernel, bias, strict=True)], 1
    )
    outputs = outputs_of(model, x)
    for task in TASKS:
        logits = trunk @ weights(f"{task}_gate")[0]
        gate = np.exp(logits - logits.max(1, keepdims=True))
        gate /= gate.sum(1, keepdims=True)
        kernel, bias = weights(f"{task}_head")
        expected = np.einsum("be,bed->bd", gate, experts) @ kernel + bias
        np.testing.assert_allclose(
            outputs[task], 1 / (1 + np.exp(-expected)), rtol=1e-4, atol=1e-5
        )


def tower():
    return keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(5, "tanh", kernel_initializer="he_normal"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4, use_bias=False, kernel_initializer="he_normal"),
            keras.layers.Activation("gelu"),
        ]
    )


def image_block():
    return keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
        ]
    )


@pytest.mark.parametrize(
    ("stage", "shape"), [(tower, (3, 4)), (image_block, (7, 6, 2))]
)
def test_grouped_experts_equal_single_stages(stage, shape):
    experts = Experts(stage(), 3)
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
    together = np.asarray(experts(x, training=True))
    assert experts.wide
    for index in range(3):
        single = stage()
        single.build((None, *shape))
        single.set_weights(
            [
                np.split(w, 3, axis=-1)[index]
                for w in map(np.asarray, experts.get_weights())
            ]
        )
        fresh = [w for w in single.weights if "moving" in w.name]
        for moving in fresh:  # back to before the step
            moving.assign(np.full(moving.shape, "variance" in moving.name, "float32"))
        np.testing.assert_allclose(
            together[..., index, :], single(x, training=True), rtol=1e-4, atol=1e-5
        )


def test_wide_kernels_are_drawn_as_if_experts_stood_alone():
    layer = keras.layers.Dense(
        50, kernel_initializer=keras.initializers.GlorotUniform(seed=3)
    )
    experts = Experts(layer, 4)
    experts.build((None, 10))
    parts = np.split(experts.get_weights()[0], 4, axis=-1)
    limit = np.sqrt(6 / (10 + 50))
    assert all(0.9 * limit < np.abs(part).max() <= limit for part in parts)
    assert not np.allclose(parts[0], parts[1])


def test_ple_without_private_experts_is_mmoe():
    mmoe = functional(spec("mmoe", num_experts=3), *dense())
    config = {"num_shared_experts": 3, "num_task_experts": 0, "num_levels": 1}
    ple = functional(spec("ple", **config), *dense())
    copy_by_name(mmoe, ple, {"shared_experts": "experts"})
    x, _ = batch(mmoe)
    assert_same(outputs_of(mmoe, x), outputs_of(ple, x))


def test_omoe_is_mmoe_with_equal_gates():
    omoe, mmoe = functional("omoe", *dense()), functional("mmoe", *dense())
    copy_by_name(omoe, mmoe, dict.fromkeys([f"{t}_gate" for t in TASKS], "gate"))
    x, _ = batch(mmoe)
    assert_same(outputs_of(omoe, x), outputs_of(mmoe, x))


def test_cross_stitch_at_identity_is_independent_columns():
    stitched = functional(spec("cross_stitch", own_weight=1.0), *convolutional())
    x, _ = batch(stitched)
    outputs = outputs_of(stitched, x)
    for task in TASKS:
        inputs, stages = convolutional()
        alone = functional("hard", inputs, stages, [task])
        copy_by_name(stitched, alone, {s.name: f"{task}_{s.name}" for s in stages})
        assert_same(outputs_of(alone, x), outputs)


@pytest.mark.parametrize("own_stages", [1, {"a": 1, "c": 4, "unknown": 2}])
def test_hard_sharing_with_stages_of_their_own_is_one_stage_and_towers(own_stages):
    model = functional(spec("hard", own_stages=own_stages), *convolutional())
    x, _ = batch(model)
    outputs = outputs_of(model, x)
    for task in TASKS:
        own = own_stages == 1 or task in own_stages
        inputs, stages = convolutional()
        alone = functional("hard", inputs, stages, [task])
        copy_by_name(model, alone, {"last": f"{task}_last" if own else "last"})
        assert_same(outputs_of(alone, x), outputs)
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)


def test_esmm_multiplies_probabilities_and_leaves_conversion_to_the_product():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of("esmm", dense)
    finally:
        keras.config.set_dtype_policy("float32")
    x, _ = batch(model, 64)
    outputs = outputs_of(model, x)
    np.testing.assert_allclose(outputs["c"], outputs["a"] * outputs["b"], atol=1e-6)
    assert model.tasks == ["a", "c"]
    assert not any(layer.name == "c_head" for layer in model.layers)
    split = split_variables(model, model._reached)
    assert {v.path.split("/")[0] for v in split.own["c"]} == {
        "b_stem",
        "b_last",
        "b_head",
    }


def test_aitm_penalises_steps_likelier_than_the_one_before():
    model = functional(spec("aitm", chain=["a", "c"], strength=0.6), *dense())
    x, _ = batch(model)
    outputs = outputs_of(model, x)
    excess = np.maximum(outputs["c"] - outputs["a"], 0.0)
    assert excess.any()
    np.testing.assert_allclose(float(sum(model.losses)), 0.6 * excess.mean(), rtol=1e-5)


def test_aitm_without_a_chain_has_one_order():
    """Features and calibration follow the tasks, in whatever order outputs come."""
    sharing = sharing_lib.get(spec("aitm"))
    inputs, stages = dense()
    features = sharing(inputs, stages, ["c", "a", "b"])
    heads = {t: keras.layers.Dense(1, "sigmoid")(features[t]) for t in TASKS}
    outputs = sharing.connect_outputs(heads)
    for earlier, later in (("c", "a"), ("a", "b")):
        calibrator = outputs[later]._keras_history.operation
        pair = calibrator._inbound_nodes[0].input_tensors
        assert [id(t) for t in pair] == [id(heads[earlier]), id(heads[later])]
    assert outputs["c"] is heads["c"]
    with pytest.raises(InputError, match="chain"):
        sharing(inputs, stages, ["a", "b", "c"])
    with pytest.raises(InputError, match="chain"):
        sharing_lib.get("aitm").connect_outputs(heads)


@pytest.mark.parametrize("chain", ["ab", ["a", "b", "a"]])
def test_aitm_takes_a_list_of_different_tasks(chain):
    with pytest.raises(InputError, match="different tasks"):
        sharing_lib.get(spec("aitm", chain=chain))


def test_dselect_k_ends_with_exactly_k_experts():
    inputs, stages = dense()
    model = functional(
        spec("dselect_k", num_experts=6, k=2, entropy=1.0), inputs, stages
    )
    gates = [model.get_layer(f"{task}_gate") for task in TASKS]
    optimizer = keras.optimizers.Adam(0.02)
    x, y = batch(model)
    bits = [v for gate in gates for v in gate.trainable_variables]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = sum(tf.reduce_mean((outputs[t] - y[t]) ** 2) for t in TASKS)
            loss += tf.add_n(model.losses)
        gradients = tape.gradient(loss, [v.value for v in bits])
        optimizer.apply(gradients, bits)

    optimizer.build(bits)
    for _ in range(150):
        step()
    for gate in gates:
        weights = np.asarray(gate(np.zeros((2, 8), "float32")))
        assert (weights > 0).sum(axis=1).tolist() == [2, 2]
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


def test_branching_is_cut_down_to_its_choices(tmp_path):
    model = functional("branching", *convolutional())
    rng = np.random.default_rng(4)
    choices = {}
    for layer in model.layers:
        if hasattr(layer, "chosen"):
            layer.logits.assign(rng.normal(size=layer.logits.shape))
            choices[layer.name] = layer.chosen
    model.get_layer("c_branch").logits.assign(model.get_layer("a_branch").logits)
    hard = sharing_lib.hard_branches(model)
    x, _ = batch(model)
    assert_same(outputs_of(model, x), outputs_of(hard, x), rtol=1e-6)
    # One path of two stages for each task, by hand.
    for task in TASKS:
        last = model.get_layer(f"{task}_branch").chosen
        first = model.get_layer(f"last_{last}_parent").chosen
        y = model.get_layer(f"stem_{first}")(x)
        y = keras.layers.Flatten()(model.get_layer(f"last_{last}")(y))
        expected = model.get_layer(f"{task}_head")(y)
        np.testing.assert_allclose(outputs_of(hard, x)[task], expected, rtol=1e-5)
    kept = {layer.name for layer in hard.layers}
    assert not any(hasattr(layer, "chosen") for layer in hard.layers)
    assert len([n for n in kept if n.startswith("last_")]) == len(
        {model.get_layer(f"{task}_branch").chosen for task in TASKS}
    )
    keras.Model(hard.inputs, hard.output).export(tmp_path / "hard", verbose=False)
    assert type(hard) is type(model)


SHARED = "shared"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hard", {"last": SHARED, "a_head": "a"}),
        (spec("hard", own_stages={"a": 2}), {"stem": SHARED, "a_last": "a"}),
        ("mmoe", {"experts": SHARED, "a_gate": "a", "b_gate": "b"}),
        ("omoe", {"experts": SHARED, "gate": SHARED, "a_head": "a"}),
        ("dselect_k", {"experts": SHARED, "a_gate": "a"}),
        ("cgc", {"shared_experts": SHARED, "a_experts": "a", "b_gate": "b"}),
        (
            "ple",
            {
                "a_experts_0": SHARED,  # the shared gate reads them
                "shared_gate_0": SHARED,
                "a_gate_0": "a",
                "a_experts_1": "a",
                "shared_experts_1": SHARED,
                "b_gate_1": "b",
            },
        ),
        ("cross_stitch", {"a_last": SHARED, "a_stitch_0": SHARED, "a_stitch_1": "a"}),
        ("sluice", {"a_last": SHARED, "a_stitch_0": SHARED, "a_layers": "a"}),
        ("mtan", {"last": SHARED, "a_attention_0": "a", "b_attention_1": "b"}),
        ("branching", {"last_0": SHARED, "last_0_parent": SHARED, "a_branch": "a"}),
        (
            "aitm",
            {"a_last": SHARED, "a_head": "a", "b_transfer": SHARED, "c_last": "c"},
        ),
    ],
)
def test_shared_and_private_parts_are_split(name, parts):
    model = model_of(name, dense)
    split = split_variables(model, model._reached)
    assert not split.unused
    owners = {id(v): SHARED for v in split.shared}
    owners |= {id(v): task for task, own in split.own.items() for v in own}
    for part, owner in parts.items():
        owned_by = {owners[id(v)] for v in model.get_layer(part).trainable_variables}
        assert owned_by == {owner}, part


GRAM = [
    name
    for name in balancing.names()
    if isinstance(balancing.get(name), balancing.GramBalancer)
]
SHARINGS = sharing_lib.names()
# Balancers see gradients and no layers: each of both sides once is enough.
PAIRS = [
    (SHARINGS[i % len(SHARINGS)], GRAM[i % len(GRAM)])
    for i in range(max(len(SHARINGS), len(GRAM)))
]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_gram_balancers_train_it(name, method):
    tasks = TASKS
    if method == "krum":  # its default takes four tasks, this one three
        method = spec("krum", n_byzantine=0)
        if name == "esmm":  # of whose tasks one has no loss
            tasks = [*TASKS, "d"]
    model = model_of(name, dense, tasks, balancing=method, run_eagerly=True)
    x, y = batch(model)
    before = [v.numpy() for v in model.trainable_variables]
    losses = model.fit(x, y, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, variable.numpy()), variable.path
