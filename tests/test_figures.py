"""Figures show what the records support, say what they leave out, and are the same bytes again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import frame, tables
from analysis.figures import Drawing, drawings, pdf, svg, write
from analysis.figures.curves import _thinned
from analysis.figures.ranks import cliques, critical_difference
from analysis.figures.view import interval, is_geometric, look
from analysis.summary import Cost, Summary
from analysis.verdicts import Comparisons
from hdsweep.errors import StoreError
from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import STORED, definitions, evaluate
from hdsweep.planned import PlannedCell, PlannedSearch, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

SEEDS = (42, 43, 44, 123, 456)
SVG = "{http://www.w3.org/2000/svg}"
Knobs = Mapping[str, object]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "results")
    made.create()
    return made


def trial(arm: str, seed: int, knobs: Knobs) -> Trial:
    identity = {"method": arm, "version": 1, "params": {k: repr(v) for k, v in knobs.items()}}
    return Trial(
        id=digest({**identity, "seed": seed}), method=arm, version=1, params=dict(knobs),
        data_name="d", data_params={}, fingerprint="f", seed=seed, identity=identity,
    )  # fmt: skip


def keep(
    store: Store, arm: str, seed: int, knobs: Knobs, lift: float,
    groups: Sequence[str] = ("A", "B"), steps: int = 40, items: int = 60,
) -> None:  # fmt: skip
    """A trial with predictions, a curve and a record, as a run leaves it."""
    made = trial(arm, seed, knobs)
    random = np.random.default_rng([seed, int(1000 * lift)])
    group, label = np.repeat(groups, items), np.tile(np.arange(items) % 3 == 0, len(groups))
    score = random.standard_normal(len(label)) + lift * label
    item = tuple(f"{name}/{place}" for place, name in enumerate(group))
    store.put_predictions(made.id, Predictions(item, tuple(group.tolist()), label, score))
    metrics, missing = evaluate(STORED, group, label, score)
    points = [
        {"step": step, "time_s": 0.1 * step, "loss": float(np.exp(-step / 10) + random.random()),
         "grad/total_norm": float(random.random() + 0.1)}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    text = "".join(json.dumps(point) + "\n" for point in points)
    (store.trial_dir(made.id) / "curve.jsonl").write_text(text)
    store.put(
        TrialRecord(
            id=made.id,
            status="ok",
            trial=made.to_json(),
            metrics=metrics,
            missing=missing,
            definitions=definitions(STORED),
            scalars={"latency_ms": 10 * lift + 0.01 * seed},
        )
    )


def cell(arm: str, knobs: Knobs, seeds: Sequence[int] = SEEDS, **more: object) -> PlannedCell:
    ids = {seed: trial(arm, seed, knobs).id for seed in seeds}
    return PlannedCell(arm, knobs, ids, **more)  # type: ignore[arg-type]


def planned(cells: Sequence[PlannedCell], groups: Sequence[str] = ("A", "B")) -> PlannedSweep:
    return PlannedSweep(
        name="figures", question="", metrics=("auroc",), baseline=cells[0].arm, expect=(),
        groups=tuple(groups), cells=tuple(cells),
    )  # fmt: skip


def summary(
    store: Store, sweep: PlannedSweep, metrics: Sequence[str] = ("auroc",),
    baseline: int | None = 0, costs: Sequence[Cost] = (),
) -> Summary:  # fmt: skip
    loaded = frame.load(store, sweep, metrics)
    return Summary(
        sweep=sweep.name, question="", answer=(), frame=loaded,
        tables=tuple(tables.main_table(loaded, metric) for metric in metrics), ablations=(),
        comparisons=Comparisons(sweep.baseline or "", baseline, 0.05, ()), criteria=(),
        costs=tuple(costs), differs=(), counts={},
    )  # fmt: skip


def ablation(store: Store, knob: str, values: Sequence[object], **more: object) -> PlannedSweep:
    """A baseline, and an arm with a knob that makes it better by its place."""
    cells = [cell("baseline", {})]
    for seed in SEEDS:
        keep(store, "baseline", seed, {}, 1.0, **more)  # type: ignore[arg-type]
    for place, value in enumerate(values):
        cells.append(cell("topk", {knob: value}))
        for seed in SEEDS:
            keep(store, "topk", seed, {knob: value}, 1.0 + 0.2 * place, **more)  # type: ignore[arg-type]
    return planned(cells)


def by_kind(found: Sequence[Drawing]) -> dict[str, Drawing]:
    return {drawing.kind: drawing for drawing in found}


def texts(drawing: Drawing) -> list[str]:
    root = ET.fromstring(svg(drawing))
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


# --- what is drawn --------------------------------------------------------------------------------


def test_a_grid_gives_an_ablation_roc_scores_curves_and_the_front(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2, 5, 10, 20, 50, 100])
    found = drawings(summary(store, sweep, ["auroc", "latency_ms"]), store)
    assert [d.kind for d in found] == ["ablation", "ablation", "roc", "scores", "curves", "pareto"]
    assert len({d.name for d in found}) == len(found)
    assert all(re.fullmatch(r"[a-z0-9-]+", d.name) for d in found)
    for drawing in found:
        assert "5 seeds" in drawing.caption or drawing.kind == "pareto"


def test_the_line_of_an_ablation_is_the_mean_over_seeds_and_its_band_that_of_student(
    store: Store,
) -> None:
    sweep = ablation(store, "q", [1, 2, 4])
    report = summary(store, sweep)
    axis = drawings(report, store)[0].figure.axes[0]
    rows = report.frame.query("metric == 'auroc' and group == 'mean' and arm == 'topk'")
    values = [100 * rows[rows["cell"] == c]["value"].to_numpy() for c in (1, 2, 3)]
    line = axis.lines[-1]
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), [v.mean() for v in values], rtol=1e-12)
    band = axis.collections[-1].get_paths()[0].vertices
    for at, seeds in zip((1, 2, 4), values, strict=True):
        low, high = stats.t.interval(0.95, 4, seeds.mean(), stats.sem(seeds))
        here = np.asarray(band)[np.asarray(band)[:, 0] == at][:, 1]
        assert here.min() == pytest.approx(low, rel=1e-12)
        assert here.max() == pytest.approx(high, rel=1e-12)
    baseline = 100 * report.frame.query("cell == 0 and group == 'mean'")["value"].mean()
    across = next(line for line in axis.lines if len(set(line.get_ydata())) == 1)
    assert across.get_ydata()[0] == pytest.approx(baseline, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1, 2, 3, 5, 10, 20, 50, 100], True),
        ([0.1, 0.2, 0.4], True),
        ([0.0, 0.5, 1.0, 2.0], False),
        ([-1, 1, 10, 100], False),
        ([1, 2, 3, 4], False),
        (list(range(1, 101)), False),  # as a uniform distribution draws, though it spans 100
        ([5, 5, 5], False),
    ],
)
def test_an_axis_is_logarithmic_where_the_knob_is_spread_so(
    values: Sequence[float], log: bool
) -> None:
    assert is_geometric(values) is log


def test_an_axis_is_logarithmic_where_the_file_says_so_and_not_where_it_says_otherwise() -> None:
    text = """
    params: {steps: {int: [1, 1000]}, k: {int: [1, 9], log: true}, w: 3}
    arms: {a: {lr: {log_uniform: [1e-4, 1e-2]}, q: {grid: [1, 10, 100]}}, b: null}
    """
    view = look("s", frame_without_rows(), text=text)
    assert view.drawn_log == {"steps": False, "k": True, "lr": True}
    assert view.is_log("lr", [0.001, 0.002])
    assert not view.is_log("steps", [1, 10, 100])
    assert view.is_log("q", [1, 10, 100])
    assert not view.is_log("k", [0, 1])  # of an earlier version of the file
    assert look("s", frame_without_rows(), text="arms: [").drawn_log == {}
    assert look("s", frame_without_rows(), text="- 1").drawn_log == {}


def frame_without_rows() -> pd.DataFrame:
    return pd.DataFrame({"metric": [], "group": []})


def test_the_order_of_a_frame_s_rows_changes_no_value(store: Store) -> None:
    loaded = summary(store, ablation(store, "q", [1, 2])).frame
    mixed = loaded.sample(frac=1, random_state=0)
    for one, other in zip(look("s", loaded).metrics, look("s", mixed).metrics, strict=True):
        for place in one.places:
            for at, values in one.values[place].items():
                assert sorted(values) == sorted(other.values[place][at])


def test_names_as_knobs_stand_side_by_side_with_bars(store: Store) -> None:
    sweep = ablation(store, "kind", ["soft", None, True, 3, ["a", "b"]])
    found = by_kind(drawings(summary(store, sweep), store))["ablation"]
    labels = [t.get_text() for t in found.figure.axes[0].get_xticklabels()]
    assert labels == ["soft", "None", "True", "3", "['a', 'b']"]
    assert "bars" in found.caption


def test_two_knobs_give_a_heatmap_that_marks_what_is_missing(store: Store) -> None:
    cells = [cell("topk", {"q": q, "w": w}) for q in (1, 2) for w in (0.1, 0.2, 0.3)]
    for one in cells:
        for seed in SEEDS:
            if one.knobs == {"q": 2, "w": 0.3} or (one.knobs == {"q": 1, "w": 0.1} and seed == 42):
                continue
            keep(store, "topk", seed, one.knobs, 1.0 + float(one.knobs["w"]))
    report = summary(store, planned(cells), baseline=None)
    found = by_kind(drawings(report, store))["heatmap"]
    first = 100 * report.frame.query("cell == 0 and group == 'mean'")["value"].mean()
    shown = texts(found)
    assert f"{first:.2f}" in " ".join(shown)
    assert "n=4/5" in " ".join(shown)
    assert "Hatched: 1 without a value" in found.caption
    assert "4 to 5 seeds" in found.caption


def searched(store: Store, count: int = 12) -> PlannedSweep:
    random = np.random.default_rng(0)
    key = "k" * 20
    cells = [cell("baseline", {}, (1, 2))]
    for number in range(count):
        knobs = {"lr": float(10 ** random.uniform(-4, -2)), "drop": float(random.uniform(0, 0.5))}
        cells.append(cell("tuned", knobs, (1, 2), study=key, number=number, state="complete"))
    for place, one in enumerate(cells):
        for seed in (1, 2):
            if (place, seed) != (3, 2):
                keep(store, one.arm, seed, one.knobs, 1.0 + 0.1 * place, items=30)
    search = PlannedSearch(key, "tuned", {}, 20, ("auroc",), (True,), "mean", "tpe")
    return replace(planned(cells), searches=(search,))


def test_a_search_is_shown_by_knob_and_as_parallel_lines_without_what_lacks_a_seed(
    store: Store,
) -> None:
    found = by_kind(drawings(summary(store, searched(store)), store))
    assert "ablation" not in found
    assert "11 of 12 drawn configurations" in found["draws"].caption
    lines = [line for line in found["parallel"].figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 11
    scaled = np.array([line.get_ydata() for line in lines])
    assert scaled.min() == pytest.approx(0, abs=1e-9)  # each axis runs from its least to its most
    assert scaled.max() == pytest.approx(1, abs=1e-9)


def test_a_search_whose_choice_is_confirmed_is_shown_on_the_seeds_it_chose_by(store: Store) -> None:
    sweep = searched(store)
    store.put_sweep(replace(sweep, cells=(), confirm=(3, 4), select="mean auroc"), b"")
    key = sweep.searches[0].key
    for one in sweep.cells[1:]:
        ids = {str(seed): trial_id for seed, trial_id in one.trials.items()}
        event = {"event": "asked", "study": key, "number": one.number, "arm": "tuned",
                 "knobs": one.knobs, "cell": one.knobs, "trials": ids}  # fmt: skip
        store.decide("figures", event)
    best = sweep.cells[-1]
    ids = {str(seed): trial("tuned", seed, best.knobs).id for seed in (3, 4)}
    event = {"event": "chosen", "arm": "tuned", "knobs": best.knobs, "trials": ids, "why": "best"}
    store.decide("figures", event)
    for seed in (3, 4):
        keep(store, "tuned", seed, best.knobs, 2.0)
    found = by_kind(drawings(summary(store, store.sweep(), baseline=None), store))
    assert "11 of 12 drawn configurations" in found["draws"].caption
    assert "on the seeds to choose by" in found["draws"].caption
    assert [t.get_text() for t in found["roc"].figure.legends[0].get_texts()] == ["tuned #11"]


def test_the_front_is_what_nothing_else_beats_in_both(store: Store) -> None:
    seeds = (1, 2)
    cells = [cell("a", {"k": k}, seeds) for k in range(4)]
    for one, lift in zip(cells, (0.2, 1.5, 0.8, 3.0), strict=True):
        for seed in seeds:
            keep(store, "a", seed, one.knobs, lift)
    costs = [
        Cost("a", {"k": k}, None, 2, 2, 1.0, None, {"memory_mb": mb, "final_loss": mb})
        for k, mb in enumerate((1.0, 2.0, 3.0, 4.0))
    ]
    report = summary(store, planned(cells), baseline=None, costs=costs)
    found = [d for d in drawings(report, store) if d.kind == "pareto"]
    assert [d.name for d in found] == ["pareto-auroc-memory-mb"]  # a loss is no cost
    assert "from left to right a k=0, a k=1, a k=3." in found[0].caption


def test_critical_differences_need_five_groups_and_three_configurations(store: Store) -> None:
    groups = tuple("ABCDE")
    cells = [cell(arm, {}, (1, 2)) for arm in ("base", "good", "best")]
    for one, lift in zip(cells, (0.2, 1.2, 4.0), strict=True):
        for seed in (1, 2):
            keep(store, one.arm, seed, {}, lift, groups)
    report = summary(store, planned(cells, groups))
    found = by_kind(drawings(report, None))["ranks"]
    shown = " ".join(texts(found))
    assert "best 1.00" in shown
    assert "3.00 base" in shown
    values = report.frame.query("group != 'mean'").groupby(["cell", "group"], observed=True)
    by_cell = values["value"].mean().unstack().to_numpy()
    assert f"p = {stats.friedmanchisquare(*by_cell).pvalue:.2g}" in found.caption
    few = planned(cells, groups[:4])
    assert "ranks" not in by_kind(drawings(summary(store, few), None))
    assert "ranks" not in by_kind(drawings(summary(store, planned(cells[:2], groups)), None))


@pytest.mark.parametrize(("configurations", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_those_of_the_published_table(
    configurations: int, q: float
) -> None:
    # Table 5a of Demšar (2006), which has three decimals.
    expected = q * (configurations * (configurations + 1) / (6 * 30)) ** 0.5
    assert critical_difference(configurations, 30) == pytest.approx(expected, abs=5e-4)


def test_bars_join_the_longest_runs_that_are_closer_than_the_difference() -> None:
    average = np.array([1.0, 1.8, 2.5, 5.0, 5.5])
    assert cliques(average, 1.0) == [(1.0, 1.8), (1.8, 2.5), (5.0, 5.5)]
    assert cliques(average, 10.0) == [(1.0, 5.5)]
    assert cliques(average, 0.1) == []


def test_roc_curves_hold_the_rates_of_the_metric(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2])
    report = summary(store, sweep, ["tpr@10"])
    axis = by_kind(drawings(report, store))["roc"].figure.axes[0]
    baseline = next(line for line in axis.lines if line.get_color() == "#000000"
                    and line.get_linewidth() > 1)  # fmt: skip
    fpr, tpr = baseline.get_data()
    expected = 100 * report.frame.query("cell == 0 and group == 'A'")["value"].mean()
    # 40 normal items: the rate is constant from 10 % up to 12.5 %.
    inside = (np.asarray(fpr) > 10) & (np.asarray(fpr) < 12.5)
    np.testing.assert_allclose(np.asarray(tpr)[inside], expected, rtol=1e-12)


def test_scores_are_shares_of_each_class(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2])
    found = by_kind(drawings(summary(store, sweep), store))["scores"]
    for axis in found.figure.axes:
        for steps in axis.patches:
            assert sum(steps.get_data().values) == pytest.approx(100)
    assert "baseline and topk q=2" in found.caption


def test_learning_curves_stand_beside_the_norm_of_the_gradient(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2], steps=2000)
    found = by_kind(drawings(summary(store, sweep), store))["curves"]
    assert [axis.get_title() for axis in found.figure.axes] == ["loss", "grad/total_norm"]
    for axis in found.figure.axes:
        assert max(len(line.get_xdata()) for line in axis.lines) <= 300


def test_a_thinned_curve_keeps_its_peaks_and_ends() -> None:
    steps = np.arange(10_000.0)
    values = np.zeros(10_000)
    values[[0, 777, 5000, 9999]] = 1, 50, -50, 2
    values[6000:6500] = np.nan
    thin = _thinned(np.stack([steps, values]), 100)
    assert len(thin[0]) <= 100
    assert {0, 777, 5000, 9999} <= set(thin[0])
    assert np.isnan(thin[1]).any()


def test_many_configurations_are_cut_to_the_baseline_and_the_best_and_the_caption_says_so(
    store: Store,
) -> None:
    sweep = ablation(store, "q", list(range(1, 13)))
    found = by_kind(drawings(summary(store, sweep), store))
    assert "Shown are 5 of 13 configurations: the baseline and the best" in found["roc"].caption
    names = [t.get_text() for t in found["roc"].figure.legends[0].get_texts()]
    assert names[0] == "baseline"
    assert "topk q=12" in names
    assert "topk q=1" not in names


def test_knobs_that_depend_on_each_other_make_no_curve_of_single_points(store: Store) -> None:
    settings: list[Knobs] = [{"kind": "a"}, {"kind": "b", "g": 1}, {"kind": "b", "g": 2}]
    cells = [cell("x", knobs, (1, 2)) for knobs in settings]
    for one in cells:
        for seed in (1, 2):
            keep(store, "x", seed, one.knobs, 1.0)
    found = drawings(summary(store, planned(cells), baseline=None), None)
    assert [d.name for d in found] == ["ablation-g-auroc"]


def test_configurations_that_a_search_chose_to_confirm_make_no_curve(store: Store) -> None:
    settings: list[Knobs] = [{"lr": 0.1, "q": 3}, {"lr": 0.2, "q": 4}]
    cells = [
        cell("x", knobs, (1, 2), study="k" * 20, number=number, part="confirm")
        for number, knobs in enumerate(settings)
    ]
    for one in cells:
        for seed in (1, 2):
            keep(store, "x", seed, one.knobs, 1.0)
    sweep = replace(planned(cells), confirm=(1, 2), select="mean auroc")
    found = drawings(summary(store, sweep, baseline=None), store)
    assert [d.kind for d in found] == ["roc", "scores", "curves"]
    assert [t.get_text() for t in found[0].figure.legends[0].get_texts()] == ["x #0", "x #1"]


# --- little to show -------------------------------------------------------------------------------


def test_a_sweep_without_a_finished_trial_has_no_figures(store: Store) -> None:
    assert drawings(summary(store, planned([cell("baseline", {})])), store) == []


def test_failed_trials_alone_give_no_figures(store: Store) -> None:
    made = trial("baseline", 42, {})
    store.put(TrialRecord(id=made.id, status="failed", trial=made.to_json()))
    assert drawings(summary(store, planned([cell("baseline", {})])), store) == []


def test_one_seed_has_no_band_and_the_caption_says_so(store: Store) -> None:
    cells = [cell("topk", {"q": q}, (1,)) for q in (1, 2, 4)]
    for one in cells:
        keep(store, "topk", 1, one.knobs, 1.0)
    found = by_kind(drawings(summary(store, planned(cells), baseline=None), store))
    assert not found["ablation"].figure.axes[0].collections
    assert "1 seed, so there is no band" in found["ablation"].caption
    assert "of one seed" in found["roc"].caption


def test_an_only_configuration_without_knobs_has_its_roc_scores_and_curves(store: Store) -> None:
    keep(store, "baseline", 42, {}, 1.0)
    report = summary(store, planned([cell("baseline", {})]))
    found = drawings(report, store)
    assert [d.kind for d in found] == ["roc", "scores", "curves"]
    assert drawings(report, None) == []


def test_records_without_predictions_and_curves_still_have_an_ablation(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2])
    for path in [*store.root.rglob("predictions.parquet"), *store.root.rglob("curve.jsonl")]:
        path.unlink()
    assert [d.kind for d in drawings(summary(store, sweep), store)] == ["ablation"]


def test_damaged_predictions_are_counted_and_curves_cut_by_a_kill_are_read(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2])
    victim = store.trial_dir(trial("baseline", 42, {}).id)
    (victim / "predictions.parquet").write_bytes(b"no parquet")
    (victim / "curve.jsonl").write_text('{"step": 1, "time_s": 0.1, "loss": 1.0}\n{"step": 2, "ti')
    found = by_kind(drawings(summary(store, sweep), store))
    assert "Predictions of 1 trial cannot be read." in found["roc"].caption
    assert "curves" in found


def test_scores_and_losses_that_are_not_finite_are_left_out(store: Store) -> None:
    sweep = ablation(store, "q", [1, 2])
    made = trial("baseline", 42, {})
    label = np.array([True, False, True, False])
    for group, score in (("A", [np.nan, 0, 1, 2]), ("B", [np.inf, -np.inf, 1, 0])):
        rows = Predictions(tuple("wxyz"), (group,) * 4, label, np.array(score, dtype=float))
        store.put_predictions(made.id, rows)
        first = '{"step": 1, "time_s": 0, "loss": "nan", "grad/total_norm": "inf"}'
        second = '{"step": 2, "time_s": 0, "loss": 1e300, "grad/total_norm": 0.0}'
        (store.trial_dir(made.id) / "curve.jsonl").write_text(f"{first}\n{second}\n")
        found = by_kind(drawings(summary(store, sweep), store))
        assert "NaN or infinite" in found["scores"].caption
        for drawing in found.values():
            assert "nan" not in svg(drawing).lower()


def test_a_group_of_one_class_has_no_roc_curve(store: Store) -> None:
    made = trial("baseline", 1, {})
    rows = Predictions(("a", "b"), ("A", "A"), np.array([False, False]), np.array([0.0, 1.0]))
    store.put_predictions(made.id, rows)
    scalars = {"latency_ms": 1.0}
    store.put(TrialRecord(id=made.id, status="ok", trial=made.to_json(), scalars=scalars))
    sweep = planned([cell("baseline", {}, (1,))], ("A",))
    found = drawings(summary(store, sweep, ["latency_ms"]), store)
    assert [d.kind for d in found] == ["scores"]


def test_equal_values_everywhere_are_drawn(store: Store) -> None:
    cells = [cell("a", {"q": q, "w": w}, (1, 2)) for q in (1, 2) for w in (1, 2)]
    for one in cells:
        for seed in (1, 2):
            made = trial("a", seed, one.knobs)
            scalars = {"latency_ms": 3.0}
            metrics = {"auroc": {"A": 1.0, "B": 1.0}}
            store.put(
                TrialRecord(id=made.id, status="ok", trial=made.to_json(), metrics=metrics,
                            definitions=definitions(["auroc"]), scalars=scalars)
            )  # fmt: skip
    found = drawings(summary(store, planned(cells), ["auroc", "latency_ms"]), store)
    assert {d.kind for d in found} == {"ablation", "heatmap"}
    for drawing in found:
        assert svg(drawing)


# --- names and bytes ------------------------------------------------------------------------------

HOSTILE = (
    "$x^2$ & <script>alert(1)</script>",
    "_under_score|pipe",
    "日本語\x00\n\u202e",
    "w" * 300,
)


def hostile(store: Store) -> PlannedSweep:
    cells = [cell("_base $", {})] + [
        cell(name, {"<b>$k$": value})
        for name in HOSTILE
        for value in ("$1$", "</text>&", "\\alpha")
    ]
    groups = ("A_$1$", "</svg>")
    for place, one in enumerate(cells):
        for seed in SEEDS[:2]:
            keep(store, one.arm, seed, one.knobs, 1.0 + 0.1 * place, groups)
    return planned(cells, groups)


def test_names_are_shown_as_they_are_and_never_markup_or_formulas(store: Store) -> None:
    found = drawings(summary(store, hostile(store)), store)
    assert {d.kind for d in found} >= {"ablation", "roc", "scores", "curves"}
    shown = []
    for drawing in found:
        text = svg(drawing)
        assert "<script" not in text.lower()
        root = ET.fromstring(text)  # well-formed
        assert {e.tag for e in root.iter()} <= {
            f"{SVG}{name}" for name in ("svg", "g", "path", "text", "tspan", "use", "defs", "style",
                                        "clipPath", "rect", "pattern", "image")
        }  # fmt: skip
        shown += texts(drawing)
        assert pdf(drawing).startswith(b"%PDF")
    assert HOSTILE[0] in shown
    assert "_base $" in shown
    assert "A_$1$" in shown
    assert "</svg>" in shown
    assert any("日本語\\x00\\n\\u202e" in text for text in shown)


def test_nothing_in_a_figure_is_fetched_and_no_id_is_shared(store: Store) -> None:
    found = drawings(summary(store, ablation(store, "q", [1, 2, 4])), store)
    ids: list[str] = []
    for drawing in found:
        text = svg(drawing)
        for address in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text):
            assert "".join(address).startswith("#")
        assert "<!DOCTYPE" not in text
        assert text.startswith('<svg role="img" aria-label="')
        ids += re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)


def test_files_are_written_under_their_names(store: Store, tmp_path: Path) -> None:
    found = drawings(summary(store, ablation(store, "q", [1, 2])), store)
    written = write(found, tmp_path / "out" / "figures")
    assert [p.name for p in written[:2]] == [f"{found[0].name}.svg", f"{found[0].name}.pdf"]
    assert all(p.stat().st_size > 1000 for p in written)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        write(found, tmp_path / "file")


_DRAW = """
import hashlib, sys
from pathlib import Path
from analysis.figures import drawings, pdf, svg
from hdsweep.store import Store
from tests.test_figures import summary
store = Store(Path(sys.argv[1]))
for drawing in drawings(summary(store, store.sweep(), ["auroc", "latency_ms"]), store):
    for content in (svg(drawing).encode(), pdf(drawing)):
        print(drawing.name, hashlib.sha256(content).hexdigest(), drawing.caption)
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.slow
def test_the_bytes_depend_on_the_records_alone(store: Store, tmp_path: Path) -> None:
    store.put_sweep(ablation(store, "q", [1, 2, 4]), b"")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "matplotlibrc").write_text(
        "font.size: 20\naxes.facecolor: red\nsvg.fonttype: path\npdf.fonttype: 3\n"
        "lines.linewidth: 9\ntext.parse_math: True\nfigure.dpi: 30\npath.simplify: False\n"
        "axes.prop_cycle: cycler('color', ['r'])\nsavefig.bbox: tight\nfont.family: serif\n"
    )
    printed = []
    for seed, rc in (("0", ""), ("1", str(tmp_path / "home" / "matplotlibrc"))):
        more = {"PYTHONHASHSEED": seed} | ({"MATPLOTLIBRC": rc, "TZ": "Asia/Tokyo"} if rc else {})
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _DRAW, str(store.root)],
            env={**os.environ, **more}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 12


def test_a_user_s_settings_are_left_as_they_were(store: Store) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    found = drawings(summary(store, ablation(store, "q", [1, 2])), store)
    svg(found[0])
    pdf(found[0])
    assert dict(mpl.rcParams) == before


def test_an_interval_of_one_value_has_no_ends() -> None:
    mean, low, high = interval(np.array([3.0]))
    assert mean == 3
    assert np.isnan(low)
    assert np.isnan(high)


def test_what_is_chosen_puts_a_complete_configuration_before_a_luckier_one_without_seeds(
    store: Store,
) -> None:
    cells = [cell("a", {"k": k}, (1, 2)) for k in range(3)]
    for one, seeds in zip(cells, ((1, 2), (1,), (1, 2)), strict=True):
        for seed in seeds:
            keep(store, "a", seed, one.knobs, 5.0 if len(seeds) == 1 else 0.5)
    view = look("s", summary(store, planned(cells)).frame)
    assert [c.knobs["k"] for c in view.chosen(2)] == [0, 2]
