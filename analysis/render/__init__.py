"""Reports as text: for a terminal, Markdown, LaTeX, CSV and JSON.

For people, sheets are written down; for programs, CSV and JSON hold the raw values at full
precision. Names come from users and errors from methods, so each format escapes them: nothing in a
name is markup, and people get no character that they cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from analysis.render.latex import HEADER, latex
from analysis.render.machine import csv_kind, csv_of, json_of
from analysis.render.markdown import escaped, markdown
from analysis.render.plain import visible
from analysis.render.terminal import terminal, wrapped
from analysis.sheets import Sheet
from analysis.tables import Table
from analysis.tabulated import cell_text, results
from hdsweep.errors import SpecError, did_you_mean

__all__ = ["FORMATS", "Format", "cell_text", "csv_kind", "json_of", "render", "said", "write"]

Format = Literal["terminal", "md", "tex", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


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
    if form == "csv":
        return csv_of(tables)
    if form == "json":
        return json_of(tables)
    return write([results(table.for_people()) for table in tables], form, width=width, color=color)


def write(
    sheets: Sequence[Sheet],
    form: str = "terminal",
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """Write sheets one after the other; arguments are those of ``render``.

    Raises:
        SpecError: No format for people.
    """
    if form == "terminal":
        return "\n".join(terminal(sheet, width, color) for sheet in sheets)
    if form == "md":
        return "\n".join(map(markdown, sheets))
    if form == "tex":
        labels = (f"{sheet.kind}-{n}" for n, sheet in enumerate(sheets, 1))
        return HEADER + "\n".join(map(latex, sheets, labels))
    raise SpecError(f"unknown format '{form}'{did_you_mean(form, FORMATS)}")


def said(sentences: Sequence[str], form: str, *, width: int | None = None) -> str:
    """Sentences, one below the other, for a terminal of so many columns or Markdown."""
    if form == "md":
        lines = [f"- {escaped(text)}" for text in sentences]
    else:
        lines = [line for text in sentences for line in wrapped(visible(text), width)]
    return "".join(f"{line}\n" for line in lines)
