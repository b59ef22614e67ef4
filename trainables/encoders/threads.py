"""What a process is bound to: threads, where bits are kept, and memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_MMAP_THRESHOLD = -3  # glibc's name for it in malloc.h, M_MMAP_THRESHOLD
_KEPT_BYTES = 1 << 20


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Bind torch to one thread for a while.

    The bits of a sum depend on how many threads share it. What one trial builds others use, and any
    trial may be the builder, with as many threads as it happens to be lent: on one thread all of
    them build the same bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def return_freed_memory() -> None:
    """Have glibc give large blocks back to the system as soon as they are freed.

    By default it learns to keep blocks of up to 32 MB, which is the size of what an encoder says in
    between: a process that encodes without end would hold a third more than it needs. Elsewhere
    this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
