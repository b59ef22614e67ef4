"""Success criteria that a sweep file states before it runs, held against what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from analysis.frame import KNOB, MEAN
from hdsweep.metrics import parse_metric
from hdsweep.strategy import criterion

Met = Literal["met", "not met", "open"]

_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Criterion:
    """A success criterion of the sweep file, held against one configuration.

    Args:
        text: As in the file: ``tpr@1[domain=C] >= 0.80``.
        arm, knobs, number: The configuration.
        mean: Over its seeds; None where there is none.
        ci_low, ci_high: 95 % interval of the mean over seeds, by Student's t; None for n < 2.
        n, planned: Seeds that have a value, and that were planned.
        met: ``open`` while a planned seed is missing.
        sure: Whether the whole interval lies on the side on which the mean is.
    """

    text: str
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    planned: int
    met: Met
    sure: bool


def held(frame: pd.DataFrame, expect: Sequence[str]) -> tuple[Criterion, ...]:
    """Every criterion against every configuration, in their order.

    Args:
        frame: Of ``analysis.frame.load``, with the metrics that the criteria speak of.
        expect: Criteria as in the file.
    """
    found: list[Criterion] = []
    knobs = [name for name in frame.columns if name.startswith(KNOB)]
    for text in expect:
        asked = criterion(text)
        if asked is None:
            continue  # the file is checked when it is read
        metric = parse_metric(asked.metric, (asked.metric,))
        group = MEAN if metric.group is None else metric.group
        rows = frame[(frame["metric"] == metric.key) & (frame["group"] == group)]
        for _, cell in rows.groupby("cell", sort=False):
            value = cell["value"].to_numpy(dtype=np.float64)
            value = value[~np.isnan(value)]
            low, high = interval(value)
            first = cell.iloc[0]
            mean = float(value.mean()) if value.size else None
            open_ = value.size < len(cell) or mean is None
            good = mean is not None and asked.holds(mean)
            ends = [asked.holds(end) for end in (low, high) if end is not None]
            number = first["number"]
            found.append(
                Criterion(
                    text=text,
                    arm=str(first["arm"]),
                    knobs={
                        name.removeprefix(KNOB): first[name]
                        for name in knobs
                        if first[name] is not pd.NA
                    },
                    number=None if number is pd.NA else int(number),
                    mean=mean,
                    ci_low=low,
                    ci_high=high,
                    n=int(value.size),
                    planned=len(cell),
                    met="open" if open_ else "met" if good else "not met",
                    sure=bool(ends) and all(end == good for end in ends),
                )
            )
    return tuple(found)


def interval(value: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float | None, ...]:
    """95 % interval of a mean by Student's t, (low, high); None twice for fewer than two values."""
    if value.size < 2:
        return None, None
    half = stats.t.isf((1 - _LEVEL) / 2, value.size - 1) * value.std(ddof=1) / np.sqrt(value.size)
    return float(value.mean() - half), float(value.mean() + half)
