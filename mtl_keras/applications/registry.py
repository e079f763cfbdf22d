"""Applications by name: built in, registered, of plugins, data files, own code.

A configuration names its application by a string, and so does the `config.json` of a
run folder, which may come from anywhere. So own code, and that of installed packages,
is imported only if this process, or the one that started it, was told to: by `allow`,
which the command line calls for what is named on it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from mtl_keras import errors
from mtl_keras.applications.base import Application
from mtl_keras.applications.multimodal import Multimodal
from mtl_keras.applications.recommendation import Recommendation
from mtl_keras.applications.text import Text
from mtl_keras.applications.vision import Vision

ALLOWED = "MTL_KERAS_APPLICATIONS"
"""Environment variable: JSON `{name: code}` of what may be imported. Processes that
this one starts inherit it."""
GROUP = "mtl_keras.applications"
"""Group of entry points, by which installed packages offer applications."""

_BUILT_IN: dict[str, Callable[[], Application]] = {
    cls.name: cls for cls in (Multimodal, Recommendation, Text, Vision)
}
_registered: dict[str, Callable[[], Application]] = {}
_imported: dict[str, Any] = {}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted; data files and code apart."""
    return sorted({*_BUILT_IN, *_registered, *_entry_points()})


def get(name: str) -> Application:
    """Returns an application.

    Args:
        name: One of `names()`; the path of a data file, `….toml`; or code,
            `FILE.py:NAME` or `PACKAGE.MODULE:NAME`. Code, and what an installed
            package offers, after `allow` was called for it.

    Raises:
        InputError: No application has this name, its data file is wrong, or it is
            code that this process was not told to import.
    """
    if name in _registered:
        return _registered[name]()
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    if _is_data_file(name):
        from mtl_keras.applications.table.application import Table

        return Table(name)
    if name in _allowed() or is_code(name) or name in _entry_points():
        return _application(name, load_code(name))
    raise errors.unknown_name("application", name, names())


def load_code(name: str) -> Any:
    """Returns what code names, imported once a process.

    Args:
        name: What `allow` was called for.

    Raises:
        InputError: If this process was not told to import it, or it is not there.
    """
    if name not in _allowed():
        raise errors.InputError(
            f"{name!r} is code, which is imported only if it is named on the command "
            "line: as the application, its data, or by --code where a run folder is "
            "given. In Python, call mtl_keras.applications.allow(name) first."
        )
    return _import(_allowed()[name])


def register(name: str, application: Callable[[], Application]) -> None:
    """Registers an application under a name that `get` accepts.

    Processes that this one starts know the name too, where the application is defined
    in a file of its own, and not in the program itself or within a function.

    Args:
        name: The name.
        application: A class, or a function without arguments that returns an
            application.

    Raises:
        InputError: If the name is a built-in one, or one that stands for a file.

    Example:

    ```python
    mtl_keras.applications.register("houses", lambda: Table("houses.toml"))
    ```
    """
    if name in _BUILT_IN or _is_data_file(name) or is_code(name):
        raise errors.InputError(
            "Expected a name that is no built-in application and no file. Received: "
            f"{name!r}."
        )
    _registered[name] = application
    module = sys.modules.get(application.__module__)
    path = getattr(module, "__file__", None)
    importable = application.__qualname__.isidentifier()
    if application.__module__ != "__main__" and path and importable:
        _allow(name, f"{path}:{application.__qualname__}")


def allow(code: str | os.PathLike | Callable[..., Any]) -> str:
    """Permits this process, and those that it starts, to import an application's code.

    Args:
        code: `FILE.py:NAME` or `PACKAGE.MODULE:NAME`: a subclass of `Application`, or
            a function that builds a model or returns data sets; or such a class or
            function itself, at the top level of a file; or what an installed package
            offers. Other names allow nothing.

    Returns:
        The name as configurations are to have it: `canonical(name)`.

    Raises:
        InputError: For something that no other process could import by a name.
    """
    if not isinstance(code, (str, os.PathLike)):
        name = _name_of(code)
        _imported[name] = code
    else:
        name = canonical(os.fspath(code))
    if is_code(name) or name in _entry_points():
        _allow(name, name)
    return name


