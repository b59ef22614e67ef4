"""Greedy k-center, ours beside anomalib's: seconds, and whether the indices are the same.

    python -m benchmarks.coreset --repeats 5

Projection and selection together, of vectors that look like those of a residual network (rectified,
clustered, rounded to half precision), and of Gaussian noise, where no structure helps. The two take
turns in one process, at the same number of torch threads. Of anomalib's seconds a varying part goes
to glibc, whose heap may grow by a copy of the projected features in each of anomalib's steps: give
it 40 GB for 10 %, or repeat it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from trainables.bank.coreset import Rows, k_center, project

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # names that timm, and anomalib itself, have moved
    import anomalib.models.components.sampling.k_center_greedy as theirs

SEED = 42


def vectors(kind: str, n: int, dimension: int) -> torch.Tensor:
    """Made-up patch vectors, shape (n, dimension), float32."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(n, dimension, generator=draw)
    if kind == "noise":
        return noise
    scales = torch.linspace(2, 0.2, 40)[:, None]
    directions = torch.randn(40, dimension, generator=draw) * scales
    places = torch.randn(300, 40, generator=draw)[torch.randint(300, (n,), generator=draw)]
    places = places + 0.5 * torch.randn(n, 40, generator=draw)
    return (0.15 * places @ directions + 0.15 * noise - 0.1).relu().half().float()


def anomalib_order(features: torch.Tensor, percent: float) -> list[int]:
    """Indices by anomalib."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - the generator that anomalib draws from
    sampler = theirs.KCenterGreedy(features, percent / 100)
    return [int(index) for index in sampler.select_coreset_idxs()]


def our_order(features: torch.Tensor, percent: float) -> list[int]:
    """Indices by hdsweep."""
    rows = Rows([features.numpy()[None]])
    size = int(len(rows) * percent / 100)
    return [int(index) for index in k_center(project(rows, SEED), size).order]


def timed(
    order: Callable[[torch.Tensor, float], list[int]], features: torch.Tensor, percent: float
) -> tuple[float, list[int]]:
    """Seconds of one selection, and its result."""
    began = time.perf_counter()
    found = order(features, percent)
    return time.perf_counter() - began, found


def main() -> None:
    """Print a row per kind of vectors, ratio and number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--percent", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    theirs.tqdm = lambda steps, **_: steps  # a progress bar is not what is measured
    print(
        f"{options.vectors} x {options.dimension}, median of {options.repeats}, "
        f"{os.cpu_count()} cores, load before: {os.getloadavg()[0]:.1f}"
    )
    for kind in ("residual", "noise"):
        features = vectors(kind, options.vectors, options.dimension)
        for threads in options.threads:
            torch.set_num_threads(threads)
            our_order(features, 0.1)
            anomalib_order(features, 0.1)
            for percent in options.percent:
                seconds: dict[str, list[float]] = {"ours": [], "anomalib": []}
                for _ in range(options.repeats):
                    ours_s, ours = timed(our_order, features, percent)
                    their_s, expected = timed(anomalib_order, features, percent)
                    assert ours == expected, "the indices differ"
                    seconds["ours"].append(ours_s)
                    seconds["anomalib"].append(their_s)
                ours_s, their_s = map(statistics.median, seconds.values())
                print(
                    f"{kind:8}  {percent:4g} %  {threads} threads  anomalib {their_s:6.2f} s  "
                    f"ours {ours_s:5.2f} s  ratio {their_s / ours_s:5.1f}  same indices",
                    flush=True,
                )


if __name__ == "__main__":
    main()
