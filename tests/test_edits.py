"""What becomes of a sweep whose file or log is changed between two runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hdsweep.cli_plan import ready
from hdsweep.planned import drawn_of
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.studies import importance_lines
from hdsweep.world import StoreWorld
from tests.conftest import Run, read

Write = Callable[..., Path]

SEARCHED: dict[str, Any] = {
    "name": "s",
    "method": "tests.methods.curves",
    "data": {"name": "tests.methods.labels", "root": "labels", "make": {"items": 100}},
    "seeds": [1, 2],
    "params": {"steps": 4, "noise": 0.02},
    "arms": {
        "fixed": {"quality": 0.5},
        "tuned": {"quality": {"uniform": [0.0, 0.6]}, "lr": {"log_uniform": [0.05, 1]}},
    },
    "search": {"trials": 5, "maximize": "auroc", "parallel": 1},
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc", "cost"]},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Write:
    """Write the sweep file with some blocks changed; None takes one away."""

    def write(**changed: Any) -> Path:
        value = {k: v for k, v in {**SEARCHED, **changed}.items() if v is not None}
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(value, sort_keys=False))
        return path

    return write


def log_of(tmp_path: Path) -> Path:
    return tmp_path / "results/sweeps/s/decisions.jsonl"


def events(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in Store(tmp_path / "results").decisions("s") if event["event"] == kind]


def test_with_another_objective_the_best_are_those_by_that_one(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(), "--inline")
    other = sweep(search={"trials": 5, "minimize": "cost", "parallel": 1})
    assert read(hdsweep("run", other, "--inline", "--format", "json"))["ran"] == 0
    table = read(hdsweep("report", "--metric", "cost", "--format", "json"))["tables"][0]
    costs = {row["number"]: row["cells"]["mean"]["mean"] for row in table["rows"] if row["study"]}
    assert table["searches"][0]["best"] == sorted(costs, key=lambda n: costs[n])[:3]
    told = {event["number"]: event["values"] for event in events(tmp_path, "told")}
    assert told == {n: [pytest.approx(cost)] for n, cost in costs.items()}
    hdsweep("run", other, "--inline")  # what was told anew stands in the place of the old
    assert len(events(tmp_path, "told")) == 5


def test_what_was_drawn_outlasts_a_run_without_the_search(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    hdsweep("run", sweep(), "--inline")
    drawn = events(tmp_path, "asked")
    without = sweep(arms={"fixed": {"quality": 0.5}}, search=None)
    assert read(hdsweep("run", without, "--inline", "--format", "json"))["planned"] == 2
    assert events(tmp_path, "asked") == drawn


def test_a_sweep_that_a_rule_thinned_is_done_when_it_is_run_again(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    file = sweep(
        arms={"a": {"quality": {"grid": [0.9, 0.5, 0.1]}}},
        params={"steps": 8, "lr": 0.5},
        search=None,
        stop={"rule": "asha", "metric": "auroc", "grace": 1, "reduction": 2},
    )
    assert hdsweep("run", file, "--inline").returncode == 0
    skipped = events(tmp_path, "skipped")
    assert len(skipped) == 2
    again = hdsweep("run", file, "--inline")
    assert (again.returncode, "not finished" in again.stderr) == (0, False)
    assert events(tmp_path, "skipped") == skipped


def test_seeds_that_a_rule_stopped_are_run_in_full_to_confirm(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    blocks: dict[str, Any] = {
        "arms": {"a": {"quality": 0.8}},
        "params": {"steps": 8, "noise": 0.05, "lr": 0.3},
        "search": None,
        "stop": {"rule": "patience", "metric": "auroc", "patience": 2},
    }
    hdsweep("run", sweep(seeds=[7, 8], **blocks), "--inline")
    assert read(hdsweep("status", "--format", "json"))["pruned"] == 1  # seed 8
    confirmed = sweep(seeds={"select": [7], "confirm": [8]}, **blocks)
    counts = read(hdsweep("run", confirmed, "--inline", "--format", "json"))
    assert (counts["planned"], counts["ok"], counts["ran"]) == (2, 2, 1)
    assert read(hdsweep("run", confirmed, "--inline", "--format", "json"))["ran"] == 0


def test_progress_takes_no_mean_over_seeds_to_choose_on_and_to_confirm(
    sweep: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = sweep(
        arms={"a": {}, "b": {"quality": 0.1}}, search=None, seeds={"select": [1], "confirm": [2]}
    )
    made = ready(file, tmp_path / "results", lambda _: None)
    world = StoreWorld(
        made.spec, made.plan, made.targets, made.store, made.data, made.planned.groups, 0
    )
    cell = made.plan.cells[0]
    confirmed = made.plan.planner.again(cell, (2,), "confirm")
    jobs = [world.job(one, one.trials[0], 0) for one in (cell, confirmed)]
    assert [job.cell for job in jobs] == ["a", "a confirmed"]


# --- logs -----------------------------------------------------------------------------------------


def without_number_1(lines: list[str]) -> list[str]:
    return [line for line in lines if '"number": 1,' not in line]


def with_nan(lines: list[str]) -> list[str]:
    return [*lines, json.dumps({**json.loads(lines[-1]), "values": [float("nan")]})]


def with_a_number_too_large(lines: list[str]) -> list[str]:
    return [*lines, lines[-1].replace('"values": [', '"values": [1e999, ')]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_number_1, "where 1 is to come; cut the file before"),
        (with_nan, "NaN is no finite number"),
        (with_a_number_too_large, "1e999 is no finite number"),
    ],
)
def test_a_log_that_cannot_be_gone_on_from_is_refused_with_its_line(
    hdsweep: Run,
    sweep: Write,
    tmp_path: Path,
    damage: Callable[[list[str]], list[str]],
    said: str,
) -> None:
    file, log = sweep(), log_of(tmp_path)
    hdsweep("run", file, "--inline")
    damaged = "\n".join(damage(log.read_text().splitlines())) + "\n"
    log.write_text(damaged)
    for command in (("run", file, "--inline"), ("plan", file)):
        done = hdsweep(*command)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert "decisions.jsonl:" in done.stderr
    shown = hdsweep("report")
    assert said in shown.stdout.replace("\n", " ") + shown.stderr
    assert "Traceback" not in shown.stderr
    assert log.read_text() == damaged


def test_of_two_lines_about_a_draw_the_later_one_holds(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    file, log = sweep(), log_of(tmp_path)
    hdsweep("run", file, "--inline")
    before = log.read_text()
    log.write_text(before + next(line for line in before.splitlines() if '"asked"' in line) + "\n")
    assert read(hdsweep("run", file, "--inline", "--format", "json"))["ran"] == 0
    assert log.read_text() == before


def test_what_a_sampler_draws_twice_counts_once_for_importance(
    hdsweep: Run, sweep: Write, tmp_path: Path
) -> None:
    arms = {"tuned": {"quality": {"choice": [0.1, 0.5]}, "lr": {"choice": [0.1, 0.5]}}}
    search = {"trials": 4, "maximize": "auroc", "sampler": "random"}
    file = sweep(arms=arms, search=search)
    hdsweep("run", file, "--inline")
    drawn = events(tmp_path, "asked")
    once = [event for event in drawn if "same_as" not in event]
    assert len(once) < len(drawn)
    store = Store(tmp_path / "results")
    (line,) = importance_lines(store, store.sweep("s"), load_sweep(file))
    assert line == f"importance for tuned: {len(once)} complete configurations; it takes 20"


# --- refused before data are looked at ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"search": {"trials": 1, "maximize": "auroc", "budget": "shared"},
             "arms": {"t": {"steps": {"grid": [3, 4]}, "quality": {"uniform": [0, 1]}}}},
            "1 trials cannot be shared by 2 grid cells",
        ),
        (
            {"arms": {key: {"quality": {"uniform": [0, 1]}} for key in "ab"}},
            "arms.b: searches the same as arm a",
        ),
        (
            {"search": {"trials": 2, "maximize": "auroc", "options": {"n_startup": 2}}},
            ": search.options: unknown option 'n_startup'",
        ),
    ],
)  # fmt: skip
def test_check_finds_what_no_search_can_do_and_makes_no_data(
    hdsweep: Run, sweep: Write, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    file = sweep(**changed)
    checked = hdsweep("check", file)
    assert (checked.returncode, checked.stdout.count(said)) == (2, 1), checked.stdout
    assert hdsweep("run", file, "--inline").returncode == 2
    assert not (tmp_path / "labels").exists()


def test_a_search_with_fewer_trials_than_it_drew_says_so() -> None:
    assert drawn_of(3, 4) == "3 of 4 configurations drawn"
    assert drawn_of(7, 4) == "7 configurations, more than trials: 4, drawn"
