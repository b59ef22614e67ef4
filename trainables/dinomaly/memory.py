"""The most memory that a stretch of work took."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_SELF = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): makes VmHWM start anew from what is resident now


class Peak:
    """Largest memory since this was made: allocated on a GPU, else resident of this process.

    What is resident counts libraries too, and what earlier work of the process still holds.

    Args:
        device: Of the work. A process has one such measure, so stretches must not overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.mem_get_info(device)  # starts CUDA: before, there is nothing to reset
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):  # then it is the peak since the process began
            (_SELF / "clear_refs").write_text(_RESET_PEAK)

    def megabytes(self) -> float:
        """In units of 10^6 bytes."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 1e6
        lines = (_SELF / "status").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return kilobytes * 1024 / 1e6
