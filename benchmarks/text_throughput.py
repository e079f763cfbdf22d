"""How fast the text application's input pipeline is, against the model it feeds.

    python benchmarks/text_throughput.py --data generated_text --width 48
    python benchmarks/text_throughput.py --width 128 --limit 2000 \
        --data imdb_reviews,squad/v1.1,multi30k/de

Batches of an epoch that nobody trains on, against the same epoch in `fit`, in one run,
each after an epoch that warms caches and graphs up; tokens are cut within the model, so
its time has that in it. Also counts the graphs that were traced after the first epoch.
Adds to benchmarks/results/text_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from mtl_keras import applications
from mtl_keras.applications.text.decoder import Decoder
from mtl_keras.runs.records import versions

BATCH = 64
RESULTS = pathlib.Path(__file__).parent / "results" / "text_throughput.json"


def count_traces() -> list[bool]:
    """Returns a list that grows with every trace of the model."""
    traces: list[bool] = []
    call = Decoder.call

    def counted(self, *args, **kwargs):
        traces.append(tf.inside_function())
        return call(self, *args, **kwargs)

    Decoder.call = counted
    return traces


def main() -> None:
    """Measures one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--limit", type=int, help="samples of each data set; else all")
    arguments = parser.parse_args()
    text = applications.get("text").for_data(arguments.data)
    model = text.build(width=arguments.width)
    model.compile(
        keras.optimizers.Adam(1e-3), loss=text.losses(), metrics=text.metrics()
    )
    train = text.load("train", batch_size=BATCH, shuffle=True, limit=arguments.limit)
    traces = count_traces()
    model.fit(train, epochs=1, verbose=0, shuffle=False)
    first = len(traces)
    start = time.perf_counter()
    steps = sum(1 for _ in train)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    model.fit(train, epochs=1, verbose=0, shuffle=False)
    fit = time.perf_counter() - start
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[arguments.data] = {
        "command": "python benchmarks/text_throughput.py "
        f"--data {arguments.data} --width {arguments.width}"
        + (f" --limit {arguments.limit}" if arguments.limit else ""),
        "versions": versions(),
        "cores": os.cpu_count(),
        "batch_size": BATCH,
        "steps": steps,
        "pipeline_batches_per_second": steps / alone,
        "fit_batches_per_second": steps / fit,
        "ratio": fit / alone,
        "traces_in_first_epoch": first,
        "traces_after_first_epoch": len(traces) - first,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[arguments.data], indent=2))


if __name__ == "__main__":
    main()
