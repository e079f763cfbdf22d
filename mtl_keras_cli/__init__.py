"""The `mtl-keras` command.

A package beside the library, because importing the library loads TensorFlow: here
`--help` needs none of it, and TensorFlow's start-up noise is silenced first.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command line; the entry point of `mtl-keras`."""
    from mtl_keras_cli.app import app

    app()
