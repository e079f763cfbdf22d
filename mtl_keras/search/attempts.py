"""How often the process that ran a trial died with it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from mtl_keras.errors import InputError, check_integer
from mtl_keras.runs.folder import read_json, write_json

MOST = 2  # deaths, after which a trial is not run again
_FILE = "attempts.json"


class Attempts:
    """Attempts at the trials of a study that began and never ended.

    The count lies in the trial's own folder and goes up before the trial runs, so
    that no kind of death escapes it: a kill, memory that ran out, a crash in native
    code, of a lone process as of a worker. It goes down again at every end that is
    not the death of the process. What a process ends of for reasons other than its
    trial (an interruption, a chief that is gone) has to come through `attempt` as
    an exception or be told by `withdraw`.

    Args:
        state: The folder of the study's state.
    """

    def __init__(self, state: pathlib.Path):
        self._state = state
        self._under_way: tuple[str, int] | None = None

    def lost(self, trial_id: str) -> int:
        """Returns how many attempts at a trial began and never ended.

        Raises:
            InputError: If the count cannot be read.
        """
        path = self._path(trial_id)
        if not path.is_file():
            return 0
        try:
            return check_integer("lost", read_json(path).get("lost"), low=0)
        except InputError as error:
            raise InputError(f"{str(path)!r} is broken: {error}") from error

    @contextlib.contextmanager
    def attempt(self, trial_id: str) -> Iterator[None]:
        """Counts an attempt as lost while the block runs."""
        self._under_way = trial_id, self.lost(trial_id)
        write_json(self._path(trial_id), {"lost": self._under_way[1] + 1})
        try:
            yield
        finally:
            self.withdraw()

    def withdraw(self) -> None:
        """Takes the attempt under way, if there is one, out of the count."""
        # A worker's heartbeat may come here while its trial ends.
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            trial_id, lost = under_way
            write_json(self._path(trial_id), {"lost": lost})

    def _path(self, trial_id: str) -> pathlib.Path:
        return self._state / f"trial_{trial_id}" / _FILE
