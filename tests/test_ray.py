"""Trials placed by Ray Tune: real clusters on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import SWEEP, Run, interruptible, read, records

pytestmark = pytest.mark.ray
Write = Callable[..., Path]


def scores(store: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in store.glob("trials/*/*/predictions.parquet")}


def test_ray_and_inline_agree_bit_for_bit(hdsweep: Run, sweep_file: Write, tmp_path: Path) -> None:
    sweep_file()
    done = hdsweep("run", "noise.yaml", "--store", "by_ray", "--format", "json")
    assert read(done)["ok"] == 6, done.stderr
    assert "Ray dashboard: http://127.0.0.1:" in done.stderr
    assert "[6/6] ok" in done.stderr
    assert "strong strength=2.0 seed=2" in done.stderr
    hdsweep("run", "noise.yaml", "--store", "inline", "--inline")
    assert scores(tmp_path / "by_ray") == scores(tmp_path / "inline")
    chatter = [line for line in done.stderr.splitlines() if re.search(r"ray\.|raylet|INFO", line)]
    assert chatter == []


def test_logical_gpus_place_fractions(hdsweep: Run, sweep_file: Write, tmp_path: Path) -> None:
    text = SWEEP.replace("gpus: 0, cpus: 1", "gpus: 0.5, cpus: 1")
    text = text.replace("seeds: [1, 2]", "seeds: [1, 2, 3, 4, 5, 6]")
    sweep_file(
        text.replace("strength: 0.5", "sleep_s: 5").replace(
            "  strong: {strength: {grid: [1, 2]}}\n", ""
        )
    )
    done = hdsweep("run", "noise.yaml", "--gpus", 2, "--cpus", 8, "--format", "json")
    assert read(done)["ok"] == 6, done.stderr
    spans = []
    for folder in (tmp_path / "results").glob("trials/*/*"):
        first, *_, last = (folder / "log.txt").read_text().splitlines()
        spans.append(tuple(datetime.fromisoformat(line[:23]) for line in (first, last)))
    together = max(sum(a <= t < b for a, b in spans) for t, _ in spans)
    assert 2 <= together <= 4  # four fit; on a slow machine the later ones may start late


def test_what_can_never_be_placed_is_refused(hdsweep: Run, sweep_file: Write) -> None:
    sweep_file(SWEEP.replace("gpus: 0, cpus: 1", "gpus: 2, cpus: 1"))
    done = hdsweep("run", "noise.yaml", "--gpus", 1)
    assert done.returncode == 2, done.stderr
    assert "a trial asks for 1 CPUs and 2 GPUs and no node has them" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_that_does_not_answer_is_one_message(hdsweep: Run, sweep_file: Write) -> None:
    sweep_file()
    done = hdsweep("run", "noise.yaml", "--address", "127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:1: cannot be started or reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_whose_worker_dies_is_left_and_the_rest_finishes(
    hdsweep: Run, sweep_file: Write
) -> None:
    sweep_file(SWEEP.replace("strength: {grid: [1, 2]}", "fault: {grid: [none, kill]}"))
    done = hdsweep("run", "noise.yaml", "--format", "json")
    assert done.returncode == 1, done.stderr
    assert (read(done)["ok"], read(done)["not_finished"]) == (4, 2), done.stderr
    assert "not finished  strong fault=kill seed=1" in done.stderr
    assert "its worker died 5 times" in done.stderr


def test_the_dashboard_answers_with_the_token_while_a_sweep_runs(
    sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(SWEEP.replace("strength: 0.5", "sleep_s: 60"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            url = found.group()
            break
    assert urllib.request.urlopen(url, timeout=20).status == 200
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    request = urllib.request.Request(f"{url}/nodes?view=summary")
    request.add_header("Authorization", f"Bearer {token}")
    assert b'"result": true' in urllib.request.urlopen(request, timeout=20).read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again to continue" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_the_run_and_the_next_one_continues(
    hdsweep: Run, sweep_file: Write, tmp_path: Path, signum: signal.Signals
) -> None:
    sweep_file(
        SWEEP.replace("strength: 0.5", "sleep_s: 2").replace(
            "[1, 2]\narms", "[1, 2, 3, 4, 5, 6]\narms"
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    while not records(tmp_path / "results"):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    before = records(tmp_path / "results")
    assert 0 < len(before) < 18
    after = read(hdsweep("run", "noise.yaml", "--format", "json"))
    assert (after["ok"], after["ran"]) == (18, 18 - len(before))
    assert {i: c for i, c in records(tmp_path / "results").items() if i in before} == before


def test_what_a_worker_cannot_keep_is_said_and_the_rest_goes_on(
    hdsweep: Run, sweep_file: Write
) -> None:
    text = SWEEP.replace("tests.methods.noise", "tests.methods.evil")
    text = text.replace("strength: 0.5", "way: exit").replace(
        "strength: {grid: [1, 2]}", "way: {grid: [none, two dimensions]}"
    )
    sweep_file(text)
    done = hdsweep("run", "noise.yaml", "--format", "json")
    found = read(done)
    assert found["ok"] == 2, done.stderr
    assert found["failed"] >= 2  # of each configuration; a second seed may have been under way
    assert found["failed"] + found["skipped"] == 4
    assert "SystemExit: 0" in done.stderr
    assert "scores have shape" in done.stderr


def test_records_hold_no_environment(hdsweep: Run, sweep_file: Write, tmp_path: Path) -> None:
    os.environ["SECRET_TOKEN"] = "hunter2-hunter2"
    try:
        sweep_file()
        hdsweep("run", "noise.yaml")
    finally:
        del os.environ["SECRET_TOKEN"]
    found = records(tmp_path / "results")
    assert len(found) == 6
    assert not any(b"hunter2" in content for content in found.values())


def test_a_full_disk_ends_the_run_and_not_each_trial_by_itself(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        (place / "filler").write_bytes(bytes(850_000))  # a trial takes some 30 kB
        sweep_file(SWEEP.replace("seeds: [1, 2]", f"seeds: {list(range(10))}"))
        done = hdsweep(
            "run", "noise.yaml", "--store", "small/results", "--cpus", 1, "--storage-wait", 3
        )
        assert done.returncode == 2
        assert "No space left on device; free space" in done.stderr
        assert "] ok" in done.stderr
        lost = [line for line in done.stderr.splitlines() if "lost " in line]
        assert 1 <= len(lost) <= 4  # those that had been handed out, of 30
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
