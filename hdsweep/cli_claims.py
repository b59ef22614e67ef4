"""The command ``claims``: a published table held against the records."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hdsweep import views
from hdsweep.errors import SpecError
from hdsweep.planned import PlannedCell, PlannedSweep, cell_name
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.views import StoreOption


class ClaimsFormat(StrEnum):
    """How claims are printed."""

    terminal = "terminal"
    md = "md"
    json = "json"


def claims(
    table: Annotated[Path, typer.Argument(help="A table, or several, as .md, .tex or .csv.")],
    sweep: Annotated[
        str | None, typer.Option(help="Name of the sweep that it is about; the latest by default.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of columns that are groups, where the table names none.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=WHAT",
            help="A column: as 'Precision=tpr@1\\[domain=C]', a group, a knob, arm, mean, std, n "
            "or -. Repeatable.",
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=CONFIG", help="A row, as 'Ours=topk q_percent=5', or -. Repeatable."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEED,...", help="Only these; by default all.")
    ] = None,
    percent: Annotated[
        bool | None,
        typer.Option("--percent/--fraction", help="Unit of rates; by default what fits better."),
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=CONFIG",
            help="A row with another paper's results, compared unpaired with a configuration of "
            "ours. Repeatable.",
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Of how many runs such results are the mean.")
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Leave out cells that hold.")] = False,
    store: StoreOption = views.RESULTS,
    format: Annotated[
        ClaimsFormat, typer.Option("--format", help="How it is written.")
    ] = ClaimsFormat.terminal,
) -> None:
    """Recompute a published table from the records, and say of each number whether it holds.

    Ends with 1 where a number is wrong, and with 0 where none is.
    """
    from analysis import render
    from analysis.claimed import json_of, sheets_of, title
    from analysis.claims import Asked, check
    from analysis.naming import Named

    opened = Store(store)
    planned = opened.sweep(sweep)
    checked = check(
        opened,
        planned,
        table,
        Asked(
            named=Named(_columns(map_ or ()), _rows("--rows", rows or (), planned), metric),
            percent=percent,
            seeds=_seeds(seeds),
            theirs=_rows("--published", published or (), planned),
            n=n,
        ),
    )
    if format is ClaimsFormat.json:
        views.print_json(json_of(checked))
    else:
        out = Console()
        to_terminal = out.is_terminal and format is ClaimsFormat.terminal
        sheets = sheets_of(checked, all_cells=not brief)
        color = to_terminal and out.color_system is not None
        text = render.write(sheets, format.value, color=color)
        if not any(sheet.title == title(checked) for sheet in sheets):
            text = render.said([title(checked), *checked.notes], format.value) + text
        views.write(text)
    if checked.counts["wrong"]:
        raise typer.Exit(1)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    """Label -> what; the last = that is not in brackets parts them."""
    return dict(
        _parted("--map", text, [at for at in _equals(text) if not _in_brackets(text, at)][-1:])
        for text in texts
    )


def _in_brackets(text: str, at: int) -> bool:
    return text.count("[", 0, at) > text.count("]", 0, at)


def _rows(option: str, texts: Sequence[str], planned: PlannedSweep) -> dict[str, str]:
    """Label -> configuration; both may hold =, as in TopK q=5=topk q_percent=5."""
    known = {name.casefold() for cell in planned.cells for name in _names(cell)}
    found = {}
    for text in texts:
        places = _equals(text)
        named = [at for at in places if text[at + 1 :].strip().casefold() in known]
        label, what = _parted(option, text, (named or places)[:1])
        found[label] = what
    return found


def _names(cell: PlannedCell) -> tuple[str, ...]:
    return "-", cell.arm, cell_name(cell.arm, cell.knobs, cell.number)


def _equals(text: str) -> list[int]:
    return [at for at, sign in enumerate(text) if sign == "="]


def _parted(option: str, text: str, places: Sequence[int]) -> tuple[str, str]:
    for at in places:
        label, what = text[:at].strip(), text[at + 1 :].strip()
        if label and what:
            return label, what
    raise SpecError(f"{option} {text}: write LABEL=WHAT, with the label as it is printed")


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text is not None else ()
    except ValueError:
        raise SpecError(f"--seeds {text}: write numbers, as in 42,43,44") from None
