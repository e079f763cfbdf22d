"""Methods with arguments as text: `cagrad(c=0.5)`, `uncertainty + pcgrad`.

The inverse of `mtl_keras.registry.spec_name`.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from mtl_keras.errors import InputError
from mtl_keras.runs.config import Spec

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_CONSTANTS = {"true": True, "false": False, "null": None}
_NAME = re.compile(r"[^\s()\[\]{},+='\"]+")


def read_spec(text: str) -> Spec | list[Spec]:
    """Returns a name or configuration, as the registries take it.

    Args:
        text: A name, or a name with arguments: `name(argument=value, ...)`. Values
            are numbers, texts (the quotes may be left out of a name), true, false,
            null, lists `[...]`, tables `{...}`, or again names with arguments. Several
            are joined by a plus.

    Returns:
        `"name"`, `{"class_name": name, "config": {argument: value}}`, or a list of
        them.

    Raises:
        InputError: If the text is written in another way.

    Example:

    ```pycon
    >>> from mtl_keras.specs import read_spec
    >>> read_spec("cagrad(c=0.5)")
    {'class_name': 'cagrad', 'config': {'c': 0.5}}
    >>> read_spec("uncertainty + pcgrad")
    ['uncertainty', 'pcgrad']
    ```
    """
    members = [_member(part, text) for part in _split(text, "+")]
    return members[0] if len(members) == 1 else members


def read_specs(text: str) -> list[Spec | list[Spec]]:
    """Returns several of them, with commas between them; see `read_spec`.

    Args:
        text: For example `equal, cagrad(c=0.5), uncertainty + pcgrad`. Empty members
            are left out.

    Raises:
        InputError: See `read_spec`.
    """
    return [read_spec(part) for part in _split(text, ",") if part]


def _split(text: str, separator: str) -> list[str]:
    """Returns the parts between separators that are in no brackets and no quotes."""
    parts: list[str] = []
    waiting: list[str] = []  # closing brackets
    part, quote, escaped = "", "", False
    for character in text:
        if quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character in _CLOSING:
            waiting.append(_CLOSING[character])
        elif waiting and character == waiting[-1]:
            waiting.pop()
        elif character == separator and not waiting:
            parts.append(part.strip())
            part = ""
            continue
        part += character
    if quote or waiting:
        raise _malformed(text, f"no closing {quote or waiting[-1]!r}")
    return [*parts, part.strip()]


def _member(part: str, text: str) -> Spec:
    if not part.endswith(")"):
        if not _NAME.fullmatch(part):
            raise _malformed(text, f"{part!r} as a name")
        return part
    name, _, arguments = part.partition("(")
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise _malformed(text, f"{name!r} as a name")
    config: dict[str, Any] = {}
    for argument in _split(arguments[:-1], ","):
        if not argument:
            continue
        key, equals, value = (piece.strip() for piece in argument.partition("="))
        if not equals or not key.isidentifier():
            raise _malformed(text, f"{argument!r} as an argument")
        if key in config:
            raise _malformed(text, f"{key!r} twice")
        config[key] = _value(value, text)
    return {"class_name": name, "config": config} if config else name


def _value(value: str, text: str) -> Any:
    if value in _CONSTANTS:
        return _CONSTANTS[value]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        if _NAME.fullmatch(value) and not value[0].isdigit():
            return value
        if value.endswith(")") and value[0].isalpha():
            return _member(value, text)
        raise _malformed(text, f"{value!r} as a value") from error


def _malformed(text: str, received: str) -> InputError:
    return InputError(
        "Expected NAME or NAME(ARGUMENT=VALUE, ...), joined by a plus. "
        f"Received: {text!r}, with {received}."
    )
