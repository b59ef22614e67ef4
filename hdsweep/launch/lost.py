"""What became of a trial whose worker is gone: its own fault, or none of its own."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hdsweep.agenda import Agenda
from hdsweep.deadline import was_given_up
from hdsweep.execute import Job, Listener, origin_of, record_ended
from hdsweep.retries import LOSSES, attempt, cpus_of, larger
from hdsweep.store import Store

_TOO_OFTEN = f"its worker died {1 + LOSSES} times and it got no further; see ray.log of the sweep"
_LOW = re.compile(r"running low on memory|OutOfMemoryError")
_KERNEL = Path("/proc/vmstat")  # counts the processes that the kernel ended for want of memory


class Losses:
    """Tells the agenda and the listener of trials that ended without a result.

    Args:
        agenda: What is run.
        store: Where records go.
        listener: Told what happens.
        cpus: Of the largest machine.
    """

    def __init__(self, agenda: Agenda, store: Store, listener: Listener, cpus: int) -> None:
        self._agenda, self._store, self._listener = agenda, store, listener
        self._cpus = cpus
        self._started: dict[str, datetime] = {}
        self._killed = killed_for_memory()

    def handed_out(self, job: Job) -> Job:
        """The job with the kinds of memory of which it can be given more."""
        return replace(job, grows=tuple(k for k in ("gpu", "host") if larger(job, k, self._cpus)))

    def started(self, job: Job) -> None:
        """The trial was given to a worker."""
        self._started[job.trial.id] = datetime.now(UTC)
        self._listener.started(job)

    def out_of_memory(self, job: Job, of: str, message: str) -> None:
        """The trial says so; it is tried again with more."""
        more = larger(job, of, self._cpus)
        if more is None:  # it was not to say so then
            self.lost(job, message)
            return
        tried = (*job.attempts, attempt(job, f"out of memory ({of})", message))
        self._agenda.starved(job, replace(more, attempts=tried))
        asks = f"{more.gpus:g} of a GPU" if of == "gpu" else f"all {cpus_of(more)} processors"
        self._listener.lost(job, f"out of memory; again with {asks}")

    def lost(self, job: Job, reason: str) -> None:
        """The trial's worker is gone.

        Args:
            job: Of the trial.
            reason: What Ray says of it.
        """
        if self._was_over_its_time(job):
            self._end(job, None)
            return
        killed, before = killed_for_memory(), self._killed
        self._killed = killed
        if _LOW.search(reason) or killed > before:
            why = "its worker was ended because the machine ran low on memory"
            if larger(job, "host", self._cpus) is None:
                self._end(job, why)
            else:
                self.out_of_memory(job, "host", why)
            return
        too_often = self._agenda.lost(job)
        self._listener.lost(job, _TOO_OFTEN if too_often else "its worker died; it is tried again")

    def _was_over_its_time(self, job: Job) -> bool:
        log = self._store.trial_dir(job.trial.id) / "log.txt"
        with contextlib.suppress(OSError):
            return job.timeout_s is not None and was_given_up(log.read_text(errors="replace"))
        return False

    def _end(self, job: Job, why: str | None) -> None:
        started = self._started.get(job.trial.id, datetime.now(UTC))
        record = record_ended(job, self._store, origin_of(job), started, why)
        self._agenda.finished(job, record)
        self._listener.finished(job, record)


def killed_for_memory() -> int:
    """How many processes of this machine the kernel has ended for want of memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in _KERNEL.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
