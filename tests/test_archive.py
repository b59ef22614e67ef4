"""An archive brings finished trials whole to another store, and a hostile one brings nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdsweep.archive import save
from hdsweep.doctor import examine
from hdsweep.errors import StoreError
from hdsweep.method import Predictions
from hdsweep.packed import MANIFEST
from hdsweep.store import Store
from hdsweep.trial import TrialRecord
from hdsweep.unpack import load
from tests.conftest import SWEEP, Invoke, records
from tests.recording import record

Write = Callable[..., Path]

CURVES = """\
name: curves
method: tests.methods.curves
data: {name: tests.methods.labels, root: labels}
seeds: [1, 2]
arms:
  one: {lr: {grid: [0.1, 0.2]}}
report: {metrics: [auroc]}
"""


LABELS, SCORES = np.array([False, True]), np.array([0.25, 0.5])


@pytest.fixture
def there(tmp_path: Path, sweep_file: Write) -> Store:
    """A store with four finished trials and all kinds of files."""
    record(sweep_file(CURVES), tmp_path / "there")
    store = Store(tmp_path / "there")
    for trial_id in store.finished():
        folder = store.trial_dir(trial_id)
        store.put_predictions(trial_id, Predictions(("a", "b"), ("x", "x"), LABELS, SCORES))
        (folder / "log.txt").write_text("ran\n")
        (folder / "artifacts/maps").mkdir(parents=True)
        (folder / "artifacts/maps/a b.jsonl").write_text("no line end")
        (folder / "checkpoint/000000001").mkdir(parents=True)
        (folder / "checkpoint/000000001/state").write_bytes(b"x")
    (store.root / "stages/tokens").mkdir(parents=True)
    return store


def files(store: Path) -> dict[str, bytes]:
    """Path -> content of all that is kept of trials and sweeps."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and "tensorboard" not in path.parts
    }


def below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz", "all.tgz"])
def test_a_store_comes_back_from_an_archive_without_what_no_report_needs(
    there: Store, tmp_path: Path, name: str
) -> None:
    saved = save(there, tmp_path / name)
    assert (len(saved.trials), saved.sweeps, saved.left_out) == (4, ("curves",), {})
    assert saved.size_bytes == (tmp_path / name).stat().st_size
    loaded = load(Store(tmp_path / "here"), tmp_path / name)
    assert set(loaded.added) == set(saved.trials)
    assert loaded.sweeps == ("curves",)
    wanted = {p: c for p, c in files(there.root).items() if "checkpoint" not in p}
    assert files(tmp_path / "here") == wanted
    assert any(path.endswith("a b.jsonl") for path in wanted)


