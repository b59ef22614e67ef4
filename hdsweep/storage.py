"""Storage that refuses for a while: full, read-only, or gone stale.

What a trial has computed is worth a wait. Whoever writes it insists, with longer and longer pauses,
until somebody has made room or the patience is over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hdsweep.deadline import in_words
from hdsweep.errors import StoreError

T = TypeVar("T")

PATIENCE_S = 600.0  # enough for a colleague to be called and to make room
_FIRST_S, _LONGEST_S = 0.5, 15.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSALS = (*_FULL, errno.EROFS, errno.EIO, errno.ESTALE)
_PROBE = bytes(1 << 16)  # a trial takes some 30 kB
_PROBE_EVERY_S = 5.0


def refusal(error: BaseException | None) -> OSError | None:
    """What the operating system said, where storage is to blame and not what is written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return error
        # A message of ours stands for it, or a library's: torch.save raises a RuntimeError.
        error = error.__cause__ or error.__context__
    return None


def _nobody(_text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Patience:
    """Writes what storage refuses once it does not any more.

    Args:
        limit_s: How long to try, for each write.
        tell: Told once for each wait that it begins, and that it is over.
    """

    limit_s: float = 0.0
    tell: Callable[[str], None] = _nobody

    def insist(self, write: Callable[[], T]) -> T:
        """What ``write`` returns, which is called again and again where storage refuses.

        Raises:
            OSError | StoreError: As the last try did, once the patience is over; whatever else
                ``write`` raises is raised at once.
        """
        began, pause_s, waits = time.monotonic(), _FIRST_S, False
        while True:
            try:
                found = write()
            except Exception as error:
                said = refusal(error)
                if said is None or time.monotonic() - began >= self.limit_s:
                    raise
                if not waits:
                    self.tell(waiting(said, self.limit_s))
                waits = True
            else:
                if waits:
                    self.tell("the store can be written again")
                return found
            time.sleep(pause_s)
            pause_s = min(_LONGEST_S, 1.5 * pause_s)


def waiting(error: OSError, limit_s: float) -> str:
    """What is said when a wait begins."""
    do = "free space" if error.errno in _FULL else "mend it"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}; what is computed is kept, for {in_words(limit_s)}: {do}"


class Gate:
    """Says whether the store takes what trials are about to compute; looks now and then.

    Args:
        folder: In the store, where a file of trial is written.
        limit_s: How long it may refuse.
        tell: Told once when it begins to refuse, and when that is over.
    """

    def __init__(self, folder: Path, limit_s: float, tell: Callable[[str], None]) -> None:
        self._file = folder / ".probe"
        self._limit_s, self._tell = limit_s, tell
        self._looked_s = -_PROBE_EVERY_S
        self._since_s: float | None = None

    def is_open(self) -> bool:
        """Whether the store can be written.

        Raises:
            StoreError: It could not for too long.
        """
        now = time.monotonic()
        every_s = _PROBE_EVERY_S if self._since_s is None else _FIRST_S
        if now - self._looked_s < every_s:
            return self._since_s is None
        self._looked_s = now
        try:
            _probe(self._file)
        except OSError as error:
            said = refusal(error)
            if said is None:
                return True  # of another kind: a trial will find out, and say what it is
            if self._since_s is None:
                self._since_s = now
                self._tell(f"paused: {waiting(said, self._limit_s)}")
            if now - self._since_s >= self._limit_s:
                raise StoreError(full(said, self._file.parent)) from None
            return False
        if self._since_s is not None:
            self._since_s = None
            self._tell("the store can be written again; the sweep goes on")
        return True


def full(error: OSError, place: Path) -> str:
    """What is said when a sweep ends over it."""
    return (
        f"{error.filename or place}: {error.strerror}; free space and run the same command again, "
        "finished trials are kept"
    )


def require_room(folder: Path) -> None:
    """Raise OSError where a folder cannot be written: libraries hide it behind errors of theirs."""
    _probe(folder / ".probe")


def _probe(path: Path) -> None:
    try:
        with open(path, "wb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
