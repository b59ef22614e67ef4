"""What each variant of Dinomaly minimises, and how it combines the scales.

A *scale* is a fused group of layers; its distance at a point is one minus the cosine of the
encoder's and the decoder's feature vectors there. Every loss is called as anomalib's
``CosineHardMiningLoss`` is, with lists of feature maps of shape (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from anomalib.models.image.dinomaly.components import CosineHardMiningLoss
from torch import Tensor, nn

from trainables.dinomaly import Params

_TINY = 1e-12  # below it a distance is rounding error, and its powers underflow


class Loss(Protocol):
    """A training loss that can say what it did."""

    def __call__(
        self, encoder_features: list[Tensor], decoder_features: list[Tensor], global_step: int
    ) -> Tensor:
        """Scalar loss at ``global_step``, counted from 0."""

    def scheduled(self) -> Mapping[str, float]:
        """Scheduled quantities of the last call, for the trial's curve."""


def loss_of(params: Params) -> Loss:
    """The loss of ``params.variant``."""
    if params.variant == "gem":
        return GemLoss(params.gem_p, params.p, params.p_schedule_steps, params.gem_factor)
    if params.variant == "topk":
        return TopKLoss(params.q_percent, params.warmup_steps if params.q_schedule else 0)
    return BaselineLoss(params.p, params.p_schedule_steps, params.factor)


class BaselineLoss(CosineHardMiningLoss):  # type: ignore[misc] # anomalib is untyped
    """anomalib's loss, unchanged."""

    def scheduled(self) -> Mapping[str, float]:
        """The share of points whose gradient was scaled."""
        return {"p": float(self.p)}


class GemLoss(CosineHardMiningLoss):  # type: ignore[misc] # anomalib is untyped
    """Mean over points of the generalised mean over scales.

    Gradients of the points whose combined distance is below the (1-p) top-k distance are scaled by
    ``factor`` in every scale, with the schedule of the baseline.
    """

    def __init__(self, exponent: float, p_final: float, p_schedule_steps: int, factor: float):
        super().__init__(p_final=p_final, p_schedule_steps=p_schedule_steps, factor=factor)
        self.exponent = exponent

    def forward(
        self, encoder_features: list[Tensor], decoder_features: list[Tensor], global_step: int
    ) -> Tensor:
        """See ``Loss``."""
        self._update_p_schedule(global_step)
        combined = generalised_mean(
            point_distances(encoder_features, decoder_features), self.exponent
        )
        with torch.no_grad():
            k = max(1, int(combined.numel() * (1 - self.p)))
            easy = combined < torch.topk(combined.flatten(), k=k).values[-1]
        for features in decoder_features:
            features.register_hook(  # type: ignore[no-untyped-call]
                partial(
                    self._modify_grad,
                    indices_to_modify=easy.unsqueeze(1),
                    gradient_multiply_factor=self.factor,
                )
            )
        return combined.mean()

    def scheduled(self) -> Mapping[str, float]:
        """The share of points whose gradient was scaled."""
        return {"p": float(self.p)}


class TopKLoss(nn.Module):
    """Mean of the largest q % of the batch's distances, averaged over scales.

    No floor but 1 is put under the number of points: any other would make small q one trial on
    small images.

    Args:
        q_percent: In (0, 100].
        warmup_steps: Steps in which q falls linearly from 100; 0 starts at ``q_percent``.
    """

    def __init__(self, q_percent: float, warmup_steps: int) -> None:
        super().__init__()
        self.q_percent = q_percent
        self.warmup_steps = warmup_steps
        self.k = 0

    def forward(
        self, encoder_features: list[Tensor], decoder_features: list[Tensor], global_step: int
    ) -> Tensor:
        """See ``Loss``."""
        distances = point_distances(encoder_features, decoder_features).mean(dim=0).flatten()
        self.k = effective_k(distances.numel(), self.q_at(global_step))
        return torch.topk(distances, k=self.k, sorted=False).values.mean()

    def q_at(self, global_step: int) -> float:
        """Percentage in force at a step, counted from 0."""
        if global_step >= self.warmup_steps:
            return self.q_percent
        return 100 + (self.q_percent - 100) * global_step / self.warmup_steps

    def scheduled(self) -> Mapping[str, float]:
        """The number of points trained on."""
        return {"k": float(self.k)}


def effective_k(points: int, q_percent: float) -> int:
    """How many of ``points`` are ``q_percent`` of them: rounded down, at least 1."""
    return max(1, int(points * q_percent / 100 + 1e-9))  # 1000 x 0.7 / 100 is 6.999...


def point_distances(encoder_features: list[Tensor], decoder_features: list[Tensor]) -> Tensor:
    """One minus cosine at each point, shape (scales, batch, height, width); never negative."""
    distances = [
        1 - F.cosine_similarity(encoder.detach(), decoder)
        for encoder, decoder in zip(encoder_features, decoder_features, strict=True)
    ]
    return torch.stack(distances).clamp_min(0)


def generalised_mean(distances: Tensor, exponent: float) -> Tensor:
    """(mean(d^p))^(1/p) over the first dimension, for d >= 0 and p >= 1.

    Divided by the largest distance first, since d^p itself underflows (p about 14 is enough in
    float32). The mean is homogeneous, so that divisor needs no gradient. Where all distances
    vanish the plain mean stands in: there the true gradient does not exist.
    """
    if exponent == 1:
        return distances.mean(dim=0)
    largest = distances.detach().amax(dim=0)
    some = largest > _TINY
    ratio = torch.where(some, distances / largest.clamp_min(_TINY), 1.0)
    combined = largest * ratio.pow(exponent).mean(dim=0).pow(1 / exponent)
    return torch.where(some, combined, distances.mean(dim=0))
