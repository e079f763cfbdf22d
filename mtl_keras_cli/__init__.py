"""The `mtl-keras` command.

A package beside the library, because importing the library loads TensorFlow: here
`--help` needs none of it, and TensorFlow's start-up noise is silenced first.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; the entry point of `mtl-keras`."""
    try:
        import typer  # noqa: F401
    except ImportError:
        # Not by `mtl_keras.optional`: importing the library loads TensorFlow.
        print(
            "mtl-keras: The command line needs typer: pip install 'mtl_keras[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from mtl_keras_cli.app import app

    app()
