"""Packages of extras, and modules that are imported on first use."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtl_keras.errors import MissingExtraError


@contextlib.contextmanager
def extra(name: str, package: str, user: str) -> Iterator[None]:
    """Context manager: names the extra to install where an import in it fails.

    ```python
    with optional.extra("text", "sacrebleu", "BLEU"):
        import sacrebleu
    ```

    Args:
        name: The extra in `pyproject.toml`.
        package: The distribution that is imported, by its name in `pyproject.toml`.
        user: The part that needs it, the start of the message.

    Raises:
        MissingExtraError: For an import of what is not installed. Of a package that
            is installed but broken, the import's own error stays.
    """
    try:
        yield
    except ImportError as error:
        # The path of a file that is there, but cannot be imported.
        if error.path is not None:
            raise
        raise MissingExtraError(
            f"{user} needs {package}: pip install 'mtl_keras[{name}]'"
        ) from error


def on_first_use(room: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package that imports some names on first use.

    ```python
    __getattr__ = optional.on_first_use(__name__, {"export": "exporting"})
    ```

    Args:
        room: The package's name.
        modules: Module within the package, by each name that it holds.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{modules[name]}"), name)

    return load
