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

DIGEST_CHARS = 20  # 80 bits: a million trials collide with probability below 1e-12
_EXACT_INTEGERS = 2**53  # beyond it a float no longer names one integer


def canonical_json(value: object) -> bytes:
    """The one encoding of a JSON value.

    Args:
        value: None, bool, int, finite float, str, or sequences and string-keyed mappings of them.

    Raises:
        ValueError: NaN or infinity, which are equal to nothing and cannot name a trial.
        TypeError: Anything that is not JSON.
    """
    return json.dumps(
        _normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: object) -> str:
    """20 hex digits of SHA-256 over ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:DIGEST_CHARS]


def _normal(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
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
