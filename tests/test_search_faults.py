"""A search on Ray is killed at random moments; it goes on as if it had not been."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from hdsweep.store import Store
from tests.conftest import Run, records

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MOMENTS = int(os.environ.get("HDSWEEP_KILLS", "3"))

SWEEP: dict[str, Any] = {
    "name": "s",
    "method": "tests.methods.curves",
    "data": {"name": "tests.methods.labels", "root": "labels", "make": {"items": 40}},
    "seeds": [1, 2, 3],
    "params": {"steps": 8, "noise": 0.02, "step_s": 0.05},
    "arms": {"tuned": {"quality": {"uniform": [0.0, 0.5]}, "lr": {"log_uniform": [0.05, 1]}}},
    "search": {"trials": 24, "maximize": "auroc", "parallel": 1},
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc"]},
}


def start(home: Path, store: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "s.yaml", "--store", store, "--cpus", "3"],
        cwd=home,
        env={**os.environ, "CURVES_RUNS": str(home / f"{store}.runs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_search_killed_at_any_moment_ends_as_one_that_was_not(
    hdsweep: Run, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    rng = random.Random(seed)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    root = tmp_path / "killed"
    finished: dict[str, bytes] = {}
    killed = 0
    while killed < MOMENTS:
        driver = start(tmp_path, "killed")
        # Half of the moments come with the next records, which have what is told at their heels.
        known, deadline = len(records(root)), time.monotonic() + rng.uniform(6, 12)
        wanted = known + rng.randint(1, 6)
        by_record = rng.random() < 0.5
        while driver.poll() is None and time.monotonic() < deadline:
            if by_record and len(records(root)) >= wanted:
                break
            time.sleep(0.005)
        if driver.poll() is not None:
            break  # it was faster than its killer
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        killed += 1
        now = records(root)
        assert {i: now[i] for i in finished} == finished  # nothing finished was run again
        finished = now
    assert killed >= min(2, MOMENTS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert start(tmp_path, "killed").wait(timeout=240) == 0
    now = records(root)
    assert {i: now[i] for i in finished} == finished

    # An uninterrupted search, in one process.
    calm = hdsweep("run", "s.yaml", "--store", "calm", "--inline")
    assert calm.returncode == 0, calm.stderr
    sweep, straight = Store(root).sweep("s"), Store(tmp_path / "calm").sweep("s")
    assert [(c.number, c.knobs, c.trials) for c in sweep.cells] == [
        (c.number, c.knobs, c.trials) for c in straight.cells
    ]
    assert len({json.dumps(c.knobs) for c in sweep.cells}) == 24
    assert now.keys() == records(tmp_path / "calm").keys()

    # What the study was told is what the records say, once for each configuration.
    told = [e for e in Store(root).decisions("s") if e["event"] == "told"]
    assert Counter(e["number"] for e in told) == dict.fromkeys(range(24), 1)
    for event in told:
        found = Store(root).records(sweep.cells[event["number"]].trials.values())
        assert [r.status for r in found.values()] == ["ok"] * 3
        means = [
            math.fsum(v for v in r.metrics["auroc"].values() if v is not None) / 2
            for r in found.values()
        ]
        assert event["state"] == "complete"
        assert event["values"] == [pytest.approx(sum(means) / 3, abs=1e-12)]
    runs = Counter((tmp_path / "killed.runs").read_text().splitlines())
    assert len(runs) == 72
    # A trial under way is begun again, no more than three at each kill.
    assert sum(runs.values()) <= 72 + 3 * killed


def test_a_search_goes_on_past_a_configuration_that_kills_its_worker(
    hdsweep: Run, tmp_path: Path
) -> None:
    sweep = {
        **SWEEP,
        "method": "tests.methods.noise",
        "seeds": [1],
        "arms": {"tuned": {"strength": {"uniform": [0, 3]}, "fault": {"choice": ["none", "kill"]}}},
        "search": {"trials": 4, "maximize": "auroc", "parallel": 1, "sampler": "random"},
    }
    del sweep["params"]  # of another method
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    done = hdsweep("run", "s.yaml", "--cpus", 2)
    assert done.returncode == 1
    cells = Store(tmp_path / "results").sweep("s").cells
    assert [cell.knobs["fault"] for cell in cells] == ["none", "none", "kill", "kill"]
    assert [cell.state for cell in cells] == ["complete", "complete", "failed", "failed"]
    assert done.stderr.count("its worker died 5 times") == 2
    assert sum("not finished" in line for line in (done.stdout + done.stderr).splitlines()) == 2
