"""Who else of this user's trials runs on this machine.

A latency that was measured beside a neighbour is not a latency. So a trial that computes holds a
shared lock on a file of this machine, and one that measures waits until it can hold the lock alone;
meanwhile no further trial starts. A trial that only waits is nobody's neighbour and lets go.

The locks are the operating system's: whatever is killed, lets go. Other users' processes, and those
that are not of hdsweep, are not seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ALONE_WAIT_S = 600.0  # a neighbour may train for hours; then the measurement says that it was there
_POLL_S = 0.05


class Machine:
    """One trial's place on this machine.

    Args:
        folder: For the lock files; the same for all trials of a user on the machine.
    """

    def __init__(self, folder: Path | None = None) -> None:
        home = folder or Path(tempfile.gettempdir()) / f"hdsweep-{os.getuid()}"
        self._handles: tuple[int, int] | None = None
        with contextlib.suppress(OSError):  # nowhere to write: then neighbours are not known
            home.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            gate = os.open(home / "gate", flags, 0o600)
            self._handles = gate, os.open(home / "busy", flags, 0o600)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Be a neighbour to others for as long as this lasts; wait while another measures."""
        try:
            self._enter()
            yield
        finally:
            self.close()

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Be nobody's neighbour while waiting for something."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    @contextlib.contextmanager
    def alone(self, wait_s: float = ALONE_WAIT_S) -> Iterator[bool]:
        """Wait until no other trial computes here, and keep new ones waiting.

        Args:
            wait_s: How long to wait, at most.

        Yields:
            Whether this process is alone; False when a neighbour has not finished in time.
        """
        if self._handles is None:
            yield False
            return
        gate, busy = self._handles
        self._leave()
        until = time.monotonic() + wait_s
        try:
            yield _lock_by(gate, until) and _lock_by(busy, until)
        finally:
            fcntl.flock(busy, fcntl.LOCK_UN)
            fcntl.flock(gate, fcntl.LOCK_UN)
            self._enter()

    def close(self) -> None:
        """Let go of everything."""
        if self._handles is not None:
            for handle in self._handles:
                os.close(handle)
            self._handles = None

    def _enter(self) -> None:
        if self._handles is not None:
            gate, busy = self._handles
            fcntl.flock(gate, fcntl.LOCK_EX)
            try:
                fcntl.flock(busy, fcntl.LOCK_SH)
            finally:
                fcntl.flock(gate, fcntl.LOCK_UN)

    def _leave(self) -> None:
        if self._handles is not None:
            fcntl.flock(self._handles[1], fcntl.LOCK_UN)


def _lock_by(handle: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        else:
            return True
