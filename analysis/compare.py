"""Paired comparisons over seeds: pure functions on arrays.

The unit is one value per configuration and seed. What two configurations have in common at a seed
(its initialisation, its order of batches) cancels in the difference of the pair, so everything here
is about the differences ``a - b``, joined by seed. ``docs/statistics.md`` has formulas and sources.

All is done on whole columns of pairs at once, one pair a column of one row: a report compares
hundreds of thousands of pairs while a person waits, and a single pair takes the same path.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 3  # seeds for a test: with two, t has one degree of freedom, and spread is a guess
EQUAL = 1e-12  # of the values: differences that spread less are equal but for rounding
TIE = 1e-9  # of the sum of differences: two means of flipped signs this near are the same mean
EXACT = 32  # pairs up to which all sign flips are counted; 2 x 65,536 sums at most
SUMS = 4_000_000  # in memory at once
DRAWS = 100_000  # sign flips that are drawn where there are more pairs


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


@dataclass(frozen=True, slots=True)
class Pairs:
    """Many comparisons; each field has shape (k,), NaN where ``Paired`` has None."""

    n: Ints
    difference: Floats
    std: Floats
    ci_low: Floats
    ci_high: Floats
    t: Floats
    df: Ints
    p: Floats
    sign_flip_p: Floats
    sign_flip_floor: Floats
    d_z: Floats
    g_z: Floats
    std_ratio: Floats
    """Standard deviation of a over that of b, over the same seeds."""
    p_variance: Floats
    """That they are equal, by the test of Pitman and Morgan."""
    untestable: tuple[str, ...]

    def each(self) -> list[Paired]:
        """The comparisons one by one."""
        return list(
            map(
                Paired,
                self.n.tolist(),
                optional(self.difference),
                optional(self.std),
                optional(self.ci_low),
                optional(self.ci_high),
                optional(self.t),
                [
                    None if why else df
                    for df, why in zip(self.df.tolist(), self.untestable, strict=True)
                ],
                optional(self.p),
                optional(self.sign_flip_p),
                optional(self.sign_flip_floor),
                optional(self.d_z),
                optional(self.g_z),
                self.untestable,
            )
        )


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Two means of which only summaries are known, as with numbers of another paper.

    Args:
        difference: First mean less the second.
        ci_low, ci_high: Of the difference.
        t: Statistic of Welch's test.
        df: Its degrees of freedom, by Welch and Satterthwaite.
        p: Two-sided.
        untestable: Why there is no test; its numbers are None then.
    """

    difference: float
    ci_low: float | None = None
    ci_high: float | None = None
    t: float | None = None
    df: float | None = None
    p: float | None = None
    untestable: str = ""


# --- pairs ----------------------------------------------------------------------------------------


