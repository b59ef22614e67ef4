"""In what order trials are handed out, so that workers do not queue behind one build.

Trials that need the same missing stage and start together wait for the one that builds it. So a
trial whose stages nobody is building goes first; among equals, the one with the lowest place.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from pathlib import Path

from hdsweep.execute import Job
from hdsweep.stages import is_whole


class Queue:
    """Jobs that wait, grouped by the stages that they ask for.

    Args:
        jobs: In the order of the plan; no trial twice.
        root: The store, for a look at which stages are there.
    """

    def __init__(self, jobs: Sequence[Job], root: Path) -> None:
        self._root = root
        self._there: set[str] = set()
        self._claimed: Counter[str] = Counter()  # missing folders of running jobs
        self._claims: dict[str, list[str]] = {}
        self._groups: dict[tuple[str, ...], list[tuple[float, int, Job]]] = {}
        self._order: list[tuple[float, tuple[str, ...]]] = []  # of each group's first job
        self._waiting: set[str] = set()
        self._added = 0
        for place, job in enumerate(jobs):
            self.add(job, place)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_place(self) -> float | None:
        """The lowest place that waits; None when none waits."""
        self._clear()
        return self._order[0][0] if self._order else None

    def add(self, job: Job, place: float) -> None:
        """Let a job wait; of equal places the first that came goes first."""
        waiting = self._groups.setdefault(job.stages, [])
        if not waiting or place < waiting[0][0]:
            if waiting:
                self._order.remove((waiting[0][0], job.stages))
            insort(self._order, (place, job.stages))
        heappush(waiting, (place, self._added, job))
        self._added += 1
        self._waiting.add(job.trial.id)

    def drop(self, ids: Collection[str]) -> None:
        """Trials that are not to be run any more; those that do not wait are let be."""
        self._waiting.difference_update(ids)

    def next(self) -> Job | None:
        """The job to hand out now, which is running from here on; None when none waits.

        It is the first of those with the fewest missing stages that running jobs ask for too.
        """
        self._clear()
        if not self._order:
            return None
        for folder in [f for f in self._claimed if self._is_there(f)]:
            del self._claimed[folder]
        job = self._take(self._least_blocked())
        self._waiting.discard(job.trial.id)
        if job.stages:
            missing = [folder for folder in job.stages if not self._is_there(folder)]
            self._claims[job.trial.id] = missing
            self._claimed.update(missing)
        return job

    def finished(self, job: Job) -> None:
        """The job runs no longer, however it ended."""
        for folder in self._claims.pop(job.trial.id, ()):
            if self._claimed[folder] > 1:
                self._claimed[folder] -= 1
            else:
                del self._claimed[folder]

    def _take(self, position: int) -> Job:
        """The first job of a group."""
        _, stages = self._order.pop(position)
        waiting = self._groups[stages]
        _, _, job = heappop(waiting)
        if waiting:
            insort(self._order, (waiting[0][0], stages))
        else:
            del self._groups[stages]
        return job

    def _clear(self) -> None:
        """Take dropped jobs from the front of every group."""
        dropped = True
        while dropped:
            dropped = False
            for position, (_, stages) in enumerate(self._order):
                if self._groups[stages][0][2].trial.id not in self._waiting:
                    self._take(position)
                    dropped = True
                    break

    def _least_blocked(self) -> int:
        """Position of a group in the order."""
        least, found = len(self._claimed) + 1, 0
        for position, (_, stages) in enumerate(self._order):
            blocked = sum(folder in self._claimed for folder in stages)
            if blocked < least:
                least, found = blocked, position
            if not least:
                break
        return found

    def _is_there(self, folder: str) -> bool:
        if folder not in self._there and is_whole(self._root / folder):
            self._there.add(folder)
        return folder in self._there
