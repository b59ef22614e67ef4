"""What names a trial, and what does not."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdsweep.identity import canonical_json, digest, encoded_knobs, joined

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _shuffled(value: object, rng: random.Random) -> object:
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: _shuffled(value[key], rng) for key in keys}
    return [_shuffled(v, rng) for v in value] if isinstance(value, list) else value


def _floated(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict):
        return {key: _floated(v) for key, v in value.items()}
    return [_floated(v) for v in value] if isinstance(value, list) else value


@given(json_values, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_change_a_digest(value: object, rng: random.Random) -> None:
    assert digest(_shuffled(value, rng)) == digest(value)


@given(json_values)
def test_an_integer_and_the_equal_float_have_one_digest(value: object) -> None:
    assert digest(_floated(value)) == digest(value)


@given(json_values, json_values)
def test_different_values_have_different_encodings(one: object, other: object) -> None:
    if canonical_json(one) == canonical_json(other):
        assert _equal(one, other)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_members_encoded_apart_join_to_the_encoding_of_the_whole(value: dict[str, object]) -> None:
    assert joined({k: canonical_json(v) for k, v in value.items()}) == canonical_json(value)
    assert encoded_knobs(value) == canonical_json(value)


def test_the_encoding_is_pinned_because_changing_it_orphans_every_store() -> None:
    value = {
        "method": "dinomaly",
        "version": 1,
        "params": {"lr": 2e-3, "q_percent": 5.0, "weights": None, "on": True, "name": "é|\u2028"},
        "data": {"domains": ["A", "B"], "tiny": 1e-07, "big": 1.5e300, "zero": -0.0},
        "seed": 42,
    }
    assert (
        canonical_json(value)
        == (
            '{"data":{"big":1.5e+300,"domains":["A","B"],"tiny":1e-07,"zero":0},"method":"dinomaly",'
            '"params":{"lr":0.002,"name":"é|\u2028","on":true,"q_percent":5,"weights":null},'
            '"seed":42,"version":1}'
        ).encode()
    )
    assert digest(value) == "4557c2e11b19e32c2967"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_cannot_name_a_trial(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be part of an identity"):
        digest({"lr": [value]})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, b"bytes", object()])
def test_what_is_not_json_cannot_name_a_trial(value: object) -> None:
    with pytest.raises(TypeError, match="identity"):
        digest(value)
