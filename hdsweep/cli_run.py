"""The command ``run``: what of a sweep has not finished, and then its table."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hdsweep import views
from hdsweep.cli_plan import Ready, metrics_of, ready
from hdsweep.cli_report import print_report
from hdsweep.deadline import seconds_of
from hdsweep.errors import HdsweepError, SpecError
from hdsweep.execute import origin_of, record_infeasible
from hdsweep.planner import State
from hdsweep.spec import SweepSpec
from hdsweep.storage import Gate, Patience
from hdsweep.terminal import Console
from hdsweep.views import Format, FormatOption, StoreOption, SweepFile

if TYPE_CHECKING:
    from hdsweep.agenda import Agenda


_NO_STAGES = (
    "Each trial does all its work itself and shares none; the results are the same. For measuring "
    "what a trial takes, or when shared work is under suspicion."
)
_WAIT = (
    "How long results wait for a store that is full or cannot be written before the sweep ends: "
    "seconds, or 30m, 2h, 1d."
)
_RERUN = (
    "Run finished trials again as well: failed, diverged, stale, or the first digits of a trial's "
    "id, four or more. What they left is kept beside the new."
)
_AGAIN: tuple[State, ...] = ("failed", "diverged", "stale")  # what --rerun takes but ids
_GOOD = ("cached", "stale")  # states whose record is ok


def run(
    sweep: SweepFile,
    store: StoreOption = views.RESULTS,
    inline: Annotated[bool, typer.Option(help="In this process, without Ray.")] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Logical GPUs to declare here.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Logical CPUs to declare here.")] = None,
    rerun: Annotated[list[str] | None, typer.Option(help=_RERUN)] = None,
    storage_wait: Annotated[str, typer.Option(help=_WAIT)] = "10m",
    no_stages: Annotated[bool, typer.Option("--no-stages", help=_NO_STAGES)] = False,
    format: FormatOption = Format.terminal,
) -> None:
    """Run what of a sweep has not finished, then print its table.

    Interrupt or kill it at any moment; the same command goes on where it was.
    """
    _check_placement(inline, address, gpus, cpus)
    from hdsweep.progress import terminal

    with terminal(2) as console:
        made = ready(sweep, store, console.print)
        spec, plan, opened = made.spec, made.plan, made.store
        again = _again(rerun or (), made)
        patience = Patience(_duration(storage_wait), lambda text: console.print(Text(text)))
        opened.create()
        with opened.driving(spec.name):
            opened.put_sweep(made.planned, sweep.read_bytes())
            where = _Where(inline, address, gpus, cpus)
            ran = _run(made, again, where, patience, console, share=not no_stages)
            planned = opened.sweep(spec.name)  # with what was drawn and decided meanwhile
            opened.put_sweep(planned, sweep.read_bytes())  # names the curves of what was drawn
        # Of a sweep that had nothing left to run, the plan knows all but what went wrong.
        whole = ran or format is Format.json
        labels = planned.labels()
        asked = {i: name for i, name in labels.items() if whole or plan.state.get(i) not in _GOOD}
        records = opened.records(asked)
        if format is Format.json:
            views.print_json(views.counts(planned, records, opened) | {"ran": len(ran)})
        else:
            first, *others = metrics_of(spec)
            print_report(opened, planned, (str(first),))
            if others:
                options = shlex.join(part for one in others for part in ("--metric", str(one)))
                console.print(Text(f"more: hdsweep report {spec.name} {options}", style="dim"))
        stale = 0 if "stale" in again.states else plan.counts()["stale"]
        skipped = planned.skipped()
        for line in views.advice(asked, records, skipped, stale):
            console.print(line)
    bad = {i for i in asked if i not in skipped and i not in records}
    bad |= {i for i, record in records.items() if record.status not in ("ok", "pruned")}
    if bad:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Again:
    """Finished trials that are to be run again: those in some states, and some by their ids."""

    states: tuple[State, ...]
    ids: frozenset[str]


def _again(asked: Sequence[str], made: Ready) -> _Again:
    """What ``--rerun`` asks for, every trial in one of the states included."""
    states = tuple(state for state in _AGAIN if state in asked)
    prefixes = [word for word in asked if word not in states]
    known = set(made.plan.state)
    if prefixes and made.planned.name in made.store.sweeps():
        known |= set(made.store.sweep(made.planned.name).labels())  # what was confirmed, too
    ids = {_named(word, known, made.planned.name) for word in prefixes}
    ids |= {i for i, state in made.plan.state.items() if state in states}
    recorded = made.store.records(ids)
    return _Again(states, frozenset(recorded))


def _named(prefix: str, known: Collection[str], sweep: str) -> str:
    """The one trial of a sweep whose id starts so."""
    if not re.fullmatch(r"[0-9a-f]{4,20}", prefix):
        raise SpecError(
            f"--rerun {prefix}: neither {', '.join(_AGAIN)} nor a trial's id; give its first hex "
            "digits, four or more"
        )
    found = sorted(i for i in known if i.startswith(prefix))
    if len(found) != 1:
        several = f"{len(found)} trials ({', '.join(found[:3])}) have such an id; give more digits"
        none = f"no trial of the sweep has such an id; see hdsweep status {sweep}"
        raise SpecError(f"--rerun {prefix}: {several if found else none}")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Where:
    """Where trials are to run, as the options say."""

    inline: bool
    address: str | None
    gpus: int | None
    cpus: int | None


def _run(
    made: Ready, again: _Again, where: _Where, patience: Patience, console: Console, *, share: bool
) -> set[str]:
    """Run what is pending, and decide as results come in.

    Returns:
        Ids of trials that have a record of this run.
    """
    from hdsweep.agenda import Agenda
    from hdsweep.world import StoreWorld

    spec, plan = made.spec, made.plan
    gpus = _gpus_each(spec, where.gpus, where.address)
    world = StoreWorld(
        spec, plan, made.targets, made.store, made.data, made.planned.groups, gpus,
        share=share, again=again.ids, patience=patience,
    )  # fmt: skip
    for cell, trial in plan.unrecorded():
        job = world.job(cell, trial, 0)
        record_infeasible(job, made.store, origin_of(job), plan.refused[trial.id])
    ahead = not where.inline
    with Agenda(spec, plan, made.targets, world, again.states, again.ids, ahead=ahead) as agenda:
        if not agenda.has_work():
            console.print(f"{spec.name}: {views.nothing_to_run(plan)}")
            return set()
        for line in views.infeasible(plan):
            console.print(line)
        return _launch(agenda, made, gpus, console, where, patience)


def _check_placement(inline: bool, address: str | None, gpus: int | None, cpus: int | None) -> None:
    declared = gpus is not None or cpus is not None
    if address and declared:
        raise SpecError(
            "--gpus and --cpus declare resources of this machine; drop them or --address"
        )
    if inline and (address or declared):
        raise SpecError("--inline runs in this process; drop --address, --gpus and --cpus")


def _duration(text: str) -> float:
    try:
        return float(str(seconds_of(text)))
    except ValueError as error:
        raise SpecError(f"--storage-wait: {error}") from None


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _launch(
    agenda: Agenda, made: Ready, gpus: float, console: Console, where: _Where, patience: Patience
) -> set[str]:
    from hdsweep.progress import Progress

    signal.signal(signal.SIGTERM, _interrupt)
    spec, store = made.spec, made.store
    metric = metrics_of(spec)[0]
    progress = Progress(
        console, spec.name, store=store, groups=made.planned.groups, metric=metric,
        larger_is_better=made.targets.direction(metric),
        total=lambda: agenda.expected, cached=lambda: agenda.cached,
    )  # fmt: skip
    try:
        with progress:
            if where.inline:
                from hdsweep.launch import inline as launcher

                launcher.launch(agenda, store, progress)
                return agenda.ran
            if where.address is None:  # read by Ray when it is imported: all listens at 127.0.0.1
                os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            from hdsweep.launch import ray as launcher_ray

            cluster = launcher_ray.Cluster(address=where.address, gpus=where.gpus, cpus=where.cpus)
            shape = launcher_ray.Shape(spec.resources.cpus, gpus)
            folder = store.root / "sweeps" / spec.name
            gate = Gate(folder, patience.limit_s, progress.say)
            log = folder / "ray.log"
            launcher_ray.launch(agenda, store, progress, shape, cluster, log, progress.say, gate)
            return agenda.ran
    except ImportError as error:
        if error.name and error.name.split(".")[0] == "ray":
            raise HdsweepError(
                f"Ray is not installed ({error}); install it or add --inline"
            ) from None
        raise
    except KeyboardInterrupt:
        done = agenda.cached + len(agenda.ran)
        console.print(
            f"interrupted: {done} of {agenda.expected} trials are finished; run the same command "
            "again to continue"
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
