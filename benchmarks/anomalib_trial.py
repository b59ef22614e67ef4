"""One trial of Dinomaly as anomalib's users run it: a process, its Engine, one seed.

    python -m benchmarks.anomalib_trial settings.json gem 42 result.json [whole]

For ``dinomaly_sweep``, whose docstring says what is set and why. The knobs are hdsweep's, read from
the same file as those of the sweep.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # names that timm, and anomalib itself, have moved
    from anomalib import TaskType
    from anomalib.callbacks import ModelCheckpoint
    from anomalib.data import AnomalibDataModule
    from anomalib.data.datasets.base import AnomalibDataset
    from anomalib.engine import Engine
    from anomalib.models import Dinomaly
    from anomalib.models.image.dinomaly.lightning_model import TRAINING_CONFIG
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

import numpy as np
import pandas as pd
import tifffile
from anomalib.data import ImageItem
from lightning.pytorch import seed_everything

from hdsweep.method import Data, Item
from hdsweep.metrics import evaluate
from trainables.data import hdmap
from trainables.dinomaly import Params
from trainables.dinomaly.losses import Objective, Reconstruction, objective_of


class Maps(AnomalibDataset):
    """Maps as float images of three channels; anomalib's own reader would make them bytes."""

    def __init__(self, items: tuple[Item, ...], split: str) -> None:
        super().__init__()
        samples = pd.DataFrame(
            {
                "image_path": [str(item.path) for item in items],
                "label_index": [int(item.is_anomaly) for item in items],
                "mask_path": "",
                "split": split,
            }
        )
        samples.attrs["task"] = TaskType.CLASSIFICATION
        self.samples = samples

    def __getitem__(self, index: int) -> ImageItem:
        """The map, resized by what the data module has set."""
        row = self.samples.iloc[index]
        image = torch.from_numpy(tifffile.imread(row.image_path)).expand(3, -1, -1)
        return ImageItem(
            image=self.augmentations(image),
            gt_label=torch.tensor(int(row.label_index)),
            image_path=row.image_path,
        )


class Domains(AnomalibDataModule):
    """Training and test maps of all domains."""

    def __init__(self, data: Data, batch_size: int, seed: int, *, validate: bool) -> None:
        super().__init__(
            train_batch_size=batch_size,
            eval_batch_size=32,
            num_workers=0,
            test_split_mode="from_dir",
            val_split_mode="from_test" if validate else "none",
            val_split_ratio=0.1,
            seed=seed,
        )
        self.data = data

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = Maps(self.data.train, "train")
        self.test_data = Maps(self.data.test, "test")


class Loss(torch.nn.Module):
    """An objective of ``trainables.dinomaly.losses`` in place of anomalib's loss."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self,
        encoder_features: list[torch.Tensor],
        decoder_features: list[torch.Tensor],
        global_step: int,
    ) -> torch.Tensor:
        """The loss; the variants compared see neither the bottleneck nor the images' groups."""
        nothing = torch.empty(0)
        seen = Reconstruction(encoder_features, decoder_features, nothing, nothing)
        return self.objective(seen, global_step)[0]


class Stepped(Dinomaly):
    """anomalib's module, whose scheduler counts steps instead of epochs."""

    def configure_optimizers(self) -> Any:
        """As anomalib, but for the interval."""
        optimizers, (scheduler,) = super().configure_optimizers()
        return optimizers, [{"scheduler": scheduler, "interval": "step"}]


def model_of(params: Params, encoder: Path, groups: tuple[str, ...], *, whole: bool) -> Dinomaly:
    """The model of anomalib with the objective of ``params.variant``."""
    TRAINING_CONFIG["optimizer"]["lr"] = params.lr
    TRAINING_CONFIG["scheduler"] |= {
        "base_value": params.lr,
        "final_value": params.final_lr,
        "warmup_iters": params.lr_warmup_steps,
    }
    module = Stepped(
        encoder_name=f"local-dir:{encoder}",
        pre_processor=Dinomaly.configure_pre_processor(params.resize, params.crop[0]),
        post_processor=whole,
        evaluator=whole,
        visualizer=whole,
    )
    objective = objective_of(params, module.model.encoder.out_dims[0], groups)
    module.model.loss_fn = Loss(objective)

    def combined(*features: Any, **size: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        _, scales = DinomalyModel.calculate_anomaly_maps(*features, **size)
        return objective.combine(torch.stack(scales).clamp_min(0)), scales

    module.model.calculate_anomaly_maps = combined
    return module


def main() -> None:
    """Train, score the test maps, and write seconds and AUROC per domain."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    arm, seed, target = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    params = Params.model_validate(settings["params"] | settings["arms"][arm])
    data = hdmap.load(hdmap.Params.model_validate({"root": settings["data"]}))
    whole = sys.argv[5:] == ["whole"]
    module = model_of(params, Path(settings["encoder"]), data.groups, whole=whole)
    maps = Domains(data, params.batch_size, seed, validate=whole)
    spared: dict[str, Any] = {
        "callbacks": [ModelCheckpoint(save_top_k=0)],
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    engine = Engine(
        default_root_dir=target.with_suffix(""),
        accelerator="cpu",
        devices=1,
        max_steps=params.max_steps,
        **{} if whole else spared,
    )
    began = time.monotonic()
    engine.fit(module, datamodule=maps)
    fitted = time.monotonic()
    if whole:
        engine.test(module, datamodule=maps)
        target.write_text(
            json.dumps(
                {
                    "steps": engine.trainer.global_step,
                    "fit_s": fitted - began,
                    "predict_s": time.monotonic() - fitted,
                }
            )
        )
        return
    batches = engine.predict(module, datamodule=maps, return_predictions=True)
    predicted = time.monotonic()
    score = {
        path: float(value)
        for batch in batches
        for path, value in zip(batch.image_path, batch.pred_score, strict=True)
    }
    found, _ = evaluate(
        ["auroc"],
        [item.group for item in data.test],
        np.array([item.is_anomaly for item in data.test]),
        np.array([score[str(item.path)] for item in data.test]),
    )
    result = {
        "steps": engine.trainer.global_step,
        "fit_s": fitted - began,
        "predict_s": predicted - fitted,
        "auroc": found["auroc"],
    }
    target.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
