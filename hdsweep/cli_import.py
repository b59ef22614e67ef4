"""The command ``import``: results from elsewhere, to be reported like those of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from hdsweep import views
from hdsweep.errors import SpecError
from hdsweep.imported import Columns, keep, read_results
from hdsweep.knobs import parse_setting
from hdsweep.store import Store
from hdsweep.views import StoreOption

_Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="Guessed from its name.")]


def import_(
    file: Annotated[Path, typer.Argument(help="A CSV file with a header, in UTF-8.")],
    sweep: Annotated[str, typer.Option(help="Name to report it by.")],
    arm: _Column = None,
    seed: _Column = None,
    group: _Column = None,
    metric: _Column = None,
    value: _Column = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Of a knob; by default all others. Repeatable."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave out. Repeatable.")
    ] = None,
    wide: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=COLUMN", help="For a column per metric. Repeatable."),
    ] = None,
    scalar: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A number per trial, as latency_ms. Repeatable."),
    ] = None,
    percent: Annotated[
        bool | None,
        typer.Option("--percent/--fraction", help="Unit of rates; percent if one is above 1."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Configuration that others are compared with.")
    ] = None,
    question: Annotated[str, typer.Option(help="What the results answer.")] = "",
    store: StoreOption = views.RESULTS,
) -> None:
    """Import a table of results: one row per value, or per seed with a column for each metric.

    Example: hdsweep import rows.csv --sweep published --baseline baseline
    """
    found = read_results(
        file,
        Columns(
            arm=arm, seed=seed, group=group, metric=metric, value=value, knobs=tuple(knob or ()),
            ignore=tuple(ignore or ()), wide=_wide(wide or ()), scalars=tuple(scalar or ()),
            percent=percent,
        ),
    )  # fmt: skip
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    if baseline is not None and baseline not in arms:
        try:
            named = parse_setting(baseline)[0]
        except ValueError as error:
            raise SpecError(f"--baseline {baseline}: {error}") from None
        if named not in arms:
            raise SpecError(f"--baseline {baseline}: the file has {', '.join(arms[:8])}")
    planned = keep(Store(store), sweep, found, question=question, baseline=baseline)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    read = "; ".join(f"{what}: {column}" for what, column in found.columns.items())
    console.print(Text(f"read {read}; rates in {'percent' if found.percent else 'fractions'}"))
    counts = f"{len(found.records)} trials of {len(found.cells)} configurations"
    groups = f"{len(found.groups)} group{'s' * (len(found.groups) != 1)}"
    console.print(Text(f"imported {counts}, {', '.join(found.metrics)} in {groups}"))
    console.print(Text(f"hdsweep report {planned.name} shows them"))


def _wide(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        metric, _, column = text.partition("=")
        if not metric or not column:
            raise SpecError(f"--wide {text}: write METRIC=COLUMN, as in auroc=AUROC")
        found[metric] = column
    return found
