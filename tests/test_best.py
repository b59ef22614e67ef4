"""Bold is what is best as it is printed, and a dagger is what a test does not tell from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats

from analysis.best import marked
from analysis.tables import Table, main_table
from analysis.tabulated import cell_text
from tests.framing import framed

GOLDEN = Path(__file__).parent / "golden" / "published_rows.csv"
Floats = NDArray[np.float64]


def table_of(frame: pd.DataFrame, metric: str = "auroc") -> Table:
    return marked(main_table(frame, metric), frame)


def by_seeds(*arms: Sequence[float], metric: str = "auroc", **other: object) -> Table:
    """Of one group; each arm has its values by seed, NaN for those that are missing."""
    values = np.array(arms, dtype=float)[None, :, :, None]
    frame = framed(
        values, arms=[f"arm{n}" for n in range(len(arms))], groups=["A"], metrics=[metric], **other
    )  # type: ignore[arg-type]
    return table_of(frame, metric)


def bold(table: Table, column: str = "mean") -> list[bool]:
    return [row.cells[column].best for row in table.rows]


def behind(table: Table, column: str = "mean") -> list[bool | None]:
    return [row.cells[column].behind for row in table.rows]


# --- bold -----------------------------------------------------------------------------------------


def test_the_largest_is_bold_and_of_an_error_rate_the_smallest() -> None:
    low, high = [0.10, 0.12, 0.11], [0.30, 0.31, 0.35]
    assert bold(by_seeds(low, high)) == [False, True]
    assert bold(by_seeds(low, high, metric="eer")) == [True, False]
    assert bold(by_seeds(low, high, metric="fpr@100")) == [True, False]


def test_what_is_printed_alike_is_bold_alike() -> None:
    table = by_seeds([0.81231, 0.81233], [0.81228, 0.81234], [0.8122, 0.8122])
    assert [cell_text(row.cells["mean"], is_rate=True)[:5] for row in table.rows] == [
        "81.23",
        "81.23",
        "81.22",
    ]
    assert bold(table) == [True, True, False]


@given(
    arrays.arrays(np.float64, (6, 2), elements=st.integers(0, 200_000).map(lambda i: i / 200_000))
)
def test_bold_and_what_is_printed_never_disagree(values: Floats) -> None:
    """Steps of half of the last digit, where rounding twice and rounding once part."""
    table = by_seeds(*values.tolist())
    printed = [cell_text(row.cells["mean"], is_rate=True).partition("±")[0] for row in table.rows]
    top = max(map(float, printed))
    assert bold(table) == [float(text) == top for text in printed]


def test_one_seed_or_fewer_than_were_planned_is_never_bold() -> None:
    nan = math.nan
    table = by_seeds([0.5, 0.6, 0.7], [0.9, 0.9, nan], [0.99, nan, nan], [nan, nan, nan])
    assert bold(table) == [True, False, False, False]
    assert bold(by_seeds([0.5], [0.9])) == [False, False]
    assert behind(by_seeds([0.5], [0.9])) == [None, None]


def test_a_column_in_which_nothing_may_be_bold_has_no_marks_at_all() -> None:
    table = by_seeds([0.5, 0.6, math.nan], [0.9, math.nan, 0.8])
    assert bold(table) == [False, False]
    assert behind(table) == [None, None]


def test_what_a_search_drew_is_no_best_on_the_seeds_it_was_chosen_by() -> None:
    arms = [[0.9, 0.91, 0.92], [0.5, 0.51, 0.52]]
    assert bold(by_seeds(*arms, numbers=[None, 0])) == [True, False]
    assert behind(by_seeds(*arms, numbers=[None, 0])) == [None, None]
    assert bold(by_seeds(*arms, numbers=[None, 0], parts=["run", "select"])) == [True, False]


def test_nothing_is_called_best_below_what_was_drawn_and_may_be_lucky() -> None:
    arms = [[0.5, 0.51, 0.52], [0.9, 0.91, 0.92]]
    assert bold(by_seeds(*arms, numbers=[None, 0])) == [False, False]
    assert bold(by_seeds(*arms, numbers=[None, 0], parts=["run", "select"])) == [False, False]
    assert bold(by_seeds(*arms, numbers=[None, 0], parts=["run", "confirm"])) == [False, True]


def test_a_scalar_has_no_best_until_somebody_says_which_way_is_better() -> None:
    values = np.array([[5.0, 5.1, 5.2], [9.0, 9.1, 9.2]])[None, :, :, None]
    frame = framed(values, arms=["a", "b"], groups=["A"], metrics=["latency_ms"])
    frame = frame[frame["group"] == "mean"]
    plain = main_table(frame, "latency_ms")
    assert bold(marked(plain, frame)) == [False, False]
    assert bold(marked(replace(plain, larger_is_better=False), frame)) == [True, False]
    assert bold(marked(replace(plain, larger_is_better=True), frame)) == [False, True]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_a_scalar_is_best_as_it_is_printed_whatever_its_unit(scale: float) -> None:
    values = scale * np.array([[1.2341, 1.2341], [1.2342, 1.2342], [1.251, 1.251]])
    frame = framed(values[None, :, :, None], arms=["a", "b", "c"], groups=["A"], metrics=["x_ms"])
    frame = frame[frame["group"] == "mean"]
    table = marked(replace(main_table(frame, "x_ms"), larger_is_better=False), frame)
    printed = [cell_text(row.cells["mean"], is_rate=False).partition("±")[0] for row in table.rows]
    assert printed[0] == printed[1] != printed[2]
    assert bold(table) == [True, True, False]


def test_each_group_has_a_best_of_its_own() -> None:
    values = np.array(
        [[[0.9, 0.1], [0.92, 0.12], [0.91, 0.1]], [[0.5, 0.5], [0.52, 0.53], [0.51, 0.5]]]
    )
    table = table_of(framed(values[None], arms=["a", "b"], groups=["A", "B"]))
    assert [bold(table, column) for column in table.columns] == [
        [True, False],
        [False, True],
        [False, True],
    ]


# --- daggers --------------------------------------------------------------------------------------


def expected(values: Floats, larger: bool) -> tuple[list[bool], list[bool | None]]:
    """Bold and behind of arms by seeds, by scipy and by hand."""
    printed = [
        None if np.isnan(row).any() or len(row) < 2 else float(f"{100 * row.mean():.2f}")
        for row in values
    ]
    sign = 1 if larger else -1
    eligible = [sign * value for value in printed if value is not None]
    if not eligible:
        return [False] * len(values), [None] * len(values)
    best = [value is not None and sign * value == max(eligible) for value in printed]
    top = max((n for n in range(len(values)) if best[n]), key=lambda n: sign * values[n].mean())
    p: dict[int, float] = {}
    found: list[bool | None] = [None] * len(values)
    worse = {}
    for n, row in enumerate(values):
        if best[n] or np.isnan(row).all():
            continue
        found[n] = False
        common = ~np.isnan(row)
        if common.sum() >= 3 and np.ptp((row - values[top])[common]) > 1e-12:
            p[n] = stats.ttest_rel(row[common], values[top][common]).pvalue
            worse[n] = sign * (row - values[top])[common].mean() < 0
    largest = 0.0
    for step, n in enumerate(sorted(p, key=lambda n: p[n])):
        largest = max(largest, min(1.0, p[n] * (len(p) - step)))
        if largest <= 0.05:
            found[n] = True if worse[n] else None
    return best, found


@pytest.mark.parametrize("metric", ["auroc", "eer"])
def test_marks_are_those_of_scipy_on_random_sweeps(metric: str) -> None:
    random = np.random.default_rng(7)
    told = set()
    for _ in range(150):
        arms, seeds = random.integers(2, 7), random.integers(1, 7)
        values = random.normal(0.8, 0.03, (arms, 1)) + random.normal(0, 0.01, (arms, seeds))
        values[random.random((arms, seeds)) < 0.08] = math.nan
        table = by_seeds(*values.tolist(), metric=metric)
        best, after = expected(values, metric == "auroc")
        assert bold(table) == best
        assert behind(table) == after
        told |= {*zip(best, after, strict=True)}
    assert told == {(True, None), (False, None), (False, False), (False, True)}


def test_of_the_published_runs_topk_is_best_and_the_baseline_is_told_apart_where_it_is() -> None:
    rows = pd.read_csv(GOLDEN)
    metrics = list(dict.fromkeys(rows["metric"]))
    values = np.array(
        [
            [
                rows[(rows["metric"] == metric) & (rows["method"] == arm)]
                .pivot_table(index="seed", columns="domain", values="value")[["A", "B", "C", "D"]]
                .to_numpy()
                / 100
                for arm in ("baseline", "topk")
            ]
            for metric in metrics
        ]
    )
    frame = framed(values, arms=["baseline", "topk"], metrics=metrics)
    for number, metric in enumerate(metrics):
        table = table_of(frame, metric)
        every = np.concatenate([values[number], values[number].mean(2, keepdims=True)], axis=2)
        for place, column in enumerate(table.columns):
            best, after = expected(every[:, :, place], larger=True)
            assert (bold(table, column), behind(table, column)) == (best, after)
    assert behind(table_of(frame, "tpr@1")) == [True, None]


def test_with_two_seeds_nothing_is_told_from_the_best() -> None:
    assert behind(by_seeds([0.1, 0.11], [0.9, 0.91])) == [False, None]


def test_an_incomplete_one_that_is_surely_better_is_not_called_worse_or_alike() -> None:
    few = [0.95, 0.951, 0.9505, math.nan]
    table = by_seeds([0.5, 0.51, 0.505, 0.5], few)
    assert bold(table) == [True, False]
    assert behind(table) == [None, None]


def test_seeds_that_differ_between_configurations_are_joined_and_not_lined_up() -> None:
    frame = framed(
        np.array([[0.5, 0.6, 0.7], [0.52, 0.61, 0.73]])[None, :, :, None],
        arms=["a", "b"],
        groups=["A"],
        seeds=[1, 2, 3],
    )
    # Arm b ran with others: no seed is common, and nothing can be tested.
    frame.loc[frame["arm"] == "b", "seed"] += 10
    assert (bold(table_of(frame)), behind(table_of(frame))) == ([False, True], [False, None])


def test_a_group_that_a_configuration_lacks_costs_it_that_column_alone() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.01, (1, 3, 4, 2))
    values[0, 1] += 0.2
    values[0, 2, :, 0] = math.nan
    frame = framed(values, arms=["a", "b", "c"], groups=["A", "B"])
    table = table_of(frame)
    assert bold(table, "A") == [False, True, False]
    assert behind(table, "A") == [True, None, None]
    assert behind(table, "B") == [True, None, True]
    gone = frame[~((frame["cell"] == 2) & (frame["group"] == "A"))]  # not even a row
    assert "A" not in table_of(gone).rows[2].cells
    assert bold(table_of(gone), "B") == [False, True, False]


def test_one_row_has_nothing_to_be_the_best_of() -> None:
    assert bold(by_seeds([0.5, 0.6, 0.7])) == [False]


def test_the_order_of_rows_in_the_frame_changes_no_mark() -> None:
    values = np.random.default_rng(3).normal(0.8, 0.02, (1, 5, 4, 3))
    frame = framed(values, arms=list("abcde"), groups=["A", "B", "C"])
    shuffled = frame.sample(frac=1, random_state=1)
    table = main_table(frame, "auroc")
    assert marked(table, shuffled) == marked(table, frame)
