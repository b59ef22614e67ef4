"""How long `hdsweep plan` takes, and how much memory, as sweeps grow: whole processes.

    python -m benchmarks.plan_speed --repeats 3

Plans grids of 1,000, 10,000 and 100,000 trials against an empty store. The exponent is the slope of
time over size between the last two, both in logarithms: 1 is linear growth.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZES = (1_000, 10_000, 100_000)

SWEEP = """\
name: large
method: tests.methods.noise
data: {{name: tests.methods.labels, root: {root}, make: {{items: 40}}}}
seeds: [1]
arms:
  a:
    level: {{grid: [{levels}]}}
    strength: {{grid: [{strengths}]}}
"""


def plan(sweep: Path, store: Path) -> tuple[float, float]:
    """Seconds and MB of one plan."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "hdsweep.cli", "plan", str(sweep), "--store", str(store)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.monotonic() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    medians = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in SIZES:
            side = size // 100
            levels = ", ".join(map(str, range(side)))
            strengths = ", ".join(str(n / 4) for n in range(100))
            sweep = folder / f"{size}.yaml"
            root = folder / "labels"
            sweep.write_text(SWEEP.format(root=root, levels=levels, strengths=strengths))
            plan(sweep, folder / "results")
            found = [plan(sweep, folder / "results") for _ in range(options.repeats)]
            medians.append(statistics.median(seconds for seconds, _ in found))
            memory = max(megabytes for _, megabytes in found)
            print(
                f"{size:7} trials  median {medians[-1]:5.2f} s  peak {memory:5.0f} MB", flush=True
            )
    exponent = math.log(medians[-1] / medians[-2]) / math.log(SIZES[-1] / SIZES[-2])
    print(f"growth exponent {exponent:.2f}, {options.repeats} repeats, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
