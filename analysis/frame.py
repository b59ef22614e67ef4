"""Records of a sweep as one tidy frame, the only input of tables, tests and figures.

Rows come from the plan and the log of what was decided, not from the records: what was planned and
is not there is a row with its status and a reason, so no later step can forget it. Values are those
of ``hdsweep.values``, filled into one matrix per metric, for a store of 10,000 trials is read while
a person waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.runs import Run, Runs
from analysis.searches import searched
from hdsweep import values
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import POOLED, Metric, definitions, parse_metric
from hdsweep.planned import Part, PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import ENDINGS, TrialRecord

MEAN = "mean"
"""The group of what stands for a trial as a whole: the mean over groups, or a method's scalar."""

NOT_RUN = "not run"
SKIPPED = "skipped"
STATUS = (*ENDINGS, NOT_RUN, SKIPPED)

NOT_CHOSEN = "not chosen yet"
"""Reason of the trials of a configuration that is to be confirmed and is not known."""

PARTS: tuple[Part, ...] = get_args(Part)

KNOB = "knob."
"""Prefix of the columns that hold knobs."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One metric of the frame.

    Args:
        metric: Without a group.
        key: Its canonical name.
        words: Its definition; empty for a method's scalar.
        places: Which of the groups, POOLED and the mean, which comes last, have rows.
        value: Shape (trials, groups + 2), NaN where there is none.
        reason: Same shape, strings.
        own: Whether the mean over groups is one that an imported file gave itself, by trial.
        pooled: Whether the items of all groups together are asked for.
    """

    metric: Metric
    key: str
    words: str
    places: NDArray[np.intp]
    value: NDArray[np.float64]
    reason: NDArray[np.object_]
    own: NDArray[np.bool_]
    pooled: bool


def load(
    store: Store,
    sweep: PlannedSweep,
    metrics: Sequence[str] = (),
    *,
    part: Part | None = None,
) -> pd.DataFrame:
    """The frame alone of what ``read`` reads."""
    return read(store, sweep, metrics, part=part)[0]


def read(
    store: Store,
    sweep: PlannedSweep,
    metrics: Sequence[str] = (),
    *,
    part: Part | None = None,
) -> tuple[pd.DataFrame, dict[str, Run]]:
    """Read every planned trial of a sweep, finished or not.

    Args:
        store: Where the records are.
        sweep: What was planned.
        metrics: Names in the metric grammar, a method's scalars among them; by default those of
            the sweep. A name with a group keeps that group's rows only, unless another name asks
            for all groups.
        part: Only cells of that part; by default all, but in a sweep with seeds to confirm on none
            of those to select by.

    Returns:
        The frame, and by trial id how those that have a record were run.

        One row per metric, cell of the plan, seed and group, in this order; the groups in their
        order of report, POOLED where a name asks for it, MEAN. Columns: ``metric`` (canonical,
        without group), ``arm``, ``cell`` (position among those that have rows), ``study`` and
        ``number`` (missing where no search drew it), ``part``, one ``knob.<name>`` for each swept
        or drawn knob (pandas.NA in arms without it), ``seed``, ``trial`` (empty while none is
        chosen), ``group``, ``status`` (one of STATUS), ``value`` (as stored, NaN where there is
        none) and ``reason`` (empty where there is a value). A scalar has rows of group MEAN only.
        ``attrs`` hold the name of the ``sweep``, its ``searches``, how it was told to ``select``
        and the metrics whose means over groups an imported file gave, ``own_means``.

    Raises:
        SpecError: An unknown metric or group, or no metric at all.
        StoreError: A record or predictions cannot be read.
    """
    cells = _reported(sweep, part)
    ids = list(dict.fromkeys(i for cell in cells for i in cell.trials.values()))
    skipped = sweep.skipped()
    columns = _columns(metrics or sweep.metrics, sweep.groups, len(ids))
    statuses = np.full(len(ids), STATUS.index(NOT_RUN), dtype=np.int8)
    scalars: set[str] = set()
    runs = Runs(name for cell in cells for name in cell.knobs)
    for row, trial_id in enumerate(ids):
        record = store.record(trial_id) if trial_id else None
        if record is not None:
            statuses[row] = STATUS.index(record.ending)
            scalars.update(record.scalars)
            runs.add(record)
        if record is not None and record.status == "ok":
            _fill(columns, row, record, store, sweep.groups)
            continue
        why = values.why_not(record)
        if record is None and trial_id in skipped:
            statuses[row], why = STATUS.index(SKIPPED), skipped[trial_id]
        for column in columns:
            column.reason[row] = why if trial_id else sweep.unchosen or NOT_CHOSEN
    if (statuses == STATUS.index("ok")).any():  # before that, nobody knows what a method measures
        declared = {*scalars, *sweep.metrics}  # what the sweep asks for was checked with its method
        for column in columns:
            parse_metric(column.key, declared)
    planned = [
        (cell, seed, trial_id)
        for cell, planned_cell in enumerate(cells)
        for seed, trial_id in planned_cell.trials.items()
    ]
    frame = _assemble(cells, sweep.groups, columns, planned, ids, statuses)
    searches = tuple(searched(search, sweep.cells) for search in sweep.searches)
    # Few and small: pandas copies them with whatever is made of the frame.
    own_means = tuple(column.key for column in columns if column.own.any())
    frame.attrs.update(
        sweep=sweep.name, searches=searches, select=sweep.select, own_means=own_means
    )
    return frame, runs.by_trial


