"""How long one image takes, measured one after another without neighbours."""

from __future__ import annotations

import itertools
import math
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
from trainables.patchcore.scoring import pooled, score_images

_IMAGES, _LEAST, _WARM_UP = 20, 5, 1
_ENOUGH_S = 1.0  # after which no further image is timed


def measure(
    params: Params,
    data: Data,
    features: PatchFeatures,
    indexes: Mapping[str, Index],
    context: TrialContext,
) -> dict[str, float]:
    """Medians over up to 20 test images, of one group after another, in milliseconds per image.

    ``latency_ms`` is all that happens to an image once it is in memory: the encoder, the search,
    score and map. ``search_ms`` is the search for each patch's nearest vector alone, and
    ``exact_search_ms`` the same search among the uncompressed vectors; each image goes through
    both, now one first and now the other, so that ``speed_up``, the ratio of the medians, compares
    like with like. On a GPU the exact search runs there and a compressed index on the CPU, as they
    would be used. The first image is gone through once before, and where time runs short at least
    five are timed.
    """
    items = in_turn(data.test, _IMAGES)
    images = [image for chunk in features.images(items) for image in chunk]
    context.log.info("measuring with %d threads", context.threads)
    features.encode(images[:1])  # an encoder that is not there yet is not made while others wait
    whole: list[float] = []
    search: list[float] = []
    exact: list[float] = []
    plain = {
        group: Exact(index.vectors, context.device) if isinstance(index, Compressed) else index
        for group, index in indexes.items()
    }
    clock = _Clock(context.device)
    with context.alone() as alone:
        began = time.perf_counter()
        pairs = list(zip(items, images, strict=True))
        for n, (item, image) in enumerate([*pairs[:_WARM_UP], *pairs]):
            if len(whole) >= _LEAST and time.perf_counter() - began > _ENOUGH_S:
                break
            index = indexes[item.group]
            clock.start()
            encoded: NDArray[np.float32] = features.encode([image]).cpu().numpy()
            distance, _ = score_images(encoded, index, params)
            anomaly_maps(distance, features.grid, params.crop)
            image_s = clock.start()
            seconds = {}
            both = [index, plain[item.group]] if index is not plain[item.group] else [index]
            for one in both if n % 2 else reversed(both):
                clock.start()
                one.search(encoded[0], 1)
                seconds[one is index] = clock.start()
            found_s = seconds[True]
            exact_s = seconds.get(False, found_s)
            if n >= len(pairs[:_WARM_UP]):
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


def measure_whole(
    params: Params,
    data: Data,
    features: PatchFeatures,
    indexes: Mapping[str, Index],
    context: TrialContext,
) -> dict[str, float]:
    """How long one whole takes, from its file to its score; nothing where the data have none.

    It is that with the median number of parts. Its file has been read before, so that its bytes
    may come from memory.
    """
    parts: dict[str | None, list[Item]] = {}
    for item in data.test:
        if item.group in indexes:
            parts.setdefault(item.part_of, []).append(item)
    by_size = sorted((parts[w.name] for w in data.wholes if w.name in parts), key=len)
    if not by_size:
        return {}
    items = by_size[len(by_size) // 2]
    index = indexes[items[0].group]
    features.encode(next(features.images(items[:1])))
    clock = _Clock(context.device)
    with context.alone() as alone:
        clock.start()
        score = [
            score_images(features.encode(images).cpu().numpy(), index, params)[1]
            for images in features.images(items)
        ]
        pooled(params, np.concatenate(score))
        seconds = clock.start()
    if not alone:
        context.log.warning("a neighbour kept computing while the time of a slide was measured")
    return {"slide_s": seconds, "slide_tiles": float(len(items))}


def in_turn(items: Sequence[Item], count: int) -> list[Item]:
    """Up to so many items, one of each group, then another of each; evenly spaced in a group."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    each = math.ceil(count / len(groups))
    spread = [
        [group[n] for n in np.unique(np.linspace(0, len(group) - 1, each).round().astype(int))]
        for group in groups.values()
    ]
    rounds = itertools.zip_longest(*spread)
    return [item for one in rounds for item in one if item is not None][:count]


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
