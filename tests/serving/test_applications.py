"""Every application exports, and a C program gets its answers from the export."""

from __future__ import annotations

import c_program
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications, serving
from mtl_keras.serving.served_model import served_model
from mtl_keras.serving.signatures import signatures


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return c_program.build(tmp_path_factory.mktemp("program"))


def raw(specs, count):
    """Draws raw inputs: pixels, small numbers, words."""
    rng = np.random.default_rng(5)
    batch = {}
    for name, spec in specs.items():
        shape = (count, *(size or 6 for size in spec.shape[1:].as_list()))
        if spec.dtype == tf.string:
            words = np.array(["the", "cat", "sat", "on", "a", "mat", "42", ""])
            texts = rng.choice(words, (*shape, 5))
            joined = [" ".join(row).encode() for row in texts.reshape(-1, 5)]
            batch[name] = np.array(joined, object).reshape(shape)
        elif spec.dtype == tf.uint8:
            batch[name] = rng.integers(0, 256, shape).astype("uint8")
        elif spec.dtype.is_integer or spec.dtype.is_bool:
            batch[name] = rng.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)
        else:
            batch[name] = rng.normal(size=shape).astype(spec.dtype.as_numpy_dtype)
    return batch


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "vision" else pytest.mark.slow)
        for name in applications.names()
    ],
)
def test_a_c_program_gets_the_answers_of_the_keras_model(name, program, tmp_path):
    application = applications.get(name)
    model = application.serving_model(application.build(width=8))
    served = served_model(model, class_names=application.class_names())
    every = {signature.name: signature for signature in signatures(served)}
    assert set(served.outputs) <= set(every)
    inputs = raw(every["serving_default"].inputs, 3)
    version = serving.export(
        model,
        tmp_path / name,
        class_names=application.class_names(),
        samples=inputs,
    )
    requests = [(key, every[key].request(inputs)) for key in every]
    got = c_program.answers(program, version, requests, tmp_path)
    for (key, _), answer in zip(requests, got, strict=True):
        expected = every[key].keras_answer(inputs)
        assert set(answer) == set(expected)
        for output, wanted in expected.items():
            assert answer[output].dtype == wanted.dtype
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(
                    answer[output], wanted, rtol=1e-5, atol=1e-5, err_msg=output
                )
            else:
                np.testing.assert_array_equal(answer[output], wanted)
    report = serving.check(version, seconds=0)
    assert report.problems == []
    assert set(report.signatures) == set(every)
