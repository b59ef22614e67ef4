"""What is said of a configuration is what its seeds support, whatever else is in the sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis import frame
from analysis.compare import holm, paired
from analysis.frame import MEAN, SKIPPED
from analysis.reasons import Unit, p_text
from analysis.verdicts import Comparison, Comparisons, compare
from hdsweep.errors import SpecError
from hdsweep.identity import digest
from hdsweep.metrics import definitions
from hdsweep.planned import PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord
from tests.framing import framed, named

GOLDEN = Path(__file__).parent / "golden" / "published_rows.csv"
GROUPS = ("A", "B", "C", "D")
METRICS = ("auroc", "tpr@1", "tpr@5")
SEEDS = (42, 43, 44, 123, 456)
Values = NDArray[np.float64]


def published() -> Values:
    """Shape (metrics, [baseline, topk], seeds, groups)."""
    rows = pd.read_csv(GOLDEN)
    rows = rows[rows["domain"] != "mean"].sort_values(["metric", "method", "seed", "domain"])
    return rows["value"].to_numpy().reshape(len(METRICS), 2, len(SEEDS), len(GROUPS)) / 100


@pytest.fixture
def stored(tmp_path: Path) -> pd.DataFrame:
    """The published runs as records, read as a report reads them."""
    store = Store(tmp_path / "results")
    store.create()
    cells = []
    for cell, (arm, knobs) in enumerate((("baseline", {}), ("topk", {"q": 5}))):
        trials = {}
        for n, seed in enumerate(SEEDS):
            identity = {"method": "m", "version": 1, "params": {"variant": arm, **knobs}}
            trial = Trial(
                digest({**identity, "seed": seed}), "m", 1, {}, "d", {}, "f", seed, identity
            )
            metrics = {
                metric: dict(zip(GROUPS, published()[m, cell, n].tolist(), strict=True))
                for m, metric in enumerate(METRICS)
            }
            store.put(
                TrialRecord(
                    trial.id, "ok", trial.to_json(), metrics, definitions=definitions(metrics)
                )
            )
            trials[seed] = trial.id
        cells.append(PlannedCell(arm, knobs, trials))
    sweep = PlannedSweep("golden", "", METRICS, "baseline", (), GROUPS, tuple(cells))
    store.put_sweep(sweep, b"")
    return frame.load(store, store.sweep())


def by_key(found: Comparisons) -> dict[tuple[str, str, int], Comparison]:
    return {(row.metric, row.group, row.cell): row for row in found.rows}


def one(
    a: Sequence[float], b: Sequence[float], metric: str = "auroc", **options: object
) -> Comparison:
    """One configuration against the baseline, in one group."""
    values = np.array([b, a], dtype=np.float64)[None, :, :, None]
    table = framed(values, arms=["base", "other"], metrics=[metric], groups=["A"])
    return compare(table, baseline="base", **options).rows[-1]  # type: ignore[arg-type]


# --- the published runs ---------------------------------------------------------------------------


def test_the_published_runs_are_compared_as_scipy_does(stored: pd.DataFrame) -> None:
    found = compare(stored, baseline="baseline", margins={"auroc": 0.005})
    rows, values = by_key(found), published()
    assert (found.baseline, found.baseline_cell, len(rows)) == ("baseline", 0, 15)
    for m, metric in enumerate(METRICS):
        for g, group in enumerate((*GROUPS, MEAN)):
            of_group = values[m].mean(axis=2) if group == MEAN else values[m, :, :, g]
            theirs = stats.ttest_rel(of_group[1], of_group[0])
            row = rows[metric, group, 1]
            assert row.paired.p == pytest.approx(theirs.pvalue, rel=1e-9)
            low, high = theirs.confidence_interval()
            assert (row.paired.ci_low, row.paired.ci_high) == pytest.approx((low, high), rel=1e-9)
            assert row.seeds == SEEDS
            assert row.unpaired == ()
    for family, size in (("aggregate", 3), ("per group", 12)):
        members = [row for row in found.rows if row.family == family]
        assert len(members) == size == members[0].family_size
        assert [row.p_holm for row in members] == pytest.approx(
            holm([row.paired.p for row in members]).tolist(), rel=1e-9
        )
        margins = [row.p_tost if row.p_tost is not None else math.nan for row in members]
        assert [row.p_tost_holm for row in members if row.p_tost_holm is not None] == (
            pytest.approx([p for p in holm(margins).tolist() if not math.isnan(p)], rel=1e-9)
        )
    mean = rows["tpr@1", MEAN, 1]
    assert mean.verdict == "better"
    assert mean.why == (
        "+0.92 points, 95 % CI [+0.64, +1.19], p = 7.9e-4 (Holm 0.0016)"  # means are not rounded
    )
    assert "3 tests of whole trials, 12 tests of single groups" in found.notes[1]
    assert any("0.0625" in note for note in found.notes)


def test_a_frame_from_arrays_is_the_frame_from_records(stored: pd.DataFrame) -> None:
    # So what the studies below show of the one holds for the other.
    made = framed(
        published(), arms=["baseline", "topk"], metrics=METRICS, seeds=SEEDS,
        knobs=[{}, {"q": 5}],
    )  # fmt: skip
    pd.testing.assert_frame_equal(
        made.drop(columns="trial"), stored.drop(columns="trial"), check_exact=False, rtol=1e-12
    )


def test_the_direction_of_a_metric_decides_what_is_better() -> None:
    high, low = [0.95, 0.94, 0.96, 0.95], [0.80, 0.81, 0.80, 0.82]
    assert one(high, low).verdict == "better"
    assert one(low, high).verdict == "worse"
    assert one(low, high, "fpr@100").verdict == "better"
    assert one(low, high, "latency_ms", directions={"latency_ms": False}).verdict == "better"
    unknown = one(low, high, "latency_ms")
    assert unknown.verdict == "not testable"
    assert "nobody said whether larger latency_ms is better" in unknown.why
    assert unknown.paired.p is not None
    assert unknown.p_holm is not None


# --- margins and power ----------------------------------------------------------------------------


def test_equivalence_takes_a_margin_that_was_declared() -> None:
    a, b = [0.901, 0.899, 0.900, 0.902, 0.898], [0.900, 0.900, 0.901, 0.901, 0.899]
    assert one(a, b).verdict == "inconclusive"
    inside = one(a, b, margins={"auroc": 0.01})
    assert inside.verdict == "equivalent"
    assert inside.why == (
        "-0.02 points, 95 % CI [-0.16, +0.12], p = 0.7 (Holm 0.7); "
        "within the margin of 1 point (two one-sided tests, p = 1.8e-5)"
    )
    assert inside.smallest_margin is not None
    assert inside.smallest_margin < 0.01
    assert one(a, b, margins={"auroc": 1e-4}).verdict == "inconclusive"
    assert one(a, b, margins={"ap": 0.01}).verdict == "inconclusive"


def test_a_difference_that_is_sure_and_does_not_matter_says_both() -> None:
    b = [0.900, 0.901, 0.899, 0.902, 0.900]
    a = [v + 0.002 + e for v, e in zip(b, (1e-4, -1e-4, 0, 2e-4, 0), strict=True)]
    found = one(a, b, margins={"auroc": 0.01})
    assert found.verdict == "better"
    assert "; though by less than the margin of 1 point" in found.why
    # An equivalence needs no direction, where a margin in the metric's own unit was declared.
    wide = one([20.1, 19.9, 20.0, 20.05], [20.0, 20.0, 20.1, 20.0], "ms", margins={"ms": 5.0})
    assert wide.verdict == "equivalent"


def test_what_is_inconclusive_says_what_could_have_been_seen() -> None:
    found = one([0.91, 0.90, 0.92, 0.89, 0.93], [0.90, 0.91, 0.90, 0.90, 0.91])
    assert found.verdict == "inconclusive"
    apart = np.array([0.01, -0.01, 0.02, -0.01, 0.02])
    assert found.seeds_needed is not None
    critical = stats.t.ppf(0.975, found.seeds_needed - 1)
    shift = apart.mean() / apart.std(ddof=1) * math.sqrt(found.seeds_needed)
    assert stats.nct.sf(critical, found.seeds_needed - 1, shift) >= 0.8
    assert found.why.endswith(
        f"5 seeds could show 2.6 points; about {found.seeds_needed} seeds would show this "
        "difference"
    )
    noisy = [0.91, 0.90, 0.92, 0.89, 0.93], [0.90, 0.91, 0.90, 0.90, 0.91]
    assert one(*noisy, margins={"auroc": 0.01}).why.endswith(
        "5 seeds could show 2.6 points; about 21 seeds would show one of 1 point, the margin"
    )
    above = [value + 0.01 for value in noisy[0]]
    wide = one(above, noisy[1], margins={"auroc": 0.027}).why
    assert wide.endswith("so one of 2.7 points, the margin, would likely have been seen")
    none = one([0.91, 0.90, 0.89], [0.90, 0.91, 0.89])
    assert none.seeds_needed is None
    assert none.why.endswith("3 seeds could show 3.3 points")


# --- what cannot be tested ------------------------------------------------------------------------


def test_two_seeds_or_differences_without_spread_are_not_tested() -> None:
    few = one([0.9, 0.95], [0.8, 0.8])
    assert (few.verdict, few.why) == ("not testable", "2 common seeds; a test takes 3")
    same = one([0.91, 0.92, 0.93], [0.90, 0.91, 0.92])
    assert (same.verdict, same.why) == (
        "not testable", "all 3 differences are the same: +1 points",
    )  # fmt: skip
    tied = one([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert (tied.verdict, tied.why) == (
        "not testable", "all 3 differences are the same: 0 points",
    )  # fmt: skip
    for row in (few, same, tied):
        assert row.p_holm is row.smallest_margin is row.detectable is row.seeds_needed is None
        assert row.family_size == 0


def test_seeds_that_only_one_has_are_named_and_left_out() -> None:
    nan = math.nan
    a, b = [0.91, nan, 0.93, 0.92, 0.95], [0.90, 0.91, 0.90, nan, 0.91]
    found = one(a, b)
    assert (found.seeds, found.unpaired) == ((0, 2, 4), (1, 3))
    assert found.paired == paired([0.91, 0.93, 0.95], [0.90, 0.90, 0.91])
    assert found.why.endswith("seeds 1, 3 left out, for only one of the two has a value")


def test_many_seeds_that_are_left_out_are_counted() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(0.9, 0.01, 12), random.normal(0.9, 0.01, 12)
    a[:8] = math.nan
    assert "; seeds 0, 1, 2, 3, 4 and 3 more left out" in one(a.tolist(), b.tolist()).why


def test_a_difference_that_no_number_of_seeds_shows_is_told() -> None:
    a, b = [0.90, 0.92, 0.91, 0.9301], [0.91, 0.91, 0.92, 0.92]  # differ by 0.0025 points
    found = one(a, b)
    assert found.seeds_needed is None
    assert found.why.endswith("points, and 10,000 would not show this difference")


def test_what_is_significant_alone_and_not_in_its_family_says_so() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0.9, 0.01, (1, 12, 5, 4))
    table = framed(values, arms=[f"arm {i}" for i in range(12)])
    rows = [r for r in compare(table, baseline="arm 0").rows if r.verdict == "inconclusive"]
    alone = [row for row in rows if row.paired.p is not None and row.paired.p <= 0.05]
    assert alone
    assert all(row.why.endswith("alone, but not among so many tests") for row in alone)


def test_a_group_that_is_undefined_at_a_seed_costs_that_group_and_the_mean_alone() -> None:
    values = np.random.default_rng(3).normal(0.9, 0.01, (1, 2, 5, 4))
    whole = by_key(compare(framed(values, arms=["base", "other"]), baseline="base"))
    values[0, 1, 2, 1] = math.nan
    rows = by_key(compare(framed(values, arms=["base", "other"]), baseline="base"))
    assert rows["auroc", "B", 1].seeds == rows["auroc", MEAN, 1].seeds == (0, 1, 3, 4)
    assert rows["auroc", "A", 1].paired == whole["auroc", "A", 1].paired


def test_what_a_search_drew_is_not_judged_on_the_seeds_it_was_chosen_by() -> None:
    values = np.random.default_rng(4).normal(0.9, 0.01, (1, 4, 5, 4))
    values[0, 1:] += 0.1
    arms, numbers = ["base", "tuned", "tuned", "tuned"], [None, 0, 1, 1]
    table = framed(values, arms=arms, numbers=numbers, parts=["run", "run", "run", "confirm"])
    found = compare(table, baseline="base")
    rows = by_key(found)
    for cell in (1, 2):
        row = rows["auroc", MEAN, cell]
        assert row.verdict == "not testable"
        assert row.why.endswith("drawn by a search and measured on the seeds it is chosen by")
        assert row.paired.p is not None
        assert row.p_holm is None
    confirmed = rows["auroc", MEAN, 3]
    assert confirmed.verdict == "better"
    assert confirmed.family_size == 1
    assert confirmed.p_holm == confirmed.paired.p
    assert any(note.startswith("2 configurations were drawn") for note in found.notes)


def test_a_metric_that_was_asked_for_one_group_stands_for_the_trial() -> None:
    table = framed(np.random.default_rng(5).normal(0.9, 0.01, (2, 2, 5, 4)), arms=["base", "x"],
                   metrics=["auroc", "tpr@1"])  # fmt: skip
    table = table[(table["metric"] == "auroc") | (table["group"] == "C")]
    rows = by_key(compare(table, baseline="base"))
    assert rows["tpr@1", "C", 1].family == rows["auroc", MEAN, 1].family == "aggregate"
    assert rows["tpr@1", "C", 1].family_size == 2
    assert rows["auroc", "C", 1].family == "per group"
    assert ("tpr@1", "A", 1) not in rows


def test_a_race_is_told_for_it_chooses_how_many_seeds_there_are() -> None:
    values = np.random.default_rng(6).normal(0.9, 0.01, (1, 2, 5, 4))
    values[0, 1, 3:] = math.nan
    table = framed(values, arms=["base", "x"])
    lost = table["value"].isna()
    table.loc[lost, "status"] = SKIPPED
    table.loc[lost, "reason"] = "race: worse than 'base' by 0.1"
    notes = compare(table, baseline="base").notes
    assert any(note.startswith("A race gave some configurations fewer seeds") for note in notes)
    assert any("compared on some of the seeds" in note for note in notes)


# --- the baseline ---------------------------------------------------------------------------------

ARMS = ["baseline", "topk", "topk", "topk", "my arm"]
KNOBS = [{}, {"q_percent": 1, "lr": 0.001}, {"q_percent": 5, "lr": 0.001}, {"q_percent": 5}, {}]


def ready() -> pd.DataFrame:
    values = np.random.default_rng(7).normal(0.9, 0.01, (1, 5, 3, 4))
    return framed(values, arms=ARMS, knobs=KNOBS)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("baseline", 0), ("topk q_percent=1", 1), ("topk  lr=1e-3 q_percent=5.0", 2),
        ("topk q_percent=5", 3), ("my arm", 4),
    ],
)  # fmt: skip
def test_a_baseline_is_named_as_configurations_are_shown(name: str, cell: int) -> None:
    found = compare(ready(), baseline=name)
    assert found.baseline_cell == cell
    assert {row.cell for row in found.rows} == {0, 1, 2, 3, 4} - {cell}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, "no baseline was named"),
        ("topk", "has 3 configurations; name one of them: 'topk q_percent=1 lr=0.001', "),
        ("topk lr=0.001", "has 2 configurations"),
    ],
)
def test_without_one_baseline_nothing_is_compared_and_that_is_said(
    name: str | None, why: str
) -> None:
    found = compare(ready(), baseline=name)
    assert found.rows == ()
    assert why in found.why_none


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("basline", "no arm 'basline'; did you mean 'baseline'?"),
        ("topk q_percent=7", "no such configuration; did you mean 'topk q_percent=5'?"),
        ("topk q=5", "no such configuration"),
        ("topk hard", "'hard' is not a knob with its value"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        compare(ready(), baseline=name)
    assert message in str(refused.value)


def test_a_baseline_of_the_file_that_was_not_confirmed_is_no_mistake() -> None:
    found = compare(ready(), baseline="topk q_percent=7", checked=True)
    assert (found.rows, found.baseline_cell) == ((), None)
    assert found.why_none == (
        "the baseline 'topk q_percent=7' is not among the configurations that are reported"
    )
    assert compare(ready(), baseline="baseline", checked=True).rows


def test_what_a_search_drew_is_no_baseline() -> None:
    values = np.random.default_rng(8).normal(0.9, 0.01, (1, 2, 3, 4))
    table = framed(values, arms=["tuned", "other"], numbers=[0, None])
    found = compare(table, baseline="tuned")
    assert "was drawn by a search" in found.why_none
    alone = compare(table[table["cell"] == 1], baseline="other")
    assert alone.why_none == "there is no other configuration than the baseline"


# --- properties -----------------------------------------------------------------------------------


def numbers(found: Comparisons, names: Mapping[str, str] | None = None) -> dict[object, Comparison]:
    """By what does not change; without what Holm makes of the rest of the family."""
    return {
        (row.metric, row.group, (names or {}).get(row.arm, row.arm)): replace(
            row, cell=0, arm="", family_size=0, p_holm=None, p_tost_holm=None, verdict="better",
            why="",
        )
        for row in found.rows
    }  # fmt: skip


@st.composite
def sweeps(draw: st.DrawFn) -> Values:
    arms, seeds = draw(st.integers(2, 5)), draw(st.integers(2, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.round(random.normal(0.9, 0.02, (2, arms, seeds, 3)), 3)
    return np.where(random.random(values.shape) < draw(st.sampled_from([0, 0.1])), np.nan, values)


LETTERS = ["a", "b", "c", "d", "e"]
OPTIONS = {"metrics": ["auroc", "fpr@100"], "groups": ["A", "B", "C"]}


@given(sweeps(), st.data())
def test_the_order_of_rows_changes_nothing(values: Values, data: st.DataObject) -> None:
    table = framed(values, arms=LETTERS[: values.shape[1]], **OPTIONS)
    order = data.draw(st.permutations(range(len(table))))
    moved = compare(table.iloc[order], baseline="a", margins={"auroc": 0.01})
    straight = compare(table, baseline="a", margins={"auroc": 0.01})
    together = [
        replace(row, seeds=tuple(sorted(row.seeds)), unpaired=(), why="") for row in moved.rows
    ]
    assert together == [replace(row, unpaired=(), why="") for row in straight.rows]


@given(sweeps())
def test_names_of_arms_do_not_matter(values: Values) -> None:
    names = LETTERS[: values.shape[1]]
    told = dict(zip([f"{name} <b>" for name in names], names, strict=True))
    left = compare(framed(values, arms=names, **OPTIONS), baseline="a")
    right = compare(framed(values, arms=list(told), **OPTIONS), baseline="a <b>")
    assert numbers(left) == numbers(right, told)


@given(sweeps())
def test_another_arm_changes_no_numbers_of_a_pair_but_its_correction(values: Values) -> None:
    names = LETTERS[: values.shape[1]]
    every = compare(framed(values, arms=names, **OPTIONS), baseline="a")
    few = compare(framed(values[:, :2], arms=names[:2], **OPTIONS), baseline="a")
    kept = {key: row for key, row in numbers(every).items() if key[2] == "b"}  # type: ignore[index]
    assert kept == numbers(few)
    corrected = {(r.metric, r.group): r.p_holm for r in every.rows if r.arm == "b"}
    for row in few.rows:
        if row.p_holm is not None:
            assert row.p_holm <= (corrected[row.metric, row.group] or 0) + 1e-15


@given(sweeps())
def test_seeds_that_no_pair_has_change_nothing(values: Values) -> None:
    names = LETTERS[: values.shape[1]]
    wider = np.concatenate([values, np.full((*values.shape[:2], 2, 3), np.nan)], axis=2)
    left = compare(framed(values, arms=names, **OPTIONS), baseline="a")
    right = compare(framed(wider, arms=names, **OPTIONS), baseline="a")
    for one_row, other in zip(left.rows, right.rows, strict=True):
        assert one_row.paired.n == other.paired.n
        assert one_row.paired.untestable == other.paired.untestable
        assert one_row.paired.p is None or one_row.paired.p == pytest.approx(other.paired.p)
        assert one_row.seeds == other.seeds


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.00091, "9.1e-4"), (0.00096, "9.6e-4"), (0.013, "0.013"), (0.42, "0.42"), (1.0, "1"),
     (3.2e-12, "3.2e-12"), (0.0, "0")],
)  # fmt: skip
def test_p_is_written_as_people_read_it(p: float, text: str) -> None:
    assert p_text(p) == text


def test_differences_have_the_digits_that_their_interval_supports() -> None:
    rate, scalar = Unit(is_rate=True), Unit(is_rate=False)
    assert rate.interval(0.00914, 0.00626, 0.01202, 0.95) == (
        "+0.91 points, 95 % CI [+0.63, +1.20]"
    )
    assert scalar.interval(-12.34, -20.0, -4.0, 0.9) == "-12.3, 90 % CI [-20.0, -4.0]"
    assert scalar.interval(1234.0, 1000.0, 1500.0, 0.95) == "+1234, 95 % CI [+1000, +1500]"
    assert rate.interval(-0.00001, -0.01, 0.01, 0.95) == "0.0 points, 95 % CI [-1.0, +1.0]"
    assert [rate.size(v) for v in (0.01, -0.0123, 0.5)] == ["1.0 points", "1.2 points", "50 points"]
    assert [rate.declared(v) for v in (0.01, 0.005)] == ["1 point", "0.5 points"]
    assert scalar.declared(5.0) == "5"
    assert rate.exactly(-0.0) == "0 points"


def test_categories_without_rows_are_no_matter() -> None:
    table = framed(np.random.default_rng(9).normal(0.9, 0.01, (1, 2, 3, 4)), arms=["base", "x"])
    table["group"] = named(table["group"].cat.codes.to_numpy(), [*table["group"].cat.categories])
    some = table[table["group"] != "D"]
    assert {row.group for row in compare(some, baseline="base").rows} == {"A", "B", "C", MEAN}
