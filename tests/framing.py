"""Frames as ``analysis.frame.load`` makes them, from arrays: for studies too large for a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.frame import KNOB, MEAN, PARTS, STATUS
from hdsweep.metrics import POOLED


def framed(
    values: NDArray[np.float64],
    *,
    arms: Sequence[str],
    metrics: Sequence[str] = ("auroc",),
    groups: Sequence[str] = ("A", "B", "C", "D"),
    seeds: Sequence[int] | None = None,
    knobs: Sequence[Mapping[str, object]] | None = None,
    numbers: Sequence[int | None] | None = None,
    parts: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Frame of values of shape (metrics, cells, seeds, groups); their mean is the last group."""
    _, cells, n, g = values.shape
    every = np.concatenate([values, values.mean(axis=3, keepdims=True)], axis=3)
    metric, cell, seed, group = np.indices(every.shape).reshape(4, -1)
    knobs, numbers, parts = knobs or [{}] * cells, numbers or [None] * cells, parts or ["run"]
    names = list(dict.fromkeys(arms))
    value = every.ravel()
    data: dict[str, object] = {
        "metric": named(metric, metrics),
        "arm": named(np.array([names.index(arm) for arm in arms])[cell], names),
        "cell": cell,
        "study": named(np.full(len(cell), -1), []),
        "number": pd.array(numbers, dtype="Int64")[cell],
        "part": named(np.array([PARTS.index(p) for p in parts])[cell % len(parts)], PARTS),
    }
    for knob in dict.fromkeys(name for one in knobs for name in one):
        column = np.empty(cells, dtype=object)
        column[:] = [one.get(knob, pd.NA) for one in knobs]
        data[KNOB + knob] = pd.Series(column[cell], dtype=object)
    data |= {
        "seed": np.asarray(seeds if seeds is not None else range(n), dtype=np.int64)[seed],
        "trial": named(cell * n + seed, [f"{i:020x}" for i in range(cells * n)]),
        "group": named(np.where(group == g, g + 1, group), [*groups, POOLED, MEAN]),
        "status": named(np.zeros(len(cell), dtype=int), STATUS),
        "value": value,
        "reason": pd.Series(np.where(np.isnan(value), "undefined", ""), dtype=object),
    }
    return pd.DataFrame(data)


def named(codes: NDArray[np.integer], names: Sequence[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(list(names)))
