"""The front door: the only module that knows every other.

Imports stand inside the commands where they are slow: ``hdsweep plan`` must answer before pandas,
Ray or torch would have been loaded.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from hdsweep import data as datafiles
from hdsweep import views
from hdsweep.cli_cache import cache_app
from hdsweep.cli_data import data_app
from hdsweep.errors import DataError, HdsweepError, SpecError, did_you_mean
from hdsweep.execute import Job, origin_of, record_infeasible, thread_environment
from hdsweep.method import Data, Dataset, load_dataset, load_method
from hdsweep.metrics import POOLED, Metric, parse_metric
from hdsweep.plan import (
    Plan,
    State,
    absolute_root,
    configurations,
    groups_of,
    make_plan,
    refuse,
    validate_data,
)
from hdsweep.shared import SharedWork, shared_work
from hdsweep.spec import SweepSpec, load_sweep
from hdsweep.store import PlannedSweep, Store
from hdsweep.trial import Trial
from hdsweep.views import Format, FormatOption

app = typer.Typer(
    help="Sweeps of anomaly-detection research: plan, run on GPUs, report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")


class TableFormat(StrEnum):
    """How tables are printed."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    json = "json"


class Rerun(StrEnum):
    """Finished trials that may be run again."""

    failed = "failed"
    diverged = "diverged"
    stale = "stale"


SweepFile = Annotated[Path, typer.Argument(help="A sweep file, as in sweeps/quickstart.yaml.")]
SweepName = Annotated[str | None, typer.Argument(help="Name of a sweep; the latest by default.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the results.")]
RESULTS = Path("results")
_NO_STAGES = (
    "Each trial does all its work itself and shares none; the results are the same. For measuring "
    "what a trial takes, or when shared work is under suspicion."
)
_GOOD = ("cached", "stale")  # states whose record is ok


def main() -> None:
    """Run the command line; a user's mistake is one message and exit status 2."""
    for key, value in thread_environment(1).items():
        if key == "OMP_WAIT_POLICY" or key.startswith("CUBLAS"):
            os.environ.setdefault(key, value)  # read by libraries that are not loaded yet
    gc.set_threshold(200_000, 50, 100)  # a plan of 100,000 trials is many small objects, all kept
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± still gets its table
    try:
        app()
    except HdsweepError as error:
        _complain(str(error))
    except OSError as error:
        # What no module foresaw about a file; its name is in the error, our code is not of use.
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}")


def _complain(message: str) -> None:
    line = Text.assemble(("error: ", "red"), message)
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
    sys.exit(2)


# --- run ------------------------------------------------------------------------------------------


@app.command()
def run(
    sweep: SweepFile,
    store: StoreOption = RESULTS,
    inline: Annotated[bool, typer.Option(help="In this process, without Ray.")] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Logical GPUs to declare here.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Logical CPUs to declare here.")] = None,
    rerun: Annotated[list[Rerun] | None, typer.Option(help="Run these again as well.")] = None,
    no_stages: Annotated[bool, typer.Option("--no-stages", help=_NO_STAGES)] = False,
    format: FormatOption = Format.terminal,
) -> None:
    """Run what of a sweep has not finished, then print its table.

    Interrupt or kill it at any moment; the same command goes on where it was.
    """
    _check_placement(inline, address, gpus, cpus)
    from hdsweep.progress import terminal

    with terminal(2) as console:
        spec, plan, planned, data, opened = _planned(sweep, store, console.print)
        again: list[State] = [state.value for state in rerun or ()]
        labels = {t.id: cell.label(t) for cell, t in plan.trials()}
        work = SharedWork() if no_stages else shared_work(plan, data, opened, again)

        def job_of(trial: Trial) -> Job:
            return Job(
                trial, labels[trial.id], _gpus_each(spec, gpus, address), spec.resources.cpus,
                rerun=plan.state[trial.id] == "stale", share=not no_stages,
                stages=work.folders.get(trial.id, ()),
            )  # fmt: skip

        jobs = [job_of(trial) for _, trial in plan.pending(again)]
        opened.create()
        with opened.driving(spec.name):
            opened.put_sweep(planned, sweep.read_bytes())
            for _, trial in plan.unrecorded():
                job = job_of(trial)
                record_infeasible(job, opened, origin_of(job), plan.refused[trial.id])
            running = {job.trial.id for job in jobs}
            before = opened.records(running)
            if jobs:
                for line in views.infeasible(plan):
                    console.print(line)
                _launch(jobs, plan, spec, opened, console, inline, address, gpus, cpus)
            else:
                console.print(f"{spec.name}: {views.nothing_to_run(plan)}")
        # Of a sweep that had nothing left to run, the plan knows all but what went wrong.
        whole = jobs or format is Format.json
        asked = {i: name for i, name in labels.items() if whole or plan.state[i] not in _GOOD}
        records = opened.records(asked)
        if format is Format.json:
            ran = sum(record != before.get(i) for i, record in records.items() if i in running)
            views.print_json(views.counts(planned, records, opened) | {"ran": ran})
        else:
            first, *others = _metrics(spec)
            _print_report(opened, planned, [str(first)], 1, TableFormat.terminal)
            if others:
                options = shlex.join(part for one in others for part in ("--metric", str(one)))
                console.print(Text(f"more: hdsweep report {spec.name} {options}", style="dim"))
        stale = 0 if "stale" in again else plan.counts()["stale"]
        for line in views.advice(asked, records, stale):
            console.print(line)
    if any(i not in records or records[i].status != "ok" for i in asked):
        raise typer.Exit(1)


