"""Dinomaly: a decoder learns to reconstruct a frozen encoder's features of normal images.

A bottleneck with dropout and a decoder of linear-attention blocks see only normal images. Where
they fail to reconstruct the encoder's features, the image is anomalous. Variants differ in the
distances that training weighs:

- ``baseline``: the published loss. One minus the cosine of whole feature maps, per fused group of
  layers; gradients of the points that are reconstructed well are scaled down.
- ``gem``: the groups' distances at a point are combined by a generalised mean, in training and in
  the anomaly map, so the group that fails worse counts more.
- ``topk``: the mean of the largest q % of the batch's point distances, and nothing else.
- ``focal``: the mean of all point distances, each weighted by its own power gamma.
- ``aux``: the baseline, and a classifier that tells the data's groups apart by the bottleneck.
- ``scale``: the baseline with unequal, or learned, weights of the two groups of layers.

The last three were planned by the method's users and never published; ``losses`` defines them. The
loss's value depends on neither ``p`` nor ``factor``, and means something else in each variant: none
of them can be chosen by the training loss.

A variant is a function in ``losses`` and, under the same name, an entry of ``VARIANTS``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hdsweep.errors import did_you_mean
from hdsweep.method import Data, Method, Outcome, Stage, TrialContext
from trainables.encoders import EncoderParams, is_transformer
from trainables.encoders.stages import Split, needs_of, tokens_stage

__all__ = ["METHOD", "VARIANTS", "Params", "run"]

_MINING = ("p", "p_schedule_steps")

VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": (*_MINING, "factor"),
    "gem": (*_MINING, "gem_p", "gem_factor"),
    "topk": ("q_percent", "q_schedule", "warmup_steps"),
    "focal": ("gamma",),
    "aux": (*_MINING, "factor", "aux_weight"),
    "scale": (*_MINING, "factor", "scale_weights", "scale_entropy"),
}
"""Variant -> the knobs that it uses beside those that all variants use."""

_UNUSED_UNLESS = {  # knob -> the knob and the value without which it does nothing
    "warmup_steps": ("q_schedule", True),
    "scale_entropy": ("scale_weights", "learned"),
    "validate_every": ("validation", "from_test"),
    "validation_percent": ("validation", "from_test"),
}


class Params(EncoderParams):
    """Dinomaly with a choice of loss.

    Args:
        variant: The loss, and for ``gem`` the anomaly map as well.
        target_layers: Encoder blocks that are reconstructed, an even number of them; by default
            eight over the middle two thirds. The first and the second half are two fused groups.
        decoder_depth: Decoder blocks, fused into two groups likewise.
        dropout: Of the bottleneck.
        max_steps: Optimiser steps.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        lr: Peak learning rate.
        final_lr: Learning rate at the end of the cosine.
        lr_warmup_steps: Scheduler steps of linear rise from 0.
        lr_interval: What a scheduler step is. anomalib counts epochs, and so did the published
            runs: their learning rate is far lower than it seems.
        weight_decay: Of StableAdamW.
        grad_clip: Bound on the gradient's norm.
        p: Final share of well reconstructed points whose gradient is scaled (all but topk, focal).
        p_schedule_steps: Steps over which that share rises from 0 (all but topk, focal).
        factor: On the gradient of those points (baseline, aux, scale).
        gem_p: Exponent of the generalised mean, 1 is the plain mean (gem).
        gem_factor: On the gradient of well reconstructed points (gem).
        q_percent: Share of the batch's points that is trained on (topk).
        q_schedule: Whether that share falls from 100 (topk).
        warmup_steps: Steps in which it falls (topk).
        gamma: Exponent of the weights; 0 weighs all points alike (focal).
        aux_weight: On the cross-entropy of the classifier of groups (aux).
        scale_weights: One per group of layers, the shallow one first, summing to 1; or learned
            (scale).
        scale_entropy: On the entropy of learned weights; larger keeps them closer to equal (scale).
        score_top_percent: Share of the anomaly map whose mean is the image's score.
        tokens: Type in which the encoder's output is kept and shared between trials; ``none``
            encodes each image again in each step.
        augment: Of training images, which are then encoded in each step: ``flip`` mirrors rows and
            columns at random, ``roll`` shifts them cyclically, as teeth of a gear may be counted
            from any.
        validation: ``from_test`` scores some test items while training, for the curve. They stay in
            the table, so nothing should be chosen by them.
        validate_every: Steps between validations.
        validation_percent: Share of each group's normal and of its anomalous test items.
        precision: Of bottleneck and decoder; distances, losses and weights are float32 always.
        compile: Whether bottleneck and decoder go through ``torch.compile``.
    """

    variant: str = Field("baseline", json_schema_extra={"enum": list(VARIANTS)})
    target_layers: tuple[int, ...] | None = None
    decoder_depth: int = Field(8, ge=2, le=32, multiple_of=2)
    dropout: float = Field(0.2, ge=0, lt=1)
    max_steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-3, gt=0, le=1)
    final_lr: float = Field(2e-4, ge=0, le=1)
    lr_warmup_steps: int = Field(100, ge=0)
    lr_interval: Literal["step", "epoch"] = "step"
    weight_decay: float = Field(1e-4, ge=0, le=1)
    grad_clip: float = Field(0.1, gt=0)
    p: float = Field(0.9, ge=0, lt=1)
    p_schedule_steps: int = Field(1000, ge=1)
    factor: float = Field(0.1, ge=0, le=1)
    gem_p: float = Field(3, ge=1, le=1000)
    gem_factor: float = Field(0.3, ge=0, le=1)
    q_percent: float = Field(5, gt=0, le=100)
    q_schedule: bool = True
    warmup_steps: int = Field(200, ge=1)
    gamma: float = Field(2, ge=0, le=5)
    aux_weight: float = Field(0.1, ge=0, le=1)
    scale_weights: Literal["learned"] | tuple[float, ...] = "learned"
    scale_entropy: float = Field(0.1, ge=0, le=100)
    score_top_percent: float = Field(1, gt=0, le=100)
    tokens: Literal["float16", "bfloat16", "float32", "none"] = "float16"
    augment: Literal["none", "flip", "roll"] = "none"
    validation: Literal["none", "from_test"] = "none"
    validate_every: int = Field(200, ge=1)
    validation_percent: float = Field(10, gt=0, le=100)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    @field_validator("encoder")
    @classmethod
    def _has_blocks(cls, encoder: str) -> str:
        if not is_transformer(encoder):
            raise ValueError(
                "dinomaly reconstructs the blocks of a vision transformer; name one of timm's "
                "vit_..., as in vit_base_patch14_reg4_dinov2"
            )
        return encoder

    @field_validator("variant")
    @classmethod
    def _known_variant(cls, variant: str) -> str:
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant{did_you_mean(variant, VARIANTS)}")
        return variant

    @field_validator("scale_weights", mode="before")
    @classmethod
    def _learned_or_numbers(cls, weights: object) -> object:
        if isinstance(weights, str) and weights != "learned":
            raise ValueError("write 'learned' or one number per group of layers, as in [0.7, 0.3]")
        return weights

    @field_validator("scale_weights")
    @classmethod
    def _on_the_simplex(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, tuple):
            return weights
        if len(weights) != 2 or min(weights) < 0 or abs(math.fsum(weights) - 1) > 1e-6:
            raise ValueError(
                "write two numbers from 0 to 1 that sum to 1, the first for the shallow group of "
                "layers, or 'learned'"
            )
        return weights

    @field_validator("target_layers")
    @classmethod
    def _two_groups_of_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if not layers or len(layers) % 2 or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError(
                "name an even number of encoder blocks, ascending and none twice: two groups of "
                "equal size are reconstructed"
            )
        return layers

    @model_validator(mode="after")
    def _no_knob_without_effect(self) -> Self:
        fields, used = type(self).model_fields, VARIANTS[self.variant]
        for variant, knobs in VARIANTS.items():
            for knob in knobs:
                if knob not in used and getattr(self, knob) != fields[knob].default:
                    raise ValueError(
                        f"variant '{self.variant}' does not use {knob}, a knob of '{variant}': two "
                        "trials would differ in name only; remove it"
                    )
        for knob, (other, value) in _UNUSED_UNLESS.items():
            if getattr(self, other) != value and getattr(self, knob) != fields[knob].default:
                raise ValueError(
                    f"{knob} is used only where {other} is {str(value).lower()}; remove it"
                )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.lr_warmup_steps >= self.max_steps:
            raise ValueError(
                f"lr_warmup_steps {self.lr_warmup_steps} must be less than max_steps "
                f"{self.max_steps}"
            )
        return self


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Train on the normal items and score the test items."""
    with warnings.catch_warnings():
        # anomalib imports names that timm, and anomalib itself, have moved
        warnings.simplefilter("ignore", FutureWarning)
        from trainables.dinomaly.training import train_and_score

    return train_and_score(params, data, context)


