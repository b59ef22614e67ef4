"""Embeddings of words, made once for all trials that look through the same embedder.

Training takes hours and so does a look at 350,000 words; bags, attention and a trial's seed change
neither. So the embedder is a stage, and the embeddings of each split are one made with it: an array
that is mapped into memory, in which bags are indices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hdsweep.method import Data, Infeasible, MethodError, Stage, TrialContext
from trainables.encoders import arrays
from trainables.mil.embedder import Embedder, create_embedder, embedded, train
from trainables.mil.images import Words
from trainables.mil.verification import Verification, draw_pairs, verify
from trainables.mil.words import (
    SPLITS,
    Split,
    WordParams,
    embedder_stage,
    embeddings_stage,
    items_of,
    require_disjoint,
    why_unfit,
    writer_of,
)

_WEIGHTS, _TRAINING = "embedder.safetensors", "training.json"


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of an embedding.

    Args:
        dimension: Its numbers.
    """

    dimension: int


class Embeddings:
    """Embeddings of the words of a trial.

    Args:
        params: The embedder and what it sees.
        data: Words and how to read them.
        context: Lends the stages, the device and the threads.

    Raises:
        Infeasible: As ``why_unfit`` says.
        MethodError: A writer has words in two splits.
    """

    def __init__(self, params: WordParams, data: Data, context: TrialContext) -> None:
        problem = why_unfit(data)
        if problem is not None:
            raise Infeasible(problem)
        require_disjoint(data)
        self._params, self._data, self._context = params, data, context
        self._device = torch.device(context.device)
        self._net: Embedder | None = None
        self._kept: dict[Split, NDArray[np.float32]] = {}
        self._content = arrays.Content(
            name="embeddings",
            keep="float32",
            wider="'float32'",
            smaller="free some, or lower the knob embedding_dim",
        )

    def prepare(self) -> None:
        """Have the words of all splits embedded now, then let go of the embedder.

        What other processes are at is left to them.

        Raises:
            MethodError: Training diverged, or as ``backbone.network``.
        """
        self._context.prepare([self._asked(split) for split in SPLITS])
        self._net = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # another process may have it

    def of(self, split: Split) -> NDArray[np.float32]:
        """Embeddings of a split's words, in their order.

        Returns:
            Shape (words, embedding_dim), rows of unit length, memory-mapped and read-only.

        Raises:
            MethodError: They are damaged, or as ``prepare``.
        """
        if split not in self._kept:
            folder = self._context.stage(*self._asked(split))
            self._kept[split], _ = arrays.read(folder, self._content, "r", _Shape)
        return self._kept[split]

    def verification(self, split: Split) -> Verification:
        """How well the writers of a split are verified by its words' embeddings."""
        writers = [writer_of(item) for item in items_of(self._data, split)]
        return verify(self.of(split), draw_pairs(writers, self._params.verification_pairs))

    def _asked(self, split: Split) -> tuple[Stage, Callable[[Path], None]]:
        def write(folder: Path) -> None:
            self._write(folder, split)

        return embeddings_stage(self._params, self._data, split), write

    def _write(self, folder: Path, split: Split) -> None:
        """Embed the words of a split into ``folder``, a chunk at a time."""
        if self._net is None:
            self._net = self._embedder().to(self._device)
        items, threads = items_of(self._data, split), self._context.threads
        self._context.log.info("embedding %d %s words, once", len(items), split)
        words = Words(items, self._params, self._data, threads, room_bytes=0)  # seen only once
        parts = embedded(self._net, words.in_order(), self._device, threads)
        size = self._params.embedding_dim
        arrays.write(folder, self._content, items, parts, (size,), _Shape(size))

    def _embedder(self) -> Embedder:
        """The trained embedder, on the CPU, to evaluate."""

        def build(folder: Path) -> None:
            made = train(self._params, self._data, self._context)
            save_file(made.net.state_dict(), folder / _WEIGHTS)
            told = {"best_epoch": made.best, "epochs": [asdict(epoch) for epoch in made.epochs]}
            (folder / _TRAINING).write_text(json.dumps(told, indent=1) + "\n")

        folder = self._context.stage(embedder_stage(self._params, self._data), build)
        net = create_embedder(self._params)
        try:
            net.load_state_dict(load_file(folder / _WEIGHTS))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise MethodError(
                f"{folder}: the embedder kept there is damaged ({error}); remove the folder, and "
                "it is trained anew"
            ) from error
        return net.eval().requires_grad_(requires_grad=False)
