"""What a frozen encoder says about each patch, computed once for all trials that ask.

Every memory bank and every index of a sweep is made of the same patch features, so these are kept
as a stage per split and group, a chunk of images at a time, and mapped into memory: trials on a
machine share one copy, and data larger than memory can be used. ``patches`` defines them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from timm.models import VisionTransformer
from torch import Tensor, nn

from hdsweep.method import Data, Item, MethodError, Stage, TrialContext
from trainables.encoders import arrays
from trainables.encoders.backbone import Network, network
from trainables.encoders.images import normalised, seen
from trainables.encoders.patches import PatchParams
from trainables.encoders.stages import Split, features_stage, items_of

__all__ = ["FrozenMaps", "PatchFeatures", "PatchShape", "joined"]


_JOINED = 4  # images


@dataclass(frozen=True, slots=True)
class PatchShape:
    """Of the features of one image.

    Args:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        dimension: Of a patch's vector.
    """

    rows: int
    columns: int
    dimension: int


class FrozenMaps(nn.Module):
    """A network that hands out the feature maps of some of its quarters and never learns.

    What lies behind the last quarter asked for is removed.

    Args:
        net: Of timm; it is changed.
        quarters: From 1 to 4, ascending. Of a residual network they are its stages; of a
            transformer the last blocks of each, normalised as the last block's output is.
    """

    def __init__(self, net: Network, quarters: tuple[int, ...]) -> None:
        super().__init__()
        self._options: dict[str, bool]
        if isinstance(net, VisionTransformer):
            depth = len(net.blocks)
            self._taps = [quarter * depth // 4 - 1 for quarter in quarters]
            self._options = {"norm": True}
            self.channels = [int(net.embed_dim)] * len(quarters)
            self.stride = int(net.patch_embed.patch_size[0])
        else:
            self._taps = list(quarters)  # its map 0 is the stem's
            self._options = {}
            self.channels = [int(net.feature_info[tap]["num_chs"]) for tap in self._taps]
            self.stride = int(net.feature_info[self._taps[0]]["reduction"])
        net.prune_intermediate_layers(self._taps, prune_norm=False, prune_head=True)
        self._net = net.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> FrozenMaps:
        """Stay in evaluation mode, whatever the model around does."""
        super().train(mode)
        self._net.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """A map per quarter, shape (batch, channels, rows, columns)."""
        distinct = sorted(set(self._taps))  # the quarters of two blocks may be the same one
        found = self._net.forward_intermediates(
            images, indices=distinct, stop_early=True, intermediates_only=True, **self._options
        )
        maps = dict(zip(distinct, found, strict=True))
        return [maps[tap] for tap in self._taps]


def joined(maps: Sequence[Tensor], each: int | None, whole: int | None) -> Tensor:
    """Patch features from feature maps.

    Args:
        maps: Shape (batch, channels, rows, columns) each.
        each: Size to which a map's vectors are pooled; None keeps them.
        whole: Size to which the joined vectors are pooled; None keeps them.

    Returns:
        Shape (batch, rows * columns of the first map, dimension).
    """
    grid = maps[0].shape[-2:]
    layers = [
        F.interpolate(
            _pooled(F.avg_pool2d(found, 3, stride=1, padding=1), each),
            size=grid,
            mode="bilinear",
            align_corners=False,
        )
        for found in maps
    ]
    return _pooled(torch.cat(layers, dim=1), whole).flatten(2).mT.contiguous()


def _pooled(maps: Tensor, size: int | None) -> Tensor:
    """Adaptive average pooling of the channels to ``size`` of them."""
    if size is None or size == maps.shape[1]:
        return maps
    places = maps.flatten(2)
    pooled = F.adaptive_avg_pool2d(places, (size, places.shape[2]))
    return pooled.reshape(len(maps), size, *maps.shape[2:])


class PatchFeatures:
    """Patch features of the items of a trial.

    Args:
        params: The encoder, what it sees and what is kept of it.
        data: Items and how to read them.
        context: Lends the stages, the device and the threads that read images.
    """

    def __init__(self, params: PatchParams, data: Data, context: TrialContext) -> None:
        self._params, self._data, self._context = params, data, context
        self._device = torch.device(context.device)
        self._shape: PatchShape | None = None
        self._kept: dict[tuple[Split, str], NDArray[Any]] = {}
        self._content = arrays.Content(
            name="features",
            keep=params.features,
            wider="'float32'",
            smaller="free some, or lower the knob target_embed_dimension",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return self._told.rows, self._told.columns

    @property
    def dimension(self) -> int:
        """Of a patch's vector."""
        return self._told.dimension

    def prepare(self, wanted: Sequence[tuple[Split, str]]) -> None:
        """Have the features of these splits' groups encoded now, then let go of the encoder.

        What other processes are at is left to them.

        Raises:
            MethodError: A group has no images in this split, or as ``backbone.network``.
        """
        self._context.prepare([self._asked(split, group) for split, group in wanted])
        if "_network" in vars(self):
            del vars(self)["_network"]
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # another process may have it

    def of(self, split: Split, group: str) -> NDArray[Any]:
        """Features of a split's items of one group, in the order of ``items_of``.

        Returns:
            Shape (items, rows * columns, dimension), of the type ``params.features``,
            memory-mapped and read-only.

        Raises:
            MethodError: The group has no images in this split, its features are damaged, or as
                ``backbone.network``.
        """
        if (split, group) not in self._kept:
            folder = self._context.stage(*self._asked(split, group))
            self._kept[split, group], self._shape = arrays.read(
                folder, self._content, "r", PatchShape
            )
        return self._kept[split, group]

    def stream(self, split: Split, group: str) -> Iterator[NDArray[Any]]:
        """What ``of`` would return, some items at a time, encoded now and not kept."""
        kind = arrays.TYPES[self._params.features]
        for images in self.images(self._items(split, group)):
            yield self.encode(images).to(kind).cpu().numpy()

    def images(self, items: Sequence[Item]) -> Iterator[list[Tensor]]:
        """What the encoder sees of the items, as ``images.seen`` gives it."""
        return seen(items, self._params, self._data, self._context.threads)

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """Features of images as ``images`` gives them.

        Returns:
            Shape (len(images), rows * columns, dimension), float32, on the trial's device.
        """
        maps = self._network(normalised(torch.stack(list(images)).to(self._device)))
        params = self._params
        # What is in between is several times as large as the result, so it is made a few at a time.
        parts = [
            joined(some, params.pretrain_embed_dimension, params.target_embed_dimension)
            for some in zip(*(found.split(_JOINED) for found in maps), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def _network(self) -> FrozenMaps:
        net = network(self._params, self._data, self._context)
        maps = FrozenMaps(net, self._params.quarters).to(self._device)
        self._shape = _shape_of(maps, self._params)
        return maps

    @property
    def _told(self) -> PatchShape:
        """The shape, from a stage; the network is built only where none tells."""
        return self._shape or _shape_of(self._network, self._params)

    def _asked(self, split: Split, group: str) -> tuple[Stage, Callable[[Path], None]]:
        items = self._items(split, group)

        def write(folder: Path) -> None:
            self._write(folder, items)

        return features_stage(self._params, self._data, split, group), write

    def _items(self, split: Split, group: str) -> tuple[Item, ...]:
        items = items_of(self._data, split, group)
        if not items:
            kind = "training" if split == "train" else "test"
            raise MethodError(
                f"group '{group}' has no {kind} images, so there are no patch features of it; "
                "check the data, or leave the group out"
            )
        return items

    def _write(self, folder: Path, items: Sequence[Item]) -> None:
        """Encode the items into ``folder``, a chunk at a time."""
        shape = _shape_of(self._network, self._params)
        size = (shape.rows * shape.columns, shape.dimension)
        self._context.log.info(
            "encoding %d images of group '%s' into %.3g MB of patch features, once",
            len(items),
            items[0].group,
            arrays.size_bytes(self._content, len(items), size) / 1e6,
        )
        encoded = (self.encode(images) for images in self.images(items))
        arrays.write(folder, self._content, items, encoded, size, shape)


def _shape_of(maps: FrozenMaps, params: PatchParams) -> PatchShape:
    rows, columns = (math.ceil(side / maps.stride) for side in params.crop)
    layers = [params.pretrain_embed_dimension or width for width in maps.channels]
    return PatchShape(rows, columns, dimension=params.target_embed_dimension or sum(layers))
