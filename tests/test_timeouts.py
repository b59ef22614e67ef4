"""Trials that do not end in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hdsweep.deadline import GRACE_S, in_words, seconds_of
from tests.conftest import SWEEP, Run, interruptible, read, records

Write = Callable[..., Path]
STUCK = SWEEP.replace("tests.methods.noise", "tests.methods.stuck").replace(
    "cpus: 1}", "cpus: 1, timeout: 2s}"
)
STUCK = STUCK.replace("weak: {strength: 0.5}", "weak: {steps: 2}")


def stuck(way: str, **knobs: object) -> str:
    more = "".join(f", {name}: {value}" for name, value in knobs.items())
    return STUCK.replace("strength: {grid: [1, 2]}", f"way: {way}{more}")


def logs(store: Path) -> list[str]:
    """Of trials that are not ok."""
    bad = [i for i, content in records(store).items() if b'"kind": "timeout"' in content]
    return [(store / "trials" / i[:2] / i / "log.txt").read_text() for i in bad]


@pytest.mark.parametrize("way", ["sleep", "catch"])
def test_a_trial_that_hangs_is_stopped_and_the_others_run(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, way: str
) -> None:
    sweep_file(stuck(way))
    done = hdsweep("run", "noise.yaml", "--inline", "--format", "json")
    found = read(done)
    assert (found["ok"], found["failed"]) == (2, 2), done.stderr
    assert "no end after 2 s (resources.timeout)" in done.stderr
    assert len(logs(tmp_path / "results")) == 2
    for log in logs(tmp_path / "results"):
        assert 'stuck.py", line' in log  # the stack says where it was
        assert "in go_wrong" in log
    again = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (again["ran"], again["failed"]) == (0, 2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("way", ["sleep", "deaf"])
def test_a_worker_that_hangs_is_stopped_also_in_a_call_that_never_returns(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, way: str
) -> None:
    sweep_file(stuck(way).replace("seeds: [1, 2]", "seeds: [1]"))
    began = time.monotonic()
    done = hdsweep("run", "noise.yaml", "--cpus", 2, "--format", "json")
    found = read(done)
    assert (found["ok"], found["failed"]) == (1, 1), done.stderr
    assert time.monotonic() - began < GRACE_S + 60  # most of it is the start of Ray
    assert "no end after 2 s (resources.timeout)" in done.stderr
    (log,) = logs(tmp_path / "results")
    assert "in go_wrong" in log


@pytest.mark.slow
def test_with_a_longer_timeout_a_trial_goes_on_from_its_last_checkpoint(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUCK_STEPS", str(tmp_path / "steps"))
    monkeypatch.setenv("HDSWEEP_CHECKPOINT_S", "0")
    text = stuck("none", steps=30, step_s=0.2).replace("seeds: [1, 2]", "seeds: [1]")
    sweep_file(text)
    first = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (first["ok"], first["failed"]) == (1, 1)
    same = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert same["ran"] == 0
    sweep_file(text.replace("timeout: 2s", "timeout: 1m"))
    assert read(hdsweep("plan", "noise.yaml", "--format", "json"))["counts"]["new"] == 1
    last = read(hdsweep("run", "noise.yaml", "--inline", "--format", "json"))
    assert (last["ok"], last["ran"]) == (2, 1)
    steps = [line for line in (tmp_path / "steps").read_text().splitlines() if line[:3] == "0 1"]
    assert 32 <= len(steps) <= 33  # 2 of the other arm, 30 of this one, and the one it was in


def test_a_signal_ends_a_trial_that_has_a_timeout(sweep_file: Write, tmp_path: Path) -> None:
    sweep_file(stuck("sleep").replace("2s", "1h"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml", "--inline"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    while not records(tmp_path / "results"):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "run the same command again to continue" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1.5 h", 5400)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(90, "90 s"), (1800, "30m"), (7200, "2h"), (172800, "2d"), (0.5, "0.5 s")],
)
def test_durations_are_said_in_the_largest_unit_that_fits(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize("text", ["2 hours", "soon", "-1", "0", "true", "1h30m", "''"])
def test_what_is_no_duration_is_refused_at_its_line(
    hdsweep: Run, sweep_file: Write, text: str
) -> None:
    sweep_file(STUCK.replace("timeout: 2s", f"timeout: {text}").replace("strength", "steps"))
    done = hdsweep("plan", "noise.yaml")
    assert done.returncode == 2, done.stderr
    assert "noise.yaml:9: resources.timeout" in done.stderr
    assert "Traceback" not in done.stderr
