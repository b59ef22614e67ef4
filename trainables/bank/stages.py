"""What names the work on memory banks that trials share; planning asks for it: no torch here.

Greedy selection is nested: the bank of 1 % is the start of the bank of 10 % of the same seed. So
the order in which patches are chosen is kept, cut into rungs of a ladder, each of which goes on
where the one below ends: one greedy run serves every ratio, and runs little further than asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from hdsweep.method import Data, Stage
from trainables.bank import BankParams
from trainables.encoders.patches import PatchParams
from trainables.encoders.stages import features_stage

LADDER = (0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0)  # percent; the published ratios

_CODE = "trainables.bank"
_ORDER_VERSION = 1
_BANK_VERSION = 1


def rung_of(percent: float) -> int:
    """Position in LADDER of the first rung that holds so many percent."""
    return next(n for n, top in enumerate(LADDER) if percent <= top)


def order_stage(params: BankParams, data: Data, sources: tuple[str, ...], seed: int) -> Stage:
    """The greedy order in which patches of some groups are chosen, as far as ``params`` asks."""
    return rung_stages(params, data, sources, seed)[-1]


def rung_stages(
    params: BankParams, data: Data, sources: tuple[str, ...], seed: int
) -> tuple[Stage, ...]:
    """The rungs of the ladder up to the one that ``params`` asks for, the lowest first."""
    return _rungs(params, _features(params, data, sources), seed)


def bank_stage(params: BankParams, data: Data, sources: tuple[str, ...], seed: int) -> Stage:
    """The vectors of a bank."""
    features = _features(params, data, sources)
    order = () if params.coreset == "random" else _rungs(params, features, seed)[-1:]
    inputs = _chosen_from(params, features, seed) | {"coreset_percent": params.coreset_percent}
    stages = tuple(one.stage for one in features)
    return Stage("bank", _BANK_VERSION, inputs, _CODE, (*stages, *order))


@dataclass(frozen=True, slots=True)
class _Named:
    """Features of a group's training images.

    Args:
        stage: Of them.
        name: A digest that says in few characters what the stage's inputs say in many.
    """

    stage: Stage
    name: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What features are asked for, told apart by what they depend on: a plan asks very often.

    Args:
        params: Of the encoder, more besides.
        data: The items; those in memory, not their content, tell one from another.
        content: All that determines features of given images.
        place: Of ``data`` in memory, where this keeps it.
    """

    params: PatchParams = field(compare=False)
    data: Data = field(compare=False)
    content: str
    place: int


@lru_cache(maxsize=512)
def _named(asked: _Asked, group: str) -> _Named:
    stage = features_stage(asked.params, asked.data, "train", group)
    return _Named(stage, _digest([stage.version, stage.inputs]))


def _features(params: BankParams, data: Data, sources: tuple[str, ...]) -> tuple[_Named, ...]:
    everything = params.identity()
    content = _digest({name: everything[name] for name in PatchParams.model_fields})
    asked = _Asked(params, data, content, id(data))
    return tuple(_named(asked, group) for group in sources)


def _rungs(params: BankParams, features: Sequence[_Named], seed: int) -> tuple[Stage, ...]:
    inputs = _chosen_from(params, features, seed)
    stages = tuple(one.stage for one in features)
    found: tuple[Stage, ...] = ()
    for percent in LADDER[: rung_of(params.coreset_percent) + 1]:
        needs = (*stages, *found[-1:])
        stage = Stage("coreset", _ORDER_VERSION, inputs | {"percent": percent}, _CODE, needs)
        found = (*found, stage)
    return found


def _chosen_from(params: BankParams, features: Sequence[_Named], seed: int) -> dict[str, object]:
    return {
        "encoder": params.encoder,  # these two for people; the digest says them too
        "groups": [one.stage.inputs["group"] for one in features],
        "features": _digest([one.name for one in features]),
        "coreset": params.coreset,
        "seed": seed,
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
