"""Verdicts in words: one sentence with its numbers, in the unit in which people read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from analysis.compare import FEWEST, Paired

Verdict = Literal["better", "worse", "equivalent", "inconclusive", "not testable"]

_SIGNED_ZERO = re.compile(r"[+-](0(?:\.0*)?)(?![\d.])")

CHOSEN = "drawn by a search and measured on the seeds it is chosen by"


@dataclass(frozen=True, slots=True)
class Unit:
    """How differences of a metric are written.

    Args:
        is_rate: Whether its values lie in [0, 1]; then differences are told in percent points.
    """

    is_rate: bool

    def exactly(self, value: float) -> str:
        """A difference that does not vary, with its sign and unit."""
        text = f"{self._scaled(value):+.4g}"
        text = text[1:] if float(text) == 0 else text
        return text + (" points" if self.is_rate else "")

    def declared(self, margin: float) -> str:
        """A margin as somebody wrote it, with its unit."""
        text = f"{self._scaled(margin):.6g}"
        return text + (" point" if text == "1" else " points") * self.is_rate

    def size(self, value: float) -> str:
        """How large a difference is, in two significant digits, with its unit."""
        shown = abs(self._scaled(value))
        return f"{shown:.{decimals_of(shown)}f}" + (" points" if self.is_rate else "")

    def interval(self, difference: float, low: float, high: float, coverage: float) -> str:
        """As in ``+0.91 points, 95 % CI [+0.63, +1.20]``; zero has no sign."""
        scale, unit = (100, " points") if self.is_rate else (1, "")
        d = decimals_of(scale * (high - low) / 2)
        text = (
            f"{scale * difference:+.{d}f}{unit}, {100 * coverage:g} % CI "
            f"[{scale * low:+.{d}f}, {scale * high:+.{d}f}]"
        )
        return _SIGNED_ZERO.sub(r"\1", text) if "+0" in text or "-0" in text else text

    def _scaled(self, value: float) -> float:
        return 100 * value if self.is_rate else value


def decimals_of(size: float) -> int:
    """Decimals that show two significant digits of a positive number."""
    return 2 if size <= 0 else min(max(1 - math.floor(math.log10(size)), 0), 9)


def p_text(p: float) -> str:
    """A p-value for people: ``9.1e-4``, ``0.013``, ``0.42``."""
    if p < 1e-99:
        return "0"
    if p >= 0.001:
        return f"{p:.2g}"
    digits, exponent = f"{p:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def seeds_text(seeds: tuple[int, ...]) -> str:
    """As in ``seeds 3, 4``; the first five of many."""
    shown = ", ".join(map(str, seeds[:5]))
    more = f" and {len(seeds) - 5} more" if len(seeds) > 5 else ""
    return f"seed{'s' if len(seeds) > 1 else ''} {shown}{more}"


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict is given on.

    Args:
        metric: Its name.
        unit: Of its differences.
        pair: The differences.
        larger_is_better: None where nobody knows.
        p_holm: None where there is no test that counts.
        margin: None where none was declared.
        p_tost_holm: Of the tests against it.
        detectable: Difference that so many seeds find with power .8; None where there is no test.
        needed: Seeds that find the margin, or else the difference; None where no number of them.
        optimistic: Whether it is chosen by these very values.
        unpaired: Seeds that only one of the two has.
        alpha: Level.
    """

    metric: str
    unit: Unit
    pair: Paired
    larger_is_better: bool | None
    p_holm: float | None
    margin: float | None
    p_tost_holm: float | None
    detectable: float | None
    needed: float | None
    optimistic: bool
    unpaired: tuple[int, ...]
    alpha: float

    def verdict(self) -> Verdict:
        """What may be said."""
        if self.p_holm is None or self.pair.difference is None:
            return "not testable"
        if self.p_holm <= self.alpha:
            if self.larger_is_better is None:
                return "not testable"
            return "better" if (self.pair.difference > 0) == self.larger_is_better else "worse"
        if self._is_within():
            return "equivalent"  # which takes no direction
        return "not testable" if self.larger_is_better is None else "inconclusive"

    def why(self, verdict: Verdict) -> str:
        """Why that is said."""
        if self.pair.p is None or self.pair.difference is None:
            text = self._untestable()
        elif self.optimistic:
            text = f"{self._numbers(self.pair.difference, self.pair.p)}: {CHOSEN}"
        else:
            text = self._numbers(self.pair.difference, self.pair.p)
            if verdict == "equivalent":
                text += f"; within {self._margin()}"
            elif verdict == "not testable":
                text += f": nobody said whether larger {self.metric} is better"
            elif verdict == "inconclusive":
                text += f"; {self._shown(self.pair.difference, self.pair.p)}"
            elif self._is_within():
                text += f"; though by less than {self._margin()}"
        if self.unpaired:
            text += f"; {seeds_text(self.unpaired)} left out, for only one of the two has a value"
        return text

    def _is_within(self) -> bool:
        return self.p_tost_holm is not None and self.p_tost_holm <= self.alpha

    def _untestable(self) -> str:
        if self.pair.difference is None or self.pair.n < FEWEST:
            return self.pair.untestable
        return f"{self.pair.untestable}: {self.unit.exactly(self.pair.difference)}"

    def _numbers(self, difference: float, p: float) -> str:
        low, high = self.pair.ci_low, self.pair.ci_high
        interval = self.unit.interval(difference, low or 0.0, high or 0.0, 1 - self.alpha)
        holm = "" if self.p_holm is None else f" (Holm {p_text(self.p_holm)})"
        return f"{interval}, p = {p_text(p)}{holm}"

    def _margin(self) -> str:
        """The margin, and how sure it is that the difference is within."""
        p = p_text(1.0 if self.p_tost_holm is None else self.p_tost_holm)
        margin = self.unit.declared(self.margin or 0.0)
        return f"the margin of {margin} (two one-sided tests, p = {p})"

    def _shown(self, difference: float, p: float) -> str:
        """What so many seeds could have shown, and how many would show what was wanted."""
        if p <= self.alpha:
            return "significant alone, but not among so many tests"
        text = f"{self.pair.n} seeds could show {self.unit.size(self.detectable or 0.0)}"
        if self.margin is not None:
            what = f"one of {self.unit.declared(self.margin)}, the margin"
        elif difference == 0:
            return text
        else:
            what = "this difference"
        if self.needed is None:
            return f"{text}, and 10,000 would not show {what}"
        if self.needed <= self.pair.n:
            return f"{text}, so {what}, would likely have been seen"
        return f"{text}; about {int(self.needed)} seeds would show {what}"
