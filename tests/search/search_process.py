"""One process of a search whose trials take a moment and train nothing.

    python search_process.py alone|local|chief|worker FOLDER SECONDS [--chief HOST:PORT]

Every started trial is noted in FOLDER/started, with the process that ran it. Trials in
the environment's DEADLY kill that process; `local` is a chief with two workers.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tiny_application import Tiny

from mtl_keras import applications
from mtl_keras.search import load_study, run_chief, run_study, run_worker
from mtl_keras.search.tuner import StudyTuner

parser = argparse.ArgumentParser()
parser.add_argument("role")
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("seconds", type=float)
parser.add_argument("--chief", default="127.0.0.1:0")
parser.add_argument("--name")
ARGUMENTS = parser.parse_args()


def quick(self, trial):
    """Takes the place of training; the score follows from the settings."""
    values = trial.hyperparameters.values
    with (ARGUMENTS.folder / "started").open("a") as file:
        file.write(f"{trial.trial_id} {os.getpid()}\n")
    if trial.trial_id in os.environ.get("DEADLY", "").split():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(ARGUMENTS.seconds)
    return {"val_mean": 1.0 / values["width"] + values["learning_rate"]}


def main() -> None:
    """Runs as one process of a search, or as all of it."""
    tiny = Tiny()
    applications.get = lambda name: tiny
    StudyTuner._train = quick
    role, folder, address = ARGUMENTS.role, ARGUMENTS.folder, ARGUMENTS.chief
    study, out = load_study(folder / "study.toml"), folder / "out"
    if role == "alone":
        run_study(study, out)
    elif role == "local":
        seconds = str(ARGUMENTS.seconds)
        command = [sys.executable, __file__, "worker", str(folder), seconds]
        run_chief(study, out, command=command, workers=2)
    elif role == "chief":
        run_chief(study, out, address=address, silence=5.0)
    else:
        follow = ARGUMENTS.name is not None
        run_worker(study, out, chief=address, name=ARGUMENTS.name, follow=follow)


if __name__ == "__main__":
    main()
