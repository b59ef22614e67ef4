"""What so many seeds can show: equivalence within a margin, and differences that would be found."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.compare import FEWEST, Pairs

Floats = NDArray[np.float64]

POWER = 0.8
MOST_SEEDS = 10_000


def tost(found: Pairs, margin: ArrayLike) -> Floats:
    """Larger p of the two one-sided tests that the difference is within ``margin`` of 0.

    Args:
        found: k comparisons.
        margin: Above 0, in the metric's unit; one, or shape (k,) with NaN where none was declared.
    """
    error = _error(found)
    inside = np.asarray(margin, dtype=np.float64) - np.abs(found.difference)
    return np.asarray(special.stdtr(found.df, -inside / error), dtype=np.float64)


def smallest_margin(found: Pairs, alpha: float = 0.05) -> Floats:
    """The smallest margin that ``tost`` passes at ``alpha``: the far end of the 1 - 2 alpha CI."""
    reach = special.stdtrit(found.df, 1 - alpha) * _error(found)
    return np.asarray(np.abs(found.difference) + reach, dtype=np.float64)


def _error(found: Pairs) -> Floats:
    """Standard errors; NaN where there is no test."""
    return np.where(np.isnan(found.t), np.nan, found.std / np.sqrt(np.maximum(found.n, 1)))


def detectable(std: ArrayLike, n: ArrayLike, power: float = POWER, alpha: float = 0.05) -> Floats:
    """The true difference that a paired t-test finds, on its right side, with ``power``.

    Args:
        std: Of the differences, taken for the true one.
        n: Pairs; NaN is returned where there are fewer than three.
        power: Wanted.
        alpha: Two-sided level, of a test that stands alone.
    """
    count = np.asarray(n, dtype=np.int64)
    known = np.clip(count, FEWEST, MOST_SEEDS)
    # Beyond the table t is normal, and the reach falls with the root of n.
    reach = _reach(power, alpha)[known - FEWEST] * np.sqrt(known / np.maximum(count, FEWEST))
    return np.asarray(std, dtype=np.float64) * np.where(count < FEWEST, np.nan, reach)


def seeds_needed(
    std: ArrayLike, delta: ArrayLike, power: float = POWER, alpha: float = 0.05
) -> Floats:
    """The fewest pairs, three or more, with which ``detectable`` is at most ``delta``.

    NaN where there are none up to MOST_SEEDS, and where ``std`` or ``delta`` is NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.abs(np.asarray(delta, dtype=np.float64)) / np.asarray(std, dtype=np.float64)
    table = _reach(power, alpha)
    found = FEWEST + np.searchsorted(-table, -wanted, side="left")  # it descends; NaN sorts last
    return np.where(np.isnan(wanted) | (found > MOST_SEEDS), np.nan, found)


@functools.lru_cache(maxsize=8)
def _reach(power: float, alpha: float) -> Floats:
    """Difference over standard deviation that n = 3, 4, ... MOST_SEEDS pairs find."""
    n = np.arange(FEWEST, MOST_SEEDS + 1)
    critical = special.stdtrit(n - 1, 1 - alpha / 2)
    # Of t, noncentral by this much, the share ``power`` lies above the critical value.
    noncentral = special.nctdtrinc(n - 1, 1 - power, critical)
    return np.asarray(noncentral / np.sqrt(n), dtype=np.float64)
