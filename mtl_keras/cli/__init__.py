"""The `mtl-keras` command. `--help` needs neither TensorFlow nor Keras."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command line; the entry point of `mtl-keras`."""
    from mtl_keras.cli.app import app

    app()