def _check_placement(inline: bool, address: str | None, gpus: int | None, cpus: int | None) -> None:
    declared = gpus is not None or cpus is not None
    if address and declared:
        raise SpecError(
            "--gpus and --cpus declare resources of this machine; drop them or --address"
        )
    if inline and (address or declared):
        raise SpecError("--inline runs in this process; drop --address, --gpus and --cpus")


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _launch(
    jobs: Sequence[Job],
    plan: Plan,
    spec: SweepSpec,
    store: Store,
    console: Console,
    inline: bool,
    address: str | None,
    gpus: int | None,
    cpus: int | None,
) -> None:
    from hdsweep.progress import Progress

    signal.signal(signal.SIGTERM, _interrupt)
    total = len(plan.state)
    try:
        with Progress(
            console,
            spec.name,
            total=total,
            cached=total - len(jobs),
            metric=_metrics(spec)[0],
            cell_of={t.id: cell.name for cell, t in plan.trials()},
        ) as progress:
            if inline:
                from hdsweep.launch import inline as launcher

                launcher.launch(jobs, store, progress)
                return
            from hdsweep.launch import ray as launcher_ray

            where = launcher_ray.Cluster(address=address, gpus=gpus, cpus=cpus)
            log = store.root / "sweeps" / spec.name / "ray.log"
            launcher_ray.launch(jobs, store, progress, where, log, progress.say)
    except ImportError as error:
        if error.name and error.name.split(".")[0] == "ray":
            raise HdsweepError(
                f"Ray is not installed ({error}); install it or add --inline"
            ) from None
        raise
    except KeyboardInterrupt:
        done = len(store.records(plan.state))
        console.print(
            f"interrupted: {done} of {total} trials are finished; run the same command again to "
            "continue"
        )
        raise typer.Exit(130) from None


def _gpus_each(spec: SweepSpec, gpus: int | None, address: str | None) -> float:
    """How many GPUs a trial takes."""
    share = spec.resources.gpus
    if share is None and address is not None:
        raise spec.source.error(
            ("resources",), "on a cluster, say how many a trial takes: resources: {gpus: 1}"
        )
    if share is None:
        share = 1.0 if gpus or (gpus is None and _machine_has_gpu()) else 0.0
    return share


@cache
def _machine_has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _planned(
    sweep: Path, store: Path, say: Callable[[Text], None]
) -> tuple[SweepSpec, Plan, PlannedSweep, Data, Store]:
    """Everything that must be right before anything is written."""
    spec = load_sweep(sweep)
    checked = configurations(spec)
    for line in views.warnings(checked):
        say(line)
    _metrics(spec)
    opened = Store(store)
    opened.check()
    dataset = _dataset(spec)
    params = absolute_root(validate_data(spec, dataset.params))
    try:
        datafiles.make_if_absent(dataset, params, lambda text: say(Text(text)))
        content = datafiles.fingerprint(dataset, params)
        loaded = dataset.load(params)
    except DataError as error:
        raise DataError(f"{spec.source.path}: data: {error}") from None
    plan = refuse(make_plan(spec, checked, params, content, opened), loaded)
    groups = groups_of(plan, loaded)
    _check_groups(spec, groups)
    return spec, plan, plan.sweep(spec, groups), loaded, opened


def _dataset(spec: SweepSpec) -> Dataset:
    try:
        return load_dataset(spec.data_name)
    except SpecError as error:
        raise spec.source.error(("data", "name"), str(error)) from None


_FEW_GROUPS = 8


