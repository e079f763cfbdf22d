"""Plain values become checked objects, or one line that says where and why not."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import pytest
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from mtl_keras.decoding import Count, Decodable, Finite, Result, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner(Decodable):
    depth: Count
    names: tuple[StrictStr, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer(Decodable):
    rate: Annotated[Finite, Field(gt=0)]
    inner: Inner | None = None
    results: dict[str, Result] = dataclasses.field(default_factory=dict)
    seed: StrictInt = 0
    weight: StrictFloat = 1.0

    def __post_init__(self):
        if self.seed == 13:
            raise InputError("Expected another seed.")


def test_encoded_values_are_decoded_to_the_same():
    whole = Outer(0.5, Inner(3, ("a", "ü")), {"x": math.nan, "y": 2.0}, 7)
    values = encode(whole)
    assert values["results"] == {"x": None, "y": 2.0}
    assert values["inner"] == {"depth": 3, "names": ["a", "ü"]}
    again = decode(Outer, values)
    assert math.isnan(again.results.pop("x"))
    assert again == dataclasses.replace(whole, results={"y": 2.0})
    # A whole number is a number, and a whole one only if it is an integer.
    assert decode(Outer, {"rate": 1, "weight": 2}).rate == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1.0}, "Unknown key. Did you mean 'rate'?"),
        ({}, "Expected the key 'rate', which is missing."),
        ({"rate": 0}, "Expected rate to be a whole number above 0.0. Received: 0."),
        ({"rate": "x"}, "Expected rate to be a number. Received: 'x'."),
        ({"rate": True}, "Expected rate to be a number. Received: True."),
        ({"rate": math.inf}, "Expected rate to be a finite number. Received: inf."),
        ({"rate": 1e309}, "Expected rate to be a finite number. Received: inf."),
        ({"rate": 1, "seed": 1.0}, "Expected seed to be a whole number. Received"),
        ({"rate": 1, "seed": 13}, "Expected another seed."),
        ({"rate": 1, "inner": 3}, "Expected inner to be a table"),
        (
            {"rate": 1, "inner": {"dept": 1}},
            "Unknown key in inner. Did you mean 'depth'?",
        ),
        (
            {"rate": 1, "inner": {"depth": 0}},
            "Expected inner.depth to be a whole number of at least 1. Received: 0.",
        ),
        (
            {"rate": 1, "inner": {"depth": 2**31}},
            "inner.depth to be a whole number of at most 2147483647. Received: 21474",
        ),
        (
            {"rate": 1, "inner": {"depth": 1, "names": [1]}},
            "Expected inner.names.0 to be a text. Received: 1.",
        ),
        ({"rate": 1, "results": {"x": "1"}}, "results.x: Expected a finite number"),
        ([1], "Expected this to be a table"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place(values, message):
    with pytest.raises(InputError) as caught:
        decode(Outer, values, "file.toml")
    assert str(caught.value).startswith("file.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
