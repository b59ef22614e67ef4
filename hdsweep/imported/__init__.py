"""Results from elsewhere: rows of a CSV file as records of a sweep, marked as imported.

What another program measured is kept like a trial of ours, with one record per configuration and
seed, so tables, tests and claims read it in the same way. It is no trial that can be run again: its
record says which file it came from, and its id is the digest of what it says.

A file's own means over groups are kept beside its groups and stand for the trial, for they were
made from more digits than the file prints.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdsweep.errors import DataError, StoreError
from hdsweep.identity import digest
from hdsweep.imported.columns import Columns
from hdsweep.imported.rows import MOST, ONLY, OWN_MEAN, Row, Rows, read_rows
from hdsweep.metrics import definitions
from hdsweep.planned import PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

__all__ = ["OWN_MEAN", "Columns", "Results", "is_imported", "keep", "read_results"]

MARK = "# imported from "
"""How the file begins that the store keeps of such a sweep."""

_EXAMPLES = 3  # in a warning


@dataclass(frozen=True, slots=True)
class Results:
    """What a file says.

    Args:
        file: Its name, without folders.
        sha256: Of its content.
        cells: Configurations in their order: arm, knobs, seed -> trial.
        records: By trial id.
        metrics: Canonical names, in their order.
        groups: In their order, without the file's own mean.
        percent: Whether its rates were read as percent.
        columns: What -> the column that it was read from.
        warnings: What looks wrong and may be right.
    """

    file: str
    sha256: str
    cells: tuple[PlannedCell, ...]
    records: Mapping[str, TrialRecord]
    metrics: tuple[str, ...]
    groups: tuple[str, ...]
    percent: bool
    columns: Mapping[str, str]
    warnings: tuple[str, ...]


def read_results(path: Path, columns: Columns) -> Results:
    """Read a CSV file: a row per value, or a row per trial and group with a column per metric.

    Raises:
        DataError: The file cannot be read, or a row of it is wrong; with its line.
        SpecError: A column or a metric that there is not, or units that cannot be told.
    """
    read = read_rows(path, columns)
    metrics = list(dict.fromkeys(row.metric for row in read.rows))
    rates = [metric for metric in metrics if metric not in read.scalars]
    groups = list(dict.fromkeys(row.group for row in read.rows if row.metric in rates))
    # A file of means alone has one group; they are means of nothing that is there.
    groups = [group for group in groups if group != read.mean] or [ONLY]
    origin = {
        "file": path.name,
        "sha256": read.sha256,
        "percent": read.percent,
        "resolution": _resolution(read, rates),
    }
    trials: dict[str, dict[int, list[Row]]] = {}
    for row in read.rows:
        key = digest({"arm": row.arm, "knobs": dict(row.knobs)})
        trials.setdefault(key, {}).setdefault(row.seed, []).append(row)
    records: dict[str, TrialRecord] = {}
    cells = []
    seeds = list(dict.fromkeys(row.seed for row in read.rows))
    for key, by_seed in trials.items():
        first = next(iter(by_seed.values()))[0]
        ids = {}
        for seed in seeds:
            if seed in by_seed:
                record = _record(read, by_seed[seed], rates, groups, origin)
                records[record.id] = record
                ids[seed] = record.id
            else:  # a seed that others have: a hole, as in a sweep that has not run it
                ids[seed] = digest({"imported": key, "lacks": seed})
        cells.append(PlannedCell(first.arm, first.knobs, ids))
    told = [metric for metric in metrics if metric not in rates]
    return Results(
        path.name, read.sha256, tuple(cells), records, (*rates, *told), tuple(groups),
        read.percent, read.columns,
        (*_scattered(cells, records, read.knobs), *_off(read, rates, groups)),
    )  # fmt: skip


def _scattered(
    cells: Sequence[PlannedCell], records: Collection[str], knobs: Sequence[str]
) -> Iterator[str]:
    """Columns that are taken for knobs and may be measurements: no configuration has two seeds."""
    seeds = {seed for cell in cells for seed in cell.trials}
    arms = {cell.arm for cell in cells}
    alone = all(sum(i in records for i in cell.trials.values()) == 1 for cell in cells)
    if knobs and alone and len(seeds) > 1 and len(cells) > len(arms):
        yield (
            f"no configuration has two seeds; if {' or '.join(knobs)} is no knob, import again "
            "with --ignore COLUMN"
        )


def _off(read: Rows, metrics: Sequence[str], groups: Sequence[str]) -> Iterator[str]:
    """The file's own means that are not the mean of its groups, whatever way they were rounded."""
    of: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in read.rows:
        if row.metric in metrics and row.value is not None:
            cell = digest({"arm": row.arm, "knobs": dict(row.knobs)})
            of.setdefault((row.metric, cell, row.seed), {})[row.group] = row
    wrong = []
    for found in of.values():
        own = found.pop(read.mean, None) if read.mean is not None else None
        values = [row.value for row in found.values() if row.value is not None]
        if own is None or own.value is None or len(values) < len(groups):
            continue
        exact = math.fsum(values) / len(values)
        # Half a unit of the last digit for the groups, a whole one where the mean was cut off.
        unit = max(10.0**-row.digits for row in found.values())
        if abs(own.value - exact) > unit / 2 + 10.0**-own.digits + 1e-9:
            digits = max(own.digits, 0)
            wrong.append(f"line {own.line} says {own.value:.{digits}f}, not {exact:.{digits}f}")
    if wrong:
        yield (
            f"{len(wrong)} of the file's means are not those of its groups weighted equally, to "
            f"the digits that it prints: {'; '.join(wrong[:_EXAMPLES])}"
            f"{'; ...' if len(wrong) > _EXAMPLES else ''}"
        )


