"""Fusions: the inputs that they may and may not depend on."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtl_keras import fusion
from mtl_keras.errors import InputError

UNITS, RESULT = 8, 12


def features(seed, count=3, batch=7):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, UNITS)).astype("float32") for _ in range(count)]


def masks(*rows):
    return [np.array(column, bool) for column in zip(*rows, strict=True)]


def everything():
    """All presence masks of 3 modalities, but for that without any."""
    return masks(*(tuple(map(int, f"{n:03b}")) for n in range(1, 8)))


@pytest.fixture(params=fusion.names())
def layer(request):
    made = fusion.get(request.param)(RESULT)
    made(features(0), everything())
    for weight in made.trainable_weights:  # biases too
        weight.assign(np.random.default_rng(1).normal(0, 0.5, weight.shape))
    return made


def test_absent_features_do_not_matter(layer):
    present = everything()
    x, other = features(1), features(2)
    mixed = [
        np.where(mask[:, None], a, np.nan * b)
        for a, b, mask in zip(x, other, present, strict=True)
    ]
    np.testing.assert_array_equal(layer(mixed, present), layer(x, present))


def test_each_present_modality_matters(layer):
    present = masks(*[(1, 1, 1)] * 7)
    x = features(1)
    base = np.array(layer(x, present))
    for index in range(3):
        changed = list(x)
        changed[index] = features(3)[index]
        assert np.all(np.any(layer(changed, present) != base, axis=1))


def test_absence_differs_from_zero_features(layer):
    if layer.method == "gated":
        pytest.skip("gates say how much of a modality counts, not whether it is there")
    x = features(1)
    x[0] = np.zeros_like(x[0])
    present, absent = masks(*[(1, 1, 1)] * 7), masks(*[(0, 1, 1)] * 7)
    assert np.all(np.any(np.array(layer(x, present)) != layer(x, absent), axis=1))


def test_nothing_present_is_finite(layer):
    result = np.array(layer(features(1), masks(*[(0, 0, 0)] * 7)))
    assert np.isfinite(result).all()
    # One vector, whatever the features.
    np.testing.assert_array_equal(result, np.tile(result[:1], (7, 1)))


def test_attention_of_one_modality_is_its_value(layer):
    """With a single key the weights are 1, whatever query and key."""
    if layer.method != "cross_attention":
        pytest.skip("of cross-attention")
    present = masks(*[(0, 1, 0)] * 7)
    x = features(1)
    token = x[1] + layer.embeddings.numpy()[1]
    attention = layer.attention
    value = np.einsum("bd,dhe->bhe", token, attention._value_dense.kernel)
    value += attention._value_dense.bias.numpy()
    expected = np.einsum("bhe,hed->bd", value, attention._output_dense.kernel)
    expected += attention._output_dense.bias.numpy()
    np.testing.assert_allclose(layer(x, present), expected, atol=1e-4)


def test_configuration_round_trip(layer):
    again = type(layer).from_config(layer.get_config())
    again(features(0), everything())
    again.set_weights(layer.get_weights())
    x = features(1)
    np.testing.assert_array_equal(again(x, everything()), layer(x, everything()))
    assert fusion.get(layer.method) is type(layer)


def test_content_of_other_types():
    has_content = fusion.HasContent()
    values = np.array([[0, 0], [0, 3], [-1, 0]])
    for dtype in ("uint8", "int32", "float32"):
        mask = has_content(keras.ops.convert_to_tensor(values.astype(dtype)))
        np.testing.assert_array_equal(mask, [False, True, True])
    # Too small to survive in half precision.
    assert has_content(np.array([[1e-12]], "float32")).numpy().all()


def test_errors():
    with pytest.raises(InputError, match="Did you mean 'concat'"):
        fusion.get("conat")
    with pytest.raises(InputError, match="num_heads"):
        fusion.CrossAttention(4, num_heads=0)
