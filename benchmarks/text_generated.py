"""The text application's defaults on its default data, and a bag of words.

    python benchmarks/text_generated.py --work WORK

Trains what `mtl-keras train text` trains, and the same with `--backbone mlp`, which
cannot tell the order of words. Scores are those of the test split, whose phrases are
in no training sentence. Writes benchmarks/results/text_generated.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mtl_keras.encoding import encode
from mtl_keras.runs import RunConfig, train
from mtl_keras.runs.records import versions

BACKBONES = ("rnn", "mlp")
RESULTS = pathlib.Path(__file__).parent / "results" / "text_generated.json"


def main() -> None:
    """Runs both trainings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    arguments = parser.parse_args()
    models = json.loads(RESULTS.read_text())["models"] if RESULTS.is_file() else {}
    for backbone in arguments.backbones:
        config = RunConfig("text", backbone=backbone)
        cpu = time.process_time()
        results = train(config, arguments.work / backbone)
        models[backbone] = {
            "command": f"mtl-keras train text --backbone {backbone}",
            "train_wall_seconds": results.seconds,
            "whole_run_cpu_seconds": time.process_time() - cpu,
            "config": encode(config.validate()),
            "test": results.metrics,
        }
        result = {
            "command": "python benchmarks/text_generated.py --work WORK",
            "versions": versions(),
            "models": models,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(models[backbone], indent=2), flush=True)


if __name__ == "__main__":
    main()
