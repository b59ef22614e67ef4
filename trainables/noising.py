"""Propose Noising: which features make a patch far from the normal ones, and how far?

Through the same memory bank as PatchCore, each test patch x is described by three numbers:

- its *distance*: the mean Euclidean distance to its k nearest vectors m_1 ... m_k of the bank;
- its *influence*: how strongly single features drive that distance. The derivative of the distance
  with respect to x is mean_k (x - m_k) / ||x - m_k||; its absolute value is the influence of each
  feature, and the mean over the ``influence_ratio`` most influential ones that of the patch;
- the *noise* it would be proposed: a standard deviation that grows from the lower to the upper end
  of ``noise_std_range`` with the mean of the two.

Distance and influence are brought to a common scale by their 5 % and 95 % quantiles over normal
training patches, each compared with the bank without itself, so that an image's score does not
depend on its neighbours in a batch. The score is the weighted sum of the three, the noise on its
range; an image's is that of its largest patch. Where the users' description is silent (the mean
over the most influential features, the quantiles, the mean of two in the noise), the definition is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hdsweep.method import Data, Method, Outcome, Predictions, Stage, TrialContext
from trainables import bank as banks
from trainables.bank import BankParams
from trainables.bank.stages import bank_stage, order_stage
from trainables.encoders.stages import Split, features_stage, items_of

if TYPE_CHECKING:
    from trainables.bank.memory import Bank

_NORMAL = 4096  # training patches that scales are fitted on
_LOW, _HIGH = 0.05, 0.95  # quantiles that become 0 and 1
_DIFFERENCES = 2**24  # of patches to their neighbours, feature by feature, in memory at once
_IMAGES = 16

Floats = NDArray[np.float32]


class Params(BankParams):
    """Knobs of Propose Noising, those of its encoder and of its bank among them.

    Args:
        n_neighbors: Vectors of the bank that a patch is compared with.
        influence_ratio: Share of the features, the most influential ones, whose mean influence is
            the patch's.
        noise_std_range: Standard deviation of the proposed noise, for the most normal and for the
            least normal patch. It is told (``noise_std_mean``); the score has the noise's place in
            the range, which does not depend on it.
        influence_weight: Of the influence in the score.
        distance_weight: Of the distance.
        noise_weight: Of the noise.
    """

    n_neighbors: int = Field(9, ge=1, le=1000)
    influence_ratio: float = Field(0.1, gt=0, le=1)
    noise_std_range: tuple[float, float] = (0.01, 0.5)
    influence_weight: float = Field(0.4, ge=0, le=1)
    distance_weight: float = Field(0.4, ge=0, le=1)
    noise_weight: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        low, high = self.noise_std_range
        if not 0 <= low < high:
            raise ValueError(
                f"noise_std_range goes from {low:g} to {high:g}; write a smaller number, not below "
                "0, and a larger one"
            )
        if self.influence_weight + self.distance_weight + self.noise_weight == 0:
            raise ValueError("all three weights are 0, so every score would be; raise one")
        return self


@dataclass(frozen=True, slots=True)
class Scale:
    """What 0 and 1 stand for.

    Args:
        low: The value that becomes 0.
        high: The value that becomes 1.
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> Scale:
        """From the 5 % to the 95 % quantile of ``values``."""
        low, high = np.quantile(values.astype(np.float64), [_LOW, _HIGH])
        return cls(float(low), float(high))

    def __call__(self, values: Floats) -> Floats:
        """Values on this scale; not clipped, for what is beyond it is the question."""
        width = self.high - self.low
        return ((values - self.low) / (width if width > 0 else 1.0)).astype(np.float32)


def influence(patches: Floats, neighbours: Floats) -> Floats:
    """How much each feature of a patch drives its mean distance to its neighbours.

    Args:
        patches: Shape (n, d).
        neighbours: Shape (n, k, d).

    Returns:
        |mean_k (x - m_k) / ||x - m_k|||, shape (n, d), each at most 1; a neighbour that is equal to
        the patch has no direction and counts as 0.
    """
    away = patches[:, None].astype(np.float32) - neighbours
    length = np.linalg.norm(away, axis=2, keepdims=True)
    direction = np.divide(away, length, out=np.zeros_like(away), where=length > 0)
    found: Floats = np.abs(direction.mean(axis=1))
    return found


def most(values: Floats, ratio: float) -> Floats:
    """Mean of the largest ``ratio`` of each row's values, at least of one; shape (rows,)."""
    count = max(1, round(values.shape[1] * ratio))
    largest = np.partition(values, values.shape[1] - count, axis=1)[:, -count:]
    found: Floats = largest.mean(axis=1)
    return found


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """Features of the test images, and the banks.

    The scales need the training images' features and a bank's order even where the bank is there.
    """
    groups, each = banks.tested(data), banks.one_per_bank(params, data)
    greedy = params.coreset != "random"
    return [
        *(features_stage(params, data, "test", group) for group in groups),
        *(features_stage(params, data, "train", one) for one in _sources(params, data)),
        *(order_stage(params, data, one, seed) for one in each if greedy),
        *(bank_stage(params, data, one, seed) for one in each),
    ]


def _sources(params: Params, data: Data) -> Sequence[str]:
    """Groups whose training images fill a bank."""
    each = banks.one_per_bank(params, data)
    return tuple(dict.fromkeys(source for of_bank in each for source in of_bank))


