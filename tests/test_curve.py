"""A trial's curve in both of its files, the one for TensorBoard read with TensorBoard itself."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from hdsweep.curve import Curve
from hdsweep.store import PlannedCell, PlannedSweep, Store
from tests.conftest import SWEEP, Run

LOG = logging.getLogger("test_curve")
Write = Callable[..., Path]
Points = list[tuple[int, str, float]]


def opened(folder: Path, last_step: int = 0) -> Curve:
    return Curve(folder, time.monotonic(), LOG, last_step=last_step)


@pytest.fixture
def curve(tmp_path: Path) -> Iterator[Curve]:
    made = opened(tmp_path)
    yield made
    made.close()


def float32(value: float) -> float:
    """As TensorBoard's scalars keep it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def of_lines(folder: Path) -> Points:
    found = []
    for line in (folder / "curve.jsonl").read_text().splitlines():
        point = json.loads(line, parse_constant=pytest.fail)
        values = {k: v for k, v in point.items() if k not in ("step", "time_s")}
        found += [(point["step"], name, float32(float(v))) for name, v in values.items()]
    return sorted(found, key=str)


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def of_events(folder: Path) -> Points:
    found = events(folder)
    return sorted(
        ((e.step, tag, e.value) for tag in found.Tags()["scalars"] for e in found.Scalars(tag)),
        key=str,
    )


def steps(found: EventAccumulator, tag: str = "loss") -> list[int]:
    return [event.step for event in found.Scalars(tag)]


def test_both_files_say_the_same_at_every_moment(curve: Curve, tmp_path: Path) -> None:
    began = time.time()
    for step in range(1, 6):
        curve.add(step, {"loss": 1 / step, "grad/total_norm": 2.5 * step, "val/auroc": 0.5})
        assert of_events(tmp_path) == of_lines(tmp_path)  # the curve is still open
    assert events(tmp_path).Tags()["scalars"] == ["loss", "grad/total_norm", "val/auroc"]
    assert len(of_events(tmp_path)) == 15
    times = [event.wall_time for event in events(tmp_path).Scalars("loss")]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time()


def test_what_is_not_finite_is_written_as_such(curve: Curve, tmp_path: Path) -> None:
    curve.add(1, {"loss": math.nan, "up": math.inf, "down": -math.inf, "huge": 1e300, "zero": 0.0})
    found = {name: value for _, name, value in of_events(tmp_path)}
    assert math.isnan(found.pop("loss"))
    assert found == {"up": math.inf, "down": -math.inf, "huge": math.inf, "zero": 0.0}
    assert '"loss": "nan"' in (tmp_path / "curve.jsonl").read_text()


@given(
    step=st.integers(-(2**63), 2**63 - 1),
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(
            lambda name: name not in ("step", "time_s")
        ),
        st.floats(),
        min_size=1,
        max_size=4,
    ),
)
def test_any_step_name_and_number_reach_tensorboard(
    tmp_path_factory: pytest.TempPathFactory, step: int, values: dict[str, float]
) -> None:
    folder = tmp_path_factory.mktemp("trial")
    made = opened(folder)
    made.add(step, values)
    made.close()
    assert str(of_events(folder)) == str(of_lines(folder))  # as text, where nan equals nan
    assert len(of_events(folder)) == len(values)


