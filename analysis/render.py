"""Tables as text: for a terminal, Markdown, CSV and JSON.

For people, rates are in percent with two decimals, as the field prints them, and whatever is
missing is said in the cell and explained below the table. For programs, CSV and JSON hold the raw
values at full precision. Names come from users and errors from methods, so each format escapes
them: nothing in a name is markup, and people get no character that they cannot see.

The layout for terminals is our own: a table of 2000 rows takes rich two seconds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from rich.cells import cell_len
from rich.style import Style

from analysis.frame import KNOB, MEAN, NOT_RUN, SKIPPED
from analysis.searches import Searched, how_far, is_optimistic
from analysis.tables import UNDEFINED, Cell, Missing, Row, Table
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import POOLED
from hdsweep.planned import cell_name, knob_text
from hdsweep.trial import FORMAT
from hdsweep.values import why_not

Format = Literal["terminal", "md", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)

_SPREAD = {
    0: "population standard deviation (ddof = 0)",
    1: "sample standard deviation (ddof = 1)",
}
_MOST_NOTES = 20  # people stop reading; CSV and JSON list all


def render(
    tables: Sequence[Table],
    form: str = "terminal",
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """Write tables one after the other.

    Args:
        tables: Of one sweep, usually one per metric.
        form: One of FORMATS.
        width: Columns of the terminal: a table that is wider is continued below with its other
            groups, never cut. None writes each on lines as long as it takes.
        color: Whether the terminal shows ANSI styles.

    Returns:
        Text that ends with a newline.

        People are shown the best configurations of each search; CSV and JSON hold all.

        CSV has a line per table, row and column: metric, arm, study, number, part, one
        ``knob.<name>`` per knob, group, mean, std, n, planned, ddof, one column per status of what
        is missing, and reasons.

        JSON is ``{"format": 1, "tables": [{"sweep", "metric", "definition", "is_rate",
        "larger_is_better", "ddof", "columns", "rows": [{"arm", "knobs": {name: value}, "cells":
        {column: {"mean", "std", "n", "planned", "ddof", "status": {status: count}, "missing":
        [{"seed", "trial", "status", "reason"}]}}, "study", "number", "part"}], "searches":
        [{"study", "arm", "knobs", "sampler", "objectives", "trials", "drawn", "complete", "pruned",
        "failed", "front", "best": [number]}], "select"}]}``; keys are only ever added.

    Raises:
        SpecError: Another format.
    """
    if form == "terminal":
        return "\n".join(_terminal(table.for_people(), width, color) for table in tables)
    if form == "md":
        return "\n".join(_markdown(table.for_people()) for table in tables)
    if form == "csv":
        return _csv(tables)
    if form == "json":
        return _json(tables)
    raise SpecError(f"unknown format '{form}'{did_you_mean(form, FORMATS)}")


# --- what people read -----------------------------------------------------------------------------


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
    scale, decimals = (100, 2) if is_rate else (1, _decimals(cell.mean))
    text = f"{scale * cell.mean:.{decimals}f}"
    if cell.std is not None:
        text += f"±{scale * cell.std:.{decimals}f}"
    if cell.n < cell.planned:
        return f"{text} (n={cell.n}/{cell.planned})"
    return f"{text} (n={cell.n})" if show_n else text


def _decimals(value: float) -> int:
    # Four significant digits, whatever the unit.
    return min(max(3 - math.floor(math.log10(abs(value))), 0), 12) if value else 2


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _grid(table: Table) -> tuple[list[str], list[list[str]], int]:
    """Header, rows, and how many columns on the left name the row."""
    knobs = list(dict.fromkeys(name for row in table.rows for name in row.knobs))
    shown = _shown(table)
    show_n = len({cell.planned for row in table.rows for cell in row.cells.values()}) > 1
    header = ["arm", *knobs, *(shown if table.is_rate else [table.metric])]
    rows = [
        [
            cell_name(row.arm, {}, row.number),
            *(_knob(row.knobs[name], row) if name in row.knobs else "" for name in knobs),
            *(cell_text(row.cells[column], table.is_rate, show_n) for column in shown),
        ]
        for row in table.rows
    ]
    return (
        [_visible(text) for text in header],
        [[_visible(text) for text in row] for row in rows],
        1 + len(knobs),
    )


def _shown(table: Table) -> list[str]:
    # With a single group the mean over groups is that group again.
    return [c for c in table.columns if c != MEAN or len(table.columns) != 2]


def _knob(value: object, row: Row) -> str:
    drawn = row.number is not None
    return (
        f"{value:.6g}" if isinstance(value, float) and not drawn else knob_text(value, drawn=drawn)
    )


def _title(table: Table) -> str:
    direction = {True: ", larger is better", False: ", smaller is better", None: ""}
    unit = " in %" if table.is_rate else ""
    return f"{_visible(table.metric)}{unit}{direction[table.larger_is_better]}"


def _caption(table: Table) -> list[str]:
    cells = [cell for row in table.rows for cell in row.cells.values()]
    planned = sorted({cell.planned for cell in cells})
    seeds = f"{planned[0]} seeds" if len(planned) == 1 else "n seeds"
    if any(0 < cell.n < cell.planned for cell in cells):
        seeds += ", fewer where marked"
    lines = []
    if any(cell.std is not None for cell in cells):
        lines.append(f"mean ± {_SPREAD[table.ddof]} over {seeds}")
    elif any(cell.mean is not None for cell in cells):
        lines.append("one seed per value, so no spread is known")
    if MEAN in _shown(table) and table.is_rate:
        lines.append(
            f"{MEAN}: over groups, weighted equally, within each trial; missing if a group is"
        )
    if POOLED in _shown(table):
        lines.append(f"{POOLED}: over the items of all groups together, each item once")
    if table.definition:
        lines.append(f"{_visible(table.metric)}: {table.definition}")
    return lines + [_visible(text) for text in _searched(table)] + _notes(table)


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
        *(f"  {_visible(note)}" for note in notes[:_MOST_NOTES]),
        *([f"  and {more} more, listed by the formats csv and json"] if more > 0 else []),
    ]


def _name(row: Row) -> str:
    knobs = (f"{name}={_knob(value, row)}" for name, value in row.knobs.items())
    return " ".join([cell_name(row.arm, {}, row.number), *knobs])


def _visible(text: str) -> str:
    """Control characters, line ends and invisible marks as escapes, the rest as it is."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _terminal(table: Table, width: int | None, color: bool) -> str:
    header, rows, left = _grid(table)
    lined_up = [
        _left(column) if place < left else _right(column)
        for place, column in enumerate(zip(header, *rows, strict=True))
    ]
    header, *rows = map(list, zip(*lined_up, strict=True))
    widths = list(map(cell_len, header))

    def styled(text: str, style: str) -> str:
        return Style.parse(style).render(text) if color else text

    lines = [styled(_title(table), "bold"), ""]
    for columns in _blocks(widths, left, width):
        first, *others = ("  ".join(row[c] for c in columns).rstrip() for row in (header, *rows))
        lines += [styled(first, "bold"), *others, ""]
    lines += [styled(text, "dim") for text in _caption(table)]
    return "\n".join(lines) + "\n"


