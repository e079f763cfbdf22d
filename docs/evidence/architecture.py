"""What the page on how it is built has of results."""

from __future__ import annotations

from evidence.markdown import results


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    seconds = [of["after_keras"] for of in results("import_time").values()]
    return [f"takes {max(seconds):.2f} s of processor time after Keras's own import"]
