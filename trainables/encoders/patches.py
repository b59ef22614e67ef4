"""Patch features: which encoder, which of its layers, and what is kept of them.

As in PatchCore (Roth et al., CVPR 2022, arXiv:2106.08265): each layer's features are averaged over
3 x 3 neighbours, brought to the first layer's grid and joined, so that a patch's vector knows its
surroundings at two scales.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from hdsweep.method import Data
from trainables.encoders import Crop, EncoderParams, Size, is_transformer, patch_of

_QUARTERS = {"mid": (2, 3), "high": (3, 4)}


class PatchParams(EncoderParams):
    """Knobs of an encoder's patch features.

    Args:
        encoder: Name of a residual network or of a vision transformer (``vit_...``) of timm.
        layers: ``mid`` takes the second and third quarter of the network, ``high`` the third and
            fourth: stages 2+3 and 3+4 of a residual network, blocks at 1/2+3/4 and 3/4+1 of the
            depth of a transformer.
        pretrain_embed_dimension: Size to which each layer's vector is pooled; null keeps it.
        target_embed_dimension: Size to which the joined vector is pooled; null keeps it. With both
            null the layers are concatenated as they are, as anomalib does.
        features: Type in which features are kept and shared between trials.
    """

    encoder: str = Field("wide_resnet50_2", pattern=r"^[A-Za-z0-9_.]+$")
    resize: Size = (256, 256)
    crop: Crop = (224, 224)
    layers: Literal["mid", "high"] = "mid"
    pretrain_embed_dimension: int | None = Field(1024, ge=1, le=16384)
    target_embed_dimension: int | None = Field(1024, ge=1, le=16384)
    features: Literal["float16", "float32"] = "float16"

    @property
    def quarters(self) -> tuple[int, int]:
        """Which quarters of the network are looked at, counted from 1."""
        return _QUARTERS[self.layers]

    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches, as far as they can be told without building the network."""
        if is_transformer(self.encoder):
            patch = patch_of(self.encoder, self.patch_size)
            return (self.crop[0] // patch, self.crop[1] // patch) if patch else None
        stride = 2 ** (self.quarters[0] + 1)
        return math.ceil(self.crop[0] / stride), math.ceil(self.crop[1] / stride)

    def patches(self, data: Data, groups: tuple[str, ...]) -> int | None:
        """How many patches the training images of some groups have, as far as it can be told."""
        grid = self.grid()
        images = sum(item.group in groups for item in data.train)
        return images * grid[0] * grid[1] if grid else None

    def dimension(self) -> int | None:
        """Of a patch's vector, as far as it can be told without building the network."""
        if self.target_embed_dimension is not None:
            return self.target_embed_dimension
        each = self.pretrain_embed_dimension
        return None if each is None else each * len(self.quarters)
