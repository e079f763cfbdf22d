"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Code = Annotated[
    list[str] | None,
    typer.Option(
        help="Code of the run's application, FILE.py:NAME or PACKAGE.MODULE:NAME, to "
        "be imported; a run folder alone imports none."
    ),
]
Jit = Annotated[
    bool | None,
    typer.Option(
        "--jit/--no-jit",
        help="Compile the steps by XLA; else with a GPU and 2,000 steps or more.",
    ),
]
