"""How long one image takes, measured one after another without neighbours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hdsweep.method import Data, Item, TrialContext
from trainables.bank.maps import anomaly_maps
from trainables.encoders.features import PatchFeatures
from trainables.patchcore import Params
from trainables.patchcore.index import Compressed, Exact, Index
from trainables.patchcore.scoring import score_images

_IMAGES, _LEAST, _WARM_UP = 20, 5, 2
_ENOUGH_S = 2.0  # after which no further image is timed


def measure(
    params: Params,
    data: Data,
    features: PatchFeatures,
    indexes: Mapping[str, Index],
    context: TrialContext,
) -> dict[str, float]:
    """Medians over test images from all groups, in milliseconds per image.

    ``latency_ms`` is all that happens to an image once it is in memory: the encoder, the search,
    score and map. ``search_ms`` is the search for each patch's nearest vector alone, and
    ``exact_search_ms`` the same search among the uncompressed vectors; each image goes through both
    in turn, so that ``speed_up``, the ratio of the medians, compares like with like.
    """
    items = _spread(data.test, _IMAGES + _WARM_UP)
    images = [image for chunk in features.images(items) for image in chunk]
    context.log.info("measuring with %d threads", context.threads)
    features.encode(images[:1])  # an encoder that is not there yet is not made while others wait
    whole, search, exact = [], [], []
    clock = _Clock(context.device)
    with context.alone() as alone:
        began = time.perf_counter()
        for n, (item, image) in enumerate(zip(items, images, strict=True)):
            if n >= _LEAST + _WARM_UP and time.perf_counter() - began > _ENOUGH_S:
                break
            index = indexes[item.group]
            clock.start()
            encoded: NDArray[np.float32] = features.encode([image]).cpu().numpy()
            distance, _ = score_images(encoded, index, params)
            anomaly_maps(distance, features.grid, params.crop)
            image_s = clock.start()
            index.search(encoded[0], 1)
            found_s = exact_s = clock.start()
            if isinstance(index, Compressed):
                Exact(index.vectors, context.device).search(encoded[0], 1)
                exact_s = clock.start()
            if n >= _WARM_UP:
                whole.append(image_s)
                search.append(found_s)
                exact.append(exact_s)
    if not alone:
        context.log.warning("a neighbour kept computing while latencies were measured")
    return {
        "latency_ms": 1e3 * float(np.median(whole)),
        "search_ms": 1e3 * float(np.median(search)),
        "exact_search_ms": 1e3 * float(np.median(exact)),
        "speed_up": float(np.median(exact) / np.median(search)),
        "threads": float(context.threads),
        "measured_alone": float(alone),
    }


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Up to so many items, evenly spaced, so that all groups are among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))
    return [items[n] for n in chosen]


class _Clock:
    """Tells the seconds from one start to the next, when the device has done its work."""

    def __init__(self, device: str) -> None:
        self._device, self._started = device, 0.0

    def start(self) -> float:
        """Seconds since the last start."""
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        return seconds
