"""In what order trials are handed out, so that workers do not queue behind one build.

Trials that need the same missing stage and start together wait for the one that builds it. So a
trial whose stages nobody is building goes first; among equals, the first in the plan.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
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
        self._groups: dict[tuple[str, ...], deque[tuple[int, Job]]] = {}
        for place, job in enumerate(jobs):
            self._groups.setdefault(job.stages, deque()).append((place, job))
        # In the order of each group's first job.
        self._order = [(waiting[0][0], stages) for stages, waiting in self._groups.items()]

    def next(self) -> Job | None:
        """The job to hand out now, which is running from here on; None when none waits.

        It is the first of those with the fewest missing stages that running jobs ask for too.
        """
        if not self._order:
            return None
        for folder in [f for f in self._claimed if self._is_there(f)]:
            del self._claimed[folder]
        _, stages = self._order.pop(self._least_blocked())
        waiting = self._groups[stages]
        _, job = waiting.popleft()
        if waiting:
            insort(self._order, (waiting[0][0], stages))
        else:
            del self._groups[stages]
        if stages:
            missing = [folder for folder in stages if not self._is_there(folder)]
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
