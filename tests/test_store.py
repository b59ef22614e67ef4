"""The store keeps what was finished, whatever happens to it."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdsweep.errors import StoreError
from hdsweep.identity import digest
from hdsweep.store import PlannedCell, PlannedSweep, Store, write_whole
from hdsweep.trial import Trial, TrialRecord


def trial(seed: int = 1) -> Trial:
    identity = {"method": "m", "version": 1, "params": {"a": 1}, "data": {"content": "f"}}
    return Trial(
        digest({**identity, "seed": seed}),
        "m",
        1,
        {"a": 1},
        "d",
        {"root": "/x"},
        "f",
        seed,
        identity,
    )


def record(seed: int = 1, **changes: object) -> TrialRecord:
    made = trial(seed)
    whole = TrialRecord(made.id, "ok", made.to_json(), metrics={"auroc": {"A": 0.5, "B": None}})
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    store.create()
    kept = record(scalars={"latency_ms": 1.5}, error=None)
    store.put(kept)
    found = store.record(kept.id)
    assert found is not None
    assert found.to_bytes() == kept.to_bytes()
    assert list(store.finished()) == [kept.id]
    assert Trial.from_json(found.trial) == trial()


def test_an_ok_record_is_never_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = store.put(record())
    path = store.trial_dir(first.id) / "record.json"
    before = path.read_bytes()
    for status in ("ok", "failed", "diverged", "pruned"):
        assert store.put(record(status=status, wall_s=9.0)) == first
    assert path.read_bytes() == before


def test_a_failed_record_gives_way_to_a_later_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    store.put(record(status="failed"))
    store.put(record(status="ok"))
    found = store.record(record().id)
    assert found is not None
    assert found.status == "ok"


def _put_many(root: str, wall_s: float) -> None:
    store = Store(Path(root))
    for seed in range(30):
        store.put(record(seed, wall_s=wall_s))


def test_writers_that_race_leave_one_whole_record_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_put_many, args=(str(tmp_path / "results"), float(n)))
        for n in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(tmp_path / "results")
    found = store.records(trial(seed).id for seed in range(30))
    assert len(found) == 30
    leftovers = [p for p in (tmp_path / "results").rglob("*") if p.name.startswith(".")]
    assert leftovers == []


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match=r"newer hdsweep \(format 99"):
        Store(tmp_path)


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = store.put(record())
    path = store.trial_dir(kept.id) / "record.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match="newer hdsweep"):
        store.record(kept.id)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": "x"}', b"\xff"]
)
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    kept = store.put(record())
    path = store.trial_dir(kept.id) / "record.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a trial record") as error:
        store.record(kept.id)
    assert str(path) in str(error.value)


def test_somebody_elses_folder_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match="not empty and not a hdsweep store"):
        Store(tmp_path).create()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_or_a_url_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="local folder"):
        Store(Path("s3://bucket/results"))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc", "", "ABCDEF0123456789abcd", "ab" * 11]
)
def test_a_path_cannot_be_smuggled_in_as_a_trial_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="not a trial id"):
        Store(tmp_path).trial_dir(name)


def test_a_trial_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = store.put(record())
    assert store.resolve(kept.id[:6]) == kept.id
    with pytest.raises(StoreError, match="no trial"):
        store.resolve("00" if kept.id[:2] != "00" else "11")
    with pytest.raises(StoreError, match="not a trial id"):
        store.resolve("../")


def test_a_sweep_comes_back_and_the_latest_is_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    cells = (PlannedCell("topk", {"q": 1.5}, {42: trial().id}),)
    for n, name in enumerate(("one", "two")):
        sweep = PlannedSweep(name, "why?", ("auroc",), "topk", ("auroc >= 0.9",), ("A", "B"), cells)
        store.put_sweep(sweep, b"name: one\n")
        os.utime(tmp_path / "sweeps" / name / "plan.json", (n, n))
    assert store.sweeps() == ["two", "one"]
    assert store.sweep().name == "two"
    assert store.sweep("one").cells == cells
    with pytest.raises(StoreError, match=r"no sweep 'on'; did you mean 'one'\?"):
        store.sweep("on")
    (tmp_path / "sweeps/one/plan.json").write_text("{}")
    with pytest.raises(StoreError, match="not a plan"):
        store.sweep("one")


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no sweep was run here"):
        Store(tmp_path / "nowhere").sweep()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path).put(record())


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_predictions_come_back_with_nan_kept(tmp_path: Path) -> None:
    from hdsweep.method import Predictions

    store = Store(tmp_path)
    given = Predictions(
        ("x/1", "y/2"), ("A", "B"), np.array([True, False]), np.array([0.5, np.nan])
    )
    store.put_predictions(trial().id, given)
    found = store.predictions(trial().id)
    assert found is not None
    assert found.item == given.item
    assert list(found.group) == ["A", "B"]
    assert np.array_equal(found.score, given.score, equal_nan=True)
    assert store.predictions(trial(2).id) is None
