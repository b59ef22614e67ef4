"""Torch bound to one thread, where the bits of a result are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
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
