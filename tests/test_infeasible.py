"""What the data cannot serve is a hole in the table with its reason, and no failure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run, read, records
from tests.test_queue import CHAINED

Write = Callable[..., Path]
REASON = "parts=99 needs as many items, the data have 16"
HOLE = CHAINED.replace("branch: {grid: [0, 1]}", "parts: {grid: [1, 99]}")


@pytest.fixture
def hole(sweep_file: Write) -> Path:
    """Two chains, two seeds; half of the trials ask too much of the data."""
    return sweep_file(HOLE, "chained.yaml")


def test_a_plan_says_what_is_infeasible_and_why(hdsweep: Run, hole: Path) -> None:
    found = read(hdsweep("plan", "chained.yaml", "--format", "json"))
    assert (found["counts"]["new"], found["counts"]["infeasible"]) == (4, 4)
    told = found["infeasible"]
    assert {one["reason"] for one in told} == {REASON}
    assert {(one["arm"], one["knobs"]["parts"], one["seed"]) for one in told} == {
        ("few", 99, 1), ("few", 99, 2),
    }  # fmt: skip
    assert {t["id"] for t in found["trials"] if t["state"] == "infeasible"} == {
        one["id"] for one in told
    }
    assert sum(stage["trials"] for stage in found["stages"] if stage["name"] == "branch") == 4
    text = hdsweep("plan", "chained.yaml").stdout
    assert "8 trials: 4 new, 4 infeasible" in text
    assert f"infeasible: few chain=0 parts=99, few chain=1 parts=99: {REASON}" in text
    assert text.count(REASON) == 1
    assert "--parts" not in hdsweep("check", "chained.yaml").stdout  # it does not look at data


def test_a_plan_with_many_reasons_shows_some(hdsweep: Run, sweep_file: Write) -> None:
    parts = ", ".join(map(str, range(50, 80)))
    sweep_file(HOLE.replace("[1, 99]", f"[{parts}]"), "chained.yaml")
    text = hdsweep("plan", "chained.yaml").stdout
    assert text.count("infeasible: few") == 20
    assert "and 10 more: hdsweep plan --format json" in text


def test_the_rest_runs_and_the_hole_is_recorded_once(
    hdsweep: Run, hole: Path, tmp_path: Path
) -> None:
    done = hdsweep("run", "chained.yaml", "--inline", "--format", "json")
    found = read(done)
    assert done.returncode == 1
    assert (found["ok"], found["failed"], found["infeasible"], found["ran"]) == (4, 0, 4, 4)
    assert "--rerun" not in done.stderr
    assert f"infeasible  few chain=0 parts=99 seed=1: {REASON}" in done.stderr
    kept = [json.loads(content) for content in records(tmp_path / "results").values()]
    refused = [record for record in kept if record["status"] == "failed"]
    assert len(refused) == 4
    for record in refused:
        assert record["error"] == {"kind": "infeasible", "message": REASON, "traceback": ""}
        ran = next(one for one in kept if one["status"] == "ok")
        assert record["provenance"] == ran["provenance"]
        assert record["started"]
    before = records(tmp_path / "results")
    for options in ((), ("--rerun", "failed")):
        again = hdsweep("run", "chained.yaml", "--format", "json", *options)  # nor is Ray started
        assert (again.returncode, read(again)["ran"]) == (1, 0)
        assert "4 of 8 trials are finished, 4 infeasible, nothing to run" in again.stderr
        assert records(tmp_path / "results") == before
    text = hdsweep("plan", "chained.yaml").stdout
    assert "8 trials: 4 cached, 4 infeasible" in text
    assert REASON in text


def test_the_hole_is_told_in_words_by_status_and_show(hdsweep: Run, hole: Path) -> None:
    hdsweep("run", "chained.yaml", "--inline")
    assert "8 trials: 4 ok, 4 infeasible" in hdsweep("status").stdout
    entries = read(hdsweep("status", "--format", "json"))["not_ok"]
    assert {entry["status"] for entry in entries} == {"infeasible"}
    shown = hdsweep("show", entries[0]["id"]).stdout
    assert f"{entries[0]['id']}  infeasible" in shown
    assert f"infeasible: {REASON}" in shown


def test_the_hole_shows_in_every_format_of_the_table(hdsweep: Run, hole: Path) -> None:
    hdsweep("run", "chained.yaml", "--inline")
    for form in ("terminal", "md"):
        text = hdsweep("report", "--format", form).stdout
        assert "— (infeasible)" in text
        assert "4 of 8 trials missing: 4 infeasible" in text
        reasons = [line for line in text.splitlines() if REASON in line]
        assert len(reasons) == 2  # a line per cell, not per seed
        assert "few chain=0 parts=99, seeds 1, 2: infeasible: " in reasons[0]
    rows = list(csv.DictReader(io.StringIO(hdsweep("report", "--format", "csv").stdout)))
    holes = [row for row in rows if row["knob.parts"] == "99"]
    assert {(row["mean"], row["n"], row["infeasible"], row["failed"]) for row in holes} == {
        ("", "0", "2", "0")
    }
    assert {row["infeasible"] for row in rows if row["knob.parts"] == "1"} == {"0"}
    tables = json.loads(hdsweep("report", "--format", "json").stdout)["tables"]
    row = next(row for row in tables[0]["rows"] if row["knobs"]["parts"] == 99)
    cell = row["cells"]["x"]
    assert cell["status"] == {"infeasible": 2}
    assert [(m["status"], m["reason"]) for m in cell["missing"]] == [("infeasible", REASON)] * 2


def test_what_turns_out_infeasible_in_a_trial_is_the_same_hole_and_can_be_run_again(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(HOLE.replace("few: {", "few: {late: true, "), "chained.yaml")
    assert read(hdsweep("plan", "chained.yaml", "--format", "json"))["counts"]["infeasible"] == 0
    found = read(hdsweep("run", "chained.yaml", "--inline", "--format", "json"))
    assert (found["infeasible"], found["failed"], found["ran"]) == (4, 0, 8)
    assert "— (infeasible)" in hdsweep("report").stdout
    planned = hdsweep("plan", "chained.yaml").stdout
    assert "4 cached, 4 infeasible" in planned
    assert "it turned out to be too few" in planned
    before = records(tmp_path / "results")
    assert read(hdsweep("run", "chained.yaml", "--inline", "--format", "json"))["ran"] == 0
    again = hdsweep("run", "chained.yaml", "--inline", "--format", "json", "--rerun", "failed")
    assert (read(again)["ran"], read(again)["infeasible"]) == (4, 4)
    after = records(tmp_path / "results")
    assert sum(after[i] != before[i] for i in before) == 4


def test_a_failure_beside_a_hole_can_still_be_run_again(hdsweep: Run, sweep_file: Write) -> None:
    text = HOLE.replace("  few:", "  broken: {method: tests.methods.noise, fault: raise}\n  few:")
    sweep_file(text, "chained.yaml")
    done = hdsweep("run", "chained.yaml", "--inline", "--format", "json")
    found = read(done)
    assert (found["ok"], found["failed"], found["infeasible"]) == (4, 1, 4)
    assert "--rerun failed" in done.stderr
    lines = [line.split()[0] for line in done.stderr.splitlines() if "hdsweep show" in line]
    assert lines == ["failed"] + ["infeasible"] * 4


def test_only_what_has_no_result_is_refused(hdsweep: Run, hole: Path, tmp_path: Path) -> None:
    hdsweep("run", "chained.yaml", "--inline")
    refused = read(hdsweep("plan", "chained.yaml", "--format", "json"))["infeasible"]
    paths = [tmp_path / "results/trials" / t["id"][:2] / t["id"] / "record.json" for t in refused]
    ok, failed = paths[:2]
    ok.write_text(ok.read_text().replace('"status": "failed"', '"status": "ok"'))
    failed.write_text(failed.read_text().replace('"kind": "infeasible"', '"kind": "method"'))
    counts = read(hdsweep("plan", "chained.yaml", "--format", "json"))["counts"]
    assert (counts["cached"], counts["infeasible"], counts["failed"]) == (5, 3, 0)
    kept = ok.read_bytes()
    done = read(hdsweep("run", "chained.yaml", "--inline", "--format", "json"))
    assert (done["ok"], done["infeasible"], done["failed"], done["ran"]) == (5, 3, 0, 0)
    assert ok.read_bytes() == kept