def warn(params: Params) -> Sequence[str]:
    """What makes the numbers of such trials mean less than they seem to."""
    if params.validation == "from_test":
        share = f"{params.validation_percent:g} %"
        found = (
            f"validation is drawn from the test items ({share} of them), which stay in the table"
        )
        return (f"{found}: what is chosen by val/auroc looks better than it is",)
    return ()


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """The encoder's output for the test items and, unless they are augmented, the training ones."""
    del seed  # an encoder is the same for every replicate
    if params.tokens == "none":
        return needs_of(params, data)
    splits: tuple[Split, ...] = ("test", "train") if params.augment == "none" else ("test",)
    return [
        tokens_stage(params, params.target_layers, data, split, params.tokens) for split in splits
    ]


METHOD = Method(
    version=2,
    params=Params,
    run=run,
    source="arXiv:2405.14325",
    scalars=("final_loss", "peak_memory_mb"),
    warn=warn,
    stages=stages,
    steps=lambda params: params.max_steps,
    unreported=lambda params: ("val/auroc",) if params.validation == "none" else (),
    curve=(
        "loss", "val/auroc", "grad/total_norm", "grad/nan_count", "lr", "p", "k", "aux/loss",
        "aux/accuracy", "scale/weight_0", "scale/weight_1",
    ),
)  # fmt: skip
