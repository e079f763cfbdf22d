"""`MODEL_CARD.md`: one page on an exported model and its requests."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from mtl_keras.serving.signatures import SERIALIZED, Signature

FILE = "MODEL_CARD.md"


def write_model_card(
    version: pathlib.Path,
    model: str,
    signatures: Sequence[Signature],
    functions: Mapping[str, Any],
    source: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Writes the card.

    Args:
        version: Folder of the SavedModel.
        model: Name of the model on the server.
        signatures: Its signatures, `serving_default` first.
        functions: The concrete function of each signature.
        source: Where the model comes from; `metrics`, `{task: {metric: value}}`, and
            `versions` become tables, the rest is listed.
        columns: Names of the tasks, for outputs that are groups of them.
    """
    settings = {
        key: value
        for key, value in source.items()
        if key not in ("metrics", "versions") and value is not None
    }
    parts = [
        f"# {model}",
        "A multi-task model, exported by mtl_keras for TensorFlow Serving.",
        "## Tasks",
        _tasks(signatures[0], source.get("metrics") or {}, columns),
    ]
    if settings:
        parts += ["## Training", _list(settings)]
    if source.get("versions"):
        parts += ["## Versions", _list(source["versions"])]
    parts += [
        "## Signatures",
        "The batch dimension is free. A feature that a `tf.train.Example` leaves out "
        f"counts as {_missing(signatures)}zeros or as empty.",
        _signatures(signatures, functions),
        "## Requests",
        _requests(model, signatures[0]),
    ]
    text = "\n\n".join(parts) + "\n"
    (version / FILE).write_text(text, encoding="utf-8")


def _tasks(
    default: Signature,
    metrics: Mapping[str, Mapping[str, float | None]],
    columns: Mapping[str, Sequence[str]],
) -> str:
    rows = []
    for output, tensor in default.model.output.items():
        shape = _form(tensor.dtype, tensor.shape)
        for index, name in enumerate(columns.get(output, (output,))):
            values = ", ".join(
                f"{metric} {value:.4f}"
                for metric, value in metrics.get(name, {}).items()
                if value is not None
            )
            form = f"`{output}[:, {index}]` of {shape}" if output in columns else shape
            rows.append((f"`{name}`", form, values or "not given"))
    return _table(("task", "answer", "on the test split"), rows)


def _missing(signatures: Sequence[Signature]) -> str:
    values = {k: v for s in signatures for k, v in s.missing_values.items()}
    inputs = signatures[0].inputs
    named = ", ".join(f"`{name}` {values[name]:g}" for name in inputs if name in values)
    return f"missing ({named}), as " if named else ""


def _signatures(signatures: Sequence[Signature], functions: Mapping[str, Any]) -> str:
    rows = []
    for signature in signatures:
        function = functions[signature.name]
        (inputs,), _ = function.structured_input_signature
        rows.append(
            (
                f"`{signature.name}`",
                _tensors(inputs),
                _tensors(function.structured_outputs),
            )
        )
    return _table(("signature", "inputs", "outputs"), rows)


def _requests(model: str, default: Signature) -> str:
    inputs = "\n".join(
        f"    {name!r}: {_zeros(spec)}," for name, spec in default.inputs.items()
    )
    return f"""A request of one sample, here of zeros, for all tasks:

```python
import numpy as np

inputs = {{
{inputs}
}}
```

REST:

```python
import requests

body = {{
    "signature_name": "serving_default",
    "inputs": {{name: value.tolist() for name, value in inputs.items()}},
}}
url = "http://localhost:8501/v1/models/{model}:predict"
answer = requests.post(url, json=body).json()["outputs"]
```

gRPC:

```python
import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

request = predict_pb2.PredictRequest()
request.model_spec.name = "{model}"
request.model_spec.signature_name = "serving_default"
for name, value in inputs.items():
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
channel = grpc.insecure_channel("localhost:8500")
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
response = stub.Predict(request, timeout=10)
answer = {{k: tf.make_ndarray(v) for k, v in response.outputs.items()}}
```

`{SERIALIZED}` of `from_examples` are serialized `tf.train.Example`s; in REST each is
`{{"b64": "..."}}`."""


def _zeros(spec: tf.TensorSpec) -> str:
    shape = tuple(size or 1 for size in (1, *spec.shape[1:].as_list()))
    if spec.dtype == tf.string:
        return f'np.full({shape}, "")'
    return f'np.zeros({shape}, "{spec.dtype.name}")'


def _tensors(specs: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"`{name}` {_form(specs[name].dtype, specs[name].shape)}"
        for name in sorted(specs)
    )


def _form(dtype: Any, shape: Iterable[int | None]) -> str:
    sizes = ["batch", *("?" if size is None else str(size) for size in [*shape][1:])]
    return f"{tf.dtypes.as_dtype(dtype).name} [{', '.join(sizes)}]"


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
