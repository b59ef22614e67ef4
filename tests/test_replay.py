"""Replays of full runs: what rules would have chosen and saved, by the code that runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from hdsweep import racing
from hdsweep.cli_search import replay as command
from hdsweep.errors import HdsweepError
from hdsweep.knobs import Choice, Range
from hdsweep.planner import Cell
from hdsweep.replay import Replayed, replayed
from hdsweep.rungs import Rungs
from hdsweep.simulate import Nearest
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.strategy import Stop
from hdsweep.trial import Trial
from tests.conftest import Run, read
from tests.recording import Points, by_formula, keep, record, record_of

GRID = """\
name: full
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2, 3]
params: {steps: 27, noise: 0.01}
arms:
  low: {quality: {grid: [0.1, 0.2, 0.3, 0.35]}, lr: 0.1}
  grid: {quality: {grid: [0.2, 0.4, 0.5, 0.6, 0.7, 0.9]}, lr: {grid: [0.05, 0.2]}}
resources: {gpus: 0, cpus: 1}
report: {metrics: [auroc]}
"""
SEARCH = """\
name: searched
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2]
params: {steps: 9}
arms:
  plain: {quality: 0.3}
  tuned: {quality: {uniform: [0, 1]}, lr: {log_uniform: [0.01, 1]}}
