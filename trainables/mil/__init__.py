"""Are the words of a bag all by one writer? ArcFace embeddings, bags, attention.

Three steps, of which trials share the first two:

1. An *embedder* is trained to tell the writers of the training words apart by ArcFace (Deng, Guo,
   Xue, Zafeiriou, CVPR 2019, arXiv:1801.07698); of its embeddings, scaled to unit length, those of
   one writer are alike (``words``, ``embeddings``).
2. Words become *bags*, of one writer or of two (``bags``).
3. A network with *attention* over a bag's instances learns to tell the two kinds apart (Ilse,
   Tomczak, Welling, ICML 2018, arXiv:1802.04712; ``attention``). This is what a trial trains, and
   what its seed drives.

The writers of training, validation and test are different people. Test bags are reported per task,
the ratio of a bag that is foreign, and all genuine bags are every task's negatives. Scores are
logits; the threshold is chosen on the validation bags.

As published, the network sees instances as they are, and what makes a bag mixed is that they
differ; a weighted sum of instances is a poor witness of that for writers it has never seen.
``centre: bag`` shows it how each differs from the bag's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from hdsweep.method import Data, Item, Method, Outcome, Stage, Strict, TrialContext
from trainables.mil.bags import BagParams, bags_stage, tasks_of, warnings_of, why_no_bags
from trainables.mil.reported import rows_of
from trainables.mil.words import SPLITS, WordParams, embeddings_stage, why_unfit

Rule = Literal["g_mean", "f1"]


class MilParams(Strict):
    """Knobs of the network over bags, and of its training.

    Args:
        centre: ``bag`` takes the mean of a bag's instances from each of them first; ``none`` is as
            published.
        hidden: Width of the projection of an instance.
        attention: Width of the layer that attention is made of.
        classifier_hidden: Width of a layer between the weighted sum and the logit; 0 for none, as
            published.
        mil_dropout: Share of the projection that is dropped in training.
        lr: Of AdamW.
        weight_decay: Of AdamW.
        epochs: At most.
        batch_size: Bags in a step, half of them genuine.
        patience: Epochs without a better validation AUROC after which training ends. The best
            epoch is kept.
        threshold_rule: What is largest on the validation bags at the threshold.
    """

    centre: Literal["none", "bag"] = "none"
    hidden: int = Field(128, ge=1, le=16384)
    attention: int = Field(64, ge=1, le=16384)
    classifier_hidden: int = Field(0, ge=0, le=16384)
    mil_dropout: float = Field(0.25, ge=0, lt=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(64, ge=2, multiple_of=2)
    patience: int = Field(10, ge=1)
    threshold_rule: Rule = "g_mean"


class Params(WordParams, BagParams, MilParams):
    """Knobs of the embedder, of the bags and of the network over them."""

    @model_validator(mode="after")
    def _deviates(self) -> Self:
        if self.block == 1 and self.centre == "bag":
            raise ValueError(
                "with centre 'bag' the only instance of block 1 is the mean itself, and the "
                "network would see zeros; raise block, or set centre to 'none'"
            )
        return self


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """Embeddings and bags of all splits; none depends on the seed."""
    del seed
    return [
        *(embeddings_stage(params, data, split) for split in SPLITS),
        *(bags_stage(params, data, split) for split in SPLITS),
    ]


def infeasible(params: Params, data: Data) -> str | None:
    """Why such bags cannot be made of these data; None where they can."""
    return why_unfit(data) or why_no_bags(params, data)


def tested(params: Params, data: Data) -> Sequence[Item]:
    """The bags of the test writers, the genuine ones once for each task."""
    return rows_of(params, data).items


def groups(params: Params, data: Data) -> Sequence[str]:
    """The ratios, the smallest first; those that amount to one task are one."""
    del data
    return [task.label for task in tasks_of(params)]


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Train on bags of the training writers and score those of the test writers."""
    from trainables.mil.trial import train_and_score

    return train_and_score(params, data, context)


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="arXiv:1801.07698, arXiv:1802.04712",
    scalars=(
        "verification_auc", "verification_eer", "validation_auroc", "best_epoch",
        "train_bags", "test_bags",
    ),
    warn=warnings_of,
    stages=stages,
    infeasible=infeasible,
    tested=tested,
    groups=groups,
    curve=("loss", "val_auroc", "lr", "grad/total_norm", "grad/nan_count"),
    steps=lambda params: params.epochs,
)  # fmt: skip
