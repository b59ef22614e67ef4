"""A trial has one value for a metric, whoever asks, or one reason for having none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import frame
from hdsweep.errors import StoreError
from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import definitions, evaluate, parse_metric
from hdsweep.store import PlannedCell, PlannedSweep, Store
from hdsweep.trial import TrialRecord
from hdsweep.values import value_of

GROUPS = ("A", "B")
SCALARS = ("latency_ms",)
ID = digest("trial")


def record(metrics: Mapping[str, Mapping[str, float | None]], **fields: object) -> TrialRecord:
    made = TrialRecord(ID, "ok", {}, metrics=metrics, definitions=definitions(metrics))
    return replace(made, **fields)  # type: ignore[arg-type]


def ask(store: Store, kept: TrialRecord | None, name: str) -> tuple[float, str]:
    return value_of(store, kept, parse_metric(name, SCALARS), GROUPS)


def predictions(group: tuple[str, ...] = GROUPS) -> Predictions:
    random = np.random.default_rng(0)
    label = np.tile([False, True], 20 * len(group))
    return Predictions(
        tuple(f"{n}.png" for n in range(len(label))), tuple(np.repeat(group, 40).tolist()), label,
        random.normal(size=len(label)) + label,
    )  # fmt: skip


def test_a_value_is_that_of_a_group_or_the_mean_over_all(tmp_path: Path) -> None:
    store, kept = Store(tmp_path), record({"auroc": {"A": 0.5, "B": 0.75}})
    assert ask(store, kept, "auroc") == (0.625, "")
    assert ask(store, kept, "auroc[domain=B]") == (0.75, "")
    kept = replace(kept, scalars={"latency_ms": 12.5})
    assert ask(store, kept, "latency_ms") == (12.5, "")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("auroc", "undefined in B"),
        ("auroc[domain=B]", "no anomalous item among 9"),
        ("auroc[domain=E]", "no test item"),
        ("auroc[domain=pooled]", "there are no predictions to compute it from"),
        ("aupro[domain=pooled]", "pixel metrics are computed for each group"),
        ("ap", "undefined in A, B"),
        ("ap[domain=A]", "not in the record as defined today, and there are no predictions"),
        ("aupro[domain=A]", "the trial has no pixel metrics"),
        ("latency_ms", "the method does not measure it"),
    ],
)
def test_what_has_no_value_has_a_reason(tmp_path: Path, name: str, why: str) -> None:
    missing = {"auroc": {"B": "no anomalous item among 9"}}
    kept = record({"auroc": {"A": 0.5, "B": None}}, missing=missing)
    value, reason = ask(Store(tmp_path), kept, name)
    assert math.isnan(value)
    assert reason.startswith(why)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"status": "failed", "error": {"kind": "method", "message": "no"}}, "method: no"),
        ({"status": "failed", "error": {"kind": "infeasible", "message": "few"}}, "few"),
        ({"status": "failed"}, "no error was recorded"),
        ({"status": "diverged", "error": {"kind": "diverged", "message": "NaN"}}, "NaN"),
        ({"status": "pruned"}, "stopped early"),
        ({"status": "pruned", "error": {"kind": "stopped", "message": "asha: low"}}, "asha: low"),
    ],
)
def test_a_trial_that_is_not_ok_has_no_value_whatever_it_left(
    tmp_path: Path, fields: Mapping[str, object], why: str
) -> None:
    store = Store(tmp_path)
    kept = record({"auroc": {"A": 0.5, "B": 0.5}}, scalars={"latency_ms": 1.0}, **fields)
    store.put_predictions(ID, predictions())
    for name in ("auroc", "auroc[domain=A]", "auroc[domain=pooled]", "latency_ms", "tpr@3"):
        value, reason = ask(store, kept, name)
        assert math.isnan(value)
        assert reason == why
    assert ask(store, None, "auroc")[1] == "no record in the store"


def test_what_the_record_lacks_is_computed_from_predictions(tmp_path: Path) -> None:
    store, found = Store(tmp_path), predictions()
    store.put_predictions(ID, found)
    other = {"definitions": {"auroc": "area by Simpson's rule"}}
    kept = record({"auroc": {"A": 0.1, "B": 0.1}}, **other)
    today, _ = evaluate(["auroc", "tpr@3"], found.group, found.is_anomaly, found.score)
    assert ask(store, kept, "auroc[domain=A]") == (today["auroc"]["A"], "")
    mean = math.fsum(today["tpr@3"].values()) / 2  # type: ignore[arg-type]
    assert ask(store, kept, "tpr@3") == (mean, "")
    together = ["pooled"] * len(found.item)
    whole, _ = evaluate(["auroc"], together, found.is_anomaly, found.score)
    assert ask(store, kept, "auroc[domain=pooled]") == (whole["auroc"]["pooled"], "")


def test_damaged_predictions_are_told_apart_from_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record({}))
    (store.trial_dir(ID) / "predictions.parquet").write_bytes(b"not parquet")
    with pytest.raises(StoreError, match="not a table of predictions"):
        ask(store, store.record(ID), "auroc")


_VALUES = st.none() | st.floats(0, 1)
_RECORDS = st.builds(
    lambda metrics, status, scalars, outdated, reasons: record(
        metrics,
        status=status,
        scalars=scalars,
        missing={
            key: {g: reasons for g, v in of.items() if v is None} for key, of in metrics.items()
        },
        definitions=dict.fromkeys(metrics, "as it once was") if outdated else definitions(metrics),
    ),
    metrics=st.dictionaries(
        st.sampled_from(["auroc", "tpr@1", "aupro", "pixel_ap"]),
        st.dictionaries(st.sampled_from(GROUPS), _VALUES),
    ),
    status=st.sampled_from(["ok", "ok", "ok", "failed", "diverged", "pruned"]),
    scalars=st.dictionaries(st.sampled_from(SCALARS), st.floats(0, 100)),
    outdated=st.booleans(),
    reasons=st.sampled_from(["one class", "a score is NaN"]),
)


@given(
    record=st.none() | _RECORDS,
    groups=st.none() | st.sampled_from([("A",), GROUPS]),
    name=st.sampled_from(["auroc", "tpr@1", "tpr@7", "aupro", "aupro@12", "latency_ms"]),
    place=st.sampled_from(["", "[group=A]", "[group=B]", "[group=pooled]"]),
)
def test_whoever_asks_is_told_what_the_report_says(
    tmp_path_factory: pytest.TempPathFactory,
    record: TrialRecord | None,
    groups: tuple[str, ...] | None,
    name: str,
    place: str,
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    if groups is not None:
        store.put_predictions(ID, predictions(groups))
    if record is not None:
        store.put(record)
    metric = parse_metric(name + ("" if name in SCALARS else place), SCALARS)
    cells = (PlannedCell("arm", {}, {1: ID}),)
    sweep = PlannedSweep("s", "", SCALARS, None, (), GROUPS, cells)
    shown = frame.load(store, sweep, [metric.text])
    told = shown[shown["group"] == (metric.group or frame.MEAN)].iloc[0]
    value, reason = value_of(store, store.record(ID), metric, GROUPS)
    assert reason == told["reason"]
    assert np.array_equal(value, told["value"], equal_nan=True)
    assert math.isnan(value) == bool(reason)
