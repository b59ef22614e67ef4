"""Weights that timm publishes: what they are, and where they lie once they are had.

They are named by their content like any file of weights, and the hub tells that content's digest
before it is downloaded. So a sweep on published weights is planned by what it will see, and one on
a copy of the same file is the same sweep. Without a network and a cached copy there is no such
name, which is said when the sweep is planned and not in each of its trials.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path

from hdsweep.errors import did_you_mean
from hdsweep.method import MethodError
from hdsweep.strict import file_digest

FILE = "model.safetensors"
_ANSWER_S = 5.0  # how long the model hub may take to answer before it counts as unreachable


@lru_cache(maxsize=64)
def digest(encoder: str) -> str:
    """SHA-256 of an encoder's published weights, in hex.

    Raises:
        MethodError: timm publishes none, or they are not in the cache and the hub does not answer.
    """
    cached = _cached(encoder)
    if cached is None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            url = hf_hub_url(_repository(encoder), FILE)
            etag = get_hf_file_metadata(url, timeout=_ANSWER_S).etag or ""
        except Exception as error:  # the hub's client fails in many ways, and all mean the same
            raise _unavailable(encoder, error) from error
        if _is_sha256(etag):
            return etag
        cached = file(encoder)
    blob = cached.resolve().name  # in the hub's cache large files are named by their digest
    return blob if _is_sha256(blob) else file_digest(cached)


def file(encoder: str) -> Path:
    """The safetensors file of an encoder's published weights, downloaded if need be.

    Left to itself an offline download is tried again for about a minute, in each trial; so the hub
    is asked for the digest first, which fails at once.

    Raises:
        MethodError: As ``digest``.
    """
    cached = _cached(encoder)
    if cached is not None:
        return cached
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository = _repository(encoder)
    try:
        get_hf_file_metadata(hf_hub_url(repository, FILE), timeout=_ANSWER_S)
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:
        raise _unavailable(encoder, error) from error


def require_known(encoder: str, *, pools: bool = False) -> None:
    """Raise MethodError, with the nearest names, unless timm has such a network.

    Args:
        encoder: Its name.
        pools: Whether any network will do, not only those whose patches can be looked at.
    """
    import timm

    known = timm.list_models("vit_*", module="vision_transformer")
    known += timm.list_models(module="resnet")
    what = "neither a vision transformer nor a residual network"
    if pools:
        known += [name for name in timm.list_models() if not name.startswith("vit_")]
        what = "no network"
    if encoder.partition(".")[0] not in known:
        raise MethodError(
            f"encoder '{encoder}' is {what} of timm {timm.__version__}"
            + did_you_mean(encoder, difflib.get_close_matches(encoder, known))
        )


def _cached(encoder: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(_repository(encoder), FILE)
    return Path(found) if isinstance(found, str) else None


@lru_cache(maxsize=64)
def _repository(encoder: str) -> str:
    import timm

    require_known(encoder, pools=True)
    try:
        config = timm.get_pretrained_cfg(encoder)
    except RuntimeError:
        name, _, tag = encoder.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        raise MethodError(
            f"encoder '{encoder}': timm {timm.__version__} publishes no weights '{tag}' of {name}"
            + did_you_mean(tag, tags)
        ) from None
    if config is None or not config.has_weights:
        raise MethodError(
            f"timm has no pretrained weights for encoder '{encoder}'; set 'weights' to 'pretext', "
            "'random' or a file"
        )
    if config.hf_hub_id is None:
        raise MethodError(
            f"timm names the weights of encoder '{encoder}' by an address only ({config.url}); "
            "download them from there and set 'weights' to the file's path"
        )
    return str(config.hf_hub_id)


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _unavailable(encoder: str, error: Exception) -> MethodError:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return MethodError(
        f"the pretrained weights of '{encoder}' are not in the cache and cannot be had from the "
        f'model hub ({reason}). Where there is a network, run python -c "import timm; '
        f"timm.create_model('{encoder}', pretrained=True)\" and copy the {FILE} it caches; then "
        "set 'weights' to that file's or folder's path, or to 'random', or 'pretext' for one that "
        "stays frozen, to do without"
    )
