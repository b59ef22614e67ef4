"""Documents of writers, and the windows of words that are their instances.

What is read from the data is remembered: a plan asks thousands of times for the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Data
from trainables.mil.words import Split, items_of, writer_of

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a split and their instances, in the order of the data.

    Args:
        writers: Their names.
        homes: Their folders.
        rows: Shape (words,), rows of the embeddings, document after document.
        writer: Shape (documents,), places in ``writers``, ascending.
        session: Shape (documents,).
        words: Shape (documents,), how many.
        instances: Shape (documents,), how many.
    """

    writers: tuple[str, ...]
    homes: tuple[Path, ...]
    rows: Integers
    writer: Integers
    session: Integers
    words: Integers
    instances: Integers

    @property
    def first_instance(self) -> Integers:
        """Shape (documents + 1,): instances are numbered through."""
        return starts_of(self.instances)

    @property
    def supply(self) -> Integers:
        """Shape (writers,), instances of each writer, of all documents."""
        counts = np.zeros(len(self.writers), dtype=np.int64)
        np.add.at(counts, self.writer, self.instances)
        return counts

    def starts(self, stride: int) -> Integers:
        """Shape (instances,), where in ``rows`` each instance begins; ``stride`` as before."""
        first = self.first_instance
        within = np.arange(first[-1]) - np.repeat(first[:-1], self.instances)
        found: Integers = np.repeat(starts_of(self.words)[:-1], self.instances) + within * stride
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """Data, told apart by their place in memory, which this keeps: comparing items takes long.

    Args:
        data: The words.
        place: Of ``data`` in memory.
    """

    data: Data = field(compare=False)
    place: int

    @classmethod
    def of(cls, data: Data) -> Asked:
        """These data."""
        return cls(data, id(data))


@dataclass(frozen=True, slots=True)
class _Words:
    """What bags depend on of a split's words.

    Args:
        writers: Names, in the order in which they come first.
        homes: Folders of the writers.
        writer: Shape (words,), places in ``writers``.
        repetition: Shape (words,).
        digest: Of names, writers and repetitions, in order.
    """

    writers: tuple[str, ...]
    homes: tuple[Path, ...]
    writer: Integers
    repetition: Integers
    digest: str


@lru_cache(maxsize=32)
def _words(asked: Asked, split: Split) -> _Words:
    items = items_of(asked.data, split)
    place: dict[str, int] = {}
    homes: list[Path] = []
    for item in items:
        name = writer_of(item)
        if name not in place:
            place[name] = len(place)
            own = (folder for folder in item.path.parents if folder.name == name)
            homes.append(next(own, item.path.parent))
    told = [[item.name, writer_of(item), item.facts["repetition"]] for item in items]
    return _Words(
        tuple(place),
        tuple(homes),
        np.array([place[writer_of(item)] for item in items], dtype=np.int64),
        np.array([int(item.facts["repetition"]) for item in items], dtype=np.int64),
        hashlib.sha256(json.dumps(told).encode()).hexdigest(),
    )


@lru_cache(maxsize=32)
def documents_in(asked: Asked, split: Split, session: int, window: int, stride: int) -> Documents:
    """The documents of a split.

    Args:
        asked: The words.
        split: Of them.
        session: Repetitions that are one document.
        window: Words of an instance.
        stride: Words from the start of an instance to that of the next.
    """
    words = _words(asked, split)
    order = np.lexsort((words.repetition, words.writer))  # stable: places in a text stay in order
    writer, sessions = words.writer[order], words.repetition[order] // session
    change = (writer[1:] != writer[:-1]) | (sessions[1:] != sessions[:-1])
    first = np.concatenate(([0], np.flatnonzero(change) + 1))
    length = np.diff(np.append(first, len(order)))
    instances = np.maximum(0, (length - window) // stride + 1)
    return Documents(
        words.writers, words.homes, order, writer[first], sessions[first], length, instances
    )


def words_digest(data: Data, split: Split) -> str:
    """Digest of which words these are, who wrote them when, and in what order they come."""
    return _words(Asked.of(data), split).digest


def starts_of(counts: Integers) -> Integers:
    """Where each of some runs begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(counts)))
