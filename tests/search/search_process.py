"""One process of a search whose trials take a moment and train nothing.

    python search_process.py chief|worker FOLDER HOST:PORT SECONDS

Every started trial is noted in FOLDER/started, with the process that ran it.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tiny_application import Tiny

from mtl_keras import applications
from mtl_keras.search import load_study, run_chief, run_worker
from mtl_keras.search.tuner import StudyTuner

SECONDS = float(sys.argv[4])


def quick(self, trial):
    """Takes the place of training; the score follows from the settings."""
    values = trial.hyperparameters.values
    folder = pathlib.Path(sys.argv[2])
    with (folder / "started").open("a") as file:
        file.write(f"{trial.trial_id} {os.getpid()}\n")
    time.sleep(SECONDS)
    return {"val_mean": 1.0 / values["width"] + values["learning_rate"]}


def main() -> None:
    """Runs as chief or as worker."""
    role, folder, address = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    tiny = Tiny()
    applications.get = lambda name: tiny
    StudyTuner._train = quick
    study = load_study(folder / "study.toml")
    if role == "chief":
        run_chief(study, folder / "out", address=address, silence=5.0)
    else:
        run_worker(study, folder / "out", chief=address)


if __name__ == "__main__":
    main()
