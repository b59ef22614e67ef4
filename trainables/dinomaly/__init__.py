"""Dinomaly: a decoder learns to reconstruct a frozen encoder's features of normal images.

A bottleneck with dropout and a decoder of linear-attention blocks see only normal images. Where
they fail to reconstruct the encoder's features, the image is anomalous. Variants differ in the
distances that training weighs:

- ``baseline``: the published loss. One minus the cosine of whole feature maps, per fused group of
  layers; gradients of the points that are reconstructed well are scaled down.
- ``gem``: the groups' distances at a point are combined by a generalised mean, in training and in
  the anomaly map, so the group that fails worse counts more.
- ``topk``: the mean of the largest q % of the batch's point distances, and nothing else.

The loss's value depends on neither ``p`` nor ``factor``, and means something else in each variant:
none of them can be chosen by the training loss.
"""

from __future__ import annotations

import warnings
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hdsweep.method import Data, Method, Outcome, TrialContext
from trainables.encoders import EncoderParams

__all__ = ["METHOD", "Params", "run"]

Variant = Literal["baseline", "gem", "topk"]

_HOOK_KNOBS = {"p", "p_schedule_steps"}
_KNOBS: dict[Variant, set[str]] = {
    "baseline": {*_HOOK_KNOBS, "factor"},
    "gem": {*_HOOK_KNOBS, "gem_p", "gem_factor"},
    "topk": {"q_percent", "q_schedule", "warmup_steps"},
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
        p: Final share of well reconstructed points whose gradient is scaled (baseline, gem).
        p_schedule_steps: Steps over which that share rises from 0 (baseline, gem).
        factor: On the gradient of those points (baseline).
        gem_p: Exponent of the generalised mean, 1 is the plain mean (gem).
        gem_factor: On the gradient of well reconstructed points (gem).
        q_percent: Share of the batch's points that is trained on (topk).
        q_schedule: Whether that share falls from 100 (topk).
        warmup_steps: Steps in which it falls (topk).
        score_top_percent: Share of the anomaly map whose mean is the image's score.
    """

    variant: Variant = "baseline"
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
    score_top_percent: float = Field(1, gt=0, le=100)

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
    def _only_knobs_of_the_variant(self) -> Self:
        used = _KNOBS[self.variant]
        for variant, knobs in _KNOBS.items():
            for knob in sorted(knobs - used):
                if getattr(self, knob) != type(self).model_fields[knob].default:
                    raise ValueError(
                        f"variant '{self.variant}' does not use {knob}, a knob of '{variant}': two "
                        "trials would differ in name only; remove it"
                    )
        if self.variant == "topk" and not self.q_schedule and self.warmup_steps != 200:
            raise ValueError("without q_schedule warmup_steps is not used; remove it")
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


METHOD = Method(
    version=1, params=Params, run=run, source="arXiv:2405.14325", scalars=("final_loss",)
)
