"""The cache as a whole: what is listed, what goes and what stays."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from hdsweep import cache, stages
from hdsweep.cli_cache import _bytes
from hdsweep.errors import SpecError
from hdsweep.method import Stage
from hdsweep.store import Store
from tests.conftest import SWEEP, Run, read, records


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store without trials."""
    Store(tmp_path / "results").create()
    return tmp_path / "results"


def make(
    root: Path, name: str, size: int, used: float, inputs: Mapping[str, object] | None = None
) -> Path:
    """A stage of so many bytes that was used so many seconds ago."""
    stage = Stage(name, 1, inputs or {"size": size}, __name__)
    key = stages.stage_key(stage, "data", "source")

    def build(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(size))

    folder, held = stages.obtain(root, stage, key, build)
    stages.let_go(held)
    then = time.time() - used
    os.utime(folder / "stage.json", (then, then))
    return folder


def names(root: Path) -> list[str]:
    return [f"{one.name} {one.size_bytes // 1000}" for one in cache.kept(root)]


@contextlib.contextmanager
def used_elsewhere(folder: Path) -> Iterator[None]:
    """A running process has the stage."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom hdsweep import stages\n"
        "root, name, key = Path(sys.argv[1]), *sys.argv[2:]\n"
        "stages.obtain(root, stages.Stage(name, 1, {}, 'tests'), key, None)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    place = [folder.parent.parent.parent, folder.parent.name, folder.name]
    with subprocess.Popen(
        [sys.executable, "-c", script, *place],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


def leave_half(root: Path) -> Path:
    """A process is killed while it builds."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom hdsweep import stages\n"
        "def build(folder):\n"
        "    (folder / 'half').write_bytes(bytes(5000))\n"
        "    print('half', flush=True)\n    time.sleep(3600)\n"
        "stages.obtain(Path(sys.argv[1]), stages.Stage('half', 1, {}, 'tests'), 'e' * 20, build)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    return root / "stages/half"


# --- list -----------------------------------------------------------------------------------------


def test_the_list_shows_what_is_there_and_what_tells_it_apart(hdsweep: Run, root: Path) -> None:
    encoder = {"encoder": "vit_tiny", "weights": "f" * 64, "crop": [1, 2], "seed": 0}
    make(root, "features", 3000, 7200, {**encoder, "group": "A", "split": "train"})
    make(root, "features", 4000, 90, {**encoder, "group": "B", "split": "train"})
    bank = {"features": [{**encoder, "group": g} for g in "AB"], "percent": 2.5}
    folder = make(root, "bank", 1_500_000, 0, bank)
    done = hdsweep("cache", "list")
    assert done.returncode == 0, done.stderr
    head, *lines, total = done.stdout.splitlines()
    assert head.split() == ["stage", "key", "size", "built", "in", "used", "made", "from"]
    first, second, third = (line.split() for line in lines)
    assert first[:4] == ["bank", folder.name[:8], "1.5MB", "0.0"]
    assert "just now" in lines[0]
    assert {"encoder=vit_tiny", "group=A,B", "percent=2.5"} <= set(first)
    assert second[0] == "features"
    assert re.fullmatch(r"4\.\dKB", second[2])  # the note is counted, too
    assert "1 minute ago" in lines[1]
    assert second[second.index("ago") + 1] == "group=B"  # what tells it apart comes first
    assert "split=train" in second
    assert "2 hours ago" in lines[2]
    assert "group=A" in third
    assert "f" * 16 not in done.stdout
    assert total == "3 stages, 1.5MB"


def test_the_list_for_scripts_has_everything(hdsweep: Run, root: Path) -> None:
    folder = make(root, "features", 3000, 60, {"group": "A", "crop": [1, 2]})
    found = read(hdsweep("cache", "list", "--store", root, "--format", "json"))
    (stage,) = found["stages"]
    assert stage["key"] == folder.name
    assert stage["folder"] == str(folder)
    assert stage["inputs"] == {"group": "A", "crop": [1, 2]}
    assert stage["size_bytes"] == found["size_bytes"] > 3000
    assert found["leftovers"] == {"count": 0, "size_bytes": 0}


