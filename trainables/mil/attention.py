"""Attention over the instances of a bag: the network, its training, and a threshold.

An instance is the mean of its words' embeddings. The network projects the instances of a bag,
weighs them by attention, softmax(w . tanh(V h)) over the bag (Ilse, Tomczak, Welling, ICML 2018),
and classifies their weighted sum; its logit is the bag's score.

Training is a function of parameters, bags, embeddings and seed. It runs on one CPU thread, which is
enough for so small a network, so its bits do not depend on how many a trial is lent. The order of
the bags and what is dropped are functions of seed and epoch, so a checkpoint keeps no generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hdsweep.method import Diverged, TrialContext
from hdsweep.roc import auroc, roc
from trainables.encoders.threads import one_thread
from trainables.mil import MilParams, Rule
from trainables.mil.bags import Bags

_STATE_FILE = "state.pt"
_STARTS, _ORDERS, _DROPS = range(3)  # streams of a seed
_CHUNK = 512  # bags scored at once

Floats = NDArray[np.float32]


class AttentionNet(nn.Module):
    """What tells mixed bags from genuine ones.

    Args:
        params: Its widths.
        dimension: Of an instance.
    """

    def __init__(self, params: MilParams, dimension: int) -> None:
        super().__init__()
        hidden, inner = params.hidden, params.classifier_hidden
        self._centre = params.centre
        self.project = nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU())
        self.drop = nn.Dropout(params.mil_dropout)
        self.attend = nn.Sequential(
            nn.Linear(hidden, params.attention),
            nn.Tanh(),
            nn.Linear(params.attention, 1, bias=False),
        )
        self.classify: nn.Module = nn.Linear(hidden, 1)
        if inner:
            self.classify = nn.Sequential(nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, 1))

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Look at bags.

        Args:
            instances: Shape (bags, block, dimension).

        Returns:
            Logits, shape (bags,), and attention, shape (bags, block), which sums to 1 in each bag.
        """
        if self._centre == "bag":
            instances = instances - instances.mean(dim=1, keepdim=True)
        projected = self.drop(self.project(instances))
        attention = torch.softmax(self.attend(projected).squeeze(2), dim=1)
        whole = (attention.unsqueeze(1) @ projected).squeeze(1)
        return self.classify(whole).squeeze(1), attention


@dataclass(frozen=True, slots=True)
class Seen:
    """The bags of a split with the embeddings that they point into.

    Args:
        embeddings: Shape (words, dimension), mapped or not.
        bags: Rows of it.
        device: Where instances are wanted.
    """

    embeddings: Floats
    bags: Bags
    device: torch.device

    def instances(self, rows: NDArray[np.int64] | slice) -> Tensor:
        """Means of the words of some bags' instances, shape (rows, block, dimension)."""
        found = self.embeddings[self.bags.words[rows]].mean(axis=2, dtype=np.float32)
        return torch.from_numpy(found).to(self.device)


@dataclass(frozen=True, slots=True)
class Scored:
    """What the network says of bags.

    Args:
        score: Shape (bags,), logits, larger means mixed.
        attention: Shape (bags, block).
    """

    score: NDArray[np.float64]
    attention: Floats


@dataclass(slots=True)
class _Best:
    """The epoch that is kept: of the largest validation AUROC, the first of several.

    Args:
        epoch: From 1.
        auroc: Of the validation bags.
        weights: Of the network.
    """

    epoch: int
    auroc: float
    weights: dict[str, Tensor]


