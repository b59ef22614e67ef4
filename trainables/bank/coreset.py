"""Which patches a memory bank keeps: greedy k-center, with and without a weight per patch.

Greedy k-center (Sener and Savarese, ICLR 2018, arXiv:1708.00489) takes, again and again, the patch
that is farthest from all taken so far, after a sparse random projection (Li, Hastie and Church, KDD
2006). Its indices here are those of anomalib's ``KCenterGreedy`` for the same seed, to the last
one: same draws, same projection, and distances rounded as ``torch.linalg.norm`` rounds them.

Two things make it fast. A patch's distance to the taken ones only falls, so an old one is a bound:
only patches whose bound reaches the top are looked at in each step, and all are brought up to date
every CATCH_UP steps. And a matrix product with a rigorous bound on its rounding error tells
which few distances can matter; only these are computed as anomalib computes all of them.

Patches are read in blocks; what is held are the projected ones, ``4 * n * components(n)`` bytes,
and a few numbers per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

BLOCK = 4096  # patches in memory at once
CATCH_UP = 256  # steps after which all distances are brought up to date

_TOGETHER = 4096  # patches that are brought up to date together
_CANDIDATES = 512  # patches that are looked at together
_NEAR = 0.999  # share of the largest bound down to which patches are looked at together
_PAIRS = 8192  # exact distances computed at once
_EPS = 0.9  # distortion that anomalib's projection allows
_UNIT = 2.0**-24  # of float32 rounding

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


class Rows:
    """Patch vectors of one or more groups as one matrix (n, dimension), read in parts.

    Args:
        arrays: Each of shape (items, patches, dimension), float16 or float32, mapped or not; in
            the order of their rows.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.dimension = int(arrays[0].shape[-1])
        self._parts = [array.reshape(-1, self.dimension) for array in arrays]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, as pairs of the first one's index and a float32 tensor.

        A tensor is the caller's until the next one is asked for, and only to be read. The last one
        takes up to ``2 * size - 1`` rows: products of very few rows take another way through the
        libraries, and round otherwise.
        """
        buffer = np.empty((0, self.dimension), np.float32)
        start = 0
        while start < len(self):
            stop = start + size if len(self) - start >= 2 * size else len(self)
            block = self._as_it_is(start, stop)
            if block is None:
                if len(buffer) < stop - start:
                    buffer = np.empty((stop - start, self.dimension), np.float32)
                block = buffer[: stop - start]
                self._read(start, block)
            yield start, torch.from_numpy(block)
            start = stop

    def take(self, indices: NDArray[np.integer[Any]]) -> Floats:
        """Some rows, shape (len(indices), dimension), in the order of ``indices``."""
        order = np.argsort(indices, kind="stable")  # a map is read from its start to its end
        ascending = np.asarray(indices)[order]
        found = np.empty((len(ascending), self.dimension), np.float32)
        begin = 0
        for part, end in zip(self._parts, self._ends, strict=True):
            first = int(end) - len(part)
            stop = int(np.searchsorted(ascending, end))
            found[order[begin:stop]] = part[ascending[begin:stop] - first]
            begin = stop
        return found

    def _as_it_is(self, start: int, stop: int) -> Floats | None:
        """A view of rows that need no copy; torch refuses those that may not be written."""
        for part, end in zip(self._parts, self._ends, strict=True):
            first = int(end) - len(part)
            plain = part.dtype == np.float32 and part.flags.writeable and part.flags.c_contiguous
            if plain and first <= start and stop <= end:
                return part[start - first : stop - first]
        return None

    def _read(self, start: int, block: Floats) -> None:
        stop = start + len(block)
        for part, end in zip(self._parts, self._ends, strict=True):
            first = int(end) - len(part)
            low, high = max(start, first), min(stop, int(end))
            if low < high:
                block[low - start : high - start] = part[low - first : high - first]


@dataclass(frozen=True, slots=True)
class Projected:
    """Patches in the space where distances are taken.

    Args:
        features: Shape (n, components(n)), float32.
        first: The patch that is taken first.
    """

    features: Tensor
    first: int


@dataclass(frozen=True, slots=True)
class Selection:
    """How far a greedy selection has come.

    Args:
        order: Shape (k,), rows in the order in which they were taken.
        distances: Shape (n,), of each patch to the nearest of the first ``compared`` of them, or of
            more; in projected space.
        compared: From 1 to k.
    """

    order: Indices
    distances: Floats
    compared: int


def components(n: int) -> int:
    """Dimensions that anomalib's projection keeps of ``n`` patches."""
    return int((4 * np.log(n) / (_EPS**2 / 2 - _EPS**3 / 3)).astype(np.int64))


