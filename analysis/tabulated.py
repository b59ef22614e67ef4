"""The sheet of a main table, and of ablations: mean±std, every hole named, the best in bold.

Rates are in percent with two decimals, as the field prints them; whatever is missing is said in
the cell and explained below the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis.ablations import Ablation
from analysis.frame import MEAN
from analysis.searches import how_far, is_optimistic
from analysis.sheets import DAGGER, Sheet, Shown, precision, significant
from analysis.tables import Cell, Missing, Row, Table
from hdsweep.metrics import POOLED
from hdsweep.planned import cell_name, knob_text
from hdsweep.values import why_not

_SPREAD = {
    0: "population standard deviation (ddof = 0)",
    1: "sample standard deviation (ddof = 1)",
}
_MOST_NOTES = 20  # people stop reading; CSV and JSON list all
_MARKS = (
    "bold, or * in plain text: best of its column, of complete ones with two seeds or more",
    (
        f"{DAGGER}: not significantly different from the best, or untested (paired t, Holm by "
        "column; verdicts are corrected for more tests)"
    ),
)


def results(table: Table) -> Sheet:
    """Arms and knobs down, groups across.

    Args:
        table: All rows are shown; see ``Table.for_people``.
    """
    knobs = list(dict.fromkeys(name for row in table.rows for name in row.knobs))
    columns = _shown(table)
    show_n = len({cell.planned for row in table.rows for cell in row.cells.values()}) > 1
    return Sheet(
        kind="results",
        title=title(table),
        header=("arm", *knobs, *(columns if table.is_rate else [table.metric])),
        left=1 + len(knobs),
        rows=tuple(
            (
                Shown(cell_name(row.arm, {}, row.number)),
                *(_of_knob(row.knobs.get(name), row, name in row.knobs) for name in knobs),
                *(_of_cell(row.cells[column], table.is_rate, show_n) for column in columns),
            )
            for row in table.rows
        ),
        caption=tuple(_caption(table)),
        metric=table.metric,
    )


def ablation(found: Ablation) -> Sheet:
    """Values of a knob down; metrics, or values of a second knob, across."""
    first = found.tables[0]
    crossed = len(found.knobs) == 2
    over = " and ".join(found.knobs)
    fixed = f", {cell_name('', found.fixed).strip()}" if found.fixed else ""
    what = f"{title(first)}: " if crossed else ""
    rated = [table.is_rate for table in found.tables] * (len(found.across) if crossed else 1)
    header = [
        (f"{found.knobs[1]}={knob_text(value, drawn=False)}" if crossed else title(table))
        for value, table in zip(
            found.across, found.tables * (len(found.across) if crossed else 1), strict=True
        )
    ]
    cells = [cell for row in found.cells for cell in row if cell is not None]
    show_n = len({cell.planned for cell in cells}) > 1
    where = first.columns[0]
    return Sheet(
        kind="ablation",
        title=f"{what}{found.arm}{fixed} over {over}",
        header=(found.knobs[0], *header),
        left=1,
        rows=tuple(
            (
                _of_value(value),
                *(
                    Shown("·", hint="the sweep has no such configuration")
                    if cell is None
                    else _of_cell(cell, is_rate, show_n)
                    for cell, is_rate in zip(row, rated, strict=True)
                ),
            )
            for value, row in zip(found.down, found.cells, strict=True)
        ),
        caption=(
            *_spread(cells, first.ddof),
            *(
                [f"{where}: over groups{', as the imported file says' * first.own_means}"]
                if where == MEAN
                else [f"group {where}"]
            ),
            *_explained(cells),
        ),
        metric=first.metric if crossed else "",
    )


def cell_text(cell: Cell, is_rate: bool, show_n: bool = False) -> str:
    """``94.12±0.17``, with ``(n=3/5)`` when seeds are missing, or a dash and why.

    Args:
        cell: To show.
        is_rate: Whether to show percent.
        show_n: Whether to name n even when no seed is missing.
    """
    if cell.mean is None:
        kinds = Counter(trial.status for trial in cell.missing)
        return f"— ({_counted(kinds) if len(kinds) > 1 else ''.join(kinds) or 'not planned'})"
    scale, decimals = precision(cell.mean, is_rate)
    text = f"{scale * cell.mean:.{decimals}f}"
    if cell.std is not None:
        text += f"±{scale * cell.std:.{decimals}f}"
    if cell.n < cell.planned:
        return f"{text} (n={cell.n}/{cell.planned})"
    return f"{text} (n={cell.n})" if show_n else text


def number(value: float | None, scale: float, decimals: int | None = None) -> Shown:
    """A number for people, or a dash.

    Args:
        value: To show.
        scale: 100 for rates, which have two decimals.
        decimals: In place of those; by default four significant digits.
    """
    if value is None:
        return Shown("—")
    places = (2 if scale != 1.0 else significant(value)) if decimals is None else decimals
    text = f"{scale * value:.{places}f}"
    return Shown(text.removeprefix("-") if float(text) == 0 else text, value)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _of_cell(cell: Cell, is_rate: bool, show_n: bool = False) -> Shown:
    reasons = "; ".join(f"seed {m.seed}: {m.status}: {m.reason}" for m in cell.missing)
    return Shown(
        cell_text(cell, is_rate, show_n),
        value=cell.mean,
        best=cell.best,
        mark=DAGGER if cell.behind is False else "",
        hint=reasons,
    )


def _of_knob(value: object, row: Row, has: bool) -> Shown:
    return Shown(_knob(value, row), _sortable(value)) if has else Shown("")


def _of_value(value: object) -> Shown:
    return Shown(
        f"{value:.6g}" if isinstance(value, float) else knob_text(value, drawn=False),
        _sortable(value),
    )


def _sortable(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _shown(table: Table) -> list[str]:
    # With a single group the mean over groups is that group again.
    return [c for c in table.columns if c != MEAN or len(table.columns) != 2]


def _knob(value: object, row: Row) -> str:
    drawn = row.number is not None
    return (
        f"{value:.6g}" if isinstance(value, float) and not drawn else knob_text(value, drawn=drawn)
    )


def title(table: Table) -> str:
    """As in ``auroc in %, larger is better``."""
    direction = {True: ", larger is better", False: ", smaller is better", None: ""}
    unit = " in %" if table.is_rate else ""
    return f"{table.metric}{unit}{direction[table.larger_is_better]}"


def _spread(cells: Sequence[Cell], ddof: int) -> list[str]:
    planned = sorted({cell.planned for cell in cells})
    seeds = f"{planned[0]} seeds" if len(planned) == 1 else "n seeds"
    if any(0 < cell.n < cell.planned for cell in cells):
        seeds += ", fewer where marked"
    if any(cell.std is not None for cell in cells):
        return [f"mean ± {_SPREAD[ddof]} over {seeds}"]
    if any(cell.mean is not None for cell in cells):
        return ["one seed per value, so no spread is known"]
    return []


def _explained(cells: Sequence[Cell]) -> list[str]:
    marks = [any(cell.best for cell in cells), any(cell.behind is False for cell in cells)]
    return [text for text, used in zip(_MARKS, marks, strict=True) if used]


def _caption(table: Table) -> list[str]:
    cells = [cell for row in table.rows for cell in row.cells.values()]
    lines = _spread(cells, table.ddof)
    if MEAN in _shown(table) and table.is_rate:
        own = "as the imported file says; where it does not, " if table.own_means else ""
        lines.append(
            f"{MEAN}: {own}over groups, weighted equally, within each trial; missing if a group is"
        )
    if POOLED in _shown(table):
        lines.append(f"{POOLED}: over the items of all groups together, each item once")
    if table.definition:
        lines.append(f"{table.metric}: {table.definition}")
    shown = [row.cells[column] for row in table.rows for column in _shown(table)]
    return [*lines, *_explained(shown), *_searched(table), *_notes(table)]


def _searched(table: Table) -> list[str]:
    """How what a search drew came to be in the table."""
    chosen = any(row.part == "confirm" for row in table.rows)
    said = f"chosen by {table.select}" if chosen else is_optimistic(table.searches)
    return ([said] if said else []) + [
        how_far(search, shown=not chosen) for search in table.searches
    ]


def _notes(table: Table) -> list[str]:
    """How many of the planned trials are not in the table, which and why."""
    kinds: Counter[str] = Counter()
    notes = []
    trials = 0
    for row in table.rows:
        trials += max((cell.planned for cell in row.cells.values()), default=0)
        columns: dict[Missing, list[str]] = {}
        for column in sorted(row.cells, key=lambda c: c == MEAN):
            for trial in row.cells[column].missing:
                if column == MEAN and any(other.seed == trial.seed for other in columns):
                    continue  # said of its groups
                columns.setdefault(trial, []).append(column)
        kinds.update(kind for _, kind in {(trial.seed, trial.status) for trial in columns})
        seeds: dict[str, list[int]] = {}
        everywhere = len([c for c in row.cells if c != MEAN]) or 1
        for trial, names in columns.items():
            where = "" if len(names) == everywhere else f", {', '.join(names)}"
            obvious = trial.reason == why_not(None)
            why = trial.status if obvious else f"{trial.status}: {trial.reason}"
            seeds.setdefault(f"{where}: {why}", []).append(trial.seed)
        for what, which in seeds.items():
            plural = "seed" if len(which) == 1 else "seeds"
            notes.append(f"{_name(row)}, {plural} {', '.join(map(str, which))}{what}")
    if not notes:
        return []
    more = len(notes) - _MOST_NOTES
    return [
        f"{sum(kinds.values())} of {trials} trials missing: {_counted(kinds)}",
        *(f"  {note}" for note in notes[:_MOST_NOTES]),
        *([f"  and {more} more, listed by the formats csv and json"] if more > 0 else []),
    ]


def _name(row: Row) -> str:
    knobs = (f"{name}={_knob(value, row)}" for name, value in row.knobs.items())
    return " ".join([cell_name(row.arm, {}, row.number), *knobs])
