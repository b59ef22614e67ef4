"""One trial of PatchCore: nothing is trained, so it is a walk along the stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Data, Outcome, Predictions, TrialContext
from trainables.bank import one_per_bank, tested
from trainables.bank.maps import Keep, drawn
from trainables.bank.memory import Bank
from trainables.encoders.features import PatchFeatures
from trainables.encoders.stages import Split, items_of
from trainables.patchcore import Params
from trainables.patchcore.index import Compressed, Index, compressed, open_index
from trainables.patchcore.latency import measure
from trainables.patchcore.scoring import score_images

_CHUNK = 16  # images scored at once


def score_test_items(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Fill the banks, score ``data.test``, and measure."""
    groups = tested(data)
    features = PatchFeatures(params, data, context)
    bank = Bank(params, data, features, context.seed, context)
    wanted: list[tuple[Split, str]] = [("test", group) for group in groups]
    features.prepare([*wanted, *bank.lacking(groups)])  # at once: the encoder is made for both
    bank.prepare(groups)
    groups_of_banks = one_per_bank(params, data)
    if params.nbits != "exact":
        context.prepare(
            [
                compressed(params, params.nbits, data, group, bank, context)
                for group in groups_of_banks.values()
            ]
        )
    opened = {
        sources: open_index(params, data, group, bank, context)
        for sources, group in groups_of_banks.items()
    }
    indexes = {group: opened[params.sources(data, group)] for group in groups}
    with drawn(params, data, features.grid, context) as (maps, keep):
        score = _score(params, data, features, indexes, keep)
    for sources, index in opened.items():
        if isinstance(index, Compressed) and index.searched_again:
            context.log.info(
                "%s: %d searches found nothing in nprobe cells and went on in more",
                ", ".join(sources), index.searched_again,
            )  # fmt: skip
    return Outcome(
        predictions=Predictions.of(data.test, score),
        scalars={
            **measure(params, data, features, indexes, context),
            "memory_mb": sum(index.size_bytes for index in opened.values()) / 1e6,
            "build_s": sum(index.build_s for index in opened.values()),
            "bank_vectors": float(sum(len(index.vectors) for index in opened.values())),
        },
        maps=maps,
    )


def _score(
    params: Params,
    data: Data,
    features: PatchFeatures,
    indexes: Mapping[str, Index],
    keep: Keep,
) -> NDArray[np.float64]:
    score = np.empty(len(data.test), dtype=np.float64)
    place = {item.name: row for row, item in enumerate(data.test)}
    for group, index in indexes.items():
        rows = [place[item.name] for item in items_of(data, "test", group)]
        stored = features.of("test", group)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            some = np.asarray(stored[start : start + _CHUNK], dtype=np.float32)
            distance, score[chunk] = score_images(some, index, params)
            keep(chunk, distance)
    return score