def project(rows: Rows, seed: int) -> Projected:
    """Project patches as anomalib does when numpy and torch were seeded with ``seed``.

    No global random state is used. The last bits may depend on torch's number of threads where
    there are few patches.
    """
    n = len(rows)
    generator = torch.Generator().manual_seed(seed)
    matrix = _sparse_matrix(components(n), rows.dimension, generator, seed)
    first = int(torch.randint(high=n, size=(1,), generator=generator))
    features = torch.empty(n, components(n))
    for start, block in rows.blocks():
        torch.mm(block, matrix.T, out=features[start : start + len(block)])
    return Projected(features, first)


def variances(rows: Rows) -> Doubles:
    """Variance of each row over its dimensions, shape (n,)."""
    found = np.empty(len(rows))
    for start, block in rows.blocks():
        centred = block - block.mean(dim=1, keepdim=True)
        found[start : start + len(block)] = torch.linalg.vecdot(centred, centred).numpy()
    return found / rows.dimension


def _sparse_matrix(rows: int, columns: int, generator: torch.Generator, seed: int) -> Tensor:
    """The draws of anomalib's ``SparseRandomProjection`` in their order, shape (rows, columns)."""
    density = 1 / np.sqrt(columns)
    if density == 1:
        return _signs((rows, columns), generator) * float(1 / np.sqrt(rows))
    legacy = np.random.RandomState(seed)  # the stream that anomalib draws
    matrix = torch.zeros(rows, columns)
    count, share = torch.tensor(float(columns)), torch.tensor(float(density))
    for row in matrix:
        nonzero = int(torch.binomial(count, share, generator=generator))
        where = sample_without_replacement(columns, nonzero, random_state=legacy)
        row[torch.from_numpy(where)] = _signs((nonzero,), generator)
    matrix *= np.sqrt(1 / density) / np.sqrt(rows)
    return matrix


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    half = torch.full(shape, 0.5)
    return torch.binomial(torch.ones(shape), half, generator=generator) * 2 - 1


def permuted(n: int, seed: int) -> Indices:
    """All of ``n`` patches in a random order, whose start is a random coreset."""
    return np.random.default_rng(seed).permutation(n)


def k_center(projected: Projected, size: int, start: Selection | None = None) -> Selection:
    """Take patches far from each other, as anomalib's ``KCenterGreedy`` does.

    Args:
        projected: The patches.
        size: How many to take, from 1 to their number.
        start: A shorter selection of the same patches to go on from. The order is that of one
            uninterrupted run.
    """
    return _greedy(projected, size, start, lambda distances, _: distances)


def variance_k_center(
    projected: Projected, variance: Doubles, size: int, start: Selection | None = None
) -> Selection:
    """Take patches that are far from each other and rich in contrast.

    The sources name the parts and leave their form open; this is the form taken here. ``v`` is the
    variance of a patch's features over their dimensions, divided by its inter-quartile range over
    the patches. Its weight is ``w = v * (1 + .5 * CV)``, with ``CV = std(v) / mean(v)``. ``d`` is
    the distance to the nearest patch taken, divided by the inter-quartile range of the distances to
    the first one. An inter-quartile range of 0 is replaced by the mean, and that, if 0, by 1. The
    next patch is the one with the largest harmonic mean ``2dw / (d + w)``, 0 where either is 0. The
    first patch and the projection are those of ``k_center``.

    Args:
        projected: The patches.
        variance: Shape (n,), of each patch's features, as ``variances`` gives it.
        size: How many to take, from 1 to their number.
        start: A shorter selection of the same patches to go on from.
    """
    v = variance / _spread(variance)
    mean = float(v.mean())
    weight = v * (1 + 0.5 * (float(v.std()) / mean if mean else 0.0))
    unit = _spread(_to_one(projected.features, projected.first))
    with np.errstate(divide="ignore"):
        inverse_weight = 1 / weight

    def gain(distances: Floats, of: Indices | slice) -> Doubles:
        with np.errstate(divide="ignore"):  # 1 / 0 is infinite, and 2 / infinity is 0, as is right
            # Each operation is monotone as rounded: a bound on d gives one on the gain.
            return np.asarray(2 / (unit / distances.astype(np.float64) + inverse_weight[of]))

    return _greedy(projected, size, start, gain)


def _spread(values: NDArray[np.floating[Any]]) -> float:
    low, high = np.percentile(values.astype(np.float64), [25, 75])
    return float(high - low) or float(values.mean(dtype=np.float64)) or 1.0


Gain = Callable[[Floats, Indices | slice], NDArray[np.floating[Any]]]


