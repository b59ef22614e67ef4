"""The processes that Ray starts below this one: asked to leave, and ended when this one is killed.

Ray's own watch over a driver that was killed takes the better part of a minute, in which its
workers hold the GPUs and go on with trials that the next run begins again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

# The pipe closes with the process that holds its other end, however that ended.
_GUARD = 'read over || { kill -TERM "$@"; sleep 2; kill -KILL "$@"; } 2>/dev/null'
_POLL_S = 0.1


@contextlib.contextmanager
def ending_with_this_one() -> Iterator[None]:
    """End what Ray has started below this process by now, should it be killed.

    Workers end with their raylet. Its agents would not for a minute; they live as long as it does,
    so their numbers are nobody else's.
    """
    own = _below(os.getpid(), deep=False)
    own += [pid for pid in _below(os.getpid()) if b"agent" in _title(pid).lower()]
    pids = [str(pid) for pid in dict.fromkeys(own)]
    command = ["/bin/sh", "-c", _GUARD, "sh", *pids]
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            guard.communicate(b"over\n")


def ask_to_leave(wait_s: float) -> None:
    """Let workers below this process keep checkpoints and end; wait for them, so long at most."""
    for pid in _workers():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + wait_s
    while _workers() and time.monotonic() < until:
        time.sleep(_POLL_S)


def _workers() -> list[int]:
    """Those that run trials; Ray names a process by what it does."""
    return [pid for pid in _below(os.getpid()) if b"_Worker" in _title(pid)]


def _title(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _below(pid: int, *, deep: bool = True) -> list[int]:
    """Children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(pid, ()))
    for child in found if deep else ():
        found += children.get(child, ())
    return found
