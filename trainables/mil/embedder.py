"""The network that makes a word a point, and how it learns to put a writer's words together.

On a CPU its weights are a function of the parameters and the data alone, to the last bit: order and
distortion of the words are functions of seed, epoch and word, what dropout draws is kept in
checkpoints, and arithmetic takes one thread, since any trial may be the builder. Words to embed are
shared out between threads a chunk at a time, which changes no bit of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from hdsweep.method import Data, MethodError, TrialContext
from trainables.encoders.backbone import Network, create, network
from trainables.encoders.images import normalised
from trainables.encoders.threads import one_thread
from trainables.mil.arcface import ArcFace
from trainables.mil.images import Words, distorted
from trainables.mil.verification import draw_pairs, verify
from trainables.mil.words import WordParams, writer_of

_STATE_FILE = "state.pt"
_RISE_SHARE = 0.2  # of the steps, in which the learning rate rises
_FINAL_DIVISOR = 100  # of the initial learning rate, a 25th of the peak
_LEAST_STEPS = 10  # of a schedule: a shorter one has no rise


class Embedder(nn.Module):
    """A network and the head that projects what it says of a whole image.

    Args:
        backbone: Of timm, without a classifier.
        params: Sizes of the head.
    """

    def __init__(self, backbone: Network, params: WordParams) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Linear(_width(backbone), params.projection_dim),
            nn.BatchNorm1d(params.projection_dim),
            nn.ReLU(),
            nn.Dropout(params.embedder_dropout),
            nn.Linear(params.projection_dim, params.embedding_dim),
            nn.BatchNorm1d(params.embedding_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings of any length, shape (batch, embedding_dim), of images in ImageNet's unit."""
        found = self.backbone.forward_features(images)
        embedding: Tensor = self.head(self.backbone.forward_head(found, pre_logits=True))
        return embedding


def _width(backbone: Network) -> int:
    """Of the vector that a network makes of an image; some have layers after the pooling."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)


@torch.no_grad()
def _require_sight(net: Embedder, params: WordParams) -> None:
    """Raise MethodError unless the network makes a vector of images of this size."""
    try:
        net.eval()(torch.zeros(1, 3, *params.crop))
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
        height, width = params.crop
        reason = str(error).strip().partition("\n")[0]
        raise MethodError(
            f"encoder '{params.encoder}' makes no vector of images of {height}x{width} ({reason}); "
            "set resize to a size that it takes, or name another encoder"
        ) from error


@dataclass(frozen=True, slots=True)
class Epoch:
    """What was seen of an epoch.

    Args:
        loss: Mean over its steps.
        validation_auc: Of the verification of the validation writers, after it.
    """

    loss: float
    validation_auc: float


@dataclass(frozen=True, slots=True)
class Trained:
    """An embedder and how it came about.

    Args:
        net: With the weights of the best epoch, on the CPU, to evaluate.
        epochs: All that were trained.
        best: Which of them was best, from 1.
    """

    net: Embedder
    epochs: tuple[Epoch, ...]
    best: int


def train(params: WordParams, data: Data, context: TrialContext) -> Trained:
    """Train on the words of ``data.train`` until those of ``data.validation`` get no better.

    Torch's global random state is left as it was.

    Args:
        params: Knobs.
        data: Whose writers are in one split each, with their facts.
        context: Lends device, threads, log and checkpoints.

    Raises:
        MethodError: The loss became NaN or infinite, or as ``backbone.network``.
    """
    device = torch.device(context.device)
    with one_thread(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(params.embedder_seed)
        return _Training(params, data, context).run()


def create_embedder(params: WordParams) -> Embedder:
    """An embedder with fresh weights, which leaves torch's random state as it was."""
    with torch.random.fork_rng([]):
        return Embedder(create(params), params)


