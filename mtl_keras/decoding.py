"""One decoder of settings and records: plain values in, checked objects out.

TOML, JSON and Python give the same plain values. Pydantic checks them, as its errors
say by data, not by text, where and why a value is wrong: they become one line with the
key's path and the nearest names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import typing
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field, PlainValidator, StrictFloat, StrictInt

from mtl_keras.errors import LARGEST_COUNT, InputError, is_number, unknown_name


class Decodable:
    """Base of the dataclasses that `decode` makes; unknown keys are errors."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")


def _result(value: Any) -> float:
    if value is None:
        return math.nan
    if is_number(value) and (abs(value) < sys.float_info.max or math.isnan(value)):
        return float(value)
    raise InputError(f"Expected a finite number or null. Received: {value!r:.100}.")


Count = Annotated[StrictInt, Field(ge=1, le=LARGEST_COUNT)]
Finite = Annotated[
    StrictFloat,
    Field(allow_inf_nan=False, gt=-sys.float_info.max, lt=sys.float_info.max),
]
# A result in JSON, which lacks NaN and infinity and has null in their place.
Result = Annotated[float, PlainValidator(_result)]

_D = TypeVar("_D")


def decode(cls: type[_D], values: Any, where: str = "") -> _D:
    """Returns the object of a class that plain values describe.

    Args:
        cls: A dataclass.
        values: Plain values from TOML, JSON or Python: a dictionary by field.
        where: Source of the values, for the start of messages.

    Raises:
        InputError: For an unknown or missing key, a wrong type or a value out of
            range, in one line.
    """
    try:
        return _adapter(cls).validate_python(values)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        lead = f"{where}: " if where else ""
        raise InputError(f"{lead}{_explained(cls, error)}") from error


@functools.lru_cache
def _adapter(cls: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(cls)


def _explained(cls: type, error: pydantic.ValidationError) -> str:
    # A key that is missing may be the one that was misspelt.
    first = min(error.errors(), key=lambda details: details["type"] == "missing")
    kind, location = first["type"], first["loc"]
    path = _path(location)
    if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
        return f"{path}: {cause}" if path else str(cause)
    if kind == "unexpected_keyword_argument":
        known = _fields(cls, location[:-1])
        parent = f" in {_path(location[:-1])}" if location[:-1] else ""
        return str(unknown_name(f"key{parent}", location[-1], known))
    if kind == "missing":
        return f"Expected the key {path!r}, which is missing."
    expected = first["msg"].removeprefix("Input should be ")
    if kind in _LIMITS:
        noun = "a whole number" if isinstance(first["input"], int) else "a number"
        expected = f"{noun} {_LIMITS[kind].format(**first['ctx'])}"
    for formal, usual in _USUAL.items():
        expected = expected.replace(formal, usual)
    received = str(first["input"]) if kind == "dataclass_type" else first["input"]
    return f"Expected {path or 'this'} to be {expected}. Received: {received!r:.100}."


# Pydantic's expressions in the words of the other messages.
_USUAL = {
    "a dictionary or an instance of": "a table with the settings of",
    "a valid dictionary": "a table",
    "a valid integer": "a whole number",
    "a valid list": "a list",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid tuple": "a list",
    "a valid boolean": "true or false",
}
_LIMITS = {
    "greater_than_equal": "of at least {ge}",
    "less_than_equal": "of at most {le}",
    "greater_than": "above {gt}",
    "less_than": "below {lt}",
}


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))


def _fields(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    """Returns the fields of the dataclass at a place within another one."""
    for key in location:
        hint = typing.get_type_hints(cls).get(str(key))
        options = [hint, *typing.get_args(hint)]
        cls = next(option for option in options if dataclasses.is_dataclass(option))
    return [field.name for field in dataclasses.fields(cls)]
