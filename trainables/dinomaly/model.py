"""Dinomaly's network: anomalib's bottleneck and decoder over tokens of a frozen encoder.

anomalib's constructor downloads its encoder, and knows the widths of four DINOv2 models only. So
the parts are put together here, and everything that computes (blocks, anomaly maps, smoothing) is
anomalib's. The encoder stays outside: what it says about an image is all that the network needs,
and ``encoders.tokens`` keeps it. The bottleneck's input, the mean of all layers, is the mean of the
two group means. The scales are combined as the variant's objective says.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
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
from trainables.dinomaly.losses import Reconstruction, effective_k, objective_of
from trainables.encoders.stages import SCALES
from trainables.encoders.tokens import Shape

MAP_SIZE = (DEFAULT_RESIZE_SIZE, DEFAULT_RESIZE_SIZE)
"""Rows and columns of an anomaly map, whatever the image's size."""


class DinomalyNet(nn.Module):
    """Bottleneck, decoder and objective.

    Args:
        shape: Of the encoder's tokens.
        params: Depth of the decoder, loss, and how a map becomes a score.
        groups: Of the data.
        size: Rows and columns of the images, in pixels.
    """

    def __init__(
        self, shape: Shape, params: Params, groups: Sequence[str], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.shape = shape
        self.image_size = size
        self.bottleneck = nn.ModuleList(
            [
                DinomalyMLP(
                    in_features=shape.width,
                    hidden_features=shape.width * 4,
                    out_features=shape.width,
                    drop=params.dropout,
                    bias=False,
                    apply_input_dropout=True,
                )
            ]
        )
        norm = partial(nn.LayerNorm, eps=TRANSFORMER_CONFIG["layer_norm_eps"])
        self.decoder = nn.ModuleList(
            DecoderViTBlock(
                dim=shape.width, num_heads=shape.num_heads, norm_layer=norm, attn=LinearAttention
            )
            for _ in range(params.decoder_depth)
        )
        self.gaussian_blur = GaussianBlur2d(
            sigma=DEFAULT_GAUSSIAN_SIGMA, channels=1, kernel_size=DEFAULT_GAUSSIAN_KERNEL_SIZE
        )
        # The published start.
        Dinomaly._initialize_trainable_modules(  # noqa: SLF001
            nn.ModuleList([self.bottleneck, self.decoder])
        )
        self.objective = objective_of(params, shape.width, groups)
        self._top_percent = params.score_top_percent
        self._precision = getattr(torch, params.precision)
        self._through = self._pass
        if params.compile:
            self._through = torch.compile(self._pass)

    @property
    def learned(self) -> nn.ModuleList:
        """All that training changes."""
        return nn.ModuleList([self.bottleneck, self.decoder, self.objective])

    def reconstruct(self, tokens: Tensor, group: Tensor) -> Reconstruction:
        """What the loss sees.

        Args:
            tokens: Shape (batch, scales, tokens, width), float32.
            group: Index of each image's group, shape (batch,).
        """
        half = self._precision is not torch.float32
        with torch.autocast(tokens.device.type, self._precision) if half else nullcontext():
            bottleneck, decoded = self._through(tokens)
        return Reconstruction(
            encoded=self._maps(list(tokens.unbind(dim=1))),
            decoded=self._maps(decoded),
            bottleneck=bottleneck,
            group=group,
        )

    def _pass(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = tokens.mean(dim=1)
        for block in self.bottleneck:
            x = block(x)
        bottleneck, outputs = x, []
        for block in self.decoder:
            x = block(x)
            outputs.append(x)
        outputs.reverse()
        half = len(outputs) // SCALES
        return bottleneck, [
            torch.stack(group).mean(dim=0) for group in (outputs[:half], outputs[half:])
        ]

    def _maps(self, fused: list[Tensor]) -> list[Tensor]:
        """Tokens as maps of shape (batch, width, rows, columns), without the prefix."""
        rows, columns = self.shape.rows, self.shape.columns
        return [
            tokens[:, self.shape.prefix :]
            .permute(0, 2, 1)
            .reshape(len(tokens), -1, rows, columns)
            .contiguous()
            for tokens in fused
        ]

    def anomaly_map(self, tokens: Tensor) -> Tensor:
        """Scales combined as the objective says, on the image's grid, shape (batch, 1, *size)."""
        seen = self.reconstruct(tokens, torch.zeros(len(tokens), dtype=torch.int64))
        _, scales = DinomalyModel.calculate_anomaly_maps(
            seen.encoded, [d.float() for d in seen.decoded], out_size=self.image_size
        )
        combined: Tensor = self.objective.combine(torch.stack(scales).clamp_min(0))
        return combined

    def smooth_map(self, tokens: Tensor) -> Tensor:
        """The anomaly map resized and smoothed, from which scores are read.

        Returns:
            Shape (batch, *MAP_SIZE).
        """
        small = F.interpolate(
            self.anomaly_map(tokens), size=MAP_SIZE, mode="bilinear", align_corners=False
        )
        smooth: Tensor = self.gaussian_blur(small)[:, 0]
        return smooth

    def score(self, smooth_map: Tensor) -> Tensor:
        """Score of each image: mean of the top of its smooth map, shape (batch,)."""
        flat = smooth_map.flatten(1)
        k = effective_k(flat.shape[1], self._top_percent)
        return torch.topk(flat, k=k, dim=1).values.mean(dim=1)
