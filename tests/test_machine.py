"""Measuring alone: real processes on one machine, some of them killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hdsweep.machine import Machine

PATIENCE_S = 120  # for what takes a second or two; a loaded machine is not a failure

# What a process is at is a line in a file; lines of one writer are whole and in order.
LIVE = """
import os, sys, time
from pathlib import Path
from hdsweep.machine import Machine

ROOT = Path(sys.argv[1])

def log(word):
    handle = os.open(ROOT / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{os.getpid()} {word}\\n".encode())
    os.close(handle)

def wait_for(name):
    while not (ROOT / name).exists():
        time.sleep(0.01)

def compute(seconds):
    log("compute")
    time.sleep(seconds)
    log("idle")

def measure(wait_s=3600.0, seconds=0.05):
    log("idle")
    with machine.alone(wait_s) as alone:
        log("measure" if alone else "beside")
        time.sleep(seconds)
        log("idle")
    log("compute")
    return alone

machine = Machine(ROOT / "locks")
exec(sys.argv[2])
"""

Live = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Start a process with a place on the machine; none is left behind."""
    started = []

    def start(what: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", LIVE, tmp_path, what], stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def log(root: Path) -> list[str]:
    return (root / "log").read_text().splitlines() if (root / "log").exists() else []


def count(root: Path, word: str) -> int:
    return Counter(line.split()[1] for line in log(root))[word]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends_well(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, told


def require_no_overlap(lines: list[str], killed: int | None = None) -> None:
    """While one measures, all others are idle."""
    state: dict[str, str] = {}
    for line in lines:
        pid, word = line.split()
        state[pid] = word
        state.pop(str(killed), None)
        busy = [doing for doing in state.values() if doing != "idle"]
        assert "measure" not in busy or len(busy) == 1, line


TRIAL = """
import random
random.seed(int(sys.argv[2].splitlines()[-1].strip("# ")))
with machine.computing():
    for _ in range(4):
        compute(random.uniform(0, 0.1))
        log("compute")
        measure(seconds=random.uniform(0, 0.1))
        log("idle")
        with machine.idle():
            time.sleep(random.uniform(0, 0.1))
        log("compute")
    log("idle")
# {seed}"""


def test_who_measures_is_alone_and_one_at_a_time(live: Live, tmp_path: Path) -> None:
    """Words are written inside what they stand for, so an overlap would show."""
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    trials = [live(TRIAL.replace("{seed}", str(seed + n))) for n in range(4)]
    for trial in trials:
        ends_well(trial)
    assert count(tmp_path, "measure") == 16
    require_no_overlap(log(tmp_path))


def test_a_trial_that_starts_waits_for_one_that_measures(live: Live, tmp_path: Path) -> None:
    measurer = live("with machine.computing(), machine.alone(): log('measure'); wait_for('go')")
    until(lambda: count(tmp_path, "measure"))
    newcomer = live("log('idle')\nwith machine.computing(): log('compute')")
    until(lambda: count(tmp_path, "idle"))
    time.sleep(0.3)  # it would have started by now
    assert not count(tmp_path, "compute")
    (tmp_path / "go").touch()
    ends_well(newcomer)
    ends_well(measurer)


NEIGHBOUR = "with machine.computing(): log('compute'); wait_for('go')"
MEASURER = "with machine.computing(): log('alone' if measure() else 'beside')"


def test_a_neighbour_that_is_killed_lets_others_measure(live: Live, tmp_path: Path) -> None:
    neighbour = live(NEIGHBOUR)
    until(lambda: count(tmp_path, "compute"))
    measurer = live(MEASURER)
    until(lambda: count(tmp_path, "idle"))
    assert not count(tmp_path, "measure")
    neighbour.kill()
    ends_well(measurer)
    assert count(tmp_path, "alone") == 1


def test_one_that_is_killed_while_it_measures_lets_others_start(live: Live, tmp_path: Path) -> None:
    measurer = live("with machine.computing(): measure(seconds=3600)")
    until(lambda: count(tmp_path, "measure"))
    others = [live("with machine.computing(): log('compute')"), live(MEASURER)]
    measurer.kill()
    for other in others:
        ends_well(other)
    assert count(tmp_path, "alone") == 1


@pytest.mark.slow
def test_kills_at_random_moments_block_nobody(live: Live, tmp_path: Path) -> None:
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    rng = random.Random(seed)
    for round_ in range(8):
        trials = [live(TRIAL.replace("{seed}", str(seed + round_ + n))) for n in range(3)]
        victim = rng.choice(trials)
        time.sleep(rng.uniform(0.1, 1))
        victim.kill()
        victim.wait()
        for trial in trials:
            if trial is not victim:
                ends_well(trial)
        others = [line for line in log(tmp_path) if line.split()[0] != str(victim.pid)]
        require_no_overlap(others)
        (tmp_path / "log").unlink()


def test_who_does_not_get_to_be_alone_measures_as_a_neighbour(live: Live, tmp_path: Path) -> None:
    """So that nobody else believes to be alone meanwhile."""
    neighbour = live(NEIGHBOUR)
    until(lambda: count(tmp_path, "compute"))
    beside = live(
        "with machine.computing(), machine.alone(0.1) as alone:\n"
        " assert not alone\n log('beside')\n wait_for('on')"
    )
    until(lambda: count(tmp_path, "beside"))
    (tmp_path / "go").touch()
    ends_well(neighbour)
    third = Machine(tmp_path / "locks")
    with third.alone(wait_s=0.1) as alone:
        assert not alone
    (tmp_path / "on").touch()
    ends_well(beside)
    with third.alone(wait_s=PATIENCE_S) as alone:
        assert alone


def test_one_that_could_not_be_alone_does_not_keep_others_from_starting(
    live: Live, tmp_path: Path
) -> None:
    neighbour = live(NEIGHBOUR)
    until(lambda: count(tmp_path, "compute"))
    with Machine(tmp_path / "locks").alone(wait_s=0.1) as alone:
        assert not alone
        ends_well(live("with machine.computing(): log('compute')"))
    neighbour.kill()


def test_who_waits_for_a_stage_lets_its_builder_measure(live: Live, tmp_path: Path) -> None:
    """Even who asks while it measures."""
    asks = """
from hdsweep.stages import Stage, let_go, obtain

def build(folder):
    wait_for("all")
    assert measure()
    log("built")

def ask():
    log("ask")
    _, held = obtain(ROOT, Stage("thing", 1, {}, "tests"), "0" * 20, build, idle=machine.idle)
    let_go(held)

with machine.computing():
"""
    builder = live(f"{asks}    ask()")
    until(lambda: count(tmp_path, "ask"))
    waiters = [live(f"{asks}    ask()") for _ in range(2)]
    waiters.append(live(f"{asks}    with machine.alone(): ask()"))
    time.sleep(0.3)  # into their waits; before them is as good
    (tmp_path / "all").touch()
    for process in [builder, *waiters]:
        ends_well(process)
    assert count(tmp_path, "built") == 1


def test_a_measurement_inside_another_is_the_same(live: Live, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "locks")
    with machine.computing(), machine.alone() as outer:
        with machine.alone() as inner:
            assert (outer, inner) == (True, True)
        newcomer = live("log('idle')\nwith machine.computing(): log('compute')")
        until(lambda: count(tmp_path, "idle"))
        time.sleep(0.3)  # it would have started by now
        assert not count(tmp_path, "compute")
    ends_well(newcomer)
    with Machine(tmp_path / "locks").alone(wait_s=0) as alone:
        assert alone


def test_a_child_that_outlives_a_trial_is_nobodys_neighbour(tmp_path: Path) -> None:
    """A data loader's worker inherits every open file."""
    reader, writer = os.pipe()
    with Machine(tmp_path / "locks").computing():
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with Machine(tmp_path / "locks").alone(wait_s=0) as alone:
            assert alone
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        os.close(reader)


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "locks")
    with pytest.raises(RuntimeError), machine.computing(), machine.alone():
        raise RuntimeError
    with pytest.raises(RuntimeError), machine.computing(), machine.idle():
        raise RuntimeError
    with Machine(tmp_path / "locks").alone(wait_s=0) as alone:
        assert alone


def test_an_interrupt_while_waiting_lets_go(live: Live, tmp_path: Path) -> None:
    neighbour = live(NEIGHBOUR)
    until(lambda: count(tmp_path, "compute"))
    handle = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    waiting = live(handle + MEASURER)
    until(lambda: count(tmp_path, "idle"))
    time.sleep(0.3)  # into its wait; just before it is as good
    waiting.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in waiting.communicate(timeout=PATIENCE_S)[1]
    (tmp_path / "go").touch()
    ends_well(neighbour)
    with Machine(tmp_path / "locks").alone(wait_s=0) as alone:
        assert alone


def test_after_a_wait_in_vain_others_try_briefly_until_one_was_alone(
    live: Live, tmp_path: Path
) -> None:
    """The second would wait an hour, far beyond this test's patience."""
    neighbour = live("with machine.computing(): log('compute'); wait_for('go')")
    until((tmp_path / "log").exists)
    with Machine(tmp_path / "locks").alone(wait_s=0) as alone:
        assert not alone
    second = live("import hdsweep.machine as m; m.BRIEF_WAIT_S = 0.05; measure(3600.0)")
    until(lambda: "beside" in (tmp_path / "log").read_text())
    ends_well(second)
    (tmp_path / "go").touch()
    ends_well(neighbour)
    with Machine(tmp_path / "locks").alone(wait_s=3600) as alone:
        assert alone
    assert sorted(p.name for p in (tmp_path / "locks").iterdir()) == ["busy", "gate"]


def test_a_process_that_is_stopped_while_it_measures_holds_nobody_up_for_ever(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdsweep.machine.ENTER_WAIT_S", 0.2)
    stopped = live("with machine.alone(): log('measure'); time.sleep(3600)")
    until((tmp_path / "log").exists)
    stopped.send_signal(signal.SIGSTOP)
    with Machine(tmp_path / "locks").computing():
        pass


# --- Where the locks are --------------------------------------------------------------------------


def require_unknown(folder: Path) -> None:
    """Neighbours are not known; trials run all the same, and say that they were not alone."""
    machine = Machine(folder)
    with machine.computing(), machine.idle(), machine.alone(wait_s=3600) as alone:
        assert not alone


def test_without_a_place_to_write_nobody_is_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_unknown(tmp_path / "file")
    require_unknown(tmp_path / "file/folder")
    require_unknown(tmp_path / "none/folder")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o701])
def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(mode)
    require_unknown(folder)
    assert not list(folder.iterdir())


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "locks").symlink_to(target)
    require_unknown(tmp_path / "locks")
    assert not list(target.iterdir())
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    require_unknown(tmp_path / "dangling")
    folder = tmp_path / "ours"
    folder.mkdir(mode=0o700)
    (folder / "gate").symlink_to(tmp_path / "made")
    require_unknown(folder)
    assert not (tmp_path / "made").exists()


def test_another_users_folder_is_not_used(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    folder = tmp_path / "locks"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    require_unknown(folder)
    assert not list(folder.iterdir())


def test_the_folder_is_this_users_below_the_one_for_temporary_files(tmp_path: Path) -> None:
    script = "from hdsweep.machine import Machine\nwith Machine().computing(): pass"
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True
    )
    (made,) = tmp_path.iterdir()
    assert made.name == f"hdsweep-{os.geteuid()}"
    assert oct(made.stat().st_mode)[-3:] == "700"
    assert sorted(p.name for p in made.iterdir()) == ["busy", "gate"]
    assert Machine()._folder.parent == Path(tempfile.gettempdir())


def test_files_are_closed(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        machine = Machine(tmp_path / "locks")
        with machine.computing(), machine.idle():
            pass
        with machine.alone(wait_s=0):
            pass
        require_unknown(tmp_path / "none/folder")
    assert os.listdir("/proc/self/fd") == before
