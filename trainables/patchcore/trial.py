"""One trial of PatchCore: nothing is trained, so it is a walk along the stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import Data, MethodError, Outcome, Predictions, TrialContext
from trainables.bank import one_per_bank, tested
from trainables.bank.maps import Keep, drawn
from trainables.bank.memory import Bank
from trainables.encoders.features import PatchFeatures
from trainables.encoders.stages import Split, items_of
from trainables.encoders.threads import return_freed_memory
from trainables.patchcore import Params, scored, scores_stage, shares_scores
from trainables.patchcore.index import Compressed, Index, compressed, open_index
from trainables.patchcore.latency import measure, measure_whole
from trainables.patchcore.scoring import score_images, whole_scores

_CHUNK = 16  # images scored at once
_SCORES, _SECONDS = "scores.npy", "slide.json"


def score_test_items(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Fill the banks, score ``data.test``, and measure."""
    if params.test_features == "streamed":
        return_freed_memory()
    groups = tested(data)
    features = PatchFeatures(params, data, context)
    bank = Bank(params, data, features, context.seed, context)
    stored = params.test_features == "stored"
    wanted: list[tuple[Split, str]] = [("test", group) for group in groups if stored]
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
        if shares_scores(params, data):
            score, whole_s = _shared_score(params, data, features, indexes, context)
        else:
            score = _score(params, data, features, indexes, keep)
            whole_s = measure_whole(params, data, features, indexes, context)
    for sources, index in opened.items():
        if isinstance(index, Compressed) and index.searched_again:
            context.log.info(
                "%s: %d searches found nothing in nprobe cells and went on in more",
                ", ".join(sources), index.searched_again,
            )  # fmt: skip
    return Outcome(
        predictions=Predictions.of(
            scored(params, data), np.concatenate([score, whole_scores(params, data, score)])
        ),
        scalars={
            **measure(params, data, features, indexes, context),
            **whole_s,
            "memory_mb": sum(index.size_bytes for index in opened.values()) / 1e6,
            "build_s": sum(index.build_s for index in opened.values()),
            "bank_vectors": float(sum(len(index.vectors) for index in opened.values())),
        },
        maps=maps,
    )


def _shared_score(
    params: Params,
    data: Data,
    features: PatchFeatures,
    indexes: Mapping[str, Index],
    context: TrialContext,
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """As ``_score``, by the first trial that differs in no more than what is made of the scores.

    A slide takes long and says the same to each of them, so its time is measured by that trial too.
    """
    score = np.empty(len(data.test), dtype=np.float64)
    whole_s: dict[str, float] = {}
    for group, index in indexes.items():

        def build(folder: Path, group: str = group, index: Index = index) -> None:
            found = _score(params, data, features, {group: index}, lambda _rows, _value: None)
            np.save(folder / _SCORES, found[rows_of(group)])
            seconds = measure_whole(params, data, features, {group: index}, context)
            (folder / _SECONDS).write_text(json.dumps(seconds))

        def rows_of(group: str) -> NDArray[np.intp]:
            return np.flatnonzero([item.group == group for item in data.test])

        folder = context.stage(scores_stage(params, data, group, context.seed), build)
        score[rows_of(group)], seconds = _read_scores(folder)
        whole_s = whole_s or seconds  # of the first group that has slides
    return score, whole_s


def _read_scores(folder: Path) -> tuple[NDArray[np.float64], dict[str, float]]:
    try:
        found: NDArray[np.float64] = np.load(folder / _SCORES, allow_pickle=False)
        seconds = {str(k): float(v) for k, v in json.loads((folder / _SECONDS).read_text()).items()}
    except (OSError, ValueError, EOFError) as error:
        raise MethodError(
            f"{folder}: the scores kept there are damaged ({error}); remove the folder, and they "
            "are made anew"
        ) from error
    return found, seconds


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
        done = 0
        for some in _in_chunks(features, group, params):
            chunk = rows[done : done + len(some)]
            distance, score[chunk] = score_images(some, index, params)
            keep(chunk, distance)
            done += len(some)
    return score


def _in_chunks(
    features: PatchFeatures, group: str, params: Params
) -> Iterator[NDArray[np.float32]]:
    """Features of a group's test images, a few at a time."""
    streamed = params.test_features == "streamed"
    arrays = features.stream("test", group) if streamed else [features.of("test", group)]
    for array in arrays:
        for start in range(0, len(array), _CHUNK):
            yield np.asarray(array[start : start + _CHUNK], dtype=np.float32)
