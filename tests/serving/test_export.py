"""A SavedModel answers as the Keras model does, and holds no training state."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import serving
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, compiled_model


@pytest.fixture
def model(tiny):
    model = compiled_model(RunConfig("tiny", balancing="uncertainty").validate(), 6)
    model.fit(tiny.load("train", batch_size=16), epochs=1, verbose=0, shuffle=False)
    return model


def test_serving_default_takes_raw_images_and_answers_by_task(model, tiny, tmp_path):
    version = serving.export(model, tmp_path / "served")
    assert version == tmp_path / "served" / "1"
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]
    (_, inputs) = serve.structured_input_signature
    assert inputs["image"].dtype == tf.uint8
    assert inputs["image"].shape.as_list() == [None, 8, 8, 1]
    images, _ = next(iter(tiny.load("test", batch_size=7)))
    served = serve(image=images["image"])
    expected = model.predict_on_batch(images)
    assert set(served) == {"way", "bright", "level"}
    for task in served:
        np.testing.assert_allclose(served[task], expected[task], atol=1e-5)
    assert max(serving.check(version, model, images).values()) < 1e-5

    layers = keras.Model(model.inputs, model.output)
    assert len(loaded.variables) == len(layers.weights)


def test_versions_count_up_and_source_lies_beside(model, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    version = serving.export(model, tmp_path, source={"run": "a"})
    assert version.name == "8"
    assert (version / "source.json").read_text() == '{\n  "run": "a"\n}\n'
    assert serving.latest_version(tmp_path) == version
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7", "8", "notes"]


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(RuntimeError):
        serving.export(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_or_read_is_one_line(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        serving.export(model, tmp_path / "file")
    with pytest.raises(InputError, match="no SavedModel"):
        serving.check(tmp_path, model, {})


def test_check_sees_another_model(model, tiny, tmp_path):
    version = serving.export(model, tmp_path)
    other = compiled_model(RunConfig("tiny", seed=9).validate(), 6)
    images, _ = next(iter(tiny.load("test", batch_size=7)))
    assert max(serving.check(version, other, images).values()) > 1e-2
