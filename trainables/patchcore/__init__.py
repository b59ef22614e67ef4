"""PatchCore: how far is each patch of an image from the nearest normal one?

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler, CVPR 2022 (arXiv:2106.08265). The memory bank
(``trainables.bank``) holds a coreset of the normal training patches. A test patch's score is its
Euclidean distance to the nearest vector of the bank; the largest of an image's patches scores the
image, and all of them, enlarged and smoothed, are its anomaly map. Nothing is trained, so all that
a knob does not touch is shared: features of an encoder, one greedy run for all ratios of a coreset,
one index for all values of ``nprobe``.

The bank is searched exactly, or through an inverted file of product-quantised vectors (IVF-PQ:
Jégou, Douze, Schmid, TPAMI 2011) as FAISS builds it. Latency, memory and speed-up are measured in
the trial, while no other trial of this user computes on the machine; ``measured_alone`` says if
that could be had. ``memory_mb`` is what is searched, as stored: the index, or the vectors. The rule
``softmax_k9`` looks at the vectors of the bank too, ``max_nn`` does not.

Two rules make an image's score of its patches' distances. ``max_nn`` is the largest, as in the
authors' code. ``softmax_k9`` is the paper's and anomalib's: the largest, times 1 - the softmax
weight that the nearest vector m* has among the distances of the patch to the 9 vectors of the bank
that are nearest to m* (m* among them).

Where the data are parts of something larger, tiles of slides, each part is scored as an image is,
and each whole by its largest part, or by the mean of its ``top_k`` largest. ``slide_s`` is the time
that one slide takes, that with the median number of tiles: reading its tiles, encoding, searching.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from hdsweep.method import Data, Item, Method, Outcome, Stage, TrialContext
from trainables import bank
from trainables.bank import BankParams, one_per_bank, tested, why_infeasible
from trainables.bank.stages import bank_stage
from trainables.encoders.stages import features_stage

_INDEX_VERSION = 1
_SCORES_VERSION = 1
_OF_AN_INDEX = ("n_clusters", "m", "nprobe")
SUPPORT = 9  # neighbours of the nearest vector, itself among them, that softmax_k9 looks at


class Params(BankParams):
    """PatchCore's knobs, those of its encoder and of its bank among them.

    Args:
        score_rule: How an image's score is made of its patches'.
        nbits: Bits of each of the ``m`` codes of a compressed vector; or ``exact`` for no
            compression.
        n_clusters: Cells of the inverted file.
        m: Parts into which a vector is cut for compression; must divide its dimension.
        nprobe: Cells that are searched for each patch.
        slide_score: How a whole's score is made of its parts': ``max``, the largest, or ``top_k``,
            the mean of the largest ones.
        top_k: How many those are; all, where there are fewer.
        test_features: ``stored`` for trials that share them, or ``streamed``: each trial encodes
            the test images anew and keeps nothing of them, for data too large for the disk. The
            scores are the same.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"test_features"})

    score_rule: Literal["softmax_k9", "max_nn"] = "softmax_k9"
    nbits: Literal["exact"] | Annotated[int, Field(ge=1, le=24)] = "exact"
    n_clusters: int = Field(64, ge=1)
    m: int = Field(64, ge=1)
    nprobe: int = Field(1, ge=1)
    slide_score: Literal["max", "top_k"] = "max"
    top_k: int = Field(10, ge=1)
    test_features: Literal["stored", "streamed"] = "stored"

    @field_validator("nbits", mode="wrap")
    @classmethod
    def _exact_or_bits(cls, value: object, check: ValidatorFunctionWrapHandler) -> object:
        try:
            found: object = check(value)
        except ValidationError:  # of two types, it would tell of the first one only
            raise ValueError("write 'exact' or a whole number from 1 to 24") from None
        return found

    @model_validator(mode="after")
    def _no_knob_without_effect(self) -> Self:
        if self.nbits == "exact":
            for knob in _OF_AN_INDEX:
                if getattr(self, knob) != type(self).model_fields[knob].default:
                    raise ValueError(
                        f"nbits 'exact' does not use {knob}: two trials would differ in name only; "
                        "remove it"
                    )
        if self.slide_score == "max" and self.top_k != type(self).model_fields["top_k"].default:
            raise ValueError("slide_score 'max' does not use top_k; remove it")
        if self.nbits != "exact" and self.nprobe > self.n_clusters:
            raise ValueError(
                f"nprobe {self.nprobe} is more than the {self.n_clusters} cells there are: lower "
                "it, or raise n_clusters"
            )
        return self


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """Features of the test images, and the banks or their indexes."""
    stored = tested(data) if params.test_features == "stored" else ()
    return [
        *(features_stage(params, data, "test", group) for group in stored),
        *(bank_stage(params, data, sources, seed) for sources in one_per_bank(params, data)),
        *(
            index_stage(params, data, sources, seed)
            for sources in one_per_bank(params, data)
            if params.nbits != "exact"
        ),
        *(
            scores_stage(params, data, group, seed)
            for group in tested(data)
            if shares_scores(params, data)
        ),
    ]


