"""How much each drawn knob matters for what is sought, by an evaluator that is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hdsweep.errors import first_line
from hdsweep.knobs import Drawn
from hdsweep.search.history import Asked, Told, paired
from hdsweep.strategy import Search

Evaluator = Literal["ped_anova", "fanova"]

# PED-ANOVA compares the best tenth with all: of fewer, that tenth is one configuration.
FEWEST = 20


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the knobs in the variation of an objective.

    Args:
        evaluator: By which method; different ones may disagree widely.
        values: Knob -> share, largest first; they sum to 1. Empty where there is a ``reason``.
        trials: Complete configurations that it rests on.
        reason: Why nothing can be said, in words.
    """

    evaluator: Evaluator
    values: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0
    reason: str = ""


def importance(
    space: Mapping[str, Drawn],
    search: Search,
    history: Iterable[Asked | Told],
    evaluator: Evaluator = "ped_anova",
    objective: int = 0,
) -> Importance:
    """Which knobs mattered.

    Args:
        space: Drawn knobs, each after those that it depends on.
        search: Whose objectives were sought.
        history: What was asked and told; configurations that do not fit the space do not count.
        evaluator: ``ped_anova`` says what sets the best tenth apart and knows knobs that do not
            always apply; ``fanova`` says what explains the values, of knobs that always apply.
        objective: Which one, those to maximize first.
    """
    import optuna

    from hdsweep.search import draws

    fitting = draws.Space(space, search)
    trials = []
    for asked, told in paired(history).values():
        if told is not None and told.state == "complete":
            value = told.values[objective]
            try:
                trials.append(fitting.trial(asked, Told(asked.number, "complete", (value,))))
            except ValueError:
                continue
    count = len(trials)
    if count < FEWEST:
        return Importance(
            evaluator, trials=count, reason=f"{count} complete configurations; it takes {FEWEST}"
        )
    if len({trial.value for trial in trials}) == 1:
        return Importance(
            evaluator, trials=count, reason="all configurations have one and the same value"
        )
    with draws.quiet():
        study = optuna.create_study(direction=draws.directions(search)[objective])
        study.add_trials(trials)
        try:
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator()
                if evaluator == "ped_anova"
                else optuna.importance.FanovaImportanceEvaluator(seed=search.seed),
            )
        except RuntimeError as error:  # fANOVA, when its trees find nothing to split
            return Importance(evaluator, trials=count, reason=first_line(str(error)))
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return Importance(evaluator, {name: float(share) for name, share in ranked}, count)
