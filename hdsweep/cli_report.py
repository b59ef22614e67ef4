"""Commands that look at results: ``status``, ``show`` and ``report``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hdsweep import views
from hdsweep.errors import HdsweepError, SpecError
from hdsweep.files import cannot_write, write_whole
from hdsweep.metrics import parse_metric
from hdsweep.planned import PlannedSweep
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, StoreOption

if TYPE_CHECKING:
    from analysis.summary import Summary

SweepName = Annotated[str | None, typer.Argument(help="Name of a sweep; the latest by default.")]


class TableFormat(StrEnum):
    """How tables are printed."""

    terminal = "terminal"
    md = "md"
    tex = "tex"
    csv = "csv"
    json = "json"
    html = "html"


_FOR_ALL = (TableFormat.csv, TableFormat.json, TableFormat.html)
"""Formats that hold comparisons in each group."""


class Kind(StrEnum):
    """What a table shows."""

    results = "results"
    comparison = "comparison"
    ablation = "ablation"
    criteria = "criteria"
    costs = "costs"


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
        list[str] | None, typer.Option(help="As in auroc, tpr@1 or tpr@1\\[domain=C]; repeatable.")
    ] = None,
    ddof: Annotated[int, typer.Option(min=0, max=1, help="1: sample std, 0: population std.")] = 1,
    baseline: Annotated[
        str | None,
        typer.Option(help="Arm, or configuration as in 'topk q_percent=5', to compare with."),
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=X: a difference up to X does not matter; repeatable."),
    ] = None,
    ablation: Annotated[
        str | None, typer.Option(help="KNOB or KNOB,KNOB: tables over one or two knobs.")
    ] = None,
    per_group: Annotated[
        bool, typer.Option("--per-group", help="Compare in each group too, not in the mean alone.")
    ] = False,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="How far test items explain a difference, from predictions; html asks it.",
        ),
    ] = None,
    table: Annotated[
        list[Kind] | None,
        typer.Option(
            help="Which tables, in full; by default all in html, the main ones elsewhere."
        ),
    ] = None,
    importance: Annotated[
        Importance, typer.Option(help="Of the knobs that a search drew, below its tables.")
    ] = Importance.ped_anova,
    part: Annotated[
        Part | None, typer.Option(help="select: what was chosen from; by default, what was chosen.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder that figures are written to, as SVG and PDF.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; html goes to the sweep's folder in the store."),
    ] = None,
    store: StoreOption = views.RESULTS,
    format: Annotated[
        TableFormat, typer.Option("--format", help="How it is written.")
    ] = TableFormat.terminal,
) -> None:
    """Report a sweep, the latest by default: mean±std tables, and verdicts against the baseline."""
    opened = Store(store)
    planned = opened.sweep(name)
    if part is not None and all(cell.part != part.value for cell in planned.cells):
        yet = " yet" if planned.confirm else "; its seeds are not {select: ..., confirm: ...}"
        what = f"has no configurations to {part.value}{yet}"
        raise SpecError(f"--part {part.value}: sweep '{planned.name}' {what}")
    asked = Asked(
        metrics=tuple(metric or planned.metrics),
        ddof=ddof,
        part=part,
        baseline=baseline,
        margins=_margins(margin or ()),
        knobs=_knobs(ablation),
        per_group=per_group or format in _FOR_ALL,
        images=format is TableFormat.html if images is None else images,
        tables=tuple(dict.fromkeys(k.value for k in table or _kinds(format, ablation))),
        brief=not table,
        importance=importance,
    )
    if figures is not None:
        _write_figures(opened, planned, asked, figures)
    if format is TableFormat.html:
        target = out or opened.root / "sweeps" / planned.name / "report.html"
        from analysis.report import page_of

        _write(target, page_of(summary_of(opened, planned, asked), opened, asked.tables))
        views.write(f"{target}\n")
        return
    made = text_of(opened, planned, asked, format, to_terminal=out is None)
    if out is None:
        views.write(made)
    else:
        _write(out, made)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is to hold; fields are the options of the command."""

    metrics: tuple[str, ...]
    ddof: int = 1
    part: Part | None = None
    baseline: str | None = None
    margins: Mapping[str, float] = field(default_factory=dict)
    knobs: tuple[str, ...] = ()
    per_group: bool = False
    images: bool = False
    tables: tuple[str, ...] = ("results", "comparison", "criteria")
    brief: bool = True
    importance: Importance = Importance.ped_anova


def _kinds(format: TableFormat, ablation: str | None) -> Sequence[Kind]:
    if format in (TableFormat.html, TableFormat.json):
        return tuple(Kind)
    if format is TableFormat.csv:  # one kind of line in one file
        return (Kind.ablation,) if ablation else (Kind.results,)
    brief = (Kind.results, Kind.comparison, Kind.criteria)
    return (*brief, Kind.ablation) if ablation else brief


