"""Trials one after another in this process: for debugging, and for machines without Ray."""

from __future__ import annotations

from hdsweep.agenda import Agenda
from hdsweep.execute import Listener, origin_of, run_trial
from hdsweep.store import Store


def launch(agenda: Agenda, store: Store, listener: Listener) -> None:
    """Run what there is; what a method prints goes to the terminal, so a debugger works."""
    agenda.open(1)
    while (job := agenda.next()) is not None:
        listener.started(job)
        record = run_trial(job, store, origin_of(job), capture=False)
        agenda.finished(job, record)
        listener.finished(job, record)
