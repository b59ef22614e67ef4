"""A sweep's configurations while it runs, and the world in which decisions about them are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hdsweep.execute import Job
from hdsweep.planner import Cell
from hdsweep.queue import Queue
from hdsweep.targets import Target
from hdsweep.trial import Ending, Trial, TrialRecord

Event = Mapping[str, Any]


class World(Protocol):
    """What the decisions are made in: the store, or a simulation of it."""

    def decisions(self) -> Sequence[Event]:
        """What was logged before, in order."""

    def begin(self, events: Sequence[Event]) -> None:
        """Make the log hold these only: what is not derived anew."""

    def log(self, event: Event) -> None:
        """Append to the log."""

    def queue(self) -> Queue:
        """An empty one."""

    def job(self, cell: Cell, trial: Trial, order: int) -> Job:
        """A trial as it is handed to a worker; ``order`` is that of its configuration."""

    def reached(self, job: Job, /) -> tuple[int, ...]:
        """How far a trial has come that has not ended; larger is further."""

    def record(self, trial_id: str) -> TrialRecord | None:
        """Of a finished trial."""

    def ended(self, cell: Cell, trial: Trial, order: int) -> None:
        """A trial was ok before this run: a stopping rule compares others with it."""

    def refused(self, cell: Cell) -> str | None:
        """Why a drawn configuration cannot be run on such data; it is recorded then."""

    def value(self, record: TrialRecord, target: Target) -> float:
        """One trial's value; NaN where it has none."""

    def curve(self, trial_id: str) -> Mapping[int, float]:
        """Step -> value of what the stopping rule watches."""


@dataclass(slots=True, eq=False)
class Entry:
    """A configuration and what is known of its trials.

    Args:
        cell: Its trials.
        order: Its number among those that a stopping rule compares it with.
        same_as: An earlier one of the same search, whose trials are these.
        ending: Trial id -> how it ended.
        values: Trial id -> one value per target, of those that are ok.
        waits: Trials of it that wait or run.
        lost: Trials of it that lost too many workers in this run; how they end is not known.
        bugs: Trials of it that an error of their method ended, as the method is today.
        dropped: Why it gets no more seeds.
    """

    cell: Cell
    order: int
    same_as: Entry | None = None
    ending: dict[str, Ending] = field(default_factory=dict)
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    waits: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    bugs: set[str] = field(default_factory=set)
    dropped: str = ""

    @property
    def open_ids(self) -> list[str]:
        """Trials that have not ended."""
        return [t.id for t in self.cell.trials if t.id not in self.ending]

    @property
    def ended_badly(self) -> tuple[Trial, Ending] | None:
        """The first seed that ended otherwise than ok."""
        return self.bad_among(None)

    def bad_among(self, seeds: int | None) -> tuple[Trial, Ending] | None:
        """As ``ended_badly``, of the first ``seeds``."""
        for trial in self.cell.trials[:seeds]:
            ending = self.ending.get(trial.id, "ok")
            if ending != "ok":
                return trial, ending
        return None

    @property
    def bug(self) -> Trial | None:
        """The first seed that its method's error ended, where none has shown that it can run."""
        if self.values:
            return None
        return next((trial for trial in self.cell.trials if trial.id in self.bugs), None)

    @property
    def is_whole(self) -> bool:
        """Whether every seed is ok."""
        return len(self.values) == len(self.cell.trials)

    def of(self, target: int, seeds: int | None = None) -> list[float]:
        """Values of a target by seed, of those that are ok among the first ``seeds``."""
        trials = self.cell.trials[:seeds]
        return [self.values[t.id][target] for t in trials if t.id in self.values]

    def mean(self, target: int) -> float:
        """Over the seeds that are ok; NaN without any."""
        found = self.of(target)
        return math.fsum(found) / len(found) if found else math.nan
