"""A person sees how far a sweep is, what is best so far, and no promise that it cannot keep."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hdsweep.execute import Job
from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import definitions, parse_metric
from hdsweep.progress import Progress
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

GROUPS = ("A", "B")


def job(cell: str, seed: int) -> Job:
    identity = {"cell": cell}
    made = Trial(digest([cell, seed]), "m", 1, {}, "d", {}, "f", seed, identity)
    return Job(made, f"{cell} seed={seed}", 0, 1, cell=cell)


def record(of: Job, value: float | None = None, **fields: object) -> TrialRecord:
    metrics = {} if value is None else {"auroc": {"A": value - 0.1, "B": value + 0.1}}
    values = {"status": "ok", "metrics": metrics, "definitions": definitions(metrics), **fields}
    return TrialRecord(id=of.trial.id, trial=of.trial.to_json(), **values)  # type: ignore[arg-type]


class Screen:
    """A progress that writes into memory, with a total that a test may change."""

    def __init__(
        self,
        store: Store,
        metric: str = "auroc",
        *,
        larger: bool | None = True,
        cached: int = 0,
        color: bool = False,
    ) -> None:
        self.file, self.total = io.StringIO(), 4
        self.console = Console(
            file=self.file,
            width=200,
            force_terminal=color,
            color_system="standard" if color else None,
        )
        self.progress = Progress(
            self.console, "s", total=lambda: self.total, cached=lambda: cached,
            metric=parse_metric(metric, ("latency_ms",)), larger_is_better=larger, store=store,
            groups=GROUPS,
        )  # fmt: skip

    def block(self) -> str:
        with self.console.capture() as captured:
            self.console.print(self.progress._block())
        return captured.get()

    def finish(self, of: Job, value: float | None = None, **fields: object) -> None:
        self.progress.started(of)
        self.progress.finished(of, record(of, value, **fields))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


STOPPED = {"kind": "stopped", "message": "asha: low at step 200", "traceback": ""}


def test_a_line_per_trial_counts_against_what_is_known_now(store: Store) -> None:
    screen = Screen(store, cached=1)
    with screen.progress:
        screen.finish(job("plain", 1), 0.5)
        screen.total = 9
        screen.finish(job("tuned #0 lr=0.01", 1), status="pruned", error=STOPPED)
        screen.total = 2  # the rest was skipped, and one more than that was under way
        screen.finish(job("plain", 2), 0.5)
    first, second, third = screen.file.getvalue().splitlines()
    assert first.startswith("[2/4] ok       plain seed=1  auroc 0.5000")
    assert second.startswith("[3/9] pruned   tuned #0 lr=0.01 seed=1: asha: low at step 200")
    assert third.startswith("[4/4] ok       plain seed=2")


def test_stopped_trials_are_counted_apart_from_failed_ones(store: Store) -> None:
    screen = Screen(store)
    screen.finish(job("a", 1), 0.5)
    assert "pruned" not in screen.block()
    for seed in (1, 2, 3):
        screen.finish(job("b", seed), status="pruned", error=STOPPED)
    screen.finish(job("c", 1), status="failed", error={"kind": "method", "message": "no"})
    assert "1 failed  3 pruned" in screen.block()


def test_a_stopped_trial_is_yellow(store: Store) -> None:
    screen = Screen(store, color=True)
    screen.finish(job("b", 1), status="pruned", error=STOPPED)
    assert "\x1b[33mpruned" in screen.file.getvalue()


def test_the_best_configuration_is_named_with_what_was_drawn(store: Store) -> None:
    screen = Screen(store)
    assert "best" not in screen.block()
    for cell, values in {"plain": (0.5, 0.6), "tuned #12 lr=0.003162": (0.8, 0.6)}.items():
        for seed, value in enumerate(values):
            screen.finish(job(cell, seed), value)
    screen.finish(job("tuned #13 lr=0.1", 1), 0.89, status="pruned")
    assert "best auroc 0.7000  tuned #12 lr=0.003162 (2 seeds so far)" in screen.block()


def test_what_ran_before_is_not_spoken_for(store: Store) -> None:
    screen = Screen(store, cached=1)
    screen.finish(job("plain", 2), 0.5)
    assert "best auroc 0.5000  plain (1 seed in this run)" in screen.block()


@pytest.mark.parametrize(("larger", "best"), [(True, "slow"), (False, "fast"), (None, None)])
def test_the_best_of_a_scalar_is_as_the_sweep_says_or_nobody_knows(
    store: Store, larger: bool | None, best: str | None
) -> None:
    screen = Screen(store, "latency_ms", larger=larger)
    for cell, value in {"slow": 20.0, "fast": 5.0}.items():
        screen.finish(job(cell, 1), scalars={"latency_ms": value})
    shown = [line.split() for line in screen.block().splitlines() if "best" in line]
    assert [words[3] for words in shown] == ([best] if best else [])


def test_a_value_that_the_record_lacks_is_that_of_the_report(store: Store) -> None:
    screen, made = Screen(store, "tpr@7"), job("plain", 1)
    label = np.tile([False, True], 40)
    group = tuple(np.repeat(GROUPS, 40).tolist())
    items = tuple(map(str, range(80)))
    store.put_predictions(made.trial.id, Predictions(items, group, label, label.astype(float)))
    screen.finish(made)
    assert "plain seed=1  tpr@7 1.0000" in screen.file.getvalue()


def test_damaged_predictions_end_no_run(store: Store) -> None:
    screen, made = Screen(store, "tpr@7"), job("plain", 1)
    store.put(record(made))
    (store.trial_dir(made.trial.id) / "predictions.parquet").write_bytes(b"not parquet")
    screen.finish(made)
    assert screen.file.getvalue().startswith("[1/4] ok       plain seed=1  (")


def test_the_time_left_follows_what_is_left(store: Store) -> None:
    screen = Screen(store, cached=1)
    assert "ETA" not in screen.block()  # nothing is known of how long a trial takes
    screen.finish(job("a", 1), 0.5)
    assert "ETA" in screen.block()
    screen.total = 2
    assert "ETA" not in screen.block()
    assert "2/2 done" in screen.block()
    screen.total = 1
    assert "ETA" not in screen.block()
    assert "2/2 done" in screen.block()
    screen.total = 40
    assert "ETA" in screen.block()
    assert "2/40 done" in screen.block()
