"""Names of trials and stages: a digest of canonical JSON.

Two descriptions that mean the same must give the same bytes, on every machine and for years, or a
store's work is orphaned. So: keys sorted, no spaces, UTF-8, and a float with an integral value is
written as the integer (``1.0`` and ``1`` are one number to a researcher). Other floats use Python's
shortest round-trip form. RFC 8785 says nearly the same, but its Python implementation takes 100 us
for a trial, ten seconds for a plan of 100,000.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

DIGEST_CHARS = 20  # 80 bits: a million trials collide with probability below 1e-12
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)
_Scalar = str | int | float | None
_EXACT_INTEGERS = 2**53  # beyond it a float no longer names one integer


def canonical_json(value: object) -> bytes:
    """The one encoding of a JSON value.

    Args:
        value: None, bool, int, finite float, str, or sequences and string-keyed mappings of them.

    Raises:
        ValueError: NaN or infinity, which are equal to nothing and cannot name a trial.
        TypeError: Anything that is not JSON.
    """
    return _ENCODER.encode(_normal(value)).encode()


def digest(value: object) -> str:
    """20 hex digits of SHA-256 over ``canonical_json(value)``."""
    return digest_of(canonical_json(value))


def digest_of(encoded: bytes) -> str:
    """The digest of a value whose canonical JSON is at hand."""
    return hashlib.sha256(encoded).hexdigest()[:DIGEST_CHARS]


def joined(members: Mapping[str, bytes]) -> bytes:
    """Canonical JSON of a mapping whose values are encoded already.

    Trials of a sweep differ in a seed and a knob; this spares encoding the rest of them 100,000
    times. Equal to ``canonical_json`` of the mapping itself.
    """
    return b"{" + b",".join(_key(name) + members[name] for name in sorted(members)) + b"}"


def encoded_knobs(values: Mapping[str, object]) -> bytes:
    """``canonical_json`` of a flat mapping, fast where many share most of their values."""
    return joined(
        {
            name: _scalar(value) if isinstance(value, _Scalar) else canonical_json(value)
            for name, value in values.items()
        }
    )


@lru_cache(maxsize=1 << 16, typed=True)  # typed: True, 1 and 1.0 are equal and not the same
def _scalar(value: _Scalar) -> bytes:
    return canonical_json(value)


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return canonical_json(name) + b":"


def _normal(value: object) -> object:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of an identity")
        return int(value) if value.is_integer() and abs(value) < _EXACT_INTEGERS else value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of an identity are strings, found {list(value)}")
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_normal(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of an identity: {value!r}")
