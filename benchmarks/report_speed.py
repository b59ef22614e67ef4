"""How long a report over 10,000 records takes, from the start of the interpreter to the last line.

    python -m benchmarks.report_speed [RECORDS]

Writes a synthetic store in a temporary folder, with records as long as real ones, then times the
report of three metrics in a process of its own. The files are in the page cache, just written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hdsweep.identity import digest
from hdsweep.metrics import STORED, definitions
from hdsweep.store import PlannedCell, PlannedSweep, Store
from hdsweep.trial import Trial, TrialRecord

GROUPS = ("A", "B", "C", "D")
SEEDS = (42, 43, 44, 123, 456)
PROVENANCE = {
    "host": "node-17.cluster.local",
    "device": {"name": "NVIDIA H200", "memory_mb": 143771, "driver": "570.86.15", "cuda": "12.8"},
    "threads": 4,
    "python": "3.11.9",
    "packages": {f"package-{i}": "1.2.3" for i in range(20)},
    "git": {"commit": "0" * 40, "branch": "main", "dirty": True, "diff_sha256": "0" * 64},
    "method_source": "0" * 64,
}
REPORT = """
import sys
from pathlib import Path
from hdsweep.store import Store
from analysis import frame, render, tables
store = Store(Path(sys.argv[1]))
rows = frame.load(store, store.sweep(), ("tpr@1", "auroc", "latency_ms"))
found = [tables.main_table(rows, m) for m in ("tpr@1", "auroc", "latency_ms")]
sys.stdout.write(render.render(found, sys.argv[2]))
"""


def write_store(root: Path, records: int) -> None:
    """A finished sweep of ``records`` trials, one in a hundred of them failed."""
    store, random, words = Store(root), np.random.default_rng(0), definitions(STORED)
    store.create()
    cells = []
    for cell in range(records // len(SEEDS)):
        trials = {}
        for seed in SEEDS:
            params = {"variant": "topk", "q_percent": cell, "lr": 1e-3, "max_steps": 1000}
            identity = {"method": "dinomaly", "version": 1, "params": params}
            data = {"root": "data/hdmap", "domains": list(GROUPS)}
            trial = Trial(
                id=digest({**identity, "seed": seed}),
                method="dinomaly",
                version=1,
                params=params,
                data_name="hdmap",
                data_params=data,
                fingerprint="0" * 64,
                seed=seed,
                identity=identity,
            )
            failed = random.random() < 0.01
            record = TrialRecord(
                id=trial.id,
                status="failed" if failed else "ok",
                trial=trial.to_json(),
                metrics={}
                if failed
                else {m: dict(zip(GROUPS, random.random(4).tolist(), strict=True)) for m in STORED},
                scalars={} if failed else {"latency_ms": random.random() * 10, "memory_mb": 512.5},
                error={"kind": "OutOfMemoryError", "message": "CUDA out of memory", "traceback": ""}
                if failed
                else None,
                definitions=words,
                provenance=PROVENANCE,
                started="2025-01-01T00:00:00Z",
                wall_s=61.5,
            )
            trials[seed] = trial.id
            folder = store.trial_dir(trial.id)
            folder.mkdir(parents=True)
            (folder / "record.json").write_bytes(record.to_bytes())
        cells.append(PlannedCell("topk", {"q_percent": cell}, trials))
    sweep = PlannedSweep("big", "", ("tpr@1",), None, (), GROUPS, tuple(cells))
    store.put_sweep(sweep, b"")


def main() -> None:
    """Print the seconds of each format, the best of three."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        write_store(root, records)
        for form in ("terminal", "md", "csv", "json"):
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                command = [sys.executable, "-c", REPORT, str(root), form]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
                seconds.append(time.perf_counter() - start)
            print(f"{records} records, {form}: {min(seconds):.2f} s (worst {max(seconds):.2f} s)")


if __name__ == "__main__":
    main()
