"""What the benchmarks of shared work have in common: a sweep run as a person does, and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hdsweep.execute import thread_environment
from hdsweep.store import Store

ROOT = Path(__file__).parent.parent


def run(folder: Path, spec: dict[str, Any], store: str, *command: str) -> float:
    """Seconds of an ``hdsweep`` command on a sweep, in a process of its own.

    Args:
        folder: For the sweep file and the stores.
        spec: The sweep.
        store: Name of the store.
        command: The command and its options.
    """
    path = folder / f"{spec['name']}.yaml"
    path.write_text(json.dumps(spec))
    environment = os.environ | thread_environment(os.cpu_count() or 1)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hdsweep.cli", *command, str(path), "--store", str(folder / store)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    seconds = time.perf_counter() - began
    print(f"{' '.join(command)} {store}: {seconds:.1f} s", flush=True)
    return seconds


def same(one: Store, other: Store, name: str) -> tuple[int, int]:
    """How many trials have the same predictions in both stores, and how many there are."""
    ids = list(one.sweep(name).labels())
    found_same = 0
    for trial in ids:
        found, again = one.predictions(trial), other.predictions(trial)
        found_same += (
            found is not None
            and again is not None
            and found.item == again.item
            and found.score.tobytes() == again.score.tobytes()
        )
    return found_same, len(ids)