def test_the_same_records_give_the_same_bytes(there: Store, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar", "a.tar.gz", "b.tar.gz"):
        save(there, tmp_path / name)
        for path in there.root.rglob("log.txt"):
            os.utime(path, (1, 1))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_the_same_archive_again_changes_nothing(there: Store, tmp_path: Path) -> None:
    save(there, tmp_path / "all.tar")
    here = Store(tmp_path / "here")
    load(here, tmp_path / "all.tar")
    before = {p: p.stat().st_mtime_ns for p in here.root.rglob("*") if p.is_file()}
    again = load(here, tmp_path / "all.tar")
    assert (again.added, again.present, again.sweeps, again.left) == ((), 4, (), {})
    assert {p: p.stat().st_mtime_ns for p in here.root.rglob("*") if p.is_file()} == before


def test_a_sweep_is_packed_with_its_trials_only(
    there: Store, tmp_path: Path, sweep_file: Write
) -> None:
    other = CURVES.replace("name: curves", "name: other").replace("[0.1, 0.2]", "[0.2, 0.3]")
    record(sweep_file(other, "other.yaml"), there.root)
    saved = save(there, tmp_path / "other.tar", ["other"])
    assert (len(saved.trials), saved.sweeps) == (4, ("other",))
    here = Store(tmp_path / "here")
    load(here, tmp_path / "other.tar")
    assert here.sweeps() == ["other"]
    assert set(here.finished()) == set(here.sweep("other").labels())
    with pytest.raises(StoreError, match="no sweep 'othr'; did you mean 'other'"):
        save(there, tmp_path / "none.tar", ["othr"])
    assert not (tmp_path / "none.tar").exists()


def test_predictions_that_were_left_out_can_be_added_later(there: Store, tmp_path: Path) -> None:
    small = save(there, tmp_path / "small.tgz", predictions=False)
    full = save(there, tmp_path / "full.tgz")
    assert small.size_bytes < full.size_bytes
    here = Store(tmp_path / "here")
    load(here, tmp_path / "small.tgz")
    assert not list(here.root.glob("trials/*/*/predictions.parquet"))
    loaded = load(here, tmp_path / "full.tgz")
    assert (len(loaded.completed), loaded.present, loaded.left) == (4, 0, {})
    assert len(list(here.root.glob("trials/*/*/predictions.parquet"))) == 4


def change(store: Store, trial_id: str, **fields: Any) -> None:
    """Write another record in the place of one."""
    path = store.trial_dir(trial_id) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def test_what_is_ok_here_and_says_otherwise_is_named_and_left(there: Store, tmp_path: Path) -> None:
    save(there, tmp_path / "all.tar")
    here = Store(tmp_path / "here")
    load(here, tmp_path / "all.tar")
    first, second, third, fourth = sorted(here.finished())
    change(here, first, metrics={"auroc": {"x": 0.25, "y": 0.5}})
    change(here, second, wall_s=1e6)
    change(here, third, status="failed", metrics={})
    (here.trial_dir(fourth) / "record.json").write_text("{")
    (here.root / "sweeps/curves/sweep.yaml").write_text("other: file\n")
    kept = records(here.root)
    loaded = load(here, tmp_path / "all.tar")
    assert loaded.replaced == (third,)
    assert (loaded.added, loaded.present) == ((), 0)
    assert loaded.left.keys() == {first, second, fourth, "sweep curves"}
    assert "auroc of x is 0.25 here" in loaded.left[first]
    assert loaded.left[second] == "was run here too, with the same metrics"
    assert "doctor" in loaded.left[fourth]
    after = records(here.root)
    assert {i: after[i] for i in (first, second, fourth)} == {
        i: kept[i] for i in (first, second, fourth)
    }
    assert after[third] == records(there.root)[third]
    earlier = here.trial_dir(third) / "earlier/0/record.json"
    assert earlier.read_bytes() == kept[third]


def test_trials_that_are_running_or_unfinished_are_left_out(there: Store, tmp_path: Path) -> None:
    running, unfinished, link, good = sorted(there.finished())
    (there.trial_dir(unfinished) / "record.json").unlink()
    home = there.trial_dir(link)
    shutil.move(home, tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with there.running(running):
        saved = save(there, tmp_path / "some.tar")
    assert saved.trials == (good,)
    assert saved.left_out[running] == "is being run"
    assert "link" in saved.left_out[link]
    with there.running(running):
        named = save(there, tmp_path / "named.tar", ["curves"])
    assert named.left_out[unfinished] == "has not finished"


def test_nothing_beyond_a_link_is_packed(there: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    first = min(there.finished())
    (there.trial_dir(first) / "artifacts/maps/link").symlink_to(secret)
    (there.trial_dir(first) / "artifacts/folder").symlink_to(tmp_path)
    os.mkfifo(there.trial_dir(first) / "artifacts/pipe")
    saved = save(there, tmp_path / "all.tar")
    assert b"hunter2" not in (tmp_path / "all.tar").read_bytes()
    assert any(path.endswith("maps/link") for path in saved.left_out)
    assert any(path.endswith("artifacts/pipe") for path in saved.left_out)
    assert len(saved.trials) == 4


def test_a_failed_archive_leaves_the_old_one(there: Store, tmp_path: Path) -> None:
    (tmp_path / "all.tar").write_bytes(b"old")
    with pytest.raises(StoreError, match="nothing to pack"):
        save(Store(tmp_path / "empty"), tmp_path / "all.tar")
    with pytest.raises(StoreError, match="cannot be written"):
        save(there, tmp_path / "nowhere/all.tar")
    assert (tmp_path / "all.tar").read_bytes() == b"old"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".all")]


def test_a_trial_that_runs_here_is_not_taken_over(there: Store, tmp_path: Path) -> None:
    save(there, tmp_path / "all.tar")
    here, first = Store(tmp_path / "here"), min(there.finished())
    here.create()
    with here.running(first):
        loaded = load(here, tmp_path / "all.tar")
    assert loaded.left == {first: "is being run here now"}
    assert len(loaded.added) == 3
    assert load(here, tmp_path / "all.tar").added == (first,)


def test_what_an_unfinished_attempt_left_gives_way_to_a_finished_trial(
    there: Store, tmp_path: Path
) -> None:
    save(there, tmp_path / "all.tar", predictions=False)
    here, first = Store(tmp_path / "here"), min(there.finished())
    here.create()
    folder = here.trial_dir(first)
    (folder / "checkpoint/000000007").mkdir(parents=True)
    (folder / "predictions.parquet").write_bytes(b"half")
    (folder / "curve.jsonl").write_text('{"step": 1}\n')
    load(here, tmp_path / "all.tar")
    assert not (folder / "checkpoint").exists()
    assert not (folder / "predictions.parquet").exists()
    own = (folder / "curve.jsonl").read_bytes()
    assert own == (there.trial_dir(first) / "curve.jsonl").read_bytes()


def load_and_die(root: Path, archive: Path, moves: int) -> bool:
    """Take over an archive in a process that is killed after some moves; whether it was."""
    child = os.fork()
    if child == 0:
        left = moves

        def dying(move: Callable[..., None]) -> Callable[..., None]:
            def moved(*arguments: Any, **named: Any) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                move(*arguments, **named)

            return moved

        os.replace, os.rename = dying(os.replace), dying(os.rename)
        try:
            load(Store(root), archive)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_an_import_that_is_killed_anywhere_leaves_whole_trials_and_is_done_again(
    there: Store, tmp_path: Path
) -> None:
    save(there, tmp_path / "all.tar")
    wanted = {p: c for p, c in files(there.root).items() if "checkpoint" not in p}
    own, moves = records(there.root), 0
    while load_and_die(tmp_path / f"here{moves}", tmp_path / "all.tar", moves):
        here = Store(tmp_path / f"here{moves}")
        finished = records(here.root)
        assert finished.items() <= own.items()
        for trial_id in finished:  # a trial with a record has all of its files
            home = here.trial_dir(trial_id).relative_to(here.root).as_posix()
            of_it = {p: c for p, c in wanted.items() if p.startswith(home)}
            assert of_it == {p: c for p, c in files(here.root).items() if p.startswith(home)}
        if here.sweeps():
            assert here.sweep("curves").labels().keys() == own.keys()
        assert [one for one in examine(here) if one.level != "leftover"] == []
        assert all(one.mended for one in examine(here, repair=True))
        load(here, tmp_path / "all.tar")
        assert files(here.root) == wanted
        moves += 1
    assert moves > 15  # each file of four trials and of a sweep


# --- hostile archives -----------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def unpacked(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        found = []
        for member in tar:
            opened = tar.extractfile(member)
            found.append((member, opened.read() if opened else b""))
    return found


def pack(path: Path, members: list[Member], *, manifest: bool = True) -> None:
    """Write an archive; with ``manifest`` one that tells its members truly."""
    if manifest:
        files = [
            {"path": m.name, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()}
            for m, c in members
            if m.name != MANIFEST
        ]
        content = json.dumps({"format": 1, "files": files}).encode()
        members = [
            (tarfile.TarInfo(MANIFEST), content),
            *(m for m in members if m[0].name != MANIFEST),
        ]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def plain(name: str, content: bytes = b"x") -> Member:
    return tarfile.TarInfo(name), content


def special(name: str, kind: bytes, target: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


ID = "ab" + "0" * 18
HOME = f"trials/ab/{ID}"


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "/etc/evil", f"{HOME}/artifacts/../../../../../evil", f"{HOME}/artifacts/./x",
        f"{HOME}/artifacts//x", f"{HOME}/artifacts/..", f"{HOME}/artifacts/a\nb",
        f"{HOME}/artifacts/a\\b", f"{HOME}/artifacts/\x1b[31m", f"{HOME}/artifacts/{'x' * 300}",
        f"{HOME}/artifacts/" + "/".join(["x" * 100] * 20), f"{HOME}/.lock", f"{HOME}/record.json/x",
        f"{HOME}/checkpoint/1/state", f"{HOME}/tensorboard/events", f"trials/cd/{ID}/log.txt",
        f"trials/ab/{ID}\n/log.txt", "sweeps/../x/plan.json", "sweeps/.x/plan.json",
        "sweeps/x/driver.json", "sweeps/x/rungs/../../../plan.jsonl", "store.json",
        "stages/tokens/0/stage.json", f"{HOME}/earlier/x/record.json", "",
    ],
)  # fmt: skip
def test_a_path_that_is_not_of_a_store_refuses_the_whole_archive(
    there: Store, tmp_path: Path, name: str
) -> None:
    save(there, tmp_path / "all.tar")
    refused(tmp_path, [*unpacked(tmp_path / "all.tar"), plain(name)])


