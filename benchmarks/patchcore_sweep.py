"""The ablation of compressed memory banks, with the work that its trials share done once, and not.

    python -m benchmarks.patchcore_sweep [--train 300] [--good 1] [--defect 1] [--seeds 1]

``sweeps/patchcore_ivfpq.yaml`` as it stands, but for its data (synthetic pictures in MVTec AD's
layout, one category), its weights (random: there may be no network), its seeds, and its resources:
one trial at a time on all cores. It is run twice, ``hdsweep run`` and ``hdsweep run --no-stages``,
whole processes with Ray's start and the report, each into a store of its own. Printed are both
times and their ratio, whether the predictions of every trial are the same to the bit, and how long
a second sweep takes to start on the features of the first: one more coreset of the same encoder.

Aimed at: at least 8 times less with stages. The proportions decide it: thirteen trials cannot gain
more than thirteenfold, and what each must do itself, scoring its pictures and measuring its
latency, is not shared. The default has as many training pictures as a category of MVTec AD and few
to test; with a third as many to test as to train, as there, less is gained (try ``--good 40``).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import yaml

from benchmarks.sides import ROOT, run, same
from hdsweep.store import Store


def main() -> None:
    """Run both sides and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--good", type=int, default=1)
    parser.add_argument("--defect", type=int, default=1, help="of each of three kinds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", default="", help="another one than the file's")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="hds-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        make = {"categories": ["bottle"], "size": 256}
        make |= {key: getattr(options, key) for key in ("train", "good", "defect")}
        spec = yaml.safe_load((ROOT / "sweeps" / "patchcore_ivfpq.yaml").read_text())
        spec["data"] |= {"root": str(folder / "data"), "categories": ["bottle"], "make": make}
        spec["params"]["weights"] = "random"
        spec["params"]["encoder"] = options.encoder or spec["params"]["encoder"]
        spec["seeds"] = spec["seeds"][: options.seeds]
        spec["resources"] = {"gpus": 0, "cpus": cores}
        run(folder, spec, "warm", "plan")  # makes the data, and their digests
        with_s = run(folder, spec, "with", "run")
        without_s = run(folder, spec, "without", "run", "--no-stages")
        equal, trials = same(Store(folder / "with"), Store(folder / "without"), spec["name"])
        print(f"{equal} of {trials} trials have the same predictions to the bit", flush=True)
        arms = {"random": {"coreset": "random"}}
        second = spec | {"name": "second", "arms": arms, "report": {"metrics": ["auroc"]}}
        second_s = run(folder, second, "with", "run")
        log = _only_log(Store(folder / "with"), "second")
    pictures = options.train + options.good + 3 * options.defect
    print(
        f"{trials} trials, {pictures} pictures, {spec['params']['encoder']}, one trial at a time "
        f"on {cores} cores\n"
        f"with stages      {with_s:8.1f} s\n"
        f"--no-stages      {without_s:8.1f} s   {without_s / with_s:.1f} times as long\n"
        f"predictions      {equal} of {trials} trials the same to the bit\n"
        f"a second sweep   {second_s:8.1f} s   features {'built again' if log else 'found'}"
    )


def _only_log(store: Store, name: str) -> bool:
    """Whether a trial of this sweep encoded images."""
    logs = (store.trial_dir(i) / "log.txt" for i in store.sweep(name).labels())
    return any("encoding" in path.read_text() for path in logs)


if __name__ == "__main__":
    main()
