"""Paired statistics equal what scipy gives, on the published runs and on whatever else is drawn."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from analysis.compare import holm, paired, pairs, unpaired
from analysis.power import detectable, seeds_needed, smallest_margin, tost

GOLDEN = Path(__file__).parent / "golden" / "published_rows.csv"
EXACT = 1e-9  # relative; both sides are sums of five or so floats
Floats = NDArray[np.float64]


def published() -> dict[tuple[str, str], tuple[Floats, Floats]]:
    """(metric, domain) -> TopK q = 5 and baseline, by seed, in percent."""
    rows = pd.read_csv(GOLDEN)
    table = rows.pivot_table(index=["metric", "domain", "method"], columns="seed", values="value")
    return {
        (metric, domain): (
            table.loc[(metric, domain, "topk")].to_numpy(),
            table.loc[(metric, domain, "baseline")].to_numpy(),
        )
        for metric, domain in dict.fromkeys((m, d) for m, d, _ in table.index)
    }


def flips(whole: list[int]) -> float:
    """Sign-flip p of whole numbers, which have no rounding, by going through all signs."""
    signs = list(itertools.product((1, -1), repeat=len(whole)))
    sums = [abs(sum(s * v for s, v in zip(sign, whole, strict=True))) for sign in signs]
    return sum(value >= abs(sum(whole)) for value in sums) / len(signs)


def naive_holm(p: list[float]) -> list[float]:
    """For each, the smallest level at which the step-down procedure rejects it."""
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    needed = [min(1.0, (len(p) - step) * p[i]) for step, i in enumerate(ranked)]
    return [max(needed[: ranked.index(i) + 1]) for i in range(len(p))]


# --- the published runs ---------------------------------------------------------------------------


def test_topk_against_the_baseline_is_what_was_published() -> None:
    found = paired(*published()["tpr@1", "mean"])
    assert found.difference == pytest.approx(0.914, abs=5e-4)
    assert found.ci_low == pytest.approx(0.626, abs=5e-4)
    assert found.ci_high == pytest.approx(1.202, abs=5e-4)
    assert found.p == pytest.approx(9.1e-4, abs=5e-6)
    assert found.sign_flip_p == found.sign_flip_floor == 0.0625


@pytest.mark.parametrize("key", published(), ids="/".join)
def test_every_published_pair_equals_scipy(key: tuple[str, str]) -> None:
    a, b = published()[key]
    found, theirs, apart = paired(a, b), stats.ttest_rel(a, b), a - b
    low, high = theirs.confidence_interval(0.95)
    d_z = np.mean(apart) / np.std(apart, ddof=1)
    j = special.gamma(2.0) / (math.sqrt(2.0) * special.gamma(1.5))
    whole = np.rint(100 * apart).astype(int)  # printed with two decimals
    expected = {
        "n": 5, "difference": a.mean() - b.mean(), "std": np.std(apart, ddof=1),
        "ci_low": low, "ci_high": high, "t": theirs.statistic, "df": 4, "p": theirs.pvalue,
        "sign_flip_p": flips(whole.tolist()), "sign_flip_floor": 2 / 2**5,
        "d_z": d_z, "g_z": j * d_z,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=EXACT), name
    permuted = stats.permutation_test(
        (whole,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert found.sign_flip_p == pytest.approx(permuted.pvalue, rel=EXACT)


def test_families_of_published_pairs_are_corrected_as_by_definition() -> None:
    for family in (["mean"], ["A", "B", "C", "D"]):
        chosen = [pair for (_, domain), pair in published().items() if domain in family]
        p = [stats.ttest_rel(a, b).pvalue for a, b in chosen]
        ours = holm([paired(a, b).p for a, b in chosen])
        assert ours == pytest.approx(naive_holm(p), rel=EXACT)


@pytest.mark.parametrize("key", published(), ids="/".join)
def test_margins_and_variances_of_published_pairs_equal_scipy(key: tuple[str, str]) -> None:
    a, b = published()[key]
    rows, apart = pairs(a[None], b), a - b
    for margin in (0.05, 0.5, 2.0):
        upper = stats.ttest_1samp(apart, margin, alternative="less").pvalue
        lower = stats.ttest_1samp(apart, -margin, alternative="greater").pvalue
        assert tost(rows, margin)[0] == pytest.approx(max(upper, lower), rel=EXACT)
    low, high = stats.ttest_1samp(apart, 0).confidence_interval(0.9)
    assert smallest_margin(rows)[0] == pytest.approx(max(-low, high), rel=EXACT)
    assert tost(rows, smallest_margin(rows))[0] == pytest.approx(0.05, rel=1e-6)
    assert rows.std_ratio[0] == pytest.approx(np.std(a) / np.std(b), rel=EXACT)
    assert rows.p_variance[0] == pytest.approx(stats.pearsonr(a + b, a - b).pvalue, rel=1e-8)


def test_summaries_of_published_runs_give_welchs_test() -> None:
    for a, b in published().values():
        found = unpaired(a.mean(), a.std(ddof=1), 5, b.mean(), b.std(ddof=1), 5)
        theirs = stats.ttest_ind(a, b, equal_var=False)
        low, high = theirs.confidence_interval(0.95)
        assert (found.difference, found.t, found.df, found.p) == pytest.approx(
            (a.mean() - b.mean(), theirs.statistic, theirs.df, theirs.pvalue), rel=EXACT
        )
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high), rel=EXACT)


# --- what cannot be tested ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ([], [], "no common seed; a test takes 3"),
        ([0.9], [0.8], "1 common seed; a test takes 3"),
        ([0.9, 0.7, math.nan], [0.8, 0.9, 0.5], "2 common seeds; a test takes 3"),
        ([0.9, 0.9, 0.9], [0.5, 0.5, 0.5], "all 3 differences are the same"),
        ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6], "all 3 differences are the same"),  # but for rounding
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "all 3 differences are the same"),
        ([1e6 + 0.1, 2e6 + 0.1, 5e6 + 0.1], [1e6, 2e6, 5e6], "all 3 differences are the same"),
    ],
)
def test_what_cannot_be_tested_says_why_and_has_no_p(
    a: list[float], b: list[float], why: str
) -> None:
    found = paired(a, b)
    assert found.untestable == why
    assert found.p is found.t is found.df is found.ci_low is found.ci_high is found.d_z is None
    assert found.n == np.count_nonzero(~np.isnan(np.array(a) - np.array(b)))
    assert (found.difference is None) == (found.n == 0)
    assert (found.std is None) == (found.n < 2)


def test_small_differences_of_large_values_are_still_tested() -> None:
    assert paired([1000.001, 1000.002, 1000.004], [1000.0, 1000.0, 1000.0]).p is not None


def test_variances_are_not_compared_where_there_is_nothing_to_compare() -> None:
    constant = pairs(np.array([[0.9, 0.8, 0.7]]), np.array([0.5, 0.5, 0.5]))
    assert np.isnan([constant.std_ratio[0], constant.p_variance[0]]).all()
    line = pairs(np.array([[0.9, 0.8, 0.6]]), np.array([0.45, 0.4, 0.3]))
    assert line.std_ratio[0] == pytest.approx(2)
    assert np.isnan(line.p_variance[0])
    two = pairs(np.array([[0.9, 0.8]]), np.array([0.4, 0.5]))
    assert two.std_ratio[0] == pytest.approx(1)
    assert np.isnan(two.p_variance[0])


@pytest.mark.parametrize(
    ("summary", "why"),
    [
        ((1.0, 0.1, 1, 0.9, 0.1, 5), "a test takes two"),
        ((1.0, 0.0, 5, 0.9, 0.0, 5), "varies"),
        ((1.0, math.nan, 5, 0.9, 0.1, 5), "is not a number"),
    ],
)
def test_summaries_that_allow_no_test_say_why(
    summary: tuple[float, float, int, float, float, int], why: str
) -> None:
    found = unpaired(*summary)
    assert why in found.untestable
    assert found.difference == pytest.approx(0.1)
    assert found.p is found.ci_low is None


def test_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        paired([1.0, 2.0, math.inf], [1.0, 2.0, 3.0])


# --- properties -----------------------------------------------------------------------------------

whole = st.integers(-300, 300)
sizes = st.integers(3, 12)


@given(st.data(), sizes)
def test_sign_flips_are_counted_exactly_ties_and_all(data: st.DataObject, n: int) -> None:
    d = data.draw(st.lists(whole, min_size=n, max_size=n))
    b = np.array(data.draw(st.lists(whole, min_size=n, max_size=n))) / 300
    found = paired(b + np.array(d) / 300, b).sign_flip_p  # thirds of a percent round
    assert found == pytest.approx(flips(d), rel=EXACT)


@pytest.mark.parametrize("n", [12, 13, 14, 17])
def test_sign_flips_by_halves_equal_those_of_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, n)
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired(d, np.zeros(n)).sign_flip_p == pytest.approx(theirs.pvalue, rel=EXACT)


@given(st.data())
def test_sign_flips_by_halves_lose_no_tie(data: st.DataObject) -> None:
    d = data.draw(st.lists(st.integers(-3, 3), min_size=14, max_size=14))  # full of ties
    found = paired(np.array(d) / 300, np.zeros(14)).sign_flip_p
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    assert found == pytest.approx(np.mean(np.abs(signs @ d) >= abs(sum(d))), rel=EXACT)


def test_sign_flips_of_many_seeds_are_drawn_alike_each_time() -> None:
    d = np.random.default_rng(1).normal(0.3, 1, 40)
    first, again = (paired(d, np.zeros(40)).sign_flip_p for _ in range(2))
    assert first == again
    # About 0.05: 100,000 draws have a standard error of 0.0007, and t is near for so many.
    assert first == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert paired(d + 100, np.zeros(40)).sign_flip_p == pytest.approx(1 / 100_001)


# Thousandths: differences are the same, or differ by far more than they round.
value = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
values = st.lists(value, min_size=3, max_size=9)


@given(st.data(), values)
def test_swapping_mirrors_and_scaling_scales(data: st.DataObject, a: list[float]) -> None:
    b = data.draw(st.lists(value, min_size=len(a), max_size=len(a)))
    one, other = paired(a, b), paired(b, a)
    tall = paired(128 * np.array(a), 128 * np.array(b))  # a power of two: no rounding
    assert one.untestable == other.untestable == tall.untestable
    assert (one.n, one.p, one.sign_flip_p) == (other.n, other.p, other.sign_flip_p)
    assert (tall.t, tall.p, tall.sign_flip_p, tall.g_z) == (
        one.t, one.p, one.sign_flip_p, one.g_z,
    )  # fmt: skip
    assert one.difference == -(other.difference or 0)
    assert tall.difference == 128 * (one.difference or 0)
    if one.ci_low is not None:
        assert other.ci_high == -one.ci_low
        assert tall.ci_low == 128 * one.ci_low


@given(st.data(), values)
def test_the_order_of_seeds_does_not_matter(data: st.DataObject, a: list[float]) -> None:
    b = data.draw(st.lists(value, min_size=len(a), max_size=len(a)))
    order = data.draw(st.permutations(range(len(a))))
    one, other = paired(a, b), paired(np.array(a)[order], np.array(b)[order])
    assert one.sign_flip_p == other.sign_flip_p
    assert one.difference == pytest.approx(other.difference, rel=EXACT, abs=1e-15)
    if one.p is not None and other.p is not None:
        assert one.p == pytest.approx(other.p, rel=EXACT)  # sums of another order round differently


@given(st.data(), st.integers(1, 6), st.integers(3, 8))
def test_a_row_among_many_is_as_it_is_alone(data: st.DataObject, k: int, n: int) -> None:
    cell = st.one_of(value, st.just(math.nan))
    a = np.array([data.draw(st.lists(cell, min_size=n, max_size=n)) for _ in range(k)])
    b = np.array(data.draw(st.lists(cell, min_size=n, max_size=n)))
    for row, many, p in zip(a, pairs(a, b).each(), pairs(a, b).p, strict=True):
        there = ~np.isnan(row - b)
        alone = paired(row[there], b[there])
        assert many.untestable == alone.untestable
        for field in fields(many):
            left, right = getattr(many, field.name), getattr(alone, field.name)
            assert (left is None) == (right is None)
            if isinstance(left, float):
                assert left == pytest.approx(right, rel=EXACT, abs=1e-15)
        assert (many.p is None) == math.isnan(p)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_smallest_level_of_its_procedure(p: list[float]) -> None:
    found = holm(p)
    assert found == pytest.approx(naive_holm(p), rel=EXACT)
    assert (found >= np.array(p)).all()
    assert (found <= 1).all()


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_tests_that_were_not_made_do_not_count_in_holm(p: list[float]) -> None:
    made = [value for value in p if not math.isnan(value)]
    found = holm(p)
    assert np.isnan(found).tolist() == np.isnan(np.array(p)).tolist()
    assert found[~np.isnan(found)].tolist() == holm(made).tolist()


# --- power ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 10, 100, 10_000, 40_000])
def test_what_is_detectable_is_found_with_the_power_that_was_asked_for(n: int) -> None:
    delta = float(detectable(2.0, n))
    critical = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(critical, n - 1, delta / 2 * math.sqrt(n))
    # The accuracy of the inverse that is used, and of the normal distribution for 40,000.
    assert power == pytest.approx(0.8, abs=1e-6 if n <= 10_000 else 1e-4)


@given(st.floats(0.0281, 20))  # 10,000 pairs find 0.028
def test_the_seeds_that_are_needed_are_the_fewest(ratio: float) -> None:
    needed = int(seeds_needed(1.0, ratio))
    assert detectable(1.0, needed) <= ratio
    assert needed == 3 or detectable(1.0, needed - 1) > ratio


def test_no_number_of_seeds_shows_nothing() -> None:
    assert np.isnan(seeds_needed(1.0, [0.0, 1e-9, math.nan])).all()
    assert np.isnan(detectable(1.0, [0, 1, 2])).all()
    assert seeds_needed(1.0, [1.0, -1.0]).tolist() == [10, 10]


def test_simulated_studies_find_what_is_detectable_four_times_in_five() -> None:
    random, n, studies = np.random.default_rng(1937), 5, 20_000
    a = random.normal(float(detectable(1.0, n)), 1.0, (studies, n))
    power = np.mean(pairs(a, np.zeros(n)).p <= 0.05)
    assert power == pytest.approx(0.8, abs=0.012)  # four standard errors of a share of 20,000
