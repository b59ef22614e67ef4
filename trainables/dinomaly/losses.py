"""What each variant of Dinomaly minimises: one function per variant, found by the variant's name.

A *scale* is a fused group of layers; its distance at a point is one minus the cosine of the
encoder's and the decoder's feature vectors there. Distances are computed in float32 whatever the
features' type: near a perfect reconstruction half precision knows no distance at all.

``focal``, ``aux`` and ``scale`` have no published definition. They are defined here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from anomalib.models.image.dinomaly.components import CosineHardMiningLoss
from torch import Tensor, nn

from hdsweep.method import MethodError
from trainables.dinomaly import Params

_TINY = 1e-12  # below it a distance is rounding error, and its powers underflow


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a loss sees of one batch.

    Args:
        encoded: Per scale, the encoder's feature maps, shape (batch, width, height, width).
        decoded: Per scale, the decoder's, same shapes.
        bottleneck: The bottleneck's output, shape (batch, tokens, width).
        group: Index of each image's group in ``Data.groups``, shape (batch,), int64.
    """

    encoded: list[Tensor]
    decoded: list[Tensor]
    bottleneck: Tensor
    group: Tensor


Value = tuple[Tensor, Mapping[str, Tensor | float]]
"""A scalar loss, and by name what else belongs into the trial's curve."""


def mean_of_scales(distances: Tensor) -> Tensor:
    """The published way to one map: the mean over the first dimension."""
    return distances.mean(dim=0)


class Objective(nn.Module):
    """A loss with what it learns and the way it combines the scales of an anomaly map.

    Args:
        loss: (reconstruction, step from 0) -> Value.
        learned: Parameters of the loss itself. They start without a draw from the random stream, so
            that variants of one seed start with one network and drop out the same activations.
        combine: Distances of shape (scales, ...) -> the anomaly map, shape (...).
    """

    def __init__(
        self,
        loss: Callable[[Reconstruction, int], Value],
        learned: nn.Module | None = None,
        combine: Callable[[Tensor], Tensor] = mean_of_scales,
    ) -> None:
        super().__init__()
        self.learned = learned
        self.combine = combine
        self._loss = loss

    def forward(self, seen: Reconstruction, step: int) -> Value:
        """Loss and curve quantities at ``step``, counted from 0."""
        return self._loss(seen, step)


def objective_of(params: Params, width: int, groups: Sequence[str]) -> Objective:
    """The objective of ``params.variant``: the function of that name in this module.

    Args:
        params: Knobs.
        width: Of the bottleneck's tokens.
        groups: Names of the data's groups.
    """
    make = getattr(sys.modules[__name__], params.variant)
    given = {"params": params, "width": width, "groups": groups}
    made: Objective = make(**{name: given[name] for name in inspect.signature(make).parameters})
    return made


# --- The variants ---------------------------------------------------------------------------------


def baseline(params: Params) -> Objective:
    """The loss of anomalib, unchanged: the mean over scales of one minus the cosine of whole maps.

    Gradients of the points that are reconstructed best are scaled by ``factor``; their share rises
    to ``p`` over ``p_schedule_steps``.
    """
    mining = _hard_mining(params)

    def loss(seen: Reconstruction, step: int) -> Value:
        return _mined(mining, seen.encoded, seen.decoded, step), {"p": mining.p}

    return Objective(loss)


def gem(params: Params) -> Objective:
    """Mean over points of the generalised mean over scales; likewise in the anomaly map.

    Gradients of the points whose combined distance is below the (1-p) top-k distance are scaled by
    ``gem_factor`` in every scale, with the schedule of the baseline.
    """

    def loss(seen: Reconstruction, step: int) -> Value:
        p = min(params.p * step / params.p_schedule_steps, params.p)
        combined = generalised_mean(point_distances(seen.encoded, seen.decoded), params.gem_p)
        with torch.no_grad():
            k = max(1, int(combined.numel() * (1 - p)))
            easy = combined < torch.topk(combined.flatten(), k=k).values[-1]
        for features in seen.decoded:
            features.register_hook(  # type: ignore[no-untyped-call]
                partial(
                    CosineHardMiningLoss._modify_grad,  # noqa: SLF001 - the baseline's own hook
                    indices_to_modify=easy.unsqueeze(1),
                    gradient_multiply_factor=params.gem_factor,
                )
            )
        return combined.mean(), {"p": p}

    return Objective(loss, combine=partial(generalised_mean, exponent=params.gem_p))


def topk(params: Params) -> Objective:
    """Mean of the largest q % of the batch's distances, averaged over scales.

    With ``q_schedule`` q falls linearly from 100 over ``warmup_steps``. No floor but 1 is put under
    the number of points: any other would make small q one trial on small images.
    """

    def loss(seen: Reconstruction, step: int) -> Value:
        distances = mean_of_scales(point_distances(seen.encoded, seen.decoded)).flatten()
        k = effective_k(distances.numel(), q_at(params, step))
        return torch.topk(distances, k=k, sorted=False).values.mean(), {"k": k}

    return Objective(loss)


