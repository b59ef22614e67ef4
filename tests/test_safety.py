"""What others wrote is data: nothing of it runs, leads out of its place or takes a terminal."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hdsweep.store import Store
from tests.conftest import ROOT, SWEEP, Invoke

Write = Callable[..., Path]

READING = (
    ("status",), ("report",), ("report", "--format", "json"), ("report", "--format", "html"),
    ("report", "--metric", "precision"), ("show", "{id}"), ("cache", "list"), ("doctor", "--deep"),
    ("plan", "noise.yaml"), ("export", "archive", "out.tar"), ("export", "optuna"),
    ("replay", "noise", "--race", "2"), ("import", "out.tar", "--store", "other"),
    ("import", "{file}", "--store", "other"), ("report", "--store", "other"),
)  # fmt: skip
"""Commands that read a store; {id} is a trial's, {file} a file that was planted."""


class Canary:
    """Whoever unpickles it makes a file; whoever imports the module does not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep that ran: six trials with curves, logs and predictions."""
    home = tmp_path_factory.mktemp("ran")
    (home / "noise.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml", "--inline"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET_TOKEN": "hunter2-is-secret"}
    subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True)
    return home


@pytest.fixture
def store(ran: Path, tmp_path: Path) -> Store:
    """A copy of it, in ``tmp_path``."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Store(tmp_path / "results")


def commands(store: Store, invoke: Invoke, file: object = "out.tar") -> Iterator[tuple[int, str]]:
    """Run all commands that read a store; each ends as it should, whatever it read."""
    for words in READING:
        shown = [word.format(id=_first(store), file=file) for word in words]
        status, out, err = invoke(*shown)  # what is no HdsweepError is raised here
        assert status in (0, 1, 2), (shown, err)
        assert "Traceback" not in err, (shown, err)
        yield status, out + err


def _first(store: Store) -> str:
    return min(p.name for p in store.root.glob("trials/*/*"))


# --- pickles --------------------------------------------------------------------------------------

UNSAFE = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("cloudpickle", "load"),
    ("cloudpickle", "loads"), ("joblib", "load"), ("dill", "load"), ("dill", "loads"),
    ("shelve", "open"), ("marshal", "loads"), ("pd", "read_pickle"), ("pandas", "read_pickle"),
    ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system"),
    ("torch", "jit"), ("np", "fromfile"),
}  # fmt: skip


def _calls(path: Path) -> Iterator[tuple[int, tuple[str, str], dict[str, object]]]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg or "": getattr(k.value, "value", None) for k in node.keywords}
        if len(node.args) == 2:
            given["Loader"] = getattr(node.args[1], "id", None)
        if isinstance(node.func, ast.Attribute):
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else "?"
            yield node.lineno, (of, node.func.attr), given
        elif isinstance(node.func, ast.Name):
            yield node.lineno, ("", node.func.id), given


def test_no_line_of_ours_unpickles_or_evaluates_what_it_reads() -> None:
    found = []
    for package in ("hdsweep", "trainables", "analysis"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, call, given in _calls(path):
                safe = call == ("yaml", "load") and given.get("Loader") == "Loader"  # of yamlfile
                wrong = (call in UNSAFE and not safe) or call in (("", "eval"), ("", "exec"))
                wrong |= call == ("torch", "load") and given.get("weights_only") is not True
                wrong |= call == ("np", "load") and given.get("allow_pickle", False) is not False
                wrong |= "shell" in given and given["shell"] is not False
                if wrong:
                    found.append(f"{path.relative_to(ROOT)}:{line}: {'.'.join(call)}")
    assert found == []


def planted(canary: Path, kind: str) -> bytes:
    """A pickle as each library writes it."""
    made = canary.parent / "planted"
    if kind == "pickle":
        return pickle.dumps(Canary(canary))
    if kind == "numpy":
        np.save(made.with_suffix(".npy"), np.array([Canary(canary)]), allow_pickle=True)
        return made.with_suffix(".npy").read_bytes()
    import torch

    torch.save({"step": 1, "scores": Canary(canary)}, made)
    return made.read_bytes()


@pytest.mark.parametrize(
    "kind", ["pickle", *(pytest.param(k, marks=pytest.mark.slow) for k in ("numpy", "torch"))]
)
def test_a_pickle_in_the_place_of_any_file_of_a_store_is_never_loaded(
    store: Store, invoke: Invoke, tmp_path: Path, kind: str
) -> None:
    canary = tmp_path / "canary"
    evil = planted(canary, kind)
    home = store.root / "trials" / _first(store)[:2] / _first(store)
    stage = store.root / f"stages/tokens/{'0' * 20}"
    made = ("checkpoint/000000001/state.npz", "artifacts/maps.npy")
    shared = (stage / "tokens.npy", stage / "stage.json", store.root / "index.parquet")
    for extra in (*(home / name for name in made), *shared):
        extra.parent.mkdir(parents=True, exist_ok=True)
        extra.write_bytes(b"")
    assert invoke("export", "archive", "out.tar")[0] == 0
    (tmp_path / "evil.tar").write_bytes(evil)
    files = [p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "tensorboard"]
    files = [p for p in files if p.is_relative_to(home) or "trials" not in p.parts]
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(evil)
        if path.name in ("predictions.parquet", "record.json", "plan.json"):
            list(commands(store, invoke, tmp_path / "evil.tar"))
        else:
            invoke("report")
            invoke("doctor", "--deep")
        path.write_bytes(kept)
    for path in files:
        path.write_bytes(evil)
    list(commands(store, invoke, tmp_path / "evil.tar"))
    invoke("run", "noise.yaml", "--inline")
    invoke("doctor", "--repair")
    assert invoke("run", "noise.yaml", "--inline")[0] in (0, 2)
    assert not canary.exists()
    pickle.loads(planted(canary, "pickle"))  # the canary sings where it is unpickled
    assert canary.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["dinomaly-baseline", "mil-as_published", "patchcore-ivfpq"])
def test_a_method_that_resumes_refuses_a_pickle_in_its_checkpoint_and_its_stages(
    invoke: Invoke, tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_conformance import DATASETS, METHODS

    monkeypatch.setenv("HDSWEEP_CHECKPOINT_S", "0")
    name, _, small = setting.partition("-")
    data = METHODS[name].data or "hdmap"
    block = {
        "name": data,
        "root": "data",
        "make": dict(DATASETS[data].make),
        **DATASETS[data].params,
    }
    sweep = {
        "name": "evil", "method": name, "data": block, "seeds": [1],
        "arms": {"one": dict(METHODS[name].small[small])}, "resources": {"gpus": 0, "cpus": 1},
    }  # fmt: skip
    (tmp_path / "evil.yaml").write_text(json.dumps(sweep))
    status, _, err = invoke("run", "evil.yaml", "--inline")
    assert status == 0, err
    canary, root = tmp_path / "canary", tmp_path / "results"
    evil = {kind: planted(canary, kind) for kind in ("pickle", "numpy", "torch")}
    trial = next(root.glob("trials/*/*/record.json")).parent
    # Of every file of its stages, and of checkpoints as it would have left them.
    arrays = [p for p in root.rglob("stages/*/*/*") if p.is_file() and p.name != "stage.json"]
    for kind, content in evil.items():
        (trial / "record.json").unlink()
        for path in arrays:
            path.write_bytes(content)
        for file in ("state.pt", "scores.npy"):  # as trainables name them
            (trial / "checkpoint/000000001" / file).parent.mkdir(parents=True, exist_ok=True)
            (trial / "checkpoint/000000001" / file).write_bytes(content)
        assert invoke("run", "evil.yaml", "--inline", "--rerun", "failed")[0] in (0, 1, 2), kind
        assert not canary.exists(), kind


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [canary]", "!!python/object/new:os.mkdir [canary]",
        "!!python/name:os.mkdir", "!!python/module:os", "!evil x", "!!binary aGk=",
    ],
)  # fmt: skip
def test_a_tag_in_a_sweep_file_makes_nothing(
    store: Store, invoke: Invoke, tmp_path: Path, tag: str
) -> None:
    text = SWEEP.replace("question: Does strength separate the classes?", f"question: {tag}")
    (tmp_path / "evil.yaml").write_text(text)
    for command in ("plan", "check", "run"):
        status, out, err = invoke(command, "evil.yaml")
        assert status in (1, 2), (command, err)
        assert "YAML tags are not allowed" in out + err
    (store.root / "sweeps/noise/sweep.yaml").write_text(text)
    for words in (
        ("report",),
        ("export", "optuna"),
        ("replay", "noise", "--race", "2"),
        ("doctor",),
    ):
        assert invoke(*words)[0] in (0, 1, 2)
    assert not (tmp_path / "canary").exists()


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "", "a/b", "x\n", "\x1b[31m", "x\0"])
def test_a_name_from_the_command_line_leads_nowhere(
    store: Store, invoke: Invoke, tmp_path: Path, name: str
) -> None:
    before = everything(tmp_path)
    for words in (
        ("report", name), ("status", name), ("show", name), ("replay", name),
        ("export", "optuna", name), ("export", "archive", "out.tar", "--sweep", name),
        ("cache", "remove", name), ("watch", name, "--port", "0"),
    ):  # fmt: skip
        status, _, err = invoke(*words)
        assert status == 2, words
        assert "\x1b[31m" not in err
    assert everything(tmp_path) == before


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if not p.name.endswith(".lock")
    }


def test_what_a_store_names_outside_of_itself_is_neither_read_nor_written(
    store: Store, invoke: Invoke, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("hunter2-is-secret")
    first = store.trial_dir(_first(store))
    record = json.loads((first / "record.json").read_bytes())
    record["artifacts"] = ["../../../../../outside/secret.txt", "/etc/passwd"]
    (first / "record.json").write_text(json.dumps(record))
    plan = store.root / "sweeps/noise/plan.json"
    value = json.loads(plan.read_bytes())
    value["cells"][0]["trials"]["1"] = "../../../outside"
    plan.write_text(json.dumps(value))
    second = sorted(store.root.glob("trials/*/*"))[1]
    shutil.move(second, outside / "trial")
    second.symlink_to(outside / "trial")
    (store.root / "sweeps/linked").symlink_to(outside)
    before = everything(outside)
    for _, text in commands(store, invoke):
        assert "hunter2" not in text
    for words in (("doctor", "--repair"), ("cache", "trim", "0"), ("cache", "remove", "--all")):
        invoke(*words)
    assert everything(outside) == before
    assert b"hunter2" not in (tmp_path / "out.tar").read_bytes()


def test_a_record_cannot_take_over_the_terminal_of_who_reads_it(
    store: Store, invoke: Invoke
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mgone\x9b31m"
    for path in store.root.glob("trials/*/*/record.json"):
        value = json.loads(path.read_bytes())
        value |= {"status": "failed", "error": {"kind": evil, "message": evil, "traceback": evil}}
        value["trial"]["params"][evil] = evil
        value["provenance"] |= {"host": evil, "device": evil}
        value["started"] = evil
        value["scalars"] = {evil: 1.0}
        path.write_text(json.dumps(value))
    plan = store.root / "sweeps/noise/plan.json"
    text = plan.read_text().replace('"arm": "weak"', json.dumps({"arm": evil})[1:-1])
    plan.write_text(text.replace('"weak"', json.dumps(evil)))
    for _, printed in commands(store, invoke):
        sent = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
        assert sent == []


# --- secrets and sockets --------------------------------------------------------------------------


def test_nothing_of_the_environment_is_kept(ran: Path) -> None:
    kept = [p for p in (ran / "results").rglob("*") if p.is_file()]
    assert len(kept) > 20
    assert [p for p in kept if b"hunter2" in p.read_bytes()] == []


def _tree(root: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found, size = {root}, 0
    while len(found) > size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def _listening(processes: set[int]) -> set[str]:
    """Local addresses, in the kernel's hexadecimal, at which processes wait for others."""
    inodes = set()
    for pid in processes:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
        except OSError:
            continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_on_this_machine_listens_to_this_machine_only(
    sweep_file: Write, tmp_path: Path
) -> None:
    sweep_file(SWEEP.replace("strength: 0.5", "sleep_s: 60"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "run", "noise.yaml"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("Ray dashboard" in line for line in process.stderr)
        seen: set[str] = set()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(tmp_path.glob("results/trials/*/*/log.txt")):
            seen |= _listening(_tree(process.pid))
        seen |= _listening(_tree(process.pid))
        assert seen
        assert seen <= LOOPBACK
    finally:
        process.terminate()
        process.communicate(timeout=60)
