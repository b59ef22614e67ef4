"""Pixel metrics of one group of images, from its anomaly maps and masks.

All of them read where the anomalous pixels stand among the normal ones. So the normal pixels are
sorted once, by value alone, and each anomalous pixel is looked up in them; nothing is binned and
no threshold is dropped. As with images only the order of the scores matters, ties are taken
together, and counts stay integers until the last division.

Regions are the 8-connected components of a mask, per image. A region that the maps' grid has
cropped away is no region there, and a pixel outside of all regions is normal, in anomalous images
too. Workers import this module: numpy only, and scipy where a mask is labelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdsweep.errors import UndefinedMetric
from hdsweep.roc import Bools, Counts, Floats, area, average_precision, share_of

_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)  # a pixel touches those at its corners


@dataclass(frozen=True, slots=True)
class Ranking:
    """The p anomalous pixels of a group, from the highest score to the lowest.

    Args:
        above: Shape (p,), how many normal pixels score above each; ascending.
        upto: Shape (p,), how many score above it or the same.
        is_last: Shape (p,), whether the next anomalous pixel scores less.
        region: Shape (p,), each pixel's region, from 0, numbered through the group.
        normal: Number of normal pixels.
    """

    above: Counts
    upto: Counts
    is_last: Bools
    region: NDArray[np.int32]
    normal: int


def rank(maps: Floats, images: Iterable[int], mask_of: Callable[[int], Bools | None]) -> Ranking:
    """Sort the pixels of a group.

    Needs 4 bytes per pixel (8 where the maps are float64) and another 70 or so per anomalous one.

    Args:
        maps: Shape (n, height, width), larger means more anomalous, any monotone unit; infinities
            are allowed. May be memory-mapped: it is read image by image.
        images: Which of the n make the group.
        mask_of: Index of an image -> its mask, shape (height, width), True where it is anomalous;
            None where no pixel is.

    Raises:
        UndefinedMetric: One class is absent, or a score is NaN.
        ValueError: As ``as_mask``.
    """
    chosen = list(images)
    dtype = np.float64 if maps.dtype.itemsize > 4 else np.float32  # half precision fits in single
    size = math.prod(maps.shape[1:])
    normal: Floats = np.empty(len(chosen) * size, dtype=dtype)
    scores: list[Floats] = []
    regions: list[NDArray[np.int32]] = []
    filled = count = nan = 0
    for image in chosen:
        found: Floats = np.asarray(maps[image], dtype=dtype)
        nan += int(np.count_nonzero(np.isnan(found)))
        given = mask_of(image)
        mask = np.zeros(found.shape, np.bool_) if given is None else as_mask(given, found.shape)
        outside = found[~mask]
        normal[filled : filled + len(outside)] = outside
        filled += len(outside)
        if len(outside) < size:
            label, here = _regions(mask)
            scores.append(found[mask])
            regions.append(label[mask] + (count - 1))
            count += here
    if nan:
        raise UndefinedMetric(f"{nan} of {len(normal)} pixels are NaN")
    if filled in (0, len(normal)):
        absent = "normal" if filled == 0 else "anomalous"
        raise UndefinedMetric(f"no {absent} pixel among {len(normal)}")
    return _ranked(normal[:filled], np.concatenate(scores), np.concatenate(regions))


def auroc(ranking: Ranking) -> float:
    """Probability that an anomalous pixel scores above a normal one, a tie counting one half."""
    last = np.flatnonzero(ranking.is_last)
    found = np.concatenate(([0], last + 1))
    # The curve's corners: where each score of an anomalous pixel is entered and left.
    fp = np.stack((ranking.above[last], ranking.upto[last]), axis=1).ravel()
    tp = np.stack((found[:-1], found[1:]), axis=1).ravel()
    return area(np.concatenate(([0], fp, [ranking.normal])), np.concatenate(([0], tp, [found[-1]])))


def ap(ranking: Ranking) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    last = np.flatnonzero(ranking.is_last)
    return average_precision(
        np.concatenate(([0], ranking.upto[last])), np.concatenate(([0], last + 1))
    )


def aupro(ranking: Ranking, percent: float) -> float:
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate.

    The overlap at a threshold is the share of a region at or above it, averaged over regions, so
    that a small region weighs as much as a large one (Bergmann et al., "The MVTec Anomaly Detection
    Dataset", IJCV 2021). The curve is joined by straight lines, at the limit too.

    Args:
        ranking: Of one group.
        percent: The limit, in (0, 100]; published numbers mostly use 30, some 5.

    Returns:
        Value in [0, 1]; a constant map has half the limit.
    """
    limit = float(share_of(percent, ranking.normal))
    # Pixel by pixel rather than threshold by threshold: each lifts the curve by its share of its
    # region, along a line from the normal pixels above it to those that score the same.
    k = int(np.searchsorted(ranking.above, limit))
    above, upto, region = ranking.above[:k], ranking.upto[:k], ranking.region[:k]
    end = np.minimum(upto, limit)
    reached = np.divide(end - above, upto - above, out=np.ones(k), where=upto > above)
    lifted = (limit - end + (end - above) * reached / 2) / limit
    size = np.bincount(ranking.region)
    overlap = np.bincount(region, weights=lifted, minlength=len(size)) / size
    return math.fsum(overlap) / len(size)  # exact, so that the order of images does not matter


def as_mask(found: object, shape: tuple[int, ...]) -> Bools:
    """The mask itself; raises ValueError when it is not one of booleans of this shape."""
    mask = np.asarray(found)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise ValueError(
            f"the mask on the maps' grid has shape {mask.shape} and type {mask.dtype}; "
            f"the maps have {shape}, and a mask is of booleans"
        )
    return mask


def open_maps(path: Path, images: int) -> Floats:
    """Memory-map a file of anomaly maps.

    Args:
        path: A ``.npy`` file of floats, shape (images, height, width).
        images: How many there should be.

    Raises:
        ValueError: It is not such a file.
    """
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"maps: {path} is not a readable .npy file: {error}") from None
    if not isinstance(maps, np.ndarray):
        maps.close()
        raise ValueError(f"maps: {path} is an archive, not one .npy array")
    if maps.ndim != 3 or len(maps) != images:
        raise ValueError(
            f"maps have shape {maps.shape}; give one map (height, width) for each of the {images} "
            "test items"
        )
    if maps.dtype.kind != "f" or maps.dtype.itemsize > 8:
        raise ValueError(f"maps are of type {maps.dtype}; give float16, float32 or float64")
    return maps


def _regions(mask: Bools) -> tuple[NDArray[np.int32], int]:
    from scipy import ndimage

    label, count = ndimage.label(mask, structure=_NEIGHBOURS)
    return label, int(count)


def _ranked(normal: Floats, score: Floats, region: NDArray[np.int32]) -> Ranking:
    normal.sort()
    order = np.argsort(score)[::-1]
    score = score[order]
    return Ranking(
        above=len(normal) - np.searchsorted(normal, score, side="right"),
        upto=len(normal) - np.searchsorted(normal, score, side="left"),
        is_last=np.append(score[1:] != score[:-1], True),
        region=region[order],
        normal=len(normal),
    )
