"""From a sweep file and a store to what is to be run: pure, fast, and nothing is written.

Trials come seed by seed, not arm by arm: after the first round every arm has one result, and an
interrupted sweep is a complete comparison with fewer seeds. Of a search, a plan holds what was
drawn so far; what is still to be drawn has no name yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from pydantic import ValidationError

from hdsweep.configure import Checked, Open, drawn
from hdsweep.errors import MethodError, SpecError
from hdsweep.method import Data, Method, load_method
from hdsweep.metrics import parse_metric
from hdsweep.planned import Part, PlannedSearch, PlannedSweep, draws_of
from hdsweep.planner import STATES, Cell, Planner, State, is_pending
from hdsweep.spec import SweepSpec
from hdsweep.store import Store
from hdsweep.strict import Strict, first_error
from hdsweep.trial import Trial


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """One study: a grid cell whose other knobs are drawn.

    Args:
        key: 20 hex digits; the same for the same method, data, fixed parameters and ranges.
        open: What is drawn.
        trials: How many configurations it may draw.
    """

    key: str
    open: Open
    trials: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep asks for, against what the store has.

    Args:
        cells: In file order, then those that searches drew so far.
        state: Trial id -> its state in the store.
        recorded: Trial id -> why it is infeasible, of those whose record says so.
        refused: Trial id -> why, of those that their method refuses now; see ``refuse``.
        searches: In file order.
        planner: Names and looks up more of the same sweep.
    """

    cells: tuple[Cell, ...]
    state: Mapping[str, State]
    planner: Planner = field(repr=False, compare=False)
    recorded: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    searches: tuple[SearchPlan, ...] = ()

    @property
    def infeasible(self) -> dict[str, str]:
        """Trial id -> why, of every trial in that state."""
        return {**self.recorded, **self.refused}

    @property
    def methods(self) -> set[str]:
        """Names of the methods of its cells and searches."""
        named = {cell.trials[0].method for cell in self.cells}
        return named | {search.open.method for search in self.searches}

    def trials(self) -> Iterator[tuple[Cell, Trial]]:
        """Each trial once, seed by seed, with the first cell that asks for it."""
        seen: set[str] = set()
        for round_ in range(max((len(cell.trials) for cell in self.cells), default=0)):
            for cell in self.cells:
                trial = cell.trials[round_] if round_ < len(cell.trials) else None
                if trial is not None and trial.id not in seen:
                    seen.add(trial.id)
                    yield cell, trial

    def pending(self, rerun: Collection[State] = ()) -> list[tuple[Cell, Trial]]:
        """Trials to run now: the new ones, and those in a state that is to be run again.

        To run the failed ones again is to run the infeasible ones, unless their method refuses.
        """
        return [
            (cell, trial)
            for cell, trial in self.trials()
            if is_pending(self.state[trial.id], rerun)
            and self.state[trial.id] != "skipped"
            and trial.id not in self.refused
        ]

    def unrecorded(self) -> list[tuple[Cell, Trial]]:
        """Trials that their method refuses, and whose record does not say so yet."""
        new = {i for i, reason in self.refused.items() if self.recorded.get(i) != reason}
        return [(cell, trial) for cell, trial in self.trials() if trial.id in new] if new else []

    def counts(self) -> dict[str, int]:
        """State -> number of distinct trials, every state named, and their sum as ``planned``."""
        found = Counter(self.state.values())
        return {"planned": len(self.state)} | {state: found[state] for state in STATES}

    def sweep(self, spec: SweepSpec, groups: tuple[str, ...], select: str = "") -> PlannedSweep:
        """What the store keeps of this plan: not what was drawn, which has a log of its own.

        Args:
            spec: The sweep.
            groups: Of its data, in their order of report.
            select: How configurations are chosen, in words, where others are confirmed.
        """
        cells = tuple(cell.planned() for cell in self.cells if cell.study is None)
        report = spec.report
        return PlannedSweep(
            spec.name, spec.question, report.metrics, report.baseline, report.expect, groups, cells,
            searches=tuple(_planned_search(spec, search) for search in self.searches),
            confirm=spec.confirmed.confirm if spec.confirmed else (), select=select,
            arms=tuple(arm.name for arm in spec.arms),
            margins={parse_metric(text, (text,)).key: m for text, m in report.margins.items()},
        )  # fmt: skip


def _planned_search(spec: SweepSpec, search: SearchPlan) -> PlannedSearch:
    asked = spec.search
    if asked is None:
        raise ValueError("a search without a block of its own")  # the spec refuses it
    objectives = (*asked.maximize, *asked.minimize)
    return PlannedSearch(
        key=search.key,
        arm=search.open.arm,
        knobs=search.open.knobs,
        trials=search.trials,
        objectives=tuple(parse_metric(text, (text,)).text for text in objectives),
        maximize=tuple(text in asked.maximize for text in objectives),
        aggregate=asked.aggregate,
        sampler=asked.sampler,
    )


