"""The most memory that a large memory bank takes, beside the features that are mapped from a file.

    python -m benchmarks.bank_memory --patches 200000 --dimension 1024

Writes float16 features to a temporary file, then, each in this process: projects and chooses
patches, compares 10,000 queries with the bank, and builds a compressed index of it. What counts is
anonymous memory (RssAnon of proc(5)), sampled every 10 ms, less that of the process before: pages
of mapped files can be dropped, and processes share them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from trainables.bank import bank_size, ivfpq
from trainables.bank.coreset import Rows, k_center, project, variance_k_center, variances
from trainables.bank.neighbours import nearest

SEED = 42
PATCHES = 784  # of an image of 224 pixels


def anonymous_mb() -> float:
    """Resident memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def watched(name: str, before: float) -> Iterator[None]:
    """Print seconds and peak of what is inside."""
    peak, done = anonymous_mb(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        done.set()
        thread.join()
        print(f"{name:44} {seconds:7.1f} s   peak {peak - before:6.0f} MB", flush=True)


def write(path: Path, patches: int, dimension: int) -> None:
    """Rectified, clustered features, float16, an image at a time."""
    draw = np.random.default_rng(0)
    directions = draw.normal(size=(40, dimension)).astype(np.float32)
    places = draw.normal(size=(500, 40)).astype(np.float32)
    header = {"descr": "<f2", "fortran_order": False, "shape": (1, patches, dimension)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for start in range(0, patches, PATCHES):
            count = min(PATCHES, patches - start)
            at = places[draw.integers(len(places), size=count)]
            at = at + 0.5 * draw.standard_normal((count, 40), dtype=np.float32)
            noise = draw.standard_normal((count, dimension), dtype=np.float32)
            found = np.maximum(0.15 * at @ directions + 0.15 * noise - 0.1, 0)
            file.write(found.astype("<f2").tobytes())


def main() -> None:
    """Print a row per piece of work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patches", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--percent", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.patches} x {options.dimension} float16, {options.threads} threads, "
        f"{os.cpu_count()} cores, load before: {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "features.npy"
        write(path, options.patches, options.dimension)
        features = np.load(path, mmap_mode="r")
        rows, before = Rows([features]), anonymous_mb()
        with watched("projection", before):
            projected = project(rows, SEED)
        for percent in options.percent:
            size, vectors = bank_size(len(rows), percent), Path(name) / f"{percent}.npy"
            with watched(f"k_center, {percent:g} %: {size} patches", before):
                order = k_center(projected, size).order
            np.save(vectors, rows.take(order))
        with watched(f"variance_k_center, {options.percent[0]:g} %", before):
            size = bank_size(len(rows), options.percent[0])
            variance_k_center(projected, variances(rows), size)
        del projected, order
        for percent in options.percent:
            bank = np.load(Path(name) / f"{percent}.npy", mmap_mode="r")
            for k in (1, 9):
                with watched(f"{options.queries} queries, bank of {len(bank)}, k = {k}", before):
                    nearest(features[0, : options.queries], bank, k)
            with watched(f"IVF-PQ of {len(bank)}, nbits 8, m 64, 64 cells", before):
                index = ivfpq.build(
                    bank, n_clusters=64, m=64, nbits=8, seed=SEED, threads=options.threads
                )
            with watched(f"{options.queries} queries of it, nprobe 4", before):
                ivfpq.search(index, features[0, : options.queries], 9, 4, options.threads)
            del index


if __name__ == "__main__":
    main()
