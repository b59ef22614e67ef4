"""How long a report takes and how much memory, from the start of the command to its last line.

    python -m benchmarks.report_speed [RECORDS ...]

Writes synthetic stores in a temporary folder, with records as long as real ones (4 groups, three
metrics, 5 seeds, a baseline), then reports three metrics by the command, each format in a process
of its own. The files are in the page cache, just written; there are no predictions.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
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
METRICS = ("tpr@1", "auroc", "tpr@5")


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
            made = 0.9 + 0.02 * random.standard_normal((len(STORED), len(GROUPS)))
            record = TrialRecord(
                id=trial.id,
                status="failed" if failed else "ok",
                trial=trial.to_json(),
                metrics={}
                if failed
                else {
                    name: dict(zip(GROUPS, row, strict=True))
                    for name, row in zip(STORED, made.tolist(), strict=True)
                },
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
    cells[0] = replace(cells[0], arm="baseline", knobs={})
    expect = ("auroc >= 0.9",)
    sweep = PlannedSweep("big", "", METRICS, "baseline", expect, GROUPS, tuple(cells))
    store.put_sweep(sweep, b"")


def report(root: Path, form: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of one report."""
    command = [sys.executable, "-c", _RUN, "report", "--store", str(root), "--format", form]
    if form == "html":
        command += ["--out", str(root / "report.html"), "--no-images"]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stderr.splitlines()[-1]) / 1024


_RUN = """
import resource, sys
from hdsweep.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def main() -> None:
    """Print seconds (median of three) and peak memory by size and format."""
    for records in [int(text) for text in sys.argv[1:]] or [1_000, 10_000, 100_000]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "results"
            write_store(root, records)
            for form in ("terminal", "tex", "csv", "json", "html"):
                found = [report(root, form) for _ in range(3)]
                seconds = statistics.median(s for s, _ in found)
                memory = max(mb for _, mb in found)
                print(f"{records} records, {form}: {seconds:.2f} s, {memory:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
