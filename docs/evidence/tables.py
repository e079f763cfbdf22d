"""What the page on tables has of results."""

from __future__ import annotations

from evidence.markdown import results

OTHERS = ("without it, tables of more than about 2 GB stream",)


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    measured = results("table_rows")
    described, read, streamed, held = (
        measured[part] for part in ("describe", "read", "train", "model")
    )
    read_rate, streamed_rate, held_rate = (
        part["rows_per_cpu_second"] for part in (read, streamed, held)
    )
    return [
        f"rows of {measured['write']['columns']} columns are described in "
        f"{described['cpu_seconds']:.0f} s of processor time, once, and then read in a "
        f"random order at {round(read_rate, -3):,.0f} rows per second of it, in "
        f"{read['resident_mib_at_most'] / 1024:.1f} GiB of memory at most. A training "
        f"on them takes {round(streamed_rate, -2):,.0f} rows per second of it in "
        f"{streamed['resident_mib_at_most'] / 1024:.1f} GiB, the same model on rows in "
        f"memory {round(held_rate, -2):,.0f} (`python benchmarks/table_rows.py`, "
        f"{streamed['rows'] / 1e6:.1f} million rows streamed)."
    ]