def embedded(
    net: Embedder, images: Iterable[Tensor], device: torch.device, threads: int
) -> Iterator[Tensor]:
    """Embeddings of unit length, in the chunks in which the images come.

    Args:
        net: On the device, to evaluate.
        images: Chunks as ``Words`` gives them.
        device: That computes.
        threads: Of a CPU, that take a chunk each.
    """

    @torch.inference_mode()
    def embed(some: Tensor) -> Tensor:
        return F.normalize(net(normalised(some.to(device).float()))).cpu()

    waiting: deque[Future[Tensor]] = deque()
    workers = threads if device.type == "cpu" else 1
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        for some in images:
            waiting.append(pool.submit(embed, some))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Training:
    """What changes from step to step, and how."""

    def __init__(self, params: WordParams, data: Data, context: TrialContext) -> None:
        self._params, self._context = params, context
        self._device = torch.device(context.device)
        names = [writer_of(item) for item in data.train]
        writers, label = np.unique(names, return_inverse=True)
        self._label = torch.from_numpy(label)
        random = params.weights == "random"  # of the embedder's own seed
        backbone = create(params) if random else network(params, data, context)
        net = Embedder(backbone.requires_grad_(requires_grad=True), params)
        _require_sight(net, params)
        self._net = net.to(self._device)
        self._margin = ArcFace(
            params.embedding_dim,
            len(writers),
            scale=params.scale,
            margin=params.margin,
            easy_margin=params.easy_margin,
        ).to(self._device)
        self._per_epoch = max(1, len(data.train) // params.embedder_batch_size)
        self._steps = params.embedder_epochs * self._per_epoch
        self._optimizer = torch.optim.AdamW(
            [*self._net.parameters(), *self._margin.parameters()],
            lr=params.embedder_lr,
            weight_decay=params.embedder_weight_decay,
        )
        self._schedule = OneCycleLR(
            self._optimizer,
            max_lr=params.embedder_lr,
            total_steps=max(self._steps, _LEAST_STEPS),
            pct_start=_RISE_SHARE,
            final_div_factor=_FINAL_DIVISOR,
        )
        self._train = Words(data.train, params, data, context.threads)
        self._validation = Words(data.validation, params, data, context.threads)
        self._pairs = draw_pairs(
            [writer_of(item) for item in data.validation], params.verification_pairs
        )
        self._step = 0
        self._losses: list[float] = []  # of the epoch that is under way
        self._epochs: list[Epoch] = []
        self._best: dict[str, Tensor] = {}
        context.log.info(
            "training the embedder on %d words of %d writers, for up to %d steps, once",
            len(names),
            len(writers),
            self._steps,
        )

    def run(self) -> Trained:
        """Train from the last checkpoint, or the start."""
        folder = self._context.resume()
        if folder is not None:
            self._restore(folder)
        while not self._is_done():
            self._run_epoch()
        self._net.load_state_dict(self._best)
        self._context.log.info(
            "the embedder of epoch %d verifies best, with AUC %.4f on the validation writers",
            self._best_epoch,
            self._epochs[self._best_epoch - 1].validation_auc,
        )
        net = self._net.cpu().eval().requires_grad_(requires_grad=False)
        return Trained(net, tuple(self._epochs), self._best_epoch)

    @property
    def _best_epoch(self) -> int:
        """From 1; the first of those that are equally good."""
        found = [epoch.validation_auc for epoch in self._epochs]
        return 1 + found.index(max(found))

    def _is_done(self) -> bool:
        patient = (
            not self._epochs
            or len(self._epochs) - self._best_epoch < self._params.embedder_patience
        )
        return self._step >= self._steps or not patient

    def _run_epoch(self) -> None:
        """Train to the end of the epoch that is under way."""
        epoch, size = len(self._epochs), self._params.embedder_batch_size
        stream = np.random.SeedSequence(self._params.embedder_seed, spawn_key=(0, epoch))
        order = np.random.default_rng(stream).permutation(len(self._label))
        order = order[: self._per_epoch * size][len(self._losses) * size :]
        self._net.train()
        for start, images in enumerate(self._train.batches(order, size)):
            places = order[start * size : (start + 1) * size]
            self._take_step(images.float(), places, epoch)
            if len(self._losses) == self._per_epoch:
                self._end_epoch()
            self._context.checkpoint(self._step, self._save)

    def _take_step(self, images: Tensor, places: NDArray[np.intp], epoch: int) -> None:
        if self._params.augment == "affine":
            images = distorted(images, places.tolist(), epoch, self._params.embedder_seed)
        embedding = self._net(normalised(images.to(self._device)))
        label = self._label[torch.from_numpy(places)].to(self._device)
        loss = F.cross_entropy(self._margin(embedding, label), label)
        self._step += 1
        self._losses.append(loss.item())
        if not math.isfinite(self._losses[-1]):
            raise self._diverged("loss")
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._schedule.step()

    def _end_epoch(self) -> None:
        """Measure verification, and keep the weights if they are the best so far."""
        self._net.eval()
        chunks = self._validation.in_order()
        parts = list(embedded(self._net, chunks, self._device, self._context.threads))
        found = torch.cat(parts).numpy()
        if not np.isfinite(found).all():
            raise self._diverged("embedding of the validation words")
        measured = Epoch(
            loss=math.fsum(self._losses) / len(self._losses),
            validation_auc=verify(found, self._pairs).auc,
        )
        self._losses = []
        self._epochs.append(measured)
        if self._best_epoch == len(self._epochs):
            self._best = {
                name: value.detach().cpu().clone() for name, value in self._net.state_dict().items()
            }
        self._context.log.info(
            "embedder epoch %d: loss %.4f, validation AUC %.4f",
            len(self._epochs),
            measured.loss,
            measured.validation_auc,
        )

    def _diverged(self, what: str) -> MethodError:
        return MethodError(
            f"the embedder's {what} is not finite at step {self._step} of {self._steps}; lower "
            "embedder_lr or scale, or check the data and the encoder's weights for extreme values"
        )

    def _save(self, folder: Path) -> None:
        """Write all that the next step depends on."""
        state: dict[str, Any] = {
            "step": self._step,
            "losses": self._losses,
            "epochs": [(epoch.loss, epoch.validation_auc) for epoch in self._epochs],
            "best": self._best,
            "net": self._net.state_dict(),
            "margin": self._margin.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "rng_cpu": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self._device)
        torch.save(state, folder / _STATE_FILE)

    def _restore(self, folder: Path) -> None:
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        self._step = int(state["step"])
        self._losses = list(state["losses"])
        self._epochs = [Epoch(loss, auc) for loss, auc in state["epochs"]]
        self._best = state["best"]
        self._net.load_state_dict(state["net"])
        self._margin.load_state_dict(state["margin"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng_cpu"])
        if self._device.type == "cuda" and "rng_cuda" in state:
            torch.cuda.set_rng_state(state["rng_cuda"], self._device)
