"""What a trial gives for a metric, or why it gives nothing.

One answer for whoever asks: the report, a search, a race or the line on the terminal. A value is
taken from the record when it was computed under today's definition, and otherwise computed from the
stored predictions: two definitions never meet. A pixel metric is in the record or missing, as
anomaly maps are not kept. The mean over groups is missing as soon as one group is: a mean over the
groups that happen to have a value is another quantity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hdsweep.metrics import METRICS, POOLED, STORED_PIXEL, Metric, definitions, evaluate
from hdsweep.store import Store
from hdsweep.trial import TrialRecord

Value = tuple[float, str]
"""A number and nothing, or NaN and the reason in words."""

_TOLD = ("diverged", "request", "infeasible", "stopped")
"""Kinds of error whose message says all."""


def value_of(
    store: Store, record: TrialRecord | None, metric: Metric, groups: Sequence[str]
) -> Value:
    """A trial's value: of one group, pooled, the mean over groups, or a method's scalar.

    Args:
        store: Where its predictions are, for what its record lacks.
        record: None for a trial that has not finished.
        metric: With the group that is meant, if any.
        groups: All that the mean is taken over.

    Raises:
        StoreError: Predictions that are needed cannot be read.
    """
    if record is None or record.status != "ok":
        return math.nan, why_not(record)
    if metric.definition is None:
        return scalar(record, metric.key)
    if metric.group == POOLED:
        return pooled(store, record, metric)
    if metric.group is None and (own := own_mean(record, metric.key)) is not None:
        return own, ""
    named = groups if metric.group is None else (metric.group,)
    values, missing = by_group(store, record, {metric.key: metric}, named)
    found, reasons = values[metric.key], missing.get(metric.key, {})
    if metric.group is None:
        return mean_over([found.get(group) for group in groups], groups)
    value = found.get(metric.group)
    return (math.nan, lacking(reasons, metric.group)) if value is None else (value, "")


def why_not(record: TrialRecord | None) -> str:
    """Why a trial that is not ``ok`` has no value."""
    if record is None:
        return "no record in the store"
    if record.error:
        kind, message = record.error.get("kind", "error"), record.error.get("message", "")
        return message if kind in _TOLD else f"{kind}: {message}"
    return "stopped early" if record.status == "pruned" else "no error was recorded"


def scalar(record: TrialRecord, name: str) -> Value:
    """One of a method's own measurements."""
    value = record.scalars.get(name)
    return (math.nan, "the method does not measure it") if value is None else (value, "")


def mean_over(found: Sequence[float | None], groups: Sequence[str]) -> Value:
    """The mean of what the groups have, in their order; all must have something."""
    present = [value for value in found if value is not None]
    if groups and len(present) == len(found):
        return math.fsum(present) / len(present), ""
    absent = [group for group, value in zip(groups, found, strict=True) if value is None]
    return math.nan, f"undefined in {', '.join(absent) or 'data without groups'}"


def own_mean(record: TrialRecord, name: str) -> float | None:
    """The mean over groups that an imported file gave itself, of more digits than it prints."""
    if "imported" not in record.provenance:
        return None
    return record.metrics.get(name, {}).get("mean")


def lacking(missing: Mapping[str, str], group: str) -> str:
    """Why a group has no value, where its reasons are those of one metric."""
    return missing.get(group, "no test item")


def by_group(
    store: Store,
    record: TrialRecord,
    metrics: Mapping[str, Metric],
    groups: Sequence[str],
    words: Mapping[str, str] | None = None,
) -> tuple[dict[str, Mapping[str, float | None]], dict[str, Mapping[str, str]]]:
    """Metrics of a trial that is ``ok``, from its record or else from its predictions.

    Args:
        store: Where its predictions are.
        record: Of the trial.
        metrics: By their names in records; none is a scalar.
        groups: For which reasons are wanted.
        words: Definitions of today by name; who asks of many trials looks them up once.

    Returns:
        Name -> group -> value, and name -> group -> why there is none.
    """
    today = definitions(metrics) if words is None else words
    values: dict[str, Mapping[str, float | None]] = {}
    missing: dict[str, Mapping[str, str]] = {}
    later = []
    for key, metric in metrics.items():
        if key in record.metrics and record.definitions.get(key, today[key]) == today[key]:
            values[key], missing[key] = record.metrics[key], record.missing.get(key, {})
        elif METRICS[metric.variant].pixel:
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


def pooled(store: Store, record: TrialRecord, metric: Metric) -> Value:
    """A metric over the items of all groups of a trial that is ``ok``, each item once."""
    key = metric.key
    if METRICS[metric.variant].pixel:
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
        return math.nan, lacking(missing.get(key, {}), POOLED)
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
