"""What a reported point costs, with and without its mirror for TensorBoard, and a sweep's links.

    python -m benchmarks.curve_cost [--points 1000] [--repeats 15]

Points of six metrics, in turn: lines alone (a file stands where the mirror would be made), lines
and mirror, and lines and tensorboardX's writer, what a user would call instead. Medians; the ratio
is to lines alone. Then the time to open a resumed curve, and the links of 10,000 planned trials,
made and made again.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hdsweep.curve import Curve
from hdsweep.store import PlannedCell, PlannedSweep, Store

NAMES = ("loss", "lr", "grad/total_norm", "grad/nan_count", "val/auroc", "val/tpr@1")
WRITER = "tensorboard.summary.writer.record_writer"  # with it all that a first curve imports
QUIET = logging.Logger("quiet", logging.CRITICAL)


def report(folder: Path, points: int, also: Callable[[str, float, int], object] | None) -> float:
    """Microseconds per point."""
    curve = Curve(folder, time.monotonic(), QUIET)
    began = time.perf_counter()
    for step in range(1, points + 1):
        metrics = {name: n / step for n, name in enumerate(NAMES, 1)}
        curve.add(step, metrics)
        if also:
            for name, value in metrics.items():
                also(name, value, step)
    took = time.perf_counter() - began
    curve.close()
    return took / points * 1e6


def import_ms(what: str) -> float:
    """Milliseconds that an import adds to a process that has numpy, in a process of its own."""
    code = (
        "import json, logging, time, numpy; began = time.perf_counter()\n"
        f"import {what}; print((time.perf_counter() - began) * 1e3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def points_cost(root: Path, points: int, repeats: int) -> None:
    """Print a row per way to report."""
    from tensorboardX import SummaryWriter

    found: dict[str, list[float]] = {
        "lines": [],
        "lines and mirror": [],
        "lines and tensorboardX": [],
    }
    for repeat in range(repeats):
        for name, times in found.items():
            folder = root / f"{repeat} {name}"
            folder.mkdir()
            if name != "lines and mirror":
                (folder / "tensorboard").touch()
            if name == "lines and tensorboardX":
                writer = SummaryWriter(str(folder / "theirs"), flush_secs=1)
                times.append(report(folder, points, writer.add_scalar))
                writer.close()
            else:
                times.append(report(folder, points, None))
    alone = statistics.median(found["lines"])
    for name, times in found.items():
        median = statistics.median(times)
        print(
            f"{name:24} median {median:6.1f} us per point, {min(times):.1f} to {max(times):.1f}, "
            f"ratio {median / alone:.1f}"
        )


def resume_cost(root: Path, points: int) -> None:
    """Print the time to open a curve that keeps all of its points."""
    root.mkdir()
    report(root, points, None)
    began = time.perf_counter()
    Curve(root, time.monotonic(), QUIET, last_step=points).close()
    print(f"a curve of {points} points is reopened in {time.perf_counter() - began:.2f} s")


def links_cost(root: Path, trials: int) -> None:
    """Print the time to plan a sweep, the first time and the second."""
    store = Store(root)
    store.create()
    cells = tuple(
        PlannedCell("arm", {"k": k}, {s: f"{k:015x}{s:05x}" for s in range(5)})
        for k in range(trials // 5)
    )
    sweep = PlannedSweep("large", "?", (), None, (), (), cells)
    for when in ("made", "made again"):
        began = time.perf_counter()
        store.put_sweep(sweep, b"")
        print(f"links of {trials} trials are {when} in {time.perf_counter() - began:.2f} s")


def main() -> None:
    """Print all rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for what in ("hdsweep.curve", WRITER, "tensorboardX"):
        print(f"import {what:40} {statistics.median(import_ms(what) for _ in range(5)):7.1f} ms")
    with tempfile.TemporaryDirectory() as name:
        points_cost(Path(name), options.points, options.repeats)
        resume_cost(Path(name, "resumed"), 10 * options.points)
        links_cost(Path(name, "store"), 10_000)


if __name__ == "__main__":
    main()
