"""Records of a sweep as one tidy frame, the only input of tables, tests and figures.

Rows come from the plan, not from the records: what was planned and is not there is a row with its
status and a reason, so no later step can forget it. Likewise the mean over groups is missing as
soon as one group is: a mean over the groups that happen to have a value is another quantity.

A value is taken from the record when it was computed under today's definition, and otherwise
computed from the stored predictions: two definitions never meet in one column. A pixel metric is in
the record or missing, as anomaly maps are not kept. Values are filled into one matrix per metric,
for a store of 10,000 trials is read while a person waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import (
    METRICS,
    POOLED,
    STORED_PIXEL,
    Metric,
    definitions,
    evaluate,
    parse_metric,
)
from hdsweep.store import PlannedSweep, Store
from hdsweep.trial import ENDINGS, TrialRecord

MEAN = "mean"
"""The group of what stands for a trial as a whole: the mean over groups, or a method's scalar."""

NOT_RUN = "not run"
STATUS = (*ENDINGS, NOT_RUN)

KNOB = "knob."
"""Prefix of the columns that hold knobs."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One metric of the frame.

    Args:
        metric: Without a group.
        words: Its definition; empty for a method's scalar.
        places: Which of the groups, POOLED and the mean, which comes last, have rows.
        value: Shape (trials, groups + 2), NaN where there is none.
        reason: Same shape, strings.
    """

    metric: Metric
    words: str
    places: NDArray[np.intp]
    value: NDArray[np.float64]
    reason: NDArray[np.object_]


def load(store: Store, sweep: PlannedSweep, metrics: Sequence[str] = ()) -> pd.DataFrame:
    """Read every planned trial of a sweep, finished or not.

    Args:
        store: Where the records are.
        sweep: What was planned.
        metrics: Names in the metric grammar, a method's scalars among them; by default those of
            the sweep. A name with a group keeps that group's rows only, unless another name asks
            for all groups.

    Returns:
        One row per metric, cell of the plan, seed and group, in this order; the groups in their
        order of report, POOLED where a name asks for it, MEAN. Columns: ``metric`` (canonical,
        without group), ``arm``, ``cell`` (position in the plan), one ``knob.<name>`` for each swept
        knob (pandas.NA in arms without it), ``seed``, ``trial``, ``group``, ``status`` (one of
        STATUS), ``value`` (as stored, NaN where there is none) and ``reason`` (empty where there is
        a value). A scalar has rows of group MEAN only. ``attrs["sweep"]`` is the sweep's name.

    Raises:
        SpecError: An unknown metric or group, or no metric at all.
        StoreError: A record or predictions cannot be read.
    """
    ids = list(dict.fromkeys(i for cell in sweep.cells for i in cell.trials.values()))
    columns = _columns(metrics or sweep.metrics, sweep.groups, len(ids))
    statuses = np.full(len(ids), STATUS.index(NOT_RUN), dtype=np.int8)
    scalars: set[str] = set()
    for row, trial_id in enumerate(ids):
        record = store.record(trial_id)
        if record is not None:
            statuses[row] = STATUS.index(record.ending)
            scalars.update(record.scalars)
        _fill(columns, row, record, store, sweep.groups)
    if (statuses == STATUS.index("ok")).any():  # before that, nobody knows what a method measures
        declared = {*scalars, *sweep.metrics}  # what the sweep asks for was checked with its method
        for column in columns:
            parse_metric(column.metric.key, declared)
    planned = [
        (cell, seed, trial_id)
        for cell, planned_cell in enumerate(sweep.cells)
        for seed, trial_id in planned_cell.trials.items()
    ]
    return _assemble(sweep, columns, planned, ids, statuses)


def _columns(texts: Sequence[str], groups: Sequence[str], trials: int) -> list[_Column]:
    for taken in {MEAN, POOLED} & {*groups}:
        raise SpecError(
            f"a group of the data is named '{taken}', which stands for all; rename the group"
        )
    last = len(groups) + 1
    shown: dict[str, tuple[Metric, set[int]]] = {}
    for text in texts:
        metric = parse_metric(text, (text.strip(),))  # a name that is no metric may be a scalar
        if metric.group is not None and metric.group not in (*groups, POOLED):
            known = did_you_mean(metric.group, (*groups, POOLED))
            raise SpecError(f"metric '{text}': the data has no group '{metric.group}'{known}")
        if metric.definition is None:
            places = {last}
        elif metric.group is None:
            places = {*range(len(groups)), last}
        else:
            places = {[*groups, POOLED].index(metric.group)}
        plain = Metric(metric.name, metric.percent, metric.rule)
        shown.setdefault(plain.key, (plain, set()))[1].update(places)
    if not shown:
        raise SpecError("no metric to report: name one, as in --metric auroc")
    shape = (trials, last + 1)
    return [
        _Column(
            metric,
            "" if metric.definition is None else definitions([metric.key])[metric.key],
            np.array(sorted(places), dtype=np.intp),
            np.full(shape, np.nan),
            np.full(shape, "", dtype=object),
        )
        for metric, places in shown.values()
    ]


