"""The store keeps what was finished, whatever happens to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdsweep.errors import StoreError
from hdsweep.files import write_whole
from hdsweep.identity import digest
from hdsweep.planned import PlannedSearch, read_log
from hdsweep.store import PlannedCell, PlannedSweep, Store
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


# --- decisions ------------------------------------------------------------------------------------

STUDY, OTHER = "a" * 20, "b" * 20
LR = 10**-2.5  # 0.0031622776601683795


def search(key: str = STUDY, arm: str = "tuned", **changes: object) -> PlannedSearch:
    made = PlannedSearch(key, arm, {}, 40, ("auroc",), (True,), "mean", "tpe")
    return replace(made, **changes)  # type: ignore[arg-type]


def asked(number: int, study: str = STUDY, lr: float = LR, seed: int = 1) -> dict[str, object]:
    return {
        "event": "asked", "study": study, "number": number, "arm": "tuned", "knobs": {"lr": lr},
        "cell": {"variant": "topk", "lr": lr}, "trials": {seed: trial(100 + number).id},
    }  # fmt: skip


def told(number: int, state: str = "complete", *values: float) -> dict[str, object]:
    return {
        "event": "told", "study": STUDY, "number": number, "state": state, "values": list(values),
    }  # fmt: skip


def searching(**changes: object) -> PlannedSweep:
    cells = (PlannedCell("plain", {}, {1: trial(1).id}), PlannedCell("tuned", {}, {1: trial(2).id}))
    sweep = PlannedSweep("s", "", ("auroc",), None, (), ("A",), cells, searches=(search(),))
    return replace(sweep, **changes)  # type: ignore[arg-type]


def test_a_sweep_is_its_plan_and_what_was_decided_since(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sweep = searching(arms=("tuned", "plain"))
    store.put_sweep(sweep, b"")
    gone = {**asked(3, study=OTHER), "arm": "nobody"}
    for event in (asked(1), asked(0, lr=0.5), gone, told(1, "failed"), told(0, "complete", 0.75)):
        store.decide("s", event)
    why = "race: worse than 'tuned #0' by 0.031"
    store.decide("s", {"event": "skipped", "trials": [trial(101).id], "why": why})
    store.decide("s", {"event": "something new"})
    cells = store.sweep("s").cells
    assert [(c.arm, c.study, c.number) for c in cells] == [
        ("tuned", None, None), ("tuned", STUDY, 0), ("tuned", STUDY, 1), ("plain", None, None),
    ]  # fmt: skip
    first, second = cells[1:3]
    assert (first.knobs, first.trials) == ({"variant": "topk", "lr": 0.5}, {1: trial(100).id})
    assert (first.state, first.values, first.skipped) == ("complete", (0.75,), "")
    assert (second.state, second.values, second.skipped) == ("failed", (), why)
    assert second.knobs["lr"] == LR  # exactly
    assert store.decisions("s")[0]["event"] == "asked"


def test_the_later_of_two_decisions_holds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_sweep(searching(), b"")
    for event in (asked(0), told(0, "failed"), asked(0, seed=2), told(0, "complete", 0.5)):
        store.decide("s", event)
    (cell,) = (c for c in store.sweep("s").cells if c.study)
    assert (list(cell.trials), cell.state, cell.values) == ([2], "complete", (0.5,))


def test_a_configuration_above_a_bound_is_known_not_to_be_feasible(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_sweep(searching(), b"")
    for number, above in enumerate((-1.0, 0.0, 0.5)):
        store.decide("s", asked(number))
        store.decide("s", told(number, "complete", 0.5) | {"constraints": {"latency_ms": above}})
    assert [c.feasible for c in store.sweep("s").cells if c.study] == [True, True, False]


def test_what_was_chosen_is_a_cell_with_other_seeds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_sweep(searching(confirm=(7, 8), select="best auroc over seeds 1"), b"")
    store.decide("s", asked(0))
    chosen = {"event": "chosen", "arm": "tuned", "knobs": {"variant": "topk", "lr": LR}, "why": "."}
    store.decide("s", chosen | {"trials": {7: trial(7).id}})
    store.decide("s", chosen | {"trials": {7: trial(7).id, 8: trial(8).id}})
    store.decide("s", chosen | {"arm": "plain", "knobs": {}, "trials": {7: trial(70).id}})
    store.decide("s", chosen | {"arm": "gone", "trials": {}})
    sweep = store.sweep("s")
    assert [(c.arm, c.part, list(c.trials)) for c in sweep.cells] == [
        ("plain", "run", [1]), ("plain", "confirm", [7]),
        ("tuned", "run", [1]), ("tuned", "select", [1]), ("tuned", "confirm", [7, 8]),
    ]  # fmt: skip
    assert (sweep.cells[-1].study, sweep.cells[-1].number) == (STUDY, 0)
    assert sweep.labels()[trial(8).id] == "tuned #0 variant=topk lr=0.003162 seed=8"
    # Without seeds to confirm on, the file no longer asks for what was chosen.
    store.put_sweep(searching(), b"")
    assert [c.part for c in store.sweep("s").cells] == ["run"] * 3


def test_drawn_configurations_have_short_names_that_differ(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_sweep(searching(), b"")
    for number in (0, 1):
        store.decide("s", asked(number, lr=LR + number * 1e-9))
    labels = list(store.sweep("s").labels().values())
    assert labels == [
        "plain seed=1",
        "tuned seed=1",
        "tuned #0 variant=topk lr=0.003162 seed=1",
        "tuned #1 variant=topk lr=0.003162 seed=1",
    ]


def test_a_plan_holds_nothing_that_the_decisions_say(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sweep = searching(confirm=(7,), select="best")
    store.put_sweep(sweep, b"")
    store.decide("s", asked(0))
    chosen = {"event": "chosen", "arm": "plain", "knobs": {}, "trials": {7: trial(7).id}}
    store.decide("s", {**chosen, "why": ""})
    merged = store.sweep("s")
    assert len(merged.cells) == 4
    store.put_sweep(merged, b"")
    assert store.sweep("s") == merged
    plan = (tmp_path / "sweeps/s/plan.json").read_bytes()
    assert PlannedSweep.from_bytes(plan, "plan") == sweep
    store.put_decisions("s", [asked(5)])
    assert [c.number for c in store.sweep("s").cells if c.study] == [5]
    store.put_decisions("s", [])
    assert store.sweep("s") == sweep


def test_curves_of_drawn_trials_are_linked_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_decisions("s", [asked(3)])
    store.put_sweep(searching(), b"")
    names = {path.name for path in (tmp_path / "sweeps/s/tensorboard").iterdir()}
    assert "tuned #3 variant=topk lr=0.003162 seed=1" in names


def test_a_sweep_without_decisions_has_none(tmp_path: Path) -> None:
    assert Store(tmp_path).decisions("s") == []


def test_a_line_that_a_kill_cut_anywhere_is_left_out_and_written_over(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "sweeps/s/decisions.jsonl"
    store.put_decisions("s", [asked(0), asked(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e["number"] for e in store.decisions("s")] == [0]
        store.decide("s", asked(2))
        assert [e["number"] for e in store.decisions("s")] == [0, 2]
    path.write_bytes(whole[: first - 3])  # nothing but a torn line
    store.decide("s", asked(2))
    assert [e["number"] for e in store.decisions("s")] == [2]
    path.write_bytes(whole[:first] + b"\0" * 100)  # what losing power may leave
    assert [e["number"] for e in store.decisions("s")] == [0]


_DRIVER = """
import sys
from pathlib import Path
from tests.test_store import asked
from hdsweep.store import Store
store = Store(Path(sys.argv[1]))
for number in range(10**9):
    store.decide("s", asked(number))
    print(number, flush=True)
