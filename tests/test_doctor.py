"""The doctor finds what is wrong with a store, and mends it without losing what has finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from hdsweep.doctor import Finding, examine, machine
from hdsweep.files import write_whole
from hdsweep.stages import Stage, folder_of, let_go, obtain
from hdsweep.store import Store
from tests.conftest import ROOT, SWEEP, Invoke, records
from tests.recording import record

Write = Callable[..., Path]
KEY = "0" * 20
TOKENS = Stage("tokens", 1, {"x": 1}, __name__)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of six finished trials of a sweep that ran, and a stage."""
    home = tmp_path_factory.mktemp("ran")
    (home / "noise.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml", "--inline"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True)
    write = lambda folder: write_whole(folder / "x", b"1234")  # noqa: E731
    let_go(obtain(home / "results", TOKENS, KEY, write)[1])
    return home


@pytest.fixture
def store(ran: Path, tmp_path: Path) -> Store:
    """A copy of it, in ``tmp_path``."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Store(tmp_path / "results")


def state(root: Path) -> dict[str, bytes | None]:
    """All that is in a folder, but for locks, which come and go."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
        for p in root.rglob("*")
        if not p.name.endswith(".lock")
    }


def wrong(store: Store, *, deep: bool = True) -> list[Finding]:
    before = state(store.root)
    found = list(examine(store, deep=deep))
    assert state(store.root) == before  # who only looks changes nothing
    return [one for one in found if one.level != "note"]


def test_a_store_that_is_sound_has_nothing_wrong(store: Store) -> None:
    assert wrong(store) == []
    assert list(examine(store, deep=True, repair=True)) == []


def first(store: Store) -> Path:
    return store.trial_dir(min(store.finished()))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def record_to_link(store: Store) -> None:
    path = first(store) / "record.json"
    shutil.move(path, store.root.parent / "record.json")
    path.symlink_to(store.root.parent / "record.json")


DAMAGE: dict[str, tuple[Callable[[Store], object], str, str]] = {
    "record cut": (lambda s: truncate(first(s) / "record.json"), "record.json", "not a trial re"),
    "record empty": (lambda s: truncate_all(first(s) / "record.json"), "record.json", "not a tria"),
    "another seed": (
        lambda s: edit(first(s) / "record.json", '"seed": ', '"seed": 1'),
        "record.json", "is of trial",
    ),
    "another identity": (
        lambda s: edit(first(s) / "record.json", '"identity": {', '"identity": {"x": 1,'),
        "record.json", "is of trial",
    ),
    "no metrics": (
        lambda s: edit(first(s) / "record.json", '"metrics": {', '"metrics": 3, "were": {'),
        "record.json", "shape",
    ),
    "record a link": (
        record_to_link,
        "record.json", "is a link",
    ),
    "predictions cut": (
        lambda s: truncate(first(s) / "predictions.parquet"), "predictions.parquet", "not a table"
    ),
    "predictions text": (
        lambda s: (first(s) / "predictions.parquet").write_text("x"),
        "predictions.parquet", "not a table",
    ),
    "attempt killed": (
        lambda s: (first(s) / ".record.json-abc").write_text("{"), ".record.json-abc", "leftover"
    ),
    "checkpoint": (
        lambda s: (first(s) / "checkpoint/000000001").mkdir(parents=True), "checkpoint", "leftover"
    ),
    "wrong place": (
        lambda s: first(s).rename(first(s).parent / ("f" * 20)), "f" * 20, "wrong place"
    ),
    "plan cut": (lambda s: truncate(s.root / "sweeps/noise/plan.json"), "plan.json", "not a plan"),
    "plan of another": (
        lambda s: edit(s.root / "sweeps/noise/plan.json", '"name": "noise"', '"name": "../x"'),
        "plan.json", "another sweep",
    ),
    "plan with a path": (
        lambda s: edit(s.root / "sweeps/noise/plan.json", '"1": "', '"1": "../'),
        "plan.json", "is not a trial id",
    ),
    "driver killed": (
        lambda s: (s.root / "sweeps/noise/driver.json").write_text("{}"), "driver.json", "leftover"
    ),
    "stage cut": (lambda s: truncate(folder_of(s.root, TOKENS, KEY) / "x"), KEY, "holds 2 bytes"),
    "stage note": (
        lambda s: truncate(folder_of(s.root, TOKENS, KEY) / "stage.json"), KEY, "is damaged"
    ),
    "stage without note": (
        lambda s: (folder_of(s.root, TOKENS, KEY) / "stage.json").unlink(), KEY, "has lost its"
    ),
    "stage renamed": (
        lambda s: (s.root / "stages/tokens").rename(s.root / "stages/banks"), KEY, "of a stage 'to"
    ),
    "stage half built": (
        lambda s: (s.root / f"stages/tokens/.{KEY}-abcd1234").mkdir(), "abcd1234", "leftover"
    ),
    "import killed": (lambda s: (s.root / ".import-x/trials").mkdir(parents=True), ".import-x", ""),
    "marker lost": (lambda s: (s.root / "store.json").unlink(), "store.json", "is missing"),
}  # fmt: skip


