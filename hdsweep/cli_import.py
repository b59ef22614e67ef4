"""The command ``import``: results from elsewhere, to be reported like those of a sweep.

They come as a table of results, or as an archive of trials that another store has finished.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hdsweep import views
from hdsweep.errors import SpecError, did_you_mean, printable
from hdsweep.imported import Columns, keep, read_results
from hdsweep.knobs import has_setting, parse_setting
from hdsweep.packed import is_archive
from hdsweep.planned import PlannedCell
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.unpack import load
from hdsweep.views import StoreOption

_SHOWN = 20  # lines
_Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="Guessed from its name.")]


def import_(
    file: Annotated[
        Path,
        typer.Argument(help="A CSV file with a header, in UTF-8, or what export archive wrote."),
    ],
    sweep: Annotated[str | None, typer.Option(help="Name to report a CSV file by.")] = None,
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
    mean_group: Annotated[
        str | None,
        typer.Option(help="Of the file's own means over groups; mean, average, avg or overall."),
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
    """Import a table of results, or the trials and sweeps of an archive.

    A table has one row per value, or per seed with a column for each metric. Of an archive, nothing
    takes the place of what is here and ok; exit status 1 where it says something else.

    Example: hdsweep import rows.csv --sweep published --baseline baseline
    """
    if is_archive(file):
        _take_over(file, Store(store), sweep)
        return
    if sweep is None:
        raise SpecError(f"{file}: under which name is it to be reported? say --sweep NAME")
    found = read_results(
        file,
        Columns(
            arm=arm, seed=seed, group=group, metric=metric, value=value, knobs=tuple(knob or ()),
            ignore=tuple(ignore or ()), wide=_wide(wide or ()), scalars=tuple(scalar or ()),
            mean=mean_group, percent=percent,
        ),
    )  # fmt: skip
    if baseline is not None:
        _check_baseline(baseline, found.cells)
    planned = keep(Store(store), sweep, found, question=question, baseline=baseline)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    read = "; ".join(f"{what}: {column}" for what, column in found.columns.items())
    unit = "percent" if found.percent else "fractions"
    console.print(Text(f"read {printable(read)}; rates in {unit}"))
    for text in found.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), printable(text)))
    trials, cells = _many(found.records, "trial"), _many(found.cells, "configuration")
    groups = _many(found.groups, "group")
    console.print(Text(f"imported {trials} of {cells}, {', '.join(found.metrics)} in {groups}"))
    console.print(Text(f"hdsweep report {planned.name} shows them"))


def _check_baseline(name: str, cells: Sequence[PlannedCell]) -> None:
    arms = {cell.arm for cell in cells}
    try:
        arm, wanted = (name, {}) if name in arms else parse_setting(name)
    except ValueError as error:
        raise SpecError(f"--baseline {name}: {error}") from None
    if arm not in arms:
        raise SpecError(f"--baseline {name}: the file has no such arm{did_you_mean(arm, arms)}")
    if not any(cell.arm == arm and has_setting(cell.knobs, wanted) for cell in cells):
        near = did_you_mean(name, [cell.name for cell in cells if cell.arm == arm])
        raise SpecError(f"--baseline {name}: the file has no such configuration{near}")


def _take_over(file: Path, store: Store, sweep: str | None) -> None:
    if sweep is not None:
        raise SpecError(f"--sweep: {file} is an archive, and its sweeps have names")
    loaded = load(store, file)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for name, why in list(loaded.left.items())[:_SHOWN]:
        console.print(Text.assemble(("left as it is here: ", "yellow"), f"{name} {why}"))
    if len(loaded.left) > _SHOWN:
        console.print(Text(f"and {len(loaded.left) - _SHOWN} more", "yellow"))
    counts = (
        (len(loaded.added), "added"),
        (len(loaded.replaced), "replaced, which had not succeeded here"),
        (len(loaded.completed), "completed, which lacked files"),
        (loaded.present, "here already"),
        (sum(not name.startswith("sweep ") for name in loaded.left), "left as they are here"),
    )
    said = [f"{count} {what}" for count, what in counts if count]
    console.print(Text(f"trials: {', '.join(said) or 'none'}"))
    for name in loaded.sweeps:
        console.print(Text(f"sweep {name}: hdsweep report {name} --store {store.root}"))
    if loaded.left:
        raise typer.Exit(1)


def _wide(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        metric, _, column = text.partition("=")
        if not metric or not column:
            raise SpecError(f"--wide {text}: write METRIC=COLUMN, as in auroc=AUROC")
        if metric in found:
            raise SpecError(f"--wide {text}: {metric} is in column '{found[metric]}' already")
        found[metric] = column
    return found


def _many(things: Sized, word: str) -> str:
    return f"{len(things)} {word}{'s' * (len(things) != 1)}"
