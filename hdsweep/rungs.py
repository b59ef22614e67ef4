"""Stopping rules that know seeds: a whole configuration is ended when its curve is worse.

A *rung* is a step at which curves are compared. A configuration's value there is the mean over
those of its seeds that have reached it so far; when a seed reaches it, that mean is compared with
those of the other configurations, and if it is too bad the configuration stops, with all its seeds.
Ray Tune's schedulers and Optuna's pruners know trials only: they would take a configuration's seeds
for rivals, and leave means over other seeds for each configuration.

- ``asha`` (Li et al., MLSys 2020, arXiv:1810.05934): with one seed, decisions are those of Ray
  Tune's ``AsyncHyperBandScheduler``, its largest rung first and its interpolated cutoff included.
- ``hyperband``: several ``asha`` side by side, the first rung of bracket s at grace * reduction^s.
  Configurations are dealt out in the proportions of Hyperband (Li et al., JMLR 18(185), 2018,
  algorithm 1; Optuna's pruner has the same): of three brackets with reduction 3, 9 : 5 : 3. Ray
  draws the bracket at random; here it follows from the configuration's number, so that a resumed
  sweep deals alike, and evenly from the start.
- ``median`` (Golovin et al., KDD 2017): as in Ray's ``MedianStoppingRule``, the best value so far
  against the median of the others' averages from ``grace`` on; looked at every ``interval`` steps.
- ``patience``: of the reporting seed's own curve, counted from ``grace`` at the earliest.

A NaN is the worst value there is; Ray leaves it out, and goes on with a trial that reports it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

from hdsweep.identity import digest
from hdsweep.strategy import Stop

_WORST = -1e300  # of NaN; finite, so that it can be averaged and interpolated
_KNOBS = {
    "asha": ("grace", "reduction"),
    "hyperband": ("grace", "reduction", "brackets"),
    "median": ("grace", "interval", "startup"),
    "patience": ("grace", "patience", "min_delta"),
}
_WORDS: dict[float, str] = {2: "half", 3: "third", 4: "quarter", 5: "fifth"}


@lru_cache(maxsize=64)
def rule_digest(stop: Stop, *, larger_is_better: bool) -> str:
    """20 hex digits; of what the rule uses only, so that editing other knobs changes nothing."""
    knobs = {name: getattr(stop, name) for name in _KNOBS[stop.rule]}
    if "interval" in knobs:
        knobs["interval"] = stop.interval or stop.grace
    given = {"rule": stop.rule, "metric": stop.metric, "larger_is_better": larger_is_better}
    return digest(given | knobs)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A seed at a rung, and what was decided there. Of its values, the larger is the better.

    Args:
        rung: Number of the rung; None where a rule without rungs stops the configuration.
        value: Compared with what the others reach.
        average: Compared with by the others; the value itself but for ``median``.
        stop: Why the configuration stops.
    """

    configuration: str
    order: int
    seed: int
    step: int
    rung: int | None
    value: float
    average: float
    stop: str | None = None


@dataclass(slots=True)
class _Progress:
    """What an attempt has reported so far."""

    last: int = 0
    best: float = -math.inf
    best_step: int = 0
    total: float = 0.0
    count: int = 0


@dataclass(slots=True)
class _Rung:
    """Configurations that have reached a rung.

    Args:
        sums: Configuration -> sum of its seeds' values, that of their averages, how many.
        averages: Of all configurations, sorted.
    """

    sums: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    averages: list[float] = field(default_factory=list)

    def with_seed(self, arrival: Arrival) -> tuple[float, float, int]:
        """Sums of the arrival's configuration, this seed included."""
        value, average, seeds = self.sums.get(arrival.configuration, (0.0, 0.0, 0))
        return value + arrival.value, average + arrival.average, seeds + 1

    def others(self, configuration: str) -> list[float]:
        """Averages of the other configurations, sorted."""
        if configuration not in self.sums:
            return self.averages
        at = self._place(configuration)
        return self.averages[:at] + self.averages[at + 1 :]

    def add(self, arrival: Arrival) -> None:
        """Let a seed arrive."""
        if arrival.configuration in self.sums:
            del self.averages[self._place(arrival.configuration)]
        sums = self.sums[arrival.configuration] = self.with_seed(arrival)
        insort(self.averages, sums[1] / sums[2])

    def _place(self, configuration: str) -> int:
        _, average, seeds = self.sums[configuration]
        return bisect_left(self.averages, average / seeds)


