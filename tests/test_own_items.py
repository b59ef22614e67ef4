"""Methods that make test items of their own, in groups of their own, with a threshold of theirs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdsweep.method import Predictions
from hdsweep.store import Store
from tests.conftest import Run, read

COUPLES = """\
name: couples
question: Are couples told from singles?
method: tests.methods.couples
data: {{name: tests.methods.labels, root: labels, make: {{items: 20}}}}
seeds: [1, 2]
arms:
  one: {arm}
report: {{metrics: {metrics}}}
resources: {{gpus: 0, cpus: 1}}
"""


def sweep(tmp_path: Path, arm: str, metrics: str = "[auroc]") -> Path:
    path = tmp_path / "couples.yaml"
    path.write_text(COUPLES.format(arm=arm, metrics=metrics))
    return path


def record_of(store: Path) -> Any:
    found = Store(store).records(Store(store).finished()).values()
    return next(record for record in found if record.trial["seed"] == 1)


def test_groups_of_the_method_are_those_of_the_table(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{gaps: {grid: [[1], [1, 2]]}}", '[auroc, "auroc[group=pooled]"]')
    assert hdsweep("run", path, "--inline").returncode == 0
    table, alone = read(hdsweep("report", "--format", "json"))["tables"]
    assert alone["columns"] == ["pooled"]
    assert table["columns"] == ["gap 1", "gap 2", "pooled", "mean"]
    one, both = table["rows"]
    assert both["cells"]["gap 2"]["mean"] == 1.0
    assert one["cells"]["gap 2"]["n"] == 0
    assert one["cells"]["pooled"]["mean"] == both["cells"]["pooled"]["mean"] == 1.0


def test_the_hint_at_further_metrics_can_be_pasted(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{gaps: [1, 2]}", '[auroc, f1, "auroc[group=gap 2]"]')
    ran = hdsweep("run", path, "--inline")
    (hint,) = (line for line in ran.stderr.splitlines() if line.startswith("more: hdsweep report"))
    done = hdsweep(*shlex.split(hint)[2:])
    assert done.returncode == 0, done.stderr
    assert "auroc[group=gap 2] in %" in done.stdout


def test_pooled_counts_each_item_once(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{threshold: 0.8}", '["precision[group=gap 1]"]')
    assert hdsweep("run", path, "--inline").returncode == 0
    shown = read(hdsweep("report", "--metric", "precision", "--metric",
                         "precision[group=pooled]", "--format", "json"))  # fmt: skip
    table = shown["tables"][0]
    (row,) = table["rows"]
    text = hdsweep("report", "--metric", "precision[group=pooled]").stdout
    assert "pooled: over the items of all groups together, each item once" in text
    # Of 20 singles from 0 to .9, three reach .8; each gap has ten couples.
    assert row["cells"]["gap 1"]["mean"] == pytest.approx(10 / 13)
    assert row["cells"]["pooled"]["mean"] == pytest.approx(20 / 23)


def test_a_threshold_of_the_method_is_kept_and_used(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{threshold: 0.8}", "[f1]")
    assert hdsweep("run", path, "--inline", "--store", "with").returncode == 0
    record = record_of(tmp_path / "with")
    assert record.threshold == 0.8
    assert record.metrics["precision"]["gap 1"] == pytest.approx(10 / 13)
    assert record.metrics["balanced_accuracy"]["gap 1"] == pytest.approx((1 + 17 / 20) / 2)
    assert "threshold 0.8" in hdsweep("show", record.id, "--store", "with").stdout
    shown = read(hdsweep("report", "--store", "with", "--metric", "f1", "--metric",
                         "f1:oracle", "--format", "json"))  # fmt: skip
    chosen, oracle = (table["rows"][0]["cells"]["gap 1"]["mean"] for table in shown["tables"])
    assert chosen == pytest.approx(20 / 23)
    assert oracle == 1.0


def test_without_a_threshold_f1_is_the_oracle_s(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{threshold: null}", "[f1]")
    assert hdsweep("run", path, "--inline").returncode == 0
    record = record_of(tmp_path / "results")
    assert record.threshold is None
    assert record.metrics["f1"]["gap 1"] == 1.0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("forgets", "1 of 60 differ"),
        ("relabels", "two labels or two scores"),
        ("rescores", "two labels or two scores"),
    ],
)
def test_rows_that_are_not_those_that_the_method_declares_fail(
    tmp_path: Path, hdsweep: Run, fault: str, words: str
) -> None:
    path = sweep(tmp_path, f"{{fault: {fault}}}")
    assert hdsweep("run", path, "--inline").returncode == 1
    assert words in record_of(tmp_path / "results").error["message"]


def test_a_group_that_no_arm_tests_is_refused_with_its_line(tmp_path: Path, hdsweep: Run) -> None:
    path = sweep(tmp_path, "{gaps: [1, 2]}", '["auroc[group=gap 3]"]')
    done = hdsweep("plan", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the data have no group 'gap 3'; the groups are gap 1, gap 2" in done.stderr


def test_an_item_stands_once_in_each_group() -> None:
    label, score = np.array([True, True]), np.array([1.0, 1.0])
    assert Predictions(("a", "a"), ("x", "y"), label, score).first() == [0]
    with pytest.raises(ValueError, match="twice in one group"):
        Predictions(("a", "a"), ("x", "x"), label, score)
    Predictions(("a", "a"), ("x", "y"), label, np.array([np.nan, np.nan]))
