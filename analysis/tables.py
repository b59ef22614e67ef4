"""The table of a sweep: arms and knobs down, groups across, mean and spread over seeds in a cell.

A table holds numbers and reasons, never text to show: ``render`` turns the same cells into every
format, so a paper and a terminal cannot disagree. It describes and does not compare; tests between
arms read the frame, where trials still have their seeds, and not these means.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.frame import KNOB
from analysis.searches import Searched
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import definitions, parse_metric
from hdsweep.planned import Part

UNDEFINED = "undefined"
"""Status, in a cell, of a trial that finished but has no value for the metric."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A planned trial that is not in a cell's mean.

    Args:
        seed: The replicate.
        trial: Its id.
        status: failed, diverged, pruned, infeasible, not run, skipped or undefined.
        reason: In words.
    """

    seed: int
    trial: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm and knob setting, in one group.

    Args:
        mean: Over the seeds that have a value; None when none has.
        std: Over the same seeds; None for fewer than two, for one value has no spread.
        n: How many seeds have a value.
        planned: How many were planned.
        ddof: What is subtracted from n in the divisor of ``std``.
        missing: The others, in the order of seeds.
        best: Whether it is the best of its column, at the precision that is printed.
        behind: Whether it is significantly worse than the best of its column; None where that was
            not asked, of the best itself, where no cell may be called best, and of an incomplete
            one that is significantly better than that.
    """

    mean: float | None
    std: float | None
    n: int
    planned: int
    ddof: int
    missing: tuple[Missing, ...] = ()
    best: bool = False
    behind: bool | None = None

    @property
    def status(self) -> dict[str, int]:
        """How many of the planned trials are ok with a value, failed, not run, undefined ..."""
        counts = {"ok": self.n} if self.n else {}
        return counts | Counter(trial.status for trial in self.missing)


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the plan: an arm with one setting of its knobs.

    Args:
        arm: Name in the sweep file.
        knobs: Swept and drawn knobs, as in the plan.
        cells: By column of the table.
        study: Key of the search that drew it.
        number: Its place in the order in which that search drew.
        part: ``select`` for one to choose by, ``confirm`` for a chosen one, else ``run``.
        cell: Its position in the frame.
    """

    arm: str
    knobs: Mapping[str, Any]
    cells: Mapping[str, Cell]
    study: str | None = None
    number: int | None = None
    part: Part = "run"
    cell: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """One metric of one sweep.

    Args:
        sweep: Its name.
        metric: Canonical name.
        definition: In words; empty for a method's scalar.
        larger_is_better: None for a method's scalar, whose direction only the method knows.
        ddof: Of every cell.
        columns: Groups in the order of the data, then the mean over them, where it was asked for.
        rows: In the order of the plan.
        searches: Of the sweep; their configurations are rows unless others were to be confirmed.
        select: In words, how rows of part ``confirm`` were chosen.
        own_means: Whether the mean over groups is the one that an imported file gave itself.
    """

    sweep: str
    metric: str
    definition: str
    larger_is_better: bool | None
    ddof: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    searches: tuple[Searched, ...] = ()
    select: str = ""
    own_means: bool = False

    @property
    def is_rate(self) -> bool:
        """Whether values lie in [0, 1]; a scalar has the unit that its name says."""
        return bool(self.definition)

    def for_people(self) -> Table:
        """The table with the best configurations alone of each search, the best first."""
        best = {search.study: search.best for search in self.searches}
        drawn = {(row.study, row.number): row for row in self.rows if _is_drawn(row)}
        rows: list[Row] = []
        for row in self.rows:
            if row.study is None or not _is_drawn(row):
                rows.append(row)
            elif row.study in best:  # its first row; all of them come in its place
                shown = ((row.study, number) for number in best.pop(row.study))
                rows += [drawn[key] for key in shown if key in drawn]
        return replace(self, rows=tuple(rows))


def _is_drawn(row: Row) -> bool:
    return row.study is not None and row.part != "confirm"


def main_table(frame: pd.DataFrame, metric: str, ddof: int = 1) -> Table:
    """Mean and standard deviation over seeds, per cell of the plan and group.

    Args:
        frame: What ``analysis.frame.load`` returns, or some of its rows.
        metric: One of the metrics in the frame; with a group, only that group's column.
        ddof: 1 for the sample standard deviation, 0 for the population's.

    Raises:
        SpecError: A metric or group that the frame does not hold, or another ddof.
    """
    if ddof not in (0, 1):
        raise SpecError(f"ddof is 0 or 1, found {ddof}")
    names: list[str] = list(frame["metric"].cat.categories)
    asked = parse_metric(metric, names)
    if asked.key not in names:
        raise SpecError(f"the report does not hold '{asked.key}'{did_you_mean(asked.key, names)}")
    rows = frame[frame["metric"] == asked.key]
    if asked.group is not None:
        rows = rows[rows["group"] == asked.group]
        if asked.group not in frame["group"].cat.categories:
            known = did_you_mean(asked.group, frame["group"].cat.categories)
            raise SpecError(f"metric '{metric}': no group '{asked.group}'{known}")
    cells = _cells(rows, ddof)
    present = set(rows["group"].unique())
    columns = tuple(group for group in rows["group"].cat.categories if group in present)
    described = rows.drop_duplicates("cell")
    knobs = [name for name in rows.columns if name.startswith(KNOB)]
    settings = zip(*(described[name] for name in knobs), strict=True) if knobs else None
    return Table(
        sweep=str(frame.attrs.get("sweep", "")),
        metric=asked.text,
        definition=definitions([asked.key])[asked.key] if asked.definition else "",
        larger_is_better=asked.definition.larger_is_better if asked.definition else None,
        ddof=ddof,
        columns=columns,
        searches=frame.attrs.get("searches", ()),
        select=str(frame.attrs.get("select", "")),
        own_means=asked.key in frame.attrs.get("own_means", ()),
        rows=tuple(
            Row(
                arm=arm,
                knobs={
                    name.removeprefix(KNOB): value
                    for name, value in zip(knobs, setting, strict=True)
                    if value is not pd.NA
                },
                cells={c: cells[cell, c] for c in columns if (cell, c) in cells},
                study=None if pd.isna(study) else study,
                number=None if number is pd.NA else int(number),
                part=part,
                cell=int(cell),
            )
            for cell, arm, study, number, part, setting in zip(
                described["cell"],
                described["arm"],
                described["study"],
                described["number"],
                described["part"],
                settings or ((),) * len(described),
                strict=True,
            )
        ),
    )


def _cells(rows: pd.DataFrame, ddof: int) -> dict[tuple[int, str], Cell]:
    missing = defaultdict(list)
    absent = rows[rows["value"].isna()]
    for cell, group, seed, trial, status, reason in zip(
        absent["cell"],
        absent["group"],
        absent["seed"],
        absent["trial"],
        absent["status"],
        absent["reason"],
        strict=True,
    ):
        named = UNDEFINED if status == "ok" else status
        missing[cell, group].append(Missing(int(seed), trial, named, reason))
    grouped = rows.groupby(["cell", "group"], observed=True, sort=False)["value"]
    planned, n, mean = grouped.size(), grouped.count(), grouped.mean()
    std = grouped.std(ddof=ddof)
    return {
        key: Cell(
            mean=None if count == 0 else average,
            std=None if count < 2 else spread,
            n=count,
            planned=size,
            ddof=ddof,
            missing=tuple(missing.get(key, ())),
        )
        for key, size, count, average, spread in zip(
            planned.index, planned.tolist(), n.tolist(), mean.tolist(), std.tolist(), strict=True
        )
    }
