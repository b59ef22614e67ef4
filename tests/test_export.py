"""A sweep in the store as Optuna studies, and what its report says of drawn knobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import typer
from typer.testing import CliRunner

from hdsweep.cli_search import export_app
from hdsweep.errors import HdsweepError
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.studies import importance_lines
from hdsweep.trial import Trial
from tests.recording import Points, by_formula, keep, record, record_of

GRID = """\
name: grid
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2]
params: {steps: 5, noise: 0.01}
arms:
  plain: {quality: 0.3}
  swept: {quality: {grid: [0.2, 0.9]}, lr: {grid: [0.1, 0.2], when: {quality: 0.9}}}
report: {metrics: [auroc]}
"""
SEARCH = """\
name: searched
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels, make: {items: 40}}
seeds: [1, 2]
params: {noise: 0.01}
arms:
  plain: {quality: 0.3, steps: 4}
  tuned: {quality: {uniform: [0, 1]}, lr: {log_uniform: [0.01, 1]}, steps: {grid: [4]}}
search: {sampler: tpe, trials: 30, maximize: auroc}
report: {metrics: [auroc]}
"""


def export(*arguments: object) -> str:
    """Call the command in this process; what it refuses is raised."""
    app = typer.Typer()
    app.add_typer(export_app, name="export")
    given = ["export", "optuna", *map(str, arguments)]
    return CliRunner().invoke(app, given, catch_exceptions=False).output


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def draws(many: int) -> list[dict[str, float]]:
    random = np.random.default_rng(0)
    return [
        {"quality": float(random.uniform()), "lr": float(10 ** random.uniform(-2, 0))}
        for _ in range(many)
    ]


def studies(path: Path) -> dict[str, optuna.Study]:
    storage = f"sqlite:///{path}"
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def mean_curve(trials: tuple[Trial, ...]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for trial in trials:
        for point in by_formula(trial):
            found.setdefault(point["step"], []).append(point["auroc"])
    return {step: sum(values) / len(values) for step, values in found.items()}


def test_a_grid_becomes_a_study_for_each_arm(tmp_path: Path) -> None:
    plan = record(write(tmp_path, GRID), tmp_path / "store")
    out = tmp_path / "grid.db"

    said = export("grid", "--store", tmp_path / "store", "--out", out)

    assert said.splitlines() == [
        "grid/plain: 1 configuration",
        "grid/swept: 3 configurations",
        f"optuna-dashboard sqlite:///{out}",
    ]
    found = studies(out)
    assert set(found) == {"grid/plain", "grid/swept"}
    swept = found["grid/swept"]
    assert swept.direction.name == "MAXIMIZE"
    assert swept.metric_names == ["auroc"]
    assert swept.user_attrs["arm"] == "swept"
    cells = [cell for cell in plan.cells if cell.arm == "swept"]
    for trial, cell in zip(swept.trials, cells, strict=True):
        curve = mean_curve(cell.trials)
        assert trial.params == {"quality": cell.knobs["quality"], "lr": cell.knobs.get("lr")}
        assert trial.state.name == "COMPLETE"
        assert trial.intermediate_values == pytest.approx(curve)
        assert trial.value == pytest.approx(curve[5])
        assert trial.user_attrs["trials"] == {str(t.seed): t.id for t in cell.trials}
        ends = {str(t.seed): [by_formula(t)[-1]["auroc"]] for t in cell.trials}
        assert trial.user_attrs["seeds"] == ends
    assert {type(d).__name__ for d in swept.trials[0].distributions.values()} == {
        "CategoricalDistribution"
    }


def test_what_did_not_end_well_has_its_state(tmp_path: Path) -> None:
    plan = record(write(tmp_path, GRID), tmp_path / "store")
    store = Store(tmp_path / "store")
    failed, pruned, waiting = [cell for cell in plan.cells if cell.arm == "swept"]
    error = {"kind": "method", "message": "no", "traceback": ""}
    keep(store, record_of(failed.trials[0], [], status="failed", error=error), [])
    points: Points = by_formula(pruned.trials[0])[:2]
    stopped = {"kind": "stopped", "message": "asha", "traceback": ""}
    keep(store, record_of(pruned.trials[0], points, status="pruned", error=stopped), points)
    keep(store, record_of(pruned.trials[1], points, status="pruned", error=stopped), points)
    (store.trial_dir(waiting.trials[1].id) / "record.json").unlink()

    export("--store", tmp_path / "store")

    trials = studies(tmp_path / "store/sweeps/grid/optuna.db")["grid/swept"].trials
    assert [trial.state.name for trial in trials] == ["FAIL", "PRUNED", "RUNNING"]
    assert set(trials[1].intermediate_values) == {1, 2}


def test_a_search_becomes_a_study_with_what_it_drew_and_was_told(tmp_path: Path) -> None:
    drawn = draws(6)
    plan = record(write(tmp_path, SEARCH), tmp_path / "store", draws=drawn)

    export("searched", "--store", tmp_path / "store")

    found = studies(tmp_path / "store/sweeps/searched/optuna.db")
    assert set(found) == {"searched/plain", "searched/tuned steps=4"}
    study = found["searched/tuned steps=4"]
    assert study.user_attrs["hdsweep"]["sampler"] == "tpe"
    assert study.user_attrs["knobs"] == {"steps": 4}
    assert [trial.params for trial in study.trials] == drawn
    cells = [cell for cell in plan.cells if cell.study is not None]
    for trial, cell in zip(study.trials, cells, strict=True):
        assert trial.value == pytest.approx(mean_curve(cell.trials)[4])
        assert trial.intermediate_values == pytest.approx(mean_curve(cell.trials))
        assert set(trial.user_attrs["seeds"]) == {"1", "2"}
        assert trial.user_attrs["configuration"] == dict(cell.knobs)
    assert study.best_trial.number == max(range(6), key=lambda n: study.trials[n].value or 0)


def test_the_metric_may_need_a_direction(tmp_path: Path) -> None:
    path = write(tmp_path, GRID.replace("[auroc]", "[cost]"))
    record(path, tmp_path / "store")
    with pytest.raises(HdsweepError, match="large or small values of 'cost' are good: --mode max"):
        export("--store", tmp_path / "store")
    export("--store", tmp_path / "store", "--mode", "min")
    found = studies(tmp_path / "store/sweeps/grid/optuna.db")["grid/swept"]
    assert found.direction.name == "MINIMIZE"
    assert found.best_value == pytest.approx(0.5)


def test_another_file_is_not_replaced_and_another_sweep_not_found(tmp_path: Path) -> None:
    record(write(tmp_path, GRID), tmp_path / "store")
    out = tmp_path / "notes.db"
    out.write_text("mine")
    with pytest.raises(HdsweepError, match="left as it is"):
        export("--store", tmp_path / "store", "--out", out)
    assert out.read_text() == "mine"
    with pytest.raises(HdsweepError, match="no sweep 'gird'; did you mean 'grid'"):
        export("gird", "--store", tmp_path / "store")


# --- importance -----------------------------------------------------------------------------------


def lines(tmp_path: Path, **options: Any) -> list[str]:
    store = Store(tmp_path / "store")
    planned = store.sweep()
    spec = load_sweep(tmp_path / "store/sweeps" / planned.name / "sweep.yaml")
    return importance_lines(store, planned, spec, **options)


def test_importance_is_a_line_for_each_search(tmp_path: Path) -> None:
    def points(trial: Trial) -> Points:  # of quality only
        return [{**p, "auroc": trial.params["quality"]} for p in by_formula(trial)]

    record(write(tmp_path, SEARCH), tmp_path / "store", points, draws(31))
    (line,) = lines(tmp_path)
    start = "importance for tuned steps=4 by PED-ANOVA over 31 configurations: quality ."
    assert line.startswith(start)
    assert ", lr ." in line
    (other,) = lines(tmp_path, evaluator="fanova")
    assert "by fANOVA over 31 configurations: quality" in other


def test_importance_of_a_few_configurations_says_why_there_is_none(tmp_path: Path) -> None:
    record(write(tmp_path, SEARCH), tmp_path / "store", draws=draws(3))
    assert lines(tmp_path) == [
        "importance for tuned steps=4: 3 complete configurations; it takes 20"
    ]


def test_a_sweep_without_a_search_does_not_load_optuna(tmp_path: Path) -> None:
    record(write(tmp_path, GRID), tmp_path / "store")
    code = """if True:
        import sys
        from pathlib import Path
        from hdsweep.spec import load_sweep
        from hdsweep.store import Store
        from hdsweep.studies import importance_lines
        store = Store(Path("store"))
        spec = load_sweep(Path("store/sweeps/grid/sweep.yaml"))
        print(importance_lines(store, store.sweep(), spec), "optuna" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "False"]
