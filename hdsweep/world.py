"""The world that a sweep's decisions are made in when it is run: its store and its data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hdsweep.context import reached
from hdsweep.execute import Job, origin_of, record_infeasible
from hdsweep.method import Data, load_method
from hdsweep.plan import Plan, declares, validated
from hdsweep.planner import Cell
from hdsweep.queue import Queue
from hdsweep.shared import Look
from hdsweep.spec import SweepSpec
from hdsweep.stopping import Watch, points_of, shared_rungs
from hdsweep.storage import Patience
from hdsweep.store import Store
from hdsweep.targets import Target, Targets, watches
from hdsweep.trial import Trial, TrialRecord
from hdsweep.values import value_of

_NO_PATIENCE = Patience()


class StoreWorld:
    """See ``hdsweep.entries.World``.

    Args:
        spec: The sweep.
        plan: Its trials so far.
        targets: What a stopping rule's direction is taken from.
        store: Where records, curves and the log are.
        data: As loaded.
        groups: Of what is tested, in their order of report.
        gpus: Of each trial.
        share: Whether trials share stages.
        again: Trials of which an earlier result is set aside.
        patience: With storage that refuses; the workers have as much.
    """

    def __init__(
        self,
        spec: SweepSpec,
        plan: Plan,
        targets: Targets,
        store: Store,
        data: Data,
        groups: Sequence[str],
        gpus: float,
        *,
        share: bool = True,
        again: Collection[str] = (),
        patience: Patience = _NO_PATIENCE,
    ) -> None:
        self._patience = patience
        self._spec, self._plan, self._targets, self._store = spec, plan, targets, store
        self._data, self._groups, self._gpus, self._share = data, groups, gpus, share
        self._look = Look(data, store)
        self._folders: dict[str, dict[str, tuple[str, ...]]] = {}  # by key of the configuration
        self._again = {i for i, state in plan.state.items() if state == "stale"} | set(again)

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        """See World."""
        return self._store.decisions(self._spec.name)

    def log(self, event: Mapping[str, Any]) -> None:
        """See World."""
        self._patience.insist(lambda: self._store.decide(self._spec.name, event))

    def begin(self, events: Sequence[Mapping[str, Any]]) -> None:
        """See World."""
        self._patience.insist(lambda: self._store.put_decisions(self._spec.name, events))

    def queue(self) -> Queue:
        """See World."""
        return Queue((), self._store.root)

    def reached(self, job: Job, /) -> tuple[int, ...]:
        """See World."""
        return reached(self._store, job.trial.id, job.stages)

    def record(self, trial_id: str) -> TrialRecord | None:
        """See World."""
        return self._store.record(trial_id)

    def job(self, cell: Cell, trial: Trial, order: int) -> Job:
        """See World."""
        return Job(
            trial,
            cell.label(trial),
            self._gpus,
            self._spec.resources.cpus,
            rerun=trial.id in self._again,
            share=self._share,
            stages=self._stages(cell, trial) if self._share else (),
            # Progress shows means: never of seeds to choose on together with those to confirm.
            cell=f"{cell.name} confirmed" if cell.part == "confirm" else cell.name,
            watch=watch_of(self._spec, self._targets, cell, order),
            patience_s=self._patience.limit_s,
            timeout_s=self._spec.resources.timeout,
        )

    def _stages(self, cell: Cell, trial: Trial) -> tuple[str, ...]:
        name = f"{cell.key} {cell.part}"  # the chosen have other seeds
        if name not in self._folders:
            self._folders[name] = self._look.folders(cell.trials)
        return self._folders[name].get(trial.id, ())

    def ended(self, cell: Cell, trial: Trial, order: int) -> None:
        """See World."""
        watch = watch_of(self._spec, self._targets, cell, order)
        if watch is None or watch.stop.rule == "patience":  # it compares nobody with others
            return
        rungs = shared_rungs(self._store.root, watch)
        if not rungs.knows(cell.key, trial.seed):
            points = points_of(self._store.trial_dir(trial.id), watch.stop.metric)
            counted = [(step, value) for step, value in points if watch.counts(step)]
            rungs.learn(cell.key, order, trial.seed, counted)

    def refused(self, cell: Cell) -> str | None:
        """See World."""
        method = load_method(cell.trials[0].method)
        if not declares(method, "infeasible"):
            return None
        reason = method.infeasible(validated(method, cell.trials[0]), self._data)
        for trial in cell.trials if reason is not None else ():
            job = self.job(cell, trial, 0)
            record_infeasible(job, self._store, origin_of(job), str(reason))
        return reason

    def value(self, record: TrialRecord, target: Target) -> float:
        """See World."""
        return value_of(self._store, record, target.metric, self._groups)[0]

    def curve(self, trial_id: str) -> Mapping[int, float]:
        """See World."""
        stop = self._spec.stop
        return {} if stop is None else dict(points_of(self._store.trial_dir(trial_id), stop.metric))


def watch_of(spec: SweepSpec, targets: Targets, cell: Cell, order: int) -> Watch | None:
    """What a worker must know to stop trials of a configuration; None where nothing may.

    What is confirmed runs to its end, and so does what reports nothing that the rule watches.
    """
    stop = spec.stop
    if stop is None or cell.part == "confirm" or not watches(spec, cell.arm):
        return None
    method = load_method(cell.trials[0].method)
    last = method.steps(validated(method, cell.trials[0]))
    return Watch(stop, bool(targets.watched), spec.name, cell.arm, cell.key, order, last)