class Training:
    """Training of the network, epoch by epoch.

    Args:
        params: Knobs.
        train: Bags to learn from.
        validation: Bags by which the best epoch is chosen and training is ended.
        context: Lends seed, checkpoints and the curve.
    """

    def __init__(
        self, params: MilParams, train: Seen, validation: Seen, context: TrialContext
    ) -> None:
        self._params, self._context = params, context
        self._train, self._validation = train, validation
        labels = train.bags.is_mixed
        self._classes = [np.flatnonzero(labels == label) for label in (False, True)]
        torch.manual_seed(self._seed(_STARTS))
        self.net = AttentionNet(params, train.embeddings.shape[1]).to(train.device)
        self._optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=params.lr, weight_decay=params.weight_decay
        )
        self._best = _Best(0, -math.inf, {})

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights the network has after ``run``."""
        return self._best.epoch

    @property
    def validation_auroc(self) -> float:
        """That of the best epoch."""
        return self._best.auroc

    def run(self) -> AttentionNet:
        """Train from the last checkpoint, or the start, to the end.

        Returns:
            The network of the best epoch, in evaluation mode.

        Raises:
            Diverged: The loss, the gradient or a score became NaN or infinite.
        """
        done = 0
        folder = self._context.resume()
        if folder is not None:
            done = self._restore(folder)
            self._context.log.info("continuing after epoch %d", done)
        with one_thread():
            for epoch in range(done + 1, self._params.epochs + 1):
                if epoch - 1 - self._best.epoch >= self._params.patience:
                    self._context.log.info("no better epoch in %d, so training ends", epoch - 1)
                    break
                self._epoch(epoch)
                self._context.checkpoint(epoch, partial(self._save, epoch=epoch))
        self.net.load_state_dict(self._best.weights)
        self._context.log.info(
            "epoch %d is kept, of validation AUROC %.4f", self._best.epoch, self._best.auroc
        )
        return self.net.eval()

    def _epoch(self, epoch: int) -> None:
        torch.manual_seed(self._seed(_DROPS, epoch))
        self.net.train()
        seen = []
        for batch in self._batches(epoch):
            logit, _ = self.net(self._train.instances(batch))
            label = torch.from_numpy(self._train.bags.is_mixed[batch]).to(logit)
            loss = binary_cross_entropy_with_logits(logit, label)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
            unfit = torch.stack([(~torch.isfinite(g)).sum() for g in gradients]).sum()
            norm = nn.utils.get_total_norm(gradients)
            seen.append(torch.stack([loss.detach(), norm, unfit.to(norm)]))
            self._optimizer.step()
        losses, norms, counts = (
            torch.stack(seen).double().cpu().unbind(dim=1)
        )  # one wait for the GPU
        point = {
            "loss": float(losses.mean()),
            "val_auroc": math.nan,
            "lr": float(self._optimizer.param_groups[0]["lr"]),
            "grad/total_norm": float(norms.max()),
            "grad/nan_count": float(counts.sum()),
        }
        score = score_bags(self.net, self._validation).score
        what = {"loss": losses, "gradient norm": norms, "validation score": torch.from_numpy(score)}
        odd = next((name for name, values in what.items() if not values.isfinite().all()), None)
        if odd is None:
            point["val_auroc"] = auroc(self._validation.bags.is_mixed, score)
        self._context.report(epoch, point)
        if odd is not None:
            raise Diverged(epoch, odd)
        if point["val_auroc"] > self._best.auroc:
            weights = {name: value.clone() for name, value in self.net.state_dict().items()}
            self._best = _Best(epoch, point["val_auroc"], weights)

    def _batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Bags of an epoch's steps, half genuine and half mixed.

        It ends when each bag of the larger class was seen once; the smaller starts over.
        """
        stream = np.random.SeedSequence(self._context.seed, spawn_key=(_ORDERS, epoch))
        rng = np.random.default_rng(stream)
        longest = max(len(rows) for rows in self._classes)
        orders = []
        for rows in self._classes:
            rounds = [rng.permutation(rows) for _ in range(-(-longest // len(rows)))]
            orders.append(np.concatenate(rounds)[:longest])
        half = self._params.batch_size // 2
        for start in range(0, longest, half):
            yield np.concatenate([order[start : start + half] for order in orders])

    def _seed(self, *key: int) -> int:
        stream = np.random.SeedSequence(self._context.seed, spawn_key=key)
        return int(stream.generate_state(1)[0])

    def _save(self, folder: Path, *, epoch: int) -> None:
        state: dict[str, Any] = {
            "epoch": epoch,
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_epoch": self._best.epoch,
            "best_auroc": self._best.auroc,
            "best": self._best.weights,
        }
        torch.save(state, folder / _STATE_FILE)

    def _restore(self, folder: Path) -> int:
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = _Best(state["best_epoch"], state["best_auroc"], state["best"])
        return int(state["epoch"])


def score_bags(net: AttentionNet, seen: Seen) -> Scored:
    """Score the bags of a split, in their order; the network is left in evaluation mode."""
    net.eval()
    scores, attentions = [], []
    with torch.inference_mode(), one_thread():
        for start in range(0, len(seen.bags), _CHUNK):
            logit, attention = net(seen.instances(slice(start, start + _CHUNK)))
            scores.append(logit.double().cpu().numpy())
            attentions.append(attention.cpu().numpy())
    return Scored(np.concatenate(scores), np.concatenate(attentions))


def threshold_of(is_mixed: NDArray[np.bool_], score: NDArray[np.float64], rule: Rule) -> float:
    """The score from which on bags are called mixed: the strictest of those that do best.

    Args:
        is_mixed: Shape (n,), of both classes.
        score: Shape (n,), finite.
        rule: ``g_mean``, the largest geometric mean of the true-positive and the true-negative
            rate; or ``f1``, the largest F1.
    """
    curve = roc(is_mixed, score)
    tp, fp = curve.true_positives, curve.false_positives
    # Of the geometric mean its square, times what does not depend on the threshold.
    g_mean, f1 = tp * (curve.normal - fp), 2 * tp / (tp + fp + curve.anomalous)
    gain = g_mean if rule == "g_mean" else f1
    return float(curve.threshold[1:][np.argmax(gain[1:])])  # the first, infinity, calls none
