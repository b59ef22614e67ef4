"""Frozen encoders: what they are called, where their weights come from, what they see.

They are vision transformers, whose names in timm start with ``vit_``, and residual networks.

An encoder is a constant of a sweep, not something a trial learns, so all that determines it is a
knob and part of the trial's name. Its weights are ``pretrained`` (by timm, over the network), a
local file or folder, or one of two that need neither: ``random``, and ``pretext``, a short training
on the data's own normal maps. The last two are drawn with a seed of their own: two replicates of a
trial differ in what they train, never in what they look through.

This module is what planning a sweep imports, so it knows no torch; ``backbone`` builds the network,
``published`` finds weights, ``pretext`` trains some, ``images`` prepares what the network sees,
``tokens`` and ``features`` tell what it says, and ``arrays`` keeps that.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hdsweep.errors import did_you_mean
from hdsweep.method import ContentPath, Strict

__all__ = [
    "Crop",
    "EncoderParams",
    "Size",
    "Weights",
    "default_layers",
    "is_transformer",
    "not_whole_patches",
    "patch_of",
]

_SHAPE_KNOBS = ("patch_size", "embed_dim", "depth", "num_heads")
_AVERAGED = re.compile(r"res(?:ne|nex)taa")  # they halve by averages that drop an odd row, or fail


def _pair(value: object) -> object:
    """``64``, ``"64x96"`` and ``[64, 96]`` all say a height and a width."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("a size is 448 or 64x96 (height x width)")
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+)(?:\s*[x×]\s*(\d+))?", value.strip())
        if not found:
            raise ValueError("a size is 448 or 64x96 (height x width)")
        return (int(found[1]), int(found[2] or found[1]))
    return value


_Pixels = Annotated[int, Field(ge=1, le=4096)]

Size = Annotated[
    tuple[_Pixels, _Pixels],
    BeforeValidator(_pair, json_schema_input_type=_Pixels | str | tuple[_Pixels, _Pixels]),
]
"""Height and width in pixels; a single number is a square."""


def _or_null(schema: dict[str, Any]) -> None:
    if "anyOf" in schema:  # what may be written; what is kept is a pair
        schema["anyOf"].append({"type": "null"})


Crop = Annotated[Size, Field(json_schema_extra=_or_null)]
"""A size, or null for the whole of the resized image."""


_Source = Literal["pretrained", "random", "pretext"]


def _kind_of_weights(value: Any) -> str:
    if isinstance(value, Path):
        return "file"
    if not isinstance(value, str) or value in get_args(_Source):
        return "name"
    return "file" if re.search(r"[/\\.~]", value) or os.path.exists(value) else "name"


_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def _file_in_folder(value: Any) -> Any:
    """A folder, as model hubs keep one per model, stands for the file of weights in it."""
    if _kind_of_weights(value) == "name":
        names = get_args(_Source)
        if value not in names:
            hint = did_you_mean(str(value), names)
            raise ValueError(f"unknown source of weights{hint} A file is named as in ./weights.pth")
        return value
    try:
        folder = Path(value).expanduser()
        if not folder.is_dir():
            return value
        inside = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of nobody
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{value}: cannot be read: {reason}") from None
    preferred = [p for p in inside if p.name == "model.safetensors"] or inside
    if len(preferred) != 1:
        found = ", ".join(p.name for p in inside[:5]) or "no file of weights"
        raise ValueError(f"{folder}: the folder holds {found}; name one file")
    return preferred[0]


Weights = Annotated[
    Annotated[_Source, Tag("name")] | Annotated[ContentPath, Tag("file")],
    Discriminator(_kind_of_weights),
    BeforeValidator(_file_in_folder, json_schema_input_type=str),
]
"""A source of weights by name, or a file of them (or its folder), whose content names the trial."""


def is_transformer(encoder: str) -> bool:
    """Whether a name is meant for a vision transformer, not for a residual network."""
    return encoder.startswith("vit_")


def patch_of(encoder: str, patch_size: int | None) -> int | None:
    """Side of a patch in pixels, as far as it can be told without building the network."""
    named = re.search(r"patch(\d+)", encoder)
    return patch_size or (int(named[1]) if named else None)