def refused(tmp_path: Path, members: list[Member], *, manifest: bool = True) -> str:
    """The message with which an archive is refused; nothing was written, here or anywhere."""
    pack(tmp_path / "evil.tar", members, manifest=manifest)
    (tmp_path / "home/in/deep").mkdir(parents=True)
    before = below(tmp_path)
    with pytest.raises(StoreError) as error:
        load(Store(tmp_path / "home/in/deep/here"), tmp_path / "evil.tar")
    assert below(tmp_path) == before
    text = str(error.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "../../../../x"),
        (tarfile.LNKTYPE, MANIFEST), (tarfile.CHRTYPE, ""), (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""), (tarfile.DIRTYPE, ""), (tarfile.CONTTYPE, ""), (b"Z", ""),
    ],
)  # fmt: skip
def test_links_devices_and_folders_are_refused(
    there: Store, tmp_path: Path, kind: bytes, target: str
) -> None:
    save(there, tmp_path / "all.tar")
    members = [
        special(m.name, kind, target) if m.name.endswith("log.txt") else (m, c)
        for m, c in unpacked(tmp_path / "all.tar")
    ]
    refused(tmp_path, members)  # the manifest tells them as empty files
    shutil.rmtree(tmp_path / "home")
    refused(tmp_path, members, manifest=False)  # and as the files that they stand for


