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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from hdsweep.method import Data, Method, Outcome, Stage, TrialContext
from trainables import bank
from trainables.bank import BankParams, one_per_bank, tested, why_infeasible
from trainables.bank.stages import bank_stage
from trainables.encoders.stages import features_stage

_INDEX_VERSION = 1
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
    """

    score_rule: Literal["softmax_k9", "max_nn"] = "softmax_k9"
    nbits: Literal["exact"] | Annotated[int, Field(ge=1, le=24)] = "exact"
    n_clusters: int = Field(64, ge=1)
    m: int = Field(64, ge=1)
    nprobe: int = Field(1, ge=1)

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
        elif self.nprobe > self.n_clusters:
            raise ValueError(
                f"nprobe {self.nprobe} is more than the {self.n_clusters} cells there are: lower "
                "it, or raise n_clusters"
            )
        return self


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """Features of the test images, and the banks or their indexes."""
    return [
        *(features_stage(params, data, "test", group) for group in tested(data)),
        *(bank_stage(params, data, sources, seed) for sources in one_per_bank(params, data)),
        *(
            index_stage(params, data, sources, seed)
            for sources in one_per_bank(params, data)
            if params.nbits != "exact"
        ),
    ]


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
        "bank_vectors", "threads", "measured_alone",
    ),
    stages=stages,
    infeasible=infeasible,
)  # fmt: skip
