"""Who else of this user's trials runs on this machine.

A latency that was measured beside a neighbour is not a latency. So a trial that computes holds a
shared lock on a file of this machine, and one that measures waits until it can hold the lock alone;
meanwhile no further trial starts. A trial that only waits is nobody's neighbour and lets go.

Nobody waits for ever. Who measures gives up on a neighbour after ALONE_WAIT_S and leaves a note,
so that others try for BRIEF_WAIT_S only, until one of them was alone again: beside a training of a
day, a sweep loses seconds a trial. Who wants to compute goes ahead after ENTER_WAIT_S: a process
that was stopped while it measured must not hold up all others.

The locks are the operating system's: whatever is killed, lets go. Other users' processes, and those
that are not of hdsweep, are not seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ALONE_WAIT_S = 120.0
BRIEF_WAIT_S = 5.0
ENTER_WAIT_S = 2 * ALONE_WAIT_S  # more than one that is alive measures, waiting included
_POLL_S = 0.05
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Machine:
    """One trial's place on this machine.

    Args:
        folder: For the lock files; the same for all trials of a user on the machine.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"hdsweep-{os.geteuid()}"
        self._handles: tuple[int, int] | None = None
        self._computes = False
        self._alone: bool | None = None

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Be a neighbour to others for as long as this lasts; wait while another measures."""
        with self._opened():
            self._enter()
            yield

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Be nobody's neighbour while waiting for something."""
        computed, alone = self._computes, self._alone
        self._leave()
        self._open_gate()  # what is waited for may need it
        try:
            yield
        finally:
            if alone:
                self._shut_out(math.inf)
            elif computed:
                self._enter()

    @contextlib.contextmanager
    def alone(self, wait_s: float = ALONE_WAIT_S) -> Iterator[bool]:
        """Wait until no other trial computes here, and keep new ones waiting.

        Args:
            wait_s: How long to wait, at most; less where others have waited in vain.

        Yields:
            Whether this process is alone; False when a neighbour has not finished in time, and
            where neighbours cannot be known.
        """
        if self._alone is not None:
            yield self._alone
            return
        computed = self._computes
        with self._opened():
            self._leave()
            try:
                self._alone = self._shut_out_within(wait_s)
                if not self._alone:
                    self._enter()  # what is measured beside a neighbour still is one to others
                yield self._alone
            finally:
                self._alone = None
                self._leave()
                self._open_gate()
                if computed:
                    self._enter()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        ours = self._handles is None
        if ours:
            self._handles = _open(self._folder)
        try:
            yield
        finally:
            if ours and self._handles is not None:
                self._leave()  # a child of a fork may have the files open for longer
                self._open_gate()
                for handle in self._handles:
                    os.close(handle)
                self._handles = None

    def _enter(self) -> None:
        if self._handles is not None:
            gate, busy = self._handles
            until = time.monotonic() + ENTER_WAIT_S
            try:
                self._computes = _lock_by(gate, until) and _lock_by(busy, until, fcntl.LOCK_SH)
            finally:
                self._open_gate()

    def _leave(self) -> None:
        self._computes = False
        if self._handles is not None:
            fcntl.flock(self._handles[1], fcntl.LOCK_UN)

    def _shut_out_within(self, wait_s: float) -> bool:
        """As ``_shut_out``; briefly where that was in vain the last time."""
        if self._handles is None:
            return False
        note = self._folder / "in-vain"
        limit = min(wait_s, BRIEF_WAIT_S) if note.exists() else wait_s
        found = self._shut_out(time.monotonic() + limit)
        with contextlib.suppress(OSError):
            if found:
                note.unlink(missing_ok=True)
            else:
                note.touch()
        return found

    def _shut_out(self, until: float) -> bool:
        """Whether nobody computes, and nobody can start to; False when that took too long."""
        if self._handles is None:
            return False
        gate, busy = self._handles
        if not _lock_by(gate, until):
            return False
        if _lock_by(busy, until):
            return True
        self._open_gate()
        return False

    def _open_gate(self) -> None:
        if self._handles is not None:
            fcntl.flock(self._handles[0], fcntl.LOCK_UN)


def _open(folder: Path) -> tuple[int, int] | None:
    """Files to lock, the gate first; None where neighbours cannot be known.

    The folder is below one that everybody may write to. One that another user has made, or that
    is a link, could make trials wait for ever; it is not used.
    """
    opened: list[int] = []
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        home = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(home)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                return None
            for name in ("gate", "busy"):
                opened.append(os.open(name, _FLAGS, 0o600, dir_fd=home))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(opened[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(opened[-1], fcntl.LOCK_UN)
            os.utime(home)  # what clears out old temporary files shall leave it
        finally:
            os.close(home)
    except OSError:  # nowhere to write, or no locks
        for handle in opened:
            os.close(handle)
        return None
    gate, busy = opened
    return gate, busy


def _lock_by(handle: int, until: float, how: int = fcntl.LOCK_EX) -> bool:
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        else:
            return True
