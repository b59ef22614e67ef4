"""A sweep of Dinomaly against the same trials through anomalib's Engine, whole, on two CPU cores.

    python -m benchmarks.dinomaly_sweep [--steps 24] [--repeats 1] [--quick]

Four variants (baseline, gem, topk, focal) with three seeds, side by side in one run: ``hdsweep
run`` with Ray, two trials at a time of one thread each; and twelve processes that each train one
variant with one seed through anomalib's ``Engine``, two at a time of one thread each, as users
start them with ``python train.py --seed 42 &``. Aimed at: hdsweep takes at most a third of the
wall time, and the encoder at most 2 % of a training step of a trial that finds its tokens.

*The same on both sides*: the maps (synthetic, four domains, the same TIFFs), the encoder (ViT-S/16
with random weights, the same file), sizes (resized to 128, cropped to 112, the published ratio),
losses and way to an anomaly map (``trainables.dinomaly.losses``; the baseline's is anomalib's own),
steps, batch, optimiser, gradient clipping, learning rate *per step* (anomalib counts epochs, and
would hardly learn in so few), seeds (but not the same draws), threads, and
``OMP_WAIT_POLICY=PASSIVE``, without which two processes on two cores slow each other down.

anomalib runs twice. *As it comes*, with all that its ``Engine`` does unless told otherwise: after
each epoch a checkpoint and a validation (on a tenth of the test maps), post-processing, metrics,
and an image of each test map. That is what its users run. *Bare*, it is spared what the question is
not about: one pass over the test maps at the end, and nothing else. In both ``num_workers=0``, as
worker processes would only take the two cores from training, and a bare TIFF reader. *hdsweep is
spared nothing*: start of Ray, plan, digests of all files, encoding, curves, predictions, ten
metrics a trial, report. Of both, the modules are in the disk cache.

*Proportions* are the published ones: a step trains on 16 maps, and to S steps belong S training and
2 S test maps per domain, so 16 S passes through training (4 epochs) and 8 S through testing: 2:1,
as 1000 steps with 8000 test maps. A trial is 40 times shorter than a published one, though, so what
a process takes to start weighs more, above all on anomalib's side, where each trial starts one. So
the table also has the seconds that are left without it: ``fit`` and ``predict`` of anomalib, and a
trial's own seconds of hdsweep, imports and encoding by the first ones included. Their ratio is
closer to what long trials would show.

At the end both sides' AUROC, means over domains and seeds: to show that they did the same work. The
encoder is random and the training short, so it says nothing about the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdsweep.execute import thread_environment

ROOT = Path(__file__).parent.parent
AT_ONCE = 2  # trials
MARK = "HDSWEEP_BENCHMARK"  # in the environment of all that is started here
SIDES = ("anomalib, bare", "anomalib, as it comes", "hdsweep")

Auroc = dict[str, list[float]]
"""Arm -> mean over domains, one value per seed."""


@dataclass
class Side:
    """What one side took, in seconds.

    Args:
        total_s: From the start of the first process to the end of the last.
        trial_s: Of each trial: a process of anomalib's, a record of hdsweep's.
        work_s: Likewise, without what the process took to start.
        auroc: Of each arm.
    """

    total_s: float
    trial_s: list[float]
    work_s: list[float]
    auroc: Auroc


def main() -> None:
    """Run both sides in turn, then time single steps, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24, help="training steps of 16 maps")
    parser.add_argument("--size", type=int, default=112, help="pixels, a multiple of 112")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="see that it runs: 2 variants, 1 seed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    quick = options.quick
    steps, repeats = (2, 1) if quick else (options.steps, options.repeats)
    seeds = [42] if quick else [42, 43, 44]
    arms = dict(list(_arms(steps).items())[: 2 if quick else None])
    with (
        tempfile.TemporaryDirectory(prefix="hds-", ignore_cleanup_errors=True) as name,
        _ends_all(Path(name)) as environment,
    ):
        folder = Path(name)
        settings = prepare(folder, steps, options.size, arms)
        _warm_up(environment)
        found: dict[str, list[Side]] = {side: [] for side in SIDES}
        for repeat in range(repeats):
            for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
                home = folder / f"{SIDES.index(side)}-{repeat}"
                home.mkdir()
                if side == "hdsweep":
                    ran = by_hdsweep(settings, seeds, home, environment)
                else:
                    ran = by_anomalib(settings, seeds, home, environment, whole=side != SIDES[0])
                found[side].append(ran)
                _end_all(environment[MARK], patience_s=20)
                print(f"{side}: {found[side][-1].total_s:.1f} s", flush=True)
        target = folder / "step.json"
        command = [sys.executable, "-m", "benchmarks.dinomaly_step", settings, target]
        _wait(_start(command, folder / "step.log", environment), folder / "step.log")
        steps_s = json.loads(target.read_text())
    trials = len(arms) * len(seeds)
    print(
        f"\n{trials} trials ({len(arms)} variants, {len(seeds)} seeds) of {steps} steps of 16 and "
        f"{8 * steps} test maps of {options.size} px, {AT_ONCE} at a time of one thread; "
        f"{os.cpu_count()} cores; repeats {repeats}\n"
    )
    _print_times(found)
    _print_steps(steps_s)
    _print_auroc(found)


