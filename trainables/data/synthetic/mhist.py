"""Synthetic pictures of polyps in the layout of MHIST.

Hyperplastic polyps (HP) are normal synthetic tissue and sessile serrated adenomas (SSA) altered
tissue; ``tissue.py`` says what that means. Every picture has a stain and a key of its own, named by
seed, partition, label and index.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Strict
from trainables.data.folders import MARKER
from trainables.data.synthetic.tissue import Floats, key_of, paint

Partition = Literal["train", "test"]
Label = Literal["HP", "SSA"]

TABLE = "annotations.csv"
VOTES = 7  # pathologists who voted on each picture
COLUMNS = (
    "Image Name",
    "Majority Vote Label",
    "Number of Annotators who Selected SSA (Out of 7)",
    "Partition",
)
SIDE = 224  # pixels


class Params(Strict):
    """Synthetic pictures of polyps, as many as in MHIST unless told otherwise.

    Args:
        train_hp: Pictures of HP in the partition ``train``.
        train_ssa: Pictures of SSA there, which no method is trained on.
        test_hp: Pictures of HP in the partition ``test``.
        test_ssa: Pictures of SSA there.
        severity: How far SSA departs from HP; 0 cannot be seen.
        seed: Names the pictures and the votes.
    """

    train_hp: int = Field(1545, ge=1, le=10_000)
    train_ssa: int = Field(630, ge=0, le=10_000)
    test_hp: int = Field(617, ge=1, le=10_000)
    test_ssa: int = Field(360, ge=1, le=10_000)
    severity: float = Field(1.0, ge=0, le=3)
    seed: int = Field(1, ge=0)

    def count(self, partition: Partition, label: Label) -> int:
        """Pictures of one label in one partition."""
        return int(getattr(self, f"{partition}_{label.lower()}"))


def write(params: Params, root: Path) -> None:
    """Write ``images/*.png`` and ``annotations.csv``. The same ``params`` write the same bytes."""
    import PIL.Image

    (root / "images").mkdir()
    rows: list[tuple[str | int, ...]] = []
    for p, partition in enumerate(get_args(Partition)):
        for c, label in enumerate(get_args(Label)):
            for index in range(params.count(partition, label)):
                key = key_of(params.seed, 1, p, c, index)
                look = _altered if label == "SSA" else _normal
                pixels = paint(key, (0, 0), (SIDE, SIDE), look, severity=params.severity)
                name = f"MHIST_{len(rows):04d}.png"
                PIL.Image.fromarray(pixels).save(root / "images" / name)
                rng = np.random.default_rng(key)
                votes = int(rng.integers(4, 8) if label == "SSA" else rng.integers(0, 4))
                rows.append((name, label, votes, partition))
    with (root / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    (root / MARKER).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _altered(y: Floats, _x: Floats) -> NDArray[np.bool_]:
    return np.ones(y.shape, np.bool_)


def _normal(y: Floats, _x: Floats) -> NDArray[np.bool_]:
    return np.zeros(y.shape, np.bool_)
