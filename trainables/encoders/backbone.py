"""Building a frozen timm encoder.

A transformer is built for one image size: its position embedding is resampled once, when the
weights are loaded, bicubic and without antialiasing, which is what anomalib does in every forward
pass. A residual network takes images of any size.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models import ResNet, VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from hdsweep.method import Data, MethodError, TrialContext
from trainables.encoders import (
    EncoderParams,
    default_layers,
    is_transformer,
    not_whole_patches,
    pretext,
    published,
)
from trainables.encoders.stages import SEED, pretext_stage

Network: TypeAlias = VisionTransformer | ResNet

_BATCHES = ".num_batches_tracked"


class FrozenViT(nn.Module):
    """A vision transformer that hands out its residual stream and never learns.

    Called like anomalib's ``TimmFeatureExtractor``, with two differences: any timm model can be
    given, and blocks after the last one asked for are not computed.

    Args:
        vit: The network, built for the size of the images.
        layers: Blocks whose output is handed out, ascending.
    """

    def __init__(self, vit: VisionTransformer, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(requires_grad=False)
        self.layers = layers
        self.patch_size = int(vit.patch_embed.patch_size[0])
        self.embed_dim = int(vit.embed_dim)
        self.num_heads = int(vit.blocks[0].attn.num_heads)
        self.num_register_tokens = int(vit.num_prefix_tokens) - 1

    def train(self, mode: bool = True) -> FrozenViT:
        """Stay in evaluation mode, whatever the model around does."""
        super().train(mode)
        self.vit.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens after each layer, prefix tokens first, shape (batch, tokens, embed_dim)."""
        found: list[tuple[Tensor, Tensor | None]] = self.vit.forward_intermediates(
            images,
            indices=list(self.layers),
            return_prefix_tokens=True,
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return {
            f"blocks.{layer}": patches if prefix is None else torch.cat([prefix, patches], dim=1)
            for layer, (patches, prefix) in zip(self.layers, found, strict=True)
        }


def build(
    params: EncoderParams, layers: tuple[int, ...] | None, data: Data, context: TrialContext
) -> FrozenViT:
    """The frozen transformer that ``params`` describe, on the CPU.

    Args:
        params: Name, shape and weights.
        layers: Blocks to hand out; None for ``default_layers``.
        data: As for ``network``.
        context: As for ``network``.

    Raises:
        MethodError: As ``network``, or it is not a transformer or lacks one of the layers.
    """
    published.require_known(params.encoder)
    if not is_transformer(params.encoder):
        raise MethodError(
            f"encoder '{params.encoder}' is not a vision transformer; name one, as in "
            "vit_base_patch14_reg4_dinov2"
        )
    vit = network(params, data, context)
    depth = len(vit.blocks)
    layers = default_layers(depth) if layers is None else layers
    if layers[-1] >= depth:
        raise MethodError(
            f"encoder {params.encoder} has {depth} blocks, 0 to {depth - 1}; "
            f"layer {layers[-1]} is not one of them"
        )
    return FrozenViT(vit, layers)


def network(params: EncoderParams, data: Data, context: TrialContext) -> Network:
    """The network that ``params`` describe with its weights, frozen, on the CPU.

    Torch's global random state is left as it was, whether the encoder had to be trained or was
    found in the cache: what follows must not depend on it.

    Args:
        params: Name, shape and weights.
        data: The pretext trains on its normal training items.
        context: Lends the stage in which trials share the pretext's result.

    Raises:
        MethodError: timm has no such network, or its weights cannot be had or do not fit.
    """
    device = torch.device(context.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        if params.weights == "pretrained":
            net = _with_weights(
                params, _read(published.file(params.encoder)), f"timm's {params.encoder}"
            )
        elif params.weights == "random":
            net = create(params)
        elif params.weights == "pretext":
            # First, for it starts from the seed above; and its positions lie on the very same grid.
            weights = _after_pretext(params, data, context)
            net = create(params)
            net.load_state_dict(weights)
        else:
            net = _with_weights(params, _read(params.weights), str(params.weights))
    return net.eval().requires_grad_(requires_grad=False)


def create(params: EncoderParams, size: tuple[int, int] | None = None) -> Network:
    """The network with fresh weights, for images of ``size`` (by default the crop's)."""
    published.require_known(params.encoder, pools=params.pools)
    if not is_transformer(params.encoder):
        try:
            return timm.create_model(params.encoder, pretrained=False, num_classes=0)
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            raise MethodError(f"encoder '{params.encoder}' cannot be built: {error}") from error
    try:
        vit = timm.create_model(
            params.encoder,
            pretrained=False,
            num_classes=0,
            img_size=size or params.crop,
            **params.shape(),
        )
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise MethodError(
            f"encoder '{params.encoder}' cannot be built for images of "
            f"{params.crop[0]}x{params.crop[1]} with {params.shape() or 'its own shape'}: {error}"
        ) from error
    problem = not_whole_patches(params.crop, int(vit.patch_embed.patch_size[0]))
    if problem:
        raise MethodError(f"encoder '{params.encoder}': {problem}")
    return vit


def _with_weights(params: EncoderParams, found: Mapping[str, Tensor], origin: str) -> Network:
    """The network with the weights found, which must be all that it has."""
    net = create(params)
    misfit = f"weights of {origin} do not fit encoder '{params.encoder}'"
    weights, shape = found, ""
    if is_transformer(params.encoder):
        shape = ", and its patch_size, embed_dim, depth and num_heads where they differ"
        try:
            weights = _for_grid(net, params, found)
        except (RuntimeError, ValueError, KeyError) as error:
            raise MethodError(f"{misfit} at {params.crop[0]}x{params.crop[1]}: {error}") from error
    own = net.state_dict()
    # Evaluation does not use the count of batches, and files of torch before 0.4.1 lack it.
    missing = sorted(k for k in own.keys() - weights.keys() if not k.endswith(_BATCHES))
    wrong = [k for k, v in own.items() if k in weights and weights[k].shape != v.shape]
    parts = {key.partition(".")[0] for key in own}  # a head is none: it is not used, and left out
    surplus = [k for k in weights if k not in own and k.partition(".")[0] in parts]
    misfits = [
        *(f"lacks {key}" for key in missing),
        *(f"{key} has another shape" for key in wrong),
        *(f"has {key} besides" for key in surplus),  # of a deeper network
    ]
    if misfits:
        raise MethodError(
            f"{misfit}: {misfits[0]} ({len(misfits)} of {len(own)} tensors); name the encoder they "
            f"are of{shape}"
        )
    net.load_state_dict({key: weights.get(key, value) for key, value in own.items()})
    return net


def _for_grid(
    vit: VisionTransformer, params: EncoderParams, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights found, in timm's layout, with positions on the grid of ``vit``."""
    native = vit
    if "pos_embed" in found and vit.pos_embed is not None:
        # A file does not say its grid. It is the published one where the number of positions fits,
        # else that of ``vit``. timm's conversion of layouts resamples too, in another way: give it
        # a network that has the grid of the file.
        published_grid = create(params, _native_size(params))
        count = found["pos_embed"].shape[1]
        if count != vit.pos_embed.shape[1] or count == published_grid.pos_embed.shape[1]:
            native = published_grid
    weights: dict[str, Tensor] = dict(checkpoint_filter_fn(dict(found), native))
    if vit.pos_embed is not None and "pos_embed" in weights:
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"],
            list(vit.patch_embed.grid_size),
            list(native.patch_embed.grid_size),
            num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
            antialias=False,
        )
    return weights


def _native_size(params: EncoderParams) -> tuple[int, int]:
    _, height, width = timm.get_pretrained_cfg(params.encoder).input_size
    return (int(height), int(width))


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        safe = path.suffix == ".safetensors"
        reason = str(error).strip().partition("\n")[0] if safe else type(error).__name__
        raise MethodError(
            f"{path}: not a file of weights ({reason}); give a safetensors file, or a .pth of "
            "tensors only: a file that holds code is not opened"
        ) from error
    for wrapper in ("model", "state_dict"):  # what training scripts put around them
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise MethodError(f"{path}: holds something else than tensors by name")
    return found


def _after_pretext(
    params: EncoderParams, data: Data, context: TrialContext
) -> Mapping[str, Tensor]:
    def train(folder: Path) -> None:
        net = pretext.train(create(params), params, data, seed=SEED, context=context)
        state = {key: value.contiguous().cpu() for key, value in net.state_dict().items()}
        save_file(state, folder / published.FILE)

    return _read(context.stage(pretext_stage(params, data), train) / published.FILE)
