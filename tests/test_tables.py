"""A report shows what the records support: every planned trial, and no number that is not there."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from analysis import frame, render, tables
from analysis.searches import searched
from analysis.tables import Cell, Missing, Row, Table
from hdsweep.errors import SpecError, StoreError
from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import STORED, STORED_PIXEL, definitions, evaluate
from hdsweep.planned import PlannedSearch
from hdsweep.store import PlannedCell, PlannedSweep, Store
from hdsweep.trial import Trial, TrialRecord

GOLDEN = Path(__file__).parent / "golden"
GROUPS = ("A", "B", "C", "D")
Values = Mapping[str, Mapping[str, float | None]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "results")
    made.create()
    return made


def trial(arm: str, seed: int, knobs: Mapping[str, object] | None = None) -> Trial:
    params = {"variant": arm, **(knobs or {})}
    identity = {"method": "m", "version": 1, "params": params}
    return Trial(
        id=digest({**identity, "seed": seed}),
        method="m",
        version=1,
        params=params,
        data_name="d",
        data_params={},
        fingerprint="f",
        seed=seed,
        identity=identity,
    )


def record(made: Trial, metrics: Values | None = None, **fields: object) -> TrialRecord:
    values = {
        "status": "ok",
        "metrics": metrics or {},
        "definitions": definitions(metrics or {}),
        **fields,
    }
    return TrialRecord(id=made.id, trial=made.to_json(), **values)  # type: ignore[arg-type]


def planned(
    cells: Sequence[tuple[str, Mapping[str, object], Sequence[int]]],
    groups: Sequence[str] = GROUPS,
    metrics: Sequence[str] = ("auroc",),
) -> PlannedSweep:
    return PlannedSweep(
        name="golden",
        question="",
        metrics=tuple(metrics),
        baseline=None,
        expect=(),
        groups=tuple(groups),
        cells=tuple(
            PlannedCell(arm, knobs, {seed: trial(arm, seed, knobs).id for seed in seeds})
            for arm, knobs, seeds in cells
        ),
    )


def flat(value: float, groups: Sequence[str] = GROUPS) -> dict[str, dict[str, float | None]]:
    return {"auroc": dict.fromkeys(groups, value)}


def one_table(store: Store, sweep: PlannedSweep, metric: str = "auroc", ddof: int = 1) -> Table:
    return tables.main_table(frame.load(store, sweep, [metric]), metric, ddof)


# --- the published numbers ------------------------------------------------------------------------


@pytest.fixture
def published(store: Store) -> tuple[Store, PlannedSweep, pd.DataFrame]:
    rows = pd.read_csv(GOLDEN / "published_rows.csv")
    rows = rows[rows["domain"] != "mean"]
    cells = {"baseline": {}, "topk": {"q": 5}}
    for (arm, seed), part in rows.groupby(["method", "seed"]):
        values = {
            metric: dict(zip(of_metric["domain"], of_metric["value"] / 100, strict=True))
            for metric, of_metric in part.groupby("metric")
        }
        store.put(record(trial(arm, int(seed), cells[arm]), values))
    seeds = (42, 43, 44, 123, 456)
    sweep = planned([(arm, knobs, seeds) for arm, knobs in cells.items()])
    store.put_sweep(sweep, b"")
    return store, store.sweep(), rows


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("metric", ["auroc", "tpr@1", "tpr@5"])
def test_means_and_spreads_of_the_published_runs_are_those_of_numpy(
    published: tuple[Store, PlannedSweep, pd.DataFrame], metric: str, ddof: int
) -> None:
    store, sweep, rows = published
    table = one_table(store, sweep, metric, ddof)
    assert [row.arm for row in table.rows] == ["baseline", "topk"]
    assert table.columns == (*GROUPS, "mean")
    for row in table.rows:
        of_arm = rows[(rows["method"] == row.arm) & (rows["metric"] == metric)]
        by_seed = np.array(
            [of_arm[of_arm["domain"] == group].sort_values("seed")["value"] for group in GROUPS]
        )
        for column, values in zip(table.columns, [*by_seed, by_seed.mean(axis=0)], strict=True):
            cell = row.cells[column]
            # Sums of five numbers below 100 in another order: 1e-12 is far above the rounding.
            assert cell.mean == pytest.approx(np.mean(values) / 100, abs=1e-12)
            assert cell.std == pytest.approx(np.std(values, ddof=ddof) / 100, abs=1e-12)
            assert (cell.n, cell.planned, cell.ddof, cell.missing) == (5, 5, ddof, ())


def test_the_report_prints_what_the_runs_give_and_not_what_was_published(
    published: tuple[Store, PlannedSweep, pd.DataFrame],
) -> None:
    store, sweep, _ = published
    printed = pd.read_csv(GOLDEN / "published_table.csv")
    ours = {}
    for metric in ("auroc", "tpr@1", "tpr@5"):
        for row in one_table(store, sweep, metric).rows:
            for column, cell in row.cells.items():
                ours[row.arm, metric, column] = render.cell_text(cell, is_rate=True)
    theirs = {
        (line["method"], line["metric"], line["domain"]): f"{line['mean']:.2f}"
        for line in printed.to_dict("records")
    }
    wrong = {key for key, mean in theirs.items() if not ours[key].startswith(f"{mean}±")}
    assert ours["baseline", "tpr@1", "A"] == "94.12±0.13"  # published as 94.12±0.17
    assert ("baseline", "auroc", "D") in wrong  # published as 98.04, its runs give 98.02
    assert 0 < len(wrong) < len(theirs) / 2


# --- what is missing ------------------------------------------------------------------------------


def test_every_kind_of_missing_trial_is_shown_with_its_reason(store: Store) -> None:
    failed = {"kind": "OutOfMemoryError", "message": "CUDA out of memory", "traceback": "..."}
    diverged = {"kind": "Diverged", "message": "loss is not finite at step 7", "traceback": ""}
    for seed in (1, 2, 3):
        store.put(record(trial("full", seed), flat(0.9 + seed / 100)))
    store.put(record(trial("some", 1), flat(0.5)))
    store.put(record(trial("some", 2), status="failed", error=failed))
    store.put(record(trial("bad", 1), status="diverged", error=diverged))
    store.put(record(trial("bad", 2), flat(0.99), status="pruned"))
    undefined = {"auroc": {"A": 0.8, "B": None, "C": 0.8, "D": 0.8}}
    why = {"auroc": {"B": "no anomalous item among 9"}}
    store.put(record(trial("bad", 3), undefined, missing=why))
    sweep = planned([(arm, {}, (1, 2, 3)) for arm in ("full", "some", "bad", "never")])
    table = one_table(store, sweep)
    full, some, bad, never = (row.cells for row in table.rows)

    assert full["A"] == Cell(full["A"].mean, full["A"].std, 3, 3, 1)
    assert some["A"] == Cell(
        0.5, None, 1, 3, 1,
        (
            Missing(2, trial("some", 2).id, "failed", "OutOfMemoryError: CUDA out of memory"),
            Missing(3, trial("some", 3).id, "not run", "no record in the store"),
        ),
    )  # fmt: skip
    assert some["A"].status == {"ok": 1, "failed": 1, "not run": 1}
    assert (bad["A"].mean, bad["A"].n) == (0.8, 1)  # the pruned 0.99 is not averaged in
    assert bad["B"].status == {"diverged": 1, "pruned": 1, "undefined": 1}
    assert bad["B"].missing[-1].reason == "no anomalous item among 9"
    assert bad["mean"].mean is None  # C and D have values, their mean is not the mean
    assert bad["mean"].missing[-1].reason == "undefined in B"
    assert never["mean"] == Cell(
        None, None, 0, 3, 1,
        tuple(
            Missing(s, trial("never", s).id, "not run", "no record in the store") for s in (1, 2, 3)
        ),
    )  # fmt: skip

    for form in ("terminal", "md"):
        text = render.render([table], form)
        assert "92.00±1.00" in text
        assert "50.00 (n=1/3)" in text  # one value has no spread
        assert "— (1 diverged, 1 pruned, 1 undefined)" in text.replace("  ", "")
        assert "— (not run)" in text
        assert "8 of 12 trials missing: 1 diverged, 1 failed, 4 not run, 1 pruned, 1 undef" in text
        assert "some, seed 3: not run\n" in text
        assert "never, seeds 1, 2, 3: not run\n" in text
        assert "some, seed 2: failed: OutOfMemoryError: CUDA out of memory" in text
        assert "bad, seed 1: diverged: Diverged: loss is not finite at step 7" in text
        assert "bad, seed 2: pruned: stopped early" in text
        assert "bad, seed 3, B: undefined: no anomalous item among 9" in text
        assert "undefined in B" not in text  # said once
        assert "sample standard deviation (ddof = 1) over 3 seeds, fewer where marked" in text


def test_a_sweep_of_which_nothing_ran_is_a_table_of_dashes(store: Store) -> None:
    sweep = planned([("baseline", {}, (1, 2))], metrics=["auroc", "latency_ms"])
    found = frame.load(store, sweep)
    made = [tables.main_table(found, metric) for metric in sweep.metrics]
    text = render.render(made)
    assert text.count("— (not run)") == len(GROUPS) + 1 + 1
    assert "2 of 2 trials missing: 2 not run" in text
    assert "±" not in text
    assert "no spread" not in text


def test_a_single_seed_has_no_spread_with_either_divisor(store: Store) -> None:
    store.put(record(trial("baseline", 1), flat(0.5)))
    for ddof in (0, 1):
        table = one_table(store, planned([("baseline", {}, (1,))]), ddof=ddof)
        assert table.rows[0].cells["A"] == Cell(0.5, None, 1, 1, ddof)
        text = render.render([table])
        assert "50.00" in text
        assert "±" not in text
        assert "one seed per value, so no spread is known" in text


def test_a_trial_that_two_cells_share_counts_in_both(store: Store) -> None:
    for seed in (1, 2):
        store.put(record(trial("baseline", seed), flat(seed / 10)))
    shared = planned([("baseline", {}, (1, 2))]).cells[0]
    sweep = planned([("baseline", {}, (1, 2))])
    sweep = PlannedSweep.from_bytes(sweep.to_bytes(), "plan")
    twice = PlannedSweep(
        sweep.name, "", ("auroc",), None, (), GROUPS,
        (shared, PlannedCell("again", {"q": 5}, shared.trials)),
    )  # fmt: skip
    rows = one_table(store, twice).rows
    assert [(row.arm, row.knobs) for row in rows] == [("baseline", {}), ("again", {"q": 5})]
    assert rows[0].cells == rows[1].cells


def test_when_cells_plan_different_numbers_of_seeds_each_says_its_own(store: Store) -> None:
    for seed in (1, 2, 3):
        store.put(record(trial("long", seed), flat(0.5)))
        store.put(record(trial("short", seed), flat(0.5)))
    text = render.render(
        [one_table(store, planned([("long", {}, (1, 2, 3)), ("short", {}, (1, 2))]))]
    )
    assert "50.00±0.00 (n=3)" in text
    assert "50.00±0.00 (n=2)" in text
    assert "over n seeds" in text


# --- metrics that are not in the record -----------------------------------------------------------


def predictions(seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    label = np.tile([False, True], 60 * len(GROUPS))
    return Predictions(
        item=tuple(f"{i}.png" for i in range(len(label))),
        group=tuple(np.repeat(GROUPS, 120).tolist()),
        is_anomaly=label,
        score=random.normal(size=len(label)) + label,
    )


def test_a_metric_asked_for_later_is_computed_from_the_stored_predictions(store: Store) -> None:
    expected = []
    for seed in (1, 2):
        made, found = trial("baseline", seed), predictions(seed)
        store.put_predictions(made.id, found)
        store.put(record(made, {"ap": dict.fromkeys(GROUPS, 0.25)}))
        inside = np.array(found.group) == "C"
        expected.append(roc_auc_score(found.is_anomaly[inside], found.score[inside]))
    table = one_table(store, planned([("baseline", {}, (1, 2))]), "auroc")
    cell = table.rows[0].cells["C"]
    assert cell.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert cell.std == pytest.approx(np.std(expected, ddof=1), abs=1e-12)
    # A metric in the record is read from there, not computed anew.
    assert (
        one_table(store, planned([("baseline", {}, (1, 2))]), "ap").rows[0].cells["C"].mean == 0.25
    )


def test_a_value_of_another_definition_is_never_mixed_with_todays(store: Store) -> None:
    old, bare, found = trial("baseline", 1), trial("baseline", 2), predictions(1)
    outdated = {"definitions": {"auroc": "area by Simpson's rule"}}
    store.put_predictions(old.id, found)
    store.put(record(old, flat(0.123), **outdated))
    store.put(record(bare, flat(0.123), **outdated))
    cell = one_table(store, planned([("baseline", {}, (1, 2))])).rows[0].cells["A"]
    today, _ = evaluate(["auroc"], found.group, found.is_anomaly, found.score)
    assert (cell.mean, cell.n) == (today["auroc"]["A"], 1)
    assert cell.missing[0].status == "undefined"
    assert "no predictions to compute it from" in cell.missing[0].reason


@pytest.mark.parametrize("has_predictions", [True, False])
def test_a_pixel_metric_comes_from_the_record_or_is_missing_with_a_reason(
    store: Store, has_predictions: bool
) -> None:
    whole, none, old = (trial(arm, 1) for arm in ("whole", "none", "old"))
    values = {name: dict.fromkeys(GROUPS, 0.25) for name in STORED_PIXEL}
    store.put(record(whole, {**flat(0.9), **values}))
    store.put(record(none, flat(0.9)))
    store.put(record(old, values, definitions={"aupro": "on 4-connected regions"}))
    if has_predictions:
        for made in (whole, none, old):
            store.put_predictions(made.id, predictions(1))
    sweep = planned([(arm, {}, (1,)) for arm in ("whole", "none", "old")])
    found = frame.load(store, sweep, ["aupro@30", "aupro@10", "pixel_ap[domain=C]", "auroc"])
    by_arm = [row.cells for row in tables.main_table(found, "aupro").rows]
    assert [cells["mean"].mean for cells in by_arm] == [0.25, None, None]
    lacking = "the trial has no pixel metrics: its data have no masks, or its method draws no maps"
    outdated = "not in the record as defined today, and the maps to compute it from are not kept"
    assert [cells["A"].missing[0].reason for cells in by_arm[1:]] == [lacking, outdated]
    assert by_arm[1]["mean"].missing[0].reason == "undefined in A, B, C, D"
    uncomputed = (
        "pixel metrics are computed while the maps are there, for pixel_auroc, pixel_ap, aupro, "
        "aupro@5; the maps are not kept"
    )
    others = [row.cells["A"] for row in tables.main_table(found, "aupro@10").rows]
    assert [cell.missing[0].reason for cell in others] == [uncomputed, lacking, uncomputed]
    assert all(cell.mean is None for cell in others)
    assert tables.main_table(found, "pixel_ap[domain=C]").rows[0].cells["C"].mean == 0.25
    assert uncomputed in render.render([tables.main_table(found, "aupro@10")])


def test_a_group_without_masks_is_missing_with_the_reason_of_the_record(store: Store) -> None:
    why = "no mask for 3 of 30 anomalous images, B/test/001.png first"
    values = {"aupro": {"A": 0.5, "B": None, "C": 0.5, "D": 0.5}}
    store.put(record(trial("baseline", 1), values, missing={"aupro": {"B": why}}))
    cells = one_table(store, planned([("baseline", {}, (1,))]), "aupro").rows[0].cells
    assert (cells["A"].mean, cells["B"].mean, cells["mean"].mean) == (0.5, None, None)
    assert cells["B"].missing[0].reason == why


def test_a_group_that_the_plan_names_and_the_trial_lacks_is_missing(store: Store) -> None:
    store.put(record(trial("baseline", 1), flat(0.5, ["A"])))
    cells = one_table(store, planned([("baseline", {}, (1,))], groups=("A", "B"))).rows[0].cells
    assert cells["A"].mean == 0.5
    assert cells["B"].missing[0].reason == "no test item"
    assert cells["mean"].missing[0].reason == "undefined in B"


def test_damaged_predictions_are_named_with_their_path(store: Store) -> None:
    made = trial("baseline", 1)
    store.put(record(made))
    (store.trial_dir(made.id) / "predictions.parquet").write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=r"predictions\.parquet: not a table"):
        frame.load(store, planned([("baseline", {}, (1,))]))


def test_a_methods_scalar_is_reported_in_its_own_unit(store: Store) -> None:
    for seed, latency in ((1, 12.3456), (2, 12.5432)):
        store.put(record(trial("fast", seed), flat(0.5), scalars={"latency_ms": latency}))
        store.put(record(trial("other", seed), flat(0.5), scalars={"memory_mb": 1234.5}))
    sweep = planned([("fast", {}, (1, 2)), ("other", {}, (1, 2))])
    table = one_table(store, sweep, "latency_ms")
    assert table.columns == ("mean",)
    assert (table.larger_is_better, table.is_rate) == (None, False)
    text = render.render([table])
    assert "12.44±0.14" in text
    assert "— (undefined)" in text
    assert "other, seeds 1, 2: undefined: the method does not measure it" in text
    assert "%" not in text
    with pytest.raises(SpecError, match="unknown metric 'latency'; did you mean 'latency_ms'"):
        frame.load(store, sweep, ["latency"])


# --- the frame ------------------------------------------------------------------------------------


def test_the_frame_is_tidy_in_the_order_of_the_plan(store: Store) -> None:
    store.put(record(trial("topk", 7, {"q": 5}), flat(0.5), scalars={"latency_ms": 2.0}))
    sweep = planned([("topk", {"q": 5}, (7, 3)), ("tuned", {"lr": "1e-4"}, (7,))])
    found = frame.load(store, sweep, ["auroc", "latency_ms"])
    assert list(found.columns) == [
        "metric", "arm", "cell", "study", "number", "part", "knob.q", "knob.lr", "seed", "trial",
        "group", "status", "value", "reason",
    ]  # fmt: skip
    assert len(found) == 3 * (len(GROUPS) + 1) + 3
    assert found["group"].head(5).tolist() == [*GROUPS, "mean"]
    assert found["seed"].drop_duplicates().tolist() == [7, 3]
    assert found["status"].value_counts()["not run"] == 2 * 6
    assert found["knob.q"].head(1).tolist() == [5]
    assert found["knob.q"].iloc[-1] is pd.NA
    assert (found["reason"] != "").equals(found["value"].isna())
    assert found[["study", "number"]].isna().all(axis=None)
    assert found["part"].unique().tolist() == ["run"]
    assert found.attrs == {"sweep": "golden", "searches": (), "select": "", "own_means": ()}


def test_a_metric_with_a_group_keeps_that_group_alone(store: Store) -> None:
    store.put(record(trial("baseline", 1), {"tpr@1": {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}}))
    sweep = planned([("baseline", {}, (1,))])
    found = frame.load(store, sweep, ["tpr@1.0[domain=C]"])
    assert found["value"].tolist() == [0.3]
    table = tables.main_table(found, "tpr@1[domain=C]")
    assert (table.metric, table.columns) == ("tpr@1[group=C]", ("C",))
    both = frame.load(store, sweep, ["tpr@1[domain=C]", "tpr@1"])
    assert len(both) == len(GROUPS) + 1
    assert tables.main_table(both, "tpr@1[domain=C]").columns == ("C",)
    assert tables.main_table(both, "tpr@1").columns == (*GROUPS, "mean")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["aurco"], "unknown metric 'aurco'; did you mean 'auroc'?"),
        (["tpr"], "metric 'tpr' needs a percent"),
        (["auroc[domain=E]"], "metric 'auroc[domain=E]': the data has no group 'E'; known: A, B"),
    ],
)
def test_a_metric_that_cannot_be_reported_is_refused(
    store: Store, metrics: list[str], message: str
) -> None:
    store.put(record(trial("baseline", 1), flat(0.5)))
    with pytest.raises(SpecError) as refused:
        frame.load(store, planned([("baseline", {}, (1,))]), metrics)
    assert message in str(refused.value)


def test_a_report_of_no_metric_or_of_a_group_named_mean_is_refused(store: Store) -> None:
    with pytest.raises(SpecError, match="--metric"):
        frame.load(store, planned([("baseline", {}, (1,))], metrics=()))
    with pytest.raises(SpecError, match="named 'mean'"):
        frame.load(store, planned([("baseline", {}, (1,))], groups=("A", "mean")))


def test_a_table_of_what_the_frame_does_not_hold_is_refused(store: Store) -> None:
    found = frame.load(store, planned([("baseline", {}, (1,))]), ["auroc"])
    for metric, ddof, message in (
        ("tpr@1", 1, "does not hold 'tpr@1'"),
        ("auroc[domain=E]", 1, "no group 'E'"),
        ("auroc", 2, "ddof is 0 or 1"),
    ):
        with pytest.raises(SpecError, match=message):
            tables.main_table(found, metric, ddof)


def test_a_sweep_without_cells_is_an_empty_table(store: Store) -> None:
    table = one_table(store, planned([]))
    assert table.rows == ()
    for form in render.FORMATS:
        assert render.render([table], form)


# --- rendering ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> [bold]x[/bold] a|b `c` *d* \\e _f_ q_percent"


def hostile_table(store: Store) -> Table:
    error = {"kind": "E|rror", "message": "line 1\nline 2\x1b[31m\u202e", "traceback": ""}
    store.put(record(trial(HOSTILE, 1), flat(0.5, [HOSTILE])))
    store.put(record(trial(HOSTILE, 2), status="failed", error=error))
    return one_table(store, planned([(HOSTILE, {}, (1, 2))], groups=[HOSTILE]))


def test_names_appear_literally_in_a_terminal(store: Store) -> None:
    for color in (False, True):
        text = render.render([hostile_table(store)], color=color)
        assert text.count(HOSTILE) == 3  # header, row and note
        assert "E|rror: line 1\\nline 2\\x1b[31m\\u202e" in text
        assert ("\x1b[1m" in text) == color


def test_names_appear_literally_in_markdown(store: Store) -> None:
    text = render.render([hostile_table(store)], "md")
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3  # two columns
    literal = re.sub(r"\\([\W_])", r"\1", lines[2])  # CommonMark: a backslash before punctuation
    assert literal == f"| {HOSTILE} | 50.00 (n=1/2) |"
    assert not re.search(r"(?<!\\)[<>`*\[]", "".join((lines[0], lines[2])))
    assert "q_percent" in text  # a lone underscore within a word needs no escape


def test_a_table_wider_than_the_terminal_goes_on_below_and_loses_nothing(store: Store) -> None:
    groups = [f"category_{n:02}" for n in range(15)]
    for seed in (1, 2):
        values: dict[str, float | None] = {g: (n + seed) / 100 for n, g in enumerate(groups)}
        store.put(record(trial("baseline", seed), {"auroc": values}))
    table = one_table(store, planned([("baseline", {}, (1, 2))], groups=groups))
    text = render.render([table], width=80)
    body = text.split("mean ±")[0]
    assert max(map(len, body.splitlines())) <= 80
    assert all(body.count(group) == 1 for group in groups)
    assert body.count("±") == 16
    assert max(map(len, render.render([table]).splitlines())) > 80


def test_wide_and_invisible_characters_keep_the_columns_in_line() -> None:
    cells = {"A": Cell(0.5, 0.01, 2, 2, 1)}
    rows = (Row("基线", {}, cells), Row("\x1b", {}, cells))
    text = render.render(
        [Table("s", "auroc", "area", larger_is_better=True, ddof=1, columns=("A",), rows=rows)]
    )
    wide, narrow = text.splitlines()[3:5]
    assert wide == "基线  50.00±1.00"
    assert narrow == "\\x1b  50.00±1.00"


def test_csv_holds_every_cell_at_full_precision(
    published: tuple[Store, PlannedSweep, pd.DataFrame],
) -> None:
    store, sweep, _ = published
    found = frame.load(store, sweep, ["auroc", "tpr@1"])
    made = [tables.main_table(found, metric) for metric in ("auroc", "tpr@1")]
    lines = list(csv.DictReader(io.StringIO(render.render(made, "csv"))))
    assert len(lines) == 2 * 2 * 5
    cell = made[1].rows[1].cells["C"]
    line = next(x for x in lines if (x["metric"], x["arm"], x["group"]) == ("tpr@1", "topk", "C"))
    assert (float(line["mean"]), float(line["std"])) == (cell.mean, cell.std)
    assert (line["knob.q"], line["n"], line["planned"], line["ddof"]) == ("5", "5", "5", "1")
    assert lines[0]["knob.q"] == ""


def test_csv_says_what_is_missing(store: Store) -> None:
    line = next(csv.DictReader(io.StringIO(render.render([hostile_table(store)], "csv"))))
    assert (line["arm"], line["group"]) == (HOSTILE, HOSTILE)
    assert (line["std"], line["failed"], line["not_run"]) == ("", "1", "0")
    assert line["reasons"].startswith("seed 2: failed: E|rror: line 1\nline 2")


def test_json_has_its_documented_keys(store: Store) -> None:
    table = hostile_table(store)
    value = json.loads(render.render([table], "json"))
    assert list(value) == ["format", "tables"]
    made = value["tables"][0]
    assert set(made) == {
        "sweep", "metric", "definition", "is_rate", "larger_is_better", "ddof", "columns", "rows",
        "own_means", "searches", "select",
    }  # fmt: skip
    assert set(made["rows"][0]) == {"arm", "knobs", "cells", "study", "number", "part", "cell"}
    assert made["rows"][0]["arm"] == HOSTILE
    cell = made["rows"][0]["cells"][HOSTILE]
    assert cell == {
        "mean": 0.5, "std": None, "n": 1, "planned": 2, "ddof": 1,
        "best": False, "behind": None,
        "status": {"ok": 1, "failed": 1},
        "missing": [
            {
                "seed": 2,
                "trial": trial(HOSTILE, 2).id,
                "status": "failed",
                "reason": "E|rror: line 1\nline 2\x1b[31m\u202e",
            }
        ],
    }  # fmt: skip


def test_many_missing_trials_are_counted_and_the_first_are_listed(store: Store) -> None:
    table = one_table(store, planned([("baseline", {"q": q}, (1, 2)) for q in range(30)]))
    text = render.render([table])
    assert "60 of 60 trials missing: 60 not run" in text
    assert "q=19, seeds 1, 2: not run" in text
    assert "q=20, seeds 1, 2: not run" not in text
    assert "and 10 more" in text


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown format 'latx'"):
        render.render([], "latx")


def test_everything_that_is_stored_can_be_reported(store: Store) -> None:
    found = predictions(0)
    values, missing = evaluate(STORED, found.group, found.is_anomaly, found.score)
    store.put(record(trial("baseline", 1), values, missing=missing))
    loaded = frame.load(store, planned([("baseline", {}, (1,))]), STORED)
    assert loaded["value"].notna().all()
    for name in STORED:
        assert tables.main_table(loaded, name).rows[0].cells["A"].mean == values[name]["A"]


# --- searches -------------------------------------------------------------------------------------

STUDY = "a" * 20
SEEDS = (1, 2)
Objectives = tuple[str, ...]


def search(
    objectives: Objectives = ("auroc",), maximize: tuple[bool, ...] = (True,), trials: int = 6
) -> PlannedSearch:
    return PlannedSearch(STUDY, "tuned", {}, trials, objectives, maximize, "mean", "tpe")


def lr(number: int) -> float:
    return 10 ** -(2.5 + number / 1000)


def asked(number: int) -> dict[str, object]:
    knobs = {"lr": lr(number)}
    trials = {seed: trial("tuned", seed, knobs).id for seed in SEEDS}
    return {
        "event": "asked", "study": STUDY, "number": number, "arm": "tuned", "knobs": knobs,
        "cell": knobs, "trials": trials,
    }  # fmt: skip


def told(number: int, state: str, *values: float) -> dict[str, object]:
    return {
        "event": "told", "study": STUDY, "number": number, "state": state, "values": list(values),
    }  # fmt: skip


def ran(store: Store, number: int, value: float) -> None:
    """Both seeds of a drawn configuration, around a value."""
    for seed, change in zip(SEEDS, (-0.01, 0.01), strict=True):
        store.put(record(trial("tuned", seed, {"lr": lr(number)}), flat(value + change)))


@pytest.fixture
def drawn(store: Store) -> tuple[Store, PlannedSweep]:
    """A search that drew 6: 4 that were told, one stopped on its second seed, one under way."""
    for seed in SEEDS:
        store.put(record(trial("plain", seed), flat(0.6)))
    for number, value in enumerate((0.5, 0.8, 0.7, 0.9)):
        ran(store, number, value)
    stopped = {"kind": "stopped", "message": "asha: low at step 200", "traceback": ""}
    first, second = (trial("tuned", seed, {"lr": lr(4)}) for seed in SEEDS)
    store.put(record(first, flat(0.4)))
    store.put(record(second, status="pruned", error=stopped))
    sweep = replace(planned([("plain", {}, SEEDS)]), searches=(search(),))
    store.put_sweep(sweep, b"")
    events = [asked(n) for n in range(6)]
    events += [told(n, "complete", v) for n, v in enumerate((0.5, 0.8, 0.7, 0.9))]
    store.put_decisions(sweep.name, [*events, told(4, "pruned")])
    return store, store.sweep()


def test_people_are_shown_the_best_that_a_search_drew_and_how_far_it_is(
    drawn: tuple[Store, PlannedSweep],
) -> None:
    table = one_table(*drawn)
    for form in ("terminal", "md"):
        text = render.render([table], form).replace("\\", "")
        rows = [line for line in text.splitlines() if re.match(r"(\| )?(plain|tuned #)", line)]
        found = [re.findall(r"plain|#\d|\d\.\d{6}|\d\d\.\d\d±", line)[:3] for line in rows]
        assert found == [
            ["plain", "60.00±", "60.00±"],
            ["#3", "0.003141", "90.00±"],
            ["#1", "0.003155", "80.00±"],
            ["#2", "0.003148", "70.00±"],
        ]
        assert (
            "tuned: 6 of 6 configurations drawn by tpe, 4 complete, 1 pruned, 1 under way; "
            "the best 3 by mean auroc are shown; --format csv lists all\n"
        ) in text
        assert (
            "the best of 6 on the seeds it was chosen by: optimistic; "
            "seeds: {select: ..., confirm: ...} reports it on others\n"
        ) in text
        assert "missing:" not in text  # what is not shown is counted by the line on the search


def test_programs_are_given_all_that_a_search_drew(drawn: tuple[Store, PlannedSweep]) -> None:
    table = one_table(*drawn)
    lines = list(csv.DictReader(io.StringIO(render.render([table], "csv"))))
    mean = [line for line in lines if line["group"] == "mean"]
    assert [line["number"] for line in mean] == ["", *map(str, range(6))]
    assert {line["study"] for line in mean} == {"", STUDY}
    assert {line["part"] for line in mean} == {"run"}
    assert [float(line["knob.lr"]) for line in mean[1:]] == [lr(n) for n in range(6)]
    assert (mean[5]["n"], mean[5]["pruned"], float(mean[5]["mean"])) == ("1", "1", 0.4)
    made = json.loads(render.render([table], "json"))["tables"][0]
    assert [row["number"] for row in made["rows"]] == [None, *range(6)]
    assert made["rows"][1]["knobs"]["lr"] == lr(0)
    assert made["searches"] == [
        {
            "study": STUDY, "arm": "tuned", "knobs": {}, "sampler": "tpe",
            "objectives": ["mean auroc"], "trials": 6, "drawn": 6, "complete": 4, "pruned": 1,
            "failed": 0, "front": 1, "best": [3, 1, 2],
        }
    ]  # fmt: skip


def test_a_stopped_replicate_is_in_no_mean_and_says_why(drawn: tuple[Store, PlannedSweep]) -> None:
    store, sweep = drawn
    store.decide(sweep.name, told(4, "complete", 0.99))  # so that people are shown it
    text = render.render([one_table(store, store.sweep())])
    assert "40.00 (n=1/2)" in text
    assert "tuned #4 lr=0.003133, seed 2: pruned: asha: low at step 200\n" in text


def test_a_search_that_was_told_nothing_yet_shows_no_configuration(store: Store) -> None:
    sweep = replace(planned([("plain", {}, SEEDS)]), searches=(search(trials=40),))
    store.put_sweep(sweep, b"")
    assert "tuned: 0 of 40 configurations drawn by tpe\n" in render.render(
        [one_table(store, sweep)]
    )
    store.decide(sweep.name, asked(0))
    table = one_table(store, store.sweep())
    text = render.render([table])
    assert "tuned: 1 of 40 configurations drawn by tpe, 1 under way\n" in text
    assert "optimistic" not in text
    assert [row.number for row in table.rows] == [None, 0]


def test_of_several_objectives_people_are_shown_what_no_other_is_better_than(store: Store) -> None:
    both = search(("auroc", "latency_ms"), (True, False), 40)
    sweep = replace(planned([("plain", {}, SEEDS)]), searches=(both,))
    store.put_sweep(sweep, b"")
    values = [(0.5, 1.0), (0.9, 9.0), (0.4, 2.0), (0.7, 5.0), (0.9, 10.0)]
    for number, value in enumerate(values):
        store.decide(sweep.name, asked(number))
        store.decide(sweep.name, told(number, "complete", *value))
    table = one_table(store, store.sweep())
    assert table.searches[0].best == (0, 1, 3)
    assert [row.number for row in table.for_people().rows] == [None, 0, 1, 3]
    assert (
        "3 of the 3 that no other is better than by mean auroc and mean latency_ms are shown"
    ) in render.render([table])


def test_what_was_told_of_other_objectives_and_what_is_above_a_bound_is_not_best(
    drawn: tuple[Store, PlannedSweep],
) -> None:
    store, sweep = drawn
    store.decide(sweep.name, told(3, "complete", 0.9, 12.5))
    store.decide(sweep.name, told(1, "complete", 0.8) | {"constraints": {"latency_ms": 0.5}})
    assert one_table(store, store.sweep()).searches[0].best == (2, 0)


@given(
    values=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40),
    maximize=st.tuples(st.booleans(), st.booleans()),
)
def test_the_front_is_what_no_other_is_better_than(
    values: list[tuple[int, int]], maximize: tuple[bool, bool]
) -> None:
    cells = [
        PlannedCell("tuned", {}, {}, STUDY, n, state="complete", values=value)
        for n, value in enumerate(values)
    ]
    found = searched(search(("a", "b"), maximize), cells)
    costs = [tuple(-v if m else v for v, m in zip(vs, maximize, strict=True)) for vs in values]
    front = [
        n
        for n, (a, b) in enumerate(costs)
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in costs)
    ]
    assert (found.front, found.best) == (len(front), tuple(front[:10]))


@given(st.lists(st.integers(0, 9), max_size=12), st.booleans())
def test_the_best_of_one_objective_come_in_order(values: list[int], larger: bool) -> None:
    cells = [
        PlannedCell("tuned", {}, {}, STUDY, n, state="complete", values=(value,))
        for n, value in enumerate(values)
    ]
    best = searched(search(("a",), (larger,)), cells).best
    shown = [values[n] for n in best]
    assert shown == sorted(values, reverse=larger)[:3]
    assert len(set(best)) == len(best)


# --- skipped, selected and confirmed --------------------------------------------------------------


def test_a_trial_that_will_not_be_run_says_why(store: Store) -> None:
    store.put(record(trial("bad", 1), flat(0.5)))
    sweep = planned([("bad", {}, (1, 2, 3)), ("late", {}, (1,))])
    store.put_sweep(sweep, b"")
    why = "race: worse than 'good' by 0.031"
    ids = [trial("bad", seed).id for seed in (2, 3)]
    store.decide(sweep.name, {"event": "skipped", "trials": ids, "why": why})
    table = one_table(store, store.sweep())
    assert table.rows[0].cells["mean"].status == {"ok": 1, "skipped": 2}
    text = render.render([table])
    assert f"bad, seeds 2, 3: skipped: {why}\n" in text
    assert "late, seed 1: not run\n" in text
    assert "3 of 4 trials missing: 1 not run, 2 skipped" in text
    line = next(csv.DictReader(io.StringIO(render.render([table], "csv"))))
    assert (line["skipped"], line["not_run"]) == ("2", "0")


@pytest.fixture
def confirmed(drawn: tuple[Store, PlannedSweep]) -> tuple[Store, PlannedSweep]:
    """The same search, to be confirmed on two other seeds; nothing is chosen yet."""
    store, sweep = drawn
    plan = replace(
        planned([("plain", {}, SEEDS)]), searches=sweep.searches, confirm=(7, 8),
        select="best auroc over seeds 1, 2",
    )  # fmt: skip
    plan = replace(plan, cells=(replace(plan.cells[0], part="select"),), arms=("tuned", "plain"))
    store.put_sweep(plan, b"")
    return store, store.sweep()


def choose(store: Store, arm: str, knobs: Mapping[str, object]) -> None:
    trials = {seed: trial(arm, seed, knobs).id for seed in (7, 8)}
    event = {"event": "chosen", "arm": arm, "knobs": dict(knobs), "trials": trials, "why": "best"}
    store.decide("golden", event)


def test_before_anything_is_chosen_every_arm_has_a_row_that_says_so(
    confirmed: tuple[Store, PlannedSweep],
) -> None:
    table = one_table(*confirmed)
    assert [(row.arm, row.knobs, row.part) for row in table.rows] == [
        ("tuned", {}, "confirm"), ("plain", {}, "confirm"),
    ]  # fmt: skip
    cell = table.rows[0].cells["mean"]
    assert cell.missing == tuple(Missing(s, "", "not run", "not chosen yet") for s in (7, 8))
    text = render.render([table])
    assert "tuned, seeds 7, 8: not run: not chosen yet\n" in text
    assert "60.00" not in text  # what plain has on the seeds to choose by
    assert "4 of 4 trials missing: 4 not run" in text


def test_what_was_chosen_is_reported_on_the_other_seeds(
    confirmed: tuple[Store, PlannedSweep],
) -> None:
    store, _ = confirmed
    choose(store, "tuned", {"lr": lr(3)})
    choose(store, "plain", {})
    for seed, value in ((7, 0.84), (8, 0.86)):
        store.put(record(trial("tuned", seed, {"lr": lr(3)}), flat(value)))
        store.put(record(trial("plain", seed), flat(value - 0.2)))
    table = one_table(store, store.sweep())
    assert [(row.arm, row.number, row.part) for row in table.rows] == [
        ("tuned", 3, "confirm"), ("plain", None, "confirm"),
    ]  # fmt: skip
    text = render.render([table])
    assert re.search(r"^tuned #3 +0\.003141 +85\.00±1\.41", text, re.MULTILINE)
    assert re.search(r"^plain +65\.00±1\.41", text, re.MULTILINE)
    assert "chosen by best auroc over seeds 1, 2\n" in text
    assert "optimistic" not in text
    assert "tuned: 6 of 6 configurations drawn by tpe, 4 complete, 1 pruned, 1 under way\n" in text
    parts = {line["part"] for line in csv.DictReader(io.StringIO(render.render([table], "csv")))}
    assert parts == {"confirm"}


def test_what_was_chosen_from_can_be_reported_too(confirmed: tuple[Store, PlannedSweep]) -> None:
    store, _ = confirmed
    choose(store, "tuned", {"lr": lr(3)})
    found = frame.load(store, store.sweep(), ["auroc"], part="select")
    assert found["part"].unique().tolist() == ["select"]
    assert set(found["seed"]) == set(SEEDS)
    table = tables.main_table(found, "auroc")
    assert [row.number for row in table.rows] == [*range(6), None]
    text = render.render([table])
    assert "optimistic" in text
    assert "chosen by best" not in text
    assert [row.number for row in table.for_people().rows] == [3, 1, 2, None]


def test_a_drawn_configuration_that_no_trial_can_have_is_counted_as_failed(
    drawn: tuple[Store, PlannedSweep],
) -> None:
    store, sweep = drawn
    store.decide(sweep.name, asked(6) | {"trials": {}})
    store.decide(sweep.name, told(6, "failed"))
    table = one_table(store, store.sweep())
    assert [row.number for row in table.rows] == [None, *range(6)]
    assert (table.searches[0].drawn, table.searches[0].failed) == (7, 1)
