"""Errors of the command line: one clear line, and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
import typer.core

FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130


class Commands(typer.core.TyperGroup):
    """A command group whose errors are one line on standard error.

    Exit codes: 1 where a command ran to its end and has to tell of a failure
    (`compare`: a training failed; `tune`: no trial finished; `serve-check` and
    `export --check`: an answer differs), 2 for wrong input, whether in the command
    line itself or in what it names, and 130 for an interruption. Everything else is
    a defect and keeps its traceback.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Parses and runs, as `app()` does."""
        standalone = kwargs.get("standalone_mode", True)
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            if _is_input_error(error):
                code = _fail(str(error))
            # Typer's own errors; their classes have moved between versions.
            elif hasattr(error, "format_message"):
                code = _fail(f"{error.format_message().rstrip('.')}. See `--help`.")
            else:
                raise
        if standalone:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, and ends an interrupted one in one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _say(" ".join(["Interrupted.", *map(str, error.args)]))
            raise typer.Exit(INTERRUPTED) from None


def _is_input_error(error: Exception) -> bool:
    """Returns whether this is a `mtl_keras.errors.InputError`.

    Told by its module, as importing the class would load TensorFlow.
    """
    return type(error).__module__ == "mtl_keras.errors"


def _fail(message: str) -> int:
    _say(f"mtl-keras: {message}")
    return WRONG_INPUT


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