def truncate_all(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_named_and_mended_and_no_finished_trial_is_lost(
    store: Store, invoke: Invoke, name: str
) -> None:
    kept = records(store.root)
    damage, where, what = DAMAGE[name]
    damage(store)
    found = wrong(Store(store.root))
    assert any(where in one.where and what in one.what for one in found), found
    mended = list(examine(Store(store.root), deep=True, repair=True))
    assert all(one.mended for one in mended if one.level != "note"), mended
    after = Store(store.root)
    assert wrong(after) == []
    # Every record is where it was, or as a whole in the folder for what is damaged.
    aside = [p.read_bytes() for p in after.root.glob("damaged/**/record.json*")]
    gone = [i for i in kept if i not in records(after.root)]
    assert len(gone) <= 1
    assert len(aside) >= len(gone)
    status, out, err = invoke("run", "noise.yaml", "--inline", "--format", "json")
    assert status == 0, err
    assert json.loads(out)["ran"] == len(gone)


def test_predictions_that_say_otherwise_than_the_record_are_told_by_a_deep_look(
    store: Store,
) -> None:
    path = first(store) / "record.json"
    metrics = json.loads(path.read_bytes())["metrics"]
    group = next(iter(metrics["auroc"]))
    value = json.loads(path.read_bytes())
    value["metrics"]["auroc"][group] = 0.125
    path.write_text(json.dumps(value))
    assert wrong(store, deep=False) == []
    (found,) = wrong(store)
    assert found.where.endswith("predictions.parquet")
    assert f"give auroc {metrics['auroc'][group]} in {group}" in found.what
    assert "the record says 0.125" in found.what
    (still,) = examine(store, deep=True, repair=True)  # nobody can tell which of them is right
    assert not still.mended


def test_an_artifact_that_is_lost_or_no_file_name_is_told(store: Store) -> None:
    edit(first(store) / "record.json", '"artifacts": [', '"artifacts": ["maps.npy", "../../x"')
    found = {one.what for one in wrong(store)}
    assert any("is missing, and its record names it" in what for what in found)
    assert any("'../../x', which is no file name" in what for what in found)


def test_decisions_are_kept_up_to_the_damage(tmp_path: Path, sweep_file: Write) -> None:
    text = SWEEP.replace("tests.methods.noise", "tests.methods.curves")
    text = text.replace("weak: {strength: 0.5}", "weak: {lr: {log_uniform: [0.001, 1]}}")
    text = text.replace("strong: {strength: {grid: [1, 2]}}", "strong: {lr: 0.5}")
    text = text.replace("report:", "search: {trials: 4, maximize: auroc}\nreport:")
    text = text.replace("tpr@5], baseline: weak", "tpr@5]").replace(", make: {items: 40}", "")
    record(sweep_file(text), tmp_path / "results", draws=[{"lr": lr} for lr in (0.1, 0.2, 0.3)])
    store = Store(tmp_path / "results")
    log = store.log_of("noise")
    whole = log.read_bytes()
    assert wrong(store, deep=False) == []
    lines = whole.split(b"\n")
    for damaged in (
        b"\n".join([*lines[:2], b"{}", *lines[3:]]),
        b"\n".join([*lines[:2], lines[2].replace(b'"number": 2', b'"number": 3'), *lines[3:]]),
    ):
        log.write_bytes(damaged)
        (found,) = wrong(store, deep=False)
        assert found.where == f"{log}:3"
        assert any(one.mended for one in examine(store, repair=True))
        assert log.read_bytes() == b"\n".join(lines[:2]) + b"\n"
        assert wrong(store, deep=False) == []
    aside = sorted((store.root / "damaged/sweeps/noise").iterdir())
    assert [path.name for path in aside] == ["decisions.jsonl", "decisions.jsonl.1"]
    assert aside[1].read_bytes() == damaged


def test_what_is_running_is_passed_by(store: Store) -> None:
    path = first(store)
    (path / "checkpoint").mkdir()
    (path / ".record.json-abc").write_text("{")
    (store.root / "sweeps/noise/.plan.json-abc").write_text("{")
    with store.running(path.name), store.driving("noise"):
        before = state(store.root)
        assert list(examine(store, deep=True, repair=True)) == []
        assert state(store.root) == before
    assert len(list(examine(store, deep=True, repair=True))) == 3


def test_what_others_have_put_into_a_store_is_told_and_left(store: Store) -> None:
    for path in ("trials/README", "trials/ab/x/y", "sweeps/.DS_Store", "stages/notes.txt"):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_text("mine")
    (store.root / "sweeps/linked").symlink_to("/etc")
    before = state(store.root)
    found = list(examine(store, deep=True, repair=True))
    assert {one.level for one in found} == {"note"}
    assert len(found) == 5
    assert state(store.root) == before


def test_the_command_says_what_it_found_and_how_it_is_mended(
    store: Store, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "examine", lambda: iter(()))  # whatever this machine lacks
    assert invoke("doctor")[0] == 0
    truncate(first(store) / "record.json")
    (first(store) / "\x1b[31mred").write_text("x")
    (store.root / "trials/\x1b[31m").mkdir()
    status, out, _ = invoke("doctor")
    assert status == 1
    assert f"problem: {first(store) / 'record.json'}: not a trial record" in out
    assert "--repair mends 1 of them" in out
    assert "\x1b" not in out
    status, out, _ = invoke("doctor", "--format", "json")
    value = json.loads(out)
    assert (status, value["ok"]) == (1, False)
    assert {one["level"] for one in value["findings"]} == {"problem", "note"}
    status, out, _ = invoke("doctor", "--repair")
    assert status == 0, out
    assert "mended: " in out
    assert invoke("doctor")[0] == 0


def test_a_folder_of_others_is_not_looked_at(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    status, _, err = invoke("doctor", "--store", "mine", "--repair")
    assert status == 2
    assert "not a hdsweep store" in err
    assert state(tmp_path / "mine") == {"thesis.tex": b"x"}


def test_packages_are_held_against_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2.0", "torch>=99", "no-such-package-here>=1", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    found = {one.where: one.what for one in machine.examine()}
    assert "numpy" not in found
    assert "pytest" not in found
    assert "older than 99" in found["torch"]
    assert found["no-such-package-here"] == "is not installed"
