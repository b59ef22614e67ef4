"""How busy a search keeps eight workers: `python -m benchmarks.search_busy`.

TPE draws 100 configurations of a method that sleeps, with three seeds each, on Ray with eight
logical CPUs. A worker is busy from the start of a trial to its record, as the records say; what is
left is Ray Tune between two trials, a sampler that is waited for, and the end of the sweep, where
there is less work than workers. The start of the eight processes is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import yaml

from hdsweep.store import Store

WORKERS = 8


def sweep(trials: int, steps: int, step_s: float) -> dict[str, object]:
    """The sweep file."""
    return {
        "name": "busy",
        "method": "tests.methods.curves",
        "data": {"name": "tests.methods.labels", "root": "labels", "make": {"items": 40}},
        "seeds": [1, 2, 3],
        "params": {"steps": steps, "step_s": step_s, "noise": 0.02},
        "arms": {"tuned": {"quality": {"uniform": [0, 1]}, "lr": {"log_uniform": [0.01, 1]}}},
        "search": {"sampler": "tpe", "trials": trials, "maximize": "auroc"},
        "resources": {"gpus": 0, "cpus": 1},
        "report": {"metrics": ["auroc"]},
    }


def main() -> None:
    """Run it and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--step-s", type=float, default=0.5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        text = yaml.safe_dump(sweep(given.trials, given.steps, given.step_s), sort_keys=False)
        (home / "busy.yaml").write_text(text)
        command = [sys.executable, "-m", "hdsweep.cli", "run", "busy.yaml", "--cpus", str(WORKERS)]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL)
        store = Store(home / "results")
        found = store.records(store.finished()).values()
        began = [datetime.fromisoformat(record.started).timestamp() for record in found]
        ended = [start + record.wall_s for start, record in zip(began, found, strict=True)]
    began.sort()
    first, last = began[WORKERS - 1], max(ended)
    handed = began[-1]  # the last trial: from there on there is not enough work
    for words, until in (("to the last start", handed), ("to the last end", last)):
        busy = sum(
            max(0.0, min(e, until) - max(b, first))
            for b, e in zip(began, sorted(ended), strict=True)
        )
        share = busy / (WORKERS * (until - first))
        print(f"{len(began)} trials, {WORKERS} workers busy {share:.1%} {words}")
    print(f"{last - first:.0f} s, trials of {given.steps * given.step_s:g} s")


if __name__ == "__main__":
    main()
