"""What the commands print about plans, sweeps and trials."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from hdsweep.configure import Checked
from hdsweep.errors import HdsweepError, first_line
from hdsweep.knobs import Arm, Choice, Grid, Range
from hdsweep.plan import Plan
from hdsweep.planned import PlannedSweep, drawn_of
from hdsweep.planner import STATES
from hdsweep.shared import SharedWork
from hdsweep.spec import SweepSpec
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.trial import ENDINGS, TrialRecord


class Format(StrEnum):
    """How results are printed."""

    terminal = "terminal"
    json = "json"


# What others wrote must not rule a terminal. JSON lets the last of them stand, and reads escapes.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_STYLES = re.compile(r"(\x1b\[[012]m)")  # normal, bold, dim
_SHOWN = 20  # lines; status lists the rest
_SHOWN_CELLS = 4  # in a line

SweepFile = Annotated[Path, typer.Argument(help="A sweep file, as in sweeps/quickstart.yaml.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the results.")]
RESULTS = Path("results")
FormatOption = Annotated[Format, typer.Option("--format", help="terminal, or json for scripts.")]


def print_json(value: object) -> None:
    """To standard output, for scripts."""
    write(json.dumps(value, indent=1, ensure_ascii=not _unicode()) + "\n")


def write(text: str) -> None:
    """To standard output; whoever reads it, `head` say, may have had enough before the end."""
    parts = _STYLES.split(text)  # sheets on a terminal have these, and escaped names before
    for n in range(0, len(parts), 2):
        parts[n] = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", parts[n])
    text = "".join(parts)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HdsweepError(f"standard output cannot be written: {error.strerror}") from None


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def print_plan(console: Console, spec: SweepSpec, made: Plan, work: SharedWork) -> None:
    """A line per arm: what it sweeps, and how many of its trials are in which state.

    Below, what trials share, and why some cannot be run.
    """
    counts = made.counts()
    if spec.question:
        console.print(Text(spec.question, style="italic"))
    shown = [state for state in STATES if counts[state]]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("arm", "method", "swept", "cells", "seeds"):
        grid.add_column(name, justify="right" if name in ("cells", "seeds") else "left")
    for state in shown:
        grid.add_column(state, justify="right")
    for arm in spec.arms:
        cells = [cell for cell in made.cells if cell.arm == arm.name]
        states = [made.state[t.id] for cell in cells for t in cell.trials]
        to_draw = sum(search.trials for search in made.searches if search.open.arm == arm.name)
        settled = sum(cell.study is None for cell in cells)
        many = f"{settled + to_draw}" if not to_draw or settled else f"{len(cells)} of {to_draw}"
        grid.add_row(
            Text(arm.name), arm.method, Text(_swept(arm)), many,
            str(len(spec.seeds)), *(str(states.count(state)) for state in shown),
        )  # fmt: skip
    console.print(grid)
    words = ", ".join(f"{counts[state]} {state}" for state in shown)
    console.print(f"{counts['planned']} trials{f': {words}' if words else ''}")
    for text in _decisions(spec, made):
        console.print(text)
    asked = sum(len(cell.trials) for cell in made.cells)
    if asked > counts["planned"]:
        console.print(f"{asked - counts['planned']} more are shared between arms and run once")
    if work.stages:
        console.print()
        console.print(_shared(work))
    lines = infeasible(made)
    if lines:
        console.print()
    for line in lines:
        console.print(line)


def _decisions(spec: SweepSpec, made: Plan) -> Iterator[str]:
    """What is decided while the sweep runs, so that its trials cannot be counted now."""
    seeds = len(spec.seeds)
    if spec.search is not None:
        trials = sum(search.trials for search in made.searches)
        asked = sum(cell.study is not None for cell in made.cells)
        studies = len(made.searches)
        cells = f" in {studies} grid cells" if studies > 1 else ""
        yield (
            f"search: {drawn_of(asked, trials)} by {spec.search.sampler}{cells}, "
            f"{seeds} seed{'s' if seeds > 1 else ''} each"
        )
    if spec.stop is not None:
        yield f"stop: {spec.stop.rule} on {spec.stop.metric}, {spec.stop.grace} steps at least"
    if spec.race is not None:
        looks = ", ".join(map(str, spec.race.looks))
        yield f"race: looks after {looks} of {seeds} seeds, level {spec.race.level:g} in all"
    if spec.confirmed is not None:
        many = len(spec.confirmed.confirm)
        best = "best" if spec.confirmed.top == 1 else f"{spec.confirmed.top} best"
        yield f"then the {best} of each arm with {many} other seed{'s' if many > 1 else ''}"


def _shared(work: SharedWork) -> Table:
    """A line per kind of stage: how many pending trials need, and how many are there."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("shared work", "needed", "there", "to build", "size"):
        grid.add_column(name, justify="left" if name == "shared work" else "right")
    for name in dict.fromkeys(stage.name for stage in work.stages):
        stages = [stage for stage in work.stages if stage.name == name]
        there = [stage for stage in stages if stage.exists]
        size = decimal(sum(stage.size_bytes or 0 for stage in there)) if there else ""
        numbers = (len(stages), len(there), len(stages) - len(there))
        grid.add_row(Text(name), *map(str, numbers), size)
    return grid


