"""`mtl-keras serve-check`."""

from __future__ import annotations

import pathlib

import typer
from rich.console import Console

from mtl_keras import serving
from mtl_keras.errors import InputError
from mtl_keras_cli.errors import FAILED
from mtl_keras_cli.text import plain_table


def check_export(
    path: pathlib.Path, *, tolerance: float | None, seconds: float, console: Console
) -> None:
    """Checks an export and prints the results.

    Raises:
        InputError: If there is no export, or it cannot be loaded.
        typer.Exit: With code 1, if anything differs.
    """
    if not (tolerance is None or tolerance >= 0) or not seconds >= 0:
        raise InputError(
            "Expected --tolerance and --seconds of at least 0. Received: "
            f"{tolerance}, {seconds}."
        )
    report = serving.check(path, tolerance=tolerance, seconds=seconds)
    console.print(
        f"{report.version}, loaded by TensorFlow's loader with the tag serve:",
        soft_wrap=True,
    )
    table = plain_table("signature")
    for head in ("records", "difference", "batch", "median ms", "p95 ms", "samples/s"):
        table.add_column(head, justify="right")
    for name, signature in report.signatures.items():
        first = (name, str(signature.records), f"{signature.difference:.1e}")
        if not signature.timings:
            table.add_row(*first)
        for timing in signature.timings:
            table.add_row(
                *first,
                str(timing.batch_size),
                f"{timing.median_ms:.2f}",
                f"{timing.p95_ms:.2f}",
                f"{timing.samples_per_second:,.0f}",
            )
            first = ("", "", "")
    console.print(table)
    for problem in report.problems:
        console.print(problem, soft_wrap=True, markup=False)
    if report.problems:
        console.print(f"{report.version} is not the model that was exported.")
        raise typer.Exit(FAILED)
    console.print("Every answer is that of the Keras model.")
