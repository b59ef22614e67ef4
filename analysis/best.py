"""Which cells of a table are set in bold, and which cannot be told from them.

Bold is the best of what is complete, at the precision that is printed: values that look alike are
bold alike. One seed, or a mean over fewer seeds than were planned, is never best. What a paired
test over seeds does not tell from the best gets a dagger; a reader shall not take the bold number
for the only good one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compare import holm, pairs
from analysis.sheets import precision
from analysis.tables import Cell, Row, Table
from hdsweep.metrics import parse_metric

_LEVEL = 0.05


def marked(table: Table, frame: pd.DataFrame) -> Table:
    """The table with ``best`` and ``behind`` in its cells, by column.

    Args:
        table: Of ``main_table``; any of its rows. Marks that it has are made anew.
        frame: What it was made of.
    """
    if table.larger_is_better is None or len(table.rows) < 2:
        return table
    metric = parse_metric(table.metric, (table.metric,)).key
    rows = frame[frame["metric"] == metric]
    places = [row.cell for row in table.rows]
    cells = [dict(row.cells) for row in table.rows]
    for column in table.columns:
        by_seed = _by_seed(rows[rows["group"] == column], places)
        for place, cell in _judged(table, column, by_seed).items():
            cells[place][column] = cell
    return replace(
        table,
        rows=tuple(replace(row, cells=own) for row, own in zip(table.rows, cells, strict=True)),
    )


def _by_seed(rows: pd.DataFrame, places: list[int]) -> NDArray[np.float64]:
    """Shape (places, seeds), NaN where there is no value."""
    cell = rows["cell"].to_numpy(dtype=np.intp)
    row_of = np.full(max(*places, int(cell.max(initial=0))) + 1, -1, dtype=np.intp)
    row_of[places] = np.arange(len(places))
    rows = rows[row_of[cell] >= 0]  # of other arms there are none here
    at = row_of[rows["cell"].to_numpy(dtype=np.intp)]
    seeds, seed = np.unique(rows["seed"].to_numpy(), return_inverse=True)
    wide = np.full((len(places), len(seeds)), np.nan)
    wide[at, seed] = rows["value"].to_numpy(dtype=np.float64)
    return wide


def _judged(table: Table, column: str, by_seed: NDArray[np.float64]) -> dict[int, Cell]:
    given = {
        n: replace(row.cells[column], best=False, behind=None)
        for n, row in enumerate(table.rows)
        if column in row.cells
    }
    sign = 1.0 if table.larger_is_better else -1.0
    worth = {
        n: sign * _printed(cell.mean, table.is_rate)
        for n, cell in given.items()
        if cell.mean is not None and cell.n >= 2 and cell.n == cell.planned
        if not is_optimistic(table.rows[n])
    }
    if not worth:
        return given
    top = max(worth.values())
    drawn = [
        sign * _printed(cell.mean, table.is_rate)
        for n, cell in given.items()
        if cell.mean is not None and is_optimistic(table.rows[n])
    ]
    if max(drawn, default=top) > top:
        return given  # what looks better may be so by luck alone; nothing is known to be best
    best = [n for n, value in worth.items() if value == top]
    reference = max(best, key=lambda n: sign * (given[n].mean or 0.0))
    others = [
        n
        for n, cell in given.items()
        if cell.mean is not None and n not in best and not is_optimistic(table.rows[n])
    ]
    found = given | {n: replace(given[n], best=True) for n in best}
    if others:
        tests = pairs(by_seed[others], by_seed[reference])
        apart = holm(tests.p) <= _LEVEL  # NaN, no test, is not apart
        worse = sign * tests.difference < 0
        for n, far, below in zip(others, apart.tolist(), worse.tolist(), strict=True):
            # What may not be bold, for a seed is missing, can be better than what is.
            found[n] = replace(given[n], behind=(True if below else None) if far else False)
    return found


def _printed(mean: float, is_rate: bool) -> float:
    scale, decimals = precision(mean, is_rate)
    return float(f"{scale * mean:.{decimals}f}")


def is_optimistic(row: Row) -> bool:
    """Whether it was chosen by the values that it shows, as what a search drew."""
    return row.number is not None and row.part != "confirm"
