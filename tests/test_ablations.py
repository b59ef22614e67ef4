"""An ablation shows what one or two knobs do, all else equal: nothing is averaged over the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.ablations import Ablation, ablations
from analysis.best import marked
from analysis.tables import Cell, main_table
from analysis.tabulated import ablation
from hdsweep.errors import SpecError
from tests.framing import framed

Setting = tuple[str, Mapping[str, Any]]


def frame_of(settings: Sequence[Setting], seeds: int = 3, **other: Any) -> pd.DataFrame:
    """Configuration i has the mean (50 + i) %, in all groups."""
    values = np.full((1, len(settings), seeds, 2), 0.5)
    values += np.arange(len(settings))[None, :, None, None] / 100
    values += np.linspace(-1e-3, 1e-3, seeds)[None, None, :, None]
    return framed(
        values,
        arms=[arm for arm, _ in settings],
        knobs=[knobs for _, knobs in settings],
        groups=["A", "B"],
        **other,
    )


def made(frame: pd.DataFrame, *knobs: str) -> tuple[Ablation, ...]:
    metrics = list(frame["metric"].cat.categories)
    tables = [marked(main_table(frame, metric), frame) for metric in metrics]
    return ablations(tables, frame, knobs)


def points(found: Ablation) -> list[list[int | None]]:
    """Which configuration is in each cell."""

    def which(cell: Cell | None) -> int | None:
        return None if cell is None or cell.mean is None else round(100 * cell.mean) - 50

    return [[which(cell) for cell in row] for row in found.cells]


def shown(found: Ablation) -> list[list[str]]:
    sheet = ablation(found)
    return [[*sheet.header], *([cell.text for cell in row] for row in sheet.rows)]


def test_a_knob_goes_down_in_the_order_of_its_numbers_and_metrics_across() -> None:
    settings: list[Setting] = [("base", {})]
    settings += [("topk", {"q": q}) for q in (50, 2, 10.5, 1e-4)]
    (found,) = made(frame_of(settings))
    assert (found.arm, found.knobs, found.fixed) == ("topk", ("q",), {})
    assert (found.down, found.across) == ((1e-4, 2, 10.5, 50), ("auroc",))
    assert points(found) == [[4], [2], [3], [1]]
    assert [row[0] for row in shown(found)] == ["q", "0.0001", "2", "10.5", "50"]


def test_values_that_are_no_numbers_keep_the_order_of_the_file_after_those_that_are() -> None:
    values = ["exact", 8, True, 4, None, "auto", False, [1, 2]]
    (found,) = made(frame_of([("knn", {"bits": value}) for value in values]))
    assert [*found.down] == [4, 8, "exact", True, None, "auto", False, [1, 2]]
    assert points(found) == [[3], [1], [0], [2], [4], [5], [6], [7]]
    first = [row[0] for row in shown(found)]
    assert first == ["bits", "4", "8", "exact", "True", "None", "auto", "False", "[1, 2]"]


def test_two_knobs_cross_and_each_metric_has_a_table() -> None:
    grid = [("a", {"q": q, "lr": lr}) for q in (1, 2, 3) for lr in (1e-4, 1e-3)]
    values = np.full((2, 6, 3, 2), 0.5) + np.arange(6)[None, :, None, None] / 100
    values += np.array([-1e-3, 0, 1e-3])[None, None, :, None]
    frame = framed(
        values,
        arms=["a"] * 6,
        knobs=[knobs for _, knobs in grid],
        metrics=["auroc", "ap"],
        groups=["A", "B"],
    )
    first, second = made(frame)
    assert [one.tables[0].metric for one in (first, second)] == ["auroc", "ap"]
    assert (first.knobs, first.down, first.across) == (("q", "lr"), (1, 2, 3), (1e-4, 1e-3))
    assert points(first) == points(second) == [[0, 1], [2, 3], [4, 5]]
    assert shown(first)[0] == ["q", "lr=0.0001", "lr=0.001"]
    assert ablation(second).title == "ap in %, larger is better: a over q and lr"


def test_knobs_that_are_asked_for_cross_in_the_order_in_which_they_are_asked_for() -> None:
    frame = frame_of([("a", {"q": q, "lr": lr}) for q in (1, 2, 3) for lr in (1e-4, 1e-3)])
    (found,) = made(frame, "lr", "q")
    assert (found.knobs, found.down, found.across) == (("lr", "q"), (1e-4, 1e-3), (1, 2, 3))
    assert points(found) == [[0, 2, 4], [1, 3, 5]]


def test_further_knobs_are_held_fixed_and_never_averaged_over() -> None:
    frame = frame_of([("a", {"q": q, "lr": lr}) for q in (1, 2, 3) for lr in (1e-4, 1e-3)])
    low, high = made(frame, "q")
    assert (low.fixed, high.fixed) == ({"lr": 1e-4}, {"lr": 1e-3})
    assert (points(low), points(high)) == ([[0], [2], [4]], [[1], [3], [5]])
    assert ablation(low).title == "a, lr=0.0001 over q"


def test_an_arm_of_three_knobs_has_tables_when_they_are_asked_for_alone() -> None:
    grid = [(x, y, z) for x in (1, 2) for y in (1, 2) for z in (1, 2)]
    frame = frame_of([("a", {"x": x, "y": y, "z": z}) for x, y, z in grid])
    assert made(frame) == ()
    one, two = made(frame, "x", "z")
    assert (one.fixed, two.fixed) == ({"y": 1}, {"y": 2})
    assert (points(one), points(two)) == ([[0, 1], [4, 5]], [[2, 3], [6, 7]])


def test_every_arm_that_sweeps_the_knob_has_its_table() -> None:
    settings = [(arm, {"q": q}) for arm in ("a", "b") for q in (1, 2)] + [("c", {"q": 1})]
    first, second = made(frame_of(settings), "q")
    assert [one.arm for one in (first, second)] == ["a", "b"]
    assert (points(first), points(second)) == ([[0], [1]], [[2], [3]])


def test_configurations_that_the_sweep_does_not_have_are_dots() -> None:
    frame = frame_of([("a", {"x": 1, "y": 1}), ("a", {"x": 1, "y": 2}), ("a", {"x": 2, "y": 1})])
    (found,) = made(frame)
    assert points(found) == [[0, 1], [2, None]]
    assert shown(found)[2][2] == "·"


def test_what_was_planned_and_is_not_there_is_a_dash_with_its_reason_and_no_dot() -> None:
    frame = frame_of([("a", {"x": 1}), ("a", {"x": 2})])
    lost = frame["cell"] == 1
    frame.loc[lost, "value"], frame.loc[lost, "reason"] = math.nan, "not run"
    frame["status"] = frame["status"].where(~lost, "not run")
    (found,) = made(frame)
    assert shown(found)[2] == ["2", "— (not run)"]
    assert found.cells[1][0] is not None


def test_a_knob_that_only_some_configurations_have_hides_none_of_them() -> None:
    settings: list[Setting] = [
        ("a", {"fault": "none", "level": 0}),
        ("a", {"fault": "none", "level": 8}),
        ("a", {"fault": "nan"}),
    ]
    found = made(frame_of(settings))
    seen = {number for one in found for row in points(one) for number in row}
    assert seen - {None} == {0, 1, 2}
    assert shown(found[0])[0] == ["fault", "level=0", "level=8", "level=—"]


def test_a_knob_that_follows_from_the_others_is_no_reason_to_take_them_apart() -> None:
    settings: list[Setting] = [("a", {"fault": "none", "level": 5}), ("a", {"fault": "nan"})]
    (found,) = made(frame_of(settings))
    assert (found.down, found.fixed, points(found)) == (("none", "nan"), {}, [[0], [1]])


def test_what_a_search_drew_is_in_no_ablation() -> None:
    frame = frame_of([("a", {"q": 1}), ("a", {"q": 2}), ("a", {"q": 3.3})], numbers=[None, None, 0])
    (found,) = made(frame)
    assert found.down == (1, 2)
    drawn = frame_of([("a", {"q": 1.5}), ("a", {"q": 2.5})], numbers=[0, 1])
    assert made(drawn) == ()


def test_the_best_of_an_ablation_is_that_of_the_ablation() -> None:
    frame = frame_of([("a", {"q": 1}), ("a", {"q": 2}), ("better", {})])
    (found,) = made(frame)
    assert [[cell is not None and cell.best for cell in row] for row in found.cells] == [
        [False],
        [True],
    ]


def test_the_best_of_an_ablation_has_no_dagger_for_what_is_in_another_table() -> None:
    """One seed fewer of the better one, so no test tells them apart in the table of all."""
    frame = frame_of([("a", {"q": 1}), ("a", {"q": 2}), ("better", {})], seeds=2)
    (table,) = [marked(main_table(frame, "auroc"), frame)]
    assert [row.cells["mean"].behind for row in table.rows] == [False, False, None]
    (found,) = made(frame)
    assert [cell.behind for row in found.cells for cell in row if cell is not None] == [False, None]


def test_an_ablation_says_how_many_seeds_where_settings_were_given_different_ones() -> None:
    frame = frame_of([("a", {"q": 1}), ("a", {"q": 2})])
    short = frame[~((frame["cell"] == 0) & (frame["seed"] == frame["seed"].max()))]
    (found,) = made(short.reset_index(drop=True))
    assert [row[1] for row in shown(found)[1:]] == ["49.95±0.07 (n=2)", "51.00±0.10 (n=3)"]


def test_a_grid_has_one_best_and_not_one_of_each_column() -> None:
    (found,) = made(frame_of([("a", {"x": x, "y": y}) for x in (1, 2) for y in (1, 2)]))
    best = [[cell is not None and cell.best for cell in row] for row in found.cells]
    assert best == [[False, False], [False, True]]


def test_many_settings_of_other_knobs_are_all_there() -> None:
    grid = [("a", {"q": q, "lr": lr}) for lr in range(15) for q in (1, 2)]
    assert [one.fixed["lr"] for one in made(frame_of(grid), "q")] == list(range(15))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (["qq"], "no arm lists several values of a knob 'qq'; did you mean 'q'?"),
        (["fixed"], "no arm lists several values of a knob 'fixed'"),
        (["q", "lr", "x"], "one knob or two, found q, lr, x"),
        (["q", "q"], "'q' twice"),
        (["q", "x"], "no arm has configurations that differ in 'q' and 'x' and"),
    ],
)
def test_an_ablation_that_cannot_be_made_is_refused(knobs: list[str], message: str) -> None:
    settings = [("a", {"q": q, "lr": lr, "fixed": 1}) for q in (1, 2) for lr in (1, 2)]
    settings += [("b", {"x": x, "lr": 1}) for x in (1, 2)]
    with pytest.raises(SpecError) as error:
        made(frame_of(settings), *knobs)
    assert message in str(error.value)
