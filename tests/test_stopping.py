"""When a configuration is stopped: as Ray Tune's rules say, by its seeds, and across processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdsweep.curve import read_points
from hdsweep.errors import StoreError
from hdsweep.rungs import Arrival, _bracket, _quantile
from hdsweep.stopping import (
    Rungs,
    SharedRungs,
    Watch,
    points_of,
    rule_digest,
    rule_of,
    shared_rungs,
)
from hdsweep.strategy import Stop

ASHA = Stop(rule="asha", metric="auroc", grace=1, reduction=3)
MEDIAN = Stop(rule="median", metric="auroc", grace=2, interval=1, startup=2)
NAN = float("nan")


def rungs(larger_is_better: bool = True, **stop: Any) -> Rungs:
    given = {"rule": "asha", "metric": "auroc", "grace": 1, **stop}
    if given["rule"] in ("asha", "hyperband"):
        given.setdefault("reduction", 2)
    return Rungs(Stop.model_validate(given), larger_is_better=larger_is_better)


def shared(root: Path, stop: Stop = ASHA, **options: Any) -> SharedRungs:
    return SharedRungs(
        root, "sweep", "arm", stop, larger_is_better=True, **{"look_s": 0, **options}
    )


def lines(root: Path) -> list[dict[str, Any]]:
    text = (root / "sweeps/sweep/rungs/arm.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# --- Against Ray ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RaysTrial:
    """All that Ray's schedulers look at."""

    trial_id: str


def reports(
    random: np.random.Generator, trials: int, steps: int, skip: float
) -> Iterator[tuple[int, int, float]]:
    """Trial, step and value of interleaved curves, with values that are often equal."""
    at = np.zeros(trials, dtype=int)
    while (left := np.flatnonzero(at < steps)).size:
        trial = int(random.choice(left))
        at[trial] += 1
        if random.random() >= skip:
            noise = random.standard_normal() * (random.random() < 0.7)
            yield trial, int(at[trial]), float(np.round(8 * (trial / trials + 0.3 * noise)) / 8)


def verdicts_of_ray(
    scheduler: Any, stream: list[tuple[int, int, float]], missing: Any
) -> list[tuple[int, int]]:
    """Trial and step of each stop."""
    trials = {n: RaysTrial(str(n)) for n, _, _ in stream}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    stopped: dict[int, int] = {}
    for n, step, value in stream:
        if n not in stopped:
            result = {"auroc": missing if math.isnan(value) else value, "step": step}
            if scheduler.on_trial_result(None, trials[n], result) == "STOP":
                stopped[n] = step
    return list(stopped.items())


def verdicts(found: Rungs, stream: list[tuple[int, int, float]]) -> list[tuple[int, int]]:
    stopped: dict[int, int] = {}
    for n, step, value in stream:
        if n not in stopped and found.report(str(n), n, 42, step, value):
            stopped[n] = step
    return list(stopped.items())


