"""Memory and time of PatchCore on whole slides, whatever their size.

    python -m benchmarks.slide_memory [--side 40000] [--small 8000] [--tissue 0.05] [--pixels 160]

Makes three pyramidal TIFFs of ``side`` x ``side`` pixels (one to train on, a normal and an
anomalous one to test), and three of ``small``, and runs one trial of PatchCore on each, ``hdsweep
run --inline`` in a process of its own: ResNet-18 with random weights, tiles of 256 pixels at full
resolution that it sees at 160 pixels, 100 training tiles, 1 % of their patches, streamed test
features. Printed are the peak memory of each process, that of making the slides, and what they
would take if read whole.

Aimed at: below 1.5 GB at 40,000 x 40,000, and about the same for the small ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.sides import ROOT
from hdsweep.execute import thread_environment
from hdsweep.store import Store

KNOBS: dict[str, Any] = {
    "encoder": "resnet18",
    "weights": "random",
    "crop": None,
    "pretrain_embed_dimension": None,
    "target_embed_dimension": None,
    "coreset_percent": 1,
    "test_features": "streamed",
}


def main() -> None:
    """Make, run and print both sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--small", type=int, default=8_000)
    parser.add_argument("--tissue", type=float, default=0.05)
    parser.add_argument("--pixels", type=int, default=160, help="of a tile as the encoder sees it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hds-", ignore_cleanup_errors=True) as name:
        for side in (options.small, options.side):
            _one(Path(name) / str(side), side, options.tissue, options.pixels)


def _one(folder: Path, side: int, tissue: float, pixels: int) -> None:
    folder.mkdir()
    make = {"train": 1, "normal": 1, "anomalous": 1, "size": side, "tissue": tissue}
    spec = {
        "name": f"slides_{side}",
        "method": "patchcore",
        "data": {"name": "slides", "root": str(folder / "data"), "train_tiles": 100, "make": make},
        "params": KNOBS | {"resize": pixels},
        "seeds": [42],
        "arms": {"one": {}},
        "resources": {"gpus": 0, "cpus": os.cpu_count() or 1},
        "report": {"metrics": ["auroc[group=tile]"]},
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(spec))
    made_s, made_mb = _run("plan", path, folder)
    ran_s, ran_mb = _run("run", path, folder, "--inline")
    store = Store(folder / "store")
    (record,) = store.records(store.finished()).values()
    scalars = record.scalars
    print(
        f"{side:,} x {side:,}: made in {made_s:.0f} s with {made_mb:,.0f} MB; trial {ran_s:.0f} s "
        f"with {ran_mb:,.0f} MB at most, where a slide has {3 * side * side / 1e6:,.0f} MB; "
        f"a slide of {scalars['slide_tiles']:.0f} tiles takes {scalars['slide_s']:.1f} s; "
        f"auroc of tiles {record.metrics['auroc']['tile']:.3f}",
        flush=True,
    )


def _run(command: str, path: Path, folder: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command's process."""
    began = time.perf_counter()
    store = ("--store", str(folder / "store"))
    arguments = [sys.executable, "-m", "hdsweep.cli", command, str(path), *store, *options]
    environment = os.environ | thread_environment(os.cpu_count() or 1)
    os.chdir(ROOT)
    pid = os.posix_spawn(sys.executable, arguments, environment)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    main()
