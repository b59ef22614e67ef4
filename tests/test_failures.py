"""What becomes of a trial, and of its configuration, when its method fails."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, SWEEP, Run, read, records

Write = Callable[..., Path]
BROKEN = SWEEP.replace("seeds: [1, 2]", "seeds: [1, 2, 3]").replace(
    "strength: {grid: [1, 2]}", "method: mine.broken"
)
RAISES = """\
from pathlib import Path
import numpy as np
from hdsweep.method import Method, Outcome, Predictions, Strict

class Params(Strict):
    pass

def run(params, data, context):
    if {when}:
        raise RuntimeError("the method has a bug")
    return Outcome(Predictions.of(data.test, np.arange(len(data.test))))

METHOD = Method(version=1, params=Params, run=run, source="none", uses_torch=False)
"""


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write a module ``mine.broken`` that raises under a condition."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")

    def write(when: str) -> None:
        (tmp_path / "mine/broken.py").write_text(RAISES.replace("{when}", when))

    return write


def own(store: Path, status: str) -> list[str]:
    mark = f'"status": "{status}"'.encode()
    return sorted(i for i, content in records(store).items() if mark in content)


def test_an_error_of_the_method_stops_its_configuration_and_no_other(
    hdsweep: Run, sweep_file: Write, method: Callable[[str], None], tmp_path: Path
) -> None:
    method("True")
    sweep_file(BROKEN)
    done = hdsweep("run", "noise.yaml", "--inline", "--format", "json")
    found = read(done)
    assert (found["ok"], found["failed"], found["skipped"]) == (3, 1, 2), done.stderr
    assert done.returncode == 1
    (failed,) = own(tmp_path / "results", "failed")
    shown = hdsweep("show", failed)
    assert "Traceback" in shown.stdout
    assert "the method has a bug" in shown.stdout
    log = tmp_path / "results/trials" / failed[:2] / failed / "log.txt"
    assert "Traceback" in log.read_text()
    rows = csv.DictReader(io.StringIO(hdsweep("report", "--format", "csv").stdout))
    row = next(row for row in rows if row["arm"] == "strong")
    assert (row["failed"], row["skipped"]) == ("1", "2")
    assert "seed 1 of its configuration: an error in its method" in row["reasons"]


def test_a_seed_that_has_succeeded_shows_that_the_others_are_worth_running(
    hdsweep: Run, sweep_file: Write, method: Callable[[str], None]
) -> None:
    method("context.seed == 2")
    sweep_file(BROKEN)
    found = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (found["ok"], found["failed"], found["skipped"]) == (5, 1, 0)


def test_once_the_method_is_mended_the_seeds_that_were_left_out_run(
    hdsweep: Run, sweep_file: Write, method: Callable[[str], None]
) -> None:
    method("True")
    sweep_file(BROKEN)
    hdsweep("run", "noise.yaml", "--inline")
    again = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (again["ran"], again["skipped"]) == (0, 2)
    method("False")
    mended = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (mended["ran"], mended["failed"], mended["skipped"]) == (2, 1, 0)
    last = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json", "--rerun", "failed"))
    assert (last["ran"], last["ok"]) == (1, 6)


def test_one_trial_is_run_again_by_its_id_and_its_earlier_result_is_kept(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file()
    hdsweep("run", "noise.yaml", "--inline")
    store = tmp_path / "results"
    before = records(store)
    one, other = sorted(before)[:2]
    options = ("--rerun", one[:6], "--rerun", other)
    again = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json", *options))
    assert (again["ran"], again["ok"]) == (2, 6)
    after = records(store)
    assert {i for i in before if after[i] != before[i]} == {one, other}
    kept = store / "trials" / one[:2] / one / "earlier/0/record.json"
    assert kept.read_bytes() == before[one]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("00000000", "no trial of the sweep has such an id"),
        ("abc", "give its first hex digits, four or more"),
        ("faild", "neither failed, diverged, stale nor a trial's id"),
        ("", "neither failed, diverged, stale nor a trial's id"),
    ],
)
def test_an_id_that_no_trial_has_is_refused_before_anything_runs(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, asked: str, words: str
) -> None:
    sweep_file()
    done = hdsweep("run", "noise.yaml", "--inline", "--rerun", asked)
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not records(tmp_path / "results")


def test_what_failed_is_kept_beside_what_it_is_run_again_as(
    hdsweep: Run, sweep_file: Write, method: Callable[[str], None], tmp_path: Path
) -> None:
    method("True")
    sweep_file(BROKEN)
    hdsweep("run", "noise.yaml", "--inline")
    (failed,) = own(tmp_path / "results", "failed")
    method("False")
    hdsweep("run", "noise.yaml", "--inline", "--rerun", failed)
    folder = tmp_path / "results/trials" / failed[:2] / failed
    assert b'"status": "ok"' in (folder / "record.json").read_bytes()
    assert "Traceback" in (folder / "earlier/0/log.txt").read_text()
