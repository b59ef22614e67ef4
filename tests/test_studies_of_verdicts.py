"""How often verdicts err, on 20,000 simulated studies each, whose truth is known.

A study is a sweep of five arms with several seeds and four groups. What a seed does to all arms
alike, what it does to all groups of an arm alike and what is left are drawn apart, so arms are
correlated over seeds, and groups within a trial. The studies take the functions on arrays that a
report takes; that a report says the same is checked on some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.compare import Pairs, holm, pairs
from analysis.power import detectable, tost
from analysis.verdicts import compare
from tests.framing import framed

STUDIES = 20_000
ARMS, GROUPS = 5, 4
LEVEL = 0.055  # of .05: a share of 20,000 studies has a standard error of .0015
Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.standard_normal(shape)


def skewed(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Mostly a little above the mean and now and then far below, as rates near 1 are."""
    return 1 - random.standard_exponential(shape)


@dataclass(frozen=True)
class Studies:
    """What comparisons with the first arm give; shapes are (studies, arms - 1, groups + 1).

    The last group is the mean over groups.
    """

    values: Array
    found: Pairs
    truth: Array

    def each(self, values: Array) -> Array:
        return values.reshape(STUDIES, ARMS - 1, GROUPS + 1)

    @property
    def p(self) -> Array:
        return self.each(self.found.p)

    @property
    def covered(self) -> NDArray[np.bool_]:
        low, high = self.each(self.found.ci_low), self.each(self.found.ci_high)
        return (low <= self.truth) & (self.truth <= high)

    def false(self, family: str, true: tuple[int, ...] = ()) -> float:
        """Share of studies that tell any arm from the baseline but those that differ from it."""
        alike = [arm for arm in range(ARMS - 1) if arm + 1 not in true]
        return float(np.mean((corrected(self.p, family)[:, alike] <= 0.05).any(axis=(1, 2))))


def corrected(p: Array, family: str) -> Array:
    part = p[..., -1:] if family == "aggregate" else p[..., :-1]
    return np.array([holm(study.ravel()).reshape(study.shape) for study in part])


def studies(
    n: int,
    shift: tuple[float, ...] = (0.0,) * ARMS,
    noise: Noise = normal,
    spread: tuple[float, ...] = (1.0,) * ARMS,
) -> Studies:
    """Studies with n seeds; the arms' means differ by ``shift``, their noise by ``spread``.

    The mean over groups has a standard deviation of ``spread`` around what a seed does to all arms.
    """
    random = np.random.default_rng([n, 1908])
    of_seed = noise(random, (STUDIES, 1, n, 1)) * 2
    of_trial = noise(random, (STUDIES, ARMS, n, 1)) * np.sqrt(0.5)
    of_group = noise(random, (STUDIES, ARMS, n, GROUPS)) * np.sqrt(0.5 * GROUPS)
    own = (of_trial + of_group) * np.array(spread)[:, None, None]
    values = of_seed + own + np.array(shift)[:, None, None]
    every = np.concatenate([values, values.mean(axis=3, keepdims=True)], axis=3)
    rows = np.moveaxis(every, 2, 3)  # seeds last
    other = np.broadcast_to(rows[:, :1], rows[:, 1:].shape)
    found = pairs(rows[:, 1:].reshape(-1, n), other.reshape(-1, n))
    return Studies(values, found, np.subtract(shift[1:], shift[0])[:, None])


DIFFER = {"shift": (0.0, 0.0, 10.0, -10.0, 0.0)}
SETTINGS = {
    "equal": {},
    "skewed": {"noise": skewed},
    "unequal spread": {"spread": (1.0, 0.2, 1.0, 4.0, 1.0)},
}
SEEDS = pytest.mark.parametrize("n", [3, 5, 10])


