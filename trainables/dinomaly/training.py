"""One trial of Dinomaly: the loop, its randomness, and how it is continued.

On a CPU a trial is a function of its parameters, its data, its seed, its number of threads and the
tokens that it shares with others, to the last bit; with ``compile``, of what that compiles to as
well. The order of the images and their augmentation are functions of seed and step, so they need no
state; the weights' start and the dropout come from torch's global stream, which is seeded here,
after the encoder has been made or found, and kept in checkpoints.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models.image.dinomaly.components import StableAdamW, WarmCosineScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from hdsweep.method import (
    AnomalyMaps,
    Data,
    Diverged,
    Item,
    MethodError,
    Outcome,
    Predictions,
    TrialContext,
)
from hdsweep.metrics import evaluate
from trainables.dinomaly import Params
from trainables.dinomaly.losses import objective_of
from trainables.dinomaly.memory import Peak
from trainables.dinomaly.model import MAP_SIZE, DinomalyNet
from trainables.encoders.images import CHUNK, mask_on_grid, normalised
from trainables.encoders.tokens import Tokens

_STATE_FILE = "state.pt"
_AUGMENTS, _VALIDATES = 1, 2  # streams beside the order of the images


def train_and_score(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Train on ``data.train``, score ``data.test``."""
    trial = DinomalyTrial(params, data, context)
    peak = Peak(trial.device)  # of training and scoring: encoding is another trial's as often
    final_loss = trial.train()
    maps = None
    if data.read_mask is not None and any(item.mask for item in data.test):
        path = context.scratch / "maps.npy"
        maps = AnomalyMaps(path, trial.mask_on_map)
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(data.test), *MAP_SIZE)}
        try:
            with path.open("wb") as file:  # not mapped: a full disk would end the process
                np.lib.format.write_array_header_2_0(file, header)
                score = trial.score(data.test, lambda chunk: file.write(chunk.tobytes()))
        except OSError as error:  # a write does not say to which file
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    else:
        score = trial.score(data.test)
    return Outcome(
        predictions=Predictions.of(data.test, score),
        scalars={"final_loss": final_loss, "peak_memory_mb": peak.megabytes()},
        maps=maps,
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
        self.steps_per_epoch = math.ceil(len(data.train) / params.batch_size)
        self._require_a_learning_rate()
        objective_of(params, 1, data.groups)  # what it refuses is refused before images are encoded
        if params.compile:
            require_compiler()
            torch._dynamo.reset()  # noqa: SLF001 - else a worker's ninth trial runs uncompiled
        keep = None if params.tokens == "none" else params.tokens
        self.tokens = Tokens(params, params.target_layers, data, context, keep)
        self.tokens.prepare("test", *(("train",) if params.augment == "none" else ()))
        shape = self.tokens.shape
        torch.manual_seed(context.seed)
        self.net = DinomalyNet(shape, params, data.groups, params.crop).to(self.device)
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
        self.group_of = [data.groups.index(item.group) for item in data.train]
        self.validation = self._validation_items() if params.validation == "from_test" else ()

    def train(self) -> float:
        """Run from the last checkpoint, or the start, to ``max_steps``.

        Returns:
            The last training loss. Its meaning is the variant's own.

        Raises:
            Diverged: The loss or the gradient became NaN or infinite.
        """
        loss = math.nan
        done = 0
        folder = self.context.resume()
        if folder is not None:
            done, loss = self._restore(folder)
            self.context.log.info("continuing after step %d", done)
        self._log_values(self._batch(done + 1))
        self.net.train()
        for step in range(done + 1, self.params.max_steps + 1):
            loss = self._step(step)
            self.context.checkpoint(step, partial(self._save, step=step, loss=loss))
        return loss

    def _step(self, step: int) -> float:
        batch = self._batch(step)
        group = torch.tensor([self.group_of[i] for i in batch], device=self.device)
        seen = self.net.reconstruct(self._tokens_of(batch, step), group)
        loss, shown = self.net.objective(seen, step - 1)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.learned if p.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        point = _numbers({"loss": loss, "grad/total_norm": total_norm, **shown})
        point["grad/nan_count"] = 0.0
        value, norm = point["loss"], point["grad/total_norm"]
        if not (math.isfinite(value) and math.isfinite(norm)):
            point["grad/nan_count"] = float(sum(int((~torch.isfinite(g)).sum()) for g in gradients))
            self.context.report(step, point)
            raise Diverged(step, "gradient norm" if math.isfinite(value) else "loss")
        nn.utils.clip_grads_with_norm_(self.learned, self.params.grad_clip, total_norm)
        point["lr"] = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        if self.params.lr_interval == "step" or step % self.steps_per_epoch == 0:
            self.scheduler.step()
            self._plain_learning_rates()
        if self.validation and (
            step % self.params.validate_every == 0 or step == self.params.max_steps
        ):
            point |= self._validate()
        self.context.report(step, point)
        return value

    def score(
        self, items: Sequence[Item], keep: Callable[[NDArray[np.float32]], object] | None = None
    ) -> NDArray[np.float64]:
        """Score of each test item, shape (len(items),).

        Args:
            items: Some of ``data.test``.
            keep: Is given their anomaly maps in turn, some at a time, shape (some, *MAP_SIZE).
        """
        training = self.net.training
        self.net.eval()
        scores = []
        with torch.inference_mode():
            for start in range(0, len(items), CHUNK):
                chunk = items[start : start + CHUNK]
                smooth = self.net.smooth_map(self.tokens.of("test", chunk))
                scores.append(self.net.score(smooth).double().cpu())
                if keep is not None:
                    keep(smooth.float().cpu().numpy().astype("<f4"))
        self.net.train(training)
        return torch.cat(scores).numpy()

    def mask_on_map(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask of an image's own size on the grid of the anomaly maps."""
        found = mask_on_grid(mask, self.params, MAP_SIZE)
        if mask.any() and not found.any():
            self.context.log.warning(
                "a mask of %d pixels vanishes on the grid of the maps, by its size or the crop; "
                "its image counts as normal in pixel metrics",
                int(mask.sum()),
            )
        return found

    def _batch(self, step: int) -> NDArray[np.intp]:
        """Training items of a step, counted from 1: a new order in each epoch."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        stream = np.random.SeedSequence(self.context.seed, spawn_key=(epoch,))
        order = np.random.default_rng(stream).permutation(len(self.data.train))
        size = self.params.batch_size
        return order[place * size : (place + 1) * size]

    def _tokens_of(self, batch: NDArray[np.intp], step: int) -> Tensor:
        items = [self.data.train[i] for i in batch]
        if self.params.augment == "none":
            return self.tokens.of("train", items)
        stream = np.random.SeedSequence(self.context.seed, spawn_key=(_AUGMENTS, step))
        rng = np.random.default_rng(stream)
        images = (image for chunk in self.tokens.images(items) for image in chunk)
        return self.tokens.encode([augmented(image, self.params.augment, rng) for image in images])

    def _validation_items(self) -> tuple[Item, ...]:
        """The same share of each group's normal and anomalous test items, for every seed."""
        rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(_VALIDATES,)))
        chosen = []
        for group in self.data.groups:
            for anomalous in (False, True):
                kind = [
                    item
                    for item in self.data.test
                    if item.group == group and item.is_anomaly is anomalous
                ]
                count = math.ceil(len(kind) * self.params.validation_percent / 100)
                chosen += [kind[i] for i in np.sort(rng.permutation(len(kind))[:count])]
        return tuple(chosen)

    def _validate(self) -> dict[str, float]:
        """Area under the ROC curve of the validation items, the mean over groups."""
        score = self.score(self.validation)
        label = np.array([item.is_anomaly for item in self.validation])
        group = np.array([item.group for item in self.validation])
        found = evaluate(["auroc"], group, label, score)[0]["auroc"].values()
        values = [math.nan if value is None else value for value in found]
        return {"val/auroc": math.fsum(values) / len(values)}

    def _log_values(self, batch: NDArray[np.intp]) -> None:
        """Ranges of what goes in, where most mistakes with data show first."""
        items = [self.data.train[i] for i in batch]
        raw = torch.cat([torch.from_numpy(self.data.read(item)).flatten() for item in items])
        images = [image for chunk in self.tokens.images(items) for image in chunk]
        for what, values in (
            ("as stored", raw),
            ("as the encoder sees them", normalised(torch.stack(images))),
        ):
            self.context.log.info(
                "first batch, %d images %s: min %.4g, mean %.4g, max %.4g, %d not finite",
                len(items),
                what,
                float(values.min()),
                float(values.mean()),
                float(values.max()),
                int((~torch.isfinite(values)).sum()),
            )
        if float(raw.min()) == float(raw.max()):
            self.context.log.warning("all values of the first batch are the same")

    def _require_a_learning_rate(self) -> None:
        if (
            self.params.lr_interval == "epoch"
            and self.params.lr_warmup_steps > 0
            and self.params.max_steps <= self.steps_per_epoch
        ):
            raise MethodError(
                f"lr_interval 'epoch': the learning rate is 0 in the first epoch, and max_steps "
                f"{self.params.max_steps} ends within it ({self.steps_per_epoch} steps of "
                f"{self.params.batch_size} images); raise max_steps or use lr_interval 'step'"
            )

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
        if (self.device.type == "cuda") is not ("rng_cuda" in state):
            self.context.log.warning(
                "continued on another kind of device: from here on dropout is drawn otherwise than "
                "it would have been, and the scores are not those of an uninterrupted trial"
            )
        elif self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        return int(state["step"]), float(state["loss"])


def _numbers(told: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Plain numbers, after one wait for the GPU that tensors are on."""
    tensors = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    read = torch.stack([value.detach().double() for value in tensors.values()]).tolist()
    return {name: float(value) for name, value in told.items() if name not in tensors} | dict(
        zip(tensors, read, strict=True)
    )


def require_compiler() -> None:
    """Raise MethodError unless what ``torch.compile`` writes can be compiled here."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise MethodError(
            f"compile: true needs a C++ compiler, and {compiler} is not found; install g++, or set "
            "compile to false"
        )


def augmented(image: Tensor, how: str, rng: np.random.Generator) -> Tensor:
    """An image of shape (channels, height, width), mirrored or shifted cyclically at random."""
    if how == "flip":
        return image.flip([side for side in (1, 2) if rng.random() < 0.5])
    shifts = [int(rng.integers(size)) for size in image.shape[1:]]
    return image.roll(shifts, dims=(1, 2))