def test_a_resumed_curve_keeps_the_points_up_to_the_checkpoint(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for step in range(1, 9):
        first.add(step, {"loss": float(step), "other": math.nan})
    first.close()
    watching = events(tmp_path)  # a TensorBoard that is open all the while
    before = {e.step: e.wall_time for e in watching.Scalars("loss")}
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('3\n{"loss": 1}\n{"step": 2, "lo')  # damage, and a line that a kill cut
    (tmp_path / ".curve.jsonl").write_text("of an attempt that was killed as it opened its curve")
    second = opened(tmp_path, last_step=5)
    assert steps(events(tmp_path)) == [1, 2, 3, 4, 5]
    for step in range(6, 8):
        second.add(step, {"loss": -1.0})
    second.close()
    watching.Reload()
    for found in (watching, events(tmp_path)):
        assert steps(found) == [1, 2, 3, 4, 5, 6, 7]
        assert [e.value for e in found.Scalars("loss")] == [1, 2, 3, 4, 5, -1, -1]
        times = {e.step: e.wall_time for e in found.Scalars("loss")}
        assert [times[n] for n in range(1, 6)] == [before[n] for n in range(1, 6)]
        assert times[6] > before[8]
    assert str(of_events(tmp_path)) == str(of_lines(tmp_path))
    assert [p.stat().st_size > 0 for p in sorted((tmp_path / "tensorboard").iterdir())] == [0, 1]
    assert not (tmp_path / ".curve.jsonl").exists()


def test_a_curve_that_is_not_resumed_starts_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        made = opened(tmp_path)
        made.add(1, {"loss": value})
        made.close()
    assert of_events(tmp_path) == of_lines(tmp_path) == [(1, "loss", 2.0)]


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff" * 40])
def test_points_that_lost_their_events_get_the_time_of_the_file(
    tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / "curve.jsonl").write_text('{"step": 1, "time_s": 0.1, "loss": "inf"}\n')
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.1").write_bytes(damage)
    os.utime(tmp_path / "curve.jsonl", (1e9, 1e9))
    opened(tmp_path, last_step=1).close()
    (point,) = events(tmp_path).Scalars("loss")
    assert (point.wall_time, point.step, point.value) == (1e9, 1, math.inf)


@pytest.mark.parametrize("cut_bytes", [1, 10, 30, 41])  # of a last record of 42
def test_a_resumed_curve_keeps_the_times_before_an_event_that_a_kill_cut(
    tmp_path: Path, cut_bytes: int
) -> None:
    made = opened(tmp_path)
    for step in (1, 2, 3):
        made.add(step, {"loss": 1.0})
    made.close()
    before = [event.wall_time for event in events(tmp_path).Scalars("loss")]
    (path,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(path, path.stat().st_size - cut_bytes)
    os.utime(tmp_path / "curve.jsonl", (1e9, 1e9))
    opened(tmp_path, last_step=3).close()
    assert [event.wall_time for event in events(tmp_path).Scalars("loss")] == [*before[:2], 1e9]


REPORTING = """
import logging, sys, time
from pathlib import Path
from hdsweep.curve import Curve
curve = Curve(Path(sys.argv[1]), time.monotonic(), logging.getLogger(), last_step=int(sys.argv[2]))
print("reporting", flush=True)
for step in range(int(sys.argv[2]) + 1, 10**9):
    curve.add(step, {"loss": 1 / step, "val/auroc": 0.5})
"""


def test_a_kill_leaves_files_that_can_be_read_and_resumed(tmp_path: Path) -> None:
    last = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", REPORTING, tmp_path, str(last)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.02, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = steps(events(tmp_path))
        assert found == list(range(1, len(found) + 1))
        assert len(found) > last
        last = len(found) // 2
    opened(tmp_path, last_step=last).close()
    assert steps(events(tmp_path)) == list(range(1, last + 1))
    assert of_events(tmp_path) == of_lines(tmp_path)


def test_no_thread_and_no_file_outlives_a_curve(tmp_path: Path) -> None:
    threads, files = threading.enumerate(), os.listdir("/proc/self/fd")
    made = opened(tmp_path)
    made.add(1, {"loss": 1.0})
    assert threading.enumerate() == threads
    made.close()
    made.close()
    assert os.listdir("/proc/self/fd") == files


ALONE = """
import logging, sys, time
from pathlib import Path
from hdsweep.curve import Curve
heavy = {"torch", "tensorflow", "tensorboardX", "numpy", "tensorboard"}
print(sorted(heavy & sys.modules.keys()))
for last_step in (0, 1):
    curve = Curve(Path(sys.argv[1]), time.monotonic(), logging.getLogger(), last_step=last_step)
    curve.add(last_step + 1, {"loss": 1.0})
    curve.close()
print(sorted(heavy & sys.modules.keys()))
"""


def test_a_curve_loads_tensorboard_when_it_is_opened_and_never_torch_or_tensorflow(
    tmp_path: Path,
) -> None:
    (tmp_path / "tensorflow.py").write_text("print('loaded')")  # as if it were installed
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, tmp_path],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n['numpy', 'tensorboard']\n", "")
    assert steps(events(tmp_path)) == [1, 2]


def fill_disk(folder: Path, name: str) -> None:
    """Let what this process writes to an open file find the disk full."""
    handles = [Path("/proc/self/fd", handle) for handle in os.listdir("/proc/self/fd")]
    (found,) = (h for h in handles if h.exists() and h.resolve().match(f"{folder}/{name}"))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, int(found.name))
    os.close(full)


def test_a_full_disk_is_raised_for_the_lines(curve: Curve, tmp_path: Path) -> None:
    curve.add(1, {"loss": 1.0})
    fill_disk(tmp_path, "curve.jsonl")
    with pytest.raises(OSError, match="No space left") as found:
        curve.add(2, {"loss": 1.0})
    assert found.value.errno == errno.ENOSPC
    curve.close()  # it does not raise again what the trial was told


def test_a_mirror_that_fails_is_logged_once_and_fails_nothing(
    curve: Curve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curve.add(1, {"loss": 1.0})
    fill_disk(tmp_path, "tensorboard/*")
    for step in (2, 3):
        curve.add(step, {"loss": 1.0})
    assert [step for step, _, _ in of_lines(tmp_path)] == [1, 2, 3]
    assert [r.getMessage().partition(" [")[0] for r in caplog.records] == [
        "no more points for TensorBoard: OSError:"
    ]
    curve.close()
    opened(tmp_path, last_step=3).close()  # the next attempt has all of them
    assert steps(events(tmp_path)) == [1, 2, 3]


def test_a_mirror_that_cannot_be_made_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("another's")
    made = opened(tmp_path)
    made.add(1, {"loss": 1.0})
    made.close()
    assert of_lines(tmp_path) == [(1, "loss", 1.0)]
    assert len(caplog.records) == 1
    assert (tmp_path / "tensorboard").read_text() == "another's"


@pytest.mark.parametrize(
    "name", ["tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer"]
)
def test_a_tensorboard_that_cannot_be_imported_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, name, None)
        made = opened(tmp_path)
        made.add(1, {"loss": 1.0})
        made.close()
        opened(tmp_path, last_step=1).close()
    assert of_lines(tmp_path) == [(1, "loss", 1.0)]
    assert [r.getMessage().partition(" import")[0] for r in caplog.records] == [
        "no more points for TensorBoard: ModuleNotFoundError:"
    ] * 2
    opened(tmp_path, last_step=1).close()  # once it is repaired
    assert steps(events(tmp_path)) == [1]


