"""One process of a search whose trials take a moment and train nothing.

    python search_process.py alone|local|chief|worker FOLDER SECONDS [--chief HOST:PORT]

Every started trial is noted in FOLDER/started, with the process that asked for it.
Trials in the environment's DEADLY abort their process; `local` has two workers.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

PLACE = pathlib.Path(__file__).parent


def quick(folder, settings):
    """Takes the place of training; the score follows from the settings."""
    trial = folder.name.removeprefix("trial_")
    with pathlib.Path(os.environ["STARTED"]).open("a") as file:
        file.write(f"{trial} {os.getppid()} {os.getpid()}\n")
    if trial in os.environ.get("DEADLY", "").split():
        os.abort()
    time.sleep(float(os.environ["SECONDS"]))
    values = settings["hyperparameters"]["values"]
    return {"val_mean": 1.0 / values["width"] + values["learning_rate"]}


def main() -> None:
    """Runs as one process of a search, or as all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("seconds")
    parser.add_argument("--chief", default="127.0.0.1:0")
    arguments = parser.parse_args()
    sys.path.insert(0, str(PLACE.parent))
    # For the worker processes.
    os.environ["PYTHONPATH"] = str(PLACE)
    os.environ["STARTED"] = str(arguments.folder / "started")
    os.environ["SECONDS"] = arguments.seconds

    from tiny_application import Tiny

    from mtl_keras import applications
    from mtl_keras.search import (
        load_study,
        run_chief,
        run_study,
        run_worker,
    )
    from mtl_keras.search import (
        running as ask_and_tell,
    )

    tiny = Tiny()
    applications.get = lambda name: tiny
    ask_and_tell._TRIAL = "search_process:quick"
    study, out = load_study(arguments.folder / "study.toml"), arguments.folder / "out"
    if arguments.role == "chief":
        run_chief(study, out, address=arguments.chief, silence=5.0)
    elif arguments.role == "worker":
        run_worker(study, out, chief=arguments.chief)
    else:
        run_study(study, out, workers=2 if arguments.role == "local" else 1)


if __name__ == "__main__":
    main()
