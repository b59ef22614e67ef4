"""Words and their writers: the knobs of the embedder, and what names the work on it.

Planning a sweep asks for this, thousands of times for the same data, so it knows no torch, and what
it says of data is remembered. ``embeddings`` builds the stages.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from hdsweep.method import Data, Item, MethodError, Stage
from trainables.encoders import Crop, EncoderParams, Size

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Not the method's whole folder: an edit of the bags must not cost a new embedder.
_CODE = "trainables.mil.embeddings"
_EMBEDDER_VERSION = 1
_EMBEDDINGS_VERSION = 1


class WordParams(EncoderParams):
    """Knobs of the network that is trained to tell writers apart, and of the words it is shown.

    It is a part of the sweep like a frozen encoder and has a seed of its own: trials of all seeds
    look through the same one.

    Args:
        encoder: Name of the network of timm that training starts from, of whatever kind.
        resize: Size to which a word's image is resized, bilinear and antialiased.
        crop: Size of the centre crop that follows; null keeps the whole word.
        projection_dim: Width of the layer between the network and its embedding.
        embedding_dim: Numbers that a word becomes.
        embedder_dropout: Share of that layer's values that are dropped in training.
        scale: ArcFace's, by which cosines are multiplied.
        margin: ArcFace's, in radians, added to the angle between a word and its writer's centre.
        easy_margin: Add the margin only to angles below 90 degrees. Without, angles to which it
            cannot be added are given the penalty that keeps the loss monotone.
        augment: ``affine`` rotates, shears, scales and shifts training words a little, anew in
            each epoch.
        embedder_lr: Peak of the learning rate.
        embedder_weight_decay: Of AdamW.
        embedder_epochs: At most; the schedule of the learning rate ends there.
        embedder_batch_size: Words in a step; those that do not fill a batch sit out the epoch.
        embedder_patience: Epochs without a better verification of the validation writers after
            which training ends. The best epoch's weights are kept.
        embedder_seed: Of the embedder, not of a replicate.
        verification_pairs: At most so many pairs of words, half of them of one writer, on which
            verification is measured.
    """

    pools: ClassVar[bool] = True

    encoder: str = Field("vit_base_patch16_224", pattern=r"^[A-Za-z0-9_.]+$")
    resize: Size = (224, 224)
    crop: Crop = Field(None, validate_default=True)
    projection_dim: int = Field(512, ge=1, le=16384)
    embedding_dim: int = Field(128, ge=2, le=4096)
    embedder_dropout: float = Field(0.2, ge=0, lt=1)
    scale: float = Field(30.0, gt=0)
    margin: float = Field(0.5, ge=0, lt=math.pi / 2)
    easy_margin: bool = False
    augment: Literal["affine", "none"] = "affine"
    embedder_lr: float = Field(2.24e-5, gt=0)
    embedder_weight_decay: float = Field(0.01, ge=0)
    embedder_epochs: int = Field(30, ge=1)
    embedder_batch_size: int = Field(64, ge=2)
    embedder_patience: int = Field(5, ge=1)
    embedder_seed: int = Field(0, ge=0, lt=2**63)
    verification_pairs: int = Field(10_000, ge=2, le=10_000_000)

    @model_validator(mode="after")
    def _embedder_is_trained(self) -> Self:
        if self.weights == "pretext":
            raise ValueError(
                "weights 'pretext' are for encoders that stay frozen, and here the encoder is "
                "trained to tell writers apart; set weights to 'pretrained', 'random' or a file"
            )
        if self.easy_margin and self.margin == 0:
            raise ValueError("margin 0 does not use easy_margin; remove it")
        return self


def writer_of(item: Item) -> str:
    """Who wrote a word."""
    return str(item.facts["writer"])


def items_of(data: Data, split: Split) -> tuple[Item, ...]:
    """The words of a split, in the order of their embeddings."""
    found: tuple[Item, ...] = getattr(data, split)
    return found


# --- What cannot work -----------------------------------------------------------------------------


def why_unfit(data: Data) -> str | None:
    """Why words cannot be told apart by their writers in these data; None where they can."""
    return _why_unfit(_Asked(data, id(data)))


@lru_cache(maxsize=32)
def _why_unfit(asked: _Asked) -> str | None:
    data = asked.data
    for split in SPLITS:
        items = items_of(data, split)
        if not items:
            return f"the data have no {split} words, and the method needs {_listed(SPLITS)}"
        for fact in ("writer", "repetition"):
            lacking = next((item.name for item in items if fact not in item.facts), None)
            if lacking is not None:
                return (
                    f"the data do not tell the {fact} of {lacking}, and the method is about words "
                    "by several writers, each written several times"
                )
        writers = [writer_of(item) for item in items]
        if len(set(writers)) < 2:
            return (
                f"all {split} words are of writer {writers[0]}, and telling writers apart needs two"
            )
        if split != "train" and len(set(writers)) == len(writers):
            return (
                f"no two {split} words are of one writer, so it cannot be measured whether they "
                "are recognised as such"
            )
    return None


def require_disjoint(data: Data) -> None:
    """Raise MethodError if a writer's words are in two splits: then what is measured is memory."""
    for split, other, writer in _shared(data):
        raise MethodError(
            f"writer {writer} has words in the {split} and in the {other} split, so the embedder "
            "would be measured on writers it has seen; split the data by writers"
        )


def _shared(data: Data) -> Iterator[tuple[Split, Split, str]]:
    writers = {split: {writer_of(item) for item in items_of(data, split)} for split in SPLITS}
    for place, split in enumerate(SPLITS):
        for other in SPLITS[place + 1 :]:
            for writer in sorted(writers[split] & writers[other])[:1]:
                yield split, other, writer


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]} words"


# --- What names the stages ------------------------------------------------------------------------


def embedder_stage(params: WordParams, data: Data) -> Stage:
    """The weights of the trained network."""
    return Stage("embedder", _EMBEDDER_VERSION, _embedder_inputs(params, data), _CODE)


def embeddings_stage(params: WordParams, data: Data, split: Split) -> Stage:
    """The embeddings of a split's words."""
    needed = embedder_stage(params, data)
    inputs = {
        "encoder": params.encoder,  # for people; the digest says it too
        "embedder": _digest([needed.version, needed.inputs]),
        "split": split,
        "items": _words_digest(_Asked(data, id(data)), split),
    }
    return Stage("embeddings", _EMBEDDINGS_VERSION, inputs, _CODE, (needed,))


def _embedder_inputs(params: WordParams, data: Data) -> dict[str, object]:
    named, asked = params.identity(), _Asked(data, id(data))
    inputs = {name: named[name] for name in WordParams.model_fields if name != "pretext_steps"}
    return inputs | {
        "train": _words_digest(asked, "train"),  # they are drawn by their place
        "validation": _words_digest(asked, "validation"),  # they say when training ends
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """Data, told apart by their place in memory, which this keeps: comparing items takes long.

    Args:
        data: The words.
        place: Of ``data`` in memory.
    """

    data: Data = field(compare=False)
    place: int


@lru_cache(maxsize=32)
def _words_digest(asked: _Asked, split: Split) -> str:
    """Digest of which words these are, who wrote them, and in what order they come."""
    return _digest([[item.name, writer_of(item)] for item in items_of(asked.data, split)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
