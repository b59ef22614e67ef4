"""One trial of Dinomaly: the loop, its randomness, and how it is continued.

On a CPU a trial is a function of its parameters, its data, its seed and its number of threads, to
the last bit. The order of the images is a function of seed and step, so it needs no state; the
weights' start and the dropout come from torch's global stream, which is seeded here, after the
encoder has been made or found, and kept in checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models.image.dinomaly.components import StableAdamW, WarmCosineScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from hdsweep.method import Data, Diverged, Item, Outcome, Predictions, TrialContext
from trainables.dinomaly import Params
from trainables.dinomaly.model import SCALES, DinomalyNet
from trainables.encoders.backbone import build
from trainables.encoders.images import normalised, resized

Features = Callable[[NDArray[np.intp]], Tensor]

REPORT_EVERY = 10
KEEP_BYTES = 2**30  # features of the training images up to this size are kept in memory
_CHUNK = 32  # images encoded at once outside of training
_STATE_FILE = "state.pt"


def train_and_score(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Train on ``data.train``, score ``data.test``."""
    net = DinomalyTrial(params, data, context)
    final_loss = net.train()
    return Outcome(
        predictions=Predictions.of(data.test, net.score(data.test)),
        scalars={"final_loss": final_loss},
    )


class DinomalyTrial:
    """Network, optimiser and data of one trial.

    Args:
        params: Knobs.
        data: What to train on.
        context: Lends seed, device, checkpoints and the curve.
    """

    def __init__(self, params: Params, data: Data, context: TrialContext) -> None:
        self.params, self.data, self.context = params, data, context
        self.device = torch.device(context.device)
        encoder = build(params, params.target_layers, data, context)
        torch.manual_seed(context.seed)
        self.net = DinomalyNet(encoder, params).to(self.device)
        self.learned = [p for p in self.net.learned.parameters() if p.requires_grad]
        self.optimizer = StableAdamW(
            self.learned,
            lr=params.lr,
            betas=(0.9, 0.999),
            weight_decay=params.weight_decay,
            amsgrad=True,
            eps=1e-8,
        )
        self.scheduler = WarmCosineScheduler(
            self.optimizer,
            base_value=params.lr,
            final_value=params.final_lr,
            total_iters=params.max_steps,
            warmup_iters=params.lr_warmup_steps,
        )
        self._plain_learning_rates()
        self.steps_per_epoch = math.ceil(len(data.train) / params.batch_size)

    def train(self) -> float:
        """Run from the last checkpoint, or the start, to ``max_steps``.

        Returns:
            The last training loss. Its meaning is the variant's own.

        Raises:
            Diverged: The loss or the gradient became NaN or infinite.
        """
        features = self._training_features()
        loss = math.nan
        done = 0
        folder = self.context.resume()
        if folder is not None:
            done, loss = self._restore(folder)
            self.context.log.info("continuing after step %d", done)
        self.net.train()
        for step in range(done + 1, self.params.max_steps + 1):
            loss = self._step(step, features(self._batch(step)))
            self.context.checkpoint(step, partial(self._save, step=step, loss=loss))
        return loss

    def _step(self, step: int, features: Tensor) -> float:
        encoded, decoded = self.net.reconstruct(features, self.net.grid(self.params.crop))
        loss = self.net.loss_fn(encoded, decoded, global_step=step - 1)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(step, "loss")
        self.optimizer.zero_grad()
        loss.backward()
        total_norm = nn.utils.get_total_norm([p.grad for p in self.learned if p.grad is not None])
        norm = float(total_norm)
        if not math.isfinite(norm):
            bad = sum(
                int((~torch.isfinite(p.grad)).sum()) for p in self.learned if p.grad is not None
            )
            self.context.report(step, {"loss": value, "grad/nan_count": float(bad)})
            raise Diverged(step, "gradient norm")
        nn.utils.clip_grads_with_norm_(self.learned, self.params.grad_clip, total_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        if self.params.lr_interval == "step" or step % self.steps_per_epoch == 0:
            self.scheduler.step()
            self._plain_learning_rates()
        if step == 1 or step % REPORT_EVERY == 0 or step == self.params.max_steps:
            self.context.report(
                step,
                {
                    "loss": value,
                    "lr": lr,
                    "grad/total_norm": norm,
                    "grad/nan_count": 0.0,
                    **self.net.loss_fn.scheduled(),
                },
            )
        return value

    def score(self, items: Sequence[Item]) -> NDArray[np.float64]:
        """Score of each item, shape (len(items),)."""
        self.net.eval()
        with torch.inference_mode():
            scores = [
                self.net.score(self._encode(chunk), self.params.crop).double().cpu()
                for chunk in _chunks(items)
            ]
        return torch.cat(scores).numpy()

    def _batch(self, step: int) -> NDArray[np.intp]:
        """Training items of a step, counted from 1: a new order in each epoch."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        stream = np.random.SeedSequence(self.context.seed, spawn_key=(epoch,))
        order = np.random.default_rng(stream).permutation(len(self.data.train))
        size = self.params.batch_size
        return order[place * size : (place + 1) * size]

    def _training_features(self) -> Features:
        """Features of training items by index: computed once if they fit in memory.

        They are a function of encoder, image size and data alone, not of seed or variant.
        """
        rows, columns = self.net.grid(self.params.crop)
        encoder = self.net.encoder
        tokens = rows * columns + 1 + encoder.num_register_tokens
        size_bytes = len(self.data.train) * SCALES * tokens * encoder.embed_dim * 4
        if size_bytes > KEEP_BYTES:
            return lambda batch: self._encode([self.data.train[i] for i in batch])
        with torch.no_grad():
            kept = torch.cat([self._encode(chunk) for chunk in _chunks(self.data.train)])
        return lambda batch: kept[torch.from_numpy(batch).to(kept.device)]

    def _encode(self, items: Sequence[Item]) -> Tensor:
        images = torch.stack([torch.from_numpy(self.data.read(item)) for item in items])
        seen = normalised(resized(images.to(self.device), self.params))
        features: Tensor = self.net.encode(seen)
        return features

    def _plain_learning_rates(self) -> None:
        """Floats for the scheduler's numpy scalars, which a checkpoint must not hold."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])
            group["initial_lr"] = float(group["initial_lr"])

    def _save(self, folder: Path, *, step: int, loss: float) -> None:
        state: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "learned": self.net.learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler_epoch": self.scheduler.last_epoch,
            "rng_cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        torch.save(state, folder / _STATE_FILE)

    def _restore(self, folder: Path) -> tuple[int, float]:
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        self.net.learned.load_state_dict(state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.last_epoch = state["scheduler_epoch"]
        torch.set_rng_state(state["rng_cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        return int(state["step"]), float(state["loss"])


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