def _greedy(projected: Projected, size: int, start: Selection | None, gain: Gain) -> Selection:
    """Take the patch of largest gain, the first of several, until ``size`` are taken.

    Args:
        projected: The patches.
        size: How many to take.
        start: Where to go on from.
        gain: (distances, patches) -> their gain, not decreasing in the distance, 0 for distance 0.
    """
    if start is None:
        distances = _to_one(projected.features, projected.first)
        distances[projected.first] = 0
        start = Selection(np.array([projected.first]), distances, 1)
    threads = torch.get_num_threads()
    bounds = _Bounds(projected.features, start, size, threads)
    torch.set_num_threads(1)  # waking others takes longer than most of what follows
    try:
        _take_up_to(size, bounds, gain)
    finally:
        torch.set_num_threads(threads)
    return Selection(bounds.order, bounds.distances, bounds.current)


def _take_up_to(size: int, bounds: _Bounds, gain: Gain) -> None:
    gains = gain(bounds.distances, slice(None)).copy()
    while bounds.taken < size:
        if bounds.taken - bounds.current >= CATCH_UP:
            bounds.catch_up()
            gains[:] = gain(bounds.distances, slice(None))
        top = int(gains.argmax())
        while bounds.seen[top] < bounds.taken and gains[top] > 0:
            near = np.flatnonzero(gains >= _NEAR * gains[top])
            near = near[bounds.seen[near] < bounds.taken]
            if len(near) > _CANDIDATES:
                near = near[np.argpartition(gains[near], -_CANDIDATES)[-_CANDIDATES:]]
            bounds.update(near, bounds.features[torch.from_numpy(near)])
            gains[near] = gain(bounds.distances[near], near)
            top = int(gains.argmax())
        bounds.take(top)
        gains[top] = 0  # so, like anomalib, it takes the first again where no others are left


class _Bounds:
    """Distances of patches to the nearest one taken, each as of when it was last looked at."""

    def __init__(self, features: Tensor, start: Selection, size: int, threads: int) -> None:
        self.features = features
        self._threads = threads  # for all patches together
        self.distances = start.distances.copy()
        self.taken = len(start.order)
        self.current = start.compared  # of which all distances know
        self.seen = np.full(len(features), self.current, np.int64)  # of which each one knows
        self.order = np.empty(max(size, self.taken), np.int64)
        self.order[: self.taken] = start.order
        self._squares = torch.linalg.vecdot(features, features).numpy()
        # |computed - exact| of p products and sums is within p units of their absolute values, in
        # any order (Higham, Accuracy and Stability, 3.1); twice that for both ways to compute.
        self._error = 4 * (features.shape[1] + 8) * _UNIT

    def take(self, row: int) -> None:
        """Have one more."""
        self.order[self.taken] = row
        self.taken += 1
        self.distances[row] = 0
        self.seen[row] = self.taken

    def catch_up(self) -> None:
        """Look at all patches."""
        torch.set_num_threads(self._threads)
        for begin in range(0, len(self.features), _TOGETHER):
            ours = self.features[begin : begin + _TOGETHER]
            self.update(np.arange(begin, begin + len(ours)), ours)
        self.current = self.taken
        torch.set_num_threads(1)

    def update(self, rows: Indices, ours: Tensor) -> None:
        """Bring the distances of some patches up to date; ``ours`` are their features."""
        first = int(self.seen[rows].min())
        if first == self.taken:
            return
        self.seen[rows] = self.taken
        centres = self.order[first : self.taken]
        squares, of_centres = self._squares[rows], self._squares[centres]
        theirs = self.features[torch.from_numpy(centres)]
        # Squared distances, less our own square.
        rough = torch.addmm(torch.from_numpy(of_centres), ours, theirs.T, alpha=-2)
        error = self._error * (squares + of_centres.max())
        least = rough.amin(dim=1).numpy()
        known = self.distances[rows] ** 2 - squares + error
        nearer = np.flatnonzero(least <= known)
        limit = np.minimum(least[nearer] + 2 * error[nearer], known[nearer])
        row, centre = np.nonzero(rough.numpy()[nearer] <= limit[:, None])
        for begin in range(0, len(row), _PAIRS):
            some = slice(begin, begin + _PAIRS)
            pairs = rows[nearer[row[some]]], centres[centre[some]]
            np.minimum.at(self.distances, pairs[0], self._exact(*pairs))

    def _exact(self, rows: Indices, centres: Indices) -> Floats:
        difference = self.features[torch.from_numpy(rows)]
        difference -= self.features[torch.from_numpy(centres)]
        return np.asarray(torch.linalg.norm(difference, ord=2, dim=1).numpy())


def _to_one(features: Tensor, centre: int) -> Floats:
    """Distances of all patches to one, rounded as anomalib rounds them."""
    found = np.empty(len(features), np.float32)
    for begin in range(0, len(features), BLOCK):
        block = features[begin : begin + BLOCK] - features[centre]
        found[begin : begin + BLOCK] = torch.linalg.norm(block, ord=2, dim=1).numpy()
    return found