def focal(params: Params) -> Objective:
    """Mean of the distances, averaged over scales, each weighted by its own power ``gamma``.

    The weights d^gamma are constants to the gradient and divided by their mean: mean(sg[d^gamma] d)
    / mean(sg[d^gamma]). With ``gamma`` 0 it is the plain mean, as topk with q = 100.
    """

    def loss(seen: Reconstruction, _step: int) -> Value:
        distances = mean_of_scales(point_distances(seen.encoded, seen.decoded))
        hard = distances.detach()
        # The quotient does not change when all weights are divided by the largest: no underflow.
        weights = (hard / hard.max().clamp_min(_TINY)).pow(params.gamma)
        weights = torch.where(hard.max() > _TINY, weights, 1.0)
        return (weights * distances).sum() / weights.sum(), {}

    return Objective(loss)


def aux(params: Params, width: int, groups: Sequence[str]) -> Objective:
    """The baseline, and ``aux_weight`` times the cross-entropy of telling the images' groups apart.

    A linear classifier sees the bottleneck's output, averaged over its tokens; its gradient reaches
    the bottleneck. It starts at zero.

    Raises:
        MethodError: There are no two groups to tell apart.
    """
    if len(groups) < 2:
        raise MethodError(
            f"variant 'aux' tells groups apart and the data have {len(groups)} "
            f"({', '.join(groups)}); use more, or variant 'baseline', which is the same then"
        )
    mining = _hard_mining(params)
    classifier = nn.Linear(width, len(groups), device="meta").to_empty(device="cpu")
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)

    def loss(seen: Reconstruction, step: int) -> Value:
        logits = classifier(seen.bottleneck.float().mean(dim=1))
        apart = F.cross_entropy(logits, seen.group)
        value = _mined(mining, seen.encoded, seen.decoded, step) + params.aux_weight * apart
        right = (logits.detach().argmax(dim=1) == seen.group).float().mean()
        return value, {"p": mining.p, "aux/loss": apart.detach(), "aux/accuracy": right}

    return Objective(loss, classifier)


def scale(params: Params) -> Objective:
    """The baseline's losses per scale, weighted by ``scale_weights``, which sum to 1.

    ``learned`` weights w are a softmax, and minus ``scale_entropy`` times their entropy is added:
    left alone they collapse on the scale that is easiest. At the optimum w is proportional to
    exp(-loss / scale_entropy), so a large value keeps them equal.
    """
    minings = [_hard_mining(params), _hard_mining(params)]
    logits = None
    fixed = torch.tensor([0.5, 0.5])
    if params.scale_weights == "learned":
        logits = nn.ParameterList([nn.Parameter(torch.zeros(len(minings)))])
    else:
        fixed = torch.tensor(params.scale_weights)

    def loss(seen: Reconstruction, step: int) -> Value:
        pairs = zip(minings, seen.encoded, seen.decoded, strict=True)
        losses = torch.stack([_mined(one, [e], [d], step) for one, e, d in pairs])
        shown = {"p": minings[0].p}
        if logits is None:
            return (fixed.to(losses.device) * losses).sum(), shown
        log_weights = F.log_softmax(logits[0], dim=0)
        weights = log_weights.exp()
        entropy = -(weights * log_weights).sum()
        value = (weights * losses).sum() - params.scale_entropy * entropy
        names = (f"scale/weight_{n}" for n in range(len(minings)))
        return value, shown | dict(zip(names, weights.detach(), strict=True))

    return Objective(loss, logits)


# --- What they are made of ------------------------------------------------------------------------


def _hard_mining(params: Params) -> CosineHardMiningLoss:
    return CosineHardMiningLoss(
        p_final=params.p, p_schedule_steps=params.p_schedule_steps, factor=params.factor
    )


def _mined(
    mining: CosineHardMiningLoss, encoded: list[Tensor], decoded: list[Tensor], step: int
) -> Tensor:
    value: Tensor = mining(
        encoder_features=[e.float() for e in encoded],
        decoder_features=[d.float() for d in decoded],
        global_step=step,
    )
    return value


def q_at(params: Params, step: int) -> float:
    """Percentage of points that ``topk`` trains on at a step, counted from 0."""
    if not params.q_schedule or step >= params.warmup_steps:
        return params.q_percent
    return 100 + (params.q_percent - 100) * step / params.warmup_steps


def effective_k(points: int, q_percent: float) -> int:
    """How many of ``points`` are ``q_percent`` of them: rounded down, at least 1."""
    return max(1, int(points * q_percent / 100 + 1e-9))  # 1000 x 0.7 / 100 is 6.999...


def point_distances(encoded: list[Tensor], decoded: list[Tensor]) -> Tensor:
    """One minus cosine at each point, shape (scales, batch, height, width); never negative."""
    distances = [
        1 - F.cosine_similarity(encoder.detach().float(), decoder.float())
        for encoder, decoder in zip(encoded, decoded, strict=True)
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
