"""Usage of experts and gates, and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
from sharing_cases import batch, dense, functional, model_of

from mtl_keras import sharing as sharing_lib
from mtl_keras.evaluation.plots import expert_usage


def test_metrics_have_their_closed_form():
    weights = np.asarray([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    entropy = sharing_lib.GateEntropy()
    entropy.update_state(weights[:2])
    entropy.update_state(weights[2:])
    assert float(entropy.result()) == pytest.approx((0 + 1 + 0.5) / 3)
    usage = sharing_lib.ExpertUtilisation(4)
    usage.update_state(weights[:1])
    usage.update_state(weights[1:], sample_weight=np.asarray([1.0, 2.0]))
    expected = (weights[0] + weights[1] + 2 * weights[2]) / 4
    np.testing.assert_allclose(usage.result(), expected, rtol=1e-6)


def test_an_epoch_logs_gate_metrics():
    model = model_of("mmoe", dense, run_eagerly=True)
    x, y = batch(model)
    callback = sharing_lib.ExpertMetrics([(x, y)])
    history = model.fit(x, y, verbose=0, callbacks=[callback]).history
    gate = model.get_layer("a_gate")
    weights = np.asarray(gate(model.get_layer("stem")(x)))
    for index in range(4):
        assert history[f"a_gate_expert_{index}"][-1] == pytest.approx(
            weights[:, index].mean(), rel=1e-4
        )
    entropy = -(weights * np.log(weights)).sum(axis=1).mean() / np.log(4)
    assert history["a_gate_entropy"][-1] == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "user", "used"),
    [
        ("mmoe", "b_gate", "expert 3"),
        ("ple", "shared_gate_0", "c 1"),
        ("dselect_k", "a_gate", "expert 0"),
        ("cross_stitch", "a_stitch_1", "b"),
        ("sluice", "a_stitch_0", "c 1"),
        ("branching", "a_branch", "last_2"),
    ],
)
def test_usage_is_a_table_of_shares_and_a_picture(name, user, used, tmp_path):
    model = functional(name, *dense())
    x, _ = batch(model)
    table = sharing_lib.usage(model, [x])
    assert used in table[user]
    for row in table.values():
        assert sum(row.values()) == pytest.approx(1.0, rel=0.02)
    path = expert_usage(table, tmp_path / "usage.png", title=name)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_model_without_mixing_layers_is_refused():
    with pytest.raises(ValueError, match="none does"):
        sharing_lib.usage(functional("hard", *dense()))
