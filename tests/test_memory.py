"""Trials that run out of memory, on real workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SWEEP, Run, read, records

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Write = Callable[..., Path]
GREEDY = SWEEP.replace("tests.methods.noise", "tests.methods.stuck")
GREEDY = GREEDY.replace("weak: {strength: 0.5}", "weak: {steps: 2}")


def greedy(way: str, gpus: float, times: int) -> str:
    text = GREEDY.replace("seeds: [1, 2]", "seeds: [1]").replace("gpus: 0,", f"gpus: {gpus},")
    return text.replace("strength: {grid: [1, 2]}", f"way: {way}, times: {times}, level: 1")


@pytest.fixture(autouse=True)
def _counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUCK_STEPS", str(tmp_path / "steps"))


def record_of(store: Path, knob: str) -> dict[str, Any]:
    """The one record of a trial of the arm ``strong``."""
    found = [json.loads(content) for content in records(store).values()]
    (one,) = [record for record in found if record["trial"]["params"]["way"] == knob]
    return dict(one)


def test_a_trial_out_of_gpu_memory_is_tried_again_with_larger_shares(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(greedy("gpu memory", 0.25, times=2))
    done = hdsweep("run", "noise.yaml", "--gpus", 1, "--cpus", 2, "--format", "json")
    assert read(done)["ok"] == 2, done.stderr
    assert "out of memory; again with 0.5 of a GPU" in done.stderr
    given = record_of(tmp_path / "results", "gpu memory")["provenance"]
    assert given["gpus"] == 1.0
    assert [(a["what"], a["gpus"]) for a in given["attempts"]] == [
        ("out of memory (gpu)", 0.25),
        ("out of memory (gpu)", 0.5),
    ]
    assert "Tried to allocate 20.00 GiB" in given["attempts"][0]["message"]


def test_what_does_not_fit_a_whole_gpu_fails_and_says_what_may_help(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(greedy("gpu memory", 0.5, times=99))
    done = hdsweep("run", "noise.yaml", "--gpus", 1, "--cpus", 2, "--format", "json")
    assert (read(done)["ok"], read(done)["failed"]) == (1, 1), done.stderr
    record = record_of(tmp_path / "results", "gpu memory")
    assert record["error"]["kind"] == "memory"
    assert "a whole GPU is not enough; a smaller batch or model" in record["error"]["message"]
    assert len(record["provenance"]["attempts"]) == 1
    assert "Traceback" in record["error"]["traceback"]


def test_a_trial_out_of_memory_is_tried_again_alone_on_its_machine(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(greedy("memory", 0, times=1))
    done = hdsweep("run", "noise.yaml", "--cpus", 2, "--format", "json")
    assert read(done)["ok"] == 2, done.stderr
    assert "out of memory; again with all 2 processors" in done.stderr
    given = record_of(tmp_path / "results", "memory")["provenance"]
    assert [(a["what"], a["cpus"]) for a in given["attempts"]] == [("out of memory (host)", 1)]
    assert given["threads"] == 1  # or its results might differ


def test_a_worker_that_is_ended_for_want_of_memory_is_told_from_one_that_died(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(info[k].split()[0]) for k in ("MemTotal", "MemAvailable"))
    if free < 6 * 2**20:
        pytest.skip("less than 6 GiB are free")
    # Ray's own monitor, told to act once 1.5 GiB more are in use.
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{1 - (free - 1.5 * 2**20) / total:.3f}")
    sweep_file(greedy("bloat", 0, times=1))
    done = hdsweep("run", "noise.yaml", "--cpus", 2, "--format", "json")
    assert read(done)["ok"] == 2, done.stderr
    (tried,) = record_of(tmp_path / "results", "bloat")["provenance"]["attempts"]
    assert tried["what"] == "out of memory (host)"
    assert "ran low on memory" in tried["message"]
