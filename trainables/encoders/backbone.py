"""Building a frozen timm encoder.

The network is built for one image size: its position embedding is resampled once, when the weights
are loaded, bicubic and without antialiasing, which is what anomalib does in every forward pass.
"""

from __future__ import annotations

import difflib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from hdsweep.errors import did_you_mean
from hdsweep.method import Data, MethodError, TrialContext
from trainables.encoders import EncoderParams, default_layers, not_whole_patches, pretext

_SEED = 0  # of random weights and of the pretext: the same encoder for every replicate
_ANSWER_S = 5.0  # how long the model hub may take to answer before it counts as unreachable
_WEIGHTS_FILE = "model.safetensors"


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
    """The frozen encoder that ``params`` describe, on the CPU.

    Torch's global random state is left as it was, whether the encoder had to be trained or was
    found in the cache: what follows must not depend on it.

    Args:
        params: Name, shape and weights.
        layers: Blocks to hand out; None for ``default_layers``.
        data: The pretext trains on its normal training items.
        context: Lends the stage in which trials share the pretext's result.

    Raises:
        MethodError: timm has no such transformer, or its weights cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        if params.weights == "pretrained":
            vit = _with_weights(params, _published(params), f"timm's {params.encoder}")
        elif params.weights == "random":
            vit = create(params)
        elif params.weights == "pretext":
            vit = _with_weights(params, _after_pretext(params, data, context), "the pretext")
        else:
            vit = _with_weights(params, _read(params.weights), str(params.weights))
    depth = len(vit.blocks)
    layers = default_layers(depth) if layers is None else layers
    if layers[-1] >= depth:
        raise MethodError(
            f"encoder {params.encoder} has {depth} blocks, 0 to {depth - 1}; "
            f"layer {layers[-1]} is not one of them"
        )
    return FrozenViT(vit, layers)


def create(params: EncoderParams, size: tuple[int, int] | None = None) -> VisionTransformer:
    """The network with fresh weights, for images of ``size`` (by default the crop's)."""
    known = timm.list_models("vit_*", module="vision_transformer")
    if params.encoder.split(".")[0] not in known:
        raise MethodError(
            f"encoder '{params.encoder}' is not a vision transformer of timm {timm.__version__}"
            + did_you_mean(params.encoder, difflib.get_close_matches(params.encoder, known))
        )
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


def _with_weights(
    params: EncoderParams, found: Mapping[str, Tensor], origin: str
) -> VisionTransformer:
    """The network with the weights found, which must be all that it has."""
    vit = create(params)
    misfit = f"weights of {origin} do not fit encoder '{params.encoder}'"
    try:
        weights = _for_grid(vit, params, found)
    except (RuntimeError, ValueError, KeyError) as error:
        raise MethodError(f"{misfit} at {params.crop[0]}x{params.crop[1]}: {error}") from error
    own = vit.state_dict()
    missing = sorted(own.keys() - weights.keys())
    wrong = [k for k, v in own.items() if k in weights and weights[k].shape != v.shape]
    if missing or wrong:
        what = f"lacks {missing[0]}" if missing else f"{wrong[0]} has another shape"
        raise MethodError(
            f"{misfit}: {what} ({len(missing) + len(wrong)} of {len(own)} tensors); name the "
            "encoder they are of, and its patch_size, embed_dim, depth and num_heads where they "
            "differ"
        )
    vit.load_state_dict({key: weights[key] for key in own})  # a head that we do not use is left out
    return vit


def _for_grid(
    vit: VisionTransformer, params: EncoderParams, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights found, in timm's layout, with positions on the grid of ``vit``."""
    native = vit
    if "pos_embed" in found and found["pos_embed"].shape[1] != vit.pos_embed.shape[1]:
        # timm's conversion of layouts resamples too, in another way: give it a network that has
        # the grid of the file.
        native = create(params, _native_size(params))
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


def _published(params: EncoderParams) -> Mapping[str, Tensor]:
    """Weights that timm publishes: from its cache, else from the hub, else refused at once.

    Left to itself an offline download is tried again for about a minute, in each trial.
    """
    config = timm.get_pretrained_cfg(params.encoder)
    if config is None or not config.has_weights:
        raise MethodError(
            f"timm has no pretrained weights for '{params.encoder}'; set 'weights' to 'pretext', "
            "'random' or a safetensors file"
        )
    repository = config.hf_hub_id
    if repository is not None:
        from huggingface_hub import hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(repository, _WEIGHTS_FILE)
        if isinstance(cached, str):
            return _read(Path(cached))
        _require_answer(hf_hub_url(repository, _WEIGHTS_FILE), params.encoder)
    elif config.url:
        _require_answer(config.url, params.encoder)
    try:
        vit = timm.create_model(params.encoder, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise _unavailable(params.encoder, str(error)) from error
    weights: dict[str, Tensor] = vit.state_dict()
    return weights


def _require_answer(url: str, encoder: str) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise _unavailable(encoder, "HF_HUB_OFFLINE is set")
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - timm's own address
    try:
        urllib.request.urlopen(request, timeout=_ANSWER_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise _unavailable(encoder, f"{url} answers {error.code}") from error
    except OSError as error:  # URLError, timeouts and refused connections are all of it
        raise _unavailable(encoder, f"{url}: {getattr(error, 'reason', error)}") from error


def _unavailable(encoder: str, reason: str) -> MethodError:
    return MethodError(
        f"the pretrained weights of '{encoder}' are not in the cache and cannot be downloaded "
        f'({reason}). Where there is a network, run python -c "import timm; '
        f"timm.create_model('{encoder}', pretrained=True)\" and copy the model.safetensors it "
        "caches; then set 'weights' to that file's path, or to 'pretext' or 'random' to do without"
    )


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MethodError(
            f"{path}: not a safetensors file ({error}); convert it with safetensors.torch.save_file"
        ) from error
    return weights


def _after_pretext(
    params: EncoderParams, data: Data, context: TrialContext
) -> Mapping[str, Tensor]:
    def train(folder: Path) -> None:
        vit = pretext.train(create(params), params, data, seed=_SEED, context=context)
        state = {key: value.contiguous().cpu() for key, value in vit.state_dict().items()}
        save_file(state, folder / _WEIGHTS_FILE)

    inputs: dict[str, object] = {
        "encoder": params.encoder,
        "shape": params.shape(),
        "resize": list(params.resize),
        "crop": list(params.crop),
        "steps": params.pretext_steps,
        "seed": _SEED,
    }
    folder = context.stage("encoder", version=pretext.VERSION, inputs=inputs, build=train)
    return _read(folder / _WEIGHTS_FILE)