def infeasible(made: Plan) -> list[Text]:
    """A line per reason why trials cannot be run, with the cells that it hits."""
    cells: dict[str, dict[str, None]] = {}
    reasons = made.infeasible
    for cell in made.cells if reasons else ():
        for trial in cell.trials:
            if trial.id in reasons:
                cells.setdefault(first_line(reasons[trial.id]), {})[cell.name] = None
    lines = []
    for reason, names in cells.items():
        first = ", ".join(list(names)[:_SHOWN_CELLS])
        more = len(names) - _SHOWN_CELLS
        of = f"{first} and {more} more" if more > 0 else first
        lines.append(Text.assemble(("infeasible: ", "yellow"), f"{of}: {reason}"))
    if len(lines) > _SHOWN:
        hidden = len(lines) - _SHOWN
        return [*lines[:_SHOWN], Text(f"and {hidden} more: hdsweep plan --format json")]
    return lines


def nothing_to_run(made: Plan) -> str:
    """Why a plan has no pending trials."""
    total, holes = len(made.state), made.counts()["infeasible"]
    if not holes:
        return f"all {total} trials are finished, nothing to run"
    return f"{total - holes} of {total} trials are finished, {holes} infeasible, nothing to run"


def plan_as_json(spec: SweepSpec, made: Plan, work: SharedWork, store: Store) -> dict[str, Any]:
    """Keys that scripts rely on; documented in the reference."""
    reasons = made.infeasible
    named = [
        (trial.id, {"id": trial.id, "arm": cell.arm, "knobs": dict(cell.knobs), "seed": trial.seed})
        for cell in made.cells
        for trial in cell.trials
    ]
    return {
        "sweep": spec.name,
        "store": str(store.root),
        "counts": made.counts(),
        "trials": [name | {"state": made.state[i]} for i, name in named],
        "stages": [
            {"name": stage.name, "key": stage.key, "exists": stage.exists,
             "size_bytes": stage.size_bytes, "trials": stage.trials}
            for stage in work.stages
        ],
        "infeasible": [name | {"reason": reasons[i]} for i, name in named if i in reasons],
        "searches": [
            {"study": search.key, "arm": search.open.arm, "knobs": dict(search.open.knobs),
             "trials": search.trials,
             "drawn": sum(cell.study == search.key for cell in made.cells)}
            for search in made.searches
        ],
    }  # fmt: skip


def trials_of(spec: SweepSpec, checked: Checked) -> int:
    """How many trials a sweep has at most, those to confirm left out."""
    drawn = 0
    if spec.search is not None and checked.open:
        each = spec.search.trials
        drawn = each if spec.search.budget == "shared" else each * len(checked.open)
    return (len(checked.settled) + drawn) * len(spec.seeds)


def print_checks(console: Console, results: Iterable[Mapping[str, Any]]) -> None:
    """A line per sweep file, and one per warning."""
    for result in results:
        if result["ok"]:
            console.print(Text(f"{result['file']}: ok, {result['trials']} trials"))
            for told in result["warnings"]:
                console.print(Text.assemble(("warning: ", "yellow"), told))
        else:
            console.print(Text.assemble(("error: ", "red"), str(result["message"])))


def _swept(arm: Arm) -> str:
    words = []
    for name, knob in arm.knobs.items():
        if isinstance(knob, Grid | Choice):
            values = [str(value) for value in knob.values]
            shown = values if len(values) <= 8 else [*values[:3], "...", values[-1]]
            sign = ":" if isinstance(knob, Grid) else " ~"
            words.append(f"{name}{sign} {', '.join(shown)}")
        elif isinstance(knob, Range):
            words.append(f"{name} ~ {knob.low:g} to {knob.high:g}{' (log)' if knob.log else ''}")
    return "; ".join(words)


def warnings(checked: Checked) -> list[Text]:
    """What methods say about the configurations of a sweep, each once, with the arms it is of."""
    arms: dict[str, dict[str, None]] = {}
    for one in checked:
        for text in one.warnings:
            arms.setdefault(text, {})[one.arm] = None
    return [
        Text.assemble(("warning: ", "yellow"), f"{', '.join(of)}: {text}")
        for text, of in arms.items()
    ]


