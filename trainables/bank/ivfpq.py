"""A compressed memory bank: an inverted file of product-quantised vectors, as FAISS builds it.

A vector belongs to one of ``n_clusters`` cells and is kept as ``m`` codes of ``nbits`` bits each;
a query is compared with the vectors of the ``nprobe`` nearest cells (Jégou, Douze, Schmid, TPAMI
2011).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Infeasible
from trainables.bank import why_infeasible
from trainables.bank.neighbours import threads_of_faiss

_QUERIES = 4096  # compared at once
_TABLE = 2**26  # distances of parts of vectors to codes that are in memory at once

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def build(
    vectors: NDArray[Any],
    *,
    n_clusters: int,
    m: int,
    nbits: int,
    seed: int,
    threads: int,
) -> Any:
    """An index of all ``vectors``, trained on them.

    Args:
        vectors: Shape (n, d), float16 or float32, mapped or not.
        n_clusters: Cells.
        m: Codes of a vector.
        nbits: Bits of a code.
        seed: Of the two clusterings. Their last bits may depend on ``threads``.
        threads: To use.

    Raises:
        Infeasible: There are too few vectors, or such codes cannot be; also where only FAISS knows
            why.
    """
    count, dimension = vectors.shape
    reason = why_infeasible(
        nbits=nbits, m=m, n_clusters=n_clusters, dimension=dimension, vectors=count
    )
    if reason is not None:
        raise Infeasible(reason)
    whole = np.ascontiguousarray(vectors, dtype=np.float32)
    try:
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(dimension), dimension, n_clusters, m, nbits)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed % 2**31  # a C int
            clustering.min_points_per_centroid = 1  # else it warns below 39
        with threads_of_faiss(threads):
            index.train(whole)
            step = max(1024, _TABLE // (m * 2**nbits))
            for start in range(0, count, step):
                index.add(whole[start : start + step])
    except RuntimeError as error:
        raise Infeasible(
            f"FAISS cannot compress {count:,} vectors of dimension {dimension} with nbits {nbits}, "
            f"m {m} and n_clusters {n_clusters}: {_in_plain_words(error)}"
        ) from error
    return index


def _in_plain_words(error: RuntimeError) -> str:
    """FAISS's first sentence, without the names of its functions and files."""
    found = re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error).strip(), flags=re.DOTALL)
    condition = re.match(r"Error: '(.*?)' failed:?\s*", found, flags=re.DOTALL)
    if condition:
        found = found[condition.end() :] or f"it needs {condition[1]}"
    sentence = re.split(r"\.\s|\n", found)[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def write(index: Any, path: Path) -> None:
    """Keep an index in a file. Raises OSError, as any write does, where it does not fit."""
    path.write_bytes(faiss.serialize_index(index).tobytes())


def read(path: Path) -> Any:
    """An index, mapped from its file, which must stay as it is.

    Raises:
        OSError: It cannot be read.
        RuntimeError: It is no index, or damaged; in FAISS's words.
    """
    with path.open("rb"):  # FAISS has one error for all
        pass
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def search(
    index: Any, queries: NDArray[Any], k: int, nprobe: int, threads: int
) -> tuple[Floats, Indices, int]:
    """The ``k`` nearest that the index finds.

    Args:
        index: As ``build`` or ``read`` gives it.
        queries: Shape (n, d), float16 or float32.
        k: At least 1.
        nprobe: Cells to search. A query that finds nothing in them is searched again in twice as
            many, until it finds one.
        threads: To use.

    Returns:
        Euclidean distances to the compressed vectors, ascending, and positions, both of shape
        (n, min(k, vectors)): infinite and -1 where fewer were found. And how many queries were
        searched again.
    """
    k = min(k, index.ntotal)
    distances = np.empty((len(queries), k), np.float32)
    positions = np.empty((len(queries), k), np.int64)
    again = 0
    with threads_of_faiss(threads):
        for start in range(0, len(queries), _QUERIES):
            some = np.ascontiguousarray(queries[start : start + _QUERIES], dtype=np.float32)
            squared, found = _search(index, some, k, nprobe)
            missed, cells = np.flatnonzero(found[:, 0] < 0), nprobe
            again += len(missed)
            while len(missed) and cells < index.nlist:
                cells = min(2 * cells, index.nlist)
                squared[missed], found[missed] = _search(index, some[missed], k, cells)
                missed = missed[found[missed, 0] < 0]
            part = slice(start, start + len(some))
            # By tables, a square may come out below 0; of what is not found it is 3.4e38.
            distances[part] = np.where(found < 0, np.inf, np.sqrt(np.maximum(squared, 0)))
            positions[part] = found
    return distances, positions, again


def _search(index: Any, queries: Floats, k: int, nprobe: int) -> tuple[Floats, Indices]:
    how = faiss.SearchParametersIVF()
    how.nprobe = nprobe
    squared, found = index.search(queries, k, params=how)
    return squared, found
