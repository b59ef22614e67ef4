"""Sweeps of Dinomaly from the command line, as a person runs them: what goes wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ROOT, Run, read

pytestmark = pytest.mark.slow

SHAPE = {"patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
SMALL: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "weights": "random",
    **SHAPE,
    "resize": "16x12",
    "crop": None,
    "decoder_depth": 2,
    "max_steps": 6,
    "lr_warmup_steps": 2,
}
MAPS = {"name": "hdmap", "root": "maps", "make": {"train": 6, "good": 4, "fault": 4}}
PICTURES = {
    "name": "mvtec",
    "root": "pictures",
    "categories": ["bottle", "screw"],
    "make": {"categories": ["bottle", "screw"], "size": 32, "train": 6, "good": 4, "defect": 2},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        arms: dict[str, Any],
        data: dict[str, Any] = MAPS,
        seeds: tuple[int, ...] = (42,),
        **more: Any,
    ) -> Path:
        path = tmp_path / "sweep.yaml"
        sweep = {
            "name": "sweep",
            "method": "dinomaly",
            "data": data,
            "params": SMALL,
            "seeds": list(seeds),
            "arms": arms,
            "resources": {"gpus": 0, "cpus": 1},
        }
        path.write_text(yaml.safe_dump(sweep | more, sort_keys=False))
        return path

    return write


def weights(folder: Path, *, broken: bool) -> str:
    """A folder with an encoder of ``SHAPE``, a bias of which may be NaN."""
    folder.mkdir()
    vit = timm.create_model(SMALL["encoder"], num_classes=0, img_size=(16, 12), **SHAPE)
    state = vit.state_dict()
    if broken:
        state["blocks.2.mlp.fc2.bias"][3] = torch.nan
    save_file(state, folder / "model.safetensors")
    return str(folder)


def test_what_cannot_be_run_is_named_and_the_sweep_goes_on(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    whole, broken = (weights(tmp_path / name, broken=name == "nan") for name in ("good", "nan"))
    sweep = write(
        {
            "good": {"variant": "aux", "weights": whole},
            "misspelt": {"encoder": "vit_tiny_patch16_242"},
            "layers": {"target_layers": [3, 4]},
            "too-wide": {"weights": whole, "embed_dim": 32},
            "nan-kept": {"weights": broken},
            "nan-each-step": {"weights": broken, "tokens": "none"},
        }
    )
    done = hdsweep("run", sweep, "--inline", "--format", "json")
    assert done.returncode == 1
    assert {k: read(done)[k] for k in ("ok", "failed", "diverged", "not_finished")} == {
        "ok": 1, "failed": 4, "diverged": 1, "not_finished": 0,
    }  # fmt: skip
    told = {
        t["label"].split()[0]: t["message"]
        for t in read(hdsweep("status", "--format", "json"))["not_ok"]
    }
    assert "did you mean 'vit_tiny_patch16_224'?" in told["misspelt"]
    assert "has 4 blocks, 0 to 3; layer 4 is not one of them" in told["layers"]
    assert "model.safetensors do not fit encoder" in told["too-wide"]
    assert told["nan-kept"].startswith("domain_A/test/good/")
    assert "output is NaN or infinite" in told["nan-kept"]
    assert told["nan-each-step"] == "loss is not finite at step 1"
    table = hdsweep("report", "--metric", "auroc").stdout
    assert "— (diverged)" in table
    assert "nan-each-step, seed 42: diverged: loss is not finite at step 1" in table
    trial = hdsweep("status", "--format", "json")
    (diverged,) = [t["id"] for t in read(trial)["not_ok"] if t["status"] == "diverged"]
    curve = next((tmp_path / "results").glob(f"trials/*/{diverged}/curve.jsonl")).read_text()
    assert json.loads(curve)["loss"] == "nan"
    assert json.loads(curve)["grad/nan_count"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": SMALL | {"resize": "16x13"}},
            "width 13 is not a multiple of the patch size 4; use 12 or 16",
        ),
        ({"data": MAPS | {"domains": ["A", "E"]}}, "data.domains"),
        (
            {"params": SMALL | {"varient": "gem"}},
            "unknown knob 'varient' of method dinomaly; did you mean 'variant'?",
        ),
        ({"data": PICTURES | {"categories": ["bottle", "scew"]}}, "scew"),
    ],
)
def test_what_the_file_shows_to_be_wrong_is_refused_with_its_line(
    hdsweep: Run, write: Write, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    done = hdsweep("run", write({"one": {}}, **change), "--inline")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sweep.yaml:" in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "results").exists()


def test_what_a_method_warns_of_is_said_before_a_sweep(hdsweep: Run, write: Write) -> None:
    sweep = write({"plain": {}, "watched": {"validation": "from_test"}})
    expected = "watched: validation is drawn from the test items (10 % of them)"
    for command in (("plan", sweep), ("run", sweep, "--inline"), ("check", sweep)):
        done = hdsweep(*command)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("warning: ") == 1
        assert f"warning: {expected}" in done.stdout + done.stderr
    ((told,),) = (file["warnings"] for file in read(hdsweep("check", sweep, "--format", "json")))
    assert told.startswith(expected)


def test_a_corrupt_image_among_the_training_data_is_named_before_anything_runs(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    sweep = write({"one": {"variant": "focal"}}, PICTURES)
    assert hdsweep("plan", sweep).returncode == 0
    victim = sorted((tmp_path / "pictures/screw/train/good").iterdir())[3]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    done = hdsweep("run", sweep, "--inline")
    assert done.returncode == 2
    assert str(victim) in done.stderr
    assert "Traceback" not in done.stderr
    victim.write_bytes(whole)
    assert hdsweep("run", sweep, "--inline").returncode == 0


def test_an_empty_split_is_named(hdsweep: Run, write: Write, tmp_path: Path) -> None:
    sweep = write({"one": {}}, PICTURES)
    assert hdsweep("plan", sweep).returncode == 0
    for path in (tmp_path / "pictures/bottle/train/good").iterdir():
        path.unlink()
    done = hdsweep("run", sweep, "--inline")
    assert done.returncode == 2
    assert "bottle/train/good" in done.stderr


def test_without_masks_pixel_metrics_are_absent_and_not_zero(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    report = {"metrics": ["auroc", "pixel_auroc", "aupro"]}
    sweep = write({"one": {}}, PICTURES, report=report)
    assert hdsweep("plan", sweep).returncode == 0
    masks = sorted((tmp_path / "pictures/screw/ground_truth").rglob("*.png"))
    masks[0].unlink()
    assert hdsweep("run", sweep, "--inline").returncode == 0
    (record,) = (tmp_path / "results").glob("trials/*/*/record.json")
    kept = json.loads(record.read_bytes())
    for metric in ("pixel_auroc", "pixel_ap", "aupro", "aupro@5"):
        assert kept["metrics"][metric]["screw"] is None
        assert 0 < kept["metrics"][metric]["bottle"] <= 1
        assert "no mask for 1 of 6 anomalous images" in kept["missing"][metric]["screw"]
    assert kept["metrics"]["auroc"]["screw"] is not None
    table = hdsweep("report", "--metric", "aupro").stdout
    assert "— (undefined)" in table
    assert "no mask for 1 of 6" in table


def test_a_mask_of_another_size_costs_pixel_metrics_and_no_trial(
    hdsweep: Run, write: Write, tmp_path: Path
) -> None:
    sweep = write({"one": {}}, PICTURES)
    assert hdsweep("plan", sweep).returncode == 0
    mask = min((tmp_path / "pictures/screw/ground_truth").rglob("*.png"))
    Image.new("L", (9, 9), 255).save(mask)
    assert hdsweep("run", sweep, "--inline").returncode == 0
    (record,) = (tmp_path / "results").glob("trials/*/*/record.json")
    kept = json.loads(record.read_bytes())
    assert kept["metrics"]["aupro"]["screw"] is None
    assert str(mask) in kept["missing"]["aupro"]["screw"]
    assert kept["metrics"]["aupro"]["bottle"] is not None
    assert kept["metrics"]["auroc"]["screw"] is not None


@pytest.mark.long
def test_on_data_of_the_quickstarts_size_topk_differs_from_the_baseline(
    hdsweep: Run, tmp_path: Path
) -> None:
    """In each replicate; in which direction is a question for real data and a real encoder."""
    sweep = yaml.safe_load((ROOT / "sweeps/quickstart.yaml").read_text())
    sweep["params"] |= {"max_steps": 60, "lr_warmup_steps": 6, "pretext_steps": 60}
    sweep["arms"] = {
        "baseline": {"variant": "baseline", "p_schedule_steps": 60},
        "topk": {"variant": "topk", "q_percent": 20, "warmup_steps": 12},
    }
    path = tmp_path / "size.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    done = hdsweep("run", path, "--inline", timeout=400)
    assert done.returncode == 0, done.stderr
    auroc: dict[str, dict[int, float]] = {"baseline": {}, "topk": {}}
    for record in (tmp_path / "results").glob("trials/*/*/record.json"):
        kept = json.loads(record.read_bytes())
        variant, seed = kept["trial"]["params"]["variant"], kept["trial"]["seed"]
        auroc[variant][seed] = float(np.mean(list(kept["metrics"]["auroc"].values())))
    paired = [auroc["topk"][seed] - auroc["baseline"][seed] for seed in (42, 43, 44)]
    print("topk - baseline, AUROC by seed:", [f"{d:+.4f}" for d in paired])
    assert all(d != 0 for d in paired)


def test_the_search_quickstart_draws_stops_and_confirms_on_seeds_of_their_own(
    hdsweep: Run, tmp_path: Path
) -> None:
    """With fewer steps, images and draws than the file has."""
    sweep = yaml.safe_load((ROOT / "sweeps/search_quickstart.yaml").read_text())
    sweep["data"]["make"] |= {"train": 24, "good": 12, "fault": 12}
    sweep["params"] |= {"max_steps": 24, "lr_warmup_steps": 2, "pretext_steps": 30}
    sweep["arms"]["tuned"] |= {"validate_every": 6}
    sweep["stop"]["grace"] = 6
    sweep["search"]["trials"] = 5
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    done = hdsweep("run", path, "--inline", timeout=400)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "results/sweeps/search_quickstart/decisions.jsonl").read_text()
    events = [json.loads(line) for line in log.splitlines()]
    told = {event["number"]: event for event in events if event["event"] == "told"}
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert {event["state"] for event in told.values()} == {"complete", "pruned"}
    chosen = {event["arm"]: event for event in events if event["event"] == "chosen"}
    assert set(chosen) == {"default", "tuned"}
    assert all(set(event["trials"]) == {"44", "45", "46"} for event in chosen.values())
    # The one that is confirmed did best on the seeds to choose by.
    complete = [event for event in told.values() if event["state"] == "complete"]
    best = max(complete, key=lambda event: event["values"])["number"]
    drawn = {event["number"]: event["cell"] for event in events if event["event"] == "asked"}
    assert chosen["tuned"]["knobs"] == drawn[best]
    kept = [
        json.loads(p.read_bytes()) for p in (tmp_path / "results").glob("trials/*/*/record.json")
    ]
    pruned = [one for one in kept if one["status"] == "pruned"]
    assert pruned
    assert all("asha: val/auroc" in one["error"]["message"] for one in pruned)
    assert f"tuned #{best}" in done.stdout
    assert "chosen by best auroc over seeds 42, 43" in done.stdout
    again = hdsweep("run", path, "--inline")
    assert again.returncode == 0
    assert "nothing to run" in again.stderr
