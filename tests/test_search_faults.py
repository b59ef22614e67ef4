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
    "params": {"steps": 8, "noise": 0.02, "step_s": 0.08},
    "arms": {"tuned": {"quality": {"uniform": [0.0, 0.5]}, "lr": {"log_uniform": [0.05, 1]}}},
    "search": {"trials": 24, "maximize": "auroc", "parallel": 1},
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc"]},
}


def start(home: Path, store: str) -> subprocess.Popen[bytes]:
    with (home / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "hdsweep.cli", "run", "s.yaml", "--store", store, "--cpus", "3"],
            cwd=home,
            env={**os.environ, "CURVES_RUNS": str(home / f"{store}.runs")},
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def begun(home: Path) -> list[str]:
    """A line for each time that a trial began."""
    path = home / "killed.runs"
    return path.read_text().splitlines() if path.exists() else []


def started_by(pid: int) -> list[int]:
    """Processes below one, Ray's and the workers among them."""
    listed = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True)
    below: dict[int, list[int]] = {}
    for line in listed.stdout.splitlines():
        parent, child = map(int, line.split())
        below.setdefault(parent, []).append(child)
    found, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found


def test_a_search_killed_at_any_moment_ends_as_one_that_was_not(
    hdsweep: Run, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    rng = random.Random(seed)
    many = 12 + 2 * MOMENTS  # more than it draws until the last kill
    sweep = {**SWEEP, "search": {**SWEEP["search"], "trials": many}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    root = tmp_path / "killed"
    finished: dict[str, bytes] = {}
    for _ in range(MOMENTS):
        before = len(begun(tmp_path))
        driver = start(tmp_path, "killed")
        # A few moments come while Ray starts, the others at any place of a few configurations.
        if rng.random() < 0.8:
            deadline = time.monotonic() + 120
            while len(begun(tmp_path)) == before and time.monotonic() < deadline:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 3))
        assert driver.poll() is None, (tmp_path / "said.txt").read_text()
        # Workers outlive their driver by what ends a short trial, unless the machine goes down.
        others = started_by(driver.pid) if rng.random() < 0.5 else []
        driver.send_signal(signal.SIGKILL)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        driver.wait()
        now = records(root)
        assert {i: now[i] for i in finished} == finished  # nothing finished was run again
        finished = now
    ended = start(tmp_path, "killed").wait(timeout=300)
    assert ended == 0, (tmp_path / "said.txt").read_text()
    now = records(root)
    assert {i: now[i] for i in finished} == finished

    # An uninterrupted search, in one process.
    calm = hdsweep("run", "s.yaml", "--store", "calm", "--inline")
    assert calm.returncode == 0, calm.stderr
    drawn, straight = Store(root).sweep("s"), Store(tmp_path / "calm").sweep("s")
    assert [(c.number, c.knobs, c.trials) for c in drawn.cells] == [
        (c.number, c.knobs, c.trials) for c in straight.cells
    ]
    assert len({json.dumps(c.knobs) for c in drawn.cells}) == many
    assert now.keys() == records(tmp_path / "calm").keys()

    # What the study was told is what the records say, once for each configuration.
    told = [e for e in Store(root).decisions("s") if e["event"] == "told"]
    assert Counter(e["number"] for e in told) == dict.fromkeys(range(many), 1)
    for event in told:
        found = Store(root).records(drawn.cells[event["number"]].trials.values())
        assert [r.status for r in found.values()] == ["ok"] * 3
        means = [
            math.fsum(v for v in r.metrics["auroc"].values() if v is not None) / 2
            for r in found.values()
        ]
        assert event["state"] == "complete"
        assert event["values"] == [pytest.approx(sum(means) / 3, abs=1e-12)]
    runs = Counter(begun(tmp_path))
    assert len(runs) == 3 * many
    # A trial under way is begun again, no more than three at each kill.
    assert sum(runs.values()) <= 3 * (many + MOMENTS)


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
