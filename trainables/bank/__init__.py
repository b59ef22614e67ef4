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

    def vectors(self, data: Data, group: str) -> int | None:
        """How many vectors the bank for ``group`` holds, as far as it can be told."""
        patches = self.patches(data, self.sources(data, group))
        return None if patches is None else bank_size(patches, self.coreset_percent)


def bank_size(patches: int, percent: float) -> int:
    """How many of so many patches are kept: rounded down as anomalib does, but at least one."""
    return max(1, int(patches * percent / 100))


def tested(data: Data) -> tuple[str, ...]:
    """Groups that have test items, in the order of report."""
    present = {item.group for item in data.test}
    return tuple(group for group in data.groups if group in present)


def one_per_bank(params: BankParams, data: Data) -> dict[tuple[str, ...], str]:
    """Sources of each bank -> the first group whose test images are compared with it."""
    found: dict[tuple[str, ...], str] = {}
    for group in tested(data):
        found.setdefault(params.sources(data, group), group)
    return found


def infeasible(params: BankParams, data: Data) -> str | None:
    """Why these data do not fill the banks of the groups tested; None where they do."""
    reasons = (why_empty(params, data, group) for group in tested(data))
    return next((reason for reason in reasons if reason is not None), None)


def why_empty(params: BankParams, data: Data, group: str) -> str | None:
    """Why the bank for ``group`` cannot be filled; None where it can."""
    sources = params.sources(data, group)
    if not sources:
        return (
            f"memory_bank 'others' compares a group with all others, and '{group}' is the only one "
            "of the data; add groups, or use 'own'"
        )
    filled = {item.group for item in data.train}
    empty = [source for source in sources if source not in filled]
    if empty:
        groups = "group" if len(empty) == 1 else "groups"
        return (
            f"there are no training images of {groups} {', '.join(empty)}, which the bank of "
            f"'{group}' is filled with; check the data, or leave them out"
        )
    return None


NBITS = range(1, 25)  # that FAISS 1.15 trains and searches, given enough vectors


def why_infeasible(
    *, nbits: int, m: int, n_clusters: int, dimension: int | None, vectors: int | None
) -> str | None:
    """Why FAISS cannot compress a bank so; None where it can, or where nobody can tell yet.

    Args:
        nbits: Bits of a code.
        m: Codes of a vector.
        n_clusters: Cells of the inverted file.
        dimension: Of a vector, if known.
        vectors: In the bank, if known.
    """
    if nbits not in NBITS:
        return f"nbits {nbits} is not from {NBITS[0]} to {NBITS[-1]}, as FAISS asks; use 4, 6 or 8"
    if m < 1 or n_clusters < 1:
        return f"m is {m} and n_clusters {n_clusters}; use 1 or more of both"
    if dimension is not None and dimension % m:
        divisors = [n for n in range(1, dimension + 1) if dimension % n == 0]
        below, above = [n for n in divisors if n < m][-1:], [n for n in divisors if n > m][:1]
        return (
            f"m {m} does not divide the {dimension} dimensions of a vector; use "
            f"{' or '.join(map(str, below + above))}"
        )
    return None if vectors is None else _why_too_few(vectors, nbits, n_clusters)


def _why_too_few(vectors: int, nbits: int, n_clusters: int) -> str | None:
    if vectors < 2**nbits:
        fits = vectors.bit_length() - 1
        lower = f"use nbits {fits} or less, or raise" if fits else "raise"
        return (
            f"nbits {nbits} needs at least {2**nbits:,} vectors to train its codes, and the bank "
            f"has {vectors:,}; {lower} coreset_percent"
        )
    if vectors < n_clusters:
        return (
            f"n_clusters {n_clusters:,} is more than the {vectors:,} vectors of the bank; use "
            f"{vectors:,} or less, or raise coreset_percent"
        )
    return None
