"""Trials one after another in this process: for debugging, and for machines without Ray."""

from __future__ import annotations

from collections.abc import Sequence

from hdsweep.execute import Job, Listener, origin_of, run_trial
from hdsweep.store import Store


def launch(jobs: Sequence[Job], store: Store, listener: Listener) -> None:
    """Run ``jobs`` in order; what a method prints goes to the terminal, so a debugger works."""
    for job in jobs:
        listener.started(job)
        listener.finished(job, run_trial(job, store, origin_of(job), capture=False))