def paired(a: ArrayLike, b: ArrayLike, alpha: float = 0.05) -> Paired:
    """Compare two configurations over seeds.

    Args:
        a: Shape (n,), a value per seed; NaN where the seed has none.
        b: Shape (n,), of the same seeds in the same order.
        alpha: 1 - coverage of the interval.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return pairs(left[None, :], right, alpha).each()[0]


def pairs(a: Floats, b: Floats, alpha: float = 0.05) -> Pairs:
    """Compare many configurations with others, each over the seeds that both have.

    Below three seeds there is no test, nor where all differences are the same: t would be infinite,
    and coarse metrics on few test items do that by chance.

    Args:
        a: Shape (k, n), NaN where a seed has no value.
        b: Shape (k, n), or (n,) for one that all are compared with.
        alpha: 1 - coverage of the intervals.

    Raises:
        ValueError: The shapes do not fit, or a value is infinite.
    """
    a, b = np.broadcast_arrays(a, b)
    if a.ndim != 2 or np.isinf(a).any() or np.isinf(b).any():
        raise ValueError(f"{a.shape} values; give finite ones or NaN, of shape (k, n)")
    there = ~(np.isnan(a) | np.isnan(b))
    n = np.count_nonzero(there, axis=1)
    apart = np.where(there, a - b, 0.0)
    difference, std = _moments(apart, there, n)
    largest = np.where(there, np.maximum(np.abs(a), np.abs(b)), 0.0).max(axis=1, initial=0.0)
    varied = std > EQUAL * largest  # False where std is NaN
    tested = varied & (n >= FEWEST)
    df = np.maximum(n - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(tested, std / np.sqrt(n), np.nan)
        t = difference / error
        d_z = np.where(tested, difference / std, np.nan)
        margin = special.stdtrit(df, 1 - alpha / 2) * error
    ratio, p_variance = _variances(a, b, there, n)
    return Pairs(
        n=n,
        difference=difference,
        std=std,
        ci_low=difference - margin,
        ci_high=difference + margin,
        t=t,
        df=df,
        p=2 * special.stdtr(df, -np.abs(t)),
        sign_flip_p=_sign_flips(apart, there, n),
        sign_flip_floor=np.where(n > 0, 2.0 ** (1 - n), np.nan),
        d_z=d_z,
        g_z=d_z * _hedges(df),
        std_ratio=ratio,
        p_variance=p_variance,
        untestable=tuple(_untestable(n, tested)),
    )


def optional(values: Floats) -> list[float | None]:
    """Shape (k,) as plain floats, None for NaN."""
    found = values.astype(object)
    found[np.isnan(values)] = None
    as_list: list[float | None] = found.tolist()
    return as_list


def _moments(values: Floats, there: NDArray[np.bool_], n: Ints) -> tuple[Floats, Floats]:
    """Mean and standard deviation (ddof = 1) of each row, where ``there``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, values, 0.0).sum(axis=1) / n  # 0 / 0 is NaN
        spread = np.where(there, values - mean[:, None], 0.0)
        std = np.sqrt((spread**2).sum(axis=1) / np.where(n > 1, n - 1, np.nan))
    return mean, std


def _untestable(n: Ints, tested: NDArray[np.bool_]) -> list[str]:
    words = {0: "no common seed", 1: "1 common seed", 2: "2 common seeds"}
    return [
        ""
        if test
        else f"{words[count]}; a test takes {FEWEST}"
        if count < FEWEST
        else f"all {count} differences are the same"
        for count, test in zip(n.tolist(), tested.tolist(), strict=True)
    ]


def _hedges(df: Ints) -> Floats:
    """The exact factor that takes the bias from d; 0 with one degree of freedom."""
    half = df / 2
    with np.errstate(divide="ignore"):
        log = special.gammaln(half) - special.gammaln(half - 0.5) - 0.5 * np.log(half)
    return np.asarray(np.exp(log), dtype=np.float64)


