"""Jobs in processes of their own: their records, and how they end."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import time

import pytest

from mtl_keras.runs.records import read_record
from mtl_keras.runs.scheduler import Job, Scheduler, cores


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs jobs, given as `{folder: function}`; returns their records in order."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))

    def invoke(functions, slots=1, settings=(), **arguments):
        jobs = (
            Job(name, tmp_path / name, f"jobs:{function}", dict(settings))
            for name, function in functions.items()
        )
        records = {}
        with Scheduler(slots, **arguments) as scheduler:
            for job in itertools.chain.from_iterable(scheduler.run(jobs)):
                records[job.label] = read_record(job.folder / "record.json")
        return records

    return invoke


def alive(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


def test_one_process_serves_jobs_until_one_of_them_kills_it(run, tmp_path):
    functions = {"a": "pid", "b": "fail", "c": "leave", "d": "abort", "e": "pid"}
    functions |= {"f": "break_gpu", "g": "pid"}
    records = run(functions, settings={"x": [1]})
    assert {n: r.status for n, r in records.items()} == {
        "a": "COMPLETED",
        "b": "FAILED",
        "c": "FAILED",
        "d": "FAILED",
        "e": "COMPLETED",
        "f": "FAILED",
        "g": "COMPLETED",
    }
    assert records["a"].result["settings"] == {"x": [1], "jobs": 1}
    assert records["a"].result["none"] is None
    assert "printed\nwritten\n" in (tmp_path / "a" / "log.txt").read_text()
    assert records["b"].error == "ValueError: no\nway"
    assert records["b"].traceback.endswith("ValueError: no\nway\n")
    assert records["c"].error == "SystemExit: 3"
    # Tried twice; the job behind it goes well in a new process.
    assert "died 2 times, the last time with signal SIGABRT" in records["d"].error
    assert json.loads((tmp_path / "d" / "deaths.json").read_text())["deaths"] == 2
    # Nothing on a GPU goes well in a process in which CUDA has failed.
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in records["f"].error
    assert not (tmp_path / "g" / "deaths.json").exists()
    pids = [records[name].result["pid"] for name in "aeg"]
    assert len(set(pids)) == 3
    assert os.getpid() not in pids
    assert not any(map(alive, pids))
    # What has its record is not run again.
    again = run({"a": "pid"}, settings={"x": [1]})
    assert again["a"] == records["a"]


@pytest.mark.slow
def test_a_job_with_other_settings_is_run_again(run):
    first, again = (run({"a": "pid"}, settings={"x": [x]})["a"] for x in (1, 2))
    assert again.result["settings"] == {"x": [2], "jobs": 1}
    assert again.result["pid"] != first.result["pid"]


@pytest.mark.slow
def test_a_process_is_replaced_before_its_memory_grows(run):
    records = run({str(n): "grow" for n in range(7)})
    pids = [record.result for record in records.values()]
    assert len(set(pids)) == 2
    assert len(set(pids[:4])) == 1
    records = run({str(n): "pid" for n in range(10, 12)}, fresh=True)
    assert len({record.result["pid"] for record in records.values()}) == 2


@pytest.mark.slow
def test_slots_share_the_cores(run):
    name = "TF_NUM_INTRAOP_THREADS"
    started = time.monotonic()
    records = run(dict.fromkeys("ab", "threads"), slots=2, settings={"names": [name]})
    share = str(max(1, cores() // 2))
    assert [record.result[name] for record in records.values()] == [share] * 2
    assert time.monotonic() - started < 300
