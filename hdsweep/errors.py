"""Errors a user can act on.

Each message stands alone: where, what was found, what to do. The command line catches
``HdsweepError`` once, prints the message and exits with status 2; anything else is a bug of ours
or of a method, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HdsweepError(Exception):
    """A mistake or condition that the user can mend."""


class SpecError(HdsweepError):
    """The sweep file does not say what can be run."""


class DataError(HdsweepError):
    """The data set is missing, damaged or not in its published layout."""


class DataChanged(DataError):
    """The data set is not what it was when the sweep was planned."""


class StoreError(HdsweepError):
    """The store cannot be read or written as it is."""


class Busy(StoreError):
    """Another process is at what was asked for."""


class MethodError(HdsweepError):
    """A method cannot do what it was asked, for a reason that lies in the request."""


class Infeasible(MethodError):
    """What was asked cannot be done with such data: a hole in the table, and no mistake."""


class UndefinedMetric(HdsweepError):
    """The metric has no value on these predictions: one class is absent, or a score is NaN."""


class Diverged(Exception):
    """Training produced a NaN or infinite loss.

    Args:
        step: Optimiser step at which it was seen, from 1.
        what: The quantity, as in ``loss`` or ``gradient norm``.
    """

    def __init__(self, step: int, what: str = "loss") -> None:
        super().__init__(step, what)  # both in args, so that it survives a process border
        self.step = step
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is not finite at step {self.step}"


class Stopped(Exception):
    """The sweep's stopping rule ends the trial; no fault of its method.

    Args:
        reason: In words.
        rule: Digest of the rule.
    """

    def __init__(self, reason: str, rule: str) -> None:
        super().__init__(reason, rule)  # both in args, so that it survives a process border
        self.reason = reason
        self.rule = rule

    def __str__(self) -> str:
        return self.reason


def printable(text: str) -> str:
    """Text for a terminal: what others wrote must not move its cursor or change its title."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def first_line(message: str) -> str:
    """What of a message fits a line: its first line that says anything."""
    lines = (line.strip() for line in message.splitlines())
    return next((line for line in lines if line), "no reason was given")


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Suffix of a message: the nearest known name, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