"""


def test_a_killed_driver_loses_no_decision_that_it_went_on_from(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.strip() == "50":
                driver.send_signal(signal.SIGKILL)
                break
        last = max(50, *map(int, driver.stdout.read().split("\n")[:-1] or [0]))
    store = Store(tmp_path)
    numbers = [event["number"] for event in store.decisions("s")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > last


_FULL = """
import os, resource, sys
from pathlib import Path
from tests.test_store import asked
from hdsweep.errors import StoreError
from hdsweep.store import Store
store, log = Store(Path(sys.argv[1])), Path(sys.argv[1]) / "sweeps/s/decisions.jsonl"
resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10,) * 2)
try:
    store.decide("s", asked(1))
except StoreError as error:
    sys.exit(str(error))
"""


def test_a_decision_for_which_there_is_no_room_is_refused_and_harms_no_other(
    tmp_path: Path,
) -> None:
    store, path = Store(tmp_path), tmp_path / "sweeps/s/decisions.jsonl"
    store.put_decisions("s", [asked(0)])
    before = path.stat().st_size
    command = [sys.executable, "-c", _FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{path}: cannot be written: No space left" in done.stderr
    assert path.stat().st_size == before + 10  # a part of it was
    assert [event["number"] for event in store.decisions("s")] == [0]
    store.decide("s", asked(2))
    assert [event["number"] for event in store.decisions("s")] == [0, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"7", b'{"event": "asked"}', b"\xff", b'{"number": 1}',
        b'{"event": "told", "study": "a", "number": "1", "state": "complete", "values": []}',
        b'{"event": "told", "study": "a", "number": 1, "state": "lost", "values": []}',
        b'{"event": "told", "study": "a", "number": 1, "state": "complete", "values": [null]}',
        json.dumps(told(1) | {"constraints": ["x"]}).encode(),
        b'{"event": "skipped", "trials": "ab12", "why": ""}',
        b'{"event": "chosen", "arm": "a", "knobs": {}, "trials": {"x": "ab"}, "why": ""}',
    ],
)  # fmt: skip
def test_a_damaged_decision_is_named_with_its_line(tmp_path: Path, line: bytes) -> None:
    store, path = Store(tmp_path), tmp_path / "sweeps/s/decisions.jsonl"
    store.put_sweep(searching(), b"")
    store.put_decisions("s", [asked(0)])
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(StoreError, match="not a decision") as error:
        store.sweep("s")
    assert f"{path}:2: " in str(error.value)


def test_a_decision_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.decide("s", told(0, "complete", float("nan")))
    with pytest.raises(StoreError, match="not the name of a sweep"):
        store.decide("../s", told(0))
    (tmp_path / "sweeps").write_text("a file where a folder should be")
    for keep in (lambda: store.decide("s", told(0)), lambda: store.put_decisions("s", [told(0)])):
        with pytest.raises(StoreError, match="cannot be written"):
            keep()


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.dictionaries(st.text(), _SCALARS, max_size=4), max_size=4))
def test_decisions_come_back_as_they_were_made(
    tmp_path_factory: pytest.TempPathFactory, knobs: list[Mapping[str, object]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    events = [{**asked(n), "knobs": one, "trials": {"1": "x"}} for n, one in enumerate(knobs)]
    for event in events:
        store.decide("s", event)
    assert store.decisions("s") == events
    one_by_one = store.root / "sweeps/s/decisions.jsonl"
    store.put_decisions("t", events)
    assert read_log(store.root / "sweeps/t/decisions.jsonl") == events
    if events:
        assert one_by_one.read_bytes() == (store.root / "sweeps/t/decisions.jsonl").read_bytes()