@pytest.mark.parametrize("skip", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nan", [0.0, 0.2])
@pytest.mark.parametrize("larger", [True, False])
def test_with_one_seed_asha_decides_as_rays_does(larger: bool, nan: float, skip: float) -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    random = np.random.default_rng([int(larger), int(10 * nan), int(10 * skip)])
    worst, stops = -1e300 if larger else 1e300, 0
    for _ in range(25):
        grace, reduction = int(random.integers(1, 4)), float(random.choice([2, 3, 4, 2.5, 1.3]))
        stream = [
            (n, step, NAN if random.random() < nan else value)
            for n, step, value in reports(random, trials=12, steps=30, skip=skip)
        ]
        rays = AsyncHyperBandScheduler(
            time_attr="step", metric="auroc", mode="max" if larger else "min", max_t=10**6,
            grace_period=grace, reduction_factor=reduction,
        )  # fmt: skip
        own = rungs(larger, grace=grace, reduction=reduction)
        # A NaN is the worst here, where Ray lets it pass; so Ray is shown a very bad value.
        found = verdicts(own, stream)
        assert found == verdicts_of_ray(rays, stream, worst)
        stops += len(found)
    assert stops > 50


@pytest.mark.parametrize("skip", [0.0, 0.5])
@pytest.mark.parametrize("larger", [True, False])
def test_within_a_bracket_hyperband_decides_as_rays_does(larger: bool, skip: float) -> None:
    from ray.tune.schedulers.async_hyperband import _Bracket

    random, stops = np.random.default_rng([int(larger), int(10 * skip)]), 0
    for _ in range(20):
        own = rungs(larger, rule="hyperband", grace=1, reduction=2, brackets=3)
        rays = [_Bracket(1, 10**6, 2, s) for s in range(3)]
        stopped = set()
        for n, step, value in reports(random, trials=24, steps=12, skip=skip):
            if n in stopped:
                continue
            bracket = rays[_bracket(own._stop, n)]
            wanted = bracket.on_result(RaysTrial(str(n)), step, value if larger else -value)
            found = own.report(str(n), n, 42, step, value)
            assert (found is not None) == (wanted == "STOP")
            stopped |= {n} if found else set()
        stops += len(stopped)
    assert stops > 50


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("grace", [1, 4])
def test_with_one_seed_and_a_look_at_each_step_the_median_rule_is_rays(
    larger: bool, grace: int
) -> None:
    from ray.tune.schedulers import MedianStoppingRule

    random, stops = np.random.default_rng([int(larger), grace]), 0
    for _ in range(25):
        startup = int(random.integers(1, 5))
        stream = list(reports(random, trials=10, steps=12, skip=0))
        rays = MedianStoppingRule(
            time_attr="step", metric="auroc", mode="max" if larger else "min",
            grace_period=grace, min_samples_required=startup,
        )  # fmt: skip
        own = rungs(larger, rule="median", grace=grace, interval=1, startup=startup)
        # Trials that wait would have Ray pause one; here none does.
        found = verdicts(own, stream)
        assert found == verdicts_of_ray(_WithoutOthers(rays), stream, None)
        stops += len(found)
    assert stops > 50


class _WithoutOthers:
    """Ray's rule, which asks its controller for trials that wait."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def on_trial_add(self, _: None, trial: RaysTrial) -> None:
        pass  # it would put the trial into a queue

    def on_trial_result(self, _: None, trial: RaysTrial, result: dict[str, Any]) -> Any:
        return self.rule.on_trial_result(self, trial, result)

    def get_live_trials(self) -> list[RaysTrial]:
        return []


def test_cutoffs_are_numpys_quantiles() -> None:
    random = np.random.default_rng(1)
    for size in (*range(1, 20), 1000):
        values = np.sort(random.standard_normal(size)).tolist()
        for share in (0.0, 0.5, 2 / 3, 0.75, 0.1, 1.0):
            assert _quantile(values, share) == np.quantile(values, share)


# --- Seeds ----------------------------------------------------------------------------------------


def test_a_configuration_is_judged_by_the_mean_of_its_seeds_and_not_against_itself() -> None:
    found = rungs()
    assert found.report("a", 0, 1, 1, 0.9) is None
    assert found.report("a", 0, 2, 1, 0.1) is None  # worse than its other seed, and no rival's
    assert found.report("b", 1, 1, 1, 0.6) is None  # above a's mean, 0.5
    reason = found.report("a", 0, 3, 1, 0.65)
    assert reason == (
        "asha: mean auroc 0.55 of 3 seeds at step 1 is below 0.6, the best half of 1 other "
        "configuration"
    )


def test_all_seeds_of_a_stopped_configuration_stop_at_their_next_report() -> None:
    found = rungs()
    found.report("good", 0, 1, 1, 0.9)
    assert found.report("bad", 1, 2, 3, 0.95) is None
    reason = found.report("bad", 1, 1, 1, 0.5)
    assert reason is not None
    assert found.report("bad", 1, 2, 5, 1.0) == reason
    assert found.report("bad", 1, 3, 1, 1.0) == reason
    assert found.report("good", 0, 1, 2, 0.99) is None
    assert found.stopped == {"bad": reason}


def test_a_seed_that_reports_a_rung_again_counts_once_and_gets_the_same_answer() -> None:
    found = rungs(reduction=3)
    for n, value in enumerate([0.5, 0.6, 0.7]):
        found.report(f"c{n}", n, 1, 1, value)
    reason = found.report("bad", 3, 1, 1, 0.4)
    assert reason is not None
    assert found.report("bad", 3, 1, 1, 0.4) == reason
    assert found.report("c2", 2, 1, 2, 0.7) is None
    for step in (1, 2):  # from its start, or a checkpoint
        assert found.report("c2", 2, 1, step, 0.1) is None
    # Had the resumed one counted once more, the best third would begin at 0.5.
    assert "0.6," in (found.report("late", 4, 1, 1, 0.55) or "")


def test_steps_that_were_taken_before_a_kill_reach_no_rung_that_was_left_out() -> None:
    found = rungs(reduction=3)
    found.report("a", 0, 1, 10, 0.5)
    assert found.report("a", 0, 1, 4, 0.1) is None  # the rung at 3 is due only after step 10
    assert found.report("b", 1, 1, 4, 0.0) is None
    assert found.report("a", 0, 1, 11, 0.5) is None
    assert "below 0.3333" in (found.report("c", 2, 1, 4, 0.1) or "")


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("rule", ["asha", "median"])
def test_nan_is_worse_than_any_value(larger: bool, rule: str) -> None:
    found = rungs(larger, rule=rule, **({"startup": 1} if rule == "median" else {}))
    for n, value in enumerate([NAN, -1e9, 1e9]):
        found.report(f"c{n}", n, 1, 1, value)
    assert "NaN at step 1" in (found.report("nan", 9, 1, 1, NAN) or "")
    assert found.report("best", 10, 1, 1, math.inf if larger else -math.inf) is None


@pytest.mark.parametrize(
    ("brackets", "reduction", "wanted"), [(3, 3, [9, 5, 3]), (1, 3, [17]), (2, 2, [2, 2])]
)
def test_hyperband_deals_configurations_out_in_its_proportions_from_the_start(
    brackets: int, reduction: float, wanted: list[int]
) -> None:
    stop = rungs(rule="hyperband", brackets=brackets, reduction=reduction)._stop
    dealt = [_bracket(stop, order) for order in range(1000)]
    for count in (20, 100, 1000):
        for bracket, share in enumerate(wanted):
            expected = count * share / sum(wanted)
            assert abs(dealt[:count].count(bracket) - expected) <= 3


def test_patience_ends_a_configuration_whose_seed_does_not_improve() -> None:
    found = rungs(rule="patience", patience=3, min_delta=0.05, grace=4)
    curve = [0.5, 0.4, 0.4, 0.4, 0.4, 0.52, 0.6, 0.6, 0.61]
    for step, value in enumerate(curve, 1):  # counted from step 4 at the earliest
        assert found.report("a", 0, 1, step, value) is None, step
    assert found.report("a", 0, 2, 9, 0.1) is None
    reason = found.report("a", 0, 1, 10, 0.64)
    assert reason == "patience: no better auroc than 0.6 for 3 steps, at step 10"
    assert found.report("a", 0, 2, 10, 0.9) == reason
    assert rungs(rule="patience", patience=2).report("a", 0, 1, 1, NAN) is None


def test_the_median_rule_looks_at_its_interval_only_and_needs_others() -> None:
    found = rungs(rule="median", grace=2, interval=3, startup=2)
    for n in range(2):
        for step in range(1, 7):
            found.report(f"good{n}", n, 1, step, 0.8)
    bad = [found.report("bad", 2, 1, step, 0.1 * step) for step in (1, 2)]
    assert bad[0] is None
    assert bad[1] == (
        "median: best auroc 0.2 at step 2 is below 0.8, the median of the averages of 2 other "
        "configurations"
    )
    late = [found.report("late", 3, 1, step, 0.9 if step == 1 else 0.0) for step in range(1, 9)]
    assert late == [None] * 8  # its best is what counts
    alone = rungs(rule="median", startup=2)
    alone.report("a", 0, 1, 1, 0.9)
    assert alone.report("b", 1, 1, 1, 0.1) is None


def test_a_curve_of_before_is_compared_with_and_stops_nothing() -> None:
    found = rungs()
    found.report("a", 0, 1, 1, 0.5)
    points = [(1, 0.1), (2, 0.9), (4, 0.9)]
    assert len(found.learn("old", 1, 1, points)) == 3
    assert found.learn("old", 1, 1, points) == []
    assert found.stopped == {}
    assert found.report("a", 0, 1, 2, 0.8) is not None


# --- Across processes -----------------------------------------------------------------------------


def _run_configurations(root: Path, part: int, pause_s: float = 0) -> None:
    """A worker: its seeds of 40 configurations, reported in an order of its own."""
    found, random = shared(root), np.random.default_rng(part)
    for n, step, value in reports(random, trials=40, steps=9, skip=0.2):
        found.report(f"c{n}", n, part, step, value)
        time.sleep(pause_s)


def test_processes_decide_by_one_order_of_arrivals(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_run_configurations, args=(tmp_path, part)) for part in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {line["seed"] for line in lines(tmp_path)} == {0, 1, 2}
    assert _stops_of_one_order(tmp_path) > 10


def _stops_of_one_order(root: Path) -> int:
    """Check that each line is what the lines before it ask for; gives how many are stops."""
    written = lines(root)
    assert len({(e["configuration"], e["seed"], e["rung"]) for e in written}) == len(written)
    again = Rungs(ASHA, larger_is_better=True)
    stops = 0
    for line in written:
        entry = Arrival(**{k: v for k, v in line.items() if k != "rule"})
        assert again.settle(entry) == entry  # the same decision, and it was one to be made
        stops += entry.stop is not None
    assert shared(root).stopped() == again.stopped
    return stops


def test_workers_that_are_killed_leave_the_others_one_order_and_no_lock(tmp_path: Path) -> None:
    context, random = multiprocessing.get_context("spawn"), np.random.default_rng(1)
    path = tmp_path / "sweeps/sweep/rungs/arm.jsonl"
    for _ in range(3):
        worker = context.Process(target=_run_configurations, args=(tmp_path, 7, 0.005))
        before = path.stat().st_size if path.exists() else 0
        worker.start()
        wanted = before + int(random.integers(1, 1000))
        while worker.is_alive() and not (path.exists() and path.stat().st_size > wanted):
            time.sleep(0.0005)
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    _run_configurations(tmp_path, 7)
    whole = lines(tmp_path)
    _stops_of_one_order(tmp_path)
    _run_configurations(tmp_path, 7)
    assert lines(tmp_path) == whole


def test_what_was_decided_outlives_its_process_and_a_line_that_a_kill_cut(tmp_path: Path) -> None:
    first = shared(tmp_path)
    first.report("good", 0, 1, 1, 0.9)
    reason = first.report("bad", 1, 1, 1, 0.1)
    path = tmp_path / "sweeps/sweep/rungs/arm.jsonl"
    with path.open("a") as file:
        file.write('{"rule": "torn", "conf')
    second = shared(tmp_path)
    assert second.why_stopped("bad") == reason
    assert second.report("third", 2, 1, 1, 0.2) is not None
    assert [line["configuration"] for line in lines(tmp_path)] == ["good", "bad", "third"]
    assert first.stopped() == shared(tmp_path).stopped()
    assert first.stopped().keys() == {"bad", "third"}


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    shared(tmp_path).report("good", 0, 1, 1, 0.9)
    with (tmp_path / "sweeps/sweep/rungs/arm.jsonl").open("ab") as file:
        file.write(b'\x00\x00\x00\n[1]\n5\nnull\n{"rule": 1}\n')
    assert shared(tmp_path).report("bad", 1, 1, 1, 0.1) is not None


def test_seeds_in_other_processes_learn_that_their_configuration_was_stopped(
    tmp_path: Path,
) -> None:
    one, other = shared(tmp_path), shared(tmp_path)
    one.report("good", 0, 1, 1, 0.9)
    assert other.report("bad", 1, 2, 1, 0.95) is None
    reason = one.report("bad", 1, 1, 1, 0.1)
    assert reason is not None
    assert other.report("bad", 1, 2, 2, 1.0) == reason  # no rung
    assert other.why_stopped("bad") == reason


def test_looking_for_others_decisions_is_rare_but_a_rung_knows_them_all(tmp_path: Path) -> None:
    one, seldom = shared(tmp_path), shared(tmp_path, look_s=3600)
    assert seldom.report("bad", 1, 2, 1, 0.5) is None
    one.report("good", 0, 1, 1, 0.9)
    assert one.report("bad", 1, 1, 1, 0.1) is not None
    assert seldom.report("bad", 1, 2, 2, 0.5) is None
    assert seldom.report("bad", 1, 2, 3, 0.5) is not None


def test_another_rule_starts_anew_and_what_a_rule_does_not_use_is_no_part_of_it(
    tmp_path: Path,
) -> None:
    before = shared(tmp_path)
    before.report("good", 0, 1, 1, 0.9)
    assert before.report("bad", 1, 1, 1, 0.1) is not None
    edited = ASHA.model_copy(update={"reduction": 2.0})
    assert shared(tmp_path, edited).stopped() == {}
    assert shared(tmp_path, edited).report("bad", 1, 1, 1, 0.1) is None
    same = ASHA.model_copy(update={"patience": 5, "mode": "max"})
    assert shared(tmp_path, same).stopped().keys() == {"bad"}
    named = rule_digest(ASHA, larger_is_better=True)
    assert named != rule_digest(ASHA, larger_is_better=False)
    of_metric = ASHA.model_copy(update={"metric": "loss"})
    assert named != rule_digest(of_metric, larger_is_better=True)


def test_curves_of_before_are_learnt_once_by_all(tmp_path: Path) -> None:
    points = [(1, 0.9), (2, NAN), (3, 0.9)]
    for _ in range(2):
        shared(tmp_path).learn("old", 0, 1, points)
    assert [(line["step"], line["stop"]) for line in lines(tmp_path)] == [(1, None), (3, None)]
    assert shared(tmp_path).report("new", 1, 1, 1, 0.1) is not None


def test_averages_go_on_where_another_process_left_a_trial(tmp_path: Path) -> None:
    curve = [(1, 0.9), (2, 0.4), (3, 0.2), (4, 0.3)]
    for n in range(3):
        shared(tmp_path, MEDIAN).learn(f"c{n}", n, 1, [(step, 0.5) for step, _ in curve])
    straight = shared(tmp_path, MEDIAN)
    for step, value in curve:
        assert straight.report("a", 3, 1, step, value) is None
    before = lines(tmp_path)
    resumed = shared(tmp_path, MEDIAN)
    for step, value in curve[:3]:
        assert resumed.report("a", 3, 1, step, value) is None
    assert lines(tmp_path) == before
    assert resumed.report("a", 3, 1, 5, 0.0) is None  # its best is of step 1
    assert lines(tmp_path)[-1]["average"] == pytest.approx((0.4 + 0.2 + 0.0) / 3)


def test_a_folder_that_was_removed_starts_anew(tmp_path: Path) -> None:
    found = shared(tmp_path)
    found.report("good", 0, 1, 1, 0.9)
    assert found.report("bad", 1, 1, 1, 0.1) is not None
    (tmp_path / "sweeps/sweep/rungs/arm.jsonl").unlink()
    assert found.stopped() == {}
    found.report("good", 0, 2, 1, 0.9)
    assert len(lines(tmp_path)) == 1


def test_a_store_that_cannot_be_written_is_said_and_nothing_is_decided(tmp_path: Path) -> None:
    found = shared(tmp_path)
    (tmp_path / "sweeps").write_text("in the way")
    with pytest.raises(StoreError, match=r"sweeps.*Not a directory|sweeps.*File exists"):
        found.report("good", 0, 1, 1, 0.9)
    (tmp_path / "sweeps").unlink()
    assert found.report("bad", 1, 1, 1, 0.1) is None


def test_a_watch_survives_json_and_opens_the_same_rungs(tmp_path: Path) -> None:
    watch = Watch(ASHA, larger_is_better=True, sweep="sweep", arm="arm", configuration="a", order=3)
    again = Watch.from_json(json.loads(json.dumps(watch.to_json())))
    assert again == watch
    assert again.rule == rule_of("sweep", ASHA, larger_is_better=True)
    assert shared_rungs(tmp_path, again) is shared_rungs(tmp_path, watch)


def test_points_of_a_curve_are_those_that_have_the_metric(tmp_path: Path) -> None:
    (tmp_path / "curve.jsonl").write_text(
        '{"step": 1, "time_s": 0.1, "loss": "nan"}\n{"step": 2, "time_s": 1, "auroc": 1}\n'
        '{"step": 3, "time_s": 2, "loss": "-inf", "auroc": 0.5}\n{"step": 4, "au'
    )
    assert points_of(tmp_path, "auroc") == [(2, 1.0), (3, 0.5)]
    points = read_points(tmp_path)
    assert math.isnan(points[0]["loss"])
    assert points[2] == {"step": 3, "time_s": 2, "loss": -math.inf, "auroc": 0.5}
    assert points_of(tmp_path / "none", "auroc") == []