def edited(members: list[Member], **edits: Any) -> list[Member]:
    value = json.loads(members[0][1])
    for key, edit in edits.items():
        value[key] = edit(value[key])
    return [(tarfile.TarInfo(MANIFEST), json.dumps(value).encode()), *members[1:]]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m[:-1],
        lambda m: [*m, m[-1]],
        lambda m: [*m, plain("README")],
        lambda m: m[1:],
        lambda m: [m[0], m[2], m[1], *m[3:]],
        lambda m: [m[0], (m[1][0], m[1][1][::-1]), *m[2:]],
        lambda m: [(m[0][0], b"{"), *m[1:]],
        lambda m: [(m[0][0], b"[" * 100_000), *m[1:]],
        lambda m: [(m[0][0], b"\xff"), *m[1:]],
        lambda m: [(m[0][0], b"null"), *m[1:]],
        lambda m: edited(m, files=lambda f: [{**f[0], "size": -1}, *f[1:]]),
        lambda m: edited(m, files=lambda f: [{**f[0], "size": True}, *f[1:]]),
        lambda m: edited(m, files=lambda f: [{**f[0], "size": 1 << 60}, *f[1:]]),
        lambda m: edited(m, files=lambda f: [{**f[0], "sha256": 3}, *f[1:]]),
        lambda m: edited(m, files=lambda f: [{**f[0], "path": None}, *f[1:]]),
        lambda m: edited(m, files=lambda f: [*f, f[0]]),
        lambda m: edited(m, files=lambda f: {}),
        lambda m: edited(m, format=lambda _: 99),
        lambda m: edited(m, format=lambda _: "1"),
    ],
)
def test_an_archive_that_is_not_what_its_manifest_tells_is_refused(
    there: Store, tmp_path: Path, edit: Callable[[list[Member]], list[Member]]
) -> None:
    save(there, tmp_path / "all.tar")
    refused(tmp_path, edit(unpacked(tmp_path / "all.tar")), manifest=False)


def swapped(members: list[Member], end: str, edit: Callable[[bytes], bytes]) -> list[Member]:
    place = next(n for n, (m, _) in enumerate(members) if m.name.endswith(end))
    return [(m, edit(c) if n == place else c) for n, (m, c) in enumerate(members)]


@pytest.mark.parametrize(
    ("end", "edit", "said"),
    [
        ("record.json", lambda c: c[:-20], "not a trial record"),
        ("record.json", lambda c: c.replace(b'"seed": 1', b'"seed": 7'), "is of trial"),
        (
            "record.json",
            lambda c: c.replace(b'"identity": {', b'"identity": {"x": 1,'),
            "is of tri",
        ),
        ("plan.json", lambda c: c.replace(b'"name": "curves"', b'"name": "../x"'), "another sweep"),
        ("plan.json", lambda c: b"{}", "not a plan"),
        ("plan.json", lambda c: c.replace(b'"1": "', b'"1": "../'), "is not a trial id"),
    ],
)
def test_what_is_true_to_its_checksum_and_no_record_or_plan_is_refused(
    there: Store, tmp_path: Path, end: str, edit: Callable[[bytes], bytes], said: str
) -> None:
    save(there, tmp_path / "all.tar")
    members = swapped(unpacked(tmp_path / "all.tar"), end, edit)
    assert said in refused(tmp_path, members)


