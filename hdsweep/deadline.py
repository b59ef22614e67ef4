"""An end to what does not end by itself.

A timer interrupts the process in Python code. A call into a library that never returns is deaf to
that; where the process may be given up, a thread of C ends it GRACE_S later. Either way the stack
of every thread is written down first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
import signal
import threading
from collections.abc import Iterator
from typing import TextIO

GRACE_S = 10.0  # for what is interrupted to come to its end
_AGAIN_S = 2.0  # what caught the interruption and went on is interrupted once more
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = r"^[0-9]+(\.[0-9]+)? ?[smhd]?$"
_ENDED = re.compile(r"^Timeout \([0-9:.]+\)!$", re.MULTILINE)  # as faulthandler writes it


class Overdue(BaseException):
    """The time is over. No Exception: a method that catches its own must not catch this."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return overdue(self.timeout_s)


def overdue(timeout_s: float) -> str:
    """What is said of a trial that did not end in time."""
    return (
        f"no end after {in_words(timeout_s)} (resources.timeout); its log.txt says where it was. "
        "With a longer timeout it goes on from its last checkpoint"
    )


@contextlib.contextmanager
def deadline(timeout_s: float | None, log: TextIO, *, give_up: bool) -> Iterator[None]:
    """Raise Overdue in this thread, the main one, once the time is over.

    Args:
        timeout_s: How long; None sets no end.
        log: A file that takes the stacks.
        give_up: Whether to end the process where it cannot be interrupted.
    """
    if timeout_s is None:
        yield
        return
    seconds, told = timeout_s, False

    def ring(_signum: int, _frame: object) -> None:
        nonlocal told
        if not told:
            told = True
            faulthandler.dump_traceback(log)
        raise Overdue(seconds)

    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=give_up, file=log)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ring) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def was_given_up(log: str) -> bool:
    """Whether a log says that its process was ended because it could not be interrupted."""
    return _ENDED.search(log) is not None


def seconds_of(text: object) -> object:
    """Seconds of a duration as people write it, as in ``90``, ``30m``, ``2h``, ``1d``.

    Raises:
        ValueError: It is text, and no duration.
    """
    if not isinstance(text, str):
        return text
    if not re.fullmatch(DURATION, text):
        raise ValueError(f"'{text}' is no length of time; write seconds, or as in 30m, 2h, 1d")
    unit = text[-1] if text[-1] in _UNITS else ""
    return float(text.removesuffix(unit)) * _UNITS[unit]


def in_words(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g} s"
