"""Prints where TensorFlow is and how to compile for it, for CMake.

`tf.sysconfig` says the same but needs TensorFlow imported, which takes seconds and
fails where its libraries are only there to build against.

Prints `folder;version;_GLIBCXX_USE_CXX11_ABI`; fails without TensorFlow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import pathlib
import sys


def main() -> None:
    """Looks TensorFlow up and prints."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("TensorFlow is not installed.")
    folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
    library = folder / "libtensorflow_framework.so.2"
    if not (folder / "include").is_dir() or not library.exists():
        sys.exit(f"Expected TensorFlow's headers and library in {folder}.")
    # The package may also be called tensorflow_cpu and the like.
    (name, *_) = importlib.metadata.packages_distributions()["tensorflow"]
    with library.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        new_abi = content.find(b"NSt7__cxx1112basic_string") >= 0
    print(folder, importlib.metadata.version(name), int(new_abi), sep=";")


if __name__ == "__main__":
    main()
