"""Whether a printed number may be what records give, as far as rounding can explain.

A paper prints few digits; records that were imported have few digits themselves. So a printed
number stands for an interval, and so does a recomputed one.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.printed import unit_of

Floats = NDArray[np.float64]
Agreement = Literal["holds", "rounding", "wrong"]

_TIE = 1e-6  # of a unit of the last digit: a tie counts for either side, whatever floats make of it
_NOISE = 1e-12  # relative, of sums of floats


def agreement(printed: Decimal, value: float, low: float, high: float) -> tuple[Agreement, str]:
    """Hold a printed number against a recomputed one.

    Each excuse stands by itself: a number that only holds if records are off by half of their last
    digit *and* the paper cut digits off is wrong, for both together excuse almost anything.

    Args:
        printed: With the digits that are printed.
        value: Recomputed from the records as they are, in the same unit.
        low: The least that it may be, records being rounded themselves; ``value`` if they are not.
        high: The most.

    Returns:
        ``holds``: rounded to the nearest, a tie to either side, it is what is printed.
        ``rounding``: it may be, with an explanation; else ``wrong`` with none.
    """
    number, unit = float(printed), float(unit_of(printed))
    slack = _TIE * unit + _NOISE * abs(value)
    apart = number - value
    if abs(apart) <= unit / 2 + slack:
        return "holds", ""
    if low < high and low - slack <= number + unit / 2 and number - unit / 2 <= high + slack:
        digits = decimals(printed) + 2
        return "rounding", f"{low:.{digits}f} to {high:.{digits}f}, as records are rounded"
    if abs(apart) < unit - slack:
        return "rounding", "digits were cut off" if apart < 0 else "rounded up"
    return "wrong", ""


def decimals(printed: Decimal) -> int:
    """Digits after the point."""
    exponent = printed.as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def std_range(values: Floats, half: float, ddof: int) -> tuple[float, float]:
    """The least and the largest standard deviation of numbers known to ``half`` a unit each.

    Args:
        values: Shape (n,), n > ddof.
        half: Each is within this of what it is.
        ddof: Of the standard deviation.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    if half <= 0:
        spread = float(np.std(x, ddof=ddof))
        return spread, spread
    # The sum of squares about the mean is convex, so it is largest at a corner of the box; and for
    # a given number of values that move up, it grows if these are the largest.
    up = np.arange(n)[:, None] >= n - np.arange(n + 1)[None, :]
    corners = x[:, None] + np.where(up, half, -half)
    high = float(np.max(np.std(corners, axis=0, ddof=ddof)))
    # It is least where all are drawn to one centre; how far they pull is piecewise linear in it.
    breaks = np.sort(np.concatenate([x - half, x + half]))
    apart = breaks[:, None] - x[None, :]
    pull = np.sum(np.sign(apart) * np.maximum(np.abs(apart) - half, 0), axis=1)
    centre = float(np.interp(0.0, pull, breaks))
    drawn = np.clip(centre, x - half, x + half)
    return math.sqrt(float(np.sum((drawn - centre) ** 2)) / (n - ddof)), high
