"""What trials share is known before they run, and nobody waits where somebody could work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdsweep.execute import Job
from hdsweep.queue import Queue
from hdsweep.trial import Trial
from tests.conftest import Run, read

Write = Callable[..., Path]

CHAINED = """\
name: chained
method: tests.methods.chained
data: {name: tests.methods.labels, root: labels, make: {items: 8}}
seeds: [1, 2]
arms:
  few: {chain: {grid: [0, 1]}, branch: {grid: [0, 1]}}
resources: {gpus: 0, cpus: 1}
report: {metrics: [auroc]}
"""


def job(number: int, stages: tuple[str, ...] = ()) -> Job:
    trial = Trial(f"{number:020x}", "m", 1, {}, "d", {}, "f", 0, {})
    return Job(trial, str(number), 0, 1, stages=stages)


def drain(queue: Queue) -> Iterator[Job]:
    while (found := queue.next()) is not None:
        yield found


def make(root: Path, job: Job) -> None:
    for folder in job.stages:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "stage.json").touch()  # what makes it a stage


# --- the order ------------------------------------------------------------------------------------


def test_jobs_that_share_nothing_keep_the_order_of_the_plan(tmp_path: Path) -> None:
    jobs = [job(n) for n in range(100)]
    assert list(drain(Queue(jobs, tmp_path))) == jobs


def test_what_is_built_already_keeps_the_order_of_the_plan(tmp_path: Path) -> None:
    jobs = [job(n, ("stages/a/0", f"stages/b/{n % 3}")) for n in range(12)]
    for one in jobs:
        make(tmp_path, one)
    assert list(drain(Queue(jobs, tmp_path))) == jobs


def test_a_job_whose_stage_is_being_built_lets_another_go_first(tmp_path: Path) -> None:
    jobs = [job(0, ("stages/a/0",)), job(1, ("stages/a/0",)), job(2, ("stages/a/1",)), job(3)]
    queue = Queue(jobs, tmp_path)
    assert [queue.next() for _ in jobs] == [jobs[0], jobs[2], jobs[3], jobs[1]]


def test_a_finished_build_frees_those_who_share_it_at_once(tmp_path: Path) -> None:
    jobs = [job(0, ("stages/a/0",)), job(1, ("stages/a/0",)), job(2, ("stages/a/1",))]
    queue = Queue(jobs, tmp_path)
    assert queue.next() == jobs[0]
    make(tmp_path, jobs[0])  # while the trial that built it still runs
    assert queue.next() == jobs[1]


def test_a_builder_that_ends_without_its_stage_leaves_it_to_the_next(tmp_path: Path) -> None:
    jobs = [job(n, ("stages/a/0",)) for n in range(3)] + [job(3, ("stages/a/1",))]
    queue = Queue(jobs, tmp_path)
    assert queue.next() == jobs[0]
    queue.finished(jobs[0])
    assert queue.next() == jobs[1]
    assert queue.next() == jobs[3]


def test_the_job_with_the_fewest_missing_stages_in_work_is_chosen_when_all_wait(
    tmp_path: Path,
) -> None:
    first = job(0, ("stages/a/0", "stages/b/0"))
    both, one = job(1, ("stages/a/0", "stages/b/0")), job(2, ("stages/a/0", "stages/b/1"))
    queue = Queue([first, both, one], tmp_path)
    assert list(drain(queue)) == [first, one, both]


def test_of_8_workers_on_36_trials_of_3_chains_none_waits_while_a_job_is_free(
    tmp_path: Path,
) -> None:
    """Chains as of one encoder: its features, a bank per ratio and seed, and what stands alone."""
    jobs = [
        job(n, () if n % 4 == 3 else (f"stages/features/{n % 3}", f"stages/bank/{n // 2}"))
        for n in range(36)
    ]
    queue, given_out = Queue(jobs, tmp_path), []
    running = [queue.next() for _ in range(8)]
    while running:
        done = running.pop(0)
        assert done is not None
        given_out.append(done)
        make(tmp_path, done)
        queue.finished(done)
        waiting = [j for j in jobs if j not in given_out and j not in running]
        if (found := queue.next()) is None:
            assert not waiting
            continue
        in_work = {f for j in running if j for f in j.stages if not (tmp_path / f).is_dir()}
        if in_work & set(found.stages):
            assert all(in_work & set(j.stages) for j in waiting)
        running.append(found)
    assert Counter(j.label for j in given_out) == Counter(j.label for j in jobs)


@settings(max_examples=80, deadline=None)
@given(
    asked=st.lists(st.lists(st.integers(0, 5), max_size=3, unique=True), max_size=25),
    steps=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=80),
)
def test_every_job_is_handed_out_once_and_is_the_first_of_the_least_blocked(
    tmp_path_factory: pytest.TempPathFactory, asked: list[list[int]], steps: list[tuple[bool, bool]]
) -> None:
    """Against the rule written out; a step finishes the oldest job or asks for one more."""
    root = tmp_path_factory.mktemp("store")
    jobs = [job(n, tuple(f"stages/s/{i}" for i in of)) for n, of in enumerate(asked)]
    queue, waiting = Queue(jobs, root), list(jobs)
    running: list[tuple[Job, set[str]]] = []

    def missing(one: Job) -> set[str]:
        return {folder for folder in one.stages if not (root / folder).is_dir()}

    def hand_out() -> None:
        claimed = {f for one, at_start in running for f in at_start & missing(one)}
        expected = min(waiting, key=lambda one: len(claimed & missing(one)), default=None)
        found = queue.next()
        assert found == expected
        if found is not None:
            waiting.remove(found)
            running.append((found, missing(found)))

    for finishes, builds in steps:
        if finishes and running:
            done, _ = running.pop(0)
            if builds:
                make(root, done)
            queue.finished(done)
        else:
            hand_out()
    while waiting:
        hand_out()
    assert queue.next() is None


# --- the plan -------------------------------------------------------------------------------------


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """How often each piece of shared work was built."""
    path = tmp_path / "builds"
    monkeypatch.setenv("CHAINED_BUILDS", str(path))
    return lambda: Counter(path.read_text().splitlines() if path.exists() else ())


def test_a_plan_shows_what_is_shared_and_what_of_it_is_there(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, builds: Callable[[], Counter[str]]
) -> None:
    sweep_file(CHAINED, "chained.yaml")
    before = read(hdsweep("plan", "chained.yaml", "--format", "json"))["stages"]
    assert Counter((s["name"], s["exists"], s["size_bytes"], s["trials"]) for s in before) == {
        ("base", False, None, 4): 2,
        ("branch", False, None, 1): 8,
    }
    text = hdsweep("plan", "chained.yaml").stdout
    table = [line.split() for line in text.splitlines()]
    assert ["shared", "work", "needed", "there", "to", "build", "size"] in table
    assert ["base", "2", "0", "2"] in table
    assert ["branch", "8", "0", "8"] in table

    done = hdsweep("run", "chained.yaml", "--inline", "--format", "json")
    assert read(done)["ok"] == 8, done.stderr
    assert len(builds()) == 10
    assert set(builds().values()) == {1}
    kept = {p.parent.name for p in (tmp_path / "results/stages").glob("*/*/stage.json")}
    assert kept == {stage["key"] for stage in before}
    finished = hdsweep("plan", "chained.yaml")
    assert "shared work" not in finished.stdout

    # Another sweep: a base that is there is told only where it is still needed.
    more = CHAINED.replace("name: chained", "name: more").replace("branch: {grid", "parts: {grid")
    more = more.replace("grid: [0, 1]}}", "grid: [2, 3]}}").replace(
        "chain: {grid: [0, 1]", "chain: {grid: [0, 2]"
    )
    sweep_file(more, "more.yaml")
    found = read(hdsweep("plan", "more.yaml", "--format", "json"))["stages"]
    assert Counter((s["name"], s["exists"], s["trials"]) for s in found) == {
        ("branch", True, 2): 2,
        ("branch", False, 2): 2,
        ("base", False, 4): 1,
    }
    sizes = [s["size_bytes"] for s in found if s["exists"]]
    assert all(size > 16 * 8 for size in sizes)  # 16 items of 8 bytes, and the file's header
    line = next(x for x in hdsweep("plan", "more.yaml").stdout.splitlines() if "branch " in x)
    assert line.split()[:4] == ["branch", "4", "2", "2"]
    assert line.endswith("bytes")


def test_a_plan_without_shared_work_says_nothing_of_it(hdsweep: Run, sweep_file: Write) -> None:
    sweep_file()
    assert "shared" not in hdsweep("plan", "noise.yaml").stdout
    assert read(hdsweep("plan", "noise.yaml", "--format", "json"))["stages"] == []


def test_a_stage_whose_note_is_damaged_is_there_and_of_unknown_size(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(CHAINED, "chained.yaml")
    hdsweep("run", "chained.yaml", "--inline")
    for note in (tmp_path / "results/stages/branch").glob("*/stage.json"):
        note.write_text("{")
    sweep_file(CHAINED.replace("few: {", "few: {parts: 2, "), "chained.yaml")
    found = read(hdsweep("plan", "chained.yaml", "--format", "json"))["stages"]
    assert {(s["name"], s["exists"], s["size_bytes"]) for s in found} == {("branch", True, None)}


def scores(store: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in store.glob("trials/*/*/predictions.parquet")}


def test_without_stages_each_trial_does_its_own_work_and_scores_the_same(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, builds: Callable[[], Counter[str]]
) -> None:
    sweep_file(CHAINED, "chained.yaml")
    alone = ("run", "chained.yaml", "--inline", "--store", "alone", "--format", "json")
    assert read(hdsweep(*alone, "--no-stages"))["ok"] == 8
    assert not (tmp_path / "alone/stages").exists()
    assert sum(builds().values()) == 16
    assert read(hdsweep("run", "chained.yaml", "--inline", "--format", "json"))["ok"] == 8
    assert scores(tmp_path / "alone") == scores(tmp_path / "results")


@pytest.mark.ray
def test_under_ray_each_stage_is_built_once(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, builds: Callable[[], Counter[str]]
) -> None:
    text = CHAINED.replace("few: {", "few: {build_s: 0.5, ").replace("[0, 1]}, b", "[0, 1, 2]}, b")
    sweep_file(text, "chained.yaml")
    done = hdsweep("run", "chained.yaml", "--cpus", 4, "--format", "json")
    assert read(done)["ok"] == 12, done.stderr
    assert len(builds()) == 3 + 12
    assert set(builds().values()) == {1}
    again = hdsweep("run", "chained.yaml", "--store", "inline", "--inline", "--format", "json")
    assert read(again)["ok"] == 12
    assert scores(tmp_path / "inline") == scores(tmp_path / "results")
