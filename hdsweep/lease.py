"""The right to make something, which a process that died loses.

A lease is a file with its holder's process and host, renewed by a thread of the holder. A holder
that died on this machine is found out at once, one on another machine when its lease was not
renewed for LEASE_S on the waiter's own clock; a slow one keeps renewing. A holder that was stopped
for longer has lost its lease when it wakes, and does not notice: what is guarded must bear two at
work, and only not for long or often.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

LEASE_S = 30.0  # a network filesystem may show a renewed lease some seconds late
_BEATS = 10  # renewals in that time
_FORGOTTEN_S = 3600.0  # no clock of another host is wrong by as much


class Lease:
    """The right to make a folder. One object for a whole wait: it remembers the last renewal.

    Args:
        target: The folder; a hidden file beside it stands for the right.
    """

    def __init__(self, target: Path) -> None:
        self._marker = target.parent / f".{target.name}.lease"
        self._file = SoftFileLease(
            self._marker,
            lease_duration=LEASE_S,
            heartbeat_interval=LEASE_S / _BEATS,
            thread_local=False,
        )
        self._seen: tuple[int, ...] = ()
        self._since = time.monotonic()

    def take(self) -> bool:
        """Whether it is held now; never waits."""
        try:
            self._file.acquire(timeout=0)
        except (Timeout, LeaseSettingsMismatch):  # the latter: of another version of this engine
            pass
        else:
            return True
        # The library replaces a dead holder's file by an exchange of names, which NFS refuses.
        if self._unchanged_s() > 1.5 * LEASE_S:
            self._file.force_break()
        return False

    def is_held(self) -> bool:
        """Whether somebody seems to hold it; only ``take`` is sure. Who died elsewhere seems to."""
        owner = self._file.owner
        if owner is None:
            return os.path.lexists(self._marker)
        host = owner.hostname.partition("?")[0]  # the library adds the namespace of processes
        return host != socket.gethostname() or os.path.exists(f"/proc/{owner.pid}")

    def lost(self) -> bool:
        """Whether another process has taken it over since."""
        owner = self._file.owner
        return owner is None or owner.token != self._file.token

    def release(self) -> None:
        """Let others build; nothing to do where it is not held."""
        self._file.release()

    def remove_if_dead(self) -> None:
        """Remove the file of a holder that can be told to be dead."""
        with contextlib.suppress(OSError):
            self.take()
            self.release()
            if time.time() - self._marker.lstat().st_mtime > _FORGOTTEN_S:
                self._file.force_break()

    def _unchanged_s(self) -> float:
        seen: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            found = self._marker.lstat()
            seen = found.st_ino, found.st_mtime_ns, found.st_ctime_ns
        now = time.monotonic()
        if not seen or seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since
