"""Packages that one part of the library needs, and the extras that install them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