def default_layers(depth: int) -> tuple[int, ...]:
    """Up to eight blocks, evenly spaced over the middle two thirds of ``depth``; an even number.

    The first blocks know pixels, the last ones the pretraining task. For 12 and 24 blocks these are
    Dinomaly's published choices: 2-9, and 4, 6 ... 18.
    """
    first, stop = depth // 6, depth - depth // 6
    layers = tuple(range(first, stop, -(-(stop - first) // 8)))
    return layers[len(layers) % 2 :]


class EncoderParams(Strict):
    """Knobs of a frozen encoder and of the images it is given.

    Args:
        encoder: Name of a vision transformer (``vit_...``) or of a residual network of timm.
        weights: Where its weights come from.
        patch_size: Side of a patch in pixels; by default what the encoder's name says. This and
            the next three are for vision transformers.
        embed_dim: Width of a token; by default the encoder's.
        depth: Number of blocks; by default the encoder's.
        num_heads: Attention heads; by default the encoder's.
        pretext_steps: Training steps of ``weights: pretext``.
        resize: Size to which an image is resized, bilinear and antialiased.
        crop: Size of the centre crop that follows; null keeps the whole image.
    """

    pools: ClassVar[bool] = False
    """Whether only what the network says of a whole image is used: then any of timm's will do."""

    encoder: str = Field("vit_base_patch14_reg4_dinov2", pattern=r"^[A-Za-z0-9_.]+$")
    weights: Weights = "pretrained"
    patch_size: int | None = Field(None, ge=1, le=64)
    embed_dim: int | None = Field(None, ge=8, le=4096)
    depth: int | None = Field(None, ge=2, le=64)
    num_heads: int | None = Field(None, ge=1, le=64)
    pretext_steps: int = Field(300, ge=1)
    resize: Size = (448, 448)
    crop: Crop = (392, 392)

    @field_validator("crop", mode="before")
    @classmethod
    def _no_crop_is_the_whole_image(cls, crop: object, info: ValidationInfo) -> object:
        return info.data.get("resize") if crop is None else crop

    @model_validator(mode="after")
    def _image_fits(self) -> Self:
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(
                f"crop {_shown(self.crop)} is larger than resize {_shown(self.resize)}; "
                "lower 'crop', or set it to null for the whole image"
            )
        patch = patch_of(self.encoder, self.patch_size)
        problem = not_whole_patches(self.crop, patch) if patch else None
        if _AVERAGED.search(self.encoder):
            problem = not_whole_patches(self.crop, 32, f"the stride of {self.encoder},")
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _knobs_are_used(self) -> Self:
        if self.weights != "pretext" and self.pretext_steps != 300:
            raise ValueError(f"weights '{self.weights}' do not use pretext_steps; remove it")
        reshaped = list(self.shape())
        if reshaped and not is_transformer(self.encoder):
            raise ValueError(
                f"encoder '{self.encoder}' is not a vision transformer (vit_...), whose knobs are "
                f"{', '.join(_SHAPE_KNOBS)}; remove {', '.join(reshaped)}"
            )
        if self.weights == "pretrained" and reshaped:
            raise ValueError(
                f"pretrained weights fit the published shape only; remove {', '.join(reshaped)}, "
                "or set weights to 'pretext', 'random' or a file"
            )
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        return self

    def identity(self, *, resolve: bool = True) -> dict[str, Any]:
        """As ``Strict.identity``, where published weights are named by their content too."""
        found = super().identity(resolve=resolve)
        if resolve and self.weights == "pretrained":
            from trainables.encoders import published

            published.require_known(self.encoder, pools=self.pools)
            found["weights"] = f"sha256:{published.digest(self.encoder)}"
        return found

    def shape(self) -> dict[str, int]:
        """The knobs of the network's shape that were set, as timm names them."""
        found = {knob: getattr(self, knob) for knob in _SHAPE_KNOBS}
        return {knob: value for knob, value in found.items() if value is not None}


def not_whole_patches(
    size: tuple[int, int], patch: int, what: str = "the patch size"
) -> str | None:
    """What is wrong with ``size`` for patches of this side, and the sizes that would fit."""
    for side, pixels in zip(("height", "width"), size, strict=True):
        if pixels % patch:
            below, above = pixels // patch * patch, (pixels // patch + 1) * patch
            fits = f"{below} or {above}" if below else str(above)
            return f"crop {side} {pixels} is not a multiple of {what} {patch}; use {fits}"
    return None


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
