"""Shared work: built once, by one process at a time, whatever is killed, stopped or full."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock._marker import OwnerRecord, encode_marker

from hdsweep import cache, lease, stages
from hdsweep.context import Context, key_of
from hdsweep.errors import StoreError
from hdsweep.method import Stage
from hdsweep.store import Store
from hdsweep.trial import Trial
from tests.conftest import Run, interruptible
from tests.lending import Lent

KEY = "0123456789abcdef0123"
THING = Stage("thing", 1, {"percent": 1}, __name__)
PATIENCE_S = 120  # for what takes a second or two; a loaded machine is not a failure

ASK = """
import ctypes, fcntl, os, signal, struct, sys, time
from pathlib import Path
from hdsweep import lease, stages

ROOT, KEY, HOW, AFTER = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
lease.LEASE_S = float(sys.argv[5])

def refuse(syscall, errno):
    # As a file server does that lacks it: every further call of this process ends in the error.
    program = struct.pack("=HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, syscall,
                          0x06, 0, 0, 0x50000 | errno, 0x06, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter for system calls")

def log(word):
    with (ROOT / "log").open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")

def build(folder):
    log("build")
    (folder / "first").write_text(str(os.getpid()))
    exec(HOW, globals() | {"folder": folder})
    (folder / "last").write_text(str(os.getpid()))
    log("built")

for word in sys.argv[6:]:
    if word == "nobody":
        os.setresuid(65534, 65534, 65534)
    else:
        refuse(*map(int, word.split(":")))
stage = stages.Stage("thing", 1, {"percent": 1}, "tests")
log("ask")
folder, held = stages.obtain(ROOT, stage, KEY, build)
assert (folder / "first").read_text() == (folder / "last").read_text()
log("got")
exec(AFTER)
stages.let_go(held)
"""

Ask = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Start a process that asks for a stage; none is left behind."""
    started = []

    def start(
        how: str = "", *refused: str, lease_s: float = 3600, key: str = KEY, after: str = "",
        root: Path = tmp_path,
    ) -> subprocess.Popen[str]:  # fmt: skip
        words = [str(root), key, how, after, str(lease_s), *refused]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", ASK, *words],
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=interruptible,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def log(root: Path) -> list[str]:
    """What processes have done, in order: word and process id."""
    return (root / "log").read_text().splitlines() if (root / "log").exists() else []


def words(root: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log(root))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends_well(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, told


def home(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "stages/thing").iterdir())


def obtain(root: Path, build: Callable[[Path], None], key: str = KEY) -> tuple[Path, int]:
    return stages.obtain(root, THING, key, build)


def fill(folder: Path) -> None:
    (folder / "text").write_text("whole")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no filesystem can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


# --- Names ----------------------------------------------------------------------------------------


def test_a_key_follows_all_that_a_stage_is_made_from() -> None:
    def key(
        name: str = "a", version: int = 1, x: object = 1, data: str = "d", source: str = "s"
    ) -> str:
        return stages.stage_key(Stage(name, version, {"x": x}, "tests"), data, source)

    others = [key("b"), key(version=2), key(x=2), key(x=[1]), key(data="e"), key(source="t")]
    assert len({key(), *others}) == 7
    assert key(x=1.0) == key()
    assert len(key()) == 20


def test_neither_code_nor_needs_name_a_stage() -> None:
    """The code's source does; where it stands may change."""
    moved = Stage("thing", 1, {"percent": 1}, "elsewhere", (THING,))
    assert stages.stage_key(moved, "d", "s") == stages.stage_key(THING, "d", "s")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "a-b", "1"])
def test_a_stage_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        Stage(name, 1, {}, "tests")


# --- Once -----------------------------------------------------------------------------------------


def test_those_who_ask_at_once_build_once(ask: Ask, tmp_path: Path) -> None:
    together = [ask("time.sleep(0.5)") for _ in range(8)]
    for process in together:
        ends_well(process)
    assert words(tmp_path) == {"ask": 8, "build": 1, "built": 1, "got": 8}
    assert home(tmp_path) == [KEY]