def _space(width: int, text: str) -> str:
    return " " * (width - cell_len(text))


def _left(texts: Sequence[str]) -> list[str]:
    width = max(map(cell_len, texts))
    return [text + _space(width, text) for text in texts]


def _right(texts: Sequence[str]) -> list[str]:
    """Values under values: what follows them in parentheses has a column of its own."""
    header, *cells = texts
    split = [(number, space + rest) for number, space, rest in (t.partition(" (") for t in cells)]
    value = max((cell_len(number) for number, _ in split), default=0)
    after = max((cell_len(rest) for _, rest in split), default=0)
    value = max(value, cell_len(header) - after)
    title = _space(value, header) + header
    return [
        title + _space(value + after, title),
        *(_space(value, number) + number + rest + _space(after, rest) for number, rest in split),
    ]


def _blocks(widths: Sequence[int], left: int, width: int | None) -> Iterator[list[int]]:
    """Columns of each block that fits the width; all start with the names of the rows."""
    names = list(range(left))
    block: list[int] = []
    for column in range(left, len(widths)):
        wanted = sum(widths[c] + 2 for c in [*names, *block, column]) - 2
        if block and width is not None and wanted > width:
            yield names + block
            block = []
        block.append(column)
    yield names + block


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def _markdown(table: Table) -> str:
    header, rows, left = _grid(table)

    def escaped(text: str) -> str:
        return _MARKUP.sub(r"\\\g<0>", text)

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    caption = [
        f"  - {escaped(text.strip())}" if text.startswith("  ") else f"- {escaped(text)}"
        for text in _caption(table)
    ]
    lines = [
        f"**{escaped(_title(table))}**",
        "",
        line([escaped(text) for text in header]),
        line([":--"] * left + ["--:"] * (len(header) - left)),
        *(line([escaped(text) for text in row]) for row in rows),
        "",
        *caption,
    ]
    return "\n".join(lines) + "\n"


# --- what programs read ---------------------------------------------------------------------------

_MISSING = ("failed", "diverged", "pruned", NOT_RUN, UNDEFINED, "infeasible", SKIPPED)


def _csv(tables: Sequence[Table]) -> str:
    knobs = list(dict.fromkeys(k for table in tables for row in table.rows for k in row.knobs))
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    counts = [kind.replace(" ", "_") for kind in _MISSING]
    numbers = ["mean", "std", "n", "planned", "ddof"]
    named = [KNOB + name for name in knobs]
    drawn = ["study", "number", "part"]
    writer.writerow(["metric", "arm", *drawn, *named, "group", *numbers, *counts, "reasons"])
    for table in tables:
        for row in table.rows:
            settings = [row.knobs.get(name) for name in knobs]
            for column, cell in row.cells.items():
                reasons = "; ".join(f"seed {m.seed}: {m.status}: {m.reason}" for m in cell.missing)
                status = cell.status
                counted = [status.get(kind, 0) for kind in _MISSING]
                values = [getattr(cell, name) for name in numbers]
                by = [getattr(row, name) for name in drawn]
                name = [table.metric, row.arm, *by, *settings, column]
                writer.writerow([*name, *values, *counted, reasons])
    return output.getvalue()


def _json(tables: Sequence[Table]) -> str:
    value = {"format": FORMAT, "tables": [_json_table(table) for table in tables]}
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    return _fields(table) | {
        "is_rate": table.is_rate,
        "rows": [
            _fields(row) | {"cells": {name: _json_cell(cell) for name, cell in row.cells.items()}}
            for row in table.rows
        ],
        "searches": [_fields(search) for search in table.searches],
    }


def _json_cell(cell: Cell) -> dict[str, Any]:
    return _fields(cell) | {
        "status": cell.status,
        "missing": [_fields(trial) for trial in cell.missing],
    }


def _fields(value: Table | Row | Cell | Missing | Searched) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, which takes a second for 2000 rows
    return {name: getattr(value, name) for name in value.__slots__}
