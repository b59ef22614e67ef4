"""One trial: embeddings and bags that it shares with others, a network of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hdsweep.method import Data, Infeasible, Outcome, Predictions, TrialContext
from trainables.mil import Params, infeasible
from trainables.mil.attention import Scored, Seen, Training, score_bags, threshold_of
from trainables.mil.bags import Bags, documents_of, kept, read, tasks_of
from trainables.mil.embeddings import Embeddings
from trainables.mil.figure import Shown, draw
from trainables.mil.reported import Rows, rows_of
from trainables.mil.words import SPLITS, Split, require_disjoint

_SHOWN = 8  # bags of each kind in the figure


def train_and_score(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Train on bags of ``data.train``, choose by ``data.validation``, score ``data.test``."""
    reason = infeasible(params, data)
    if reason is not None:
        raise Infeasible(reason)
    require_disjoint(data)
    embeddings = Embeddings(params, data, context)
    embeddings.prepare()
    asked = {split: kept(params, data, split) for split in SPLITS}
    context.prepare(list(asked.values()))
    device = torch.device(context.device)
    seen: dict[Split, Seen] = {}
    for split in SPLITS:
        bags = read(context.stage(*asked[split]))
        _log_bags(params, data, split, bags, context)
        seen[split] = Seen(embeddings.of(split), bags, device)
    verification = embeddings.verification("test")
    context.log.info(
        "verification of test writers: AUC %.4f, EER %.4f, on %d pairs",
        verification.auc, verification.eer, verification.pairs,
    )  # fmt: skip

    training = Training(params, seen["train"], seen["validation"], context)
    net = training.run()
    chosen = score_bags(net, seen["validation"])
    found, rows = score_bags(net, seen["test"]), rows_of(params, data)
    artifacts = _artifacts(params, seen["test"].bags, rows, found, context.scratch)
    return Outcome(
        predictions=Predictions.of(rows.items, found.score[rows.bag]),
        scalars={
            "verification_auc": verification.auc,
            "verification_eer": verification.eer,
            "validation_auroc": training.validation_auroc,
            "best_epoch": float(training.best_epoch),
            "train_bags": float(len(seen["train"].bags)),
            "test_bags": float(len(seen["test"].bags)),
        },
        artifacts=artifacts,
        threshold=threshold_of(
            seen["validation"].bags.is_mixed, chosen.score, params.threshold_rule
        ),
    )


def _log_bags(params: Params, data: Data, split: Split, bags: Bags, context: TrialContext) -> None:
    documents = documents_of(params, data, split)
    context.log.info(
        "%s: %d writers, %d documents, %d of them too short for a bag of %d instances; "
        "%d genuine bags, and mixed ones: %s",
        split,
        len(documents.writers),
        len(documents.words),
        int(np.count_nonzero(documents.instances < params.block)),
        params.block,
        bags.genuine,
        ", ".join(
            f"{np.count_nonzero(bags.task == place)} with {task.replaced} replaced"
            for place, task in enumerate(tasks_of(params))
        ),
    )


def _artifacts(
    params: Params, bags: Bags, rows: Rows, found: Scored, scratch: Path
) -> dict[str, Path]:
    """The attention of every test bag, and a picture of a few."""
    labels = np.array([task.label for task in tasks_of(params)] + ["genuine"])
    table, picture = scratch / "attention.npz", scratch / "attention.svg"
    np.savez(
        table,
        name=np.array(rows.names),
        task=labels[bags.task],  # -1, a genuine bag's, is the last
        score=found.score,
        attention=found.attention,
        foreign=bags.foreign,
    )
    largest = tasks_of(params)[-1].label
    kinds = {"genuine": "genuine", f"mixed, ratio {largest}": f"mixed/{largest}"}
    draw(picture, [_shown(title, prefix, bags, rows, found) for title, prefix in kinds.items()])
    return {"attention.npz": table, "attention.svg": picture}


def _shown(title: str, prefix: str, bags: Bags, rows: Rows, found: Scored) -> Shown:
    """Bags of a kind from the highest score to the lowest, evenly spaced: none is picked."""
    places = np.array([n for n, name in enumerate(rows.names) if name.startswith(f"{prefix}/")])
    ordered = places[np.argsort(-found.score[places], kind="stable")]
    some = np.linspace(0, len(ordered) - 1, min(_SHOWN, len(ordered))).round().astype(np.intp)
    chosen = ordered[some]
    return Shown(
        title=title,
        of=len(places),
        names=tuple(rows.names[bag].removeprefix(f"{prefix}/") for bag in chosen),
        score=found.score[chosen],
        attention=found.attention[chosen],
        foreign=np.asarray(bags.foreign[chosen]),
    )
