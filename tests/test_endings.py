"""What is left of a run that is interrupted or killed, and how soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SWEEP, Run, interruptible, read

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Write = Callable[..., Path]
SOON_S = 10.0  # seen: 2 to 4 s on two busy cores; without our guard a killed run leaves 61 s


@pytest.fixture
def running(
    sweep_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """Two trials of a minute, each in its third step or further."""
    monkeypatch.setenv("STUCK_STEPS", str(tmp_path / "steps"))
    text = SWEEP.replace("tests.methods.noise", "tests.methods.stuck")
    text = text.replace("weak: {strength: 0.5}", "weak: {steps: 30, step_s: 1}")
    sweep_file(text.replace("  strong: {strength: {grid: [1, 2]}}\n", ""))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml", "--cpus", "2"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    noted = tmp_path / "steps"
    until = time.monotonic() + 120
    while not (noted.exists() and noted.read_text().count(" 3\n") == 2):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    with process:
        yield process


def below(pid: int) -> set[int]:
    """Processes below one, itself left out."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in pairs if parent in new} - found
        found |= new
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # nobody may wait for an orphan here


def require_gone(pids: set[int], began_s: float) -> None:
    while any(map(is_alive, pids)):
        assert time.monotonic() - began_s < SOON_S, [p for p in pids if is_alive(p)]
        time.sleep(0.1)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_checkpoints_and_leaves_no_process(
    hdsweep: Run, running: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals
) -> None:
    pids, began_s = below(running.pid), time.monotonic()
    assert len(pids) > 4
    running.send_signal(signum)
    _, err = running.communicate(timeout=60)
    assert time.monotonic() - began_s < SOON_S
    assert running.returncode == 130, err
    assert err.splitlines()[-1].endswith("run the same command again to continue")
    require_gone(pids, began_s)
    checkpoints = list(tmp_path.glob("results/trials/*/*/checkpoint/0*"))
    assert len(checkpoints) == 2  # although the next was due after a minute
    again = read(hdsweep("run", "noise.yaml", "--cpus", 2, "--format", "json"))
    assert again["ok"] == 2
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) <= 60 + 2  # at most the step that each was in


def test_a_driver_that_is_killed_leaves_no_process(running: subprocess.Popen[str]) -> None:
    pids, began_s = below(running.pid), time.monotonic()
    assert len(pids) > 4
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    require_gone(pids, began_s)
