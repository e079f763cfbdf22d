"""Small helpers for what commands read and print."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def examples(*lines: str) -> str:
    """Returns a help page's epilog with one example per line."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


def make_console() -> Console:
    """Returns a console on standard output, wide where no window limits it."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def plain_table(*columns: str) -> Table:
    """Returns a table without lines, which reads the same in a log file."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")
