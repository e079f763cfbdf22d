"""The synthetic data of the MMoE paper."""

from __future__ import annotations

import numpy as np
import pytest

from mtl_keras import data
from mtl_keras.data.generated import mmoe_synthetic


@pytest.mark.parametrize("correlation", [0.5, 0.9, 1.0])
def test_tasks_have_unit_length_and_the_cosine_asked_for(correlation):
    tasks = mmoe_synthetic.draw_tasks(correlation, np.random.default_rng(3))
    expected = np.asarray([[1.0, correlation], [correlation, 1.0]])
    np.testing.assert_allclose(tasks @ tasks.T, expected, atol=1e-12)


def test_noise_is_the_residual_of_the_formula():
    rng = np.random.default_rng(0)
    tasks = mmoe_synthetic.draw_tasks(0.5, rng)
    x, y = mmoe_synthetic.draw_samples(tasks, 4000, rng)
    t = x.astype("float64") @ tasks.T
    formula = t + sum(
        np.sin(0.5 * (i + 1) * t + np.pi * (0.1 + 0.2 * i)) for i in range(5)
    )
    np.testing.assert_allclose(np.var(y - formula, axis=0), 0.01, rtol=0.1)


def test_loads_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(mmoe_synthetic, "_SPLITS", {"train": 20, "test": 10})
    examples = data.load("mmoe_synthetic", "train", data_dir=tmp_path)
    assert len(examples) == 20
    example = next(iter(examples.as_numpy_iterator()))
    assert example["x"].shape == (100,)
    assert set(example) == {"x", "first", "second"}
