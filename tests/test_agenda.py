"""What is decided while a sweep runs: draws, stops, races and choices, and all of it once more."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hdsweep import cli
from hdsweep.search import aggregate
from hdsweep.store import PlannedCell, Store
from tests.conftest import Run, read, records

Write = Callable[..., Path]

CURVES: dict[str, Any] = {
    "name": "s",
    "method": "tests.methods.curves",
    "data": {"name": "tests.methods.labels", "root": "labels", "make": {"items": 200}},
    "seeds": [1, 2, 3],
    "params": {"steps": 9, "noise": 0.02},
    "arms": {
        "fixed": {"quality": 0.5},
        "tuned": {"quality": {"uniform": [0.0, 0.6]}, "lr": {"log_uniform": [0.05, 1]}},
    },
    "search": {"trials": 8, "maximize": "auroc", "parallel": 1},
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc", "cost"]},
}


@pytest.fixture
def hdsweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The command line in this process: a start of Python for each command would take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        given, code = ["hdsweep", *map(str, arguments)], 0
        monkeypatch.setattr(sys, "argv", given)
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return subprocess.CompletedProcess(given, code, *capfd.readouterr())

    return run


@pytest.fixture
def sweep(tmp_path: Path) -> Write:
    """Write a sweep file of curves with some blocks changed; None takes one away."""

    def write(file: str = "s.yaml", **changed: Any) -> Path:
        value = {k: v for k, v in {**CURVES, **changed}.items() if v is not None}
        path = tmp_path / file
        path.write_text(yaml.safe_dump(value, sort_keys=False))
        return path

    return write


def cells(root: Path, arm: str = "tuned", name: str = "s") -> list[PlannedCell]:
    return [cell for cell in Store(root).sweep(name).cells if cell.arm == arm]


def events(root: Path, kind: str, name: str = "s") -> list[dict[str, Any]]:
    return [event for event in Store(root).decisions(name) if event["event"] == kind]


def auroc(root: Path, trial_id: str) -> float:
    record = Store(root).record(trial_id)
    assert record is not None
    values = [value for value in record.metrics["auroc"].values() if value is not None]
    return math.fsum(values) / len(values)


# --- searches -------------------------------------------------------------------------------------


def test_a_file_enumerates_some_arms_and_searches_others(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    counts = read(hdsweep("run", sweep(), "--inline", "--format", "json"))
    assert (counts["planned"], counts["ok"]) == (3 + 8 * 3, 27)
    drawn = cells(tmp_path / "results")
    assert [cell.number for cell in drawn] == list(range(8))
    assert len({cell.knobs["lr"] for cell in drawn}) == 8
    assert all(0.05 <= cell.knobs["lr"] <= 1 for cell in drawn)


def test_a_search_is_told_the_mean_over_seeds(hdsweep: Run, sweep: Write, tmp_path: Path) -> None:
    hdsweep("run", sweep(), "--inline")
    root = tmp_path / "results"
    for cell, told in zip(cells(root), events(root, "told"), strict=True):
        values = [auroc(root, i) for i in cell.trials.values()]
        assert told["state"] == "complete"
        assert told["values"] == [pytest.approx(sum(values) / 3, abs=1e-12)]


@pytest.mark.parametrize("how", ["median", "worst", "lower_bound"])
def test_a_search_is_told_another_aggregate_where_the_file_says_so(
    hdsweep: Run, sweep: Write, tmp_path: Path, how: str
) -> None:
    search = {"trials": 2, "maximize": "auroc", "aggregate": how}
    hdsweep("run", sweep(search=search), "--inline")
    root = tmp_path / "results"
    for cell, told in zip(cells(root), events(root, "told"), strict=True):
        values = [auroc(root, i) for i in cell.trials.values()]
        assert told["values"] == [
            pytest.approx(aggregate(values, how, larger_is_better=True, confidence=0.9), abs=1e-12)
        ]


def test_a_finished_search_is_not_run_again_and_more_trials_extend_it(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    hdsweep("run", sweep(), "--inline")
    before, first = records(root), cells(root)
    assert read(hdsweep("run", sweep(), "--inline", "--format", "json"))["ran"] == 0
    more = sweep(search={**CURVES["search"], "trials": 10})
    assert read(hdsweep("run", more, "--inline", "--format", "json"))["ran"] == 6
    assert cells(root)[:8] == first
    assert {i: content for i, content in records(root).items() if i in before} == before
    # What it draws is what it would have drawn in one go.
    hdsweep("run", more, "--inline", "--store", "straight")
    assert [c.knobs for c in cells(tmp_path / "straight")] == [c.knobs for c in cells(root)]


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2"])
def test_every_sampler_goes_on_where_it_was(
    hdsweep: Run, sweep: Write, tmp_path: Path, sampler: str
) -> None:
    for trials in (7, 14):
        path = sweep(search={**CURVES["search"], "trials": trials, "sampler": sampler}, seeds=[1])
        assert hdsweep("run", path, "--inline").returncode == 0
    hdsweep("run", path, "--inline", "--store", "straight")
    drawn = [cell.knobs for cell in cells(tmp_path / "results")]
    assert drawn == [cell.knobs for cell in cells(tmp_path / "straight")]
    assert len(drawn) == 14


def test_a_lost_log_costs_a_sequential_search_nothing(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    hdsweep("run", sweep(), "--inline")
    before = cells(root)
    (root / "sweeps/s/decisions.jsonl").unlink()
    assert read(hdsweep("run", sweep(), "--inline", "--format", "json"))["ran"] == 0
    assert cells(root) == before


def test_seeds_that_are_added_or_taken_away_are_those_of_every_configuration(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    hdsweep("run", sweep(seeds=[1, 2]), "--inline")
    drawn = [cell.knobs for cell in cells(root)]
    for seeds, ran in (([1, 2, 3], 9), ([2, 3], 0)):
        counts = read(hdsweep("run", sweep(seeds=seeds), "--inline", "--format", "json"))
        assert (counts["ran"], counts["planned"]) == (ran, 9 * len(seeds))
        assert [list(cell.trials) for cell in cells(root)] == [seeds] * 8
        assert [cell.knobs for cell in cells(root)] == drawn
        for cell, told in zip(cells(root), events(root, "told"), strict=False):
            values = [auroc(root, i) for i in cell.trials.values()]
            assert cell.number != told["number"] or len(values) == len(seeds)


def test_another_objective_goes_on_from_the_same_records(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    hdsweep("run", sweep(), "--inline")
    drawn = [cell.knobs for cell in cells(root)]
    costs = sweep(search={"trials": 9, "minimize": "cost", "parallel": 1})
    assert read(hdsweep("run", costs, "--inline", "--format", "json"))["ran"] == 3
    assert [cell.knobs for cell in cells(root)][:8] == drawn


def test_each_grid_cell_has_a_study_and_they_advance_together(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    arm = {"quality": {"grid": [0.2, 0.4]}, "lr": {"log_uniform": [0.05, 1]}}
    search = {"trials": 5, "maximize": "auroc", "budget": "shared"}
    path = sweep(arms={"tuned": arm}, search=search, seeds=[1])
    hdsweep("run", path, "--inline")
    asked = events(tmp_path / "results", "asked")
    assert [event["cell"]["quality"] for event in asked] == [0.2, 0.4, 0.2, 0.4, 0.2]
    assert len({event["study"] for event in asked}) == 2


def test_a_failed_seed_fails_its_configuration_and_spares_the_others(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    arm = {
        "fault": {"choice": ["none", "raise", "diverge", "nan"]},
        "strength": {"uniform": [1, 2]},
    }
    path = sweep(
        method="tests.methods.noise",
        params=None,
        arms={"tuned": arm},
        search={"trials": 12, "maximize": "auroc", "sampler": "random"},
        report={"metrics": ["auroc"]},
    )
    done = hdsweep("run", path, "--inline")
    assert done.returncode == 1
    root = tmp_path / "results"
    told = {event["number"]: event["state"] for event in events(root, "told")}
    by_fault = {(c.knobs["fault"], told[c.number or 0]) for c in cells(root)}
    assert by_fault == {
        ("none", "complete"), ("raise", "failed"), ("diverge", "failed"), ("nan", "failed"),
    }  # fmt: skip
    for cell in cells(root):
        ran = len(Store(root).records(cell.trials.values()))
        assert ran == (1 if cell.knobs["fault"] in ("raise", "diverge") else 3)
    table = hdsweep("report", "--format", "csv").stdout
    assert "seed 1 of its configuration: an error in its method" in table
    assert "seed 1 of its configuration: diverged" in table


def test_a_small_space_is_searched_once_and_no_configuration_twice(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    arm = {"quality": {"choice": [0.1, 0.2, 0.3]}, "steps": {"int": [1, 2]}}
    path = sweep(
        arms={"tuned": arm}, params=None, seeds=[1], search={"trials": 40, "maximize": "auroc"}
    )
    counts = read(hdsweep("run", path, "--inline", "--format", "json"))
    root = tmp_path / "results"
    assert counts["ran"] == counts["planned"] == len(records(root)) <= 6
    assert len({json.dumps(c.knobs) for c in cells(root)}) == len(cells(root)) >= 5
    assert len(events(root, "told")) == len(events(root, "asked"))


def test_a_drawn_configuration_that_is_in_the_store_already_is_not_run(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(), "--inline")
    # Another sweep, whose sampler has the same seed and whose study is the same.
    counts = read(hdsweep("run", sweep("b.yaml", name="other"), "--inline", "--format", "json"))
    assert (counts["ran"], counts["ok"]) == (0, 27)


def test_constraints_are_told_and_decide_what_is_best(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    search = {"trials": 8, "maximize": "auroc", "constraints": ["cost <= 2"], "parallel": 1}
    hdsweep("run", sweep(search=search), "--inline")
    root = tmp_path / "results"
    drawn = {cell.number: cell for cell in cells(root)}
    for told in events(root, "told"):
        lr = drawn[told["number"]].knobs["lr"]
        assert told["constraints"] == {"cost <= 2": pytest.approx(9 * lr - 2)}
    assert 0 < sum(cell.feasible for cell in drawn.values()) < 8


# --- stopping -------------------------------------------------------------------------------------

ASHA = {"rule": "asha", "metric": "auroc", "grace": 1, "reduction": 3}


def test_a_configuration_is_stopped_with_all_its_seeds(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    done = hdsweep("run", sweep(stop=ASHA), "--inline")
    assert done.returncode == 0, done.stderr  # what a rule stops is no failure
    root = tmp_path / "results"
    store = Store(root)
    states = Counter(event["state"] for event in events(root, "told"))
    assert states.keys() == {"complete", "pruned"}
    for cell in cells(root):
        endings = [r.status for r in store.records(cell.trials.values()).values()]
        if cell.state == "pruned":
            assert endings[-1] == "pruned"
            assert len(endings) < 3 or endings.count("pruned") == 1
        else:
            assert endings == ["ok"] * 3
    [fixed] = cells(root, "fixed")
    assert [r.status for r in store.records(fixed.trials.values()).values()] == ["ok"] * 3


def test_a_stopped_trial_keeps_its_curve_and_is_in_no_mean(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(stop=ASHA), "--inline")
    root = tmp_path / "results"
    found = Store(root).records(i for cell in cells(root) for i in cell.trials.values())
    pruned = [record for record in found.values() if record.status == "pruned"]
    assert pruned
    for record in pruned:
        lines = (Store(root).trial_dir(record.id) / "curve.jsonl").read_text().splitlines()
        assert 1 <= len(lines) < 9
        assert record.metrics == {}
        assert "asha: " in (record.error or {})["message"]
    table = hdsweep("report", "--format", "json").stdout
    rows = json.loads(table)["tables"][0]["rows"]
    by_number = {row["number"]: row["cells"]["mean"] for row in rows if row["arm"] == "tuned"}
    for cell in cells(root):
        assert (by_number[cell.number]["n"] == 3) == (cell.state == "complete")


def test_a_stopped_sweep_is_finished_and_stays_so(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    path = sweep(stop=ASHA)
    first = read(hdsweep("run", path, "--inline", "--format", "json"))
    assert first["pruned"] > 0
    assert first["skipped"] > 0
    assert first["not_finished"] == 0
    again = read(hdsweep("run", path, "--inline", "--format", "json"))
    assert again | {"ran": first["ran"]} == first
    assert again["ran"] == 0


def test_without_its_rule_a_stopped_configuration_is_run_to_its_end(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(stop=ASHA), "--inline")
    before = [cell.knobs for cell in cells(tmp_path / "results")]
    counts = read(hdsweep("run", sweep(), "--inline", "--format", "json"))
    assert (counts["ok"], counts["pruned"], counts["skipped"]) == (27, 0, 0)
    assert [cell.knobs for cell in cells(tmp_path / "results")] == before


def test_what_finished_for_another_sweep_is_compared_with(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    good = {"good": {"quality": {"grid": [0.5, 0.55, 0.6]}}}
    hdsweep("run", sweep(arms=good, search=None, seeds=[1]), "--inline")
    both = {"good": {"quality": {"grid": [0.1, 0.5, 0.55, 0.6]}}}
    path = sweep(name="both", arms=both, search=None, seeds=[1], stop=ASHA)
    counts = read(hdsweep("run", path, "--inline", "--format", "json"))
    assert (counts["ran"], counts["pruned"]) == (1, 1)


# --- races ----------------------------------------------------------------------------------------

RACE: dict[str, Any] = {
    "method": "tests.methods.noise",
    "params": None,
    "seeds": list(range(1, 9)),
    "arms": {"one": {"strength": {"grid": [0.5, 1, 2, 3]}}, "two": {"strength": 0.1}},
    "search": None,
    "race": {"metric": "auroc", "looks": [3, 5]},
    "report": {"metrics": ["auroc"]},
}


def test_a_race_gives_no_more_seeds_to_what_is_clearly_worse(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    counts = read(hdsweep("run", sweep(**RACE), "--inline", "--format", "json"))
    root = tmp_path / "results"
    ran = {
        c.knobs.get("strength"): len(Store(root).records(c.trials.values()))
        for c in Store(root).sweep().cells
    }
    assert ran[3.0] == 8
    assert set(ran.values()) <= {3, 5, 8}
    assert ran[0.5] < 8
    assert counts["ok"] == sum(ran.values())
    assert counts["skipped"] == 40 - counts["ok"]
    table = hdsweep("report").stdout
    assert "skipped: race: worse than 'one strength=3" in table
    planned = read(hdsweep("plan", sweep(**RACE), "--format", "json"))["counts"]
    assert (planned["new"], planned["skipped"]) == (0, counts["skipped"])
    assert read(hdsweep("run", sweep(**RACE), "--inline", "--format", "json"))["ran"] == 0


def test_a_race_drops_a_configuration_of_which_a_seed_failed(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    arms = {"bad": {"fault": "raise"}, "a": {"level": 1}, "b": {"level": 2}}
    read(hdsweep("run", sweep(**RACE | {"arms": arms}), "--inline", "--format", "json"))
    root = tmp_path / "results"
    [bad] = cells(root, "bad")
    assert len(Store(root).records(bad.trials.values())) == 1
    assert bad.skipped == "seed 1 of its configuration: an error in its method"
    assert len(Store(root).records(cells(root, "a")[0].trials.values())) == 8


def test_without_its_race_a_sweep_gives_every_seed(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(**RACE), "--inline")
    counts = read(hdsweep("run", sweep(**RACE | {"race": None}), "--inline", "--format", "json"))
    assert (counts["ok"], counts["skipped"]) == (40, 0)


# --- choosing and confirming ----------------------------------------------------------------------

CONFIRM: dict[str, Any] = {
    "method": "tests.methods.noise",
    "params": None,
    "seeds": {"select": [1, 2], "confirm": [11, 12, 13]},
    "arms": {
        "base": {"strength": 1},
        "grid": {"strength": {"grid": [0.5, 1.5, 2]}},
        "tuned": {"strength": {"uniform": [0, 3]}},
    },
    "search": {"trials": 5, "maximize": "auroc", "sampler": "random"},
    "report": {"metrics": ["auroc"]},
}


def test_what_is_chosen_on_some_seeds_is_reported_on_others(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    counts = read(hdsweep("run", sweep(**CONFIRM), "--inline", "--format", "json"))
    assert counts["ok"] == counts["planned"] == (1 + 3 + 5) * 2 + 3 * 3
    root = tmp_path / "results"
    for arm in ("base", "grid", "tuned"):
        of_arm = cells(root, arm)
        chosen = [cell for cell in of_arm if cell.part == "confirm"]
        assert [list(cell.trials) for cell in chosen] == [[11, 12, 13]]
        means = {
            json.dumps(cell.knobs): sum(auroc(root, i) for i in cell.trials.values()) / 2
            for cell in of_arm
            if cell.part == "select"
        }
        assert means[json.dumps(chosen[0].knobs)] == max(means.values())
    rows = json.loads(hdsweep("report", "--format", "json").stdout)["tables"][0]["rows"]
    assert [row["arm"] for row in rows] == ["base", "grid", "tuned"]
    assert all(row["cells"]["mean"]["n"] == 3 for row in rows)
    picked = json.loads(hdsweep("report", "--part", "select", "--format", "json").stdout)
    assert len(picked["tables"][0]["rows"]) == 1 + 3 + 5
    assert "chosen by best auroc over seeds 1, 2" in hdsweep("report").stdout


def test_what_breaks_a_constraint_is_not_chosen(hdsweep: Run, sweep: Write, tmp_path: Path) -> None:
    search = CONFIRM["search"] | {"constraints": "strength_seen <= 1.5", "trials": 8}
    root = tmp_path / "results"
    hdsweep("run", sweep(**CONFIRM | {"search": search}), "--inline")
    drawn = [c.knobs["strength"] for c in cells(root, "tuned") if c.part == "select"]
    chosen = [c.knobs["strength"] for c in cells(root, "tuned") if c.part == "confirm"]
    assert max(drawn) > 1.5
    assert len(chosen) == 1
    assert chosen[0] <= 1.5
    never = CONFIRM["search"] | {"constraints": "strength_seen <= -1", "trials": 8}
    done = hdsweep("run", sweep(**CONFIRM | {"search": never}), "--inline")
    assert done.returncode == 0, done.stderr
    assert not [c for c in cells(root, "tuned") if c.part == "confirm"]
    assert "none keeps strength_seen <= -1, of 8 configurations" in done.stdout


def test_several_of_an_arm_are_confirmed_where_the_file_says_so(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    seeds = CONFIRM["seeds"] | {"top": 2, "by": "strength_seen", "mode": "min"}
    hdsweep("run", sweep(**CONFIRM | {"seeds": seeds}), "--inline")
    chosen = [
        c.knobs["strength"] for c in cells(tmp_path / "results", "grid") if c.part == "confirm"
    ]
    assert chosen == [0.5, 1.5]


def test_several_objectives_confirm_the_pareto_front(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    search = {"trials": 8, "maximize": "auroc", "minimize": "strength_seen", "sampler": "nsga2"}
    hdsweep("run", sweep(**CONFIRM | {"search": search}), "--inline")
    root = tmp_path / "results"
    drawn = [c for c in cells(root) if c.part == "select"]
    values = {c.number: (c.values[0], -c.values[1]) for c in drawn}
    front = {
        n for n, own in values.items()
        if not any(o != own and o[0] >= own[0] and o[1] >= own[1] for o in values.values())
    }  # fmt: skip
    assert {c.number for c in cells(root) if c.part == "confirm"} == front