def test_two_drivers_whose_sweeps_share_a_stage_build_it_once(
    hdsweep: Run, sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    """What the builder appends to tells how often it ran."""
    builds, drivers = tmp_path / "builds", []
    for n in range(2):
        text = (
            f"name: s{n}\nquestion: ''\nmethod: tests.methods.counter\n"
            "data: {name: tests.methods.labels, root: labels, make: {items: 40}}\n"
            f"seeds: [{n}1, {n}2, {n}3]\n"
            f"arms: {{only: {{stage: true, spoil: {builds}}}}}\n"
            "resources: {gpus: 0, cpus: 1}\nreport: {metrics: [auroc]}\n"
        )
        file = sweep_file(text, f"s{n}.yaml")
        if not n:
            assert hdsweep("plan", file).returncode == 0  # so that both find the data made
        drivers.append(
            subprocess.Popen(
                [sys.executable, "-m", "hdsweep.cli", "run", str(file), "--inline"],
                cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for driver in drivers:
        ends_well(driver)
    assert len(list((tmp_path / "results/trials").glob("*/*/record.json"))) == 6
    assert builds.read_text() == " 1"
    assert len(cache.kept(tmp_path / "results")) == 1


def test_who_offers_does_not_wait(ask: Ask, tmp_path: Path) -> None:
    builder = ask("while not (ROOT / 'go').exists(): time.sleep(0.02)")
    until(lambda: words(tmp_path)["build"])
    assert not stages.offer(tmp_path, THING, KEY, fill)
    (tmp_path / "go").touch()
    ends_well(builder)
    assert stages.offer(tmp_path, THING, KEY, fill)
    assert words(tmp_path)["build"] == 1


def test_a_stage_may_ask_for_another_and_not_for_itself(tmp_path: Path) -> None:
    context = Lent(tmp_path)
    inner = Stage("inner", 1, {}, __name__)

    def build_outer(folder: Path) -> None:
        found = context.stage(inner, fill)
        shutil.copy(found / "text", folder / "copy")

    outer = context.stage(Stage("outer", 1, {}, __name__, (inner,)), build_outer)
    assert (outer / "copy").read_text() == "whole"

    def build_circle(folder: Path) -> None:
        context.stage(circle, build_circle)

    circle = Stage("circle", 1, {}, __name__)
    with pytest.raises(ValueError, match="while it is being built"):
        context.stage(circle, build_circle)
    assert not list((tmp_path / "stages/circle").iterdir())
    context.close()


def test_a_stage_that_lost_its_note_is_built_anew(tmp_path: Path) -> None:
    folder, held = obtain(tmp_path, fill)
    stages.let_go(held)
    (folder / "stage.json").unlink()
    (folder / "text").write_text("half")
    again, held = obtain(tmp_path, fill)
    stages.let_go(held)
    assert (again / "text").read_text() == "whole"
    assert home(tmp_path) == [KEY]


# --- Builders that fail ---------------------------------------------------------------------------


def test_a_builder_that_fails_leaves_nothing_and_the_next_may_try(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("no luck")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no luck"):
            obtain(tmp_path, fail)
        assert home(tmp_path) == []
    _, held = obtain(tmp_path, fill)
    stages.let_go(held)


def test_when_a_builder_fails_one_who_waits_tries_next(ask: Ask, tmp_path: Path) -> None:
    first = ask("while not (ROOT / 'go').exists(): time.sleep(0.02)\nraise RuntimeError('no luck')")
    until(lambda: words(tmp_path)["build"])
    second = ask()
    until(lambda: words(tmp_path)["ask"] == 2)
    (tmp_path / "go").touch()
    ends_well(second)
    assert "no luck" in first.communicate()[1]
    assert words(tmp_path)["built"] == 1
    assert home(tmp_path) == [KEY]


@pytest.mark.parametrize("made", ["link", "stage.json"])
def test_a_stage_holds_files_of_its_own(made: str, tmp_path: Path) -> None:
    """Removing a store must not depend on what a link leads to."""

    def build(folder: Path) -> None:
        if made == "link":
            (folder / "link").symlink_to(tmp_path)
        else:
            (folder / made).write_text("{}")

    with pytest.raises(ValueError, match=r"files and folders only|the engine's"):
        obtain(tmp_path, build)
    assert home(tmp_path) == []


@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupt_leaves_nothing_behind(ask: Ask, tmp_path: Path, waits: bool) -> None:
    builder = ask("(ROOT / 'at').touch()\nwhile not (ROOT / 'go').exists(): time.sleep(0.02)")
    until((tmp_path / "at").exists)
    victim = ask() if waits else builder
    if waits:
        until(lambda: words(tmp_path)["ask"] == 2)
        time.sleep(0.3)  # into its wait; just before it is as good
    victim.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in victim.communicate(timeout=PATIENCE_S)[1]
    if waits:
        (tmp_path / "go").touch()
        ends_well(builder)
    assert home(tmp_path) == ([KEY] if waits else [])


FILLING = """
from pathlib import Path
import numpy as np
from hdsweep.method import Method, Outcome, Predictions, Stage, Strict

class Params(Strict):
    by: str = "write"

def build(folder, by):
    if by == "write":
        with (folder / "a").open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(bytes(1 << 20))
    else:
        np.save(folder / "a.npy", np.zeros(3 << 17))

def run(params, data, context):
    def make(folder: Path) -> None:
        build(folder, params.by)
    context.stage(Stage("large", 1, {}, __name__), make)
    return Outcome(Predictions.of(data.test, np.arange(float(len(data.test)))))

METHOD = Method(version=1, params=Params, run=run, source="none", uses_torch=False)
"""


@pytest.mark.parametrize("by", ["write", "save"])
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    by: str, hdsweep: Run, sweep_file: Callable[..., Path], small: Path, tmp_path: Path
) -> None:
    """numpy tells that half an array was written, and no errno."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/filling.py").write_text(FILLING)
    file = sweep_file(
        "name: full\nquestion: ''\nmethod: own.filling\n"
        "data: {name: tests.methods.labels, root: labels, make: {items: 40}}\n"
        f"seeds: [1]\narms: {{only: {{by: {by}}}}}\nresources: {{gpus: 0, cpus: 1}}\n"
        "report: {metrics: [auroc]}\n"
    )
    store = small / "results"
    filler = small / "filler"
    filler.write_bytes(bytes(2 << 20))
    done = hdsweep("run", file, "--store", store, "--inline", "--storage-wait", 1)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "No space left on device" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((store / "stages/large").iterdir()) == []
    assert not list(store.glob("trials/*/*/record.json"))
    filler.unlink()
    assert hdsweep("run", file, "--store", store, "--inline").returncode == 0


def test_a_store_that_cannot_be_written_is_one_sentence(small: Path) -> None:
    _, held = obtain(small, fill)
    stages.let_go(held)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    again, held = obtain(small, fill)  # what is there can be read
    assert (again / "text").read_text() == "whole"
    stages.let_go(held)
    with pytest.raises(StoreError, match=r"cannot be written.*Read-only"):
        obtain(small, fill, "f" * 20)


# --- Builders that die ----------------------------------------------------------------------------


def test_a_builder_that_is_killed_is_replaced(ask: Ask, tmp_path: Path) -> None:
    """At once: its lease would last for an hour."""
    builder = ask("(ROOT / 'at').touch(); time.sleep(3600)")
    until((tmp_path / "at").exists)
    waiting = ask()
    until(lambda: words(tmp_path)["ask"] == 2)
    assert not (tmp_path / "stages/thing" / KEY).exists()
    builder.kill()
    builder.wait()
    ends_well(waiting)
    assert words(tmp_path) == {"ask": 2, "build": 2, "built": 1, "got": 1}
    assert home(tmp_path) == [KEY]  # neither lease nor half a stage


def test_where_names_cannot_be_exchanged_a_dead_builder_is_replaced_too(
    ask: Ask, tmp_path: Path
) -> None:
    """NFS refuses it, and the lock library then leaves the lease to its dead holder."""
    if os.uname().machine != "x86_64":
        pytest.skip("system calls are numbered for x86-64")
    renameat2 = "316:22"  # EINVAL
    builder = ask("(ROOT / 'at').touch(); time.sleep(3600)", renameat2, lease_s=1)
    until((tmp_path / "at").exists)
    waiting = [ask("time.sleep(0.3)", renameat2, lease_s=1) for _ in range(3)]
    until(lambda: words(tmp_path)["ask"] == 4)
    builder.kill()
    builder.wait()
    for process in waiting:
        ends_well(process)
    cache.remove_leftovers(tmp_path)
    assert home(tmp_path) == [KEY]


@pytest.mark.parametrize("removed", [False, True])
def test_a_builder_that_slept_through_its_lease_takes_what_another_built(
    ask: Ask, tmp_path: Path, removed: bool
) -> None:
    """A successor on another machine, without locks, would have removed its half stage as well."""
    sleeper = ask(
        "if not (ROOT / 'at').exists():\n"
        " (ROOT / 'at').touch()\n"
        " while not (ROOT / 'go').exists(): time.sleep(0.02)",
        lease_s=1,
    )
    until((tmp_path / "at").exists)
    sleeper.send_signal(signal.SIGSTOP)
    successor = ask(lease_s=1)
    ends_well(successor)
    if removed:
        for partial in (tmp_path / "stages/thing").glob(f".{KEY}-*"):
            shutil.rmtree(partial)
    (tmp_path / "go").touch()
    sleeper.send_signal(signal.SIGCONT)
    ends_well(sleeper)
    assert (tmp_path / "stages/thing" / KEY / "last").read_text() == str(successor.pid)
    assert home(tmp_path) == [KEY]


def mark(root: Path, lease_s: float) -> Path:
    """The lease of a process of another machine."""
    marker = root / "stages/thing" / f".{KEY}.lease"
    marker.parent.mkdir(parents=True)
    record = OwnerRecord(os.getpid(), "elsewhere", "lease", "f" * 32, lease_s, 1)
    marker.write_bytes(encode_marker(record))
    return marker


def test_a_holder_elsewhere_that_renews_nothing_is_replaced(ask: Ask, tmp_path: Path) -> None:
    """Whatever its clock says: here it is an hour ahead."""
    marker = mark(tmp_path, 1.0)
    ahead = time.time() + 3600
    os.utime(marker, (ahead, ahead))
    ends_well(ask(lease_s=1))
    assert words(tmp_path)["built"] == 1
    assert home(tmp_path) == [KEY]


@pytest.mark.slow
def test_a_holder_elsewhere_that_renews_is_waited_for(ask: Ask, tmp_path: Path) -> None:
    marker = mark(tmp_path, 2.0)
    waiting = ask(lease_s=2)
    for _ in range(40):  # four times the lease
        time.sleep(0.2)
        os.utime(marker)
        assert words(tmp_path)["build"] == 0
    made = tmp_path / "stages/thing/.made"
    made.mkdir()
    for name in ("first", "last", "stage.json"):
        (made / name).write_text("{}")
    made.rename(tmp_path / "stages/thing" / KEY)
    marker.unlink()
    ends_well(waiting)
    assert words(tmp_path)["build"] == 0


def test_a_lease_of_another_length_is_waited_for_and_replaced(ask: Ask, tmp_path: Path) -> None:
    """Of another version of this engine, say."""
    mark(tmp_path, 7.0)
    ends_well(ask(lease_s=1))
    assert home(tmp_path) == [KEY]


def test_a_colleague_waits_and_reads(ask: Ask) -> None:
    """The lease of another user can neither be written nor be mistaken for an error."""
    if os.geteuid():
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory() as shared:
        root = Path(shared)
        root.chmod(0o777)
        (root / "stages/thing").mkdir(parents=True)
        (root / "stages/thing").chmod(0o777)
        (root / "log").touch()
        (root / "log").chmod(0o666)
        builder = ask("while not (ROOT / 'go').exists(): time.sleep(0.02)", root=root)
        until(lambda: words(root)["build"])
        colleague = ask("", "nobody", root=root)
        until(lambda: words(root)["ask"] == 2)
        time.sleep(0.3)  # into its wait; just before it is as good
        (root / "go").touch()
        ends_well(builder)
        ends_well(colleague)
        assert words(root) == {"ask": 2, "build": 1, "built": 1, "got": 2}


def test_who_takes_over_builds_as_a_neighbour_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    mark(tmp_path, 0.5)
    seen = []

    @contextlib.contextmanager
    def idle() -> Iterator[None]:
        seen.append("idle")
        yield
        seen.append("back")

    def build(folder: Path) -> None:
        seen.append("build")

    _, held = stages.obtain(tmp_path, THING, KEY, build, idle=idle)
    stages.let_go(held)
    assert seen == ["idle", "back", "build"]


@pytest.mark.slow
def test_kills_at_random_moments_leave_one_builder_and_no_half_stage(
    ask: Ask, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HDSWEEP_FAULT_SEED", time.time_ns() % 10**6))
    print("HDSWEEP_FAULT_SEED =", seed)
    rng = random.Random(seed)
    how = (
        "handle = os.open(ROOT / f'one-{KEY}', os.O_RDWR | os.O_CREAT)\n"
        "try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: log('overlap')\n"
        "time.sleep(0.15)\n"
        "os.close(handle)\n"
    )
    keys = [f"{n:020x}" for n in range(12)]
    for key in keys:
        together = [ask(how, key=key) for _ in range(4)]
        for victim in rng.sample(together, 3):
            time.sleep(rng.uniform(0, 0.4))
            victim.kill()
            victim.communicate()
        for process in together:
            process.communicate(timeout=PATIENCE_S)
            assert process.returncode in (0, -signal.SIGKILL)
        ends_well(ask(how, key=key))
    done = words(tmp_path)
    assert done["overlap"] == 0
    assert done["got"] >= len(keys)
    cache.remove_leftovers(tmp_path)
    assert home(tmp_path) == keys


# --- Readers --------------------------------------------------------------------------------------


def test_what_is_held_is_not_removed_and_what_is_mapped_stays(tmp_path: Path) -> None:
    folder, held = obtain(tmp_path, fill)
    (one,) = cache.kept(tmp_path)
    assert not cache.remove(one)
    with (folder / "text").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stages.let_go(held)
    assert cache.remove(one)
    assert home(tmp_path) == []
    assert mapped[:] == b"whole"
    mapped.close()


def test_a_child_that_outlives_a_trial_does_not_hold_its_stages(tmp_path: Path) -> None:
    """A data loader's worker inherits every open file."""
    _, held = obtain(tmp_path, fill)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        stages.let_go(held)
        (one,) = cache.kept(tmp_path)
        assert cache.remove(one)
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        os.close(reader)


@pytest.mark.slow
def test_a_thousand_stages_are_let_go(tmp_path: Path) -> None:
    """In a process that may have so many files open, and not many more."""
    script = (
        "import os, resource, sys\nfrom pathlib import Path\nfrom hdsweep import stages\n"
        "from tests.lending import Lent\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1100, hard))\n"
        "context = Lent(Path(sys.argv[1]))\n"
        "def build(folder): (folder / 'x').touch()\n"
        "build.__module__ = 'tests.methods'\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(2):\n"
        "    for n in range(1000):\n"
        "        context.stage(stages.Stage('thing', 1, {'n': n}, 'tests.methods'), build)\n"
        "assert len(context.made) == 1000\n"
        "assert len(os.listdir('/proc/self/fd')) == before + 1000\n"
        "context.close()\n"
        "assert len(os.listdir('/proc/self/fd')) == before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(home(tmp_path)) == 1000


@pytest.mark.slow
def test_askers_and_a_trimmer_at_once_never_see_half_a_stage(ask: Ask, tmp_path: Path) -> None:
    after = (
        "import random\n"
        "for _ in range(100):\n"
        " stages.let_go(held)\n"
        " time.sleep(random.uniform(0, 0.03))\n"
        " folder, held = stages.obtain(ROOT, stage, KEY, build)\n"
        " time.sleep(0.002)\n"
        " assert (folder / 'first').read_text() == (folder / 'last').read_text()\n"
        " assert (folder / 'stage.json').exists()\n"
    )
    askers = [ask(after=after) for _ in range(3)]
    removed = 0
    while any(process.poll() is None for process in askers):
        gone, _ = cache.trim(tmp_path, 0)
        removed += len(gone)
    for process in askers:
        ends_well(process)
    assert removed > 10
    cache.trim(tmp_path, 0)
    assert home(tmp_path) == []


def test_without_locks_stages_are_shared_and_not_removed(ask: Ask, tmp_path: Path) -> None:
    """Nobody could tell whether a trial uses them."""
    if os.uname().machine != "x86_64":
        pytest.skip("system calls are numbered for x86-64")
    flock = "73:37"  # ENOLCK
    after = (
        "from hdsweep import cache\n"
        "try: cache.trim(ROOT, 0)\n"
        "except Exception as error: log(type(error).__name__)\n"
    )
    first, second = ask("", flock, after=after), ask("", flock)
    ends_well(first)
    ends_well(second)
    assert words(tmp_path)["built"] == 1
    assert words(tmp_path)["StoreError"] == 1
    assert home(tmp_path) == [KEY]


def test_a_note_says_what_a_stage_was_made_from(tmp_path: Path) -> None:
    folder, held = obtain(tmp_path, fill)
    stages.let_go(held)
    note = json.loads((folder / "stage.json").read_bytes())
    assert (note["name"], note["version"], note["inputs"]) == ("thing", 1, {"percent": 1})
    assert note["size_bytes"] == len("whole")
    assert oct((folder / "text").stat().st_mode)[-3:] == "644"  # colleagues read it too
    assert oct(folder.stat().st_mode)[-3:] == "755"


# --- Checkpoints of a builder ---------------------------------------------------------------------

PATIENT = """\
name: patient
question: Does a stage go on where it was killed?
method: tests.methods.patient
data: {name: tests.methods.labels, root: labels, make: {items: 8}}
seeds: [1]
arms: {one: {branch: {grid: [0, 1]}}}
resources: {gpus: 0, cpus: 1}
report: {metrics: [auroc]}
"""


def patient(home: Path, branch: int, interval_s: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Run one trial of a stage in steps in a process of its own, which DIES_AT may end."""
    code = f"""
import sys
from pathlib import Path
from hdsweep.cli_plan import ready
from hdsweep.execute import Job, origin_of, run_trial
from hdsweep.store import Store
made = ready(Path("patient.yaml"), Path("results"), print)
store = made.store
trial = made.plan.cells[{branch}].trials[0]
job = Job(trial, "one", 0.0, 1)
store.create()
record = run_trial(job, store, origin_of(job), capture=True, checkpoint_interval_s={interval_s})
assert record.status == "ok", record.error
print(record.scalars)
"""
    (home / "patient.yaml").write_text(PATIENT)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env={**os.environ, "STEPS_TAKEN": str(home / "taken")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stage_goes_on_from_the_checkpoint_of_a_builder_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdsweep: Run
) -> None:
    monkeypatch.setenv("DIES_AT", "3")
    assert patient(tmp_path, 0).returncode == -signal.SIGKILL
    left = list((tmp_path / "results").glob("stages/steps/.*-checkpoint"))
    assert len(left) == 1
    monkeypatch.delenv("DIES_AT")
    done = patient(tmp_path, 1)  # another trial is the next to ask
    assert done.returncode == 0, done.stderr
    assert "'steps': 5.0" in done.stdout
    assert "'resumed': 0.0" in done.stdout  # the trial itself has no checkpoint
    assert (tmp_path / "taken").read_text().split() == ["1", "2", "3", "4", "5"]
    assert not left[0].exists()
    assert not list((tmp_path / "results").glob("trials/*/*/checkpoint"))


def test_checkpoints_of_a_builder_count_as_leftovers_once_nobody_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdsweep: Run
) -> None:
    monkeypatch.setenv("DIES_AT", "2")
    assert patient(tmp_path, 0).returncode == -signal.SIGKILL
    root = tmp_path / "results"
    (left,) = root.glob("stages/steps/.*-checkpoint")
    holder = lease.Lease(left.with_name(left.name[1:].removesuffix("-checkpoint")))
    while not holder.take():  # as one who goes on with it does
        time.sleep(0.05)
    assert left not in cache.leftovers(root)
    cache.remove_leftovers(root)
    assert left.exists()
    holder.release()
    assert left in cache.leftovers(root)
    assert cache.strangers(root) == []
    assert hdsweep("cache", "trim", "1GB").returncode == 0
    assert not left.exists()


def test_checkpoints_of_builders_that_were_killed_are_listed_and_trimmed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdsweep: Run
) -> None:
    for step in ("2", "4"):
        monkeypatch.setenv("DIES_AT", step)
        assert patient(tmp_path, 0).returncode == -signal.SIGKILL
    home = tmp_path / "results/stages/steps"
    (left,) = home.glob(".*-checkpoint")
    assert [path.name for path in left.iterdir()] == ["000000004"]
    assert (tmp_path / "taken").read_text().split() == ["1", "2", "3", "4"]
    listed = json.loads(hdsweep("cache", "list", "--format", "json").stdout)["leftovers"]
    assert listed["count"] == 2  # with the half built stage
    assert listed["size_bytes"] >= len("[1, 2, 3, 4]")
    assert hdsweep("cache", "trim", "1GB").returncode == 0
    assert list(home.iterdir()) == []


def test_checkpoints_of_other_data_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named by the data as planned, and these may come back."""
    monkeypatch.setenv("SPOILS_AT", "2")
    done = patient(tmp_path, 0)
    assert "DataChanged" in done.stderr
    (tmp_path / "labels/x/000.txt").write_text("x 0 0\n")  # as before
    monkeypatch.delenv("SPOILS_AT")
    assert patient(tmp_path, 0).returncode == 0
    assert (tmp_path / "taken").read_text().split() == [*"12345", *"12345"]


def test_who_shares_a_store_may_read_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT", "2")
    before = os.umask(0o027)
    try:
        patient(tmp_path, 0)
    finally:
        os.umask(before)
    (whole,) = (tmp_path / "results").glob("stages/steps/.*-checkpoint/000000002")
    assert oct(whole.stat().st_mode)[-3:] == "750"


def test_a_builder_whose_checkpoints_another_took_away_takes_its_stage(tmp_path: Path) -> None:
    """The other had lost the lease without noticing, and was faster."""

    def build(folder: Path) -> None:
        progress = stages.progress_of(tmp_path / "stages/thing" / KEY)
        progress.mkdir()
        (tmp_path / "stages/thing" / KEY).mkdir()
        (tmp_path / "stages/thing" / KEY / "stage.json").touch()
        shutil.rmtree(progress)
        tempfile.mkdtemp(dir=progress)

    folder, held = obtain(tmp_path, build)
    stages.let_go(held)
    assert [path.name for path in folder.iterdir()] == ["stage.json"]
    assert home(tmp_path) == [KEY]


def test_two_builders_may_keep_a_checkpoint_of_one_step(tmp_path: Path) -> None:
    """One has lost the lease without noticing; what both keep is the same."""
    trial = Trial("0" * 20, "any", 1, {}, "tests.methods.labels", {}, "f" * 20, 1, {})
    store = Store(tmp_path)
    store.trial_dir(trial.id).mkdir(parents=True)
    log = logging.getLogger("tests")
    one, other = (
        Context(trial, 1, store, "cpu", tmp_path, log, checkpoint_interval_s=0) for _ in range(2)
    )

    def save(folder: Path) -> None:
        (folder / "state").write_text("three")
        if not saved:
            saved.append(folder)
            other.checkpoint(3, save)

    saved: list[Path] = []
    one.checkpoint(3, save)
    found = other.resume()
    assert found is not None
    assert (found / "state").read_text() == "three"
    assert len(list(found.parent.iterdir())) == 1
    other.close()


def test_data_that_are_read_in_another_way_have_stages_of_their_own() -> None:
    """A tile of 64 pixels at half the scale has the name and the file of one of 128 pixels."""

    def key(**params: object) -> str:
        content = {"name": "slides", "params": params, "content": "f" * 64}
        data = "tests.methods.labels"
        trial = Trial("0" * 20, "any", 1, {}, data, {}, "f" * 64, 1, {"data": content})
        return key_of(THING, trial)

    assert key(tile=128, downsample=1) != key(tile=64, downsample=2)
    assert key(tile=128, downsample=1) == key(downsample=1, tile=128)