@pytest.mark.slow
@SEEDS
@pytest.mark.parametrize("setting", SETTINGS)
def test_arms_that_are_alike_are_seldom_told_apart(n: int, setting: str) -> None:
    found = studies(n, **SETTINGS[setting])
    assert found.false("aggregate") <= LEVEL
    assert found.false("per group") <= LEVEL
    assert np.mean(found.p <= 0.05) <= LEVEL  # of tests that stand alone


@pytest.mark.slow
@SEEDS
def test_arms_that_are_alike_are_seldom_told_apart_beside_others_that_differ(n: int) -> None:
    found = studies(n, **DIFFER)
    assert found.false("aggregate", true=(2, 3)) <= LEVEL
    assert found.false("per group", true=(2, 3)) <= LEVEL


@SEEDS
def test_a_report_says_of_a_study_what_the_studies_say(n: int) -> None:
    made, margin = studies(n, **DIFFER), 12.0
    p_tost = made.each(tost(made.found, margin))
    for family in ("aggregate", "per group"):
        group = slice(-1, None) if family == "aggregate" else slice(None, -1)
        p_holm = corrected(made.p[:50], family)
        p_tost_holm = corrected(p_tost[:50], family)
        for study in range(50):
            table = framed(made.values[study][None], arms=[f"arm {i}" for i in range(ARMS)])
            rows = [
                row
                for row in compare(table, baseline="arm 0", margins={"auroc": margin}).rows
                if row.family == family
            ]
            assert [row.p_holm for row in rows] == pytest.approx(p_holm[study].ravel(), rel=1e-9)
            said = np.array([row.verdict for row in rows]).reshape(ARMS - 1, -1)
            difference = made.each(made.found.difference)[study, :, group]
            told_apart = p_holm[study] <= 0.05
            assert ((said == "better") == (told_apart & (difference > 0))).all()
            assert ((said == "worse") == (told_apart & (difference < 0))).all()
            assert ((said == "equivalent") == (~told_apart & (p_tost_holm[study] <= 0.05))).all()


@pytest.mark.slow
@SEEDS
def test_intervals_cover_the_true_difference(n: int) -> None:
    covered = studies(n, **DIFFER).covered
    assert 0.94 <= np.mean(covered[..., -1]) <= 0.96
    assert 0.94 <= np.mean(covered[..., :-1]) <= 0.96


@pytest.mark.slow
@SEEDS
def test_a_difference_as_large_as_the_margin_is_seldom_called_equivalent(n: int) -> None:
    margin = 3.0
    made = studies(n, shift=(0.0, *(margin,) * (ARMS - 1)))
    p = made.each(tost(made.found, margin))
    assert np.mean(p <= 0.05) <= LEVEL
    for family in ("aggregate", "per group"):
        assert np.mean((corrected(p, family) <= 0.05).any(axis=(1, 2))) <= LEVEL


@pytest.mark.slow
@SEEDS
def test_what_is_detectable_is_found_four_times_in_five(n: int) -> None:
    # Differences of means over groups have a standard deviation of sqrt(2).
    made = studies(n, shift=(0.0, *(float(detectable(np.sqrt(2), n)),) * (ARMS - 1)))
    assert np.mean(made.p[..., -1] <= 0.05) == pytest.approx(0.8, abs=0.01)
    found = corrected(made.p, "aggregate") <= 0.05
    assert 0.4 < np.mean(found) < 0.8  # Holm over four arms costs some


@pytest.mark.slow
@SEEDS
def test_equal_spreads_are_seldom_told_apart(n: int) -> None:
    alike, made = studies(n), studies(n, spread=(1.0, 1.0, 1.0, 4.0, 1.0))
    p = alike.each(alike.found.p_variance)[..., -1]
    assert np.mean(p <= 0.05) <= LEVEL
    assert stats.kstest(p[:, 0], "uniform").pvalue > 0.001
    noisy = made.each(made.found.p_variance)[:, 2, -1]
    assert np.mean(noisy <= 0.05) > np.mean(p <= 0.05)
