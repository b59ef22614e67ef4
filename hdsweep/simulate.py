"""A sweep run once more on a simulated clock, its trials answered by the records of an earlier run.

What decides is the ``Agenda`` and the ``Rungs`` that decide in earnest; only the clock, the
workers and the log are made up. A trial begins when a worker is free, its curve's points come when
they came in the record, and where the rule stops it the worker is free at that point. The workers
are equal to one another and to those of the recorded run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np

from hdsweep.agenda import Agenda
from hdsweep.entries import Event
from hdsweep.execute import Job
from hdsweep.identity import canonical_json
from hdsweep.knobs import Choice, Drawn
from hdsweep.plan import Plan
from hdsweep.planner import Cell
from hdsweep.queue import Queue
from hdsweep.recorded import Archive
from hdsweep.spec import SweepSpec
from hdsweep.stopping import Rungs, Watch
from hdsweep.store import Store
from hdsweep.targets import Target, Targets
from hdsweep.trial import Ending, Trial, TrialRecord
from hdsweep.world import watch_of


@dataclass(slots=True)
class Ran:
    """A simulated trial.

    Args:
        job: As the agenda gave it.
        stored: Id of the recorded trial that it is, or that stands in for it.
        began_s: On the simulated clock.
        points: How many of its curve were reported.
        ended_s: On the simulated clock.
        ending: How it ended.
    """

    job: Job
    stored: str
    began_s: float
    points: int = 0
    ended_s: float = math.nan
    ending: Ending = "ok"


class Simulated:
    """See ``hdsweep.entries.World``.

    Args:
        spec: The sweep as it is to be decided.
        targets: Of it.
        archive: Has all trials of ``recorded`` and of the plan.
        recorded: Key of a search -> configurations that may stand in for what it draws.
        spaces: Key of a search -> what it draws.
        gpus: Of each trial.
        ended: Is filled with the simulated records, by trial id.
    """

    def __init__(
        self,
        spec: SweepSpec,
        targets: Targets,
        archive: Archive,
        recorded: Mapping[str, Sequence[Cell]],
        spaces: Mapping[str, Mapping[str, Drawn]],
        gpus: float,
        ended: dict[str, TrialRecord],
    ) -> None:
        self._spec, self._archive, self._gpus = spec, archive, gpus
        self._nearest = {key: Nearest(spaces[key], cells) for key, cells in recorded.items()}
        self._stands: dict[str, Cell] = {}  # by key of the configuration
        self._stored: dict[str, str] = {}
        self._targets = targets
        self._rungs: dict[str, Rungs] = {}  # by arm
        self._reported: dict[str, int] = {}
        self._ended = ended
        self.skipped: dict[str, str] = {}

    # --- World ------------------------------------------------------------------------------------

    def decisions(self) -> Sequence[Event]:
        """See World."""
        return ()

    def begin(self, events: Sequence[Event]) -> None:
        """See World; there was nothing before."""

    def log(self, event: Event) -> None:
        """See World."""
        if event["event"] == "skipped":
            self.skipped |= {self._stored.get(i, i): str(event["why"]) for i in event["trials"]}

    def queue(self) -> Queue:
        """See World."""
        return Queue((), self._archive.store.root)

    def reached(self, _job: Job, /) -> tuple[int, ...]:
        """See World; no simulated worker is lost."""
        return ()

    def record(self, trial_id: str) -> TrialRecord | None:
        """See World."""
        return self._ended.get(trial_id)

    def job(self, cell: Cell, trial: Trial, order: int) -> Job:
        """See World."""
        if cell.study is None:
            self._stored[trial.id] = trial.id
        else:
            self.stand_in(cell)
        watch = watch_of(self._spec, self._targets, cell, order)
        return Job(
            trial, cell.label(trial), self._gpus, self._spec.resources.cpus,
            cell=cell.name, watch=watch,
        )  # fmt: skip

    def ended(self, cell: Cell, trial: Trial, order: int) -> None:
        """See World; a search drew what the file lists too."""
        watch = watch_of(self._spec, self._targets, cell, order)
        if watch is not None and watch.stop.rule != "patience":
            points = [p for p in sorted(self.curve(trial.id).items()) if watch.counts(p[0])]
            self._rungs_of(watch).learn(cell.key, order, trial.seed, points)

    def refused(self, cell: Cell) -> str | None:
        """See World."""
        record = self._archive.courses[self.stand_in(cell).trials[0].id].record
        infeasible = record.ending == "infeasible"
        return (record.error or {}).get("message", "") if infeasible else None

    def value(self, record: TrialRecord, target: Target) -> float:
        """See World."""
        return self._archive.value(self._stored[record.id], target)

    def curve(self, trial_id: str) -> Mapping[int, float]:
        """See World."""
        course = self._archive.courses[self._stored[trial_id]]
        pairs = list(zip(course.steps, course.values, strict=True))
        return {step: v for step, v in pairs[: self._reported[trial_id]] if v is not None}

    # --- for the clock ----------------------------------------------------------------------------

    def stand_in(self, cell: Cell) -> Cell:
        """The recorded configuration that answers for one that a search drew."""
        key = cell.key
        if key not in self._stands:
            self._stands[key] = stand = self._nearest[cell.study or ""].take(cell.knobs)
            of_seed = {one.seed: one.id for one in stand.trials}
            for trial in cell.trials:  # what the file lists too is itself
                self._stored.setdefault(trial.id, of_seed[trial.seed])
        return self._stands[key]

    def begins(self, job: Job, now_s: float) -> Ran:
        """A trial was given to a worker."""
        stored = self._stored[job.trial.id]
        # Where no rule watches, nothing happens before the end.
        points = 0 if job.watch else len(self._archive.courses[stored].steps)
        return Ran(job, stored, now_s, points)

    def next_s(self, one: Ran) -> float:
        """When something happens in a running trial."""
        course = self._archive.courses[one.stored]
        more = one.points < len(course.steps)
        return one.began_s + (course.times_s[one.points] if more else course.end_s)

    def goes_on(self, one: Ran, now_s: float) -> TrialRecord | None:
        """Let that happen; the record, where it ends the trial."""
        course, trial = self._archive.courses[one.stored], one.job.trial
        why = None
        if one.points < len(course.steps):
            why = self._report(one, course.steps[one.points], course.values[one.points])
            one.points += 1
            if why is None:
                return None
        record = replace(course.record, id=trial.id)
        if why is not None:
            rule = one.job.watch.rule if one.job.watch else ""
            note = {"kind": "stopped", "message": why, "traceback": "", "rule": rule}
            record = replace(record, status="pruned", error=note)
        one.ended_s, one.ending = now_s, record.ending
        self._reported[trial.id] = one.points
        self._ended[trial.id] = record
        return record

    def _report(self, one: Ran, step: int, value: float | None) -> str | None:
        """As ``TrialContext.report``: a point without the metric stops what others have stopped."""
        watch = one.job.watch
        if watch is None or not watch.counts(step):
            return None
        rungs, here = self._rungs_of(watch), watch.configuration
        if value is None:
            return rungs.stopped.get(here)
        return rungs.report(here, watch.order, one.job.trial.seed, step, value)

    def _rungs_of(self, watch: Watch) -> Rungs:
        if watch.arm not in self._rungs:
            self._rungs[watch.arm] = Rungs(watch.stop, larger_is_better=watch.larger_is_better)
        return self._rungs[watch.arm]


def simulate(
    spec: SweepSpec, plan: Plan, targets: Targets, world: Simulated, workers: int
) -> list[Ran]:
    """Run a sweep on the simulated clock; events at one time come in the order of their making.

    Returns:
        Each trial that ran, in the order in which they ended.
    """
    found: list[Ran] = []
    waiting: list[tuple[float, int, Ran]] = []
    now_s, made, free = 0.0, 0, True
    with Agenda(spec, plan, targets, world, ahead=False) as agenda:
        agenda.open(workers)
        while True:
            while free and len(waiting) < workers and (job := agenda.next()) is not None:
                one = world.begins(job, now_s)
                heappush(waiting, (world.next_s(one), made, one))
                made += 1
            if not waiting:
                return found
            now_s, _, one = heappop(waiting)
            record = world.goes_on(one, now_s)
            free = record is not None  # what comes next changes only when a trial has ended
            if record is None:
                heappush(waiting, (world.next_s(one), made, one))
                made += 1
            else:
                found.append(one)
                agenda.finished(one.job, record)


@dataclass(slots=True)
class Nearest:
    """Recorded configurations of one search, each of which stands in once.

    Distances are Euclidean in the unit cube of the knobs, on a logarithmic scale where they are
    drawn on one. Choices differ by 1 or not at all, and so does a knob that one of two lacks.

    Args:
        space: The knobs.
        cells: The configurations.
    """

    space: Mapping[str, Drawn]
    cells: Sequence[Cell]
    _left: list[int] = field(init=False)
    _codes: dict[str, dict[bytes, int]] = field(init=False)
    _places: np.ndarray[tuple[int, int], np.dtype[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self._left = list(range(len(self.cells)))
        self._codes = {name: {} for name in self.space}
        places = [self._place(cell.knobs) for cell in self.cells]
        self._places = np.array(places, dtype=np.float64).reshape(len(places), len(self.space))

    def take(self, knobs: Mapping[str, Any]) -> Cell:
        """The nearest that was not taken before; of equally near ones the first."""
        here = np.array(self._place(knobs), dtype=np.float64)
        there = self._places[self._left]
        apart = np.abs(there - here)
        for n, knob in enumerate(self.space.values()):
            if isinstance(knob, Choice):
                apart[:, n] = apart[:, n] > 0
        absent = np.isnan(there), np.isnan(here)
        apart = np.where(absent[0] | absent[1], absent[0] != absent[1], apart)
        return self.cells[self._left.pop(int((apart**2).sum(axis=1).argmin()))]

    def _place(self, knobs: Mapping[str, Any]) -> list[float]:
        return [self._of_one(name, knob, knobs) for name, knob in self.space.items()]

    def _of_one(self, name: str, knob: Drawn, knobs: Mapping[str, Any]) -> float:
        if name not in knobs:
            return math.nan
        if isinstance(knob, Choice):
            codes = self._codes[name]
            return codes.setdefault(canonical_json(knobs[name]), len(codes))
        ends = knob.low, knob.high, float(knobs[name])
        low, high, value = map(math.log, ends) if knob.log else ends
        return (value - low) / (high - low)


class SoFar(Store):
    """A store as a simulated run has filled it so far; its decisions are those of the real one.

    Args:
        store: The real one.
        ended: Simulated records by trial id.
    """

    def __init__(self, store: Store, ended: Mapping[str, TrialRecord]) -> None:
        super().__init__(store.root)
        self._ended = ended

    def records(self, ids: Iterable[str]) -> dict[str, TrialRecord]:
        """As of Store."""
        return {i: self._ended[i] for i in ids if i in self._ended}

    def finished(self) -> Iterator[str]:
        """As of Store."""
        return iter(self._ended)
