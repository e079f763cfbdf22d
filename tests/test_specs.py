"""Methods with arguments as text, and back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_keras import balancing, sharing
from mtl_keras.errors import InputError
from mtl_keras.registry import spec_name
from mtl_keras.specs import read_spec, read_specs

_WORDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)
_METHODS = _WORDS | st.builds(
    lambda name, config: {"class_name": name, "config": config},
    _WORDS,
    st.dictionaries(_WORDS, _VALUES, min_size=1, max_size=3),
)
_SPECS = _METHODS | st.lists(_METHODS, min_size=2, max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(_SPECS, min_size=1, max_size=3))
@example([{"class_name": "a", "config": {"b": "[", "c": "it's, (1"}}])
def test_spec_names_are_read_back(specs):
    assert [read_spec(spec_name(spec)) for spec in specs] == specs
    assert read_specs(", ".join(map(spec_name, specs))) == specs


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pcgrad", "pcgrad"),
        (" dwa ( ) ", "dwa"),
        ("cagrad( c = 0.5 , )", {"class_name": "cagrad", "config": {"c": 0.5}}),
        (
            "uncertainty+mgda(gradients_of=representation, normalize=true)",
            [
                "uncertainty",
                {
                    "class_name": "mgda",
                    "config": {"gradients_of": "representation", "normalize": True},
                },
            ],
        ),
        (
            "manifold(scalarisation=cosmos(strength=4.0))",
            {
                "class_name": "manifold",
                "config": {
                    "scalarisation": {
                        "class_name": "cosmos",
                        "config": {"strength": 4.0},
                    }
                },
            },
        ),
        (
            "static(task_weights={'a': 1, 'b)': [2, 3]})",
            {
                "class_name": "static",
                "config": {"task_weights": {"a": 1, "b)": [2, 3]}},
            },
        ),
    ],
)
def test_people_write_methods_as_they_like(text, spec):
    assert read_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        *("", "a+", "a b", "a(b)", "a(1)", "a(b=)", "a(b=1", "a(b=1))", "a(b=1, b=2)"),
        *("a(b=f(1))", "a(b='x)", "(b=1)", "a(b=1)c", "a(b=__import__('os'))"),
    ],
)
def test_malformed_specs_are_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"^Expected NAME or NAME\(ARGUMENT") as raised:
        read_spec(text)
    assert "\n" not in str(raised.value)


def test_the_registries_take_specs_as_read():
    assert balancing.get(read_spec("cagrad(c=0.25)")).c == 0.25
    assert (
        sharing.get(read_spec("mmoe(num_experts=3)")).get_config()["num_experts"] == 3
    )
