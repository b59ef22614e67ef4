"""Commands that look at results: ``status``, ``show`` and ``report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from hdsweep import views
from hdsweep.errors import HdsweepError
from hdsweep.planned import PlannedSweep
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.views import Format, FormatOption, StoreOption

SweepName = Annotated[str | None, typer.Argument(help="Name of a sweep; the latest by default.")]


class TableFormat(StrEnum):
    """How tables are printed."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    json = "json"


class Importance(StrEnum):
    """Evaluators of Optuna; they may disagree widely, so the report names its own."""

    ped_anova = "ped_anova"
    fanova = "fanova"
    none = "none"


class Part(StrEnum):
    """Which configurations of a sweep that chooses and confirms."""

    select = "select"
    confirm = "confirm"


def status(
    name: SweepName = None,
    store: StoreOption = views.RESULTS,
    format: FormatOption = Format.terminal,
) -> None:
    """Count a sweep's trials by how they ended, and list those that did not end well."""
    opened = Store(store)
    planned = opened.sweep(name)
    labels = planned.labels()
    records = opened.records(labels)
    counts = views.counts(planned, records, opened)
    bad = views.not_ok(labels, records)
    if format is Format.json:
        views.print_json({**counts, "not_ok": bad})
    else:
        views.print_status(Console(soft_wrap=True, highlight=False), counts, bad)


def show(
    trial: Annotated[str, typer.Argument(help="Id of a trial, or its first digits.")],
    store: StoreOption = views.RESULTS,
    format: FormatOption = Format.terminal,
) -> None:
    """Show one trial: parameters, results, where it ran, and why it failed."""
    opened = Store(store)
    record = opened.record(found := opened.resolve(trial))
    folder = opened.trial_dir(found)
    if record is None:
        raise HdsweepError(
            f"trial {found}: has not finished; its log so far is {folder / 'log.txt'}"
        )
    if format is Format.json:
        views.print_json({**json.loads(record.to_bytes()), "folder": str(folder)})
        return
    views.print_record(Console(soft_wrap=True, highlight=False), record, folder)


def report(
    name: SweepName = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="As in auroc, tpr@1 or tpr@1[domain=C]; repeatable.")
    ] = None,
    ddof: Annotated[int, typer.Option(min=0, max=1, help="1: sample std, 0: population std.")] = 1,
    importance: Annotated[
        Importance, typer.Option(help="Of the knobs that a search drew, below its tables.")
    ] = Importance.ped_anova,
    part: Annotated[
        Part | None, typer.Option(help="select: what was chosen from; by default, what was chosen.")
    ] = None,
    store: StoreOption = views.RESULTS,
    format: Annotated[
        TableFormat, typer.Option("--format", help="How to print.")
    ] = TableFormat.terminal,
) -> None:
    """Print mean±std tables of a sweep, the latest by default."""
    opened = Store(store)
    planned = opened.sweep(name)
    print_report(opened, planned, metric or planned.metrics, ddof, format, part, importance)


def print_report(
    store: Store,
    planned: PlannedSweep,
    metrics: Sequence[str],
    ddof: int,
    format: TableFormat,
    part: Part | None = None,
    importance: Importance = Importance.ped_anova,
) -> None:
    """Write tables of some metrics to standard output, and what drawn knobs mattered."""
    from analysis import frame, render, tables

    tidy = frame.load(store, planned, metrics, part=None if part is None else part.value)
    made = [tables.main_table(tidy, metric, ddof=ddof) for metric in metrics]
    out = Console()
    width = out.width if out.is_terminal and format is TableFormat.terminal else None
    color = out.is_terminal and out.color_system is not None
    views.write(render.render(made, format.value, width=width, color=color))
    for_people = format in (TableFormat.terminal, TableFormat.md)
    if for_people and planned.searches and importance is not Importance.none:
        lines = _importance(store, planned, importance)
        listed = [f"- {line}" for line in lines] if format is TableFormat.md else lines
        views.write("\n".join(listed) + "\n")


def _importance(store: Store, planned: PlannedSweep, importance: Importance) -> list[str]:
    from hdsweep.search import Evaluator
    from hdsweep.studies import importance_lines

    kept = store.root / "sweeps" / planned.name / "sweep.yaml"
    evaluator: Evaluator = "fanova" if importance is Importance.fanova else "ped_anova"
    try:
        return importance_lines(store, planned, load_sweep(kept), evaluator)
    except HdsweepError as error:  # the tables stand without it
        return [f"importance: {error}"]
