"""`mtl-keras datasets`: listing and preparing data sets."""

from __future__ import annotations

import pathlib
import time
from typing import Annotated

import typer

from mtl_keras_cli import tensorflow
from mtl_keras_cli.text import examples, make_console, plain_table

app = typer.Typer(help="List data sets, and prepare them for training.")


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """List data sets, and prepare them for training."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@app.command("list", epilog=examples("mtl-keras datasets list"))
def list_() -> None:
    """List the data sets, and which of them are prepared."""
    tensorflow.load()
    from mtl_keras import data

    table = plain_table("name", "prepared", "needs files", "what it is")
    for name in data.names():
        info = data.info(name)
        table.add_row(
            info.name,
            "yes" if info.prepared else "no",
            "yes" if info.needs_downloads else "no",
            info.description,
        )
    make_console().print(table)


@app.command(
    epilog=examples(
        "mtl-keras datasets prepare multi_digits",
        "mtl-keras datasets prepare multi_digits/mnist --downloads ~/mnist",
    )
)
def prepare(
    name: Annotated[str, typer.Argument(help="Data set; see the list.")],
    downloads: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder with the original files, where they are needed."),
    ] = None,
) -> None:
    """Prepare a data set once; training loads it from there.

    The folder is MTL_KERAS_DATA_DIR, else TFDS_DATA_DIR, else
    ~/tensorflow_datasets. Nothing is fetched over the network.
    """
    tensorflow.load()
    from mtl_keras import data
    from mtl_keras.callbacks.task_progress import duration

    console = make_console()
    info = data.info(name)
    if info.prepared:
        console.print(f"{info.name} is prepared already, in {info.path}")
        return
    started = time.monotonic()
    with console.status(f"Preparing {info.name}"):
        data.prepare(name, downloads=downloads)
    info = data.info(name)
    splits = ", ".join(f"{split} {count:,}" for split, count in info.splits.items())
    console.print(
        f"Prepared {info.name} in {duration(time.monotonic() - started)}: {splits} "
        f"examples, in {info.path}",
        soft_wrap=True,
    )