def _check_groups(spec: SweepSpec, groups: Sequence[str]) -> None:
    for taken in ("mean", POOLED):
        if taken in groups:
            raise DataError(
                f"{spec.source.path}: data: a group is named '{taken}', which stands for all "
                "groups; rename it"
            )
    for n, metric in enumerate(_metrics(spec)):
        if metric.group is not None and metric.group not in (*groups, POOLED):
            # Of few, all are named: near is not what was meant where groups are numbers.
            few = f"; the groups are {', '.join(groups)}" if len(groups) <= _FEW_GROUPS else ""
            hint = few or did_you_mean(metric.group, (*groups, POOLED))
            where = ("report", "metrics", n)
            raise spec.source.error(where, f"the data have no group '{metric.group}'{hint}")


def _metrics(spec: SweepSpec) -> list[Metric]:
    """The report's metrics; raises SpecError with the line of one that is unknown."""
    scalars = {name for arm in spec.arms for name in load_method(arm.method).scalars}
    asked = {"metrics": spec.report.metrics, "expect": spec.report.expected_metrics()}
    found: dict[str, list[Metric]] = {"metrics": [], "expect": []}
    for block, texts in asked.items():
        for n, text in enumerate(texts):
            try:
                found[block].append(parse_metric(text, scalars))
            except SpecError as error:
                raise spec.source.error(("report", block, n), str(error)) from None
    return found["metrics"]


# --- plan, check, schema --------------------------------------------------------------------------


@app.command()
def plan(
    sweep: SweepFile, store: StoreOption = RESULTS, format: FormatOption = Format.terminal
) -> None:
    """Show what would run and what is finished already; nothing is run."""
    console = Console(soft_wrap=True, highlight=False)
    err = Console(stderr=True, highlight=False)
    spec, made, _, data, opened = _planned(sweep, store, err.print)
    work = shared_work(made, data, opened)
    if format is Format.json:
        views.print_json(views.plan_as_json(spec, made, work, opened))
    else:
        views.print_plan(console, spec, made, work)


@app.command()
def check(
    paths: Annotated[list[Path], typer.Argument(help="Sweep files, or folders of them.")],
    format: FormatOption = Format.terminal,
) -> None:
    """Check sweep files without looking at data or results; exit status 2 if one is wrong."""
    files = [
        f for path in paths for f in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])
    ]
    if not files:
        raise SpecError(f"{paths[0]}: no .yaml files here; name a sweep file")
    results: list[dict[str, Any]] = []
    for path in files:
        try:
            spec = load_sweep(path)
            checked = configurations(spec, resolve=False)
            _metrics(spec)
            validate_data(spec, _dataset(spec).params)
            told = [line.plain.removeprefix("warning: ") for line in views.warnings(checked)]
            results.append(
                {"file": str(path), "ok": True, "trials": len(checked) * len(spec.seeds),
                 "message": "", "warnings": told}
            )  # fmt: skip
        except HdsweepError as error:
            results.append(
                {"file": str(path), "ok": False, "trials": 0, "message": str(error), "warnings": []}
            )
    if format is Format.json:
        views.print_json(results)
    else:
        views.print_checks(Console(soft_wrap=True, highlight=False), results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, the knobs of every method included."""
    from hdsweep.schema import sweep_schema

    views.print_json(sweep_schema())


# --- status, show, report -------------------------------------------------------------------------


@app.command()
def status(
    name: SweepName = None, store: StoreOption = RESULTS, format: FormatOption = Format.terminal
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


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="Id of a trial, or its first digits.")],
    store: StoreOption = RESULTS,
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


@app.command()
def report(
    name: SweepName = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="As in auroc, tpr@1 or tpr@1[domain=C]; repeatable.")
    ] = None,
    ddof: Annotated[int, typer.Option(min=0, max=1, help="1: sample std, 0: population std.")] = 1,
    store: StoreOption = RESULTS,
    format: Annotated[
        TableFormat, typer.Option("--format", help="How to print.")
    ] = TableFormat.terminal,
) -> None:
    """Print mean±std tables of a sweep, the latest by default."""
    opened = Store(store)
    planned = opened.sweep(name)
    _print_report(opened, planned, metric or planned.metrics, ddof, format)


def _print_report(
    store: Store, planned: PlannedSweep, metrics: Sequence[str], ddof: int, format: TableFormat
) -> None:
    from analysis import frame, render, tables

    tidy = frame.load(store, planned, metrics)
    made = [tables.main_table(tidy, metric, ddof=ddof) for metric in metrics]
    out = Console()
    width = out.width if out.is_terminal and format is TableFormat.terminal else None
    color = out.is_terminal and out.color_system is not None
    views.write(render.render(made, format.value, width=width, color=color))


if __name__ == "__main__":
    main()