def print_record(console: Console, record: TrialRecord, folder: Path) -> None:
    """Parameters, results, where it ran, and why it failed."""
    trial = record.trial
    console.print(Text(f"{record.id}  {record.ending}  {trial['method']} seed={trial['seed']}"))
    source = record.provenance
    git = (source.get("git") or {}).get("commit", "")[:12]
    where = (
        f"{record.started}  {record.wall_s:g} s on {source.get('host', '?')} "
        f"{source.get('gpu') or source.get('device', '')} {f'commit {git}' if git else ''}"
    )
    imported = source.get("imported")
    console.print(Text(f"imported from {imported['file']}, not run here" if imported else where))
    grid = Table(box=None, pad_edge=False)
    for name, value in trial["params"].items():
        grid.add_row(Text(name, style="bold"), Text(str(value)))
    console.print(grid)
    if record.metrics:
        groups = list(dict.fromkeys(g for values in record.metrics.values() for g in values))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in ("metric", *groups):
            table.add_column(Text(head), justify="left" if head == "metric" else "right")
        for metric, values in record.metrics.items():
            cells = [values.get(group) for group in groups]
            table.add_row(metric, *("-" if v is None else f"{v:.4f}" for v in cells))
        console.print(table)
    if record.threshold is not None:
        console.print(Text(f"threshold {record.threshold:g}"))
    for name, scalar in record.scalars.items():
        console.print(Text(f"{name} {scalar:g}"))
    if record.error:
        error = record.error
        console.print(Text(error.get("traceback") or f"{error['kind']}: {error['message']}", "red"))
    console.print(Text(str(folder), style="dim"))


def counts(
    planned: PlannedSweep, records: Mapping[str, TrialRecord], store: Store
) -> dict[str, Any]:
    """Keys that scripts rely on; documented in the reference."""
    found = Counter(record.ending for record in records.values())
    total = len(planned.labels())
    return {
        "sweep": planned.name,
        "store": str(store.root),
        "planned": total,
        **{ending: found[ending] for ending in ENDINGS},
        "skipped": (skipped := len(planned.skipped().keys() - records.keys())),
        "not_finished": total - len(records) - skipped,
    }


def print_status(
    console: Console, counted: Mapping[str, Any], bad: Iterable[Mapping[str, str]]
) -> None:
    """How many trials ended how, and a line for each that is not ``ok``."""
    endings = (*ENDINGS, "skipped", "not_finished")
    words = [f"{counted[name]} {name.replace('_', ' ')}" for name in endings if counted[name]]
    console.print(Text(f"{counted['sweep']}: {counted['planned']} trials: {', '.join(words)}"))
    for entry in bad:
        first = first_line(entry["message"])
        console.print(Text(f"  {entry['status']}  {entry['id'][:8]}  {entry['label']}: {first}"))


def not_ok(labels: Mapping[str, str], records: Mapping[str, TrialRecord]) -> list[dict[str, str]]:
    """Id, label, how it ended and message of each trial that ended otherwise than ``ok``."""
    return [
        {
            "id": i,
            "label": labels[i],
            "status": record.ending,
            "message": (record.error or {}).get("message") or "no reason was recorded",
        }
        for i, record in records.items()
        if record.status != "ok"
    ]


def advice(
    labels: Mapping[str, str],
    records: Mapping[str, TrialRecord],
    skipped: Mapping[str, str],
    stale: int,
) -> list[Text]:
    """What is to be said after a run: trials that went wrong, and what to do about them.

    Args:
        labels: Trial id -> name, of those to speak of.
        records: Of those that finished.
        skipped: Trials that are not to be run, and why.
        stale: How many were run by an earlier source of their method.
    """
    # A hole that the data leave comes last: it is no mistake, and running again does not fill it.
    # What a rule stopped is no mistake at all, and said in the table.
    entries = sorted(
        (entry for entry in not_ok(labels, records) if entry["status"] != "pruned"),
        key=lambda entry: entry["status"] == "infeasible",
    )
    bad = [
        f"{entry['status']}  {entry['label']}: {first_line(entry['message'])} "
        f"(hdsweep show {entry['id'][:8]})"
        for entry in entries
    ]
    mendable = any(entry["status"] != "infeasible" for entry in entries)
    again = "--rerun failed, --rerun diverged or --rerun ID runs those again" if mendable else ""
    missing = [name for i, name in labels.items() if i not in records and i not in skipped]
    bad += [f"not finished  {name}: run the same command again" for name in missing]
    lines = [Text(line, style="red") for line in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(Text(f"and {len(bad) - _SHOWN} more: hdsweep status", style="red"))
    if again:
        lines.append(Text(again))
    if stale:
        lines.append(
            Text(
                f"{stale} trials were run by an earlier source of their method; --rerun stale runs "
                "them again and keeps the old results beside the new"
            )
        )
    return lines
