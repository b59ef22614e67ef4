"""Memory banks: the normal patches that a test patch is compared with.

PatchCore and Propose Noising look through the same bank, so it is a room of its own. A bank is
chosen from the training patches of one or more groups (see ``coreset``), kept as a stage, and
searched exactly (``neighbours``) or through a compressed index (``ivfpq``).

This module is what planning a sweep imports, so it knows no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hdsweep.method import Data
from trainables.encoders.patches import PatchParams


class BankParams(PatchParams):
    """Knobs of a memory bank.

    Args:
        memory_bank: Whose training images fill the bank that a group's test images are compared
            with: its ``own`` (as published), those of all groups (``joint``), or those of all
            ``others``, which shows how far a bank carries across domains.
        coreset: How its patches are chosen.
        coreset_percent: Share of the training patches that is kept.
    """

    memory_bank: Literal["own", "joint", "others"] = "own"
    coreset: Literal["random", "k_center", "variance_k_center"] = "k_center"
    coreset_percent: float = Field(10, gt=0, le=100)

    def sources(self, data: Data, group: str) -> tuple[str, ...]:
        """Groups whose training images fill the bank for test images of ``group``."""
        if self.memory_bank == "own":
            return (group,)
        return tuple(g for g in data.groups if self.memory_bank == "joint" or g != group)