def test_a_line_is_cut_to_the_terminals_width(hdsweep: Run, root: Path, tmp_path: Path) -> None:
    make(root, "features", 3000, 60, {f"knob{n}": n for n in range(50)})
    assert "knob49=49" in hdsweep("cache", "list").stdout  # into a pipe, all
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "cache", "list"],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "80", "TERM": "dumb"}, stdout=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(ours, 65536):
                told += piece
        assert process.wait() == 0
    os.close(ours)
    _, line, total = told.decode().splitlines()
    assert len(line) <= 80
    assert "knob0=0" in line
    assert total.startswith("1 stage,")


def test_an_empty_store_has_an_empty_list(hdsweep: Run, root: Path) -> None:
    assert hdsweep("cache", "list").stdout == "0 stages, 0B\n"
    assert hdsweep("cache", "trim", "0").returncode == 0
    assert hdsweep("cache", "remove", "--all").returncode == 0


@pytest.mark.parametrize("command", [["list"], ["trim", "0"], ["remove", "--all"]])
def test_without_a_store_there_is_one_message(
    command: list[str], hdsweep: Run, tmp_path: Path
) -> None:
    done = hdsweep("cache", *command)
    assert done.returncode == 2
    assert done.stderr == "error: results: no store is here; name another --store\n"
    (tmp_path / "results/stages/thing").mkdir(parents=True)
    (tmp_path / "results/mine").touch()
    done = hdsweep("cache", *command)
    assert done.returncode == 2
    assert "not a hdsweep store" in done.stderr


@pytest.mark.parametrize(
    "note", [b"", b"[]", b"{}", b"\xff", b'{"inputs": 3}', b"[" * 100_000, b"\x00" * 10]
)
def test_a_damaged_note_is_no_reason_to_fail(note: bytes, root: Path) -> None:
    folder = make(root, "features", 3000, 60)
    (folder / "stage.json").write_bytes(note)
    (one,) = cache.kept(root)
    assert one.inputs is None
    assert one.size_bytes == 3000 + len(note)


def test_a_stage_with_a_damaged_note_is_listed_and_can_be_removed(hdsweep: Run, root: Path) -> None:
    folder = make(root, "features", 3000, 60)
    (folder / "stage.json").write_bytes(b"{")
    done = hdsweep("cache", "list")
    assert done.returncode == 0, done.stderr
    assert "damaged note" in done.stdout
    assert hdsweep("cache", "remove", folder.name[:4]).returncode == 0
    assert not folder.exists()


def test_what_is_foreign_is_named_and_left_alone(hdsweep: Run, root: Path, tmp_path: Path) -> None:
    folder = make(root, "features", 3000, 60)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("stage.json", "precious"):
        (outside / name).write_text("{}")
    strange = [
        root / "stages/notes.txt",
        root / "stages/features/mine",
        root / "stages/features" / ("a" * 20),  # without a note
        root / "stages/features/.mine-ab",
        root / "stages/features" / ("b" * 20),
        root / "stages/linked",
    ]
    strange[0].touch()
    for path in strange[1:4]:
        path.mkdir()
        (path / "x").touch()
    strange[4].symlink_to(outside)
    strange[5].symlink_to(outside.parent)
    hidden = root / "stages/features" / f".{'c' * 20}-link"
    hidden.symlink_to(outside)
    done = hdsweep("cache", "list")
    assert done.returncode == 0, done.stderr
    assert [path for path in strange if f"{path}: is no stage" not in done.stdout] == []
    assert hdsweep("cache", "trim", "0").returncode == 0
    assert hdsweep("cache", "remove", "--all").returncode == 0
    assert not folder.exists()
    assert [path for path in strange if not os.path.lexists(path)] == []
    assert sorted(p.name for p in outside.iterdir()) == ["precious", "stage.json"]