@pytest.mark.parametrize("name", ["step", "time_s"])
def test_a_metric_may_not_pass_for_a_points_own_key(curve: Curve, name: str) -> None:
    with pytest.raises(ValueError, match="named as one of"):
        curve.add(1, {name: 1.0})


# --- the links of a sweep -------------------------------------------------------------------------


def store_of(tmp_path: Path) -> Store:
    store = Store(tmp_path / "results")
    store.create()
    return store


def put(store: Store, arms: dict[str, str], name: str = "one") -> Path:
    """Plan a sweep of one trial per arm: arm -> trial id; the folder of its links."""
    cells = tuple(PlannedCell(arm, {"k": 1}, {42: i}) for arm, i in arms.items())
    store.put_sweep(PlannedSweep(name, "why?", (), None, (), (), cells), b"")
    return store.root / "sweeps" / name / "tensorboard"


def runs(home: Path) -> set[str]:
    found = EventMultiplexer()
    found.AddRunsFromDirectory(str(home))
    found.Reload()
    return set(found.Runs())


def report(store: Store, trial_id: str) -> None:
    folder = store.trial_dir(trial_id)
    folder.mkdir(parents=True)
    made = opened(folder)
    made.add(1, {"loss": 1.0})
    made.close()


HOSTILE = (
    "a/b", "a\\b", "a_b", "..", ".hidden", "x" * 300, "x" * 301, "漢" * 90, "[a]*?", "a\nb",
)  # fmt: skip


def test_links_of_any_label_are_followed_and_told_apart(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    ids = {arm: f"{n:020x}" for n, arm in enumerate(HOSTILE)}
    for trial_id in ids.values():
        report(store, trial_id)
    home = put(store, ids)
    names = {link.name for link in home.iterdir()}
    assert len(names) == len(ids)
    assert {"a_b k=1 seed=42", "_. k=1 seed=42", "_hidden k=1 seed=42"} < names
    assert {(home / name).resolve().parent.name for name in names} == set(ids.values())
    assert all(not Path(os.readlink(home / name)).is_absolute() for name in names)
    assert runs(home) == names
    store.root.rename(tmp_path / "moved")
    assert runs(tmp_path / "moved/sweeps/one/tensorboard") == names


def test_links_are_remade_and_what_is_not_ours_is_left(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    one, two, three = (f"{n:020x}" for n in range(3))
    home = put(store, {"a": one, "b": two, "c": three})
    assert runs(home) == set()  # nothing was reported yet
    (home / "mine").mkdir()
    (home / "theirs").symlink_to("/somewhere")
    (home / "d k=1 seed=42").write_text("in the way")
    kept = (home / "a k=1 seed=42").lstat().st_ino
    assert put(store, {"a": one, "c": two, "d": three}) == home
    report(store, one)
    report(store, two)
    assert {p.name for p in home.iterdir()} == {
        "mine", "theirs", "a k=1 seed=42", "c k=1 seed=42", "d k=1 seed=42",
    }  # fmt: skip
    assert (home / "c k=1 seed=42").resolve() == store.trial_dir(two) / "tensorboard"
    assert (home / "a k=1 seed=42").lstat().st_ino == kept
    assert (home / "d k=1 seed=42").read_text() == "in the way"
    assert runs(home) == {"a k=1 seed=42", "c k=1 seed=42"}


def test_a_filesystem_without_links_keeps_its_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as vfat does

    monkeypatch.setattr(os, "symlink", refuse)
    store = store_of(tmp_path)
    home = put(store, {"a": f"{1:020x}"})
    assert list(home.iterdir()) == []
    home.rmdir()
    home.write_text("a file in the way")
    put(store, {"a": f"{1:020x}"})
    assert store.sweep("one").cells[0].arm == "a"


def test_a_run_shows_its_trials_by_name_those_of_earlier_sweeps_too(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    assert hdsweep("run", sweep_file(), "--inline").returncode == 0
    other = SWEEP.replace("name: noise", "name: other").replace("  weak:", "  faint:")
    other = other.replace("baseline: weak", "baseline: faint").replace("[1, 2]}", "[1, 3]}")
    assert hdsweep("run", sweep_file(other, "other.yaml"), "--inline").returncode == 0
    names = {f"strong strength={s}.0 seed={n}" for s in (1, 3) for n in (1, 2)}
    home = tmp_path / "results/sweeps/other/tensorboard"
    assert runs(home) == names | {"faint seed=1", "faint seed=2"}
    assert len(runs(tmp_path / "results/sweeps/noise/tensorboard")) == 6
