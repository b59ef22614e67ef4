"""A sweep of bags and attention, with the embedder that its trials share trained once, and not.

    python -m benchmarks.mil_sweep [--seeds 3] [--arms 4]

``sweeps/mil_quickstart.yaml`` as it stands: four settings of the attention network and three seeds.
It is run twice, ``hdsweep run`` and ``hdsweep run --no-stages``, whole processes with Ray's start
and the report, each into a store of its own. Printed are both times and their ratio, how many
embedders were trained, and whether the predictions of every trial are the same to the bit.

Aimed at: at most a third of the time, and one embedder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

from benchmarks.sides import ROOT, run, same
from hdsweep.store import Store


def main() -> None:
    """Run both sides and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hds-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        spec = yaml.safe_load((ROOT / "sweeps" / "mil_quickstart.yaml").read_text())
        spec["data"]["root"] = str(folder / "data")
        spec["seeds"] = spec["seeds"][: options.seeds]
        spec["arms"] = dict(list(spec["arms"].items())[: options.arms])
        run(folder, spec, "warm", "plan")  # makes the data, and their digests
        with_s = run(folder, spec, "with", "run")
        without_s = run(folder, spec, "without", "run", "--no-stages")
        equal, trials = same(Store(folder / "with"), Store(folder / "without"), spec["name"])
        trained = [_trained(Store(folder / side), spec["name"]) for side in ("with", "without")]
    print(
        f"{trials} trials\n"
        f"with stages   {with_s:8.1f} s, {trained[0]} embedders trained\n"
        f"--no-stages   {without_s:8.1f} s, {trained[1]} embedders trained   "
        f"{without_s / with_s:.1f} times as long\n"
        f"predictions   {equal} of {trials} trials the same to the bit"
    )


def _trained(store: Store, name: str) -> int:
    """How many trials trained an embedder."""
    logs = (store.trial_dir(i) / "log.txt" for i in store.sweep(name).labels())
    return sum("training the embedder" in path.read_text() for path in logs)


if __name__ == "__main__":
    main()
