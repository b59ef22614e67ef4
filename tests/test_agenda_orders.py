"""What an agenda decides whatever the order in which trials end, and where workers always die."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from hdsweep.agenda import Agenda
from hdsweep.configure import configurations
from hdsweep.execute import Job
from hdsweep.method import Data, Item
from hdsweep.plan import absolute_root, make_plan, validate_data
from hdsweep.retries import LOSSES
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.targets import resolve
from hdsweep.trial import Trial, TrialRecord
from hdsweep.world import StoreWorld
from tests.methods import labels
from tests.recording import keep, record_of

SWEEP: dict[str, Any] = {
    "name": "s",
    "method": "tests.methods.curves",
    "data": {"name": "tests.methods.labels", "root": "labels", "make": {"items": 40}},
    "seeds": [1, 2, 3, 4, 5, 6],
    "params": {"steps": 2},
    "arms": {"a": {"quality": {"grid": [0.1, 0.3, 0.5, 0.7, 0.72, 0.9]}}},
    "race": {"metric": "auroc", "looks": [3, 5]},
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc"]},
}
SEARCH: dict[str, Any] = {
    "race": None,
    "seeds": [1, 2],
    "arms": {"a": {"quality": {"uniform": [0, 1]}}},
    "search": {"trials": 6, "maximize": "auroc", "parallel": 1},
}


def no_pixels(item: Item) -> NoReturn:
    raise AssertionError(item)


@contextmanager
def agenda(home: Path, **changed: Any) -> Iterator[tuple[Agenda, Store]]:
    """Of a sweep in a store of its own; what its workers do is the test's."""
    home.mkdir(exist_ok=True)
    path = home / "s.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**SWEEP, **changed}.items() if v}))
    spec, store = load_sweep(path), Store(home / "results")
    store.create()
    params = absolute_root(validate_data(spec, labels.Params))
    plan = make_plan(spec, configurations(spec), params, "0" * 64, store)
    store.put_sweep(plan.sweep(spec, ("x", "y")), path.read_bytes())
    targets = resolve(spec)
    nothing = Data((), (), ("x", "y"), read=no_pixels)  # nobody looks at the data here
    world = StoreWorld(spec, plan, targets, store, nothing, nothing.groups, 0)
    clock = itertools.count()  # each look at it is a second later
    with Agenda(spec, plan, targets, world, ahead=False, clock=lambda: next(clock)) as found:
        yield found, store


def ended(trial: Trial, failed: bool = False) -> TrialRecord:
    if failed:
        error = {"kind": "method", "message": "bug", "traceback": ""}
        return record_of(trial, [], status="failed", metrics={}, error=error)
    quality = trial.params["quality"]
    noise = np.random.default_rng([trial.seed, int(1000 * quality)]).standard_normal()
    value = float(0.5 + quality / 2 + 0.005 * noise)
    return record_of(trial, [], metrics={"auroc": {"x": value, "y": value}})


def drive(
    found: Agenda,
    store: Store,
    rng: random.Random,
    workers: int,
    dies: Callable[[Trial], bool] = lambda trial: False,
    fails: Callable[[Trial], bool] = lambda trial: False,
) -> list[tuple[float, int]]:
    """Let trials end in a random order; quality and seed of those that were handed out."""
    running: list[Job] = []
    begun = []
    found.open(workers)
    while True:
        while len(running) < workers and (job := found.next()) is not None:
            running.append(job)
            begun.append((job.trial.params["quality"], job.trial.seed))
        if not running and found.is_done:
            return begun
        if not running:
            continue  # one waits to be tried again
        job = running.pop(rng.randrange(len(running)))
        if dies(job.trial):
            found.lost(job)
            continue
        record = ended(job.trial, fails(job.trial))
        keep(store, record, [])
        found.finished(job, record)


def is_it(trial: Trial, seed: int) -> bool:
    """Whether it is this seed of the best configuration."""
    return bool(trial.params["quality"] == 0.9 and trial.seed == seed)


@pytest.mark.parametrize("workers", [1, 5])
def test_a_race_decides_alike_in_whatever_order_trials_end(tmp_path: Path, workers: int) -> None:
    """The leader fails at a seed that is run ahead of a look, or not."""
    outcomes = set()
    for n in range(12):
        with agenda(tmp_path / str(n)) as (found, store):
            drive(found, store, random.Random(n), workers, fails=lambda one: is_it(one, 4))
            whys = {e["why"] for e in store.decisions("s") if e["event"] == "skipped"}
            # Where all of its seeds had ended, there was nothing to be skipped.
            outcomes.add(frozenset(why.split(" by ")[0] for why in whys if why.startswith("race")))
    # Judged by what it had before it failed.
    assert outcomes == {frozenset({"race: worse than 'a quality=0.9'"})}


def test_a_sequential_search_goes_on_past_a_configuration_whose_workers_die(
    tmp_path: Path,
) -> None:
    with agenda(tmp_path, **SEARCH) as (found, store):
        first: list[float] = []

        def dies(trial: Trial) -> bool:
            first.append(trial.params["quality"])
            return bool(trial.params["quality"] == first[0])

        begun = drive(found, store, random.Random(0), 2, dies)
        assert found.expected == 12
    assert len({quality for quality, _ in begun}) == 6
    assert 1 + LOSSES <= begun.count((first[0], 1)) + begun.count((first[0], 2)) <= 2 + 2 * LOSSES
    told = [e for e in store.decisions("s") if e["event"] == "told"]
    assert [e["number"] for e in told] == list(range(6))
    assert [e["state"] for e in told] == ["failed"] + ["complete"] * 5
    lost, *others = store.sweep("s").cells
    assert lost.skipped == ""  # the next run tries it again
    # Which then is told anew, and nothing else is run.
    with agenda(tmp_path, **SEARCH) as (found, store):
        assert set(drive(found, store, random.Random(0), 2)) == {(first[0], 1), (first[0], 2)}
    assert [cell.state for cell in store.sweep("s").cells] == ["complete"] * 6
    assert [cell.knobs for cell in store.sweep("s").cells] == [c.knobs for c in (lost, *others)]


@pytest.mark.parametrize("seed", [2, 4])
def test_a_race_goes_on_past_a_configuration_whose_worker_dies(tmp_path: Path, seed: int) -> None:
    with agenda(tmp_path) as (found, store):
        begun = drive(found, store, random.Random(1), 5, lambda trial: is_it(trial, seed))
    assert begun.count((0.9, seed)) == 1 + LOSSES
    of_quality = {cell.knobs["quality"]: cell for cell in store.sweep("s").cells}
    assert of_quality[0.1].skipped.startswith("race: worse than")
    if seed == 2:  # it did not come to the first look
        assert len(store.records(of_quality[0.72].trials.values())) == 6
    assert of_quality[0.9].skipped == ""  # it is not finished
    assert len(store.records(of_quality[0.9].trials.values())) < 6


def test_a_trial_that_died_when_nobody_needed_it_any_more_is_skipped(tmp_path: Path) -> None:
    with agenda(tmp_path) as (found, store):
        found.open(9)
        jobs = list(iter(found.next, None))
        one, *others = [job for job in jobs if job.trial.params["quality"] == 0.9]
        record = ended(one.trial, failed=True)
        keep(store, record, [])
        found.finished(one, record)
        assert [found.lost(job) for job in others] == [False] * len(others)
    skipped = [i for e in store.decisions("s") if e["event"] == "skipped" for i in e["trials"]]
    assert {job.trial.id for job in others} <= set(skipped)