def _variances(a: Floats, b: Floats, there: NDArray[np.bool_], n: Ints) -> tuple[Floats, Floats]:
    """Ratio of standard deviations, and p that it is 1: sums and differences are uncorrelated."""
    mean_a, std_a = _moments(a, there, n)
    mean_b, std_b = _moments(b, there, n)
    left = np.where(there, a - mean_a[:, None], 0.0)
    right = np.where(there, b - mean_b[:, None], 0.0)
    sums, differences = left + right, left - right
    largest = np.where(there, np.maximum(np.abs(a), np.abs(b)), 0.0).max(axis=1, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        varied = (std_a > EQUAL * largest) & (std_b > EQUAL * largest)
        ratio = np.where(varied, std_a / std_b, np.nan)
        product = (sums**2).sum(axis=1) * (differences**2).sum(axis=1)
        r = (sums * differences).sum(axis=1) / np.sqrt(product)
        rest = 1 - r**2  # 0 where one configuration is a line of the other: no noise to test by
        t = np.abs(r) * np.sqrt((n - 2) / np.where(rest > EQUAL, rest, np.nan))
        p = 2 * special.stdtr(np.maximum(n - 2, 1), -t)
    return ratio, np.where(varied & (n >= FEWEST), p, np.nan)


# --- sign flips -----------------------------------------------------------------------------------


def _sign_flips(apart: Floats, there: NDArray[np.bool_], n: Ints) -> Floats:
    """Two-sided p of each row, exact up to EXACT pairs, else from DRAWS flips of a fixed seed."""
    found = np.full(len(n), np.nan)
    for count in np.unique(n[n >= FEWEST]).tolist():
        rows = np.flatnonzero(n == count)
        values = apart[rows][there[rows]].reshape(len(rows), count)
        if count <= 12:
            found[rows] = _by_product(values, _signs(count))
        elif count <= EXACT:
            found[rows] = _by_halves(values)
        else:
            random = np.random.default_rng(1959)
            signs = np.where(random.random((DRAWS, count)) < 0.5, 1.0, -1.0)
            drawn = _by_product(values, signs)
            found[rows] = (drawn * DRAWS + 1) / (DRAWS + 1)
    return found


def _least(values: Floats) -> Floats:
    """What a sum of flipped values must reach; a little less than |sum|, for sums round."""
    least: Floats = np.abs(values.sum(axis=1)) - TIE * np.abs(values).sum(axis=1)
    return least


def _by_product(values: Floats, signs: Floats) -> Floats:
    """Share of the rows of ``signs``, shape (m, n), that reach each row of values (k, n)."""
    least, found = _least(values), np.empty(len(values))
    step = max(1, SUMS // len(signs))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        sums = np.abs(values[part] @ signs.T)
        found[part] = (sums >= least[part, None]).mean(axis=1)
    return found


def _by_halves(values: Floats) -> Floats:
    """The same over all signs: each sum of one half finds its partners in the other."""
    half, found = values.shape[1] // 2, np.empty(len(values))
    step = max(1, SUMS // 2 ** (values.shape[1] - half))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        sums = zip(_sums(part[:, :half]), np.sort(_sums(part[:, half:])), strict=True)
        for row, (least, (one, other)) in enumerate(zip(_least(part), sums, strict=True), start):
            # Sums come with both signs, so those below -least are as many as those above.
            above = len(other) * len(one) - int(np.searchsorted(other, least - one).sum())
            found[row] = min(2 * above / (len(one) * len(other)), 1.0) if least > 0 else 1.0
    return found


def _sums(values: Floats) -> Floats:
    """Sums of each row of ``values``, shape (k, n), under all signs: shape (k, 2^n)."""
    found = np.zeros((len(values), 1))
    for column in values.T[:, :, None]:
        found = np.concatenate((found + column, found - column), axis=1)
    return found


@functools.lru_cache(maxsize=16)
def _signs(n: int) -> Floats:
    """All signs but for the first, which may stay: the test is two-sided."""
    bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    return np.where(bits == 0, 1.0, -1.0)[:, ::-1]


# --- several tests --------------------------------------------------------------------------------


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down correction of a family.

    Args:
        p: Shape (k,); NaN where no test was made, which does not count and stays.

    Returns:
        Shape (k,): reject where it is at most alpha, and the chance of any false rejection in the
        family is at most alpha, however the tests depend on each other.
    """
    given = np.asarray(p, dtype=np.float64)
    found = np.full(given.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(given))
    order = tests[np.argsort(given[tests], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found


# --- summaries ------------------------------------------------------------------------------------


def unpaired(
    mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int, alpha: float = 0.05
) -> Unpaired:
    """Welch's test of two means from their summaries.

    Args:
        mean1: Over runs that have nothing in common with the others.
        std1: Of these runs, with ddof = 1.
        n1: How many they are.
        mean2: Of the others.
        std2: Of the others.
        n2: Of the others.
        alpha: 1 - coverage of the interval.
    """
    difference = mean1 - mean2
    if min(n1, n2) < 2:
        return Unpaired(difference, untestable="one run has no spread; a test takes two of each")
    if not (math.isfinite(difference) and std1 >= 0 and std2 >= 0):
        return Unpaired(difference, untestable="a mean or a standard deviation is not a number")
    part1, part2 = std1**2 / n1, std2**2 / n2
    error = math.sqrt(part1 + part2)
    if error <= EQUAL * max(abs(mean1), abs(mean2)):
        return Unpaired(difference, untestable="neither of them varies")
    df = (part1 + part2) ** 2 / (part1**2 / (n1 - 1) + part2**2 / (n2 - 1))
    t, margin = difference / error, float(special.stdtrit(df, 1 - alpha / 2)) * error
    p = 2 * float(special.stdtr(df, -abs(t)))
    return Unpaired(difference, difference - margin, difference + margin, t, df, p)
