"""Optuna's side of a study: distributions, trials and a sampler that is new for each suggestion.

A sampler holds a random state and what it remembers. Here the state of each suggestion comes from
a seed of its own, so none is lost in a crash, and only what follows from the trials is remembered.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from hdsweep.identity import canonical_json
from hdsweep.knobs import Choice, Drawn, Value, holds
from hdsweep.search.history import Asked, Told
from hdsweep.search.options import CLASSES, arguments
from hdsweep.strategy import Search

Label = str | int | float | bool | None

STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}

# What these samplers draw follows from the trials and what they noted on them, so notes are kept
# and a study is rebuilt by asking again. The others need the trials only.
TAKES_NOTES = ("cmaes", "nsga2")


optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings, which a person who wrote a sweep file cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def directions(search: Search) -> list[StudyDirection]:
    """Of the objectives, in their order."""
    up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    return [up] * len(search.maximize) + [down] * len(search.minimize)


def new_sampler(search: Search, space: Mapping[str, Drawn], seed: int) -> BaseSampler:
    """Optuna's sampler, as the search has it. Raises ValueError when it refuses an option."""
    sampler: BaseSampler
    with quiet():
        kind = getattr(optuna.samplers, CLASSES[search.sampler])
        sampler = kind(seed=seed, **arguments(search, space))
    return sampler


class Space:
    """Drawn knobs and objectives, in Optuna's terms.

    A choice is known to Optuna by a label: its value, or that value's JSON where it is a list or
    where Python takes two of the values for one, as 1 and true.
    """

    def __init__(self, drawn: Mapping[str, Drawn], search: Search) -> None:
        self._drawn = drawn
        # Optuna takes no curve of several objectives.
        self.takes_curves = len(search.maximize) + len(search.minimize) == 1
        self._labels = {
            name: labels(knob) for name, knob in drawn.items() if isinstance(knob, Choice)
        }
        self._distributions = {
            name: _distribution(knob, self._labels.get(name, ())) for name, knob in drawn.items()
        }

    def draw(self, trial: Trial) -> dict[str, Value]:
        """The knobs that apply, as the trial's sampler suggests them."""
        found: dict[str, Value] = {}
        for name, knob in self._drawn.items():
            if holds(knob.when, found):
                found[name] = self._suggested(trial, name, knob)
        return found

    def _suggested(self, trial: Trial, name: str, knob: Drawn) -> Value:
        if isinstance(knob, Choice):
            known = self._labels[name]
            return knob.values[known.index(trial.suggest_categorical(name, known))]
        low, high = knob.ends
        if knob.kind == "int":
            step = int(knob.step or 1)
            return trial.suggest_int(name, int(low), int(high), step=step, log=knob.log)
        return float(trial.suggest_float(name, low, high, step=knob.step, log=knob.log))

    def trial(
        self, asked: Asked, told: Told | None, attributes: Mapping[str, Any] | None = None
    ) -> FrozenTrial:
        """A configuration as a trial to add to a study.

        Args:
            asked: The configuration.
            told: What became of it; None while it runs.
            attributes: To show with it.

        Raises:
            ValueError: Its values are none that could be drawn from this space.
        """
        ended: dict[str, Any] = {}
        curve = told.curve if told is not None and self.takes_curves else {}
        if told is not None and told.state == "complete":
            ended["values"] = list(told.values)
        elif curve:
            ended["value"] = curve[max(curve)]
        if told is not None and told.constraints:
            ended["constraints"] = dict(told.constraints)
        params = self.parameters(asked.knobs)
        return optuna.create_trial(
            state=TrialState.RUNNING if told is None else STATES[told.state],
            params=params,
            distributions={name: self._distributions[name] for name in params},
            user_attrs=dict(attributes or {}),
            intermediate_values=dict(curve),
            **ended,
        )

    def parameters(self, knobs: Mapping[str, Value]) -> dict[str, Label]:
        """A configuration's knobs as Optuna has them.

        Raises:
            ValueError: It lacks a knob that applies, or has one that does not, or a value that is
                not among a choice's.
        """
        applying = [name for name, knob in self._drawn.items() if holds(knob.when, knobs)]
        if set(applying) != set(knobs):
            raise ValueError(f"knobs that apply are {applying}; found {list(knobs)}")
        return {name: self._label(name, self._drawn[name], knobs[name]) for name in applying}

    def _label(self, name: str, knob: Drawn, value: Value) -> Label:
        if isinstance(knob, Choice):
            encoded = canonical_json(value)
            return self._labels[name][[canonical_json(one) for one in knob.values].index(encoded)]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is a number; found {value!r}")
        # A log may hold 2.0 as 2.
        return int(value) if knob.kind == "int" and float(value).is_integer() else float(value)


def labels(knob: Choice) -> tuple[Label, ...]:
    """By which Optuna knows the values of a choice."""
    plain = all(isinstance(value, Label) for value in knob.values)
    if plain and len(set(knob.values)) == len(knob.values):
        return knob.values  # type: ignore[return-value]
    return tuple(canonical_json(value).decode() for value in knob.values)


def _distribution(knob: Drawn, known: Sequence[Label]) -> BaseDistribution:
    if isinstance(knob, Choice):
        return CategoricalDistribution(known)
    low, high = knob.ends
    if knob.kind == "int":
        return IntDistribution(int(low), int(high), log=knob.log, step=int(knob.step or 1))
    return FloatDistribution(low, high, log=knob.log, step=knob.step)


class Memory(InMemoryStorage):
    """Trials in memory, without what a sampler notes on them unless it is to be kept.

    TPE and GP note on a running trial what they drew for it together, the knobs that turn out not
    to apply included. A log does not hold those, so no suggestion may depend on them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.takes_notes = True

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As the storage does, but for notes that are not to be kept."""
        if self.takes_notes:
            super().set_trial_system_attr(trial_id, key, value)


class Reseeded(BaseSampler):
    """Draws each trial with a sampler of its own.

    Args:
        new: A sampler from a seed.
        seed_of: Of a trial's number.
        memory: Of the study.
        notes: Whether the sampler needs what it noted on trials.
        groups: Whether the sampler draws groups of knobs, which it finds anew each time.
    """

    def __init__(
        self,
        new: Callable[[int], BaseSampler],
        seed_of: Callable[[int], int],
        memory: Memory,
        *,
        notes: bool,
        groups: bool,
    ) -> None:
        self._new = new
        self._seed_of = seed_of
        self._memory = memory
        self._notes = notes
        # Which knobs all trials have in common follows from the trials alone, and one sampler
        # that looks at new trials only finds it faster than one that looks at all of them.
        self._scout = None if groups else new(0)
        self._number = -1
        self._sampler: BaseSampler | None = None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Called when a trial begins."""
        del study
        self._number = trial.number
        self._sampler = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The knobs that are drawn together."""
        return (self._scout or self._own()).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of knobs that are drawn together."""
        self._memory.takes_notes = self._notes
        try:
            return self._own().sample_relative(study, trial, search_space)
        finally:
            self._memory.takes_notes = True

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of a knob by itself."""
        return self._own().sample_independent(study, trial, param_name, param_distribution)

    def _own(self) -> BaseSampler:
        if self._sampler is None:
            self._sampler = self._new(self._seed_of(self._number))
        return self._sampler
