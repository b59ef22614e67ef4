"""What names the work on memory banks that trials share; planning asks for it: no torch here.

Greedy selection is nested: the bank of 1 % is the start of the bank of 10 % of the same seed. So
the order in which patches are chosen is kept, cut into rungs of a ladder, each of which goes on
where the one below ends: one greedy run serves every ratio, and none runs further than asked.
"""

from __future__ import annotations

from hdsweep.method import Data, Stage
from trainables.bank import BankParams
from trainables.encoders.stages import features_stage

LADDER = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)  # percent; published ratios

_CODE = "trainables.bank"
_ORDER_VERSION = 1
_BANK_VERSION = 1


def order_stage(params: BankParams, data: Data, sources: tuple[str, ...], seed: int) -> Stage:
    """The order in which patches of some groups are chosen, up to a rung of the ladder."""
    return _rung(params, data, sources, seed, rung_of(params.coreset_percent))


def rung_of(percent: float) -> int:
    """Position in LADDER of the first rung that holds so many percent."""
    return next(n for n, top in enumerate(LADDER) if percent <= top)


def _rung(params: BankParams, data: Data, sources: tuple[str, ...], seed: int, rung: int) -> Stage:
    features = tuple(features_stage(params, data, "train", group) for group in sources)
    below = (_rung(params, data, sources, seed, rung - 1),) if rung else ()
    inputs = {
        "features": [dict(stage.inputs) for stage in features],
        "coreset": params.coreset,
        "percent": LADDER[rung],
        "seed": seed,
    }
    return Stage("coreset", _ORDER_VERSION, inputs, _CODE, (*features, *below))


def bank_stage(params: BankParams, data: Data, sources: tuple[str, ...], seed: int) -> Stage:
    """The vectors of a bank."""
    order = order_stage(params, data, sources, seed)
    features = tuple(features_stage(params, data, "train", group) for group in sources)
    inputs = {
        "features": [dict(stage.inputs) for stage in features],
        "coreset": params.coreset,
        "coreset_percent": params.coreset_percent,
        "seed": seed,
    }
    needs = features if params.coreset == "random" else (order, *features)
    return Stage("bank", _BANK_VERSION, inputs, _CODE, needs)
