"""Paired comparisons over seeds: pure functions on arrays.

The unit is one value per configuration and seed. What two configurations have in common at a seed
(its initialisation, its order of batches) cancels in the difference of the pair, so everything here
is about the differences ``a - b``, joined by seed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paired:
    """What the differences of n seeds say.

    Args:
        n: How many pairs.
        difference: Their mean, ``a - b``, in the metric's unit.
        std: Of the differences (ddof = 1); None for fewer than two.
        ci_low, ci_high: Of the mean difference, by Student's t; None where it is not testable.
        t: Statistic of the paired t-test.
        df: Its degrees of freedom.
        p: Two-sided.
        sign_flip_p: Two-sided and exact: of the 2^n ways to flip signs, the share whose mean is at
            least as far from 0.
        sign_flip_floor: The smallest that it can be with n pairs, 2 / 2^n.
        d_z: Mean over standard deviation of the differences.
        g_z: The same without its small-sample bias (Hedges).
        untestable: Why there is no test, in words; empty where there is one.
    """

    n: int
    difference: float | None
    std: float | None
    ci_low: float | None
    ci_high: float | None
    t: float | None
    df: int | None
    p: float | None
    sign_flip_p: float | None
    sign_flip_floor: float | None
    d_z: float | None
    g_z: float | None
    untestable: str = ""
