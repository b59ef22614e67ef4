"""A store on a disk that fills up under a run, and is freed again or not."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hdsweep.errors import StoreError
from hdsweep.files import cannot_write
from hdsweep.storage import Gate, Patience, refusal
from tests.conftest import SWEEP, Run, interruptible, records

Write = Callable[..., Path]
SIZE = 2 * 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no filesystem can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def stuck(steps: int, seeds: list[int]) -> str:
    text = SWEEP.replace("tests.methods.noise", "tests.methods.stuck")
    text = text.replace("weak: {strength: 0.5}", f"weak: {{steps: {steps}, step_s: 0.3}}")
    text = text.replace("  strong: {strength: {grid: [1, 2]}}\n", "")
    return text.replace("seeds: [1, 2]", f"seeds: {seeds}")


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml", "--store", "small/results",
         *options],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """What the process says, up to these words."""
    assert process.stderr is not None
    said = ""
    late = threading.Timer(120, process.kill)
    late.start()
    for line in process.stderr:
        said += line
        if words in line:
            late.cancel()
            return said
    raise AssertionError(f"it never said '{words}' but: {said}")


def steps_begun(tmp_path: Path, at_least: int) -> None:
    noted = tmp_path / "steps"
    until = time.monotonic() + 60
    while not (noted.exists() and len(noted.read_text().splitlines()) >= at_least):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def _counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUCK_STEPS", str(tmp_path / "steps"))
    monkeypatch.setenv("HDSWEEP_CHECKPOINT_S", "0")


@pytest.mark.usefixtures("_counted")
def test_a_trial_waits_for_room_and_loses_nothing_that_it_has_computed(
    sweep_file: Write, small: Path, tmp_path: Path
) -> None:
    sweep_file(stuck(6, [1]))
    process = start(tmp_path, "--inline")
    steps_begun(tmp_path, 2)
    filler = fill(small)
    said = wait_for(process, "No space left on device")
    assert "what is computed is kept, for 10m: free space" in said
    time.sleep(1)
    filler.unlink()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "the store can be written again" in rest
    assert "Traceback" not in rest
    begun = Counter((tmp_path / "steps").read_text().splitlines())
    assert begun == dict.fromkeys((f"0 1 {step}" for step in range(1, 7)), 1)
    (curve,) = small.glob("results/trials/*/*/curve.jsonl")
    assert [json.loads(line)["step"] for line in curve.read_text().splitlines()] == [*range(1, 7)]


@pytest.mark.usefixtures("_counted")
def test_a_run_ends_with_one_message_when_nobody_makes_room(
    hdsweep: Run, sweep_file: Write, small: Path, tmp_path: Path
) -> None:
    sweep_file(stuck(4, [1, 2]))
    process = start(tmp_path, "--inline", "--storage-wait", "2s")
    while len(records(small / "results")) < 1:
        time.sleep(0.05)
    steps_begun(tmp_path, 6)
    kept = records(small / "results")
    filler = fill(small)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "No space left on device; free space and run the same command again" in said
    assert "Traceback" not in said
    filler.unlink()
    last = hdsweep("run", "noise.yaml", "--store", "small/results", "--inline")
    assert last.returncode == 0, last.stderr
    now = records(small / "results")
    assert len(now) == 2
    assert {i: now[i] for i in kept} == kept


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("_counted")
def test_workers_wait_while_the_driver_hands_out_nothing_and_tells_once(
    sweep_file: Write, small: Path, tmp_path: Path
) -> None:
    sweep_file(stuck(6, list(range(1, 9))))
    process = start(tmp_path, "--cpus", "2")
    steps_begun(tmp_path, 4)
    filler = fill(small)
    wait_for(process, "paused: ")
    time.sleep(5)
    begun = len((tmp_path / "steps").read_text().splitlines())
    time.sleep(3)
    assert len((tmp_path / "steps").read_text().splitlines()) == begun  # nobody computes in vain
    filler.unlink()
    _, rest = process.communicate(timeout=200)
    assert process.returncode == 0, rest
    assert rest.count("the store can be written again; the sweep goes on") == 1
    assert "paused" not in rest
    assert len(records(small / "results")) == 8
    steps = Counter((tmp_path / "steps").read_text().splitlines())
    assert set(steps.values()) == {1}
    assert not list(small.rglob(".probe"))


def test_what_is_no_refusal_of_storage_is_raised_at_once() -> None:
    tries = []

    def write() -> None:
        tries.append(1)
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        Patience(60).insist(write)
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("number", "is_refusal"),
    [
        (errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, True), (errno.EIO, True),
        (errno.ESTALE, True), (errno.ENOENT, False), (errno.EACCES, False),
    ],
)  # fmt: skip
def test_a_refusal_is_known_behind_the_message_that_stands_for_it(
    number: int, is_refusal: bool
) -> None:
    def write() -> None:
        try:
            raise OSError(number, "said", "/x")
        except OSError as error:
            raise cannot_write(Path("/x"), error) from None

    with pytest.raises(StoreError) as raised:
        write()
    assert (refusal(raised.value) is not None) == is_refusal


def test_a_gate_that_stays_shut_for_too_long_says_what_to_do(small: Path) -> None:
    fill(small)
    told: list[str] = []
    gate = Gate(small, 1.0, told.append)
    assert not gate.is_open()
    time.sleep(1.1)
    with pytest.raises(StoreError, match="free space and run the same command again"):
        gate.is_open()
    assert len(told) == 1
    assert told[0].startswith("paused: ")
