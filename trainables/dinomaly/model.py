"""Dinomaly's network: anomalib's parts around an encoder of our choice.

anomalib's constructor downloads its encoder, and knows the widths of four DINOv2 models only. So
the parts are put together here, and everything that computes (fusing, anomaly maps, smoothing) is
inherited. Two things are cut differently. What the frozen encoder says about an image is all that
the rest needs, and it is small: the means of the two groups of layers, whose mean is the
bottleneck's input. So ``encode`` and ``reconstruct`` are apart, and features can be kept between
epochs. And the scales are combined as the variant says.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from anomalib.models.components import GaussianBlur2d
from anomalib.models.image.dinomaly.components import DinomalyMLP, LinearAttention
from anomalib.models.image.dinomaly.lightning_model import Dinomaly
from anomalib.models.image.dinomaly.torch_model import (
    DEFAULT_GAUSSIAN_KERNEL_SIZE,
    DEFAULT_GAUSSIAN_SIGMA,
    DEFAULT_RESIZE_SIZE,
    TRANSFORMER_CONFIG,
    DecoderViTBlock,
    DinomalyModel,
)
from torch import Tensor, nn

from trainables.dinomaly import Params
from trainables.dinomaly.losses import effective_k, generalised_mean, loss_of
from trainables.encoders.backbone import FrozenViT

SCALES = 2


class DinomalyNet(DinomalyModel):  # type: ignore[misc] # anomalib is untyped
    """Bottleneck and decoder over a frozen encoder.

    Args:
        encoder: Hands out an even number of layers.
        params: Shape of the decoder, loss, and how a map becomes a score.
    """

    def __init__(self, encoder: FrozenViT, params: Params) -> None:
        nn.Module.__init__(self)
        self.encoder = encoder
        self.target_layers = list(encoder.layers)
        self.fuse_layer_encoder = _halves(len(encoder.layers))
        self.fuse_layer_decoder = _halves(params.decoder_depth)
        self.remove_class_token = False
        self.use_context_recentering = False
        width = encoder.embed_dim
        self.bottleneck = nn.ModuleList(
            [
                DinomalyMLP(
                    in_features=width,
                    hidden_features=width * 4,
                    out_features=width,
                    drop=params.dropout,
                    bias=False,
                    apply_input_dropout=True,
                )
            ]
        )
        norm = partial(nn.LayerNorm, eps=TRANSFORMER_CONFIG["layer_norm_eps"])
        self.decoder = nn.ModuleList(
            DecoderViTBlock(
                dim=width, num_heads=encoder.num_heads, norm_layer=norm, attn=LinearAttention
            )
            for _ in range(params.decoder_depth)
        )
        self.gaussian_blur = GaussianBlur2d(
            sigma=DEFAULT_GAUSSIAN_SIGMA, channels=1, kernel_size=DEFAULT_GAUSSIAN_KERNEL_SIZE
        )
        self.loss_fn = loss_of(params)
        self._exponent = params.gem_p if params.variant == "gem" else 1.0
        self._top_percent = params.score_top_percent
        Dinomaly._initialize_trainable_modules(self.learned)  # noqa: SLF001 - the published start

    @property
    def learned(self) -> nn.ModuleList:
        """All that training changes."""
        return nn.ModuleList([self.bottleneck, self.decoder])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Mean of each group of encoder layers, shape (batch, scales, tokens, width)."""
        layers = list(self.encoder(images).values())
        groups = [self._fuse_feature([layers[i] for i in g]) for g in self.fuse_layer_encoder]
        return torch.stack(groups, dim=1)

    def reconstruct(
        self, features: Tensor, grid: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps of encoder and decoder, one of shape (batch, width, *grid) per scale."""
        x = features.mean(dim=1)
        for block in self.bottleneck:
            x = block(x)
        outputs: list[Tensor] = []
        for block in self.decoder:
            x = block(x)
            outputs.append(x)
        outputs.reverse()
        decoded = [self._fuse_feature([outputs[i] for i in g]) for g in self.fuse_layer_decoder]
        return (
            self._process_features_for_spatial_output(list(features.unbind(dim=1)), *grid),
            self._process_features_for_spatial_output(decoded, *grid),
        )

    def get_encoder_decoder_outputs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What anomalib's ``forward`` calls: both steps at once."""
        return self.reconstruct(self.encode(x), self.grid((x.shape[2], x.shape[3])))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of ``size``."""
        return size[0] // self.encoder.patch_size, size[1] // self.encoder.patch_size

    def anomaly_map(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Scales combined as the variant says, shape (batch, 1, *size)."""
        encoded, decoded = self.reconstruct(features, self.grid(size))
        mean: Tensor
        mean, scales = self.calculate_anomaly_maps(encoded, decoded, out_size=size)
        if self._exponent == 1:
            return mean
        return generalised_mean(torch.stack(scales).clamp_min(0), self._exponent)

    def score(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Score of each image: mean of the top of its smoothed anomaly map, shape (batch,)."""
        smooth = self.gaussian_blur(
            F.interpolate(
                self.anomaly_map(features, size),
                size=DEFAULT_RESIZE_SIZE,
                mode="bilinear",
                align_corners=False,
            )
        ).flatten(1)
        top = torch.topk(smooth, k=effective_k(smooth.shape[1], self._top_percent), dim=1).values
        return top.mean(dim=1)


def _halves(count: int) -> list[list[int]]:
    return [list(range(count // SCALES)), list(range(count // SCALES, count))]