search: {sampler: random, trials: 30, maximize: auroc}
resources: {gpus: 0.5, cpus: 1}
report: {metrics: [auroc]}
"""
ASHA = "stop: {rule: asha, metric: auroc, grace: 1, reduction: 3}\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_(text: str, name: str = "sweep.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_


def replay(path: Path, root: Path, gpus: int = 1, **blocks: Any) -> Replayed:
    return replayed(replace(load_sweep(path), **blocks), Store(root), gpus)


def ask(*arguments: object) -> Any:
    """Call the command in this process; what it refuses is raised."""
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(
        app, [*map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "160"}
    )


def refusal(*arguments: object) -> str:
    with pytest.raises(HdsweepError) as error:
        ask(*arguments)
    return str(error.value)


def draws(many: int) -> list[dict[str, float]]:
    random = np.random.default_rng(0)
    return [
        {"quality": float(random.uniform()), "lr": float(10 ** random.uniform(-2, 0))}
        for _ in range(many)
    ]


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        "rule: asha, grace: 1, reduction: 3",
        "rule: hyperband, grace: 1, reduction: 2, brackets: 2",
        "rule: median, grace: 2, interval: 3",
        "rule: patience, grace: 3, patience: 2",
    ],
)
def test_a_rule_by_replay_is_the_rule_run_for_real_on_the_same_curves(
    hdsweep: Run, write: Write, tmp_path: Path, rule: str
) -> None:
    stop = f"stop: {{{rule}, metric: auroc}}\n"
    write(GRID, "full.yaml")
    write(GRID + stop, "stopped.yaml")
    read(hdsweep("run", "full.yaml", "--store", "full", "--inline", "--format", "json"))
    read(hdsweep("run", "stopped.yaml", "--store", "real", "--inline", "--format", "json"))

    found = replay(tmp_path / "stopped.yaml", tmp_path / "full")

    real = Store(tmp_path / "real")
    planned = real.sweep("full")
    records = real.records(planned.labels())
    stopped = {}
    for trial_id, one in records.items():
        if one.status == "pruned":
            curve = (real.trial_dir(trial_id) / "curve.jsonl").read_text().splitlines()
            stopped[trial_id] = json.loads(curve[-1])["step"]
    assert stopped
    assert dict(found.stopped) == stopped
    skipped = {i: why for i, why in planned.skipped().items() if i not in records}
    assert dict(found.skipped) == skipped
    assert found.replay.trials == len(records)


def test_with_one_worker_and_seed_the_rule_sees_the_curves_one_after_another(
    write: Write, tmp_path: Path
) -> None:
    one_seed = GRID.replace("[1, 2, 3]", "[1]")
    plan = record(write(one_seed), tmp_path / "store")
    found = replay(write(one_seed + ASHA), tmp_path / "store")

    stop, expected, order = Stop(rule="asha", metric="auroc", grace=1, reduction=3), {}, 0
    for arm in ("low", "grid"):
        rungs = Rungs(stop, larger_is_better=True)
        for cell in (one for one in plan.cells if one.arm == arm):
            for point in by_formula(cell.trials[0]):
                if rungs.report(cell.key, order, 1, point["step"], point["auroc"]):
                    expected[cell.trials[0].id] = point["step"]
                    break
            order += 1
    assert expected
    assert dict(found.stopped) == expected
    ran_s = sum(27 - expected.get(t.id, 27) for c in plan.cells for t in c.trials)
    assert found.full.steps == 16 * 27
    assert found.full.steps - found.replay.steps == ran_s
    # A trial that is not stopped costs two seconds more, those after its last point.
    assert found.full.makespan_s == 16 * 29
    assert found.replay.makespan_s == 16 * 29 - ran_s - 2 * len(expected)
    assert found.replay.trial_hours * 3600 == pytest.approx(found.replay.makespan_s)


TWO = """\
name: two
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2]
params: {steps: 9}
arms: {only: {quality: {grid: [0.9, 0.1]}}}
resources: {gpus: 1, cpus: 1}
report: {metrics: [auroc]}
stop: {rule: asha, metric: auroc, grace: 3, reduction: 3}
"""


def test_another_seed_of_a_stopped_configuration_stops_at_its_next_point(
    write: Write, tmp_path: Path
) -> None:
    def points(trial: Trial) -> Points:
        late = 0.5 if (trial.params["quality"], trial.seed) == (0.1, 2) else 0.0
        return [{**p, "time_s": p["time_s"] + late} for p in by_formula(trial)]

    path = write(TWO)
    plan = record(path, tmp_path / "store", points)
    good, bad = plan.cells

    found = replay(path, tmp_path / "store", gpus=4)

    # At 3 s the good ones reach the rung before the bad one, which is stopped by it.
    assert dict(found.stopped) == {bad.trials[0].id: 3, bad.trials[1].id: 3}
    assert found.replay.trial_hours * 3600 == pytest.approx(11 + 11 + 3 + 3.5)
    assert found.replay.makespan_s == 11
    assert found.choices[0].replay == good.name
    assert found.choices[0].left == 1


def test_a_stopped_trial_makes_room_for_the_next(write: Write, tmp_path: Path) -> None:
    path = write(TWO)
    plan = record(path, tmp_path / "store")

    found = replay(path, tmp_path / "store", gpus=1)

    bad = plan.cells[1]
    assert dict(found.stopped) == {bad.trials[0].id: 3}
    assert set(found.skipped) == {bad.trials[1].id}
    assert found.full.makespan_s == 4 * 11
    assert found.replay.makespan_s == 2 * 11 + 3
    assert (found.replay.trials, found.replay.stopped, found.replay.skipped) == (3, 1, 1)


def test_a_rule_that_stops_the_best_is_told_by_its_regret(write: Write, tmp_path: Path) -> None:
    def points(trial: Trial) -> Points:  # the better one starts later
        slow = 0.4 if trial.params["quality"] == 0.9 else 1.0
        return [{**p, "auroc": p["auroc"] * (slow if p["step"] < 9 else 1)} for p in
                by_formula(trial)]  # fmt: skip

    path = write(TWO.replace("[0.9, 0.1]", "[0.1, 0.9]"))
    plan = record(path, tmp_path / "store", points)
    worse, best = plan.cells

    (choice,) = replay(path, tmp_path / "store").choices

    assert (choice.full, choice.replay) == (best.name, worse.name)
    ends = [by_formula(cell.trials[0])[-1]["auroc"] for cell in (best, worse)]
    assert choice.full_value == pytest.approx(ends[0])
    assert choice.regret == pytest.approx(ends[0] - ends[1])


def test_where_small_values_are_good_they_are_chosen(write: Write, tmp_path: Path) -> None:
    text = TWO.replace("{metrics: [auroc]}", "{metrics: [cost]}").replace("[1, 2]", "[1, 2, 3]")
    text = text.replace("{quality: {grid: [0.9, 0.1]}}", "{lr: {grid: [0.9, 0.1]}}")
    path = write(text + "race: {metric: cost, mode: min, looks: [2]}\n")
    record(path, tmp_path / "store")

    found = replay(path, tmp_path / "store", stop=None)

    assert found.larger_is_better is False
    assert found.choices[0].full == found.choices[0].replay == "only lr=0.1"
    assert found.choices[0].full_value == pytest.approx(0.9)
    assert repr(found.choices[0].regret) == "0.0"  # and not -0.0


def test_time_of_attempts_before_a_resume_counts(write: Write, tmp_path: Path) -> None:
    def points(trial: Trial) -> Points:  # resumed after step 6, on a clock of its own
        return [{**p, "time_s": p["time_s"] - 6 * (p["step"] > 6)} for p in by_formula(trial)]

    path = write(TWO)
    record(path, tmp_path / "store", points)

    # 6 s before the resume, 3 s of steps after it, and 2 s to the end.
    assert replay(path, tmp_path / "store").full.makespan_s == 4 * 11


# --- races and searches ---------------------------------------------------------------------------


def noisy(trial: Trial) -> Points:
    """With noise that configurations do not have in common; a race sees nothing else."""
    noise = 0.01 * np.random.default_rng([int(trial.id, 16)]).standard_normal()
    return [{**point, "auroc": point["auroc"] + noise} for point in by_formula(trial)]


def test_a_race_by_replay_drops_those_that_the_test_drops(write: Write, tmp_path: Path) -> None:
    text = GRID.replace("[1, 2, 3]", "[1, 2, 3, 4, 5, 6]")
    plan = record(write(text), tmp_path / "store", noisy)
    race = "race: {metric: auroc, looks: [3]}\n"

    found = replay(write(text + race), tmp_path / "store", gpus=3)

    values = {
        cell.name: [noisy(trial)[-1]["auroc"] for trial in cell.trials[:3]] for cell in plan.cells
    }
    verdicts = racing.look(values, larger_is_better=True, level=0.05, looks=1, started=len(values))
    dropped = {t.id for c in plan.cells if c.name in verdicts for t in c.trials[3:]}
    assert dropped
    assert set(found.skipped) == dropped
    assert found.replay.trials == found.full.trials - len(dropped)


def test_a_search_is_answered_by_the_nearest_that_were_recorded(
    write: Write, tmp_path: Path
) -> None:
    path = write(SEARCH)
    record(path, tmp_path / "store", draws=draws(30))
    search = load_sweep(path).search
    assert search is not None
    fewer = search.model_copy(update={"sampler": "tpe", "trials": 12})

    found = replay(path, tmp_path / "store", gpus=2, search=fewer)

    assert found.workers == 4
    assert found.full.trials == (30 + 1) * 2
    assert found.replay.trials == (12 + 1) * 2
    tuned = next(one for one in found.choices if one.arm == "tuned")
    assert (tuned.of, tuned.left) == (30, 12)
    assert tuned.regret is not None
    assert tuned.regret >= 0
    assert any("nearest recorded configuration, of 30, stands in" in n for n in found.notes)
    again = replay(path, tmp_path / "store", gpus=2, search=fewer)
    assert again == found


def test_a_search_draws_no_more_than_were_recorded(write: Write, tmp_path: Path) -> None:
    path = write(SEARCH)
    record(path, tmp_path / "store", draws=draws(7))

    found = replay(path, tmp_path / "store")

    assert found.replay.trials == found.full.trials == 16
    assert any("draws no more than those, not 30" in note for note in found.notes)
    assert [one.regret for one in found.choices] == [0, 0]


def test_what_a_search_draws_and_the_file_lists_runs_once(write: Write, tmp_path: Path) -> None:
    text = SEARCH.replace(
        "tuned: {quality: {uniform: [0, 1]}, lr: {log_uniform: [0.01, 1]}}",
        "tuned: {quality: {choice: [0.2, 0.3, 0.9]}}",
    )
    path = write(text + "stop: {rule: asha, metric: auroc, grace: 3}\n")
    record(path, tmp_path / "store", draws=[{"quality": q} for q in (0.9, 0.3, 0.2)])

    found = replay(path, tmp_path / "store")

    assert found.full.trials == 3 * 2
    tuned = next(one for one in found.choices if one.arm == "tuned")
    assert (tuned.full, tuned.of) == ("tuned #0 quality=0.9", 3)
    # The listed one, quality 0.3, is a rival in the search too: whatever comes after it is worse.
    assert found.replay.trials + found.replay.skipped == 3 * 2
    assert found.replay.stopped > 0


def test_what_the_data_cannot_serve_is_refused_to_a_search_too(
    write: Write, tmp_path: Path
) -> None:
    path = write(SEARCH)
    plan = record(path, tmp_path / "store", draws=draws(5))
    hole = next(cell for cell in plan.cells if cell.number == 2)
    error = {"kind": "infeasible", "message": "too few items", "traceback": ""}
    for trial in hole.trials:
        bad = record_of(trial, [], status="failed", error=error, wall_s=0.0)
        keep(Store(tmp_path / "store"), bad, [])

    found = replay(path, tmp_path / "store")

    assert "2 recorded trials are infeasible, and end so in both runs" in found.notes
    assert found.full.trials == found.replay.trials == (1 + 4) * 2
    assert next(one for one in found.choices if one.arm == "tuned").left == 4


def test_confirming_seeds_are_left_out(write: Write, tmp_path: Path) -> None:
    path = write(GRID.replace("[1, 2, 3]", "{select: [1, 2], confirm: [7, 8, 9], by: cost, "
                              "mode: min}") + ASHA)  # fmt: skip
    record(path, tmp_path / "store")

    found = replay(path, tmp_path / "store")

    assert found.full.trials == 16 * 2
    assert (found.chosen_by, found.larger_is_better) == ("cost", False)
    assert "the seeds that confirm a choice are left out of both runs" in found.notes


@pytest.mark.slow
def test_a_recorded_search_under_its_own_rules_is_itself(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    text = SEARCH.replace("sampler: random, trials: 30", "sampler: tpe, trials: 14")
    path = write(text.replace("gpus: 0.5", "gpus: 1"))
    read(hdsweep("run", path, "--store", "store", "--inline", "--format", "json"))
    store = Store(tmp_path / "store")
    best = max((one for one in store.sweep().cells if one.arm == "tuned"), key=lambda c: c.values)

    found = replay(path, tmp_path / "store")

    assert found.replay.makespan_s == pytest.approx(found.full.makespan_s)  # another order
    assert replace(found.replay, makespan_s=0) == replace(found.full, makespan_s=0)
    assert next(c for c in found.choices if c.arm == "tuned").replay == best.name


def cell(number: int, **knobs: Any) -> Cell:
    return Cell("a", str(number), knobs, (), "s", number)


def test_the_nearest_is_measured_on_the_scale_on_which_a_knob_is_drawn() -> None:
    space = {
        "lr": Range("float", 1e-4, 1, log=True),
        "n": Range("int", 0, 10),
        "kind": Choice(("a", "b")),
        "depth": Range("int", 0, 10, when={"kind": ("b",)}),
    }
    cells = [
        cell(0, lr=1e-4, n=0, kind="a"),
        cell(1, lr=1e-1, n=0, kind="a"),
        cell(2, lr=1e-2, n=10, kind="a"),
        cell(3, lr=1e-2, n=0, kind="b", depth=5),
    ]
    nearest = Nearest(space, cells)
    wanted = {"lr": 2e-2, "n": 0, "kind": "a"}
    # In powers of ten 0.1 is nearer than 0.0001, though their difference is larger; then come n, a
    # whole unit away, and another kind with a depth that the wanted one lacks, two units.
    assert [nearest.take(wanted).number for _ in range(4)] == [1, 0, 2, 3]


# --- what cannot be replayed ----------------------------------------------------------------------


def test_configurations_without_a_whole_record_are_left_out_and_counted(
    write: Write, tmp_path: Path
) -> None:
    path = write(GRID + ASHA)
    plan = record(path, tmp_path / "store")
    store = Store(tmp_path / "store")
    (store.trial_dir(plan.cells[0].trials[1].id) / "record.json").unlink()
    pruned = plan.cells[5].trials[0]
    keep(store, record_of(pruned, [], status="pruned", error={"kind": "stopped"}), [])
    bare = plan.cells[6].trials[2]
    keep(store, record_of(bare, []), [])

    found = replay(path, tmp_path / "store")

    assert found.full.trials == 13 * 3
    assert sum(one.of for one in found.choices) == 13
    notes = "\n".join(found.notes)
    assert "1 of 16 configurations have trials without a record" in notes
    assert "1 of 16 configurations were stopped early when they were recorded" in notes
    assert "1 of 16 configurations have a trial without a curve of what the rule watches" in notes


def test_what_reports_nothing_to_watch_runs_to_its_end_as_it_would(
    write: Write, tmp_path: Path
) -> None:
    path = write(GRID.replace("lr: 0.1}", "lr: 0.1, silent: true}") + ASHA)
    plan = record(path, tmp_path / "store")
    store = Store(tmp_path / "store")
    quiet = [trial for cell in plan.cells if cell.arm == "low" for trial in cell.trials]
    for trial in quiet:
        keep(store, record_of(trial, []), [])

    found = replay(path, tmp_path / "store")

    assert not any("left out" in note for note in found.notes)
    assert found.full.trials == 16 * 3
    low, grid = found.choices
    assert (low.left, low.of) == (4, 4)
    assert grid.left < grid.of
    assert not {trial.id for trial in quiet} & {*found.stopped, *found.skipped}


def test_a_failed_trial_ends_as_it_did(write: Write, tmp_path: Path) -> None:
    path = write(TWO)
    plan = record(path, tmp_path / "store")
    failed = plan.cells[0].trials[0]
    points = by_formula(failed)[:2]
    error = {"kind": "method", "message": "ValueError: no", "traceback": ""}
    keep(Store(tmp_path / "store"), record_of(failed, points, status="failed", error=error), points)

    found = replay(path, tmp_path / "store")

    assert found.full.failed == found.replay.failed == 1
    assert "1 recorded trials are failed, and end so in both runs" in found.notes
    assert found.choices[0].full == plan.cells[1].name


def test_a_store_without_records_of_the_sweep_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(GRID + ASHA)
    with pytest.raises(HdsweepError, match="on the data of sweep full has a record; run the sweep"):
        replay(path, tmp_path / "store")
    record(write(GRID.replace("steps: 27", "steps: 28"), "other.yaml"), tmp_path / "store")
    with pytest.raises(HdsweepError, match="no trial of sweep full has a record; run the sweep"):
        replay(path, tmp_path / "store")


def test_a_file_that_was_not_run_finds_the_trials_that_it_shares(
    write: Write, tmp_path: Path
) -> None:
    record(write(GRID), tmp_path / "store")
    path = write(GRID.replace("name: full", "name: stopped") + ASHA, "stopped.yaml")
    found = replay(path, tmp_path / "store")
    assert (found.sweep, found.full.trials) == ("stopped", 48)
    assert found.stopped


def test_a_rule_that_watches_what_no_record_has_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(GRID + ASHA)

    def points(trial: Trial) -> Points:
        return [{**p, "acc": p["auroc"]} for p in by_formula(trial)]

    plan = record(path, tmp_path / "store", points)
    store = Store(tmp_path / "store")
    for _, trial in plan.trials():
        bare = [{"step": p["step"], "time_s": p["time_s"], "loss": 1.0} for p in points(trial)]
        keep(store, record_of(trial, points(trial)), bare)
    message = refusal("full", "--store", tmp_path / "store")
    assert "watches 'auroc', which no recorded curve of sweep full has; known: loss" in message


def test_a_trial_larger_than_the_machine_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(TWO.replace("gpus: 1", "gpus: 4"))
    record(path, tmp_path / "store")
    assert "--gpus 3: a trial of the sweep takes 4" in refusal(
        path, "--store", tmp_path / "store", "--gpus", 3
    )


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def full(write: Write, tmp_path: Path) -> Path:
    record(write(GRID), tmp_path / "store")
    return tmp_path / "store"


def test_options_stand_in_the_place_of_blocks(full: Path, write: Write, tmp_path: Path) -> None:
    options = ("--store", full, "--gpus", 2, "--format", "json")
    by_options = ask("full", "--stop", "asha", "--reduction", 3, *options)
    by_file = ask(write(GRID + ASHA), *options)
    found, same = json.loads(by_options.output), json.loads(by_file.output)
    assert found.pop("rules")["stop"]["metric"] == same.pop("rules")["stop"]["metric"] == "auroc"
    assert found == same
    assert found["replay"]["stopped"] > 0
    assert set(found) == {
        "sweep", "gpus", "gpus_each", "workers", "full", "replay", "chosen_by",
        "larger_is_better", "choices", "stopped", "skipped", "notes",
    }  # fmt: skip


def test_the_table_sets_the_replay_against_the_full_run(full: Path) -> None:
    done = ask("full", "--store", full, "--stop", "asha", "--gpus", 1)
    lines = done.output.splitlines()
    assert lines[:2] == ["full: stop rule=asha metric=auroc", "simulated with 1 worker"]
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["trials run"][2] == "48"
    assert int(rows["trials run"][3]) == 48 - int(rows["skipped"][-1])
    assert int(rows["stopped"][-1]) > 0
    assert rows["grid"][1:3] == ["quality=0.9", "lr=0.2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has no rule to replay; add one"),
        (["--grace", "2"], "--grace: the sweep has no block for it, a stopping rule"),
        (["--level", "0.1"], "--level: the sweep has no block for it, a race"),
        (["--sampler", "tpe"], "--sampler: the sweep has no block for it, a search"),
        (["--stop", "asha", "--reduction", "1"], "--reduction: input should be greater than 1"),
        (["--stop", "asha", "--patience", "3"], "rule asha does not use patience"),
        (["--stop", "asha", "--metric", "loss"], "reports no curve of 'loss'"),
        (["--race", "two"], "--race: 'two' is no list of numbers of seeds"),
        (["--race", "3"], "a look after 3 of 3 seeds drops nothing"),
        (["--race", "1"], "--race-looks: input should be greater than or equal to 2"),
    ],
)
def test_options_that_make_no_rule_are_refused(
    full: Path, options: list[str], message: str
) -> None:
    assert message in refusal("full", "--store", full, *options)


def test_a_sweep_that_is_not_there_is_refused_with_the_nearest_name(full: Path) -> None:
    assert "ful: is no file, and no sweep" in refusal("ful", "--store", full)
    assert "did you mean 'full'?" in refusal("ful", "--store", full)


def test_the_rule_of_the_file_can_be_switched_off(write: Write, tmp_path: Path) -> None:
    path = write(GRID + ASHA)
    record(path, tmp_path / "store")
    assert "no rule to replay" in refusal("full", "--store", tmp_path / "store", "--stop", "none")
