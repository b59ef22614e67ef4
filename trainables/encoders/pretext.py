"""A pretext task for machines without a network: where was a map made brighter or darker?

A frozen encoder with random weights shows Dinomaly too little, and pretrained ones need a network.
In between lies a short training on the normal training maps alone. As in CutPaste (Li et al., CVPR
2021, arXiv:2104.04015) and DRAEM (Zavrtanik et al., ICCV 2021, arXiv:2108.07610), maps are altered
at random and the network is asked about the alteration: rectangles of any place, size and aspect
are made brighter or darker, and every token predicts by how much its patch was. To answer, it must
know what is usual at its place in such a map, which is what the features of a reconstruction method
need. In a residual network the points of the third stage are asked, one per 16 x 16 pixels; so its
fourth stage stays as it was drawn.

No test map and no label enters, and the alterations know nothing of what a fault looks like: they
have every shape, both signs, one strength and hard edges.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from timm.models import ResNet, VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from hdsweep.method import Data, MethodError, TrialContext
from trainables.encoders import EncoderParams
from trainables.encoders.images import normalised, resized
from trainables.encoders.threads import one_thread

_BATCH = 32
_LR = 3e-3
_WARMUP_SHARE = 0.1
_WEIGHT_DECAY = 0.05
_POSITION_STD = 1.0  # as large as the patches: with timm's .02 it takes 1000 steps to tell places
_RECTANGLES = 3  # at most, in one map
_LOG_GAIN = 0.7  # brightness changes by a factor between 1/2 and 2
_POOL = 4096  # training maps that are looked at, at most
_STAGE = 3  # of a residual network
_STATISTICS = 50  # batches that the statistics of batch normalisation are the mean of


@one_thread()
def train(
    net: VisionTransformer | ResNet,
    params: EncoderParams,
    data: Data,
    *,
    seed: int,
    context: TrialContext,
) -> VisionTransformer | ResNet:
    """Train ``net`` in place on the normal training maps and return it, on the CPU, to evaluate.

    Args:
        net: Fresh weights.
        params: Image size and number of steps.
        data: Only ``train`` is read.
        seed: Of the order of maps and of their alterations.
        context: Lends device and log.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(data.train))[:_POOL])
    # Resized one by one: as stored they may differ in size, and be many times larger.
    raw = (torch.from_numpy(data.read(data.train[i]))[None] for i in chosen)
    images = torch.cat([resized(image, params) for image in raw]).to(context.device)
    net = net.to(context.device).train()
    if isinstance(net, VisionTransformer):
        _fit_scale(net, normalised(images))
        width, cell = int(net.embed_dim), int(net.patch_embed.patch_size[0])
    else:  # its own normalisation fits the scale
        stage = net.feature_info[_STAGE]
        width, cell = int(stage["num_chs"]), int(stage["reduction"])
    head = nn.Linear(width, 1).to(context.device)
    weights = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_LR, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LR, total_steps=params.pretext_steps + 1, pct_start=_WARMUP_SHARE
    )
    for step in range(1, params.pretext_steps + 1):
        some = torch.from_numpy(rng.integers(len(images), size=_BATCH)).to(images.device)
        altered, log_gain = alter(images[some], rng)
        tokens = _tokens(net, normalised(altered))
        truth = F.avg_pool2d(log_gain, cell, ceil_mode=True).flatten(1) / _LOG_GAIN
        loss = F.mse_loss(head(tokens).squeeze(-1), truth)
        if not torch.isfinite(loss):
            raise MethodError(
                f"the pretext of encoder '{params.encoder}' diverged at step {step}; check the "
                "data for extreme values, or set 'weights' to a file or 'random'"
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == params.pretext_steps:
            explained = 1 - loss.item() / max(truth.var().item(), 1e-12)
            context.log.info("pretext step %d: explains %.2f of the alterations", step, explained)
    # Those of training lag behind the weights and are of altered maps.
    drawn = (rng.integers(len(images), size=_BATCH) for _ in range(_STATISTICS))
    update_bn((normalised(images[torch.from_numpy(some)]) for some in drawn), net)
    return net.cpu().eval()


def _tokens(net: VisionTransformer | ResNet, images: Tensor) -> Tensor:
    """What the network says at each place, shape (batch, places, width)."""
    if isinstance(net, VisionTransformer):
        patches: Tensor = net.forward_features(images)[:, net.num_prefix_tokens :]
        return patches
    (found,) = net.forward_intermediates(
        images, indices=[_STAGE], stop_early=True, intermediates_only=True
    )
    return found.flatten(2).mT  # type: ignore[no-any-return]


def alter(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Up to three rectangles of each image made brighter or darker.

    Args:
        images: Shape (batch, channels, height, width), in the data's own unit.
        rng: Draws the alterations.

    Returns:
        The altered images, and the logarithm of the factor on each pixel, shape (batch, 1, height,
        width).
    """
    batch, _, height, width = images.shape
    log_gain = torch.zeros(batch, 1, height, width)
    for n in range(batch):
        for _ in range(rng.integers(_RECTANGLES + 1)):
            rows, columns = _side(height, rng), _side(width, rng)
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            log_gain[n, 0, top : top + rows, left : left + columns] += rng.uniform(
                -_LOG_GAIN, _LOG_GAIN
            )
    log_gain = log_gain.to(images.device)
    return images * log_gain.exp(), log_gain


def _side(limit: int, rng: np.random.Generator) -> int:
    """Log-uniform between a sixteenth of ``limit`` and all of it: thin is as usual as wide."""
    return max(1, round(limit * float(np.exp(rng.uniform(np.log(1 / 16), 0)))))


@torch.no_grad()
def _fit_scale(vit: VisionTransformer, images: Tensor) -> None:
    """Start where ``images`` appear with mean 0 and deviation 1, and places are told apart.

    ImageNet's unit makes a dim, low-contrast map all but constant.
    """
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1e-6)
    embed = vit.patch_embed.proj
    embed.weight /= deviation[None, :, None, None]
    if embed.bias is not None:
        embed.bias.copy_(-(embed.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    if vit.pos_embed is not None:
        nn.init.trunc_normal_(vit.pos_embed, std=_POSITION_STD, a=-2, b=2)
