"""Names of a sweep's trials, and what the store knows of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hdsweep.configure import Configuration, Open
from hdsweep.identity import canonical_json, digest, digest_of, joined
from hdsweep.method import dataset_module, method_module
from hdsweep.planned import Part, PlannedCell, cell_name
from hdsweep.provenance import source_digest
from hdsweep.spec import SweepSpec
from hdsweep.store import Store
from hdsweep.strict import Strict
from hdsweep.trial import Trial, TrialRecord

State = Literal["new", "cached", "stale", "failed", "diverged", "pruned", "infeasible", "skipped"]
"""``skipped``: not run, since a race or another seed decided so when the sweep ran last."""

STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of an arm.

    Args:
        arm: Its name.
        key: Names the configuration, 20 hex digits: a trial's identity without the seed.
        knobs: The swept and drawn knobs, name -> value as validated.
        trials: One per seed, in the file's order of seeds.
        study: Key of the search that drew it.
        number: Its place in the order in which that search drew.
        part: Whether its trials are to choose by, or of a chosen one.
    """

    arm: str
    key: str
    knobs: Mapping[str, Any]
    trials: tuple[Trial, ...]
    study: str | None = None
    number: int | None = None
    part: Part = "run"

    @property
    def name(self) -> str:
        """As in ``topk q_percent=2``."""
        return cell_name(self.arm, self.knobs, self.number)

    def label(self, trial: Trial) -> str:
        """A readable name of a trial: ``topk q_percent=2 seed=42``."""
        return f"{self.name} seed={trial.seed}"

    def planned(self) -> PlannedCell:
        """What the store keeps of it."""
        ids = {trial.seed: trial.id for trial in self.trials}
        return PlannedCell(self.arm, self.knobs, ids, self.study, self.number, self.part)


def is_pending(state: State, rerun: Collection[State]) -> bool:
    """Whether a trial in that state is to be run."""
    return (
        state in ("new", "skipped")
        or state in rerun
        or (state == "infeasible" and "failed" in rerun)
    )


class Planner:
    """Names the trials of one sweep, and looks them up.

    Args:
        spec: The sweep.
        data: Validated parameters of its data set.
        fingerprint: Digest of the data's content.
        store: Where finished trials are; it need not exist yet.
        rule: Names the stopping rule; what another one stopped is to be run again.
    """

    def __init__(
        self, spec: SweepSpec, data: Strict, fingerprint: str, store: Store, rule: str | None = None
    ) -> None:
        self._name, self._fingerprint, self._store = spec.data_name, fingerprint, store
        self._rule = rule
        self._timeout_s = spec.resources.timeout or math.inf
        self._content = {
            "name": spec.data_name, "params": data.identity(), "content": fingerprint,
        }  # fmt: skip
        self._encoded = canonical_json(self._content)
        self._params = data.model_dump(mode="json")
        self._seeds: dict[int, bytes] = {}
        self._methods: dict[tuple[str, int], list[bytes]] = {}
        self._sources: dict[str, str] = {}

    def cell(
        self,
        one: Configuration,
        seeds: Sequence[int],
        study: str | None = None,
        number: int | None = None,
        part: Part = "run",
    ) -> Cell:
        """A configuration with a trial for each seed."""
        name = (one.method, one.version)
        if name not in self._methods:
            self._methods[name] = [canonical_json(part_of_it) for part_of_it in name]
        method, version = self._methods[name]
        members = {
            "method": method, "version": version, "params": one.encoded, "data": self._encoded,
        }  # fmt: skip
        identity = {
            "method": one.method, "version": one.version, "params": one.identity,
            "data": self._content,
        }  # fmt: skip
        trials = tuple(
            Trial(
                id=digest_of(joined(members | {"seed": self._encoded_seed(seed)})),
                method=one.method,
                version=one.version,
                params=one.params,
                data_name=self._name,
                data_params=self._params,
                fingerprint=self._fingerprint,
                seed=seed,
                identity=identity,
            )
            for seed in seeds
        )
        return Cell(one.arm, digest_of(joined(members)), one.knobs, trials, study, number, part)

    def again(self, cell: Cell, seeds: Sequence[int], part: Part) -> Cell:
        """The same configuration with other seeds."""
        trial = cell.trials[0]
        one = Configuration(
            cell.arm, trial.method, trial.version, cell.knobs, trial.params,
            trial.identity["params"], canonical_json(trial.identity["params"]),
        )  # fmt: skip
        return self.cell(one, seeds, cell.study, cell.number, part)

    def study_key(self, one: Open) -> str:
        """What names a study: all that its trials share, and what is drawn."""
        return digest({**one.searched, "data": self._content})

    def look(self, trials: Sequence[Trial]) -> tuple[dict[str, State], dict[str, str]]:
        """State of each trial by id, and of those that are infeasible, why."""
        methods = {trial.id: trial.method for trial in trials}
        records = self._store.records(_finished_among(self._store, methods))
        state = {i: self.state(records.get(i), method) for i, method in methods.items()}
        recorded = {
            i: (record.error or {}).get("message", "")
            for i, record in records.items()
            if state[i] == "infeasible"
        }
        return state, recorded

    def state(self, record: TrialRecord | None, method: str) -> State:
        """What a record says of a trial of this sweep."""
        if record is None:
            return "new"
        if record.ending == "pruned" and (record.error or {}).get("rule") != self._rule:
            return "new"
        error = record.error or {}
        if error.get("kind") == "timeout" and float(error["timeout_s"]) < self._timeout_s:
            return "new"  # and goes on from its checkpoint
        if record.ending != "ok":
            return record.ending
        return "cached" if self.is_of_today(record, method) else "stale"

    def is_of_today(self, record: TrialRecord, method: str) -> bool:
        """Whether a trial was run by the source that its method has now, as far as is known."""
        if method not in self._sources:
            modules = (method_module(method), dataset_module(self._name))
            self._sources[method] = source_digest(*modules)
        return record.provenance.get("source") in (self._sources[method], None)

    def _encoded_seed(self, seed: int) -> bytes:
        if seed not in self._seeds:
            self._seeds[seed] = canonical_json(seed)
        return self._seeds[seed]


def _finished_among(store: Store, ids: Mapping[str, str]) -> list[str]:
    # One walk of the store beats a look-up per planned trial, unless few are planned.
    if len(ids) <= 1000:
        return list(ids)
    return [i for i in store.finished() if i in ids]
