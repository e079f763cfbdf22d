"""The working directory of a run that is not finished: kept, locked, resumed.

`.NAME.partial` lies beside the run folder `NAME` and holds `config.json`, the
checkpoints, and under `run` what becomes the run folder by one renaming.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator

from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.files import (
    check_free,
    check_no_links,
    make_folder,
    publish_folder,
    read_json,
    write_json,
)
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.folder import CONFIG, Run, load_run
from mtl_keras.runs.records import check_same

CHECKPOINTS = "checkpoints"
AGAIN = "The same command, started again, resumes the run."
_RUN = "run"
_LOCK = "lock"
_REPLACED = "replaced"


def work_folder(out: pathlib.Path) -> pathlib.Path:
    """Returns the working directory of an unfinished run."""
    return out.with_name(f".{out.name}.partial")


def next_free(parent: str | os.PathLike, config: TrainingConfig) -> pathlib.Path:
    """Returns `parent/APPLICATION-N` with the first N that is not taken.

    An unfinished run of the same settings that no process holds is to be resumed.
    """
    from mtl_keras.applications import label

    name = label(config.application)
    names = (pathlib.Path(parent, f"{name}-{n}") for n in itertools.count(1))
    return next(out for out in names if _is_free(out, config))


def _is_free(out: pathlib.Path, config: TrainingConfig) -> bool:
    work = work_folder(out)
    if os.path.lexists(out) or not work.exists():
        return not os.path.lexists(out)
    try:
        with held(work):
            return read_json(work / CONFIG) == encode(config)
    except InputError:
        return False


@contextlib.contextmanager
def opened(
    out: str | os.PathLike,
    config: TrainingConfig,
    replaces: bool = False,
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Context manager: yields the folder that becomes `out`, and that of checkpoints.

    When the block raises and there is a checkpoint, the working directory stays, to
    be resumed; without one it is removed, with the parent folders that had to be
    made. With `replaces`, `out` is a finished run, whose place the new one takes.

    Raises:
        InputError: If `out` is in use or cannot be made, or an unfinished run with
            other settings, or of another process, is there.
    """
    out = pathlib.Path(out).absolute()
    work = work_folder(out)
    if out.is_dir() and work.is_dir() and not (work / _RUN).exists():
        # Of a process that was killed after it published its run.
        shutil.rmtree(work, ignore_errors=True)
    if not replaces:
        check_free(out)
    made = [p for p in out.parents if not p.exists()]
    try:
        make_folder(work)
    except OSError as error:
        raise InputError(
            f"The output folder {str(out)!r} cannot be made: {error.strerror}."
        ) from error
    check_no_links(work, *work.rglob("*"))
    with held(work):
        settings = encode(config)
        if (work / CONFIG).is_file():
            earlier = read_json(work / CONFIG)
            check_same(work, "an unfinished run", earlier, settings)
        else:
            write_json(work / CONFIG, settings)
        try:
            for name in (_RUN, CHECKPOINTS):
                make_folder(work / name)
            yield work / _RUN, work / CHECKPOINTS
            if replaces:
                out.rename(work / _REPLACED)
            publish_folder(work / _RUN, out)
        except BaseException as error:
            if not any((work / CHECKPOINTS).glob("*")):
                shutil.rmtree(work, ignore_errors=True)
                for parent in made:
                    # Another run may have put its results there in the meantime.
                    with contextlib.suppress(OSError):
                        parent.rmdir()
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(AGAIN) from None
            raise
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def held(work: pathlib.Path) -> Iterator[None]:
    """Context manager: locks a working directory; the lock ends with the process."""
    with (work / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is training into {str(work)!r} right now. Wait for "
                "it, or name another --out."
            ) from None
        yield


def restore_replaced(out: str | os.PathLike) -> None:
    """Moves a finished run back to its name, where its replacement was interrupted."""
    out = pathlib.Path(out).absolute()
    replaced = work_folder(out) / _REPLACED
    if replaced.is_dir() and not os.path.lexists(out):
        with held(work_folder(out)):
            replaced.rename(out)


def with_fewer_epochs(out: str | os.PathLike, config: TrainingConfig) -> Run | None:
    """Returns the finished run of these settings, but for fewer epochs, if any."""
    out = pathlib.Path(out)
    if not (out / CONFIG).is_file():
        return None
    run = load_run(out)
    same = dataclasses.replace(run.config, epochs=config.epochs) == config
    return run if same and run.config.epochs < config.epochs else None
