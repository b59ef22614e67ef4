"""A sweep of real trials is killed at random moments; nothing that was finished is touched."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Run, records

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MOMENTS = 5
SHORTER = {"max_steps": 150, "lr_warmup_steps": 2, "pretext_steps": 5}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The quickstart, with fewer steps and images."""
    text = yaml.safe_load((ROOT / "sweeps/quickstart.yaml").read_text())
    text["params"] |= SHORTER
    text["data"]["make"] |= {"train": 8, "good": 8, "fault": 8}
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


def start(sweep: Path, store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", str(sweep), "--store", str(store)],
        cwd=sweep.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers(driver: int) -> list[int]:
    """Processes below the driver that run trials."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    parent, title = {}, {}
    for line in table.splitlines():
        pid, ppid, *words = line.split(maxsplit=2)
        parent[int(pid)], title[int(pid)] = int(ppid), "".join(words)
    found = []
    for pid, name in title.items():
        ancestor = pid
        while ancestor in parent and ancestor != driver:
            ancestor = parent[ancestor]
        if ancestor == driver and name.startswith("ray::") and "_Worker" in name:
            found.append(pid)
    return found


def table(hdsweep: Run, store: Path) -> str:
    return hdsweep("report", "--store", store, "--metric", "auroc", "--format", "csv").stdout


def test_killing_the_driver_or_a_worker_at_any_moment_costs_no_finished_trial(
    hdsweep: Run, sweep: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    rng = random.Random(seed)
    store, calm = tmp_path / "killed", tmp_path / "calm"
    struck, finished = 0, dict[str, bytes]()
    touched: dict[str, float] = {}
    for moment in range(MOMENTS):
        driver = start(sweep, store)
        # Between the start of Ray and the last trial; the later moments see trials in flight.
        deadline = time.monotonic() + rng.uniform(1, 30)
        while time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.05)
        if driver.poll() is None:  # else what is checked below must hold all the more
            victims = workers(driver.pid) if moment % 2 else []
            with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
                os.kill(rng.choice(victims) if victims else driver.pid, signal.SIGKILL)
                struck += 1
        driver.wait(timeout=240)
        now = records(store)
        assert {i: now[i] for i in finished} == finished
        times = {p.parent.name: p.stat().st_mtime for p in store.glob("trials/*/*/log.txt")}
        assert {i: times[i] for i in touched} == touched, "a finished trial ran again"
        finished, touched = now, {i: times[i] for i in now}
    last = hdsweep("run", sweep, "--store", store, timeout=400)
    assert last.returncode == 0, last.stderr
    now = records(store)
    assert {i: now[i] for i in finished} == finished
    assert len(now) == 9
    assert struck >= 2
    # In one process, without Ray: the launchers must agree to the last bit as well.
    undisturbed = hdsweep("run", sweep, "--store", calm, "--inline", timeout=400)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert table(hdsweep, store) == table(hdsweep, calm)
    assert {
        p.parent.name: p.read_bytes() for p in store.glob("trials/*/*/predictions.parquet")
    } == {p.parent.name: p.read_bytes() for p in calm.glob("trials/*/*/predictions.parquet")}