def _reported(sweep: PlannedSweep, part: Part | None) -> list[PlannedCell]:
    """Cells that have rows, those that are not chosen yet among them."""
    if part is not None:
        return [cell for cell in sweep.cells if cell.part == part]
    if not sweep.confirm:
        return list(sweep.cells)
    found = []
    for arm in sweep.arm_names():
        shown = [cell for cell in sweep.cells if cell.arm == arm and cell.part != "select"]
        later = PlannedCell(arm, {}, dict.fromkeys(sweep.confirm, ""), part="confirm")
        found += shown or [later]
    return found


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
            metric.key,
            "" if metric.definition is None else definitions([metric.key])[metric.key],
            np.array(sorted(places), dtype=np.intp),
            np.full(shape, np.nan),
            np.full(shape, "", dtype=object),
            np.zeros(trials, dtype=np.bool_),
            last - 1 in places,
        )
        for metric, places in shown.values()
    ]


def _fill(
    columns: Sequence[_Column],
    row: int,
    record: TrialRecord,
    store: Store,
    groups: Sequence[str],
) -> None:
    """Values of a trial that is ``ok``."""
    rates = [column for column in columns if column.words]
    last = len(groups)
    for column in rates:
        if column.pooled:
            pooled = values.pooled(store, record, column.metric)
            column.value[row, -2], column.reason[row, -2] = pooled
    metrics = {column.key: column.metric for column in rates}
    words = {column.key: column.words for column in rates}
    known, missing = values.by_group(store, record, metrics, groups, words) if rates else ({}, {})
    for column in columns:
        key = column.key
        if not column.words:
            column.value[row, -1], column.reason[row, -1] = values.scalar(record, key)
            continue
        found = [known[key].get(group) for group in groups]
        own = values.own_mean(record, key)
        column.own[row] = own is not None
        column.value[row, -1], column.reason[row, -1] = (
            values.mean_over(found, groups) if own is None else (own, "")
        )
        if None not in found:
            column.value[row, :last] = found
            continue
        column.value[row, :last] = [math.nan if v is None else v for v in found]
        for place, group in enumerate(groups):
            if found[place] is None:
                column.reason[row, place] = values.lacking(missing.get(key, {}), group)


def _assemble(
    cells: Sequence[PlannedCell],
    groups: Sequence[str],
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
    studies = list(dict.fromkeys(c.study for c in cells if c.study is not None))
    study = np.array([-1 if c.study is None else studies.index(c.study) for c in cells], np.intp)
    part = np.array([PARTS.index(c.part) for c in cells], dtype=np.int8)
    numbers = pd.array([c.number for c in cells], dtype="Int64")
    arms = list(dict.fromkeys(c.arm for c in cells))
    arm = np.array([arms.index(c.arm) for c in cells], dtype=np.intp)
    codes = np.repeat(np.arange(len(columns)), np.multiply(width, len(planned)))
    group = np.concatenate([np.tile(c.places, len(planned)) for c in columns])
    data: dict[str, Any] = {
        "metric": _named(codes, [c.key for c in columns]),
        "arm": _named(arm[cell], arms),
        "cell": cell,
        "study": _named(study[cell], studies),
        "number": numbers[cell],
        "part": _named(part[cell], PARTS),
    }
    for knob in dict.fromkeys(name for c in cells for name in c.knobs):
        values = np.empty(len(cells), dtype=object)
        values[:] = [c.knobs.get(knob, pd.NA) for c in cells]
        data[KNOB + knob] = pd.Series(values[cell], dtype=object)
    data |= {
        "seed": spread(np.array([seed for _, seed, _ in planned], dtype=np.int64)),
        "trial": _named(trial, ids),
        "group": _named(group, [*groups, POOLED, MEAN]),
        "status": _named(statuses[trial], STATUS),
        "value": np.concatenate([c.value[row][:, c.places].ravel() for c in columns]),
        # As objects: a message may name a file by half a character, which strings of pandas refuse.
        "reason": pd.Series(
            np.concatenate([c.reason[row][:, c.places].ravel() for c in columns]), dtype=object
        ),
    }
    return pd.DataFrame(data)


def _named(codes: NDArray[Any], names: Sequence[str]) -> Any:
    return pd.Categorical.from_codes(codes, pd.Index(list(names)))
