"""Exact nearest neighbours of patches in a bank, in bounded memory.

Squared distances by a matrix product, |q|² + |v|² - 2qv, are fast and lose the digits of small
distances. So some more than the ``k`` nearest are taken by them, and their distances are computed
anew from differences; where rounding could have hidden a nearer vector, all that could be nearer
are computed anew.

On a CPU the product is FAISS's (``faiss.knn``), which took 0.8 to 1.0 times as long as torch's with
``topk``; on a GPU it is torch's, as ``faiss-cpu`` knows none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_QUERIES = 1024  # compared at once
_VALUES = 2**25  # of a bank's vectors, or of differences, in memory at once
_MORE = 8  # vectors looked at beyond those asked for
# Of the square of a difference by a matrix product, relative to the sum of both squares: float32
# has units of 6e-8, and the sums of a product run in many short parts.
_ROUNDING = 4e-6

Array = NDArray[Any] | Tensor


def nearest(
    queries: Array, bank: Array, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` vectors of a bank that are nearest to each query; all of a smaller bank.

    Args:
        queries: Shape (n, d), float16 or float32; an array, mapped or not, or a tensor.
        bank: Shape (m, d), likewise, m at least 1.
        k: At least 1.
        device: A torch device name.

    Returns:
        Euclidean distances, ascending, and positions in the bank, both of shape (n, min(k, m)). Of
        vectors at the same distance, those that come first in the bank come first as far as they
        are found.
    """
    k = min(k, len(bank))
    distances = np.empty((len(queries), k), np.float32)
    positions = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        found = _nearest(_on(queries[some], device), bank, k, torch.device(device))
        distances[some], positions[some] = (part.cpu().numpy() for part in found)
    return distances, positions


def _nearest(queries: Tensor, bank: Array, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    more = min(k + _MORE, len(bank))
    squares = torch.linalg.vecdot(queries, queries)
    rough, where, largest = _candidates(queries, bank, more, device)
    exact = _differences(queries, bank, where, device)
    distances, positions = _first(exact, where, k)
    # A vector that was not taken is, up to rounding, no nearer than the last that was.
    error = _ROUNDING * (squares + largest)
    hidden = (distances[:, -1] > 0) & (distances[:, -1] ** 2 > rough[:, -1] - error)
    if more < len(bank) and bool(hidden.any()):
        doubtful = hidden.nonzero()[:, 0]
        limit = distances[doubtful, -1] ** 2 + error[doubtful]
        again = _all_within(queries[doubtful], bank, limit, k, device)
        distances[doubtful], positions[doubtful] = again
    return distances, positions


def _candidates(
    queries: Tensor, bank: Array, count: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rough squared distances, ascending, and positions; and the largest square of a vector."""
    rough = torch.empty(len(queries), 0, device=device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    largest = torch.zeros((), device=device)
    for start, block in _blocks(bank, device):
        largest = torch.maximum(largest, torch.linalg.vecdot(block, block).max())
        near = min(count, len(block))
        if device.type == "cpu":
            with threads_of_faiss(torch.get_num_threads()):
                found = faiss.knn(queries.numpy(), block.numpy(), near)
            values, at = (torch.from_numpy(part) for part in found)
        else:
            values, at = _squared(queries, block).topk(near, dim=1, largest=False)
        rough, where = torch.cat([rough, values], dim=1), torch.cat([where, at + start], dim=1)
        rough, kept = rough.topk(min(count, rough.shape[1]), dim=1, largest=False)
        where = where.gather(1, kept)
    return rough, where, largest


def _all_within(
    queries: Tensor, bank: Array, limit: Tensor, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The nearest of all vectors whose rough squared distance is up to ``limit``."""
    distances = torch.full((len(queries), k), torch.inf, device=device)
    positions = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for start, block in _blocks(bank, device):
        rough = _squared(queries, block)
        for row in range(len(queries)):
            at = (rough[row] <= limit[row]).nonzero().T
            found = torch.linalg.norm(block[at[0]] - queries[row], dim=1)[None]
            distances[row], positions[row] = _first(
                torch.cat([distances[row, None], found], dim=1),
                torch.cat([positions[row, None], at + start], dim=1),
                k,
            )
    return distances, positions


def _differences(queries: Tensor, bank: Array, where: Tensor, device: torch.device) -> Tensor:
    """Distances to some vectors for each query, shape of ``where``."""
    found = torch.empty(where.shape, device=device)
    step = max(1, _VALUES // (where.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = where[start : start + step]
        at = some.flatten().to(bank.device) if isinstance(bank, Tensor) else some.flatten().cpu()
        vectors = _on(bank[at] if isinstance(bank, Tensor) else bank[at.numpy()], str(device))
        apart = vectors.view(*some.shape, -1) - queries[start : start + step, None]
        found[start : start + step] = torch.linalg.norm(apart, dim=2)
    return found


def _first(distances: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest, the first in the bank of several."""
    by_position = positions.argsort(dim=1)
    order = distances.gather(1, by_position).argsort(dim=1, stable=True)
    chosen = by_position.gather(1, order)[:, :k]
    return distances.gather(1, chosen), positions.gather(1, chosen)


def _squared(queries: Tensor, block: Tensor) -> Tensor:
    square = torch.linalg.vecdot(block, block) + torch.linalg.vecdot(queries, queries)[:, None]
    return torch.addmm(square, queries, block.T, alpha=-2)


def _blocks(bank: Array, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _VALUES // bank.shape[1])
    for start in range(0, len(bank), step):
        yield start, _on(bank[start : start + step], str(device))


def _on(values: Array, device: str) -> Tensor:
    """As a float32 tensor on a device; copied only where it has to be."""
    if not isinstance(values, Tensor):
        plain = values.dtype == np.float32 and values.flags.writeable
        values = torch.from_numpy(np.ascontiguousarray(values) if plain else _copied(values))
    return values.to(device, torch.float32).contiguous()


def _copied(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32, order="C")  # torch refuses what may not be written


@contextlib.contextmanager
def threads_of_faiss(threads: int) -> Iterator[None]:
    """Have FAISS use so many threads."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
