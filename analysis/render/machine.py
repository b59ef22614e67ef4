"""Reports for programs: CSV and JSON hold raw values at full precision, and all that was drawn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from analysis.ablations import ABSENT, Ablation
from analysis.frame import KNOB, NOT_RUN, SKIPPED
from analysis.summary import Summary
from analysis.tables import UNDEFINED, Cell, Table
from hdsweep.errors import SpecError
from hdsweep.trial import FORMAT

_MISSING = ("failed", "diverged", "pruned", NOT_RUN, UNDEFINED, "infeasible", SKIPPED)


def csv_of(tables: Sequence[Table]) -> str:
    """A line per table, row and column."""
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


def csv_kind(summary: Summary, kinds: Sequence[str]) -> str:
    """One kind of table of a summary: results as ``csv_of``, others a line per row.

    Raises:
        SpecError: Several kinds, whose lines have not the same columns.
    """
    if len(kinds) != 1:
        raise SpecError(f"a CSV file holds one kind of table, found {', '.join(kinds)}; name one")
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "comparison": lambda: [_fields(row) for row in summary.comparisons.rows],
        "ablation": lambda: [line for one in summary.ablations for line in _ablated(one)],
        "criteria": lambda: [_fields(one) for one in summary.criteria],
        "costs": lambda: [_fields(one) for one in summary.costs],
    }
    return csv_of(summary.tables) if kinds[0] == "results" else _csv_rows(rows[kinds[0]]())


def _csv_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    flat = [_flat(row) for row in rows]
    output = io.StringIO()
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(output, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return output.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Inner ones as ``name.inner``, knobs as ``knob.name``; lists in one cell."""
    found: dict[str, Any] = {}
    for name, given in row.items():
        value = _fields(given) if hasattr(given, "__dataclass_fields__") else given
        if isinstance(value, Mapping):
            prefix = KNOB if name == "knobs" else f"{name}."
            found |= {prefix + inner: one for inner, one in value.items()}
        else:
            found[name] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return found


def _ablated(found: Ablation) -> list[dict[str, Any]]:
    lines = []
    crossed = len(found.knobs) == 2
    for down, row in zip(found.down, found.cells, strict=True):
        for across, cell in zip(found.across, row, strict=True):
            if cell is None:
                continue
            knobs = {**found.fixed, found.knobs[0]: down}
            if crossed:
                knobs[found.knobs[1]] = across
            knobs = {name: value for name, value in knobs.items() if value is not ABSENT}
            metric = found.tables[0].metric if crossed else across
            line = {"arm": found.arm, "over": found.knobs, "metric": metric, "knobs": knobs}
            values = {name: getattr(cell, name) for name in ("mean", "std", "n", "planned", "ddof")}
            lines.append(line | values | {"best": cell.best, "behind": cell.behind})
    return lines


def json_of(tables: Sequence[Table], summary: Summary | None = None) -> str:
    """One object; keys are only ever added.

    Args:
        tables: Of a sweep.
        summary: What else there is to say of it.
    """
    value: dict[str, Any] = {"format": FORMAT, "tables": [_json_table(table) for table in tables]}
    if summary is not None:
        value |= _json_summary(summary)
    return _text(value) + "\n"


def _json_summary(summary: Summary) -> dict[str, Any]:
    compared = summary.comparisons
    return {
        "sweep": summary.sweep,
        "question": summary.question,
        "answer": list(summary.answer),
        "counts": dict(summary.counts),
        "baseline": compared.baseline or None,
        "alpha": compared.alpha,
        "comparisons": [_fields(row) for row in compared.rows],
        "why_no_comparisons": compared.why_none,
        "notes": list(compared.notes),
        "ablations": [_json_ablation(one) for one in summary.ablations],
        "criteria": [_fields(one) for one in summary.criteria],
        "costs": [_fields(one) for one in summary.costs],
        "differs": [_fields(one) for one in summary.differs],
        "provenance": dict(summary.provenance),
        "imported": list(summary.imported),
        "commands": list(summary.commands),
    }


def _json_ablation(found: Ablation) -> dict[str, Any]:
    cells = [[None if cell is None else _json_cell(cell) for cell in row] for row in found.cells]
    metrics = [table.metric for table in found.tables]
    value = {"arm": found.arm, "knobs": found.knobs, "fixed": found.fixed, "metrics": metrics}
    return value | {"down": found.down, "across": found.across, "cells": cells}


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


def _fields(value: Any) -> dict[str, Any]:
    """Of a dataclass, and not of those within; ``asdict`` copies deeply, which takes seconds."""
    return {name: getattr(value, name) for name in value.__slots__}


def _text(value: Mapping[str, Any]) -> str:
    """JSON; what is no number is null."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a character, of a file name that is not UTF-8
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_fields)