def _arms(steps: int) -> dict[str, dict[str, Any]]:
    """Knobs by variant: the published schedules of 1000 steps, shortened."""
    mining = {"p_schedule_steps": steps}
    return {
        "baseline": {"variant": "baseline", **mining},
        "gem": {"variant": "gem", **mining},
        "topk": {"variant": "topk", "warmup_steps": max(1, steps // 5)},
        "focal": {"variant": "focal"},
    }


# --- What both sides are given --------------------------------------------------------------------


def prepare(folder: Path, steps: int, size: int, arms: Mapping[str, Any]) -> Path:
    """Maps, encoder and the file of settings, which is returned."""
    import timm
    import torch
    from safetensors.torch import save_file

    from trainables.data.hdmap import DATASET

    assert DATASET.generator is not None
    made = {"preset": "quickstart", "train": steps, "good": steps, "fault": steps}
    DATASET.generator.write(DATASET.generator.params.model_validate(made), folder / "maps")
    encoder, architecture = folder / "small", "vit_small_patch16_224"  # anomalib asks for the name
    encoder.mkdir()
    torch.manual_seed(0)
    vit = timm.create_model(architecture, pretrained=False, num_classes=0)
    save_file(vit.state_dict(), encoder / "model.safetensors")
    config = {"input_size": [3, 224, 224], "num_classes": 0}
    config = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": config}
    (encoder / "config.json").write_text(json.dumps(config))
    settings = {
        "data": str(folder / "maps"),
        "encoder": str(encoder),
        "params": {
            "encoder": architecture,
            "weights": str(encoder / "model.safetensors"),
            "resize": size * 8 // 7,
            "crop": size,
            "max_steps": steps,
            "lr_warmup_steps": max(1, steps // 10),
        },
        "arms": arms,
        "timed_steps": min(steps, 12),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder / "settings.json"


def _warm_up(environment: Mapping[str, str]) -> None:
    """Read both sides' modules once, so that the first to run is not the one to read the disk."""
    modules = "ray.tune, anomalib.engine, benchmarks.anomalib_trial, benchmarks.dinomaly_step"
    command = [sys.executable, "-W", "ignore", "-c", f"import {modules}"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


# --- The two sides --------------------------------------------------------------------------------


def by_anomalib(
    settings: Path, seeds: Sequence[int], home: Path, environment: Mapping[str, str], *, whole: bool
) -> Side:
    """A process per trial, ``AT_ONCE`` at a time; ``whole`` with all that the Engine does."""
    arms = json.loads(settings.read_text())["arms"]
    waiting = deque((arm, seed) for arm in arms for seed in seeds)
    running: dict[tuple[str, int], tuple[subprocess.Popen[bytes], float]] = {}
    seconds: dict[tuple[str, int], float] = {}
    began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            arm, seed = trial = waiting.popleft()
            command = [
                sys.executable, "-m", "benchmarks.anomalib_trial", settings, arm, seed,
                home / f"{arm}-{seed}.json", *(["whole"] if whole else []),
            ]  # fmt: skip
            log = home / f"{arm}-{seed}.log"
            running[trial] = (_start(command, log, environment), time.monotonic())
        time.sleep(0.02)
        for trial, (process, started) in list(running.items()):
            if process.poll() is not None:
                arm, seed = trial
                _wait(process, home / f"{arm}-{seed}.log")
                seconds[trial] = time.monotonic() - started
                del running[trial]
    total_s = time.monotonic() - began
    found = {(a, s): json.loads((home / f"{a}-{s}.json").read_text()) for a, s in seconds}
    auroc: Auroc = {arm: [] for arm in arms}
    for (arm, _), result in sorted(found.items()):
        if not whole:
            auroc[arm].append(statistics.fmean(result["auroc"].values()))
    work_s = [result["fit_s"] + result["predict_s"] for result in found.values()]
    return Side(total_s, list(seconds.values()), work_s, auroc)


def by_hdsweep(
    settings: Path, seeds: Sequence[int], home: Path, environment: Mapping[str, str]
) -> Side:
    """``hdsweep run`` into an empty store."""
    given = json.loads(settings.read_text())
    sweep = {
        "name": "against_anomalib",
        "method": "dinomaly",
        "data": {"name": "hdmap", "root": given["data"]},
        "params": given["params"],
        "seeds": list(seeds),
        "arms": given["arms"],
        "resources": {"gpus": 0, "cpus": 1},
        "report": {"metrics": ["auroc"]},
    }
    (home / "sweep.yaml").write_text(json.dumps(sweep))
    command = [
        sys.executable, "-m", "hdsweep.cli", "run", home / "sweep.yaml", "--gpus", 0,
        "--cpus", AT_ONCE, "--store", home / "results",
    ]  # fmt: skip
    # Its digests of files are kept in the cache folder, and none of an earlier run may help it.
    environment = {**environment, "XDG_CACHE_HOME": str(home / "cache")}
    began = time.monotonic()
    _wait(_start(command, home / "log", environment), home / "log")
    total_s = time.monotonic() - began
    trial_s: list[float] = []
    auroc: Auroc = {arm: [] for arm in given["arms"]}
    records = [json.loads(p.read_text()) for p in home.glob("results/trials/*/*/record.json")]
    assert len(records) == len(given["arms"]) * len(seeds)
    for record in sorted(records, key=lambda record: int(record["trial"]["seed"])):
        trial_s.append(record["wall_s"])
        values = record["metrics"]["auroc"].values()
        auroc[record["trial"]["params"]["variant"]].append(statistics.fmean(values))
    return Side(total_s, trial_s, trial_s, auroc)


# --- Processes ------------------------------------------------------------------------------------


def _start(
    command: Sequence[object], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait():
        raise SystemExit(f"{process.args!r}:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def _ends_all(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of both sides; all that was started with it is gone in the end."""
    environment = {
        **os.environ,
        **thread_environment(1),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(folder),
        MARK: folder.name,
    }
    try:
        yield environment
    finally:
        _end_all(folder.name, patience_s=5)


def _end_all(mark: str, patience_s: float) -> None:
    """Wait for processes started here, Ray's among them; kill those that stay."""
    until = time.monotonic() + patience_s
    while left := _started(mark):
        if time.monotonic() > until:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def _started(mark: str) -> list[int]:
    """Processes with our mark in their environment, where the system shows it (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


# --- Tables ---------------------------------------------------------------------------------------


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _print_times(found: Mapping[str, Sequence[Side]]) -> None:
    print(f"{'seconds, median (range)':34}{'wall, in total':>24}{'a trial':>24}{'its work':>24}")
    for side, runs in found.items():
        trial_s = [s for run in runs for s in run.trial_s]
        work_s = [s for run in runs for s in run.work_s]
        columns = (_range([run.total_s for run in runs]), _range(trial_s), _range(work_s))
        print(f"{side:34}" + "".join(f"{column:>24}" for column in columns))
    for side in SIDES[:-1]:
        pairs = list(zip(found[side], found["hdsweep"], strict=True))
        total = [theirs.total_s / ours.total_s for theirs, ours in pairs]
        work = [sum(theirs.work_s) / sum(ours.work_s) for theirs, ours in pairs]
        print(
            f"{f'{side} / hdsweep':34}{statistics.median(total):>24.2f}{'':24}"
            f"{statistics.median(work):>24.2f}"
        )
    print()


def _print_steps(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    print(f"{'a training step, median ms':34}{'tokens':>24}{'all else':>24}{'share of tokens':>24}")
    shares = {}
    for kept, took in found.items():
        pairs = list(zip(took["tokens_s"], took["step_s"], strict=True))
        shares[kept] = statistics.median(tokens / step for tokens, step in pairs)
        tokens_ms = statistics.median(tokens for tokens, _ in pairs) * 1e3
        else_ms = statistics.median(step - tokens for tokens, step in pairs) * 1e3
        print(f"{f'tokens: {kept}':34}{tokens_ms:>24.1f}{else_ms:>24.1f}{shares[kept]:>24.2%}")
    print(f"aimed at: below 2 % of a step with tokens kept; found {shares['float16']:.2%}\n")


def _print_auroc(found: Mapping[str, Sequence[Side]]) -> None:
    sides = {side: runs for side, runs in found.items() if any(runs[0].auroc.values())}
    print(f"{'AUROC, mean over domains and seeds':34}" + "".join(f"{side:>24}" for side in sides))
    for arm in found["hdsweep"][0].auroc:
        row = [[value for run in runs for value in run.auroc[arm]] for runs in sides.values()]
        columns = (f"{statistics.fmean(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in row)
        print(f"{arm:34}" + "".join(f"{column:>24}" for column in columns))


if __name__ == "__main__":
    main()
