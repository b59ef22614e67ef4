"""Success criteria that a sweep file states before it runs, held against what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.frame import KNOB, MEAN
from hdsweep import strategy
from hdsweep.metrics import parse_metric
from hdsweep.strategy import criterion

Met = Literal["met", "not met", "open"]

_LEVEL = 0.95
_ROUNDING = 1e-12  # of a mean, relative: thousands of units in the last place


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
        optimistic: Whether a search drew it, and chose by the very seeds that the mean is over.
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
    optimistic: bool = False


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
        by_cell = rows.groupby("cell", sort=False)["value"]
        counted = by_cell.agg(["mean", "std", "count", "size"])
        low, high = interval(*(counted[name].to_numpy() for name in ("mean", "std", "count")))
        described = rows.drop_duplicates("cell")
        settings = zip(*(described[name] for name in knobs), strict=True) if knobs else None
        for arm, number, part, setting, mean, n, planned, ends in zip(
            described["arm"],
            described["number"],
            described["part"],
            settings or ((),) * len(described),
            counted["mean"].tolist(),
            counted["count"].tolist(),
            counted["size"].tolist(),
            zip(low.tolist(), high.tolist(), strict=True),
            strict=True,
        ):
            good = n > 0 and _reaches(asked, mean)
            known = not math.isnan(ends[0])
            found.append(
                Criterion(
                    text=text,
                    arm=arm,
                    knobs={
                        name.removeprefix(KNOB): value
                        for name, value in zip(knobs, setting, strict=True)
                        if value is not pd.NA
                    },
                    number=None if number is pd.NA else int(number),
                    mean=mean if n else None,
                    ci_low=ends[0] if known else None,
                    ci_high=ends[1] if known else None,
                    n=n,
                    planned=planned,
                    met="open" if n < planned else "met" if good else "not met",
                    sure=known and all(_reaches(asked, end) == good for end in ends),
                    optimistic=number is not pd.NA and part != "confirm",
                )
            )
    return tuple(found)


def _reaches(asked: strategy.Criterion, value: float) -> bool:
    # A mean of decimal numbers misses the number that it is by a rounding error.
    near = math.isclose(value, asked.bound, rel_tol=_ROUNDING)
    return asked.holds(asked.bound if near else value)


def interval(
    mean: NDArray[np.float64], std: NDArray[np.float64], n: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % intervals of means by Student's t.

    Args:
        mean: Shape (k,).
        std: Shape (k,), ddof = 1.
        n: Shape (k,), how many values each mean is of.

    Returns:
        Lower and upper ends, each of shape (k,); NaN where n < 2.
    """
    count = np.where(n < 2, np.nan, n)
    half = stats.t.isf((1 - _LEVEL) / 2, count - 1) * std / np.sqrt(count)
    return mean - half, mean + half