def make_plan(
    spec: SweepSpec,
    checked: Checked,
    data: Strict,
    fingerprint: str,
    store: Store,
    rule: str | None = None,
) -> Plan:
    """Name each trial and look it up; arguments are those of Planner.

    Args:
        spec: The sweep.
        checked: ``configurations(spec)``.
        data: Validated parameters of its data set.
        fingerprint: Digest of the data's content.
        store: Where finished trials are; it need not exist yet.
        rule: Names the stopping rule.

    Raises:
        StoreError: The log of what was drawn has a gap.
    """
    planner = Planner(spec, data, fingerprint, store, rule)
    part: Part = "run" if spec.confirmed is None else "select"
    cells = [planner.cell(one, spec.seeds, part=part) for one in checked.settled]
    searches = _searches(spec, checked, planner)
    by_key = {search.key: search for search in searches}
    decides = spec.search is not None or spec.stop is not None or spec.race is not None
    events = store.decisions(spec.name) if decides else []
    draws = draws_of(events, store.log_of(spec.name))
    for event in events:
        drew = event["event"] == "asked" and event["study"] in by_key
        if not drew or draws[event["study"]][event["number"]] is not event:
            continue
        try:
            one = drawn(by_key[event["study"]].open, event["knobs"])
        except MethodError:
            continue  # told of when it was drawn
        cells.append(planner.cell(one, spec.seeds, event["study"], event["number"], part))
    state, recorded = planner.look([trial for cell in cells for trial in cell.trials])
    skipped = {i for event in events if event["event"] == "skipped" for i in event["trials"]}
    state |= {i: "skipped" for i in skipped if state.get(i) == "new"}
    return Plan(tuple(cells), state, planner, recorded, searches=searches)


def _searches(spec: SweepSpec, checked: Checked, planner: Planner) -> tuple[SearchPlan, ...]:
    if spec.search is None:
        return ()
    trials, many = spec.search.trials, len(checked.open)
    shared = spec.search.budget == "shared"
    found: dict[str, SearchPlan] = {}
    for n, one in enumerate(checked.open):
        each = trials // many + (n < trials % many) if shared else trials
        key = planner.study_key(one)
        found[key] = SearchPlan(key, one, each)
    return tuple(found.values())


def refuse(plan: Plan, data: Data) -> Plan:
    """The plan with those trials marked infeasible that their method cannot run on such data.

    Args:
        plan: Its new, failed and infeasible trials are asked about, once for each cell.
        data: As loaded.
    """
    asked = {"new", "failed", "infeasible"}
    methods = {name: load_method(name) for name in plan.methods}
    refused: dict[str, str] = {}
    if any(declares(method, "infeasible") for method in methods.values()):
        for cell in plan.cells:
            method = methods[cell.trials[0].method]
            open_ = [trial.id for trial in cell.trials if plan.state[trial.id] in asked]
            if not open_ or not declares(method, "infeasible"):
                continue
            reason = method.infeasible(validated(method, cell.trials[0]), data)
            if reason is not None:
                refused.update(dict.fromkeys(open_, reason))
    marked: dict[str, State] = dict.fromkeys(refused, "infeasible")
    return replace(plan, state={**plan.state, **marked}, refused=refused) if refused else plan


def groups_of(plan: Plan, data: Data) -> tuple[str, ...]:
    """The groups of what the plan's methods test, in their order of report.

    Args:
        plan: Its methods are asked, once for each cell where they make test items of their own.
        data: As loaded.
    """
    found: dict[str, None] = {}
    for cell in plan.cells:
        method = load_method(cell.trials[0].method)
        own = declares(method, "groups")
        groups = method.groups(validated(method, cell.trials[0]), data) if own else data.groups
        found.update(dict.fromkeys(groups))
    for search in plan.searches:
        method = load_method(search.open.method)
        for params in search.open.tried if declares(method, "groups") else ():
            found.update(dict.fromkeys(method.groups(params, data)))
        if not declares(method, "groups"):
            found.update(dict.fromkeys(data.groups))
    return tuple(found)


_UNSAID = {f.name: f.default for f in fields(Method)}


def declares(method: Method, name: str) -> bool:
    """Whether a method says more than the default of one of its fields; nobody need ask if not."""
    return getattr(method, name) is not _UNSAID[name]


def validated(method: Method, trial: Trial) -> Strict:
    """A trial's parameters as its method takes them."""
    return method.params.model_validate(dict(trial.params))


def validate_data(spec: SweepSpec, params: type[Strict]) -> Strict:
    """The ``data:`` block as its data set's parameters. Raises SpecError with the line."""
    try:
        return params.model_validate(dict(spec.data))
    except ValidationError as error:
        raise first_error(error, spec.source, ("data",), params) from None


def absolute_root(params: Strict) -> Strict:
    """The same data parameters with an absolute ``root``, for workers in another folder."""
    root = getattr(params, "root", None)
    if isinstance(root, Path):
        try:
            return params.model_copy(update={"root": root.expanduser().absolute()})
        except RuntimeError:
            raise SpecError(f"data: root: {root}: there is no such user; write the path") from None
    return params