def shares_scores(params: Params, data: Data) -> bool:
    """Whether scores of parts are kept for other trials: where features are not."""
    return params.test_features == "streamed" and bool(data.wholes)


def scores_stage(params: Params, data: Data, group: str, seed: int) -> Stage:
    """Scores of a group's test images, of whatever wholes they are parts."""
    sources = params.sources(data, group)
    compressed = params.nbits != "exact"
    asked = index_stage if compressed else bank_stage
    of, features = asked(params, data, sources, seed), features_stage(params, data, "test", group)
    inputs = {
        "encoder": params.encoder,  # these two for people; the digests say them too
        "group": group,
        "features": _digest(features),
        "searched": _digest(of),
        "nprobe": params.nprobe if compressed else None,
        "score_rule": params.score_rule,
    }
    return Stage("scores", _SCORES_VERSION, inputs, __name__, (of,))


def _digest(stage: Stage) -> str:
    content = json.dumps([stage.name, stage.version, stage.inputs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def index_stage(params: Params, data: Data, sources: tuple[str, ...], seed: int) -> Stage:
    """The compressed index of a bank; ``nprobe`` is not part of it."""
    of = bank_stage(params, data, sources, seed)
    inputs = {
        **of.inputs,
        "bank": of.version,
        "nbits": params.nbits,
        "n_clusters": params.n_clusters,
        "m": params.m,
    }
    return Stage("index", _INDEX_VERSION, inputs, __name__, (of,))


def infeasible(params: Params, data: Data) -> str | None:
    """Why these data cannot support such a bank or index; None where they can."""
    found = bank.infeasible(params, data)
    if params.slide_score != "max" and not data.wholes:
        found = (
            f"slide_score {params.slide_score} is for data of tiles, and these have no slides; "
            "remove it"
        )
    for group in tested(data) if found is None else ():
        vectors = params.vectors(data, group)
        if params.score_rule == "softmax_k9" and vectors == 1:
            found = (
                "score_rule softmax_k9 weighs the nearest vector of the bank against others, and "
                f"the bank of '{group}' would hold one; raise coreset_percent, or use max_nn"
            )
        if params.nbits != "exact" and found is None:
            found = why_infeasible(
                nbits=params.nbits,
                m=params.m,
                n_clusters=params.n_clusters,
                dimension=params.dimension(),
                vectors=vectors,
            )
        if found is not None:
            break
    return found


def scored(_params: Params, data: Data) -> Sequence[Item]:
    """What gets a score: the test items, and what they are parts of."""
    return (*data.test, *data.wholes)


def scored_groups(_params: Params, data: Data) -> Sequence[str]:
    """Those of the wholes first: they are what a person decides on."""
    return tuple(dict.fromkeys([*(item.group for item in data.wholes), *data.groups]))


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Fill the bank with normal patches and score the test items."""
    from trainables.patchcore.trial import score_test_items

    return score_test_items(params, data, context)


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="arXiv:2106.08265",
    scalars=(
        "latency_ms", "search_ms", "exact_search_ms", "speed_up", "memory_mb", "build_s",
        "bank_vectors", "threads", "measured_alone", "slide_s", "slide_tiles",
    ),
    stages=stages,
    infeasible=infeasible,
    tested=scored,
    groups=scored_groups,
)  # fmt: skip
