"""The command line, as a person and as a script use it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SWEEP, Invoke, Run, interruptible, read, records

Write = Callable[..., Path]


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_sweep_runs_inline_and_ends_with_its_table(invoke: Invoke, sweep_file: Write) -> None:
    status, out, err = invoke("run", sweep_file(), "--inline")
    assert status == 0, err
    assert "strong" in out
    assert "±" in out
    assert "[6/6] ok" in err
    assert "hdsweep report noise --metric tpr@5" in err


def test_the_same_command_again_runs_nothing_and_says_so(
    hdsweep: Run, sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file()
    hdsweep("run", "noise.yaml", "--inline")
    before = records(tmp_path / "results")
    again = hdsweep("run", "noise.yaml")  # not inline: Ray must not be started for nothing
    assert again.returncode == 0, again.stderr
    assert "all 6 trials are finished, nothing to run" in again.stderr
    assert "Ray" not in again.stderr
    assert not (tmp_path / "results/sweeps/noise/ray.log").exists()
    assert records(tmp_path / "results") == before


def test_a_new_seed_or_value_runs_only_what_is_new(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    invoke("run", sweep_file(), "--inline")
    before = records(tmp_path / "results")
    more = sweep_file(
        SWEEP.replace("[1, 2]\narms", "[1, 2, 45]\narms").replace("grid: [1, 2]", "grid: [1, 2, 3]")
    )
    _, out, _ = invoke("plan", more, "--format", "json")
    counts = json.loads(out)["counts"]
    assert (counts["planned"], counts["cached"], counts["new"]) == (12, 6, 6)
    status, out, err = invoke("run", more, "--inline", "--format", "json")
    assert status == 0, err
    assert json.loads(out)["ran"] == 6
    after = records(tmp_path / "results")
    assert len(after) == 12
    assert {i: after[i] for i in before} == before


def test_two_sweeps_that_share_a_trial_run_it_once(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    invoke("run", sweep_file(), "--inline")
    other = sweep_file(
        SWEEP.replace("name: noise", "name: other").replace(
            "weak: {strength: 0.5}", "weak: {strength: 7}"
        ),
        "other.yaml",
    )
    _, out, _ = invoke("run", other, "--inline", "--format", "json")
    assert json.loads(out)["ran"] == 2
    assert len(records(tmp_path / "results")) == 8


def test_trials_that_fail_are_listed_and_the_rest_runs(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    text = SWEEP.replace("strength: {grid: [1, 2]}", "fault: {grid: [none, raise, diverge, nan]}")
    status, out, err = invoke("run", sweep_file(text), "--inline")
    assert status == 1
    assert "failed  strong fault=raise seed=1: RuntimeError: the method has a bug" in err
    assert "diverged  strong fault=diverge seed=2" in err
    assert "failed" in out  # the hole in the table says why
    status, out, _ = invoke("status", "--format", "json")
    found = json.loads(out)
    assert (found["ok"], found["failed"], found["diverged"]) == (6, 1, 2)
    one = next(entry for entry in found["not_ok"] if entry["status"] == "failed")
    status, out, _ = invoke("show", one["id"][:8])
    assert "Traceback" in out
    assert "the method has a bug" in out
    before = records(tmp_path / "results")
    status, out, _ = invoke("run", tmp_path / "noise.yaml", "--inline", "--format", "json")
    assert (status, json.loads(out)["ran"]) == (1, 0)
    status, out, _ = invoke(
        "run", tmp_path / "noise.yaml", "--inline", "--format", "json", "--rerun", "failed"
    )
    assert (status, json.loads(out)["ran"]) == (1, 1)
    after = records(tmp_path / "results")
    ok = {i for i, content in before.items() if b'"status": "ok"' in content}
    assert {i: after[i] for i in ok} == {i: before[i] for i in ok}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SWEEP.replace("seeds:", "sedes:"), "unknown key 'sedes'; did you mean 'seeds'?"),
        (SWEEP.replace("weak: {strength", "weak: {strenth"), "unknown knob 'strenth'"),
        (SWEEP.replace("strength: 0.5", "strength: 1000"), "found 1000"),
        (SWEEP.replace("[1, 2]\narms", "[1, 1]\narms"), "seed 1 is listed twice"),
        (SWEEP.replace("grid: [1, 2]", "grid: []"), "an empty grid"),
        (SWEEP.replace(", make: {items: 40}", ""), "no data here"),
        (SWEEP.replace("name: noise", "name: !!python/name:os.system x"), "YAML tags"),
        ("{ this is: [not yaml", "not YAML"),
        (SWEEP.replace("auroc, tpr@5", "aurco"), "did you mean 'auroc'?"),
        (SWEEP.replace("auroc, tpr@5", "tpr@0"), "tpr@0"),
        (SWEEP.replace("baseline: weak}", "expect: [auroc => 1]}"), "is not a criterion"),
        (SWEEP.replace("baseline: weak}", "expect: [aurco >= .9]}"), "did you mean 'auroc'?"),
        (SWEEP.replace("baseline: weak}", "margins: {aurco: .01}}"), "did you mean 'auroc'?"),
        (SWEEP.replace("baseline: weak}", "margins: {auroc: 1.5}}"), "half a point is 0.005"),
        (SWEEP.replace("baseline: weak}", "margins: {'auroc[group=x]': .1}}"), "for all groups"),
        (SWEEP.replace("name: tests.methods.labels", "name: hdmp"), "did you mean 'hdmap'?"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_bad_input_is_one_message_and_status_2_and_nothing_is_written(
    invoke: Invoke, sweep_file: Write, tmp_path: Path, text: str, words: str, command: str
) -> None:
    path = sweep_file(text)
    before = files_below(tmp_path)
    status, out, err = invoke(command, path)
    assert status == 2
    assert words in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert out == ""
    assert files_below(tmp_path) == before


def test_a_truncated_tiff_is_named_before_anything_runs(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    status, _, err = invoke(
        "data", "make", "hdmap", "maps", "--set", "train=4", "--set", "good=2", "--set", "fault=2"
    )
    assert status == 0, err
    victim = next((tmp_path / "maps").rglob("domain_B/test/fault/*.tiff"))
    victim.write_bytes(victim.read_bytes()[:200])
    path = sweep_file(
        SWEEP.replace(
            "{name: tests.methods.labels, root: labels, make: {items: 40}}",
            "{name: hdmap, root: maps}",
        )
    )
    before = files_below(tmp_path)
    status, _, err = invoke("run", path)
    assert status == 2
    assert victim.name in err
    assert "domain_B" in err
    assert len(err.strip().splitlines()) == 1
    assert files_below(tmp_path) == before
    status, out, _ = invoke("data", "check", "hdmap", "maps")
    assert status == 2
    assert victim.name in out


def test_a_store_made_by_a_newer_version_is_refused(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/store.json").write_text('{"format": 99}')
    before = files_below(tmp_path)
    path = sweep_file()
    for command in (["run", path], ["plan", path], ["report"], ["status"], ["show", "abcd"]):
        status, _, err = invoke(*command)
        assert status == 2
        assert "newer hdsweep" in err
    assert files_below(tmp_path) == before | {"noise.yaml"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "no sweep was run here"),
        (["show", "abcdef"], "no trial"),
        (["show", "../../x"], "not a trial id"),
        (["data", "make", "hdmp", "x"], "did you mean 'hdmap'?"),
        (["data", "make", "hdmap", "x", "--set", "tran=3"], "did you mean 'train'?"),
        (["data", "make", "hdmap", "x", "--set", "train"], "write NAME=VALUE"),
        (["data", "make", "hdmap", "x", "--set", "train=many"], "--set train"),
        (["data", "check", "hdmap", "nowhere"], "nowhere"),
        (["check", "nowhere.yaml"], "no such sweep file"),
        (["run", "nowhere.yaml", "--inline", "--gpus", "2"], "--inline"),
    ],
)
def test_other_mistakes_are_one_message_too(
    invoke: Invoke, arguments: list[str], words: str
) -> None:
    status, out, err = invoke(*arguments)
    assert status == 2
    assert words in err + out
    assert "Traceback" not in err


def test_a_plan_says_per_arm_what_is_new_and_what_is_done(
    invoke: Invoke, sweep_file: Write
) -> None:
    path = sweep_file(SWEEP.replace("weak: {strength: 0.5}", "weak: {strength: 2}"))
    status, out, err = invoke("plan", path)
    assert status == 0, err
    assert "Does strength separate the classes?" in out
    assert "strength: 1, 2" in out
    assert "4 trials: 4 new" in out
    assert "2 more are shared between arms and run once" in out
    invoke("run", path, "--inline")
    _, out, _ = invoke("plan", path)
    assert "4 trials: 4 cached" in out


def test_a_terminal_shows_one_live_block_and_then_the_table(
    sweep_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which pty.spawn takes over
    sweep_file(SWEEP.replace("strength: 0.5", "sleep_s: 0.6"))
    shown = tmp_path / "screen"
    with shown.open("wb") as screen:

        def keep(descriptor: int) -> bytes:
            screen.write(found := os.read(descriptor, 4096))
            return found

        command = [sys.executable, "-m", "hdsweep.cli", "run", str(tmp_path / "noise.yaml")]
        store = ["--inline", "--store", str(tmp_path / "results")]
        pty.spawn([*command, *store], keep)
    text = shown.read_text(errors="replace")
    assert "1 running" in text
    assert "running weak seed=1" in text
    assert "ETA" in text
    assert "best auroc" in text
    assert "6/6 done" in text
    assert "±" in text.rpartition("6/6 done")[2]


def test_a_stale_trial_is_run_again_when_asked_and_its_old_record_kept(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    path = sweep_file()
    invoke("run", path, "--inline")
    before = records(tmp_path / "results")
    trial, content = next(iter(before.items()))
    record = tmp_path / "results/trials" / trial[:2] / trial / "record.json"
    source = json.loads(content)["provenance"]["source"]
    old = content.replace(source.encode(), b"0123456789abcdef")
    record.write_bytes(old)
    _, out, _ = invoke("plan", path, "--format", "json")
    assert json.loads(out)["counts"]["stale"] == 1
    status, _, err = invoke("run", path, "--inline")
    assert status == 0
    assert "1 trials were run by an earlier source" in err
    assert record.read_bytes() == old
    status, out, err = invoke("run", path, "--inline", "--rerun", "stale", "--format", "json")
    assert (status, json.loads(out)["ran"]) == (0, 1), err
    assert (record.parent / "earlier/0/record.json").read_bytes() == old
    assert json.loads(record.read_bytes())["provenance"]["source"] == source
    _, out, _ = invoke("plan", path, "--format", "json")
    assert json.loads(out)["counts"]["cached"] == 6


def test_check_looks_at_every_file_and_needs_no_data(invoke: Invoke, sweep_file: Write) -> None:
    sweep_file()
    sweep_file(SWEEP.replace("seeds:", "sedes:"), "wrong.yaml")
    status, out, _ = invoke("check", ".")
    assert status == 2
    assert "noise.yaml: ok, 6 trials" in out
    assert "did you mean 'seeds'?" in out
    status, out, _ = invoke("check", "noise.yaml", "--format", "json")
    assert (status, json.loads(out)[0]["trials"]) == (0, 6)


def test_the_published_sweeps_are_valid(invoke: Invoke) -> None:
    status, out, err = invoke("check", Path(__file__).parent.parent / "sweeps")
    assert status == 0, out + err


def test_a_report_has_every_format_and_stable_keys(invoke: Invoke, sweep_file: Write) -> None:
    invoke("run", sweep_file(), "--inline")
    for format_, words in (("terminal", "±"), ("md", "| arm"), ("csv", "arm,"), ("json", "{")):
        status, out, err = invoke("report", "--metric", "tpr@1", "--format", format_)
        assert status == 0, err
        assert words in out
    _, one, _ = invoke("report", "--metric", "auroc", "--ddof", "0")
    _, two, _ = invoke("report", "--metric", "auroc")
    assert "ddof = 0" in one
    assert "ddof = 1" in two
    status, _, err = invoke("report", "--metric", "auroc[domain=z]")
    assert status == 2
    assert "no group 'z'" in err
    status, out, err = invoke("report", "noise", "--metric", "strength_seen")
    assert status == 0, err
    assert "strength_seen" in out


def test_a_metric_added_later_comes_from_stored_predictions(
    invoke: Invoke, sweep_file: Write
) -> None:
    invoke("run", sweep_file(), "--inline")
    status, out, err = invoke("report", "--metric", "tpr@20", "--format", "json")
    assert status == 0, err
    cells = [cell for row in json.loads(out)["tables"][0]["rows"] for cell in row["cells"].values()]
    assert len(cells) == 9
    assert all(cell["n"] == 2 and 0 <= cell["mean"] <= 1 for cell in cells)


def test_show_prints_what_a_script_can_read(hdsweep: Run, sweep_file: Write) -> None:
    sweep_file()
    hdsweep("run", "noise.yaml", "--inline")
    trial = read(hdsweep("plan", "noise.yaml", "--format", "json"))["trials"][0]["id"]
    shown = read(hdsweep("show", trial[:6], "--format", "json"))
    assert shown["id"] == trial
    assert shown["status"] == "ok"
    assert shown["trial"]["params"]["strength"] == 0.5


def test_data_that_already_stands_is_not_overwritten(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    status, _, err = invoke("data", "make", "hdmap", "maps")
    assert status == 2
    assert "exists already" in err


def test_results_can_be_moved(invoke: Invoke, sweep_file: Write, tmp_path: Path) -> None:
    path = sweep_file()
    invoke("run", path, "--inline")
    shutil.move(tmp_path / "results", tmp_path / "elsewhere")
    status, out, _ = invoke("run", path, "--store", "elsewhere", "--format", "json")
    assert (status, json.loads(out)["ran"]) == (0, 0)


def test_planning_imports_neither_torch_nor_ray_nor_pandas(sweep_file: Write) -> None:
    code = (
        "import sys; from hdsweep import cli; sys.argv = ['hdsweep', 'check', sys.argv[1]]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'pandas', 'anomalib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep_file())], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def running(sweep_file: Write, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep in the middle of a long trial."""
    path = sweep_file(SWEEP.replace("strength: 0.5", "sleep_s: 60"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", str(path), "--inline"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    # Its first line: what comes before may lose a signal in a callback of a C library.
    while not any(p.stat().st_size for p in tmp_path.glob("results/trials/*/*/log.txt")):
        assert process.poll() is None
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_an_interrupt_says_how_to_continue(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted: 0 of 6 trials are finished; run the same command again" in err
    assert "Traceback" not in err


def test_a_second_driver_is_told_who_runs_the_sweep(
    running: subprocess.Popen[str], invoke: Invoke, tmp_path: Path
) -> None:
    status, _, err = invoke("run", tmp_path / "noise.yaml", "--inline")
    assert status == 2
    assert f"sweep noise: is being run already by process {running.pid} on" in err
    running.kill()
    running.wait()
    (tmp_path / "noise.yaml").write_text(SWEEP)
    status, _, err = invoke("run", tmp_path / "noise.yaml", "--inline")
    assert status == 0, err


def test_two_sweeps_at_once_run_a_trial_that_they_share_once(
    sweep_file: Write, tmp_path: Path
) -> None:
    text = SWEEP.replace("strength: 0.5", "sleep_s: 1.5")
    text = text.replace("strength: {grid: [1, 2]}", "level: 3")
    files = [sweep_file(text), sweep_file(text.replace("name: noise", "name: other"), "other.yaml")]
    command = [sys.executable, "-m", "hdsweep.cli", "run", "--inline", "--format", "json"]
    both = [
        subprocess.Popen(
            [*command, str(path)],
            cwd=tmp_path,
            env={**os.environ, "NOISE_RUNS": str(tmp_path / "runs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in files
    ]
    outs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert all(json.loads(out)["ok"] == 4 for out, _ in outs)
    started = [json.loads(content)["started"] for content in records(tmp_path / "results").values()]
    assert len(set(started)) == 4
    runs = (tmp_path / "runs").read_text().splitlines()
    assert sorted(runs) == ["0 1", "0 2", "3 1", "3 2"]


def test_a_reader_that_has_enough_and_a_plain_terminal_are_served(
    sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    hdsweep = f"{sys.executable} -m hdsweep.cli"
    for line, status in (
        (f"{hdsweep} run noise.yaml --inline | true; exit ${{PIPESTATUS[0]}}", 0),
        (f"{hdsweep} report | head -1; exit ${{PIPESTATUS[0]}}", 0),
        (f"{hdsweep} report", 0),
        (f"{hdsweep} show {'0' * 20}", 2),
        (f"{hdsweep} report > /dev/full", 2),
    ):
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_group_that_the_data_lack_is_refused_before_anything_runs(
    invoke: Invoke, sweep_file: Write, tmp_path: Path
) -> None:
    path = sweep_file(SWEEP.replace("[auroc, tpr@5]", "['auroc[domain=q]']"))
    status, _, err = invoke("run", path, "--inline")
    assert status == 2
    assert "noise.yaml:10: report.metrics.0: the data have no group 'q'" in err
    assert not (tmp_path / "results").exists()
