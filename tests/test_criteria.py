"""A success criterion is met when the mean over all planned seeds reaches it, and open before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.answers import answer
from analysis.criteria import Criterion, held
from analysis.judged import criteria
from analysis.verdicts import Comparisons
from tests.framing import framed

NOTHING = Comparisons("", None, 0.05, ())


def one(values: Sequence[float], text: str) -> Criterion:
    frame = framed(np.array(values, float)[None, None, :, None], arms=["a"], groups=["A"])
    (found,) = held(frame, [text])
    return found


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("auroc >= 0.80", True),
        ("auroc > 0.80", False),
        ("auroc <= 0.80", True),
        ("auroc < 0.80", False),
        ("auroc >= 0.79", True),
        ("auroc >= 0.81", False),
        ("auroc <= 0.79", False),
        ("auroc < 8.1e-1", True),
    ],
)
def test_a_bound_holds_for_the_mean_and_equality_is_as_it_is_written(text: str, met: bool) -> None:
    assert one([0.75, 0.80, 0.85], text).met == ("met" if met else "not met")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(2, 9))
def test_a_mean_that_is_the_bound_but_for_rounding_is_the_bound(
    thousandths: list[int], parts: int
) -> None:
    """Decimal values have means that binary sums miss by a few units in the last place."""
    whole = sum(thousandths)
    values = [i / 1000 for i in thousandths] * parts
    if whole % len(thousandths):
        return
    bound = whole // len(thousandths) / 1000
    assert one(values, f"auroc >= {bound}").met == "met"
    assert one(values, f"auroc > {bound}").met == "not met"


def test_a_criterion_is_open_while_a_planned_seed_is_missing_however_good_the_others_are() -> None:
    found = one([0.9, 0.91, math.nan], "auroc >= 0.8")
    assert (found.met, found.n, found.planned) == ("open", 2, 3)
    nothing = one([math.nan, math.nan], "auroc >= 0.8")
    assert (nothing.met, nothing.mean, nothing.ci_low, nothing.sure) == ("open", None, None, False)


def test_the_interval_is_that_of_student_and_decides_how_sure_it_is() -> None:
    values = [0.80, 0.82, 0.83, 0.81]
    found = one(values, "auroc >= 0.80")
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    # Sums of four numbers in another order.
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=1e-12)
    assert low < 0.80 < high
    assert (found.met, found.sure) == ("met", False)
    assert one(values, "auroc >= 0.75").sure
    assert (one(values, "auroc <= 0.75").met, one(values, "auroc <= 0.75").sure) == (
        "not met",
        True,
    )
    assert not one(values, "auroc >= 0.83").sure


def test_one_seed_is_never_sure() -> None:
    found = one([0.9], "auroc >= 0.8")
    assert (found.met, found.ci_low, found.sure) == ("met", None, False)


def test_a_group_and_a_scalar_have_criteria_of_their_own() -> None:
    values = np.array([[[[0.9, 0.5], [0.9, 0.5]]], [[[20.0, 20.0], [30.0, 30.0]]]])
    frame = framed(values, arms=["a"], metrics=["auroc", "latency_ms"], groups=["A", "B"])
    texts = ["auroc[domain=B] >= 0.5", "auroc[domain=A] < 0.5", "latency_ms <= 25", "auroc > 0.7"]
    found = held(frame, texts)
    assert [one.text for one in found] == texts
    assert [one.met for one in found] == ["met", "not met", "met", "not met"]
    # 0.7 is exactly the mean over groups, which > does not allow.
    assert [one.mean for one in found] == pytest.approx([0.5, 0.9, 25.0, 0.7])


def test_criteria_come_in_the_order_of_the_file_and_configurations_in_that_of_the_plan() -> None:
    values = np.full((1, 3, 2, 1), 0.5)
    knobs = [{}, {"q": 2}, {"q": 1}]
    frame = framed(values, arms=["base", "topk", "topk"], knobs=knobs, groups=["A"])
    found = held(frame, ["auroc >= 0.6", "auroc >= 0.4"])
    assert [(one.text, one.arm, one.knobs) for one in found] == [
        (text, arm, knobs)
        for text in ("auroc >= 0.6", "auroc >= 0.4")
        for arm, knobs in [("base", {}), ("topk", {"q": 2}), ("topk", {"q": 1})]
    ]


def test_what_a_search_drew_meets_a_criterion_only_optimistically() -> None:
    frame = framed(
        np.full((1, 2, 3, 1), 0.9) + np.array([-0.01, 0, 0.01])[None, None, :, None],
        arms=["base", "drawn"],
        groups=["A"],
        numbers=[None, 4],
    )
    found = held(frame, ["auroc >= 0.8"])
    assert [(one.met, one.optimistic) for one in found] == [("met", False), ("met", True)]
    sheet = criteria(found)
    assert sheet is not None
    assert [row[2].text for row in sheet.rows] == ["met", "met (optimistic)"]
    assert [row[2].best for row in sheet.rows] == [True, False]
    assert any(line.startswith("optimistic: ") for line in sheet.caption)
    (said,) = answer(NOTHING, found, (), {"ok": 6})
    assert said == (
        "Criterion auroc >= 0.8: met by base, of 1 configuration; 1 of 1 that a search drew reach "
        "it, on the seeds that it chose by, which is optimistic."
    )


def test_the_sheet_says_how_sure_a_result_is_and_what_is_missing() -> None:
    nan = math.nan
    values = np.array([[0.80, 0.82, 0.83, 0.81], [0.9, 0.9, 0.9, nan], [0.70, 0.71, 0.70, 0.71]])
    frame = framed(values[None, :, :, None], arms=["near", "late", "low"], groups=["A"])
    sheet = criteria(held(frame, ["auroc >= 0.80"]))
    assert sheet is not None
    assert [[cell.text for cell in row[1:]] for row in sheet.rows] == [
        ["near", "met (not sure)", "0.8150", "[0.7945, 0.8355]", "4/4"],
        ["late", "open", "0.9000", "[0.9000, 0.9000]", "3/4"],
        ["low", "not met", "0.7050", "[0.6958, 0.7142]", "4/4"],
    ]
    assert any(line.startswith("not sure: ") for line in sheet.caption)
    assert criteria(()) is None


def test_a_sentence_says_what_meets_a_criterion_and_what_is_open() -> None:
    nan = math.nan
    values = np.array([[0.9, 0.9], [0.9, nan], [0.7, 0.7]])
    frame = framed(values[None, :, :, None], arms=["good", "late", "low"], groups=["A"])
    found = held(frame, ["auroc >= 0.8", "auroc >= 0.95"])
    assert answer(NOTHING, found, (), {"ok": 5, "not run": 1})[1:] == (
        "Criterion auroc >= 0.8: met by good, of 3 configurations; 1 still open.",
        "Criterion auroc >= 0.95: met by none of 3 configurations; 1 still open.",
    )
