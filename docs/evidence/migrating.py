"""What the page on migrating from Keras has of results."""

from __future__ import annotations

from evidence.markdown import results


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    graph, eager = (results("keras_suite")[mode] for mode in ("graph", "eager"))
    version = graph["made_with"]["keras"].rpartition(".")[0]
    return [
        f"Of {graph['tests']} tests of Keras {version} that pass as they are and make "
        f"such a model {graph['pass']} pass with graphs and {eager['pass']} without "
        "(`--eager`; `benchmarks/results/keras_suite.json`)"
    ]
