"""Words as the embedder sees them, and how they are distorted while it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hdsweep.method import Data, Item
from trainables.encoders.images import CHUNK, seen
from trainables.mil.words import WordParams

KEPT_BYTES = 1 << 29  # of memory for the words of each split; more are read anew in each epoch

_DISTORTS = 1  # stream beside the order of the words
_DEGREES, _SHEAR, _LOG_SCALE, _SHIFT = 4.0, 0.08, 0.1, 0.05  # at most, either way


class Words:
    """Words as the network sees them, in half precision; in memory, where they fit.

    Args:
        items: Of ``data``.
        params: Sizes.
        data: How to read them.
        threads: That read.
        room_bytes: Memory they may take; those that take more are read whenever they are asked for.
    """

    def __init__(
        self,
        items: Sequence[Item],
        params: WordParams,
        data: Data,
        threads: int,
        room_bytes: int = KEPT_BYTES,
    ) -> None:
        self._items, self._params, self._data, self._threads = items, params, data, threads
        self._kept: Tensor | None = None
        first = next(self._read(np.arange(1), 1))
        if first.nbytes * len(items) <= room_bytes:
            kept = first.new_empty(len(items), *first.shape[1:])
            for start, some in zip(
                range(0, len(items), CHUNK), self._read(np.arange(len(items)), CHUNK), strict=True
            ):
                kept[start : start + CHUNK] = some
            self._kept = kept

    def batches(self, places: NDArray[np.intp], size: int) -> Iterator[Tensor]:
        """The words at these places, in the data's own unit, in batches of up to ``size``.

        Each has shape (batch, channels, *crop) and type float16.
        """
        if self._kept is None:
            yield from self._read(places, size)
        else:
            for start in range(0, len(places), size):
                yield self._kept[torch.from_numpy(places[start : start + size])]

    def in_order(self) -> Iterator[Tensor]:
        """All words as ``batches`` gives them, in the chunks in which they are embedded."""
        yield from self.batches(np.arange(len(self._items)), CHUNK)

    def _read(self, places: NDArray[np.intp], size: int) -> Iterator[Tensor]:
        items = [self._items[place] for place in places]
        chunks = seen(items, self._params, self._data, self._threads)
        images = (image for chunk in chunks for image in chunk)
        while batch := list(islice(images, size)):
            yield torch.stack(batch).half()


def distorted(images: Tensor, places: Sequence[int], epoch: int, seed: int) -> Tensor:
    """Images rotated, sheared, scaled and shifted a little, each in its own way.

    Beyond its border an image goes on as at its border.

    Args:
        images: Shape (batch, channels, height, width), float32.
        places: Of the images in the data: what is done to one depends on nothing of the others.
        epoch: In which it is done.
        seed: Of the embedder.
    """
    ways = np.stack([_affine(images.shape[-2:], place, epoch, seed) for place in places])
    grid = F.affine_grid(torch.from_numpy(ways), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _affine(size: Sequence[int], place: int, epoch: int, seed: int) -> NDArray[np.float32]:
    """Where the pixels come from, shape (2, 3), in a unit in which the image is [-1, 1]^2."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_DISTORTS, epoch, place)))
    most = np.array([math.radians(_DEGREES), _SHEAR, _LOG_SCALE, _SHIFT, _SHIFT])
    angle, shear, log_scale, right, down = rng.uniform(-most, most)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    slant = np.array([[1.0, shear], [0.0, 1.0]])
    height, width = size
    aspect = np.array([[1.0, height / width], [width / height, 1.0]])
    way = np.column_stack([turn @ slant * math.exp(log_scale) * aspect, [2 * right, 2 * down]])
    return way.astype(np.float32)