def _resolution(read: Rows, metrics: Sequence[str]) -> dict[str, float]:
    """Metric -> half a unit of the last digit that the file prints, in the unit of records."""
    scale = 100 if read.percent else 1
    digits = {
        metric: max((row.digits for row in read.rows if row.metric == metric), default=0)
        for metric in metrics
    }
    return {metric: 0.5 * 10.0**-most / scale for metric, most in digits.items()}


def _record(
    read: Rows,
    rows: Sequence[Row],
    metrics: Sequence[str],
    groups: Sequence[str],
    origin: Mapping[str, Any],
) -> TrialRecord:
    """Of one trial."""
    values: dict[str, dict[str, float | None]] = {metric: {} for metric in metrics}
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        place = (row.metric, row.group)
        if place in seen:
            of = f"group {row.group} " if row.group else ""
            raise DataError(
                f"{read.path}:{row.line}: {row.metric} of {row.arm}, seed {row.seed}, {of}is in "
                f"line {seen[place]} already; name the column that tells them apart, by --knob, "
                "--seed or --group"
            )
        seen[place] = row.line
        if row.metric in read.scalars:
            continue
        group = row.group
        if group == read.mean:
            group = ONLY if groups == [ONLY] else OWN_MEAN
        values[row.metric][group] = _rate(read, row)
    first = rows[0]
    missing = {
        metric: {group: "not in the file" for group in groups if found.get(group) is None}
        for metric, found in values.items()
    }
    scalars = _scalars(read, rows)
    said = {
        "arm": first.arm, "params": dict(first.knobs), "metrics": values, "scalars": scalars,
        "resolution": origin["resolution"],  # 98.5 and 98.50 say different things
    }  # fmt: skip
    trial_id = digest({"imported": said, "seed": first.seed})
    trial = Trial(
        id=trial_id, method=first.arm, version=0, params=first.knobs, data_name="imported",
        data_params={}, fingerprint=str(origin["sha256"]), seed=first.seed, identity={},
    )  # fmt: skip
    return TrialRecord(
        id=trial_id,
        status="ok",
        trial=trial.to_json(),
        metrics=values,
        missing={metric: why for metric, why in missing.items() if why},
        scalars=scalars,
        definitions=definitions(metrics),
        provenance={"imported": {**origin, "rows": len(rows)}},
    )


def _rate(read: Rows, row: Row) -> float | None:
    if row.value is None:
        return None
    value = row.value / 100 if read.percent else row.value
    if not 0 <= value <= MOST:
        unit = "percent" if read.percent else "a fraction"
        raise DataError(f"{read.path}:{row.line}: {row.metric} {row.value:g} is no rate in {unit}")
    return min(value, 1.0)


def _scalars(read: Rows, rows: Sequence[Row]) -> dict[str, float]:
    """One number per trial: that of the file's mean, or the one that all its groups have."""
    found: dict[str, Row] = {}
    measured = [row for row in rows if row.metric in read.scalars and row.value is not None]
    for row in sorted(measured, key=lambda row: row.group != read.mean):
        before = found.setdefault(row.metric, row)
        if before.group != read.mean and before.value != row.value:
            raise DataError(
                f"{read.path}:{row.line}: {row.metric} of {row.arm}, seed {row.seed} is "
                f"{row.value:g}, but {before.value:g} in line {before.line}; a trial has one, so "
                "take their mean or leave the column out"
            )
    return {name: row.value for name, row in found.items() if row.value is not None}


def keep(
    store: Store, name: str, found: Results, *, question: str = "", baseline: str | None = None
) -> PlannedSweep:
    """Put results into a store as a sweep; the same ones again change nothing.

    Raises:
        StoreError: A sweep of that name was run here.
    """
    store.log_of(name)  # refuses what is no name before anything is written
    store.create()
    if name in store.sweeps() and not is_imported(store, name):
        raise StoreError(
            f"{store.root}: sweep '{name}' was run here; import the file under another name"
        )
    planned = PlannedSweep(
        name, question, found.metrics, baseline, (), found.groups, found.cells,
        arms=tuple(dict.fromkeys(cell.arm for cell in found.cells)),
    )  # fmt: skip
    for record in found.records.values():
        store.put(record)
    written = f"{MARK}{found.file!r}, SHA-256 {found.sha256}\n"
    store.put_sweep(planned, written.encode(errors="backslashreplace"))
    return planned


def is_imported(store: Store, name: str) -> bool:
    """Whether a sweep of the store was imported and not run."""
    try:
        kept = store.root / "sweeps" / name / "sweep.yaml"
        return kept.read_bytes().startswith(MARK.encode())
    except OSError:
        return False
