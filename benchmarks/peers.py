"""Solvers inside a graph against those of TorchJD 0.18, in one run.

    python benchmarks/peers.py [--environment FOLDER] [--only METHOD] [--busy]
        [TASKS ...]

Installs TorchJD with all its solvers into an environment of its own under FOLDER (by
default in the user's cache folder), once, and runs it in a second process. The two
take turns, so that a slow minute of the machine hits both. Both get the same Gram
matrices in turn (Nash-MTL of TorchJD takes the gradients, here four times as many
numbers as tasks); times of the compiled ops are less the loop around them. `--busy`,
for a busy machine, counts the processor's time in place of the clock's, with TorchJD on
one thread.
Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import venv

TORCHJD = "torchjd[full]==0.18.*"
RESULTS = pathlib.Path(__file__).parent / "results" / "peers.json"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
TASKS = (2, 4, 8, 16, 32, 64, 128)
ROUNDS = 15
SECONDS = 1.0  # of TorchJD's time for one method and number of tasks
PEERS = {  # names of benchmarks/ops.py
    "min_norm": "MGDA",
    "upgrad": "UPGrad",
    "dualproj": "DualProj",
    "cagrad": "CAGrad",
    "power_root 1": "NashMTL",
    "power_root 2": "FairGrad",
    "pcgrad": "PCGrad",
}


def environment(folder: pathlib.Path) -> pathlib.Path:
    """Installs TorchJD unless it is there. Returns its Python."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", TORCHJD]
        subprocess.run(command, check=True)
        (folder / "installed").touch()
    return python


def serve() -> None:
    """Runs in TorchJD's environment: times the solves that it is asked for."""
    from importlib.metadata import version

    import numpy as np
    import torch
    from torchjd import aggregation

    versions = {name: version(name) for name in ("torchjd", "torch")}
    print(json.dumps(versions), flush=True)
    clock = getattr(time, sys.argv[2])
    if clock is time.process_time:
        torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        rows = torch.tensor(np.load(request["rows"]))
        name = request["method"]
        if name == "NashMTL":
            solve = aggregation.NashMTL(n_tasks=rows.shape[1]).weighting
            problems = list(rows)
        else:
            given = {"CAGrad": {"c": 0.4}, "FairGrad": {"alpha": 2.0}}.get(name, {})
            solve = getattr(aggregation, f"{name}Weighting")(**given)
            problems = list(rows @ rows.mT)
        solve(problems[0])
        print(json.dumps("ready"), flush=True)
        for _ in iter(sys.stdin.readline, "end\n"):
            times = []
            for problem in problems:
                start = clock()
                solve(problem)
                times.append(clock() - start)
                if sum(times) > SECONDS / ROUNDS:
                    break
            print(json.dumps(sum(times) / len(times)), flush=True)


def compare(
    peer: subprocess.Popen, name: str, num_tasks: int, rows: str, clock: str
) -> dict:
    """Times one solver and its peer in turns."""
    import ops

    def ask(line: str):
        peer.stdin.write(line + "\n")
        peer.stdin.flush()
        return json.loads(peer.stdout.readline())

    now = getattr(time, clock)
    solves = ops.LOOP if num_tasks <= 64 else ops.PROBLEMS
    calls = {
        "idle": ops.empty_loop(num_tasks, solves),
        "native": ops.solver_loop(ops.SOLVERS[name], num_tasks, "native", solves),
    }
    seconds: dict[str, list[float]] = {"native": [], "torchjd": []}
    for call in calls.values():
        call()
    ask(json.dumps({"method": PEERS[name], "rows": rows}))
    for _ in range(ROUNDS):
        seconds["torchjd"].append(ask("go"))
        calls["idle"]()  # The peer has had the processor: warm up.
        lasted = {}
        for key, call in calls.items():
            start = now()
            call()
            lasted[key] = (now() - start) / solves
        # Below a tenth of a microsecond the difference is noise.
        seconds["native"].append(max(lasted["native"] - lasted["idle"], 1e-7))
    peer.stdin.write("end\n")
    peer.stdin.flush()
    times = {key: ops.summary(values) for key, values in seconds.items()}
    return {
        "solver": PEERS[name],
        "tasks": num_tasks,
        "clock": clock,
        **times,
        "times_faster": times["torchjd"]["median"] / times["native"]["median"],
    }


def table(rows: list[dict]) -> str:
    from ops import cell

    lines = ["| method | T | here, µs | TorchJD, µs | times |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['solver']} | {row['tasks']} | {cell(row['native'])} | "
            f"{cell(row['torchjd'])} | {row['times_faster']:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the comparison for the numbers of tasks on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=int, default=TASKS)
    parser.add_argument(
        "--environment", type=pathlib.Path, default=CACHE / "mtl_keras" / "torchjd"
    )
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--only", choices=PEERS.values())
    arguments = parser.parse_args()
    clock = "process_time" if arguments.busy else "perf_counter"
    names = [n for n, peer in PEERS.items() if arguments.only in (None, peer)]
    solvers = {PEERS[name] for name in names}
    python = environment(arguments.environment)

    import tempfile

    import numpy as np
    import ops

    from mtl_keras.runs.records import made_with

    peer = subprocess.Popen(
        [str(python), __file__, "serve", clock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    versions = json.loads(peer.stdout.readline())
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for num_tasks in arguments.tasks:
        kept = [
            row
            for row in results["rows"]
            if row["tasks"] != num_tasks or row["solver"] not in solvers
        ]
        with tempfile.NamedTemporaryFile(suffix=".npy") as rows:
            np.save(rows.name, ops.task_rows(num_tasks))
            found = [compare(peer, name, num_tasks, rows.name, clock) for name in names]
        for row in found:
            row |= {"versions": versions, "made_with": made_with()}
        results["rows"] = sorted([*kept, *found], key=lambda row: row["tasks"])
        print(table(found), flush=True)
    peer.stdin.close()
    peer.wait()
    results |= {
        "command": "python benchmarks/peers.py",
        "unit": "microseconds a solve: median, quartiles and least over rounds",
        "seed": "the number of tasks",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    else:
        main()
