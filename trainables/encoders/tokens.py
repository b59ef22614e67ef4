"""What a frozen encoder says about each image, computed once for all trials that ask.

Without augmentation the encoder's output per image is a constant of a sweep: every variant, seed
and step sees the same. Of its layers only the means of two groups are needed, so these are kept,
in half precision unless told otherwise, as a stage that trials map into memory. Where a GPU has
room they are copied there, and a training step reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hdsweep.method import Data, Item, TrialContext
from trainables.encoders import EncoderParams, arrays
from trainables.encoders.backbone import FrozenViT, build
from trainables.encoders.images import normalised, seen
from trainables.encoders.stages import SCALES, Split, Stored, tokens_stage

__all__ = ["Shape", "Stored", "Tokens"]

_RESIDENT_SHARE = 0.5  # of a GPU's free memory that tokens may take; the rest is for training


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder must know about an encoder.

    Args:
        rows: Patches from top to bottom of an image.
        columns: Patches from left to right.
        prefix: Tokens before the patches': class token and registers.
        width: Of a token.
        num_heads: Attention heads.
    """

    rows: int
    columns: int
    prefix: int
    width: int
    num_heads: int

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return self.prefix + self.rows * self.columns


class Tokens:
    """Group means of encoder layers for the items of a trial.

    Args:
        params: The encoder and what it sees.
        layers: Blocks whose output is used, an even number; the first and the second half are the
            two groups. None for ``default_layers``.
        data: Items and how to read them.
        context: Lends the stage, the device and the threads that read images.
        keep: How the stage holds them; None encodes each image whenever it is asked for.
    """

    def __init__(
        self,
        params: EncoderParams,
        layers: tuple[int, ...] | None,
        data: Data,
        context: TrialContext,
        keep: Stored | None,
    ) -> None:
        self._params, self._layers, self._data = params, layers, data
        self._context, self._keep = context, keep
        self._device = torch.device(context.device)
        self._kept: dict[Split, Tensor] = {}
        self._rows = {
            "train": {item.name: row for row, item in enumerate(data.train)},
            "test": {item.name: row for row, item in enumerate(data.test)},
        }

    @cached_property
    def shape(self) -> Shape:
        """Of the encoder; it is built only where no stage tells."""
        if self._keep is None:
            return _shape_of(self._encoder, self._params)
        return self._stage("test", self._keep)[1]

    def prepare(self, *splits: Split) -> None:
        """Have all items of these splits encoded now, unless nothing is kept.

        When that was all there is to encode, the encoder's memory is given back.
        """
        if self._keep is None:
            return
        for split in splits:
            self._stage(split, self._keep)
        if {"train", "test"} <= set(splits):
            vars(self).pop("_encoder", None)

    def of(self, split: Split, items: Sequence[Item]) -> Tensor:
        """Tokens of some of the split's items.

        Returns:
            Shape (len(items), 2, tokens, width), float32, on the trial's device.
        """
        if self._keep is None:
            return self.encode([image for chunk in self.images(items) for image in chunk])
        if split not in self._kept:
            self._kept[split] = self._resident(self._stage(split, self._keep)[0])
        kept, rows = self._kept[split], self._rows[split]
        chosen = torch.tensor([rows[item.name] for item in items], device=kept.device)
        return kept[chosen].to(self._device, torch.float32)

    def images(self, items: Sequence[Item]) -> Iterator[list[Tensor]]:
        """What the encoder sees of the items, as ``images.seen`` gives it."""
        return seen(items, self._params, self._data, self._context.threads)

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """Group means of images as ``images`` gives them, float32, shape as that of ``of``."""
        batch = normalised(torch.stack(list(images)).to(self._device))
        found = list(self._encoder(batch).values())
        half = len(found) // SCALES
        groups = [torch.stack(group).mean(dim=0) for group in (found[:half], found[half:])]
        return torch.stack(groups, dim=1)

    @cached_property
    def _encoder(self) -> FrozenViT:
        encoder = build(self._params, self._layers, self._data, self._context)
        return encoder.to(self._device)

    def _stage(self, split: Split, keep: Stored) -> tuple[Tensor, Shape]:
        """The stage of a split, memory-mapped, shape (items, 2, tokens, width), and its shape."""
        items = self._data.train if split == "train" else self._data.test
        stage = tokens_stage(self._params, self._layers, self._data, split, keep)

        def write(folder: Path) -> None:
            self._write(folder, items, keep)

        folder = self._context.stage(stage, write)
        stored, shape = arrays.read(folder, _content(keep), "c", Shape)
        return torch.from_numpy(stored).view(arrays.TYPES[keep]), shape

    def _write(self, folder: Path, items: Sequence[Item], keep: Stored) -> None:
        """Encode all items into ``folder``, a chunk at a time."""
        content, shape = _content(keep), _shape_of(self._encoder, self._params)
        size = (SCALES, shape.tokens, shape.width)
        self._context.log.info(
            "encoding %d images into %.3g MB of tokens, once",
            len(items),
            arrays.size_bytes(content, len(items), size) / 1e6,
        )
        encoded = (self.encode(images) for images in self.images(items))
        arrays.write(folder, content, items, encoded, size, shape)

    def _resident(self, tokens: Tensor) -> Tensor:
        """The tokens on the GPU, if there is one and they leave room for training."""
        if self._device.type != "cuda":
            return tokens
        free, _ = torch.cuda.mem_get_info(self._device)
        if tokens.nbytes > _RESIDENT_SHARE * free:
            self._context.log.info("tokens stay in host memory: %.1f GB", tokens.nbytes / 1e9)
            return tokens
        return tokens.to(self._device)


def _content(keep: Stored) -> arrays.Content:
    return arrays.Content(
        name="tokens",
        keep=keep,
        wider="'bfloat16' or 'float32'",
        smaller="set the knob tokens to 'none' to encode images again in every step",
    )


def _shape_of(encoder: FrozenViT, params: EncoderParams) -> Shape:
    return Shape(
        rows=params.crop[0] // encoder.patch_size,
        columns=params.crop[1] // encoder.patch_size,
        prefix=1 + encoder.num_register_tokens,
        width=encoder.embed_dim,
        num_heads=encoder.num_heads,
    )