def _fill(
    columns: Sequence[_Column],
    row: int,
    record: TrialRecord | None,
    store: Store,
    groups: Sequence[str],
) -> None:
    if record is None or record.status != "ok":
        for column in columns:
            column.reason[row] = _why_not(record)
        return
    for column in columns:
        if column.words and len(groups) in column.places:
            column.value[row, -2], column.reason[row, -2] = _pooled(column, record, store)
    rates = [column for column in columns if column.words]
    values, missing = _rates(rates, record, store, groups) if rates else ({}, {})
    for column in columns:
        key = column.metric.key
        if not column.words:
            value = record.scalars.get(key)
            column.value[row, -1] = math.nan if value is None else value
            column.reason[row, -1] = "" if value is not None else "the method does not measure it"
            continue
        found = [values[key].get(group) for group in groups]
        present = [value for value in found if value is not None]
        if groups and len(present) == len(found):
            column.value[row, : len(groups)] = present
            column.value[row, -1] = math.fsum(present) / len(present)
            continue
        absent = [group for group, value in zip(groups, found, strict=True) if value is None]
        column.value[row, : len(groups)] = [math.nan if v is None else v for v in found]
        column.reason[row, -1] = f"undefined in {', '.join(absent) or 'data without groups'}"
        for group in absent:
            reason = missing.get(key, {}).get(group, "no test item")
            column.reason[row, groups.index(group)] = reason


def _why_not(record: TrialRecord | None) -> str:
    if record is None:
        return "no record in the store"
    if record.error:
        kind, message = record.error.get("kind", "error"), record.error.get("message", "")
        told = kind in ("diverged", "request", "infeasible")  # by the status, or by the message
        return message if told else f"{kind}: {message}"
    return "stopped early" if record.status == "pruned" else "no error was recorded"


def _rates(
    columns: Sequence[_Column], record: TrialRecord, store: Store, groups: Sequence[str]
) -> tuple[dict[str, Mapping[str, float | None]], dict[str, Mapping[str, str]]]:
    """Values and reasons per metric and group, from the record or else from its predictions."""
    values: dict[str, Mapping[str, float | None]] = {}
    missing: dict[str, Mapping[str, str]] = {}
    later = []
    for column in columns:
        key = column.metric.key
        if key in record.metrics and record.definitions.get(key, column.words) == column.words:
            values[key], missing[key] = record.metrics[key], record.missing.get(key, {})
        elif METRICS[column.metric.variant].pixel:
            values[key], missing[key] = {}, dict.fromkeys(groups, _why_no_pixels(key, record))
        else:
            later.append(key)
    if not later:
        return values, missing
    stored = store.predictions(record.id)
    if stored is None:
        why = "not in the record as defined today, and there are no predictions to compute it from"
        lost = dict.fromkeys(groups, why)
        return values | {key: {} for key in later}, missing | dict.fromkeys(later, lost)
    computed, undefined = evaluate(
        later, stored.group, stored.is_anomaly, stored.score, record.threshold
    )
    return values | computed, missing | undefined


def _pooled(column: _Column, record: TrialRecord, store: Store) -> tuple[float, str]:
    """A metric over the items of all groups, or why there is none."""
    key = column.metric.key
    if METRICS[column.metric.variant].pixel:
        return math.nan, "pixel metrics are computed for each group, and the maps are not kept"
    stored = store.predictions(record.id)
    if stored is None:
        return math.nan, "there are no predictions to compute it from"
    rows = stored.first()
    values, missing = evaluate(
        [key], [POOLED] * len(rows), stored.is_anomaly[rows], stored.score[rows], record.threshold
    )
    value = values[key].get(POOLED)
    if value is None:
        return math.nan, missing.get(key, {}).get(POOLED, "no test item")
    return value, ""


def _why_no_pixels(key: str, record: TrialRecord) -> str:
    if not any(name in record.metrics for name in STORED_PIXEL):
        return "the trial has no pixel metrics: its data have no masks, or its method draws no maps"
    if key in STORED_PIXEL:
        return "not in the record as defined today, and the maps to compute it from are not kept"
    return (
        f"pixel metrics are computed while the maps are there, for {', '.join(STORED_PIXEL)}; "
        "the maps are not kept"
    )


def _assemble(
    sweep: PlannedSweep,
    columns: Sequence[_Column],
    planned: Sequence[tuple[int, int, str]],
    ids: Sequence[str],
    statuses: NDArray[np.int8],
) -> pd.DataFrame:
    place = {trial_id: row for row, trial_id in enumerate(ids)}
    row = np.array([place[trial_id] for _, _, trial_id in planned], dtype=np.intp)
    width = [len(column.places) for column in columns]

    def spread(per_trial: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.repeat(per_trial, k) for k in width])

    cell = spread(np.array([c for c, _, _ in planned], dtype=np.int64))
    trial = spread(row)
    arms = list(dict.fromkeys(c.arm for c in sweep.cells))
    arm = np.array([arms.index(c.arm) for c in sweep.cells], dtype=np.intp)
    codes = np.repeat(np.arange(len(columns)), np.multiply(width, len(planned)))
    group = np.concatenate([np.tile(c.places, len(planned)) for c in columns])
    data: dict[str, Any] = {
        "metric": _named(codes, [c.metric.key for c in columns]),
        "arm": _named(arm[cell], arms),
        "cell": cell,
    }
    for knob in dict.fromkeys(name for c in sweep.cells for name in c.knobs):
        values = np.empty(len(sweep.cells), dtype=object)
        values[:] = [c.knobs.get(knob, pd.NA) for c in sweep.cells]
        data[KNOB + knob] = pd.Series(values[cell], dtype=object)
    data |= {
        "seed": spread(np.array([seed for _, seed, _ in planned], dtype=np.int64)),
        "trial": _named(trial, ids),
        "group": _named(group, [*sweep.groups, POOLED, MEAN]),
        "status": _named(statuses[trial], STATUS),
        "value": np.concatenate([c.value[row][:, c.places].ravel() for c in columns]),
        "reason": np.concatenate([c.reason[row][:, c.places].ravel() for c in columns]),
    }
    frame = pd.DataFrame(data)
    frame.attrs["sweep"] = sweep.name
    return frame


def _named(codes: NDArray[Any], names: Sequence[str]) -> Any:
    return pd.Categorical.from_codes(codes, pd.Index(list(names)))