def infeasible(params: Params, data: Data) -> str | None:
    """Why these data cannot support such a bank; None where they can."""
    found = banks.infeasible(params, data)
    for group in banks.tested(data) if found is None else ():
        vectors = params.vectors(data, group)
        if vectors is not None and vectors <= params.n_neighbors:
            return (
                f"the bank of '{group}' would hold {vectors} vectors, and n_neighbors asks for "
                f"{params.n_neighbors} beside the one that is compared; raise coreset_percent, or "
                "lower n_neighbors"
            )
    return found


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Fill the bank, fit the scales on normal patches, and score the test items."""
    from trainables.bank.maps import drawn
    from trainables.bank.memory import Bank
    from trainables.encoders.features import PatchFeatures

    groups = banks.tested(data)
    features = PatchFeatures(params, data, context)
    bank = Bank(params, data, features, context.seed, context)
    wanted: list[tuple[Split, str]] = [("test", group) for group in groups]
    wanted += [("train", source) for source in _sources(params, data)]
    features.prepare(wanted)
    bank.prepare(groups)
    rows, columns = features.grid
    score = np.empty(len(data.test), dtype=np.float64)
    shown = np.empty((len(data.test), rows, columns), dtype=np.float16)
    place = {item.name: row for row, item in enumerate(data.test)}
    stds = []
    with drawn(params, data, features.grid, context) as (maps, keep):
        for group in groups:
            proposer = Proposer(params, bank, group, context)
            at = [place[item.name] for item in items_of(data, "test", group)]
            stored = features.of("test", group)
            for start in range(0, len(at), _IMAGES):
                some = stored[start : start + _IMAGES]
                chunk = at[start : start + len(some)]
                found = proposer.propose(some.reshape(-1, some.shape[-1]))
                of_patches = found.score.reshape(len(some), -1)
                score[chunk] = of_patches.max(axis=1)
                shown[chunk] = found.influence.reshape(len(some), rows, columns)
                stds.append(found.noise_std)
                keep(chunk, of_patches)
    path = context.scratch / "influence.npy"
    np.save(path, shown)
    return Outcome(
        predictions=Predictions.of(data.test, score),
        scalars={"noise_std_mean": float(np.concatenate(stds).mean(dtype=np.float64))},
        artifacts={"influence.npy": path},
        maps=maps,
    )


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is found of some patches.

    Args:
        influence: Shape (patches,), in [0, 1], before it is scaled.
        noise_std: Shape (patches,), within the range.
        score: Shape (patches,).
    """

    influence: Floats
    noise_std: Floats
    score: Floats


class Proposer:
    """Describes patches by a bank and by how usual ones are described.

    Args:
        params: Knobs.
        bank: Memory banks.
        group: Of the test images.
        context: Lends the device and the log.
    """

    def __init__(self, params: Params, bank: Bank, group: str, context: TrialContext) -> None:
        self._params, self._device = params, context.device
        self._vectors = bank.vectors(group)
        distance, strength = self._normal(bank, group)
        self.distance, self.strength = Scale.of(distance), Scale.of(strength)
        context.log.info("%s: distance %s, influence %s", group, self.distance, self.strength)

    def propose(self, patches: NDArray[Any]) -> Proposal:
        """Influence, noise and score of patches, shape (n, d)."""
        neighbours = self._neighbours(patches, self._params.n_neighbors)
        distance, strength = self._described(patches, neighbours)
        return self._proposal(distance, strength)

    def _proposal(self, distance: Floats, strength: Floats) -> Proposal:
        params, (low, high) = self._params, self._params.noise_std_range
        far, strong = self.distance(distance), self.strength(strength)
        noise = np.clip((far + strong) / 2, 0, 1)
        score = (
            params.influence_weight * strong
            + params.distance_weight * far
            + params.noise_weight * noise
        )
        std = low + (high - low) * noise
        return Proposal(strength, std.astype(np.float32), score.astype(np.float32))

    def _normal(self, bank: Bank, group: str) -> tuple[Floats, Floats]:
        """Distance and influence of training patches, each without itself in the bank."""
        rows, order = bank.rows(group), bank.order(group)
        chosen = np.unique(np.linspace(0, len(rows) - 1, _NORMAL).round().astype(np.int64))
        place = np.full(len(rows), -1, dtype=np.int64)
        place[order] = np.arange(len(order))
        patches = rows.take(chosen)
        found = self._neighbours(patches, self._params.n_neighbors + 1)
        itself = found == place[chosen][:, None]
        itself[~itself.any(axis=1), -1] = True  # of one that is not in the bank, drop the farthest
        others = found[~itself].reshape(len(chosen), -1)
        return self._described(patches, others)

    def _neighbours(self, patches: NDArray[Any], k: int) -> NDArray[np.int64]:
        from trainables.bank.neighbours import nearest

        return nearest(patches, self._vectors, k, device=self._device)[1]

    def _described(
        self, patches: NDArray[Any], neighbours: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """Mean distance and influence, each of shape (patches,), in bounded memory."""
        distance, strength = [], []
        block = max(1, _DIFFERENCES // (neighbours.shape[1] * self._vectors.shape[1]))
        for start in range(0, len(patches), block):
            some = np.asarray(patches[start : start + block], dtype=np.float32)
            around = self._vectors[neighbours[start : start + block]]
            length = np.linalg.norm(some[:, None] - around, axis=2)
            distance.append(length.mean(axis=1))
            strength.append(most(influence(some, around), self._params.influence_ratio))
        return np.concatenate(distance), np.concatenate(strength)


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="Propose Noising, on PatchCore's memory bank (arXiv:2106.08265)",
    scalars=("noise_std_mean",),
    stages=stages,
    infeasible=infeasible,
)
