"""What a stopping rule, a race or a search would have chosen and cost, from records of a full run.

The full run's records and curves are replayed under the rule by the code that decides when a sweep
is run, see ``simulate.py``, and set against the same records all run to their end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hdsweep.configure import configurations
from hdsweep.errors import HdsweepError
from hdsweep.method import load_dataset, load_method
from hdsweep.metrics import parse_metric
from hdsweep.plan import Plan, absolute_root, make_plan, validate_data
from hdsweep.planner import Cell
from hdsweep.recorded import Archive, archive_of, content_of, whole_among
from hdsweep.search import aggregate
from hdsweep.simulate import Ran, Simulated, SoFar, simulate
from hdsweep.spec import SweepSpec
from hdsweep.stopping import rule_of
from hdsweep.store import Store
from hdsweep.targets import Target, Targets, resolve
from hdsweep.trial import TrialRecord


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a run.

    Args:
        trials: That were run, to whatever end.
        stopped: Of them, by the stopping rule.
        failed: Of them, for their own reasons.
        skipped: Trials that were decided against before they began.
        steps: Sum over the trials of the last step that each reported.
        trial_hours: Sum over the trials of the time that each held its worker.
        gpu_hours: The same times the share of a GPU that each held; 0 where they take none.
        makespan_s: From the first trial's start to the last one's end.
    """

    trials: int
    stopped: int
    failed: int
    skipped: int
    steps: int
    trial_hours: float
    gpu_hours: float
    makespan_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The best configuration of an arm: of all that were recorded, and of those the rule left.

    Args:
        arm: Its name.
        full: Name of the best of all; None where none has a value.
        full_value: Its value over all seeds.
        replay: Name of the best of those that ran in full with every seed.
        replay_value: Its value over all seeds.
        regret: How much worse that is, 0 or above.
        of: Configurations that were recorded.
        left: Of them, those that ran in full with every seed.
    """

    arm: str
    full: str | None
    full_value: float | None
    replay: str | None
    replay_value: float | None
    regret: float | None
    of: int
    left: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay and what it is compared with.

    Args:
        sweep: Its name.
        rules: Block of the sweep file -> what was replayed of it; only those there are.
        gpus: Of the simulated machine.
        gpus_each: Share of a GPU that a trial holds; 0 where they take none.
        workers: Trials that ran at once.
        full: All recorded trials, run to their end.
        replay: Under the rules.
        chosen_by: What configurations are chosen by; None where no metric has a direction.
        larger_is_better: Of it.
        choices: By arm, in file order.
        stopped: Id of a recorded trial -> step at which the rule stopped it.
        skipped: Id of a recorded trial -> why it was not begun.
        notes: What was left out, and what stands for what; for people.
    """

    sweep: str
    rules: Mapping[str, Mapping[str, Any]]
    gpus: int
    gpus_each: float
    workers: int
    full: Cost
    replay: Cost
    chosen_by: str | None
    larger_is_better: bool | None
    choices: tuple[Choice, ...]
    stopped: Mapping[str, int]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields of this class and of those that it holds."""
        return asdict(self)


def replayed(spec: SweepSpec, store: Store, gpus: int) -> Replayed:
    """Replay a sweep under its own blocks ``search``, ``stop`` and ``race``.

    Args:
        spec: The sweep, with the blocks that are to be replayed.
        store: Has the records and curves of a full run.
        gpus: Of the simulated machine; trials that take none run one on each.

    Raises:
        SpecError: The blocks do not fit the sweep, as when it is run.
        HdsweepError: The records do not hold what the replay takes.
    """
    notes: list[str] = []
    if spec.confirmed is not None:
        notes.append("the seeds that confirm a choice are left out of both runs")
    targets = resolve(spec)
    dataset = load_dataset(spec.data_name)
    params = absolute_root(validate_data(spec, dataset.params))
    content, groups = content_of(spec, params, store)
    ended: dict[str, TrialRecord] = {}
    planned = replace(spec, confirmed=None)
    rule = None
    if spec.stop is not None:
        rule = rule_of(spec.name, spec.stop, larger_is_better=bool(targets.watched))
    checked = configurations(planned)
    made = make_plan(planned, checked, params, content, SoFar(store, ended), rule)
    archive = archive_of(spec, made, store, groups)
    kept = whole_among(spec, made, archive, notes)
    full_plan = _plan_of_all(made, kept, archive)
    alone = replace(planned, search=None, stop=None, race=None)
    each = _gpus_each(spec, archive)
    workers = _workers(each, gpus)
    all_run = Simulated(alone, Targets(), archive, {}, {}, each, {})
    full = simulate(alone, full_plan, Targets(), all_run, workers)

    recorded = {
        search.key: [replace(cell, study=None) for cell in kept if cell.study == search.key]
        for search in made.searches
    }
    plan = _plan_to_decide(made, kept, recorded, archive, notes)
    spaces = {search.key: search.open.setting.drawn for search in made.searches}
    world = Simulated(planned, targets, archive, recorded, spaces, each, ended)
    ran = simulate(planned, plan, targets, world, workers)

    by = _chosen_by(spec, targets)
    if by is None:
        notes.append("no metric has a direction to choose by; the sweep file can name one")
    elif len(targets.sought) > 1:
        notes.append(f"of {len(targets.sought)} objectives the choice is by the first")
    whole = {one.stored for one in ran if one.ending == "ok"}
    return Replayed(
        sweep=spec.name,
        rules={
            name: block.model_dump(mode="json", exclude_unset=True)
            for name, block in (("search", spec.search), ("stop", spec.stop), ("race", spec.race))
            if block is not None
        },
        gpus=gpus,
        gpus_each=each,
        workers=workers,
        full=_cost(full, archive, each, all_run.skipped),
        replay=_cost(ran, archive, each, world.skipped),
        chosen_by=None if by is None else by.metric.text,
        larger_is_better=None if by is None else by.larger_is_better,
        choices=tuple(_choices(spec, targets, by, full_plan.cells, whole, archive)),
        stopped={one.stored: _steps(one, archive) for one in ran if one.ending == "pruned"},
        skipped=world.skipped,
        notes=tuple(notes),
    )


# --- what is run again ----------------------------------------------------------------------------


def _plan_of_all(made: Plan, kept: Sequence[Cell], archive: Archive) -> Plan:
    """Everything that was recorded, as if the file had listed it."""
    return _with(made, [replace(cell, study=None) for cell in kept], archive)


def _plan_to_decide(
    made: Plan,
    kept: Sequence[Cell],
    recorded: Mapping[str, Sequence[Cell]],
    archive: Archive,
    notes: list[str],
) -> Plan:
    """What is listed, and searches that draw no more than there is to answer them."""
    searches = []
    for search in made.searches:
        many = len(recorded[search.key])
        searches.append(replace(search, trials=min(search.trials, many)))
        if not many:
            raise HdsweepError(
                f"{archive.store.root}: no configuration that the search of arm "
                f"{search.open.arm} drew has a record; run the sweep first"
            )
        notes.append(
            f"arm {search.open.arm}: the nearest recorded configuration, of {many}, stands in for "
            "each that is drawn"
            + (f"; it draws no more than those, not {search.trials}" * (many < search.trials))
        )
    listed = [cell for cell in kept if cell.study is None]
    return replace(_with(made, listed, archive), searches=tuple(searches))


def _with(made: Plan, cells: Sequence[Cell], archive: Archive) -> Plan:
    """A plan of which nothing is run, but what its methods refuse."""
    infeasible = {
        trial.id: (record.error or {}).get("message", "")
        for cell in cells for trial in cell.trials
        if (record := archive.courses[trial.id].record).ending == "infeasible"
    }  # fmt: skip
    state = {trial.id: made.state[trial.id] for cell in cells for trial in cell.trials}
    return Plan(tuple(cells), state, made.planner, refused=infeasible)


def _gpus_each(spec: SweepSpec, archive: Archive) -> float:
    """As when it is run: a GPU for each trial where there are any."""
    if spec.resources.gpus is not None:
        return spec.resources.gpus
    devices = (str(one.record.provenance.get("device")) for one in archive.courses.values())
    return 1.0 if any(device.startswith("cuda") for device in devices) else 0.0


def _workers(each: float, gpus: int) -> int:
    """How many trials run at once; a share never spans GPUs."""
    many = gpus if each == 0 else int(gpus // each) if each > 1 else gpus * int(1 / each + 1e-9)
    if many < 1:
        raise HdsweepError(f"--gpus {gpus}: a trial of the sweep takes {each:g}; give as many")
    return many


# --- what came of it ------------------------------------------------------------------------------


def _steps(one: Ran, archive: Archive) -> int:
    return archive.courses[one.stored].steps[one.points - 1] if one.points else 0


def _held_s(one: Ran, archive: Archive) -> float:
    """How long a trial held its worker; to the last bit the same on any clock."""
    course = archive.courses[one.stored]
    return course.times_s[one.points - 1] if one.ending == "pruned" else course.end_s


def _cost(
    ran: Sequence[Ran], archive: Archive, gpus_each: float, skipped: Mapping[str, str]
) -> Cost:
    hours = math.fsum(_held_s(one, archive) for one in ran) / 3600
    endings = Counter(one.ending for one in ran)
    return Cost(
        trials=len(ran),
        stopped=endings["pruned"],
        failed=len(ran) - endings["pruned"] - endings["ok"],
        skipped=len(skipped),
        steps=sum(_steps(one, archive) for one in ran),
        trial_hours=hours,
        gpu_hours=hours * gpus_each,
        makespan_s=max((one.ended_s for one in ran), default=0.0),
    )


def _chosen_by(spec: SweepSpec, targets: Targets) -> Target | None:
    """What the sweep chooses by, or the first metric of its report that has a direction."""
    named: list[Target] = [*targets.chosen_by, *targets.sought]
    if targets.raced is not None:
        named.append(targets.raced)
    if named:
        return named[0]
    scalars = {name for arm in spec.arms for name in load_method(arm.method).scalars}
    for n, text in enumerate(spec.report.metrics):
        metric = parse_metric(text, scalars)
        known = metric.definition.larger_is_better if metric.definition else None
        if known is not None:
            return Target(metric, known, ("report", "metrics", n))
    return None


def _choices(
    spec: SweepSpec,
    targets: Targets,
    by: Target | None,
    cells: Sequence[Cell],
    whole: set[str],
    archive: Archive,
) -> Iterator[Choice]:
    for arm in spec.arms if by is not None else ():
        own = [cell for cell in cells if cell.arm == arm.name]
        values = {n: _value(spec, targets, by, cell, archive) for n, cell in enumerate(own) if by}
        left = [n for n, cell in enumerate(own) if all(t.id in whole for t in cell.trials)]
        sign = 1.0 if by and by.larger_is_better else -1.0
        best, again = (
            max((n for n in among if math.isfinite(values[n])), default=None,
                key=lambda n: sign * values[n])
            for among in (range(len(own)), left)
        )  # fmt: skip
        regret = None
        if best is not None and again is not None:
            regret = sign * values[best] - sign * values[again]
        yield Choice(
            arm.name,
            None if best is None else own[best].name,
            None if best is None else values[best],
            None if again is None else own[again].name,
            None if again is None else values[again],
            regret,
            len(own),
            len(left),
        )


def _value(spec: SweepSpec, targets: Targets, by: Target, cell: Cell, archive: Archive) -> float:
    """What of a configuration's seeds is compared; NaN where it may not be chosen."""
    if any(archive.courses[trial.id].record.status != "ok" for trial in cell.trials):
        return math.nan
    of_limits = [
        (limit, [archive.value(trial.id, limit) for trial in cell.trials])
        for limit in targets.constraints
    ]
    if not all(limit.excess(math.fsum(v) / len(v)) <= 0 for limit, v in of_limits):
        return math.nan
    values = [archive.value(trial.id, by) for trial in cell.trials]
    if spec.search is None:
        return math.fsum(values) / len(values)
    how, confidence = spec.search.aggregate, spec.search.confidence
    return aggregate(values, how, by.larger_is_better, confidence)
