"""From a sweep file and a store to what is to be run: pure, fast, and nothing is written.

Trials come seed by seed, not arm by arm: after the first round every arm has one result, and an
interrupted sweep is a complete comparison with fewer seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from hdsweep.errors import HdsweepError, SpecError, did_you_mean
from hdsweep.identity import canonical_json, digest_of, encoded_knobs, joined
from hdsweep.method import Data, Method, dataset_module, load_method, method_module
from hdsweep.provenance import source_digest
from hdsweep.spec import Arm, Strict, SweepSpec, Where, first_error
from hdsweep.store import PlannedCell, PlannedSweep, Store
from hdsweep.trial import Trial, TrialRecord

State = Literal["new", "cached", "stale", "failed", "diverged", "pruned", "infeasible"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of an arm.

    Args:
        arm: Its name.
        knobs: The swept knobs, name -> value as validated.
        trials: One per seed, in the file's order of seeds.
    """

    arm: str
    knobs: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """As in ``topk q_percent=2``."""
        return " ".join([self.arm, *(f"{name}={value}" for name, value in self.knobs.items())])

    def label(self, trial: Trial) -> str:
        """A readable name of a trial: ``topk q_percent=2 seed=42``."""
        return f"{self.name} seed={trial.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep asks for, against what the store has.

    Args:
        cells: In file order.
        state: Trial id -> its state in the store.
        recorded: Trial id -> why it is infeasible, of those whose record says so.
        refused: Trial id -> why, of those that their method refuses now; see ``refuse``.
    """

    cells: tuple[Cell, ...]
    state: Mapping[str, State]
    recorded: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def infeasible(self) -> dict[str, str]:
        """Trial id -> why, of every trial in that state."""
        return {**self.recorded, **self.refused}

    def trials(self) -> Iterator[tuple[Cell, Trial]]:
        """Each trial once, seed by seed, with the first cell that asks for it."""
        seen: set[str] = set()
        for round_ in range(max(len(cell.trials) for cell in self.cells)):
            for cell in self.cells:
                trial = cell.trials[round_]
                if trial.id not in seen:
                    seen.add(trial.id)
                    yield cell, trial

    def pending(self, rerun: Collection[State] = ()) -> list[tuple[Cell, Trial]]:
        """Trials to run now: the new ones, and those in a state that is to be run again.

        To run the failed ones again is to run the infeasible ones, unless their method refuses.
        """
        wanted = {"new", *rerun} | ({"infeasible"} if "failed" in rerun else set())
        return [
            (cell, trial)
            for cell, trial in self.trials()
            if self.state[trial.id] in wanted and trial.id not in self.refused
        ]

    def unrecorded(self) -> list[tuple[Cell, Trial]]:
        """Trials that their method refuses, and whose record does not say so yet."""
        new = {i for i, reason in self.refused.items() if self.recorded.get(i) != reason}
        return [(cell, trial) for cell, trial in self.trials() if trial.id in new] if new else []

    def counts(self) -> dict[str, int]:
        """State -> number of distinct trials, every state named, and their sum as ``planned``."""
        found = Counter(self.state.values())
        return {"planned": len(self.state)} | {state: found[state] for state in STATES}

    def sweep(self, spec: SweepSpec, groups: tuple[str, ...]) -> PlannedSweep:
        """What the store keeps of this plan."""
        cells = tuple(
            PlannedCell(cell.arm, cell.knobs, {t.seed: t.id for t in cell.trials})
            for cell in self.cells
        )
        report = spec.report
        return PlannedSweep(
            spec.name, spec.question, report.metrics, report.baseline, report.expect, groups, cells
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """A cell whose knobs the method has accepted, before any data is looked at.

    Args:
        arm: Name of its arm.
        method: Name of its method.
        version: Declared by the method.
        knobs: The swept knobs, name -> value as validated.
        params: All parameters, defaults filled in.
        identity: What of them names a trial.
        encoded: ``identity`` as canonical JSON.
        warnings: What the method says a person should know before it is run.
    """

    arm: str
    method: str
    version: int
    knobs: Mapping[str, Any]
    params: Mapping[str, Any]
    identity: Mapping[str, Any]
    encoded: bytes
    warnings: tuple[str, ...] = ()


def configurations(spec: SweepSpec, *, resolve: bool = True) -> tuple[Configuration, ...]:
    """Check every knob with its method.

    Args:
        spec: The sweep.
        resolve: As of ``Strict.identity``; without it no trial can be named.

    Raises:
        SpecError: A knob that the method does not have or does not accept, with its line.
    """
    return tuple(found for arm in spec.arms for found in _configurations(spec, arm, resolve))


def make_plan(
    spec: SweepSpec,
    checked: Sequence[Configuration],
    data: Strict,
    fingerprint: str,
    store: Store,
) -> Plan:
    """Name each trial and look it up.

    Args:
        spec: The sweep.
        checked: ``configurations(spec)``.
        data: Validated parameters of its data set.
        fingerprint: Digest of the data's content.
        store: Where finished trials are; it need not exist yet.
    """
    content = {"name": spec.data_name, "params": data.identity(), "content": fingerprint}
    encoded = canonical_json(content)
    data_params = data.model_dump(mode="json")
    seeds = [(seed, canonical_json(seed)) for seed in spec.seeds]
    names = {(one.method, one.version) for one in checked}
    method_bytes = {name: [canonical_json(part) for part in name] for name in names}
    cells = []
    for one in checked:
        method, version = method_bytes[one.method, one.version]
        members = {"method": method, "version": version, "params": one.encoded, "data": encoded}
        identity = {
            "method": one.method, "version": one.version, "params": one.identity, "data": content,
        }  # fmt: skip
        trials = tuple(
            Trial(
                id=digest_of(joined(members | {"seed": encoded_seed})),
                method=one.method,
                version=one.version,
                params=one.params,
                data_name=spec.data_name,
                data_params=data_params,
                fingerprint=fingerprint,
                seed=seed,
                identity=identity,
            )
            for seed, encoded_seed in seeds
        )
        cells.append(Cell(one.arm, one.knobs, trials))
    read_by = dataset_module(spec.data_name)
    sources = {arm.method: source_digest(method_module(arm.method), read_by) for arm in spec.arms}
    methods = {trial.id: trial.method for cell in cells for trial in cell.trials}
    records = store.records(_finished_among(store, methods))
    state = {i: _state(records.get(i), sources[method]) for i, method in methods.items()}
    recorded = {
        i: (record.error or {}).get("message", "")
        for i, record in records.items()
        if state[i] == "infeasible"
    }
    return Plan(tuple(cells), state, recorded)


def refuse(plan: Plan, data: Data) -> Plan:
    """The plan with those trials marked infeasible that their method cannot run on such data.

    Args:
        plan: Its new, failed and infeasible trials are asked about, once for each cell.
        data: As loaded.
    """
    asked = {"new", "failed", "infeasible"}
    methods = {name: load_method(name) for name in {cell.trials[0].method for cell in plan.cells}}
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


def _finished_among(store: Store, ids: Mapping[str, str]) -> list[str]:
    # One walk of the store beats a look-up per planned trial, unless few are planned.
    if len(ids) <= 1000:
        return list(ids)
    return [i for i in store.finished() if i in ids]


def _state(record: TrialRecord | None, source: str) -> State:
    if record is None:
        return "new"
    if record.ending != "ok":
        return record.ending
    return "cached" if record.provenance.get("source") in (source, None) else "stale"


def _configurations(spec: SweepSpec, arm: Arm, resolve: bool) -> Iterator[Configuration]:
    try:
        method = load_method(arm.method)
    except SpecError as error:
        where: Where = ("arms", arm.name, "method")
        own = where in spec.source.lines
        raise spec.source.error(where if own else ("method",), str(error)) from None
    _check_names(spec, arm, method)
    swept = arm.swept
    first: dict[bytes, Mapping[str, Any]] = {}
    for values in arm.cells():
        try:
            params = method.params.model_validate(values)
        except ValidationError as error:
            raise _cell_error(spec, arm, values, error, method) from None
        try:
            dumped, identity = params.model_dump(mode="json"), params.identity(resolve=resolve)
        except HdsweepError as error:
            raise spec.source.error(("arms", arm.name), str(error)) from None
        knobs = {name: dumped[name] for name in swept}
        encoded = encoded_knobs(identity)
        if encoded in first:
            raise spec.source.error(
                ("arms", arm.name),
                f"{_words(first[encoded])} and {_words(knobs)} are the same trial; remove one",
            )
        first[encoded] = knobs
        yield Configuration(
            arm=arm.name,
            method=arm.method,
            version=method.version,
            knobs=knobs,
            params=dumped,
            identity=identity,
            encoded=encoded,
            warnings=tuple(method.warn(params)),
        )


def _check_names(spec: SweepSpec, arm: Arm, method: Method) -> None:
    for name in arm.knobs:
        if name not in method.params.model_fields:
            own = ("arms", arm.name, name) in spec.source.lines
            where: Where = ("arms", arm.name, name) if own else ("params", name)
            hint = did_you_mean(name, method.params.model_fields)
            line = spec.source.error(where, "").args[0].split(": ")[0]
            block = f"arms.{arm.name}" if own else "params"
            raise SpecError(f"{line}: {block}: unknown knob '{name}' of method {arm.method}{hint}")


def _cell_error(
    spec: SweepSpec, arm: Arm, values: Mapping[str, Any], error: ValidationError, method: Method
) -> SpecError:
    loc = error.errors(include_url=False)[0]["loc"]
    block: Where = ("arms", arm.name)
    if (
        loc
        and (*block, loc[0]) not in spec.source.lines
        and ("params", loc[0]) in spec.source.lines
    ):
        block = ("params",)
    message = str(first_error(error, spec.source, block, method.params))
    swept = {name: values[name] for name in arm.swept}
    if not loc and swept:  # a rule over several knobs: say for which cell it failed
        message += f" (at {_words(swept)})"
    return SpecError(message)


def _words(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "two cells"


def absolute_root(params: Strict) -> Strict:
    """The same data parameters with an absolute ``root``, for workers in another folder."""
    root = getattr(params, "root", None)
    if isinstance(root, Path):
        try:
            return params.model_copy(update={"root": root.expanduser().absolute()})
        except RuntimeError:
            raise SpecError(f"data: root: {root}: there is no such user; write the path") from None
    return params
