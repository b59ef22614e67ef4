"""What is tried again, when, and with how much more.

A worker that was lost is no fault of its trial: it is tried again for as long as it gets on, and
some times where it does not, each after a longer wait. A trial that ran out of memory would do so
again; it is given a larger share of what it ran out of.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hdsweep.execute import Job

LOSSES = 4  # times in a row that a trial may lose its worker and get no further
_FIRST_S, _LONGEST_S = 1.0, 60.0


def wait_s(trial_id: str, losses: int) -> float:
    """How long a trial that lost so many workers waits: doubled each time, up to a minute.

    Trials that were lost together do not come back together: each waits its own part of it, from
    a half to all.
    """
    part = 0.5 + int(trial_id[:8], 16) / 2**33
    return float(min(_LONGEST_S, _FIRST_S * 2 ** (losses - 1)) * part)


class Retries:
    """Trials that wait until they are tried again.

    Args:
        clock: In seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._losses: Counter[str] = Counter()
        self._reached: dict[str, tuple[int, ...]] = {}
        self._waiting: list[tuple[float, int, Job]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def lost(self, job: Job, reached: tuple[int, ...]) -> bool:
        """Let a trial wait that lost its worker; whether it may be tried again.

        Args:
            job: Of the trial.
            reached: How far it has come; compared with how far it had when it was lost before.
        """
        trial_id = job.trial.id
        if reached > self._reached.get(trial_id, ()):
            self._losses[trial_id] = 0
        self._reached[trial_id] = reached
        self._losses[trial_id] += 1
        losses = self._losses[trial_id]
        if losses > LOSSES:
            return False
        heapq.heappush(self._waiting, (self._clock() + wait_s(trial_id, losses), self._added, job))
        self._added += 1
        return True

    def ready(self) -> list[Job]:
        """Those whose wait is over, which wait no longer."""
        found = []
        while self._waiting and self._waiting[0][0] <= self._clock():
            found.append(heapq.heappop(self._waiting)[2])
        return found


def larger(job: Job, out_of: str, cpus: int) -> Job | None:
    """The job with more of the memory that it ran out of; None where no more can be had.

    Args:
        job: As it was run.
        out_of: ``gpu``, whose share is doubled up to a whole one, or ``host``: then nothing else
            runs beside it on its machine, which is had by asking for all its processors. The
            threads stay as they are, and so do the results.
        cpus: Of the largest machine.
    """
    if out_of == "gpu":
        return replace(job, gpus=min(1.0, 2 * job.gpus)) if 0 < job.gpus < 1 else None
    return replace(job, cpus=cpus) if cpus_of(job) < cpus else None


def cpus_of(job: Job) -> int:
    """Processors that a trial holds."""
    return max(job.cpus, job.threads)


def attempt(job: Job, what: str, message: str) -> Mapping[str, Any]:
    """What a record keeps of an attempt that came to nothing: what was given, what happened."""
    return {"what": what, "message": message, "gpus": job.gpus, "cpus": cpus_of(job)}
