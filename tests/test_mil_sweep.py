"""Sweeps of mixed documents from the command line: learnt, shared, refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hdsweep.method import load_dataset
from hdsweep.store import Store
from tests.conftest import ROOT, Run, read

TINY: dict[str, Any] = {
    "name": "tiny",
    "method": "mil",
    "data": {
        "name": "handwriting",
        "root": "words",
        "writers": [6, 3, 3],
        "make": {"writers": 12, "words": 4, "repetitions": 9, "height": 16, "width": 48},
    },
    "params": {
        "encoder": "test_resnet",
        "weights": "random",
        "resize": "16x48",
        "crop": None,
        "projection_dim": 16,
        "embedding_dim": 8,
        "embedder_epochs": 1,
        "window": 2,
        "stride": 2,
        "block": 5,
        "ratios": [0.2, 0.4],
        "epochs": 3,
    },
    "seeds": [1, 2, 3],
    "arms": {
        "one": {},
        "centred": {"centre": "bag"},
        "wider": {"hidden": 32},
        "rule": {"threshold_rule": "f1"},
    },
    "resources": {"gpus": 0, "cpus": 1},
    "report": {"metrics": ["auroc"]},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        sweep = TINY | changes
        sweep["data"] = TINY["data"] | changes.get("data", {})
        sweep["params"] = TINY["params"] | changes.get("params", {})
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        return path

    return write


def logs(store: Path) -> list[str]:
    return [path.read_text() for path in store.glob("trials/*/*/log.txt")]


def quickstart(tmp_path: Path, **changes: Any) -> Path:
    sweep = yaml.safe_load((ROOT / "sweeps" / "mil_quickstart.yaml").read_text())
    path = tmp_path / "mil_quickstart.yaml"
    path.write_text(yaml.safe_dump(sweep | changes, sort_keys=False))
    return path


@pytest.mark.slow
def test_the_quickstart_learns_to_tell_unseen_writers_apart(tmp_path: Path, hdsweep: Run) -> None:
    sweep = yaml.safe_load((ROOT / "sweeps" / "mil_quickstart.yaml").read_text())
    arms = {name: sweep["arms"][name] for name in ("centred", "control")}
    path = quickstart(tmp_path, seeds=[42], arms=arms, report={"metrics": ["auroc"]})
    done = hdsweep("run", path, "--inline", timeout=900)
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "results")
    labels = store.sweep().labels()
    found = {labels[i].split()[0]: record for i, record in store.records(labels).items()}
    centred, control = found["centred"], found["control"]
    assert centred.scalars["verification_auc"] >= 0.85
    assert centred.metrics["auroc"]["0.3"] is not None
    assert centred.metrics["auroc"]["0.3"] >= 0.80
    # Words of the same writer were put in. 53 bags against 80 spread chance over .5 ± .05.
    assert control.metrics["auroc"]["0.3"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_nothing_is_learnt_of_writers_whose_words_were_shuffled(
    tmp_path: Path, hdsweep: Run, write: Write
) -> None:
    make = {"writers": 32, "words": 7, "repetitions": 9, "spread": 1.5}
    params = load_dataset("handwriting").generator.params.model_validate(make)  # type: ignore[union-attr]
    root = tmp_path / "shuffled"
    root.mkdir()
    load_dataset("handwriting").generator.write(params, root)  # type: ignore[union-attr]
    pictures = sorted(root.glob("*/*.png"))
    contents = [path.read_bytes() for path in pictures]
    random.Random(1).shuffle(contents)
    for path, content in zip(pictures, contents, strict=True):
        path.write_bytes(content)
    data = {"root": str(root), "writers": [12, 8, 12], "make": None}
    knobs = {"embedder_epochs": 2, "resize": "32x96", "embedder_lr": 0.005, "scale": 16.0}
    knobs |= {"margin": 0.2, "embedding_dim": 32, "augment": "none", "centre": "bag", "epochs": 20}
    knobs |= {"window": 3, "stride": 3}
    path = write(data=data, params=knobs, seeds=[1], arms={"one": {}})
    done = hdsweep("run", path, "--inline", timeout=600)
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "results")
    (record,) = store.records(store.finished()).values()
    # 10,000 pairs; and 48 bags against 48, whose AUROC has a standard error of .06 by chance.
    assert record.scalars["verification_auc"] == pytest.approx(0.5, abs=0.03)
    assert record.metrics["auroc"]["0.4"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_four_settings_and_three_seeds_train_one_embedder(
    tmp_path: Path, hdsweep: Run, write: Write
) -> None:
    path = write()
    planned = read(hdsweep("plan", path, "--format", "json"))["stages"]
    names = [stage["name"] for stage in planned]
    assert sorted(names) == ["bags"] * 3 + ["embedder"] + ["embeddings"] * 3
    assert {stage["trials"] for stage in planned} == {12}
    done = hdsweep("run", path, "--format", "json", timeout=600)
    assert done.returncode == 0, done.stderr
    assert read(done)["ok"] == 12
    found = logs(tmp_path / "results")
    assert len(found) == 12
    assert sum("training the embedder" in log for log in found) == 1
    assert sum(log.count(" words, once") for log in found) == 3
    built = [p.parent.parent.name for p in (tmp_path / "results").glob("stages/*/*/stage.json")]
    assert sorted(built) == sorted(names)


def test_tasks_that_are_one_are_told_and_reported_as_one(hdsweep: Run, write: Write) -> None:
    path = write(params={"ratios": [0.1, 0.2, 0.4]}, seeds=[1], arms={"one": {}})
    done = hdsweep("plan", path)
    assert "ratios 0.1 and 0.2 both replace 1 of 5 instances: one task" in done.stderr
    metrics = {"metrics": ["auroc[ratio=0.1]"]}
    done = hdsweep("plan", write(params={"ratios": [0.1, 0.2, 0.4]}, report=metrics))
    assert done.returncode == 2
    assert "no group '0.1'; the groups are 0.1/0.2, 0.4" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"ratios": [0]}}, "ratios"),
        ({"params": {"ratios": [0.2, 1.5]}}, "ratios"),
        ({"data": {"writers": [6, 3, 9]}}, "writers"),
        ({"data": {"writers": [6, 3]}}, "data.writers: entry 3 of the list is missing"),
        ({"params": {"weights": "pretext"}}, "trained to tell writers apart"),
        ({"params": {"block": 1, "centre": "bag"}}, "would see zeros; raise block"),
        ({"params": {"margn": 0.2}}, "did you mean 'margin'?"),
    ],
)
def test_what_the_file_shows_to_be_wrong_is_refused_with_its_line(
    hdsweep: Run, write: Write, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    done = hdsweep("plan", write(**changes))
    assert done.returncode == 2
    assert "tiny.yaml:" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_block_larger_than_every_document_is_told_by_the_plan(hdsweep: Run, write: Write) -> None:
    done = hdsweep("plan", write(params={"block": 40}), "--format", "json")
    refused = read(done)["infeasible"]
    assert len(refused) == 12
    assert "40 instances" in refused[0]["reason"]
    assert "lower block or window" in refused[0]["reason"]


def test_a_word_without_its_picture_is_named_before_anything_runs(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    assert hdsweep("plan", write()).returncode == 0
    gone = sorted((tmp_path / "words").glob("*/*.png"))[5]
    gone.unlink()
    done = hdsweep("run", write(), "--inline")
    assert done.returncode == 2
    assert gone.name in done.stderr
    assert done.stderr.strip().count("\n") == 0
    shutil.rmtree(tmp_path / "words")