def _knobs(text: str | None) -> tuple[str, ...]:
    names = () if text is None else tuple(knob.strip() for knob in text.split(","))
    if not all(names):
        raise SpecError(f"--ablation {text}: write KNOB or KNOB,KNOB")
    return names


def _margins(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        metric, _, number = text.rpartition("=")
        try:
            found[metric] = float(number)
        except ValueError:
            found[metric] = math.nan
        if not metric or not 0 < found[metric] < math.inf:
            raise SpecError(
                f"--margin {text}: write METRIC=X with X above 0, as in auroc=0.005; rates lie "
                "in [0, 1]"
            )
        known = parse_metric(metric, (metric,))
        if known.group is not None:
            raise SpecError(
                f"--margin {text}: a margin holds for all groups; name the metric alone"
            )
        if known.definition is not None and found[metric] >= 1:
            raise SpecError(
                f"--margin {text}: {number} is no difference of rates, which lie in [0, 1]; half a "
                "point is 0.005"
            )
    return found


def summary_of(store: Store, planned: PlannedSweep, asked: Asked) -> Summary:
    """The summary of a sweep, as the options ask for it."""
    from analysis.summary import summarize

    return summarize(
        store,
        planned,
        asked.metrics,
        ddof=asked.ddof,
        part=None if asked.part is None else asked.part.value,
        baseline=asked.baseline,
        margins=asked.margins,
        knobs=asked.knobs,
        images=asked.images,
        per_group=asked.per_group,
        ablate=Kind.ablation in asked.tables,
    )


def text_of(
    store: Store,
    planned: PlannedSweep,
    asked: Asked,
    format: TableFormat,
    *,
    to_terminal: bool = True,
) -> str:
    """A report in any format but html; it ends with a newline.

    Args:
        store: Where the records are.
        planned: The sweep.
        asked: What it is to hold.
        format: Of the text.
        to_terminal: Whether it may be as wide and coloured as standard output is.
    """
    from analysis import render
    from analysis.report import sheets_of

    summary = summary_of(store, planned, asked)
    for line in _lacking(summary, asked):
        Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)
    if format is TableFormat.json:
        return render.json_of(summary.tables, summary)
    if format is TableFormat.csv:
        return render.csv_kind(summary, asked.tables)
    out = Console()
    width = out.width if out.is_terminal and to_terminal else None
    color = out.is_terminal and out.color_system is not None and to_terminal
    sheets = sheets_of(summary, asked.tables, per_group=asked.per_group, brief=asked.brief)
    text = render.write(sheets, format.value, width=width, color=color)
    if format is TableFormat.tex:
        return text
    words = list(summary.answer)
    if planned.searches and asked.importance is not Importance.none:
        words += _importance(store, planned, asked.importance)
    return text + "\n" * bool(sheets) + render.said(words, format.value, width=width)


def _lacking(summary: Summary, asked: Asked) -> Iterator[str]:
    """What was asked for and is not there: an empty answer alone looks like a mistake."""
    rows = summary.comparisons.rows
    there = {"comparison": rows, "ablation": summary.ablations, "criteria": summary.criteria,
             "costs": summary.costs}  # fmt: skip
    for kind in () if asked.brief else asked.tables:
        if not there.get(kind, True):
            yield f"--table {kind}: the sweep has nothing to put into it"
    if asked.images and rows and all(row.images is None for row in rows):
        yield f"--images: none: {rows[0].images_why}"


def print_report(store: Store, planned: PlannedSweep, metrics: tuple[str, ...]) -> None:
    """Write what ``report`` says of some metrics to the terminal."""
    views.write(text_of(store, planned, Asked(metrics), TableFormat.terminal))


def _write_figures(store: Store, planned: PlannedSweep, asked: Asked, folder: Path) -> None:
    from analysis.figures import drawings, write

    try:
        written = write(drawings(summary_of(store, planned, asked), store), folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{len(written)} figures in {folder}" if written else "no figure to draw yet")


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise cannot_write(target, error) from None


def _importance(store: Store, planned: PlannedSweep, importance: Importance) -> list[str]:
    from hdsweep.search import Evaluator
    from hdsweep.studies import importance_lines

    kept = store.root / "sweeps" / planned.name / "sweep.yaml"
    evaluator: Evaluator = "fanova" if importance is Importance.fanova else "ped_anova"
    try:
        return importance_lines(store, planned, load_sweep(kept), evaluator)
    except HdsweepError as error:  # the tables stand without it
        return [f"importance: {error}"]
