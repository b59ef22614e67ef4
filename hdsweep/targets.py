"""What a sweep's decisions are made by: metrics with a direction, resolved from the file.

The search's objectives and constraints, the race's metric, that of the choice, and what a stopping
rule watches. What no trial can report is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hdsweep.configure import Checked, Open
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.knobs import Arm
from hdsweep.method import load_method
from hdsweep.metrics import METRICS, POOLED, Metric, parse_metric
from hdsweep.spec import SweepSpec
from hdsweep.strategy import Mode, criterion
from hdsweep.yamlfile import Where


@dataclass(frozen=True, slots=True)
class Target:
    """A metric of a trial, and what is good.

    Args:
        metric: With its group.
        larger_is_better: Its direction.
        bound: Of a constraint: the value that is just allowed.
        where: In the file.
    """

    metric: Metric
    larger_is_better: bool
    where: Where
    bound: float | None = None

    @property
    def text(self) -> str:
        """As in ``latency_ms``, and ``latency_ms <= 20`` of a constraint."""
        if self.bound is None:
            return self.metric.text
        return f"{self.metric.text} {'>=' if self.larger_is_better else '<='} {self.bound:g}"

    def excess(self, value: float) -> float:
        """How far a value is beyond the bound; up to 0 is allowed."""
        if self.bound is None:
            raise ValueError(f"{self.text} is no constraint")
        return self.bound - value if self.larger_is_better else value - self.bound


@dataclass(frozen=True, slots=True)
class Targets:
    """All of a sweep's.

    Args:
        sought: Objectives of its search.
        constraints: Of its search.
        raced: What its race compares.
        chosen_by: What configurations are chosen by, where others seeds confirm.
        watched: Whether large values are good of what the stopping rule watches; None without.
    """

    sought: tuple[Target, ...] = ()
    constraints: tuple[Target, ...] = ()
    raced: Target | None = None
    chosen_by: tuple[Target, ...] = ()
    watched: bool | None = None

    @property
    def all(self) -> tuple[Target, ...]:
        """Each once, in a fixed order."""
        raced = () if self.raced is None else (self.raced,)
        return tuple(dict.fromkeys((*self.sought, *self.constraints, *raced, *self.chosen_by)))

    def direction(self, metric: Metric) -> bool | None:
        """Whether large values are good, by definition or as the sweep says; None if unknown."""
        if metric.definition is not None:
            return metric.definition.larger_is_better
        return next((one.larger_is_better for one in self.all if one.metric == metric), None)


def resolve(spec: SweepSpec) -> Targets:
    """Read every metric that decides something.

    Raises:
        SpecError: Unknown, without a direction, or reported by none; with its line.
    """
    sought: list[Target] = []
    constraints: list[Target] = []
    search = spec.search
    if search is not None:
        arms = [arm for arm in spec.arms if arm.draws()]
        for block, larger in (("maximize", True), ("minimize", False)):
            for n, text in enumerate(getattr(search, block)):
                where = _place(spec, ("search", block), n)
                sought.append(Target(_metric(spec, text, where, arms), larger, where))
        for n, text in enumerate(search.constraints):
            where = _place(spec, ("search", "constraints"), n)
            parts = criterion(text)
            if parts is None:
                raise spec.source.error(
                    where, f"'{text}' is not a constraint; write it as 'latency_ms <= 20'"
                )
            metric = _metric(spec, parts.metric, where, arms)
            constraints.append(Target(metric, parts.at_least, where, parts.bound))
        _refuse_twice(spec, sought)
    raced = None
    if spec.race is not None:
        raced = _directed(spec, spec.race.metric, spec.race.mode, ("race", "metric"))
    return Targets(
        tuple(sought),
        tuple(constraints),
        raced,
        _choice(spec, tuple(sought), raced),
        _watched(spec),
    )


def _refuse_twice(spec: SweepSpec, sought: Sequence[Target]) -> None:
    """A metric has more than one spelling."""
    for n, target in enumerate(sought):
        if target.metric in [one.metric for one in sought[:n]]:
            raise spec.source.error(
                target.where, f"objective '{target.text}' is listed twice; remove one"
            )


def _choice(
    spec: SweepSpec, sought: tuple[Target, ...], raced: Target | None
) -> tuple[Target, ...]:
    confirmed = spec.confirmed
    if confirmed is None:
        return ()
    if confirmed.by is not None:
        return (_directed(spec, confirmed.by, confirmed.mode, ("seeds", "by")),)
    decided = sought or (() if raced is None else (raced,))
    if decided:
        what = " and ".join(target.text for target in decided)
        if confirmed.mode is not None:
            raise spec.source.error(
                ("seeds", "mode"), f"the choice is by {what}, which has a direction; remove mode"
            )
        if len(decided) > 1 and confirmed.top > 1:
            raise spec.source.error(
                ("seeds", "top"),
                f"by {what}, all that no other one betters are confirmed; remove top, or choose by "
                "one metric",
            )
        return decided
    return (_directed(spec, spec.report.metrics[0], confirmed.mode, ("report", "metrics", 0)),)


def _directed(spec: SweepSpec, text: str, mode: Mode | None, where: Where) -> Target:
    metric = _metric(spec, text, where, spec.arms)
    known = metric.definition.larger_is_better if metric.definition else None
    if mode is None and known is None:
        raise spec.source.error(
            where,
            f"say whether large or small values of '{text}' are good: mode: max, or mode: min",
        )
    return Target(metric, mode == "max" if mode else bool(known), where)


def _metric(spec: SweepSpec, text: str, where: Where, arms: Sequence[Arm]) -> Metric:
    """A metric that every one of the arms has."""
    for arm in arms:
        try:
            found = parse_metric(text, load_method(arm.method).scalars)
        except SpecError as error:
            of = f" (of method {arm.method})" if len({a.method for a in arms}) > 1 else ""
            raise spec.source.error(where, f"{error}{of}") from None
    if found.group == POOLED and found.definition and found.definition.pixel:
        raise spec.source.error(where, f"'{text}' is never reported: pixel metrics are not pooled")
    return found


def _place(spec: SweepSpec, block: Where, n: int) -> Where:
    """Of an entry of a list, or of the one value that stands in its place."""
    return (*block, n) if (*block, n) in spec.source.lines else block


def watches(spec: SweepSpec, arm: str) -> bool:
    """Whether the stopping rule applies to an arm: its method reports what is watched."""
    if spec.stop is None:
        return False
    method = next(one.method for one in spec.arms if one.name == arm)
    return spec.stop.metric in load_method(method).curve


def require_watched(spec: SweepSpec, checked: Checked) -> None:
    """Refuse a stopping rule that would wait in vain.

    Args:
        spec: The sweep.
        checked: Its configurations.

    Raises:
        SpecError: None of them reports what the rule watches.
    """
    stop = spec.stop
    if stop is None:
        return
    for one in checked:
        method = load_method(one.method)
        tried = one.tried if isinstance(one, Open) else (method.params.model_validate(one.params),)
        if stop.metric in method.curve and any(
            stop.metric not in method.unreported(params) for params in tried
        ):
            return
    raise spec.source.error(
        ("stop", "metric"),
        f"no configuration reports '{stop.metric}' as it stands; see the parameters of its method, "
        "or watch another metric",
    )


def _watched(spec: SweepSpec) -> bool | None:
    stop = spec.stop
    if stop is None:
        return None
    where: Where = ("stop", "metric")
    if not any(watches(spec, arm.name) for arm in spec.arms):
        names: Collection[str] = {n for arm in spec.arms for n in load_method(arm.method).curve}
        what = did_you_mean(stop.metric, names) if names else "; it reports none while it runs"
        methods = ", ".join(sorted({arm.method for arm in spec.arms}))
        raise spec.source.error(
            where, f"method {methods} reports no curve of '{stop.metric}'{what}"
        )
    if stop.mode is not None:
        return stop.mode == "max"
    name = stop.metric.rpartition("/")[2].removeprefix("val_")
    if name in METRICS and METRICS[name].larger_is_better is not None:
        return METRICS[name].larger_is_better
    raise spec.source.error(
        where,
        f"say whether large or small values of '{stop.metric}' are good: mode: max, or mode: min",
    )


def non_dominated(values: Mapping[int, Sequence[float]], larger: Sequence[bool]) -> list[int]:
    """The Pareto front: those that no other equals or betters in everything and betters in one.

    Args:
        values: By name, one per objective, finite.
        larger: Of each objective, whether large values are good.
    """
    signed = {
        n: [v if up else -v for v, up in zip(found, larger, strict=True)]
        for n, found in values.items()
    }

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    return [
        n for n, own in signed.items() if not any(beats(other, own) for other in signed.values())
    ]
