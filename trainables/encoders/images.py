"""What an encoder sees of an image, in training as in testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hdsweep.method import Data, Item, MethodError
from trainables.encoders import EncoderParams

CHUNK = 32  # images encoded at once; a constant, since the bits depend on it

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def resized(images: Tensor, params: EncoderParams) -> Tensor:
    """Resized and cropped about the centre, in the data's own unit.

    Args:
        images: Shape (batch, channels, height, width).
        params: Sizes.

    Returns:
        Shape (batch, channels, *crop).
    """
    if tuple(images.shape[-2:]) != params.resize:
        images = F.interpolate(
            images, size=params.resize, mode="bilinear", antialias=True, align_corners=False
        )
    (height, width), (rows, columns) = params.resize, params.crop
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return images[..., top : top + rows, left : left + columns]


def seen(
    items: Sequence[Item], params: EncoderParams, data: Data, threads: int
) -> Iterator[list[Tensor]]:
    """What the encoder sees of the items, before normalisation, in lists of up to CHUNK.

    Each image has shape (channels, *crop), in the data's own unit. One list is read ahead, so that
    memory is bounded whatever the data's size.

    Args:
        items: Of ``data``.
        params: Sizes.
        data: How to read them.
        threads: That read.
    """

    def look(item: Item) -> Tensor:
        return resized(torch.from_numpy(data.read(item))[None], params)[0]

    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(look, item) for item in (chunks[0] if chunks else ())]
        for following in [*chunks[1:], ()] if chunks else ():
            ahead = [pool.submit(look, item) for item in following]
            try:
                yield [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            waiting = ahead


def mask_on_grid(
    mask: NDArray[np.bool_], params: EncoderParams, grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """A mask as ``resized`` shows its image, then brought to ``grid`` by nearest neighbours.

    Args:
        mask: Shape (height, width) of the image.
        params: Sizes.
        grid: Rows and columns of the result.
    """
    whole = resized(torch.from_numpy(mask)[None, None].float(), params)
    found: NDArray[np.bool_] = (F.interpolate(whole, size=grid, mode="nearest")[0, 0] > 0.5).numpy()
    return found


def normalised(images: Tensor) -> Tensor:
    """Three channels in ImageNet's unit: a single channel is repeated.

    Raises:
        MethodError: Neither one nor three channels.
    """
    if images.shape[1] not in {1, 3}:
        raise MethodError(f"images have {images.shape[1]} channels; encoders see 1 or 3")
    mean = torch.tensor(_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std
