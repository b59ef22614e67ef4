"""What deciding costs the driver of a long search: time for each trial, and memory.

    python -m benchmarks.agenda_cost [--configurations 10000] [--sampler random]

The agenda of a real sweep file hands out jobs and takes records back, eight at a time, in a world
that is all in memory: nothing is run, and no record is read or written. So it is the driver's own
work, the sampler's included, without Ray.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hdsweep.agenda import Agenda
from hdsweep.configure import configurations
from hdsweep.execute import Job
from hdsweep.method import load_dataset
from hdsweep.plan import make_plan, validate_data
from hdsweep.planner import Cell
from hdsweep.queue import Queue
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.targets import Target, resolve
from hdsweep.trial import Trial, TrialRecord

WORKERS = 8


class InMemory:
    """See ``hdsweep.entries.World``; a trial is as good as its learning rate is near 1e-3."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.records: dict[str, TrialRecord] = {}
        self.lines = 0

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        """Nothing was decided before."""
        return ()

    def begin(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Nothing is kept."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Counted."""
        del event
        self.lines += 1

    def queue(self) -> Queue:
        """An empty one."""
        return Queue((), self._root)

    def job(self, cell: Cell, trial: Trial, order: int) -> Job:
        """A trial without resources."""
        del order
        return Job(trial, cell.label(trial), 0.0, 1, cell=cell.name)

    def record(self, trial_id: str) -> TrialRecord | None:
        """Of what was taken back."""
        return self.records.get(trial_id)

    def ended(self, cell: Cell, trial: Trial, order: int) -> None:
        """No rule compares."""

    def refused(self, cell: Cell) -> str | None:
        """Nothing is refused."""
        del cell
        return None

    def value(self, record: TrialRecord, target: Target) -> float:
        """As it was made."""
        return record.scalars[target.metric.name]

    def curve(self, trial_id: str) -> Mapping[int, float]:
        """None has one."""
        del trial_id
        return {}


def main() -> None:
    """Run one search and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=10_000)
    parser.add_argument("--sampler", default="random")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.yaml"
        sweep = {
            "name": "long",
            "method": "tests.methods.curves",
            "data": {"name": "tests.methods.labels", "root": "labels"},
            "seeds": [1, 2, 3],
            "arms": {"tuned": {"quality": {"uniform": [0, 1]}, "lr": {"log_uniform": [1e-4, 1]}}},
            "search": {
                "trials": given.configurations, "minimize": "cost", "sampler": given.sampler,
            },
        }  # fmt: skip
        path.write_text(yaml.safe_dump(sweep))
        spec, store = load_sweep(path), Store(Path(folder) / "results")
        data = validate_data(spec, load_dataset(spec.data_name).params)
        plan = make_plan(spec, configurations(spec), data, "f" * 64, store)
        world, trials = InMemory(store.root), 0
        began = time.perf_counter()
        with Agenda(spec, plan, resolve(spec), world) as agenda:
            agenda.open(WORKERS)
            running: list[Job] = []
            while True:
                while len(running) < WORKERS and (job := agenda.next()) is not None:
                    running.append(job)
                if not running:
                    break
                job = running.pop(0)
                cost = abs(float(job.trial.params["lr"]) - 1e-3) + job.trial.seed * 1e-6
                record = TrialRecord(job.trial.id, "ok", {}, scalars={"cost": cost})
                world.records[record.id] = record
                agenda.finished(job, record)
                trials += 1
        took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{given.sampler}: {given.configurations} configurations, {trials} trials")
    print(f"{took:.1f} s, {1000 * took / trials:.2f} ms a trial; peak {peak:.0f} MB; "
          f"{world.lines} lines logged")  # fmt: skip


if __name__ == "__main__":
    main()
