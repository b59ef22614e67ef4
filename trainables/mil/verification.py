"""Verification: are two words of one writer? Measured on a fixed list of pairs.

The list holds as many pairs of one writer as of two, drawn without repetition from all there are,
so it is the same for every embedder of the same words, whatever its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Infeasible
from hdsweep.roc import auroc, eer

_SEED = 0  # of the list: embedders of all seeds are compared on the same one


@dataclass(frozen=True, slots=True)
class Verification:
    """How well writers are verified.

    Args:
        auc: Probability that a pair of one writer is more alike than one of two.
        eer: Equal error rate.
        pairs: How many there were, of both kinds together.
    """

    auc: float
    eer: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of different images.

    Args:
        left: Shape (n,), positions of images.
        right: Shape (n,), positions of other images.
        differ: Shape (n,), whether the two are of different writers.
    """

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    differ: NDArray[np.bool_]


def draw_pairs(writers: Sequence[str], most: int) -> Pairs:
    """A balanced list of pairs, none twice.

    Args:
        writers: Of the images.
        most: Length of the list; shorter, and still balanced, where there are too few images.

    Raises:
        Infeasible: There is no pair of one writer, or none of two.
    """
    _, label = np.unique(np.asarray(writers, dtype=str), return_inverse=True)
    order = np.argsort(label, kind="stable")
    label = label[order]
    # Sorted by writer, an image's partners of its own writer follow it, then those of others.
    places = np.arange(len(label))
    end = np.searchsorted(label, label, side="right")
    own, others = end - places - 1, len(label) - end
    each = min(most // 2, int(own.sum()), int(others.sum()))
    if each == 0:
        raise Infeasible(
            f"{len(label)} images of {len(set(writers))} writers make no pair of one writer or "
            "none of two, so there is nothing to verify"
        )
    rng = np.random.default_rng(np.random.SeedSequence(_SEED))
    same = _draw(own, places + 1, each, rng)
    different = _draw(others, end, each, rng)
    left, right = (order[np.concatenate(side)] for side in zip(same, different, strict=True))
    return Pairs(left, right, differ=np.repeat([False, True], each))


def _draw(
    partners: NDArray[np.intp], first: NDArray[np.intp], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Some of the pairs of each place with so many others, from ``first`` on; none twice."""
    until = np.cumsum(partners)
    drawn = rng.choice(int(until[-1]), size=count, replace=False)
    left = np.searchsorted(until, drawn, side="right")
    return left, first[left] + drawn - (until - partners)[left]


def verify(embeddings: NDArray[np.float32], pairs: Pairs) -> Verification:
    """Compare the images of each pair by the cosine of their embeddings.

    Args:
        embeddings: Shape (images, dimension), of unit length.
        pairs: Of these images.
    """
    left, right = (embeddings[side].astype(np.float64) for side in (pairs.left, pairs.right))
    unlike = -np.einsum("ij,ij->i", left, right)
    return Verification(
        auc=auroc(pairs.differ, unlike),
        eer=eer(pairs.differ, unlike),
        pairs=len(unlike),
    )
