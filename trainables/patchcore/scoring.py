"""From the distances of patches to the score of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hdsweep.method import Data
from trainables.patchcore import SUPPORT, Params
from trainables.patchcore.index import Index


def score_images(
    features: NDArray[Any], index: Index, params: Params
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Patch distances and image scores.

    Args:
        features: Shape (images, patches, dimension).
        index: Of the bank they are compared with.
        params: The rule.

    Returns:
        Distances, shape (images, patches), and scores, shape (images,).
    """
    images, patches, dimension = features.shape
    distance, position = index.search(features.reshape(-1, dimension), 1)
    distance, position = distance.reshape(images, patches), position.reshape(images, patches)
    worst = distance.argmax(axis=1)
    rows = np.arange(images)
    largest = distance[rows, worst].astype(np.float64)
    if params.score_rule == "max_nn":
        return distance, largest
    patch = features[rows, worst].astype(np.float32)
    return distance, largest * _weights(patch, position[rows, worst], index)


def whole_scores(params: Params, data: Data, score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of ``data.wholes`` from those of ``data.test``; NaN where one has no parts."""
    parts: dict[str | None, list[float]] = {}
    for item, value in zip(data.test, score.tolist(), strict=True):
        parts.setdefault(item.part_of, []).append(value)
    return np.array(
        [pooled(params, np.array(parts.get(whole.name, [np.nan]))) for whole in data.wholes],
        dtype=np.float64,
    )


def pooled(params: Params, score: NDArray[np.float64]) -> float:
    """The score of a whole from those of its parts, shape (parts,)."""
    largest = 1 if params.slide_score == "max" else params.top_k
    return float(np.sort(score)[-largest:].mean())


def _weights(
    patch: NDArray[np.float32], nearest: NDArray[np.int64], index: Index
) -> NDArray[np.float64]:
    """1 - the softmax weight of the nearest vector among those around it, shape (images,)."""
    _, around = index.search(index.vectors[nearest], SUPPORT)
    found = np.empty(len(patch), dtype=np.float64)
    for n, (own, others) in enumerate(zip(nearest, around, strict=True)):
        # A compressed index need not find a vector again, nor as many as were asked for.
        support = [own, *(o for o in others if o not in (own, -1))][: min(SUPPORT, len(around[n]))]
        distance = np.linalg.norm(patch[n].astype(np.float64) - index.vectors[support], axis=1)
        found[n] = 1 - softmax(distance)[0]
    return found
