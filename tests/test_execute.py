"""One trial, from its description to its record."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdsweep.context import Context
from hdsweep.curve import read_points
from hdsweep.data import fingerprint, make_if_absent
from hdsweep.errors import DataChanged, Stopped, StoreError
from hdsweep.execute import Job, origin_of, run_trial
from hdsweep.identity import digest
from hdsweep.machine import Machine
from hdsweep.method import Stage, load_dataset, load_method
from hdsweep.stopping import SharedRungs, Watch, rule_of, shared_rungs
from hdsweep.store import Store
from hdsweep.strategy import Stop
from hdsweep.trial import Trial, TrialRecord
from tests.conftest import ROOT, Run


@pytest.fixture
def run(tmp_path: Path) -> Any:
    dataset = load_dataset("tests.methods.labels")
    data = dataset.params.model_validate({"root": tmp_path / "labels", "make": {"items": 20}})
    make_if_absent(dataset, data, print)
    content = fingerprint(dataset, data)
    store = Store(tmp_path / "results")

    def planned(seed: int = 1, method: str = "tests.methods.noise", **knobs: Any) -> Trial:
        params = load_method(method).params.model_validate(knobs)
        identity = {"method": method, "params": params.identity(), "data": content}
        return Trial(
            digest({**identity, "seed": seed}), method, 1, params.model_dump(mode="json"),
            "tests.methods.labels", data.model_dump(mode="json"), content, seed, identity,
        )  # fmt: skip

    def run_job(trial: Trial) -> TrialRecord:
        job = Job(trial, "test", 0, 1, patience_s=0)
        return run_trial(job, store, origin_of(job), capture=True, checkpoint_interval_s=0)

    def run(*arguments: Any, **knobs: Any) -> TrialRecord:
        return run_job(planned(*arguments, **knobs))

    run.store, run.planned, run.job = store, planned, run_job  # type: ignore[attr-defined]
    return run


def test_a_trial_leaves_its_record_predictions_curve_and_log(run: Any) -> None:
    record = run(strength=2.0)
    folder = run.store.trial_dir(record.id)
    assert record.status == "ok"
    assert record.metrics["auroc"].keys() == {"x", "y"}
    assert record.scalars == {"strength_seen": 2.0}
    assert record.definitions["tpr@1"].startswith("largest true-positive rate")
    assert record.provenance["device"] == "cpu"
    assert record.provenance["threads"] == 1
    assert len(run.store.predictions(record.id).item) == 40
    assert json.loads((folder / "curve.jsonl").read_text())["step"] == 1
    assert "ok after" in (folder / "log.txt").read_text()
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "curve.jsonl", "log.txt", "predictions.parquet", "record.json", "tensorboard",
    ]  # fmt: skip


def test_a_finished_trial_is_not_run_again(run: Any) -> None:
    first = run()
    log = run.store.trial_dir(first.id) / "log.txt"
    log.write_text("untouched")
    assert run() == first
    assert log.read_text() == "untouched"


def test_the_same_seed_gives_the_same_scores_and_another_does_not(run: Any, tmp_path: Path) -> None:
    one = run.store.predictions(run(seed=1).id).score
    other = run.store.predictions(run(seed=2).id).score
    assert not np.array_equal(one, other)
    path = run.store.trial_dir(run(seed=1).id)
    (path / "record.json").unlink()
    (path / "predictions.parquet").unlink()
    again = run.store.predictions(run(seed=1).id).score
    assert np.array_equal(one, again)


@pytest.mark.parametrize(
    ("fault", "status", "kind", "message", "has_traceback"),
    [
        ("raise", "failed", "method", "RuntimeError: the method has a bug", True),
        ("request", "failed", "request", "crop=100: not a multiple of the patch", False),
        ("diverge", "diverged", "diverged", "loss is not finite at step 7", False),
    ],
)
def test_a_trial_that_fails_is_kept_with_its_reason(
    run: Any, fault: str, status: str, kind: str, message: str, has_traceback: bool
) -> None:
    record = run(fault=fault)
    assert record.status == status
    assert record.error["kind"] == kind
    assert record.error["message"].startswith(message)
    assert ("Traceback" in record.error["traceback"]) == has_traceback
    assert record.metrics == {}
    log = (run.store.trial_dir(record.id) / "log.txt").read_text()
    assert message.partition(": ")[2] in log


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("own labels", "are not one row per test item with the data's own group and label"),
        ("own groups", "40 of 40 differ"),
        ("some items", "'x/009.txt' first"),
        ("no items", "40 of 40 differ"),
        ("two dimensions", "scores have shape (40, 2)"),
        ("words", "ValueError"),
        ("nothing", "run returned a NoneType, not an Outcome"),
        ("no predictions", "predictions are a NoneType"),
        ("lost artifact", "No such file or directory: '/nope'"),
        ("artifact path", "is not a plain file name"),
        ("unnamed artifact", "is not a plain file name"),
        ("undeclared", "not declared in METHOD.scalars"),
        ("exit", "SystemExit: 0"),
        ("silent", ""),
        ("surrogate", "RuntimeError"),
        ("memory", "MemoryError"),
        ("stage", "No such file or directory: '/nope/nope'"),
    ],
)
def test_an_outcome_that_breaks_the_contract_is_a_failed_trial(
    run: Any, way: str, words: str
) -> None:
    record = run(method="tests.methods.evil", way=way)
    assert record.status == "failed"
    assert words in record.error["message"]
    assert record.metrics == {}
    found = run.store.record(record.id)  # it can be read back
    assert found.error["kind"] == ("memory" if way == "memory" else record.error["kind"])
    assert not list((run.store.root / "stages").glob("*/[0-9a-f]*"))


def test_a_full_disk_is_not_the_methods_fault_and_nothing_is_recorded(run: Any) -> None:
    with pytest.raises(StoreError, match="/x: No space left on device"):
        run(method="tests.methods.evil", way="disk")
    assert list(run.store.finished()) == []


@pytest.mark.parametrize("way", ["edit data", "lose data", "miss data"])
def test_data_that_change_while_a_trial_runs_are_noticed(run: Any, way: str) -> None:
    with pytest.raises(DataChanged):
        run(method="tests.methods.evil", way=way)
    # Kept, it would be gone on with once the data are as planned again.
    assert not list(run.store.root.glob("trials/*/*/checkpoint"))
    with pytest.raises(DataChanged):
        run()
    assert list(run.store.finished()) == []


def test_a_curve_is_json_even_where_the_loss_is_nan(run: Any) -> None:
    record = run(method="tests.methods.evil")
    line = (run.store.trial_dir(record.id) / "curve.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] == "nan"


def test_a_checkpoint_of_a_step_that_has_one_changes_nothing(run: Any) -> None:
    record = run(method="tests.methods.counter", interrupt_file="/dev/null", twice=True)
    assert record.status == "ok"


def test_scores_that_are_nan_leave_the_metric_missing_not_zero(run: Any) -> None:
    record = run(fault="nan")
    assert record.status == "ok"
    assert record.metrics["auroc"] == {"x": None, "y": None}
    assert "NaN" in record.missing["auroc"]["x"]


def test_a_trial_continues_from_its_last_whole_checkpoint(run: Any) -> None:
    straight = run(method="tests.methods.counter", steps=5)
    whole = run.store.predictions(straight.id).score
    folder = run.store.trial_dir(straight.id)
    for name in ("record.json", "predictions.parquet"):
        (folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        run(method="tests.methods.counter", steps=5, interrupt_file=str(folder / "stop"))
    assert [p.name for p in (folder / "checkpoint").iterdir()] == ["000000003"]
    (folder / "checkpoint" / ".partial-x").mkdir()  # a checkpoint that a kill cut short
    with (folder / "curve.jsonl").open("a") as curve:
        curve.write('{"step": 4, "loss": 9}\n{"ste')
    resumed = run(method="tests.methods.counter", steps=5, interrupt_file=str(folder / "stop"))
    assert np.array_equal(run.store.predictions(resumed.id).score, whole)
    steps = [json.loads(line)["step"] for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    assert "continues from step 3" in (folder / "log.txt").read_text()
    assert not (folder / "checkpoint").exists()


def test_a_shared_stage_is_built_once_and_a_failed_build_leaves_nothing(run: Any) -> None:
    first = run(seed=1, method="tests.methods.counter", stage=True)
    second = run(seed=2, method="tests.methods.counter", stage=True)
    assert first.status == second.status == "ok"
    built = list((run.store.root / "stages/count").glob("[0-9a-f]*"))
    assert len(built) == 1
    note = json.loads((built[0] / "stage.json").read_text())
    assert note["inputs"] == {"steps": 5}
    failed = run(seed=1, method="tests.methods.counter", stage=True, steps=13)
    assert failed.status == "failed"
    assert len([p for p in (run.store.root / "stages/count").iterdir() if p.is_dir()]) == 1


def test_artifacts_are_kept_and_undeclared_scalars_refused(run: Any) -> None:
    record = run(method="tests.methods.counter")
    assert record.artifacts == ("notes", "steps.txt")
    home = run.store.trial_dir(record.id) / "artifacts"
    assert (home / "steps.txt").read_text() == "5"
    assert (home / "notes/a.txt").read_text() == "a"
    record = run(method="tests.methods.counter", scalar="undeclared")
    assert "not declared in METHOD.scalars" in record.error["message"]


def test_what_a_method_prints_is_in_its_log(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(method="tests.methods.counter")
    assert "counting to 5" in (run.store.trial_dir(record.id) / "log.txt").read_text()
    assert capsys.readouterr().out == ""


def test_a_source_digest_follows_the_source_and_imports_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from hdsweep.provenance import source_digest\n"
        "print(source_digest('trainables.dinomaly'), 'trainables.dinomaly' in sys.modules)"
    )

    def digest_now(path: Path) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=path, env={"PYTHONPATH": f"{path}:{ROOT}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    shutil.copytree(ROOT / "trainables", tmp_path / "trainables")
    before, imported = digest_now(tmp_path)
    assert imported == "False"
    assert digest_now(tmp_path)[0] == before
    with (tmp_path / "trainables/dinomaly/losses.py").open("a") as source:
        source.write("# changed\n")
    after = digest_now(tmp_path)[0]
    assert after != before
    with next((tmp_path / "trainables").glob("encoders*/backbone.py")).open("a") as source:
        source.write("# what it imports counts too\n")
    assert digest_now(tmp_path)[0] not in (before, after)


@pytest.mark.parametrize("what", ["data", "file"])
def test_a_stage_built_while_its_inputs_changed_is_not_kept(
    run: Any, tmp_path: Path, what: str
) -> None:
    """Kept, it would stand under the name of inputs that it was not made from, for good."""
    given = tmp_path / "given"
    given.write_text("as planned")
    victim = given if what == "file" else tmp_path / "labels/x/000.txt"
    before = victim.read_bytes()
    with pytest.raises(DataChanged, match="given" if what == "file" else "labels"):
        run(method="tests.methods.counter", stage=True, given=str(given), spoil=str(victim))
    assert not list((tmp_path / "results/stages").rglob("stage.json"))
    victim.write_bytes(before)
    record = run(method="tests.methods.counter", stage=True, given=str(given))
    assert record.status == "ok"
    assert len(list((tmp_path / "results/stages").rglob("stage.json"))) == 1


def test_a_trial_whose_file_changed_after_planning_is_not_recorded(
    run: Any, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.write_text("as planned")
    assert run(method="tests.methods.counter", given=str(given)).status == "ok"
    trial = run.planned(method="tests.methods.counter", given=str(given), steps=6)
    given.write_text("as nobody planned")
    with pytest.raises(DataChanged, match=r"the content of given \(.*given\) has changed since"):
        run.job(trial)
    assert run.store.record(trial.id) is None


def test_a_trial_of_another_source_does_not_get_the_stage_of_the_old_one(
    hdsweep: Run, sweep_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    source = tmp_path / "mine/counter.py"
    source.write_text((ROOT / "tests/methods/counter.py").read_text())
    (tmp_path / "mine/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    sweep = sweep_file(
        "name: counted\nmethod: mine.counter\n"
        "data: {name: tests.methods.labels, root: labels, make: {items: 4}}\n"
        "seeds: [1]\narms: {one: {stage: true}}\nresources: {gpus: 0, cpus: 1}\n"
    )

    def stages() -> int:
        return len(list((tmp_path / "results/stages").rglob("stage.json")))

    assert hdsweep("run", sweep, "--inline").returncode == 0
    assert stages() == 1
    source.write_text(source.read_text() + "\n# another\n")
    again = hdsweep("run", sweep, "--inline", "--rerun", "stale")
    assert again.returncode == 0, again.stderr
    assert stages() == 2


def test_a_trial_that_waits_for_a_measurement_says_so_in_its_log(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = run.store.trial_dir(run.planned().id) / "log.txt"
    measuring = Machine()
    with ThreadPoolExecutor(1) as other, measuring.computing(), measuring.alone() as alone:
        assert alone
        trial = other.submit(run)
        while not log.exists() or not log.read_text():
            time.sleep(0.01)
        time.sleep(0.2)
        assert "starts when no other trial is being measured here" in log.read_text()
        assert "1 threads" not in log.read_text()
        assert not trial.done()
    assert trial.result().status == "ok"
    assert "1 threads" in log.read_text()


def test_a_log_that_finds_the_disk_full_ends_in_one_message(
    run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "results"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no filesystem can be mounted here")
    try:
        trial = run.planned()
        with run.store.running(trial.id):
            pass  # its folder is there
        with pytest.raises(OSError, match="No space left"), (place / "filler").open("wb") as file:
            file.write(bytes(2 << 20))
        with pytest.raises(StoreError, match="No space left on device; free space and run"):
            run.job(trial)
        assert "Traceback" not in capfd.readouterr().err
        assert run.store.record(trial.id) is None
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# --- Stopped early --------------------------------------------------------------------------------

CURVES = "tests.methods.curves"
ASHA = Stop(rule="asha", metric="auroc", grace=2, reduction=2)


def watched(run: Any, seed: int, quality: float, sweep: str = "s", **more: Any) -> Job:
    """A trial of ``curves`` that a sweep may stop."""
    place = f"quality={quality}"
    watch = Watch(
        more.pop("stop", ASHA),
        larger_is_better=True,
        sweep=sweep,
        arm="a",
        configuration=place,
        order=0,
    )
    job = {"rerun": more.pop("rerun", False), "cell": place, "watch": watch}
    method = more.pop("method", CURVES)
    trial = run.planned(seed=seed, method=method, quality=quality, steps=6, **more)
    return Job(trial, place, 0, 1, **job)


def run_watched(run: Any, job: Job) -> TrialRecord:
    return run_trial(job, run.store, origin_of(job), capture=True, checkpoint_interval_s=0)


def test_a_trial_that_is_stopped_leaves_its_reason_and_its_curve(run: Any) -> None:
    assert run_watched(run, watched(run, 1, 0.9)).status == "ok"
    job = watched(run, 1, 0.1)
    record = run_watched(run, job)
    folder = run.store.trial_dir(record.id)
    assert (record.status, record.ending) == ("pruned", "pruned")
    assert record.error is not None
    assert record.error["kind"] == "stopped"
    assert record.error["message"].startswith("asha: auroc 0.5")
    assert record.error["message"].endswith("at step 2 is below 0.5816, the best half of 1 other "
                                            "configuration")  # fmt: skip
    assert record.error["rule"] == rule_of("s", ASHA, larger_is_better=True)
    assert record.error["traceback"] == ""
    assert (record.metrics, record.scalars) == ({}, {})
    assert run.store.predictions(record.id) is None
    assert [point["step"] for point in read_points(folder)] == [1, 2]
    assert not (folder / "checkpoint").exists()
    assert "stopped: asha" in (folder / "log.txt").read_text()
    assert run.store.record(record.id) == record


def test_a_stopped_trial_is_run_again_only_where_its_sweep_did_not_stop_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tmp_path / "runs"
    monkeypatch.setenv("CURVES_RUNS", str(counted))
    run_watched(run, watched(run, 1, 0.9))
    record = run_watched(run, watched(run, 1, 0.1))
    assert run_watched(run, watched(run, 1, 0.1)) == record
    assert len(counted.read_text().splitlines()) == 2
    again = run_watched(run, watched(run, 1, 0.1, rerun=True))
    assert (again.status, len(counted.read_text().splitlines())) == ("pruned", 2)
    other = watched(run, 2, 0.1, stop=ASHA.model_copy(update={"grace": 1}))
    assert other.watch is not None
    shared_rungs(run.store.root, other.watch).learn("good", 1, 1, [(1, 0.9)])
    assert run_watched(run, other).status == "pruned"
    again = run_watched(run, watched(run, 1, 0.1, stop=other.watch.stop))
    assert again.error is not None  # of the rule that is in force
    assert again.error["rule"] == other.watch.rule
    edited = ASHA.model_copy(update={"grace": 3})
    assert run_watched(run, watched(run, 1, 0.1, stop=edited)).status == "ok"


@pytest.mark.parametrize("then", ["ends", "goes on", "fails"])
def test_a_trial_is_stopped_although_its_method_catches_what_ends_it(run: Any, then: str) -> None:
    run_watched(run, watched(run, 1, 0.9))
    record = run_watched(run, watched(run, 1, 0.1, method="tests.methods.heedless", then=then))
    assert (record.status, record.metrics) == ("pruned", {})
    assert record.error is not None
    assert record.error["message"].startswith("asha: auroc 0.5")
    assert run.store.predictions(record.id) is None


@pytest.mark.parametrize("other", ["another sweep", "no sweep"])
def test_a_trial_that_one_sweep_stopped_runs_to_its_end_for_another(run: Any, other: str) -> None:
    run_watched(run, watched(run, 1, 0.9))
    assert run_watched(run, watched(run, 1, 0.1)).status == "pruned"
    job = watched(run, 1, 0.1, sweep="t")
    if other == "no sweep":
        job = replace(job, watch=None)
    record = run_watched(run, job)
    assert record.status == "ok"
    assert run_watched(run, watched(run, 1, 0.1)) == record


def test_a_seed_is_not_begun_when_another_of_its_configuration_was_stopped(run: Any) -> None:
    run_watched(run, watched(run, 1, 0.9))
    reason = run_watched(run, watched(run, 1, 0.1)).error["message"]  # type: ignore[index]
    record = run_watched(run, watched(run, 2, 0.1))
    assert record.error is not None
    assert record.error["message"] == reason
    assert read_points(run.store.trial_dir(record.id)) == []


def test_a_running_seed_stops_when_another_of_its_configuration_is_stopped(run: Any) -> None:
    slow = watched(run, 2, 0.1, step_s=0.4)
    assert slow.watch is not None
    found: list[TrialRecord] = []
    thread = threading.Thread(target=lambda: found.append(run_watched(run, slow)))
    thread.start()
    folder = run.store.trial_dir(slow.trial.id)
    while not read_points(folder):
        time.sleep(0.01)
    # Another process decides: the running one sees it in the file.
    others = SharedRungs(run.store.root, "s", "a", ASHA, larger_is_better=True, look_s=0)
    others.learn("good", 1, 1, [(2, 0.9)])
    reason = others.report(slow.watch.configuration, 0, 1, 2, 0.1)
    thread.join()
    assert reason is not None
    assert found[0].status == "pruned"
    assert (found[0].error or {})["message"] == reason
    assert 1 <= len(read_points(folder)) < 6


def test_a_metric_that_is_not_reported_stops_nothing(run: Any) -> None:
    other = ASHA.model_copy(update={"metric": "loss"})
    for quality in (0.9, 0.1):
        assert run_watched(run, watched(run, 1, quality, stop=other)).status == "ok"


def test_a_resumed_trial_counts_what_it_had_reported(run: Any) -> None:
    median = Stop(rule="median", metric="auroc", grace=1, interval=5)
    job = watched(run, 1, 0.9, stop=median)
    # As a kill leaves it before any decision was written: its curve and a checkpoint.
    folder = run.store.trial_dir(job.trial.id)
    (folder / "checkpoint/000000003").mkdir(parents=True)
    (folder / "checkpoint/000000003/step.json").write_text("3")
    early = [1.0, 0.9, 0.8]
    (folder / "curve.jsonl").write_text(
        "".join(json.dumps({"step": n, "time_s": 0, "auroc": v}) + "\n"
                for n, v in enumerate(early, 1))
    )  # fmt: skip
    assert run_watched(run, job).status == "ok"
    values = [point["auroc"] for point in read_points(folder)]
    assert values[:3] == early
    text = (run.store.root / "sweeps/s/rungs/a.jsonl").read_text()
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["step"], first["average"]) == (1, 1.0)
    assert (second["step"], second["value"]) == (6, 1.0)
    assert second["average"] == pytest.approx(np.mean(values))


def test_reports_while_a_stage_is_built_stop_nothing(tmp_path: Path) -> None:
    watch = Watch(ASHA, larger_is_better=True, sweep="s", arm="a", configuration="bad", order=1)
    shared_rungs(tmp_path, watch).learn("good", 0, 1, [(2, 0.9), (4, 0.9)])
    trial = Trial("0" * 20, CURVES, 1, {}, "tests.methods.labels", {}, "f", 1, {})
    store = Store(tmp_path)
    store.trial_dir(trial.id).mkdir(parents=True)
    log = logging.getLogger("test")
    context = Context(trial, 1, store, "cpu", tmp_path, log, watch=watch)

    def build(folder: Path) -> None:
        context.report(5, {"auroc": 0.1})

    with contextlib.closing(context):
        context.stage(Stage("built", 1, {}, __name__), build)
        with pytest.raises(Stopped, match=r"auroc 0\.2 at step 6"):
            context.report(6, {"auroc": 0.2})
