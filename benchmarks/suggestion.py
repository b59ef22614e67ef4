"""What a suggestion costs, and how much memory a long search takes: hdsweep against plain Optuna.

    python -m benchmarks.suggestion --sizes 100 1000 10000

Side by side in one process, in turn: a configuration asked for and told, by a study of hdsweep and
by one of plain Optuna in memory that keeps one sampler, both after the same history. The ratio is
the median over pairs; below 1 means that hdsweep took less. Also how long a study takes to be
rebuilt from its history, and the peak memory of a process that holds nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna

from hdsweep.knobs import Choice, Drawn, Range
from hdsweep.search import Asked, Study, Told
from hdsweep.search.options import CLASSES
from hdsweep.strategy import Sampler, Search

SPACE: dict[str, Drawn] = {
    "lr": Range("float", 1e-5, 1e-1, log=True),
    "q": Range("float", 0, 100),
    "dropout": Range("float", 0, 0.5),
    "decay": Range("float", 1e-6, 1e-2, log=True),
    "depth": Range("int", 1, 12),
    "variant": Choice(("baseline", "topk", "weighted")),
}
DISTRIBUTIONS = {
    "lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
    "q": optuna.distributions.FloatDistribution(0, 100),
    "dropout": optuna.distributions.FloatDistribution(0, 0.5),
    "decay": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
    "depth": optuna.distributions.IntDistribution(1, 12),
    "variant": optuna.distributions.CategoricalDistribution(("baseline", "topk", "weighted")),
}


def loss(knobs: dict[str, object]) -> float:
    """Something smooth to minimize."""
    return (float(str(knobs["q"])) / 100 - 0.3) ** 2 + (float(str(knobs["dropout"])) - 0.1) ** 2


def history(count: int) -> list[Asked | Told]:
    """Configurations drawn at random, told."""
    study = Study(SPACE, Search(sampler="random", trials=1, minimize="loss"), "history")
    found: list[Asked | Told] = []
    for number in range(count):
        asked = study.ask()
        found += [asked, Told(number, "complete", (loss(dict(asked.knobs)),))]
    return found


def measure(sampler: Sampler, count: int, pairs: int) -> None:
    """Print a row: medians of both, and of their ratio."""
    told = history(count)
    began = time.perf_counter()
    ours = Study(SPACE, Search(sampler=sampler, trials=1, minimize="loss"), "k", told)
    rebuilt = time.perf_counter() - began
    kind = getattr(optuna.samplers, CLASSES[sampler])
    plain = optuna.create_study(sampler=kind(seed=0, **_silent(sampler)))
    values = {line.number: line.values[0] for line in told if isinstance(line, Told)}
    if sampler in ("cmaes", "nsga2"):  # these learn from trials that they drew themselves
        for number in range(count):
            plain.tell(plain.ask(DISTRIBUTIONS), values[number])
    else:
        for line in told:
            if isinstance(line, Asked):
                plain.add_trial(
                    optuna.create_trial(
                        params=dict(line.knobs),
                        distributions=DISTRIBUTIONS,
                        value=values[line.number],
                    )
                )
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 2):
        now = [0.0, 0.0]
        for side in (0, 1) if pair % 2 else (1, 0):
            began = time.perf_counter()
            if side == 0:
                asked = ours.ask()
                ours.tell(Told(asked.number, "complete", (loss(dict(asked.knobs)),)))
            else:
                trial = plain.ask(DISTRIBUTIONS)
                plain.tell(trial, loss(trial.params))
            now[side] = time.perf_counter() - began
        if pair >= 2:  # the first look at all of the history
            times.append((now[0], now[1]))
    ours_ms, plain_ms = (1000 * statistics.median(one) for one in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"{sampler:6} {count:6} told   hdsweep {ours_ms:7.2f} ms   optuna {plain_ms:7.2f} ms"
        f"   ratio {ratio:.2f}   rebuilt in {rebuilt:.2f} s",
        flush=True,
    )


def _silent(sampler: Sampler) -> dict[str, bool]:
    return {"warn_independent_sampling": False} if sampler in ("gp", "cmaes") else {}


def hold(count: int) -> None:
    """Keep a study of so many configurations, draw from it, and print the process's peak in MB."""
    study = Study(SPACE, Search(trials=1, minimize="loss"), "k", history(count))
    for _ in range(20):
        asked = study.ask()
        study.tell(Told(asked.number, "complete", (loss(dict(asked.knobs)),)))
    # Not getrusage: its maximum begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) // 1024)


def main() -> None:
    """Print a row per sampler and size, and the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["tpe"], choices=list(CLASSES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.hold is not None:
        hold(options.hold)
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for sampler in options.samplers:
        for size in options.sizes:
            measure(sampler, size, options.pairs)
    largest = max(options.sizes)
    command = [sys.executable, "-m", "benchmarks.suggestion", "--hold", str(largest)]
    peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(
        f"peak memory of a process with {largest} told: {peak} MB; "
        f"{options.pairs} pairs, {os.cpu_count()} cores, numpy {np.__version__}, "
        f"optuna {optuna.__version__}"
    )


if __name__ == "__main__":
    main()
