"""Ablation tables: what one or two knobs of an arm do, all else equal.

Over one knob its values go down and metrics across; over two, one goes down, the other across, and
each metric has a table. Configurations of an arm that differ in further knobs are never averaged:
each setting of those has tables of its own. A configuration that lacks a knob, which depends on
another, stands under ``ABSENT``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.best import is_optimistic, marked
from analysis.frame import MEAN
from analysis.tables import Cell, Row, Table
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.identity import canonical_json

ABSENT = "—"
"""Stands for the value of a knob that a configuration does not have."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """One arm over one or two of its knobs.

    Args:
        arm: Its name.
        knobs: One, or the one that goes down and the one that goes across.
        fixed: Values of its other knobs, but for those that follow from the ones it is over.
        down: Values of the first knob, in order; ABSENT last.
        across: Values of the second, in order; names of metrics where there is one knob.
        cells: By ``down``, then ``across``; None where the sweep has no such configuration.
        tables: Of the metrics shown: of each that is across, or of the one that two knobs show.
    """

    arm: str
    knobs: tuple[str, ...]
    fixed: Mapping[str, Any]
    down: tuple[Any, ...]
    across: tuple[Any, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    tables: tuple[Table, ...]


def ablations(
    tables: Sequence[Table], frame: pd.DataFrame, knobs: Sequence[str] = ()
) -> tuple[Ablation, ...]:
    """Of every arm that lists several values of a knob.

    Args:
        tables: Of the sweep, one per metric.
        frame: What they were made of.
        knobs: One or two of them; by default those of arms that sweep no other.

    Raises:
        SpecError: A knob that no arm lists several values of, three of them, one twice, or two that
            no arm has.
    """
    if len(knobs) > 2:
        raise SpecError(f"an ablation is over one knob or two, found {', '.join(knobs)}")
    if len(set(knobs)) < len(knobs):
        raise SpecError(f"an ablation over two knobs names '{knobs[0]}' twice; name another")
    lines = frame.groupby("cell", sort=False).indices
    found: list[Ablation] = []
    swept: dict[str, None] = {}
    for arm in dict.fromkeys(row.arm for table in tables for row in table.rows):
        rows = [row for row in tables[0].rows if row.arm == arm and not is_optimistic(row)]
        own = [name for name in _names(rows) if len(_values(rows, name)) > 1]
        swept |= dict.fromkeys(own)
        wanted = list(knobs) if knobs else own
        if not wanted or len(wanted) > 2 or not set(wanted) <= set(own):
            continue
        settings: dict[bytes, list[Row]] = {}
        for row in rows:
            rest = [row.knobs.get(name, ABSENT) for name in own if name not in wanted]
            settings.setdefault(canonical_json(rest), []).append(row)
        for alike in settings.values():
            of_rows = frame.iloc[np.sort(np.concatenate([lines[row.cell] for row in alike]))]
            found += _over(tables, of_rows, arm, wanted, alike)
    for name in knobs:
        if name not in swept:
            raise SpecError(
                f"no arm lists several values of a knob '{name}'{did_you_mean(name, swept)}"
            )
    if knobs and not found:
        both = " and ".join(f"'{name}'" for name in knobs)
        raise SpecError(f"no arm has configurations that differ in {both} and in nothing else")
    return tuple(found)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.knobs))


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """Values of a knob: numbers in ascending order, before others in the order of the file."""
    found = {canonical_json(row.knobs[name]): row.knobs[name] for row in rows if name in row.knobs}
    values = list(found.values())
    numbers = [value for value in values if _is_number(value)]
    return sorted(numbers) + [value for value in values if not _is_number(value)]


def _all_values(rows: Sequence[Row], name: str) -> list[Any]:
    """The same, and ABSENT."""
    return _values(rows, name) + [ABSENT] * any(name not in row.knobs for row in rows)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over(
    tables: Sequence[Table],
    frame: pd.DataFrame,
    arm: str,
    knobs: Sequence[str],
    rows: Sequence[Row],
) -> list[Ablation]:
    places = {row.cell for row in rows}
    fixed = {
        name: value
        for name, value in rows[0].knobs.items()
        if name not in knobs and len({_key([row.knobs.get(name, ABSENT)]) for row in rows}) == 1
    }
    down, *across = (_all_values(rows, name) for name in knobs)
    if len(rows) < 2:
        return []
    own = []
    for table in tables:
        kept = replace(table, rows=tuple(row for row in table.rows if row.cell in places))
        # A metric that was asked for one group only has that column alone.
        columns = (MEAN,) if MEAN in kept.columns else kept.columns[:1]
        own.append(marked(replace(kept, columns=columns), frame))
    if len(knobs) == 1:
        known = [_by_setting(table, knobs) for table in own]
        cells = tuple(tuple(cells.get(_key([value])) for cells in known) for value in down)
        names = tuple(table.metric for table in own)
        return [Ablation(arm, tuple(knobs), fixed, tuple(down), names, cells, tuple(own))]
    found = []
    for table in own:
        settings = _by_setting(table, knobs)
        cells = tuple(tuple(settings.get(_key([x, y])) for y in across[0]) for x in down)
        found.append(
            Ablation(arm, tuple(knobs), fixed, tuple(down), tuple(across[0]), cells, (table,))
        )
    return found


def _by_setting(table: Table, knobs: Sequence[str]) -> dict[bytes, Cell | None]:
    """Values of knobs -> the cell in the first column of the first row that has them."""
    found: dict[bytes, Cell | None] = {}
    for row in table.rows:
        cell = row.cells.get(table.columns[0])
        found.setdefault(_key([row.knobs.get(name, ABSENT) for name in knobs]), cell)
    return found


def _key(values: Sequence[Any]) -> bytes:
    return canonical_json(list(values))
