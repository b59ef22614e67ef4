"""What a bank is searched through: the vectors themselves, or a compressed index of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdsweep.method import Data, MethodError, Stage, TrialContext
from trainables.bank import ivfpq
from trainables.bank.memory import Bank
from trainables.bank.neighbours import nearest
from trainables.patchcore import Params, index_stage

Found = tuple[NDArray[np.float32], NDArray[np.int64]]

_FILE, _NOTE = "index.faiss", "built.json"


class Index(Protocol):
    """Finds the vectors of a bank that are nearest to others."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Of the bank, shape (n, d), mapped from their file."""

    @property
    def size_bytes(self) -> int:
        """Of what is searched, as stored."""

    @property
    def build_s(self) -> float:
        """Seconds that building it from the vectors took, possibly beside other trials."""

    def search(self, queries: NDArray[Any], k: int) -> Found:
        """Euclidean distances, ascending, and positions of the k nearest, shape (queries, k).

        Where fewer are found, the position is -1 and the distance infinite; one is found always.
        """


@dataclass(slots=True)
class Exact:
    """The vectors themselves, on the trial's device."""

    vectors: NDArray[np.float32]
    device: str
    build_s: float = 0.0
    _there: NDArray[np.float32] | Tensor = field(init=False)

    def __post_init__(self) -> None:
        on_gpu = self.device != "cpu"
        self._there = torch.tensor(self.vectors, device=self.device) if on_gpu else self.vectors

    @property
    def size_bytes(self) -> int:
        """Of the vectors."""
        return self.vectors.nbytes

    def search(self, queries: NDArray[Any], k: int) -> Found:
        """As ``Index.search``."""
        return nearest(queries, self._there, k, device=self.device)


@dataclass(slots=True)
class Compressed:
    """An inverted file of product-quantised vectors, searched on the CPU."""

    vectors: NDArray[np.float32]
    index: Any
    size_bytes: int
    build_s: float
    nprobe: int
    threads: int
    searched_again: int = field(default=0)

    def search(self, queries: NDArray[Any], k: int) -> Found:
        """As ``Index.search``."""
        distances, positions, again = ivfpq.search(
            self.index, queries, k, self.nprobe, self.threads
        )
        self.searched_again += again
        return distances, positions


def open_index(params: Params, data: Data, group: str, bank: Bank, context: TrialContext) -> Index:
    """What the test images of ``group`` are compared through, built if nobody has."""
    vectors = bank.vectors(group)
    if params.nbits == "exact":
        return Exact(vectors, context.device)
    stage, build = compressed(params, params.nbits, data, group, bank, context)
    folder = context.stage(stage, build)
    try:
        note = json.loads((folder / _NOTE).read_text())
        build_s, size_bytes = float(note["build_s"]), (folder / _FILE).stat().st_size
        if size_bytes != note["size_bytes"]:
            raise ValueError(f"{size_bytes} bytes of {note['size_bytes']}")
        index = ivfpq.read(folder / _FILE)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # FAISS says it in the names of its functions and files.
        reason = "FAISS cannot read it" if isinstance(error, RuntimeError) else str(error)
        raise MethodError(
            f"{folder}: the index kept there is damaged ({reason}); remove the folder, and it is "
            "made anew"
        ) from error
    return Compressed(vectors, index, size_bytes, build_s, params.nprobe, context.threads)


def compressed(
    params: Params, nbits: int, data: Data, group: str, bank: Bank, context: TrialContext
) -> tuple[Stage, Callable[[Path], None]]:
    """The stage of a compressed index, and its builder."""

    def build(folder: Path) -> None:
        vectors = bank.vectors(group)
        began = time.perf_counter()
        index = ivfpq.build(
            vectors,
            n_clusters=params.n_clusters,
            m=params.m,
            nbits=nbits,
            seed=context.seed,
            threads=context.threads,
        )
        seconds = time.perf_counter() - began
        context.log.info("index of %d vectors in %.2f s", len(vectors), seconds)
        ivfpq.write(index, folder / _FILE)
        size_bytes = (folder / _FILE).stat().st_size
        note = {"build_s": seconds, "threads": context.threads, "size_bytes": size_bytes}
        (folder / _NOTE).write_text(json.dumps(note))

    return index_stage(params, data, params.sources(data, group), context.seed), build