class Rungs:
    """A rule at work, in memory.

    Args:
        stop: The rule.
        larger_is_better: Of its metric.
    """

    def __init__(self, stop: Stop, *, larger_is_better: bool) -> None:
        self._stop = stop
        self._sign = 1.0 if larger_is_better else -1.0
        self._milestones: list[float] = []
        self._progress: dict[tuple[str, int], _Progress] = {}
        self.forget()

    def forget(self) -> None:
        """Start anew with what was decided, not with the curves of the attempts under way."""
        self._rungs: dict[tuple[int, int | None], _Rung] = {}
        self._brackets: dict[str, int] = {}
        self._arrived: dict[tuple[str, int], dict[int, int]] = {}  # seed -> rung -> step
        self.stopped: dict[str, str] = {}

    def report(
        self, configuration: str, order: int, seed: int, step: int, value: float
    ) -> str | None:
        """Take a point of a running trial's curve.

        A step before the last one begins another attempt at the trial; what the one before has
        reached counts once.

        Args:
            configuration: What the trial is a replicate of.
            order: Number of the configuration in the sweep, from 0.
            seed: The replicate.
            step: Of the method's own progress.
            value: Of the metric; may be NaN or infinite.

        Returns:
            Why the trial is to stop, for people; None to go on.
        """
        arrival = self.track(configuration, order, seed, step, value)
        if arrival is not None:
            self.settle(arrival)
        return self.stopped.get(configuration)

    def learn(
        self, configuration: str, order: int, seed: int, points: Iterable[tuple[int, float]]
    ) -> list[Arrival]:
        """Take the whole curve of a trial that finished elsewhere: others are compared with it.

        It stops nothing, and what is known already is not counted twice.

        Args:
            configuration: As for ``report``.
            order: As for ``report``.
            seed: As for ``report``.
            points: Steps, rising, each with the value of the metric.

        Returns:
            What was new.
        """
        progress, new = _Progress(), []
        for step, value in points:
            arrival = self._advance(progress, configuration, order, seed, step, value)
            if arrival is not None and arrival.rung is not None and not self._knows(arrival):
                self.apply(arrival)
                new.append(arrival)
        return new

    def track(
        self, configuration: str, order: int, seed: int, step: int, value: float
    ) -> Arrival | None:
        """Take a point, and tell whether there is something to be decided."""
        progress = self._progress.get((configuration, seed))
        if progress is None or step < progress.last:
            progress = self._progress[configuration, seed] = _Progress()
        return self._advance(progress, configuration, order, seed, step, value)

    def settle(self, arrival: Arrival) -> Arrival | None:
        """Decide, unless that was done before; gives what was decided now."""
        if arrival.configuration in self.stopped or self._knows(arrival):
            return None
        decided = replace(arrival, stop=self._decide(arrival))
        self.apply(decided)
        return decided

    def apply(self, arrival: Arrival) -> None:
        """Take over what was decided, here or elsewhere; a second time changes nothing."""
        if arrival.rung is not None and not self._knows(arrival):
            known = self._arrived.setdefault((arrival.configuration, arrival.seed), {})
            known[arrival.rung] = arrival.step
            self._rung_of(arrival).add(arrival)
        if arrival.stop is not None:
            self.stopped.setdefault(arrival.configuration, arrival.stop)

    def knows(self, configuration: str, seed: int) -> bool:
        """Whether a seed has arrived at any rung."""
        return (configuration, seed) in self._arrived

    def _knows(self, arrival: Arrival) -> bool:
        known = self._arrived.get((arrival.configuration, arrival.seed), {})
        return arrival.rung in known or arrival.step <= max(known.values(), default=0)

    def _advance(
        self,
        progress: _Progress,
        configuration: str,
        order: int,
        seed: int,
        step: int,
        value: float,
    ) -> Arrival | None:
        if step <= progress.last:
            return None
        stop, good = self._stop, self._oriented(value)
        progress.last = step
        # Only patience has a min_delta; for the others any improvement is one.
        if good > progress.best + (stop.min_delta if stop.rule == "patience" else 0.0):
            progress.best, progress.best_step = good, step
        if step < stop.grace:
            return None
        progress.total += good
        progress.count += 1
        rung: int | None = None
        average = good
        if stop.rule == "patience":
            waited = step - max(progress.best_step, stop.grace)
            if waited < (stop.patience or 0):
                return None
            good = progress.best
        elif stop.rule == "median":
            rung = (step - stop.grace) // (stop.interval or stop.grace)
            if rung in self._arrived.get((configuration, seed), ()):
                return None
            good, average = progress.best, progress.total / progress.count
        else:
            rung = self._next_rung(
                self._bracket_of(configuration, order), configuration, seed, step
            )
            if rung is None:
                return None
        return Arrival(configuration, order, seed, step, rung, good, average)

    def _oriented(self, value: float) -> float:
        return _WORST if math.isnan(value) else min(max(self._sign * value, _WORST), -_WORST)

    def _next_rung(self, bracket: int, configuration: str, seed: int, step: int) -> int | None:
        """The largest that is reached and was not before: a later report may fill one left out."""
        stop, reached = self._stop, self._milestones
        while not reached or reached[-1] <= step:
            reached.append(stop.grace * stop.reduction ** len(reached))
        count, known = bisect_right(reached, step), self._arrived.get((configuration, seed), ())
        if len(known) >= count - bracket:
            return None
        return next(rung for rung in reversed(range(bracket, count)) if rung not in known)

    def _bracket_of(self, configuration: str, order: int) -> int:
        if configuration not in self._brackets:
            self._brackets[configuration] = _bracket(self._stop, order)
        return self._brackets[configuration]

    def _rung_of(self, arrival: Arrival) -> _Rung:
        bracket = self._bracket_of(arrival.configuration, arrival.order)
        return self._rungs.setdefault((bracket, arrival.rung), _Rung())

    # --- deciding ---------------------------------------------------------------------------------

    def _decide(self, arrival: Arrival) -> str | None:
        """Why the configuration is to stop, before the arrival is applied."""
        stop = self._stop
        if arrival.rung is None:  # it is due only when the patience is at its end
            return (
                f"patience: no better {stop.metric} than {self._shown(arrival.value)} for "
                f"{stop.patience} steps, at step {arrival.step}"
            )
        rung = self._rung_of(arrival)
        others = rung.others(arrival.configuration)
        total, _, seeds = rung.with_seed(arrival)
        median = stop.rule == "median"
        if len(others) < (stop.startup if median else 1):
            return None
        share = ((1 - 1 / stop.reduction) * 100) / 100  # as Ray computes it
        value, cutoff = total / seeds, _median(others) if median else _quantile(others, share)
        if value >= cutoff:
            return None
        best = "best " if median else ""
        mean = f"mean {best}{stop.metric}" if seeds > 1 else f"{best}{stop.metric}"
        of_seeds = f" of {seeds} seeds" if seeds > 1 else ""
        side = "below" if self._sign > 0 else "above"
        among = f"{len(others)} other configuration{'s' if len(others) > 1 else ''}"
        part = _WORDS.get(stop.reduction, f"1/{stop.reduction:g}")
        what = f"the median of the averages of {among}" if median else f"the best {part} of {among}"
        return (
            f"{stop.rule}: {mean} {self._shown(value)}{of_seeds} at step {arrival.step} is {side} "
            f"{self._shown(cutoff)}, {what}"
        )

    def _shown(self, value: float) -> str:
        return "NaN" if value < _WORST / 1e6 else f"{self._sign * value:.4g}"


def _quantile(ordered: list[float], share: float) -> float:
    """As ``numpy.quantile`` of sorted numbers, to the last bit, and without making an array."""
    at = (len(ordered) - 1) * share
    low = math.floor(at)
    below, above, part = ordered[low], ordered[min(low + 1, len(ordered) - 1)], at - low
    if part >= 0.5:
        return above - (above - below) * (1 - part)
    return below + (above - below) * part


def _median(ordered: list[float]) -> float:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _bracket(stop: Stop, order: int) -> int:
    """Bracket of a configuration: Hyperband's proportions, spread evenly over the numbers."""
    if stop.rule != "hyperband":
        return 0
    wanted = [
        math.ceil(stop.brackets / (late + 1) * stop.reduction**late)
        for late in reversed(range(stop.brackets))
    ]
    point, unit = 0.0, 0.5  # van der Corput's sequence: any run of it fills [0, 1) evenly
    while order:
        order, bit = divmod(order, 2)
        point += bit * unit
        unit /= 2
    return bisect_right(list(accumulate(wanted)), point * sum(wanted))
