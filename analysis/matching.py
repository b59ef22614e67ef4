"""Which configuration, metric and group a printed cell is about.

Rows are found by the names that papers give them: ``TopK (q=5)``, or an arm beside its knobs. What
is found nowhere is told with the nearest name, and may be said by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from analysis.frame import MEAN
from analysis.naming import (
    MARKS,
    NOTHING,
    Columns,
    Named,
    Names,
    group_of,
    metric_in,
    metric_of,
    short,
)
from analysis.pairing import Configuration
from analysis.printed import Printed, PrintedRow, PrintedTable, decimal, read_cell, unit_of
from hdsweep.errors import SpecError, did_you_mean


@dataclass(frozen=True, slots=True)
class Place:
    """A printed cell and what it is about.

    Args:
        line: Of the file.
        row: Label of its row, as printed.
        column: Label of its column.
        text: As printed.
        printed: As numbers.
        metric: Canonical, without group; empty where it is not known.
        group: One of the data, POOLED or MEAN.
        configuration: None where there is none of that name.
        why: Why it cannot be judged, in words; empty where it can.
    """

    line: int
    row: str
    column: str
    text: str
    printed: Printed
    metric: str
    group: str
    configuration: Configuration | None
    why: str = ""


def places(
    table: PrintedTable,
    columns: Columns,
    names: Names,
    known: Sequence[Configuration],
    named: Named,
) -> Iterator[Place]:
    """Every cell of a table that says something.

    Args:
        table: As it is printed.
        columns: What ``columns_of`` made of it.
        names: What there is to be named.
        known: Configurations of the sweep.
        named: What the caller says.
    """
    spoken = _spoken(table, names, named)
    labels = [" ".join(column) for column in table.columns]
    for row in table.rows:
        texts = {place: row.cells[place].strip() for place in columns.values}
        if not any(c.isdigit() for text in texts.values() for c in text):
            continue  # the heading of a part, or a row of holes
        label = _label(row, columns)
        found = _configuration(row, label, columns, known, named)
        if found is None:
            continue
        for place, text in texts.items():
            if text.lower().partition(" ")[0] in NOTHING:
                continue
            metric, group, why = _about(row, place, columns, names)
            yield Place(
                line=row.line,
                row=label,
                column=_column(labels[place], row, columns),
                text=text,
                printed=_printed(row, place, columns),
                metric=metric or ("" if why else spoken),
                group=group or MEAN,
                configuration=None if isinstance(found, str) else found,
                why=found if isinstance(found, str) else why,
            )


def _spoken(table: PrintedTable, names: Names, named: Named) -> str:
    """The metric of cells that name none."""
    if (metric := metric_in(table.title, names)) is not None:
        return metric
    if named.metric and (told := metric_of(named.metric, names)) is not None:
        return told[0]
    return names.metrics[0] if len(names.metrics) == 1 else ""


def _about(
    row: PrintedRow, place: int, columns: Columns, names: Names
) -> tuple[str | None, str | None, str]:
    """Metric and group of a cell, as far as its column and row say them, and what is wrong."""
    metric, group = columns.values[place]
    why = ""
    written = _cell(row, columns.roles.get("metric"))
    if metric is None and written:
        if (told := metric_of(written, names)) is None:
            why = f"no metric '{written}'"
        else:
            metric, group = told[0], told[1] or group
    written = _cell(row, columns.roles.get("group"))
    if group is None and written:
        group = group_of(written, names)
        if group is None:
            near = did_you_mean(written, (*names.groups, MEAN))
            why = why or f"the data has no group '{written}'{near}"
    return metric, group, why


def _cell(row: PrintedRow, place: int | None) -> str:
    return "" if place is None else row.cells[place].strip()


def _label(row: PrintedRow, columns: Columns) -> str:
    words = [_cell(row, columns.roles.get("arm"))]
    if number := _cell(row, columns.roles.get("number")):
        words.append(f"#{number}")
    words += [
        f"{knob}={text}"
        for place, knob in sorted(columns.knobs.items())
        if (text := row.cells[place].strip()) and text.lower() not in NOTHING
    ]
    return " ".join(word for word in words if word) or f"line {row.line}"


def _column(label: str, row: PrintedRow, columns: Columns) -> str:
    where = [_cell(row, columns.roles.get(role)) for role in ("metric", "group")]
    said = " ".join(word for word in where if word)
    return f"{said} {label}" if said and "mean" not in columns.roles else said or label


def _printed(row: PrintedRow, place: int, columns: Columns) -> Printed:
    found = read_cell(row.cells[place])
    if (beside := columns.spreads.get(place)) is not None:
        found = replace(found, spread=decimal(row.cells[beside].strip(f" {MARKS}±%")))
    if (count := _cell(row, columns.roles.get("n"))).isdecimal() and len(count) < 10:
        found = replace(found, n=int(count))
    return found


def _configuration(
    row: PrintedRow,
    label: str,
    columns: Columns,
    known: Sequence[Configuration],
    named: Named,
) -> Configuration | str | None:
    """The one of a row, or why there is none; None for one that is not to be looked at."""
    arm = _cell(row, columns.roles.get("arm"))
    told = {short(text): name for text, name in named.rows.items()}
    name = told.get(short(label), told.get(short(arm)))
    if name == "-":
        return None
    if name is not None:
        return next(one for one in known if one.name == configuration(name, known).name)
    number = _cell(row, columns.roles.get("number"))
    wanted = {knob: row.cells[place].strip() for place, knob in columns.knobs.items()}
    fitting = [one for one in known if not number or str(one.number) == number]
    exact = [one for one in fitting if _has(one.knobs, wanted, strict=True)]
    for some in (exact, [one for one in fitting if _has(one.knobs, wanted, strict=False)]):
        if not arm and len(some) == 1:
            return some[0]
        found = _called(arm, some)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"'{one.name}'" for one in found[:3])
            more = ", ..." if len(found) > 3 else ""
            return f"'{label}' may be {listed}{more}; say which by --rows '{label}=...'"
    near = did_you_mean(label, [one.name for one in known[:200]])
    return f"no configuration '{label}'{near}"


def configuration(name: str, known: Sequence[Configuration]) -> Configuration:
    """The configuration of that name, as ``topk q=5`` or the arm where it has one.

    Raises:
        SpecError: There is none, or several.
    """
    found = _called(name, known)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"'{one.name}'" for one in found[:3])
        raise SpecError(f"'{name}' may be {listed}{', ...' if len(found) > 3 else ''}; name one")
    near = did_you_mean(name, {text for one in known[:200] for text in (one.arm, one.name)})
    raise SpecError(f"no configuration '{name}'{near}")


def _called(name: str, some: Sequence[Configuration]) -> list[Configuration]:
    """Those that have a name: to the letter, or else as people write it; in full, or the arm."""
    plain = short(name)
    return next(
        filter(
            None,
            (
                [one for one in some if name in (one.name, one.arm)],
                [one for one in some if plain and plain in _ways(one)],
                [one for one in some if plain and plain == short(one.arm)],
            ),
        ),
        [],
    )


def _ways(one: Configuration) -> set[str]:
    """Ways to write a configuration in full."""
    bare = [str(value) for value in one.knobs.values()]
    drawn = "" if one.number is None else f"{one.arm} #{one.number}"
    numbered = [short(drawn), short(one.name.replace(drawn, one.arm, 1))] if drawn else []
    return {short(one.name), short(" ".join([one.arm, *bare])), *numbered}


def _has(knobs: Mapping[str, Any], wanted: Mapping[str, str], *, strict: bool) -> bool:
    """Whether knobs are what a row prints; a blank is a knob that an arm has not, or any if lax."""
    for knob, text in wanted.items():
        if text.lower() in NOTHING:
            if strict and knob in knobs:
                return False
        elif knob not in knobs or not _reads(knobs[knob], text):
            return False
    return True


def _reads(value: object, text: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() == text.lower()
    number = decimal(text)
    if number is None:
        return False
    # As many digits as are printed; 5 is 5.0, and 0.003162 may be 0.0031623.
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    half = unit_of(number) / 2 if unit_of(number) < 1 else Decimal(0)
    return abs(exact - number) <= half
