"""What hdsweep costs over plain Ray Tune: 64 trivial trials on 8 logical GPUs, whole processes.

    python -m benchmarks.driver_overhead --trials 64 --repeats 5

Side by side in one run, in turn: hdsweep as `hdsweep run`, and stock Ray Tune with
`reuse_actors=True`, once as it comes and once with its loggers off. Both score the same test items
by the same seeded noise; hdsweep also keeps records, predictions and metrics, Tune its own result
files. Ratios are medians over the repeats; a ratio below 1 means hdsweep took less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

SWEEP = """\
name: overhead
method: tests.methods.noise
data: {{name: tests.methods.labels, root: {root}, make: {{items: 40}}}}
seeds: [{seeds}]
arms:
  a: {{level: {{grid: [0, 1, 2, 3, 4, 5, 6, 7]}}}}
resources: {{gpus: 1, cpus: 1}}
report: {{metrics: [auroc]}}
"""

STOCK = """\
import sys, time
import numpy as np, ray
from ray import tune

def noise(config):
    random = np.random.default_rng([config["seed"], config["level"]])
    label = np.arange(80) % 2
    tune.report({"loss": 0.5, "score": float((label + random.standard_normal(80)).mean())})

ray.init(num_gpus=8, num_cpus=8, log_to_driver=False, logging_level="ERROR")
tuner = tune.Tuner(
    tune.with_resources(noise, {"cpu": 1, "gpu": 1}),
    param_space={
        "level": tune.grid_search(list(range(8))),
        "seed": tune.grid_search(list(range(int(sys.argv[1]) // 8))),
    },
    tune_config=tune.TuneConfig(reuse_actors=True),
    run_config=tune.RunConfig(storage_path=sys.argv[2], name="stock", verbose=0),
)
results = tuner.fit()
assert len(results) == int(sys.argv[1]) and not results.errors
"""


def _timed(command: list[str], **environment: str) -> float:
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-2000:]}")
    return time.monotonic() - began


def main() -> None:
    """Time the three in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"hdsweep": [], "stock": [], "stock, loggers off": []}
    environment = {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    for repeat in range(options.repeats + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            seeds = ", ".join(map(str, range(options.trials // 8)))
            (folder / "sweep.yaml").write_text(SWEEP.format(root=folder / "labels", seeds=seeds))
            (folder / "stock.py").write_text(STOCK)
            ours = [
                sys.executable, "-m", "hdsweep.cli", "run", str(folder / "sweep.yaml"),
                "--gpus", "8", "--cpus", "8", "--store", str(folder / "results"),
            ]  # fmt: skip
            stock = [sys.executable, str(folder / "stock.py"), str(options.trials)]
            off = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
            now = {
                "hdsweep": _timed(ours, **environment),
                "stock": _timed([*stock, str(folder / "one")], **environment),
                "stock, loggers off": _timed([*stock, str(folder / "two")], **environment, **off),
            }
        if repeat:  # the first warms the disk cache
            for key, value in now.items():
                times[key].append(value)
        print(json.dumps({k: round(v, 2) for k, v in now.items()}), flush=True)
    print(f"\n{options.trials} trials, {options.repeats} repeats, {os.cpu_count()} cores")
    for key, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["hdsweep"], found, strict=True))
        print(
            f"{key:20} median {statistics.median(found):6.2f} s "
            f"(min {min(found):.2f}, max {max(found):.2f})   hdsweep / this {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