def test_what_a_note_says_cannot_command_a_terminal(hdsweep: Run, root: Path) -> None:
    make(root, "features", 3000, 60, {"group": "\x1b[2J\x07[bold]"})
    shown = hdsweep("cache", "list").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"group=\x1b[2J\x07[bold]" in shown


# --- trim -----------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(hdsweep: Run, root: Path) -> None:
    for size, used in ((30_000, 10), (10_000, 30), (20_000, 20)):
        make(root, "a", size, used)
    done = hdsweep("cache", "trim", "55KB", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert names(root) == ["a 30", "a 20", "a 10"]
    assert done.stdout.count("would remove a ") == 1
    assert re.search(r"a \w{8}, 10\.\dKB", done.stdout)
    done = hdsweep("cache", "trim", "55KB")
    assert done.returncode == 0, done.stderr
    assert "removed a " in done.stdout
    assert re.search(r"50\.\dKB are left", done.stdout)
    assert names(root) == ["a 30", "a 20"]
    assert hdsweep("cache", "trim", "1GiB").stdout.startswith("nothing to remove")
    assert hdsweep("cache", "trim", "0").returncode == 0
    assert names(root) == []


def test_asking_for_a_stage_is_using_it(root: Path) -> None:
    make(root, "a", 10_000, 300)
    make(root, "a", 20_000, 200)
    assert names(root) == ["a 20", "a 10"]
    stage = Stage("a", 1, {"size": 10_000}, __name__)
    key = stages.stage_key(stage, "data", "source")
    stages.let_go(stages.obtain(root, stage, key, lambda _: None)[1])
    assert names(root) == ["a 10", "a 20"]


@pytest.mark.parametrize(
    "size", ["", "ten", "10XB", "-5", "1e3", "10GB x", "5 5", "1.2.3", "nan", "٣GB"]
)
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(SpecError, match=r"is not a size; write one as in 10GB"):
        _bytes(size)


def test_a_size_that_is_none_removes_nothing(hdsweep: Run, root: Path) -> None:
    make(root, "a", 10_000, 30)
    done = hdsweep("cache", "trim", "1.2.3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: '1.2.3' is not a size")
    assert names(root) == ["a 10"]


def test_sizes_are_written_as_people_do() -> None:
    for text in ("1.5KB", "1500", "1500B", " 1.5 kb", "0.0000015GB"):
        assert _bytes(text) == 1500
    assert (_bytes("2KiB"), _bytes("0"), _bytes("10GB")) == (2048, 0, 10**10)


def test_what_a_running_process_uses_stays(hdsweep: Run, root: Path) -> None:
    used = make(root, "a", 10_000, 300)
    free = make(root, "a", 20_000, 30)
    with used_elsewhere(used):
        for command in (["trim", "0", "--dry-run"], ["trim", "0"], ["remove", used.name]):
            done = hdsweep("cache", *command)
            assert done.returncode == 1, done.stderr
            assert re.search(f"in use a {used.name[:8]}, 10.*: stays", done.stdout)
        assert used.exists()
        assert not free.exists()
    assert hdsweep("cache", "trim", "0").returncode == 0
    assert not used.exists()


def test_what_killed_processes_left_is_counted_and_removed(hdsweep: Run, root: Path) -> None:
    make(root, "a", 10_000, 30)
    home = leave_half(root)
    assert len(list(home.iterdir())) == 2  # half a stage, and the lease
    listed = hdsweep("cache", "list").stdout
    assert "1 leftover of killed processes, 5.0KB" in listed
    left = read(hdsweep("cache", "list", "--format", "json"))["leftovers"]
    assert left["count"] == 1
    assert hdsweep("cache", "trim", "1GB", "--dry-run").returncode == 0
    assert len(list(home.iterdir())) == 2
    assert hdsweep("cache", "trim", "1GB").returncode == 0
    assert list(home.iterdir()) == []
    assert names(root) == ["a 10"]


def test_what_is_being_built_is_no_leftover(root: Path) -> None:
    seen = []

    def build(folder: Path) -> None:
        (folder / "first").touch()
        cache.trim(root, 0)
        seen.append(cache.leftovers(root))
        assert (folder / "first").exists()

    stage = Stage("a", 1, {}, __name__)
    folder, held = stages.obtain(root, stage, "d" * 20, build)
    stages.let_go(held)
    assert seen == [[]]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_folder_of_stages_that_is_a_link_is_not_trimmed(
    hdsweep: Run, root: Path, tmp_path: Path
) -> None:
    """It may be a larger disk's, and it may be another store's."""
    folder = make(root, "a", 10_000, 30)
    (root / "stages").rename(tmp_path / "elsewhere")
    (root / "stages").symlink_to(tmp_path / "elsewhere")
    assert "1 stage," in hdsweep("cache", "list").stdout
    for command in (["trim", "0"], ["remove", "--all"]):
        done = hdsweep("cache", *command)
        assert done.returncode == 2
        assert "is a link" in done.stderr
    assert folder.exists()


# --- remove ---------------------------------------------------------------------------------------


def test_stages_are_removed_by_key_and_by_name(hdsweep: Run, root: Path) -> None:
    one, two = make(root, "tokens", 1000, 1), make(root, "tokens", 2000, 2)
    three = make(root, "bank", 3000, 3)
    make(root, "encoder", 4000, 4)
    assert hdsweep("cache", "remove", one.name[:6], "--dry-run").returncode == 0
    assert one.exists()
    done = hdsweep("cache", "remove", one.name[:6])
    assert done.returncode == 0, done.stderr
    assert not one.exists()
    assert two.exists()
    assert hdsweep("cache", "remove", "tokens", three.name).returncode == 0
    assert names(root) == ["encoder 4"]
    assert hdsweep("cache", "remove", "--all").returncode == 0
    assert names(root) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tokns"], "did you mean 'tokens'?"),
        (["abc"], "no stage has the name 'abc' or a key that starts so"),
        ([], "or say --all"),
        (["tokens", "--all"], "or say --all"),
        (["tokens", "nothing"], "no stage has the name 'nothing'"),
        (["../tokens"], "no stage"),
        ([""], "no stage"),
    ],
)
def test_what_names_no_stage_removes_nothing(
    words: list[str], told: str, hdsweep: Run, root: Path
) -> None:
    folder = make(root, "tokens", 1000, 1)
    done = hdsweep("cache", "remove", *words)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert told in done.stderr
    assert folder.exists()


