"""How a sweep decides what to run: blocks ``search``, ``stop`` and ``race`` of the file, and seeds.

Typed and checked as far as that goes without knowing methods and data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from hdsweep.errors import did_you_mean
from hdsweep.strict import Strict

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Sampler = Literal["random", "tpe", "gp", "cmaes", "nsga2"]
Aggregate = Literal["mean", "median", "worst", "lower_bound"]
Rule = Literal["asha", "hyperband", "median", "patience"]
Mode = Literal["max", "min"]


def _one_of(what: str, names: Sequence[str]) -> BeforeValidator:
    """Suggests the nearest name in place of an unknown one."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise ValueError(f"unknown {what} '{value}'{did_you_mean(value, names)}")
        return value

    return BeforeValidator(check)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS]}),
]
"""One, or a list of them."""


class Search(Strict):
    """Draws the knobs that have a distribution, one configuration after another."""

    sampler: Annotated[Sampler, _one_of("sampler", get_args(Sampler))] = Field(
        "tpe", description="Of Optuna: which configuration is tried next"
    )
    trials: int = Field(
        ge=1, le=1_000_000, description="Configurations to try; each is run with every seed"
    )
    budget: Literal["per_cell", "shared"] = Field(
        "per_cell", description="Whether each grid cell has so many trials, or all of them together"
    )
    maximize: Names = Field((), description="Metrics to make large, as in auroc or tpr@1[domain=C]")
    minimize: Names = Field((), description="Metrics to make small, as in latency_ms")
    aggregate: Annotated[Aggregate, _one_of("aggregate", get_args(Aggregate))] = Field(
        "mean", description="What of a configuration's seeds is compared"
    )
    confidence: float = Field(
        0.9, gt=0.5, lt=1, description="Of lower_bound: one-sided, by Student's t over the seeds"
    )
    constraints: Names = Field((), description="As in latency_ms <= 20; of the mean over seeds")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the sampler")
    parallel: int | None = Field(
        None, ge=1, description="Configurations under way at once; 1 makes the search sequential"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the sampler")

    @model_validator(mode="after")
    def _has_an_objective(self) -> Search:
        objectives = (*self.maximize, *self.minimize)
        if not objectives:
            raise ValueError("say what is sought: maximize: auroc, or minimize: latency_ms")
        if len(set(objectives)) < len(objectives):
            raise ValueError("an objective is listed twice; remove one")
        return self

    @model_validator(mode="after")
    def _no_knob_without_effect(self) -> Search:
        if self.aggregate != "lower_bound" and "confidence" in self.model_fields_set:
            raise ValueError(f"aggregate {self.aggregate} does not use confidence; remove it")
        return self


class Stop(Strict):
    """Ends a configuration early that its curve shows to be worse than others."""

    rule: Annotated[Rule, _one_of("rule", get_args(Rule))]
    metric: str = Field(description="Of those that the method reports while it runs")
    mode: Mode | None = Field(None, description="Whether large or small values are good")
    grace: int = Field(1, ge=1, description="Steps that every trial is given")
    reduction: float = Field(
        3, gt=1, description="asha, hyperband: one in so many goes on; rungs grow by this factor"
    )
    brackets: int = Field(3, ge=1, description="hyperband: how many, with a later first rung each")
    interval: int | None = Field(None, ge=1, description="median: steps between looks; grace")
    startup: int = Field(3, ge=1, description="median: configurations to have seen before")
    patience: int | None = Field(None, ge=1, description="patience: steps without improvement")
    min_delta: float = Field(0.0, ge=0, description="patience: what counts as improvement")

    @model_validator(mode="after")
    def _no_knob_without_effect(self) -> Stop:
        for name, rules in _OF_RULES.items():
            if self.rule not in rules and getattr(self, name) != _default(name):
                raise ValueError(f"rule {self.rule} does not use {name}; remove it")
        return self

    @model_validator(mode="after")
    def _says_how_patient(self) -> Stop:
        if self.rule == "patience" and self.patience is None:
            raise ValueError("say how many steps without improvement are endured: patience: 200")
        return self


_OF_RULES: dict[str, tuple[str, ...]] = {
    "reduction": ("asha", "hyperband"),
    "brackets": ("hyperband",),
    "interval": ("median",),
    "startup": ("median",),
    "patience": ("patience",),
    "min_delta": ("patience",),
}
"""Knob -> the rules that use it."""


def _default(name: str) -> Any:
    return Stop.model_fields[name].default


class Race(Strict):
    """Gives no more seeds to configurations that are significantly worse than the best."""

    metric: str = Field(description="As in auroc or tpr@1[domain=C]")
    mode: Mode | None = Field(None, description="Whether large or small values are good")
    looks: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        min_length=1, description="After how many seeds to compare, as in [3, 5, 7]"
    )
    level: float = Field(0.05, gt=0, lt=0.5, description="That the best is dropped, at most")

    @field_validator("looks")
    @classmethod
    def _looks_rise(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in pairwise(looks)):
            raise ValueError("numbers of seeds rise from look to look")
        return looks


class Confirmed(Strict):
    """Seeds to choose on, and others to report on."""

    select: tuple[Seed, ...] = Field(min_length=1)
    confirm: tuple[Seed, ...] = Field(min_length=1)
    by: str | None = Field(None, description="Metric of the choice; by default what is sought")
    mode: Mode | None = Field(None, description="Whether large or small values are good")
    top: int = Field(1, ge=1, description="Configurations of each arm to confirm")


# --- criteria -------------------------------------------------------------------------------------

_CRITERION = re.compile(
    r"^\s*(?P<metric>[^<>=\[\]\s]+(\[[^\[\]]*\])?)\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?P<bound>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)\s*$"
)


@dataclass(frozen=True, slots=True)
class Criterion:
    """A metric and the value that it is to reach.

    Args:
        metric: In the metric grammar.
        at_least: Whether large values are good; the bound itself is, but for ``strict``.
        bound: In the metric's unit.
        strict: Whether the bound itself is not enough.
    """

    metric: str
    at_least: bool
    bound: float
    strict: bool

    def holds(self, value: float) -> bool:
        """Whether a value reaches it."""
        if value == self.bound:
            return not self.strict
        return (value > self.bound) == self.at_least


def criterion(text: str) -> Criterion | None:
    """Read ``auroc >= 0.98``; None when it is not of this form."""
    match = _CRITERION.match(text)
    if match is None:
        return None
    sign, bound = match["sign"], float(match["bound"])
    if not math.isfinite(bound):
        return None
    return Criterion(match["metric"], sign[0] == ">", bound, len(sign) == 1)
