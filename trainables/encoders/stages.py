"""What names the work on encoders that trials share; planning asks for it, so it knows no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from hdsweep.method import Data, Item, Stage
from trainables.encoders import EncoderParams
from trainables.encoders.patches import PatchParams

SEED = 0  # of random weights and of the pretext: the same encoder for every replicate
SCALES = 2  # groups of layers that tokens are means of

Stored = Literal["float16", "bfloat16", "float32"]
Split = Literal["train", "test"]

_CODE = "trainables.encoders"
_PRETEXT_VERSION = 1
_TOKENS_VERSION = 1
_FEATURES_VERSION = 1


def pretext_stage(params: EncoderParams, data: Data) -> Stage:
    """The weights of ``weights: pretext``."""
    inputs: dict[str, object] = {
        "encoder": params.encoder,
        "shape": params.shape(),
        "resize": list(params.resize),
        "crop": list(params.crop),
        "steps": params.pretext_steps,
        "seed": SEED,
        "items": names_digest(data.train),  # they are drawn by their place
    }
    return Stage("encoder", _PRETEXT_VERSION, inputs, _CODE)


def tokens_stage(
    params: EncoderParams, layers: tuple[int, ...] | None, data: Data, split: Split, keep: Stored
) -> Stage:
    """Group means of a split's items."""
    inputs = {
        **encoder_inputs(params, layers),
        "groups": SCALES,
        "type": keep,
        "split": split,
        "items": names_digest(data.train if split == "train" else data.test),
    }
    return Stage("tokens", _TOKENS_VERSION, inputs, _CODE, needs_of(params, data))


def features_stage(params: PatchParams, data: Data, split: Split, group: str) -> Stage:
    """Patch features of a split's items of one group."""
    inputs = {
        **encoder_inputs(params, None),
        "layers": params.layers,
        "pretrain_embed_dimension": params.pretrain_embed_dimension,
        "target_embed_dimension": params.target_embed_dimension,
        "type": params.features,
        "split": split,
        "group": group,
        "items": names_digest(items_of(data, split, group)),
    }
    return Stage("features", _FEATURES_VERSION, inputs, _CODE, needs_of(params, data))


def items_of(data: Data, split: Split, group: str) -> tuple[Item, ...]:
    """The items of one group, in the split's order."""
    return tuple(item for item in getattr(data, split) if item.group == group)


def needs_of(params: EncoderParams, data: Data) -> tuple[Stage, ...]:
    """What must be there before an encoder can be."""
    return (pretext_stage(params, data),) if params.weights == "pretext" else ()


def encoder_inputs(params: EncoderParams, layers: tuple[int, ...] | None) -> dict[str, object]:
    """All that determines an encoder's output for given images, as JSON values.

    The network need not be built for it; only weights that timm publishes may have to be asked for.

    Args:
        params: Name, shape and weights; further fields of a subclass are left out.
        layers: Blocks whose output is used; None for the default.
    """
    named = params.identity()
    identity = {name: named[name] for name in EncoderParams.model_fields}
    return {
        **identity,
        "layers": None if layers is None else list(layers),
        "pretext": _PRETEXT_VERSION if params.weights == "pretext" else None,
        "seed": SEED,
    }


def names_digest(items: Sequence[Item]) -> str:
    """Digest of which items these are, and in what order."""
    return hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()
