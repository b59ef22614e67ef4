"""Exact nearest neighbours of patches in a bank, in bounded memory.

Squared distances by a matrix product, |q|² + |v|² - 2qv, are fast and lose the digits of small
distances; so they choose the neighbours, and the distances of these are computed anew from
differences. Vectors whose distances differ by no more than that rounding may be taken for each
other.

On a CPU the product is FAISS's (``faiss.knn``), on a GPU torch's, as ``faiss-cpu`` knows none.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_QUERIES = 1024  # compared at once
_VALUES = 2**25  # of a bank's vectors, or of differences, in memory at once
_BY_PRODUCT = (
    20  # queries from which FAISS multiplies matrices; by default it counts dimensions too
)

Array = NDArray[Any] | Tensor


def nearest(
    queries: Array, bank: Array, k: int, *, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` vectors of a bank that are nearest to each query; all of a smaller bank.

    Args:
        queries: Shape (n, d), float16 or float32; an array, mapped or not, or a tensor.
        bank: Shape (m, d), likewise, m at least 1. On a GPU, a tensor there is not copied.
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
        asked = _on(queries[some], device)
        where = _candidates(asked, bank, k, torch.device(device))
        found = _first(_differences(asked, bank, where), where)
        distances[some], positions[some] = (part.cpu().numpy() for part in found)
    return distances, positions


def _candidates(queries: Tensor, bank: Array, k: int, device: torch.device) -> Tensor:
    """Positions of the ``k`` nearest by matrix products."""
    rough = torch.empty(len(queries), 0, device=device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start, block in _blocks(bank, device):
        near = min(k, len(block))
        if device.type == "cpu":
            with threads_of_faiss(torch.get_num_threads()), _by_products():
                found = faiss.knn(queries.numpy(), block.numpy(), near)
            values, at = (torch.from_numpy(part) for part in found)
        else:  # a query's own square is the same for all
            square = torch.linalg.vecdot(block, block)[None]
            product = torch.addmm(square, queries, block.T, alpha=-2)
            values, at = product.topk(near, dim=1, largest=False)
        rough, where = torch.cat([rough, values], dim=1), torch.cat([where, at + start], dim=1)
        if rough.shape[1] > k:
            rough, kept = rough.topk(k, dim=1, largest=False)
            where = where.gather(1, kept)
    return where


def _differences(queries: Tensor, bank: Array, where: Tensor) -> Tensor:
    """Distances to some vectors for each query, shape of ``where``."""
    found = torch.empty(where.shape, device=queries.device)
    step = max(1, _VALUES // (where.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = where[start : start + step]
        at = some.flatten().to(bank.device) if isinstance(bank, Tensor) else some.flatten().cpu()
        chosen = bank[at] if isinstance(bank, Tensor) else bank[at.numpy()]
        vectors = _on(chosen, str(queries.device)).view(*some.shape, -1)
        apart = vectors - queries[start : start + step, None]
        found[start : start + step] = torch.linalg.norm(apart, dim=2)
    return found


def _first(distances: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending; of several at the same distance, the first in the bank."""
    by_position = positions.argsort(dim=1)
    order = distances.gather(1, by_position).argsort(dim=1, stable=True)
    chosen = by_position.gather(1, order)
    return distances.gather(1, chosen), positions.gather(1, chosen)


def _blocks(bank: Array, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _VALUES // bank.shape[1])
    for start in range(0, len(bank), step):
        yield start, _on(bank[start : start + step], str(device))


def _on(values: Array, device: str) -> Tensor:
    """As a float32 tensor on a device; copied only where it has to be."""
    if not isinstance(values, Tensor):
        plain = np.ascontiguousarray(values, dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a map may not be written, and is not
            values = torch.from_numpy(plain)
    return values.to(device, torch.float32).contiguous()


@contextlib.contextmanager
def threads_of_faiss(threads: int) -> Iterator[None]:
    """Have FAISS use so many threads."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextlib.contextmanager
def _by_products() -> Iterator[None]:
    """Have FAISS multiply matrices for a few queries too, which is up to eight times as fast."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = _BY_PRODUCT
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
