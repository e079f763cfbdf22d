"""Kills trainings at random moments, and checks that each ends as if it had not been.

    python benchmarks/chaos.py --kills 52
    python benchmarks/chaos.py --kills 4 --only vision

Each of the four applications trains once without a stop, for reference. Then the same
command line is started again and again and killed by SIGKILL: after a random share of
the processor time that the whole run takes; within the writing of a checkpoint, after
a random share of its bytes; or while the run folder is being written at the end. Each
time nothing may lie under a run's name that is not a finished run, and every
checkpoint under a final name must be whole. A run that gets to its end must have the
weights, optimizer, history and metrics of the reference, bit for bit. Further trials
(`--only further`) fill a disk, limit the size of files, damage and remove checkpoints
and run folders, and kill `tune`, `export` and `compare`.

The processes are forked from one that has loaded TensorFlow and started none of it:
what a kill meets is then the run, and not the loading. Moments are drawn in processor
time, as the wall time of a busy machine says little about what a process does.
Writes benchmarks/results/chaos.json; a failed promise ends the script with code 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import h5py
import numpy as np

import mtl_keras
import mtl_keras_cli
from mtl_keras.runs import checkpoints, unfinished
from mtl_keras.runs.records import versions

RESULTS = pathlib.Path(__file__).parent / "results"
COMMON = "--deterministic --checkpoint-steps 3"
RUNS = {
    "vision": "--limit 512 --epochs 4 --batch-size 64 --width 4 --balancing pcgrad "
    "--tasks left,mask",
    "text": "--limit 192 --epochs 4 --batch-size 64 --width 16 --balancing dwa "
    "--tasks sentiment,answer",
    "recommendation": "--limit 2048 --epochs 4 --batch-size 256 --sharing mmoe "
    "--balancing uncertainty --tasks click,watch_time",
    "multimodal": "--limit 384 --epochs 4 --batch-size 64 --width 4 "
    "--balancing random --tasks digit,speaker",
}
STUDY = """
application = "recommendation"
oracle = "random"
trials = 2
epochs = 1
limit = 512
tasks = ["click", "watch_time"]
[space]
width = [8, 16, 24]
"""
COMPARE = (
    "compare vision --tasks left,mask --balancing equal,pcgrad --seeds 1 --limit 256 "
    "--epochs 2 --batch-size 64 --width 4 --out"
)
# What a training costs, which no two have alike.
COSTS = ("step_ms", "step_cpu_ms", "peak_memory_mb", "peak_gpu_memory_mb", "seconds")
MODES = ("time", "time", "write", "close")


class BrokenError(Exception):
    """A promise was not kept."""


@dataclasses.dataclass
class Ended:
    """How a process ended, `code` negative for a signal."""

    code: int
    cpu: float
    said: str


def start(line: str, folder: pathlib.Path, prepare: Callable[[], Any]) -> int:
    """Forks a process that runs a command line in a folder; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        for number, name in ((1, "said"), (2, "errors")):
            log = os.open(f"../{name}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, number)
        prepare()
        sys.argv = ["mtl-keras", *line.split()]
        mtl_keras_cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
        sys.stdout.flush()
        os._exit(code)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


def cpu_ticks(pid: int) -> list[int]:
    """Returns ticks of a process, user and system, and of its ended children."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return [int(field) for field in fields[11:15]]


def cpu_seconds(pid: int, running: list[int]) -> float:
    """Returns the processor time of a process and of its children, in seconds."""
    ticks = sum(cpu_ticks(pid))
    for child in running:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(cpu_ticks(child)[:2])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    found: list[int] = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        # Threads come and go.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, path.read_text().split())
    return found


def run(
    line: str,
    folder: pathlib.Path,
    prepare: Callable[[], Any] = lambda: None,
    kill_when: Callable[[float], bool] = lambda cpu: False,
) -> Ended:
    """Runs a command line to its end, or until `kill_when` says so."""
    folder.mkdir(exist_ok=True)
    pid, killed = start(line, folder, prepare), False
    started: set[int] = set()
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        running = children(pid)
        started.update(running)
        if not killed and kill_when(cpu_seconds(pid, running)):
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    while any(pathlib.Path(f"/proc/{child}").exists() for child in started):
        # They end by themselves once they see that their parent has.
        time.sleep(0.01)
    said = "".join(
        (folder.parent / f"{name}.log").read_text() for name in ("said", "errors")
    )
    return Ended(
        os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, said
    )


def promise(kept: bool, words: str) -> None:
    if not kept:
        raise BrokenError(words)


def contents(out: pathlib.Path) -> dict[str, Any]:
    """Returns all that a finished run promises to be the same."""
    values: dict[str, Any] = {
        name: (out / name).read_bytes() for name in ("history.csv", "metrics.json")
    }
    with zipfile.ZipFile(out / "model.keras") as file:
        weights = h5py.File(io.BytesIO(file.read("model.weights.h5")))
        weights.visititems(
            lambda name, item: (
                values.__setitem__(name, np.asarray(item).tobytes())
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return values


def check_same(out: pathlib.Path, reference: dict[str, Any]) -> None:
    found = contents(out)
    wrong = [n for n in reference | found if reference.get(n) != found.get(n)]
    promise(not wrong, f"{out.name} differs from the reference in {wrong[:5]}")


def check_stopped(folder: pathlib.Path, name: str, among_others: bool = False) -> str:
    """Checks what a killed training has left; returns how far it had come."""
    work = unfinished.work_folder(folder / name)
    names = {path.name for path in folder.iterdir()} - {work.name}
    promise(among_others or names <= {name}, f"unexpected files {names}")
    if name in names:
        promise(
            {p.name for p in (folder / name).iterdir()}
            == {"model.keras", "config.json", "metrics.json", "history.csv", "logs"},
            f"{name} is not a finished run",
        )
        contents(folder / name)
        return "finished"
    if not (work / "checkpoints").is_dir():
        return "no checkpoint"
    newest, broken = checkpoints.newest(work / "checkpoints")
    promise(not broken, f"half a checkpoint under a final name: {broken}")
    return newest.path.stem if newest else "no checkpoint"


def dies_writing(rng: random.Random) -> Callable[[], None]:
    """Has a process kill itself within the writing of one of its next checkpoints."""
    number, share = rng.randrange(1, 6), rng.random()

    def prepare() -> None:
        real, count = np.savez, 0

        def savez(file: Any, **arrays: Any) -> None:
            nonlocal count
            count += 1
            if count < number:
                return real(file, **arrays)
            whole = io.BytesIO()
            real(whole, **arrays)
            file.write(whole.getvalue()[: int(share * whole.tell())])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        np.savez = savez

    return prepare


def how_to_kill(
    mode: str, rng: random.Random, work: pathlib.Path, whole: float
) -> dict[str, Any]:
    """Returns the arguments of `run` that kill it in one of the `MODES`."""
    if mode == "write":
        return {"prepare": dies_writing(rng)}
    if mode == "time":
        moment = rng.uniform(0.1, 1.0) * whole
        return {"kill_when": lambda cpu: cpu > moment}
    seen: list[float] = []
    delay = rng.uniform(0.0, 0.15)

    def closing(cpu: float) -> bool:
        if not seen and (work / "run" / "model.keras").exists():
            seen.append(cpu)
        return bool(seen) and cpu >= seen[0] + delay

    return {"kill_when": closing}


def kill_trainings(
    application: str, kills: int, rng: random.Random, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Kills runs of an application so often, and checks all that get to the end."""
    line = f"train {application} {RUNS[application]} {COMMON} --out"
    whole = run(f"{line} whole", folder / "reference")
    promise(whole.code == 0, f"the reference failed: {whole.said}")
    reference = contents(folder / "reference" / "whole")
    yield {"run": application, "mode": "reference", "cpu_seconds": whole.cpu}
    done = victim = 0
    while done < kills:
        victim += 1
        place, name = folder / f"victims-{victim}", "victim"
        since, gone_on = 0, False
        while True:
            mode = rng.choice(MODES) if done < kills and since < 8 else "none"
            work = unfinished.work_folder(place / name)
            ended = run(
                f"{line} {name}",
                place,
                **(how_to_kill(mode, rng, work, whole.cpu) if mode != "none" else {}),
            )
            state = check_stopped(place, name)
            record = {"run": application, "mode": mode, "cpu_seconds": ended.cpu}
            if ended.code == -signal.SIGKILL:
                done, since = done + 1, since + 1
                yield {**record, "left": state}
                gone_on = state != "no checkpoint"
                if state != "finished":
                    continue
            else:
                promise(ended.code == 0, f"code {ended.code}: {ended.said}")
                promise(
                    ("Resuming the" in ended.said) == gone_on,
                    f"not told of going on: {ended.said}",
                )
            check_same(place / name, reference)
            yield {**record, "left": "same as the reference", "kills": since}
            shutil.rmtree(place)
            break


def fails_in_one_line(ended: Ended, words: str) -> None:
    promise(ended.code == 2, f"code {ended.code} instead of 2: {ended.said}")
    promise("Traceback" not in ended.said, ended.said)
    promise(words in ended.said, f"{words!r} is not in: {ended.said}")


def damage(rng: random.Random, path: pathlib.Path) -> None:
    """Changes a few bytes of a file, or cuts it off."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        content = content[: rng.randrange(len(content))]
    else:
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def damaged_checkpoints(
    rng: random.Random, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Damages and removes what a killed training has left."""
    application = "recommendation"
    line = f"train {application} {RUNS[application]} {COMMON} --out"
    whole = run(f"{line} whole", folder / "reference")
    reference = contents(folder / "reference" / "whole")
    for trial, what in enumerate(
        ("newest damaged", "newest damaged", "both damaged", "newest removed", "logs")
    ):
        place = folder / f"damaged-{trial}"
        work = unfinished.work_folder(place / "victim")
        saved = work / "checkpoints"
        run(
            f"{line} victim",
            place,
            kill_when=lambda cpu, saved=saved: (
                len(list(saved.glob("*.npz"))) == 2
                and max(saved.glob("*.npz")).name > "epoch-000002"
            ),
        )
        promise(len(list(saved.glob("*.npz"))) == 2, "expected two checkpoints")
        older, newer = sorted(saved.glob("*.npz"))
        if "damaged" in what:
            damage(rng, newer)
        if what == "both damaged":
            damage(rng, older)
        if what == "newest removed":
            newer.unlink()
        if what == "logs":
            shutil.rmtree(work / "run")
        ended = run(f"{line} victim", place)
        promise(ended.code == 0, ended.said)
        promise(
            ended.said.count("is broken") == ("damaged" in what) + ("both" in what),
            f"{what}: {ended.said}",
        )
        check_same(place / "victim", reference)
        yield {"trial": what, "ended": "same as the reference"}
        shutil.rmtree(place)
    for share in (0.001, 0.3, 0.7):
        place = folder / f"full-{share}"
        # Beyond this size no file can grow: what a full disk does, at a known place.
        largest = max(
            (folder / "reference/whole/model.keras").stat().st_size * share, 500
        )
        ended = run(
            f"{line} victim",
            place,
            prepare=lambda largest=largest: resource.setrlimit(
                resource.RLIMIT_FSIZE, (int(largest), int(largest))
            ),
        )
        fails_in_one_line(ended, "cannot be written")
        check_stopped(place, "victim")
        ended = run(f"{line} victim", place)
        promise(ended.code == 0, ended.said)
        check_same(place / "victim", reference)
        yield {"trial": f"files up to {largest:.0f} bytes", "ended": "same, afterwards"}
        shutil.rmtree(place)
    yield from damaged_runs(rng, folder, whole.cpu)


def damaged_runs(
    rng: random.Random, folder: pathlib.Path, whole: float
) -> Iterator[dict[str, Any]]:
    """Damages finished runs before `evaluate` and `export`, and kills `export`."""
    reference = folder / "reference"
    counts: collections.Counter[str] = collections.Counter()
    for trial in range(12):
        shutil.rmtree(reference / "copy", ignore_errors=True)
        shutil.copytree(reference / "whole", reference / "copy")
        file = rng.choice(("model.keras", "config.json", "metrics.json"))
        what = rng.choice(("damaged", "removed"))
        if what == "removed":
            (reference / "copy" / file).unlink()
        else:
            damage(rng, reference / "copy" / file)
        ended = run("evaluate copy" if trial % 2 else "export copy --to to", reference)
        promise("Traceback" not in ended.said, ended.said)
        promise(ended.code in (0, 2), f"code {ended.code}: {ended.said}")
        promise(ended.code == 2 or what == "damaged", f"{file} was not missed")
        counts[f"{file} {what}: code {ended.code}"] += 1
    yield {"trial": "damaged runs", "ended": dict(sorted(counts.items()))}
    shutil.rmtree(reference / "to", ignore_errors=True)
    export = run("export whole --to to", reference)
    promise(export.code == 0, export.said)
    shutil.rmtree(reference / "to")
    killed = 0
    for _ in range(6):
        moment = rng.uniform(0.3, 1.0) * export.cpu
        ended = run(
            "export whole --to to",
            reference,
            kill_when=lambda cpu, moment=moment: cpu > moment,
        )
        killed += ended.code == -signal.SIGKILL
        for version in (reference / "to").glob("[0-9]*"):
            promise(
                (version / "saved_model.pb").is_file(), f"{version} is half written"
            )
    ended = run("export whole --to to --check", reference)
    promise(ended.code == 0, ended.said)
    yield {"trial": "export killed", "kills": killed, "ended": "whole versions only"}


def killed_study(rng: random.Random, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Kills `tune` and lets it go on."""
    folder.mkdir()
    (folder / "small.toml").write_text(STUDY)
    whole = run("tune small.toml --out whole", folder)
    promise(whole.code == 0, whole.said)
    killed = 0
    for _ in range(4):
        moment = rng.uniform(0.2, 0.9) * whole.cpu
        ended = run(
            "tune small.toml --out study",
            folder,
            kill_when=lambda cpu, moment=moment: cpu > moment,
        )
        killed += ended.code == -signal.SIGKILL
    promise(killed > 0, "no kill met the study")
    ended = run("tune small.toml --out study", folder)
    promise(ended.code == 0, ended.said)
    trials = [
        json.loads(path.read_text())
        for path in (folder / "study/trials").glob("*.json")
    ]
    promise(len(trials) == 2, f"{len(trials)} trials instead of 2")
    yield {"trial": "tune killed", "kills": killed, "ended": "all trials recorded"}


def killed_comparison(
    rng: random.Random, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Kills `compare`, and with it the training of a cell, and lets it go on."""

    def ran(name: str, **how: Any) -> Ended:
        return run(f"{COMPARE} {name}", folder, **how)

    folder.mkdir()
    # The trainings are processes of their own, which take no --deterministic.
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
    whole = ran("whole")
    promise(whole.code == 0, whole.said)
    reference = without_costs(folder / "whole")
    kills, left = 0, collections.Counter[str]()
    for trial in range(3):
        name = f"victim-{trial}"
        for _ in range(4):
            moment = rng.uniform(0.05, 0.6) * whole.cpu
            ended = ran(name, kill_when=lambda cpu, moment=moment: cpu > moment)
            killed = ended.code == -signal.SIGKILL
            promise(killed or ended.code == 0, f"code {ended.code}: {ended.said}")
            kills += killed
            left[check_comparison(folder / name)] += killed
        ended = ran(name)
        promise(ended.code == 0, ended.said)
        check_comparison(folder / name)
        found = without_costs(folder / name)
        wrong = [n for n in reference | found if reference.get(n) != found.get(n)]
        promise(not wrong, f"{name} differs from the reference in {wrong[:5]}")
    yield {
        "trial": "compare killed",
        "kills": kills,
        "cells_finished_at_a_kill": dict(sorted(left.items())),
        "comparisons": 3,
        "ended": "same results as the reference, times and memory aside",
    }


def without_costs(out: pathlib.Path) -> dict[str, Any]:
    """Returns the record and the weights of every cell of a finished comparison."""
    found: dict[str, Any] = {}
    for path in sorted((out / "cells").iterdir()):
        record = json.loads((path / "record.json").read_text())
        promise(record["status"] == "COMPLETED", f"{path.name}: {record['error']}")
        found |= {
            f"{path.name}: {key}": value
            for key, value in {**record, **record["result"]}.items()
            if key not in ("result", *COSTS)
        }
        run_of_it = contents(path / "run")
        found |= {f"{path.name}: {name}": value for name, value in run_of_it.items()}
    return found


def check_comparison(out: pathlib.Path) -> str:
    """Checks what a killed comparison has left; returns how far it had come."""
    done = 0
    for path in out.rglob("*.json") if out.exists() else ():
        json.loads(path.read_text())
        done += path.name == "record.json"
    for path in out.glob("cells/*/best.keras"):
        promise(zipfile.ZipFile(path).testzip() is None, f"{path} is half written")
    for path in out.glob("cells/*"):
        check_stopped(path, "run", among_others=True)
    ends = {"report.html": "</html>", "summary.csv": "", "cells.csv": ""}
    for name, end in ends.items():
        if (out / name).exists():
            text = (out / name).read_text()
            promise(text.endswith(f"{end}\n"), f"{name} is half written")
    return f"{done} of 4"


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[bool]:
    """Makes a folder a disk of its own of so many bytes, where that is allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    made = subprocess.run(["mount", *options, folder], capture_output=True, check=False)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def full_disks(rng: random.Random, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Trains, searches, exports and compares onto disks that are too small."""
    folder.mkdir()
    (folder / "small.toml").write_text(STUDY)
    train = f"train recommendation {RUNS['recommendation']} {COMMON} --out"
    promise(run(f"{train} whole", folder / "reference").code == 0, "the reference")
    reference = contents(folder / "reference" / "whole")
    disk = folder / "disk"
    lines = {
        "train": f"{train} ../disk/out",
        "tune": "tune ../small.toml --out ../disk/out",
        "export": "export ../reference/whole --to ../disk/out",
        "compare": f"{COMPARE} ../disk/out",
    }
    for what, line in lines.items():
        disk.mkdir()
        promise(run(line, folder / "at").code == 0, what)
        files = [p for p in disk.rglob("*") if p.is_file()]
        needed = sum(-(-p.stat().st_size // 4096) * 4096 for p in files)
        shutil.rmtree(disk)
        for share in (0.05, rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.8)):
            room = max(int(share * needed), 4096)
            with small_disk(disk, room) as real:
                if not real:
                    disk.rmdir()
                    yield {"trial": "full disk", "ended": "no disk can be mounted here"}
                    return
                ended = run(line, folder / "at")
                promise("Traceback" not in ended.said, ended.said)
                if what == "compare" and ended.code == 1:
                    # A training that met the full disk is recorded as failed.
                    promise("No space left" in ended.said, ended.said)
                else:
                    fails_in_one_line(ended, "No space left")
                enlarged = ["mount", "-o", "remount,size=1g", str(disk)]
                subprocess.run(enlarged, check=True)
                again = run(line, folder / "at")
                promise(again.code == 0, again.said)
                promise("No space left" not in again.said, again.said)
                if what == "train":
                    check_same(disk / "out", reference)
            disk.rmdir()
            yield {
                "trial": f"{what} on a tmpfs of {room} bytes",
                "ended": f"code {ended.code}; whole, once the disk was larger",
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=52)
    parser.add_argument("--only", choices=[*RUNS, "further"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # So that no process has to load them.
    for package in (mtl_keras, mtl_keras_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "libmtl" not in module.name:
                importlib.import_module(module.name)
    kinds = [arguments.only] if arguments.only else [*RUNS]
    applications = [kind for kind in kinds if kind in RUNS]
    records: list[dict[str, Any]] = []
    broken = None
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        try:
            for index, kind in enumerate(kinds):
                rng = random.Random(f"{arguments.seed}/{kind}")
                place = root / kind
                place.mkdir()
                if kind in RUNS:
                    share = arguments.kills * (index + 1) // len(applications)
                    share -= arguments.kills * index // len(applications)
                    trials = kill_trainings(kind, share, rng, place)
                else:
                    trials = _further(rng, place)
                for record in trials:
                    records.append(record)
                    print(json.dumps(record), flush=True)
        except BrokenError as error:
            broken = str(error)
            print(f"Broken: {broken}", file=sys.stderr)
    write(arguments, records, broken)
    sys.exit(broken is not None)


def _further(rng: random.Random, place: pathlib.Path) -> Iterator[dict[str, Any]]:
    yield from damaged_checkpoints(rng, place)
    yield from killed_study(rng, place / "study")
    yield from killed_comparison(rng, place / "comparison")
    yield from full_disks(rng, place / "disks")


def write(
    arguments: argparse.Namespace, records: list[dict[str, Any]], broken: str | None
) -> None:
    """Writes the summary, and every kill of it."""
    kills = [r for r in records if "run" in r and "left" in r and "kills" not in r]
    by_run: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for record in kills:
        by_run[record["run"]][record["mode"]] += 1
    ends = [r for r in records if r.get("left") == "same as the reference"]
    summary = {
        "command": f"python benchmarks/chaos.py --kills {arguments.kills}"
        + (f" --only {arguments.only}" if arguments.only else ""),
        "seed": arguments.seed,
        "versions": versions(),
        "runs": {name: f"train {name} {line} {COMMON}" for name, line in RUNS.items()},
        "kills": len(kills),
        "kills_by_run_and_moment": {name: dict(c) for name, c in by_run.items()},
        "runs_that_ended_as_the_reference": len(ends),
        "half_written_under_a_final_name": 0 if broken is None else None,
        "broken_promise": broken,
        "records": records,
    }
    name = f"chaos_{arguments.only}.json" if arguments.only else "chaos.json"
    RESULTS.joinpath(name).write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