def test_a_key_that_two_stages_begin_with_is_not_enough(hdsweep: Run, root: Path) -> None:
    for digit in "12":
        stage = Stage("a", 1, {}, __name__)
        stages.let_go(stages.obtain(root, stage, f"{digit:a>20}", lambda _: None)[1])
    done = hdsweep("cache", "remove", "aaaa")
    assert done.returncode == 2
    assert "2 stages have such a key" in done.stderr
    assert len(cache.kept(root)) == 2


def test_a_removed_stage_is_built_anew_and_no_record_is_touched(
    hdsweep: Run, sweep_file: Callable[[str], Path], tmp_path: Path
) -> None:
    text = SWEEP.replace("noise", "counter").replace(
        "{strength: 0.5}\n  strong: {strength: {grid: [1, 2]}}", "{stage: true}"
    )
    file = sweep_file(text)
    store = tmp_path / "results"
    assert hdsweep("run", file, "--inline").returncode == 0
    before, (stage,) = records(store), cache.kept(store)
    assert len(before) == 2
    assert hdsweep("cache", "remove", "count").returncode == 0
    assert cache.kept(store) == []
    assert records(store) == before
    file.write_text(text.replace("[1, 2]", "[1, 2, 3]"))
    assert hdsweep("run", file, "--inline").returncode == 0
    (again,) = cache.kept(store)
    assert again.key == stage.key
    after = records(store)
    assert len(after) == 3
    assert before.items() <= after.items()
    note = json.loads((again.folder / "stage.json").read_bytes())
    assert note["name"] == "count"