def test_a_trial_without_its_record_is_refused(there: Store, tmp_path: Path) -> None:
    save(there, tmp_path / "all.tar")
    members = unpacked(tmp_path / "all.tar")
    first = next(m.name for m, _ in members if m.name.endswith("record.json"))
    assert "without its record" in refused(tmp_path, [m for m in members if m[0].name != first])


def damaged(content: bytes) -> Iterator[bytes]:
    """Cut and flipped at places all over."""
    step = max(1, len(content) // 30)
    for place in range(0, len(content), step):
        yield content[:place]
        yield content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz"])
def test_damage_anywhere_is_noticed_before_anything_is_written(
    there: Store, tmp_path: Path, name: str
) -> None:
    save(there, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    here = tmp_path / "here"
    taken = 0
    for content in damaged(whole):
        (tmp_path / name).write_bytes(content)
        try:
            load(Store(here), tmp_path / name)
        except StoreError:
            assert not here.exists()
        else:  # in a byte that says nothing: of the padding, or of the owner
            expected = {p: c for p, c in files(there.root).items() if "checkpoint" not in p}
            assert files(here) == expected
            shutil.rmtree(here)
            taken += 1
    assert taken < 30  # of 60: a third of such small files is padding


def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", 1) as file:
        member = tarfile.TarInfo("./@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):  # a tenth would do: it is to be refused by what its header says
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="far too long"):
            load(Store(tmp_path / "here"), bomb)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "here").exists()


def test_more_than_fits_is_refused_before_it_is_unpacked(
    there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(there, tmp_path / "all.tar")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(StoreError, match="make room"):
        load(Store(tmp_path / "here"), tmp_path / "all.tar")
    assert below(tmp_path / "here") == {"store.json"}


def test_members_that_no_manifest_could_name_are_no_archive(tmp_path: Path) -> None:
    for content in (b"", b"x" * 2000, b"\x1f\x8b", b"\x1f\x8bxxxxxxxxxxxxxxxxxx", bytes(1024)):
        (tmp_path / "evil.tar").write_bytes(content)
        with pytest.raises(StoreError, match="not an archive of a store"):
            load(Store(tmp_path / "here"), tmp_path / "evil.tar")
    with pytest.raises(StoreError, match="no such file"):
        load(Store(tmp_path / "here"), tmp_path / "none.tar")


# --- the command line -----------------------------------------------------------------------------


def test_a_sweep_that_ran_elsewhere_is_reported_here_as_there(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    invoke("run", sweep_file(), "--inline")
    _, there, _ = invoke("report", "--format", "json")
    status, _, err = invoke("export", "archive", "noise.tar.gz", "--sweep", "noise")
    assert status == 0, err
    assert "6 trials, 1 sweep" in err
    status, _, err = invoke("import", "noise.tar.gz", "--store", "here")
    assert status == 0, err
    assert "trials: 6 added" in err
    status, here, err = invoke("report", "noise", "--store", "here", "--format", "json")
    assert status == 0, err
    assert json.loads(here.replace("/here", "/results")) == json.loads(there)
    _, out, _ = invoke("plan", "noise.yaml", "--store", "here", "--format", "json")
    assert json.loads(out)["counts"]["cached"] == 6
    records(tmp_path / "here")
    first = min(Store(tmp_path / "here").finished())
    record = Store(tmp_path / "here").record(first)
    assert isinstance(record, TrialRecord)
    change(Store(tmp_path / "here"), first, metrics={})
    status, _, err = invoke("import", "noise.tar.gz", "--store", "here")
    assert status == 1
    assert f"left as it is here: {first}" in err
    assert SWEEP.startswith("name: noise")


def test_what_is_not_an_archive_is_told_from_a_table(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "evil.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    status, _, err = invoke("import", "evil.tar")
    assert status == 2
    assert "not an archive of a store" in err
    (tmp_path / "rows.csv").write_text("seed,auroc\n1,0.5\n")
    status, _, err = invoke("import", "rows.csv")
    assert (status, "--sweep NAME" in err) == (2, True)
    assert not (tmp_path / "results").exists()