def _name_of(code: Any) -> str:
    """Returns `FILE.py:NAME` of a function or class."""
    module = sys.modules.get(getattr(code, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    name = getattr(code, "__qualname__", "")
    if not path or not name.isidentifier():
        raise errors.InputError(
            "Expected FILE.py:NAME, or a function or class at the top level of a file: "
            "trainings run in processes of their own, to which no data sets go, no "
            f"lambdas and nothing that a notebook defines. Received: {code!r:.100}."
        )
    return f"{pathlib.Path(path).absolute()}:{name}"


def canonical(name: str, folder: str | os.PathLike = ".") -> str:
    """Returns a name that means the same in every folder: with absolute paths.

    Args:
        name: A name that `get` accepts.
        folder: The folder that its path is relative to.
    """
    if name in _BUILT_IN or name in _registered:
        return name
    path, colon, attribute = name.rpartition(":")
    if _is_data_file(name):
        path, colon, attribute = name, "", ""
    elif not path.endswith(".py"):
        return name
    whole = pathlib.Path(folder, pathlib.Path(path).expanduser())
    return f"{whole.absolute()}{colon}{attribute}"


def label(name: str) -> str:
    """Returns a name of an application or of data as folders and titles can have it."""
    file = name.rpartition("#")[0] or name
    if _is_data_file(file):
        return pathlib.PurePath(file).stem
    path, _, attribute = name.rpartition(":")
    return attribute.lower() if path else name


def is_code(name: str) -> bool:
    """Returns whether a name is code: `FILE.py:NAME` or `PACKAGE.MODULE:NAME`."""
    path, _, attribute = name.rpartition(":")
    return bool(path) and attribute.isidentifier()


def _is_data_file(name: str) -> bool:
    return name.lower().endswith(".toml")


def _allowed() -> dict[str, str]:
    return json.loads(os.environ.get(ALLOWED) or "{}")


def _allow(name: str, code: str) -> None:
    os.environ[ALLOWED] = json.dumps({**_allowed(), name: code})


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {p.name: p for p in importlib.metadata.entry_points(group=GROUP)}


def _import(code: str) -> Any:
    """Returns what code names, imported once a process."""
    if code not in _imported and code in _entry_points():
        _imported[code] = _entry_points()[code].load()
    if code not in _imported:
        path, _, attribute = code.rpartition(":")
        module = _import_file(path) if path.endswith(".py") else _import_module(path)
        if not hasattr(module, attribute):
            public = [n for n in vars(module) if not n.startswith("_")]
            raise errors.unknown_name(f"name in {path}", attribute, public)
        _imported[code] = getattr(module, attribute)
    return _imported[code]


def _import_module(name: str) -> Any:
    # As `python -m` does; the console script does not look into the folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise errors.InputError(
            f"Expected the name of a module. Received: {name!r}, which is not found."
        ) from error


def _import_file(path: str) -> Any:
    file = pathlib.Path(path)
    if not file.is_file():
        raise errors.InputError(f"There is no file {path!r}.")
    for module in list(sys.modules.values()):
        known = getattr(module, "__file__", None)
        if known and module.__name__ != "__main__" and file.samefile(known):
            return module
    name = file.stem if file.stem not in sys.modules else f"{file.stem}_{id(file)}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Modules beside the file are found, as when it is run.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _application(name: str, value: Any) -> Application:
    if isinstance(value, Application):
        return value
    if isinstance(value, type) and issubclass(value, Application):
        return value()
    if callable(value) and not isinstance(value, type):
        from mtl_keras.applications.built import BuiltModel

        return BuiltModel(value, name)
    raise errors.InputError(
        f"Expected {name!r} to be a subclass of mtl_keras.applications.Application, or "
        f"a function that builds a model. Received: {value!r:.100}."
    )
