"""What is tried again, when, and with how much more."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hdsweep.execute import Job
from hdsweep.identity import digest
from hdsweep.retries import LOSSES, Retries, attempt, larger, wait_s
from hdsweep.trial import Trial


def job(name: str = "one", gpus: float = 0.25, threads: int = 1) -> Job:
    trial = Trial(digest(name), "noise", 1, {}, "labels", {}, "f", 1, {})
    return Job(trial, name, gpus, threads)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_wait_is_about_twice_the_last_and_none_is_longer_than_a_minute() -> None:
    waits = [wait_s(digest("one"), losses) for losses in range(1, 12)]
    assert 0.5 <= waits[0] <= 1
    assert all(b == min(2 * a, b) for a, b in pairwise(waits))
    assert 30 <= waits[-1] <= 60


def test_trials_that_are_lost_together_come_back_one_after_another() -> None:
    waits = {wait_s(digest(name), 5) for name in range(50)}
    assert len(waits) == 50
    assert max(waits) - min(waits) > 5  # of 8 to 16 s


def test_a_trial_waits_out_its_time_and_is_then_handed_out_once() -> None:
    clock = Clock()
    retries = Retries(clock)
    assert retries.lost(job(), (0,))
    assert (len(retries), retries.ready()) == (1, [])
    clock.now = 1.0
    assert [found.label for found in retries.ready()] == ["one"]
    assert (len(retries), retries.ready()) == (0, [])


def test_a_trial_that_gets_no_further_is_left_after_some_losses() -> None:
    retries = Retries(Clock())
    found = [retries.lost(job(), (3,)) for _ in range(LOSSES + 1)]
    assert found == [True] * LOSSES + [False]


def test_a_trial_that_gets_on_is_tried_again_for_ever() -> None:
    retries = Retries(Clock())
    assert all(retries.lost(job(), (step,)) for step in range(100))
    assert all(retries.lost(job(), (100, stages)) for stages in range(100))


def test_out_of_gpu_memory_doubles_the_share_up_to_a_whole_gpu() -> None:
    found, shares = job(gpus=0.25), []
    while (more := larger(found, "gpu", cpus=8)) is not None:
        found = more
        shares.append(found.gpus)
    assert shares == [0.5, 1.0]
    assert found.threads == 1


@pytest.mark.parametrize(("share", "next_share"), [(0.3, 0.6), (0.6, 1.0), (1.0, None), (2, None)])
def test_no_trial_is_given_more_gpus_than_it_asks_for(
    share: float, next_share: float | None
) -> None:
    more = larger(job(gpus=share), "gpu", cpus=8)
    assert (more and more.gpus) == next_share


def test_out_of_memory_runs_a_trial_alone_with_the_threads_it_had() -> None:
    more = larger(job(gpus=0, threads=2), "host", cpus=8)
    assert more is not None
    assert (more.cpus, more.threads) == (8, 2)
    assert larger(more, "host", cpus=8) is None
    assert larger(job(gpus=0, threads=8), "host", cpus=8) is None
    assert attempt(more, "out of memory (host)", "MemoryError: ")["cpus"] == 8
