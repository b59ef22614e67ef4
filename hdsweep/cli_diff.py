"""The command ``diff``: what differs between two reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hdsweep import views
from hdsweep.errors import SpecError
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption

_Report = Annotated[Path, typer.Argument(help="What hdsweep report --format json wrote.")]


def diff(
    first: _Report,
    second: _Report,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METRIC=]X",
            help="Differences up to X are none: as a fraction for all rates, or in the unit of a "
            "metric; repeatable. By default cells differ that print differently.",
        ),
    ] = None,
    format: FormatOption = Format.terminal,
) -> None:
    """Say what differs between two reports; exit status 1 where anything does.

    Example: hdsweep diff before.json after.json
    """
    from analysis.differing import sentences, sheets
    from analysis.regression import differences
    from analysis.render import said, write
    from analysis.reread import read_report

    of_all, of_metric = _tolerances(tolerance or ())
    found = differences(
        read_report(first), read_report(second), tolerance=of_all, tolerances=of_metric
    )
    if format is Format.json:
        views.print_json({"format": 1, **dataclasses.asdict(found)})
    else:
        out = Console()
        width = out.width if out.is_terminal else None
        color = out.is_terminal and out.color_system is not None
        tables = write(sheets(found), width=width, color=color)
        views.write(tables + "\n" * bool(tables) + said(sentences(found), "terminal"))
    raise typer.Exit(1 if found else 0)


def _tolerances(texts: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    of_all, of_metric = None, {}
    for text in texts:
        metric, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise SpecError(
                f"--tolerance {text}: write X or METRIC=X with X of 0 or more, as in 0.001 for a "
                "tenth of a point"
            )
        if metric:
            of_metric[metric] = value
        else:
            of_all = value
    return of_all, of_metric
