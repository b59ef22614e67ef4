"""Dinomaly: its losses against their definitions, its trials against themselves."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from hdsweep.method import Data, Diverged, Item, Outcome
from trainables.dinomaly import METHOD, Params
from trainables.encoders.backbone import build

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of anomalib's own imports
    from anomalib.models.image.dinomaly.components import CosineHardMiningLoss
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    from trainables.dinomaly import training
    from trainables.dinomaly.losses import (
        GemLoss,
        TopKLoss,
        effective_k,
        generalised_mean,
        loss_of,
        point_distances,
    )
    from trainables.dinomaly.model import DinomalyNet

SMALL: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "weights": "random",
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "resize": [16, 12],
    "crop": None,
    "decoder_depth": 2,
    "max_steps": 12,
    "lr_warmup_steps": 3,
    "batch_size": 5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"p_schedule_steps": 10},
    "gem": {"variant": "gem", "p_schedule_steps": 10},
    "topk": {"variant": "topk", "warmup_steps": 5},
}


class StoppedError(Exception):
    """The engine ended the trial."""


class Context:
    """What the engine lends: checkpoints in a folder, a curve in a list."""

    device, threads = "cpu", 1
    log = logging.getLogger("test")

    def __init__(self, home: Path, seed: int = 42, stop_after: int | None = None) -> None:
        self.scratch, self.seed, self.stop_after = home, seed, stop_after
        self.curve: list[tuple[int, dict[str, float]]] = []
        torch.manual_seed(seed)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        assert all(np.isfinite(value) for value in metrics.values())
        self.curve.append((step, dict(metrics)))

    def stage(
        self, name: str, *, version: int, inputs: Mapping[str, object], build: Callable[..., None]
    ) -> Path:
        raise AssertionError("these trials share nothing")

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        if self.stop_after == step:
            folder = self.scratch / "checkpoint"
            folder.mkdir()
            save(folder)
            raise StoppedError

    def resume(self) -> Path | None:
        folder = self.scratch / "checkpoint"
        return folder if folder.exists() else None


def maps(train: int = 12, test: int = 9, *, broken: bool = False) -> Data:
    """Noisy maps of one pattern; every third test map has a bright row."""
    pattern = np.random.default_rng(0).random((1, 16, 12)) + 0.5

    def read(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        values = pattern * np.random.default_rng(int(item.name)).normal(1, 0.1, pattern.shape)
        if item.is_anomaly:
            values[:, 4:8] *= 3
        if broken:
            values[:] = np.nan
        return values.astype(np.float32)

    def items(first: int, count: int, every: int) -> tuple[Item, ...]:
        return tuple(
            Item(str(n), "A", is_anomaly=n % every == 0, path=Path())
            for n in range(first, first + count)
        )

    return Data(items(1, train, 10_000), items(300, test, 3), groups=("A",), read=read)


def params(**knobs: object) -> Params:
    return Params.model_validate({**SMALL, **knobs})


def trial(context: Context, data: Data | None = None, **knobs: object) -> Outcome:
    return METHOD.run(params(**knobs), data or maps(), context)


def features(
    scales: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    stream = torch.Generator().manual_seed(seed)
    shape = (3, 8, 4, 5)
    encoder = [torch.randn(shape, generator=stream, dtype=dtype) for _ in range(scales)]
    decoder = [e + torch.randn(shape, generator=stream, dtype=dtype) for e in encoder]
    return encoder, [d.requires_grad_() for d in decoder]


def gradients(
    loss: Callable[..., torch.Tensor], step: int, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    encoder, decoder = features(seed=seed)
    # A hook acts on the gradient that reaches the decoder's output, so look behind it.
    behind = [d.clone() for d in decoder]
    value = loss(encoder_features=encoder, decoder_features=behind, global_step=step)
    value.backward()
    return value, [d.grad for d in decoder if d.grad is not None]


# --- Losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 500, 1000, 5000])
def test_the_baseline_is_anomalibs_loss(step: int) -> None:
    ours, our_gradients = gradients(loss_of(params()), step)
    theirs, their_gradients = gradients(CosineHardMiningLoss(), step)
    assert torch.equal(ours, theirs)
    assert all(map(torch.equal, our_gradients, their_gradients))


def by_hand_gem(
    encoder: list[torch.Tensor], decoder: list[torch.Tensor], exponent: float
) -> torch.Tensor:
    d = torch.stack(
        [
            1 - (e * x).sum(1) / (e.norm(dim=1) * x.norm(dim=1))
            for e, x in zip(encoder, decoder, strict=True)
        ]
    )
    return (d**exponent).mean(0) ** (1 / exponent)


@pytest.mark.parametrize("exponent", [1, 2, 3, 14, 100])
@pytest.mark.parametrize("step", [0, 700])
def test_gem_is_its_definition_with_easy_gradients_scaled(exponent: float, step: int) -> None:
    """Against the naive formula in float64, where exponents up to 100 still neither over- nor
    underflow for distances near 1; the tolerance is float32's."""
    value, found = gradients(GemLoss(exponent, 0.9, 1000, 0.3), step)
    encoder, decoder = features()
    exact = [e.double() for e in encoder], [d.detach().double().requires_grad_() for d in decoder]
    combined = by_hand_gem(*exact, exponent)
    combined.mean().backward()
    torch.testing.assert_close(value.double(), combined.mean(), rtol=1e-5, atol=0)
    kept = max(1, int(combined.numel() * (1 - min(0.9, 0.9 * step / 1000))))
    limit = combined.flatten().sort(descending=True).values[kept - 1]
    scale = torch.where(combined < limit, 0.3, 1.0).unsqueeze(1)
    for gradient, leaf in zip(found, exact[1], strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(gradient.double(), leaf.grad * scale, rtol=1e-3, atol=1e-8)


def test_gem_with_exponent_one_is_the_mean() -> None:
    distances = torch.rand(2, 3, 4, 5)
    assert torch.equal(generalised_mean(distances, 1), distances.mean(dim=0))


@pytest.mark.parametrize("exponent", [1, 3, 14, 100, 1000])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-13, 1e-7, 1e-3, 2.0])
def test_gem_is_finite_between_mean_and_maximum(exponent: float, size: float) -> None:
    distances = (
        torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) * size
    ).requires_grad_()
    combined = generalised_mean(distances, exponent)
    combined.sum().backward()
    slack = 1e-6 * size + 1e-12
    assert (combined >= distances.mean(0) - slack).all()
    assert (combined <= distances.amax(0) + slack).all()
    assert distances.grad is not None
    assert torch.isfinite(distances.grad).all()
    assert (distances.grad >= 0).all()


def test_gem_has_the_right_gradient_where_one_scale_is_perfect() -> None:
    """(mean(d^3))^(1/3) with d = (0, a) is a / 2^(1/3): no gradient for the perfect scale."""
    distances = torch.tensor([[0.0], [0.5]], requires_grad=True)
    generalised_mean(distances, 3).sum().backward()
    assert distances.grad is not None
    torch.testing.assert_close(distances.grad, torch.tensor([[0.0], [0.5 ** (1 / 3)]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_perfect_reconstruction_gives_no_nan(variant: str) -> None:
    encoder, _ = features()
    decoder = [e.clone().requires_grad_() for e in encoder]
    behind = [d.clone() for d in decoder]
    loss = loss_of(params(**VARIANTS[variant]))(encoder, behind, 5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert all(d.grad is not None and torch.isfinite(d.grad).all() for d in decoder)


@pytest.mark.parametrize("q_percent", [100, 50, 5, 1, 0.001])
def test_topk_is_the_mean_of_the_largest_distances(q_percent: float) -> None:
    value, found = gradients(TopKLoss(q_percent, 0), 0)
    encoder, decoder = features()
    d = sum(1 - torch.cosine_similarity(e, x) for e, x in zip(encoder, decoder, strict=True)) / 2
    assert isinstance(d, torch.Tensor)
    k = max(1, int(60 * q_percent / 100))
    expected = d.flatten().sort(descending=True).values[:k].mean()
    expected.backward()
    torch.testing.assert_close(value, expected)
    for gradient, leaf in zip(found, decoder, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)
        assert (gradient.abs().sum(1) > 0).sum() == k


def test_topk_of_everything_has_no_hook_and_so_is_not_the_baseline() -> None:
    _, everything = gradients(TopKLoss(100, 0), 1000)
    _, baseline = gradients(CosineHardMiningLoss(), 1000)
    assert not torch.allclose(everything[0], baseline[0])


def test_small_q_are_different_trials_on_small_images() -> None:
    assert [effective_k(96, q) for q in (1, 2, 5, 10)] == [1, 1, 4, 9]
    assert effective_k(1000, 0.7) == 7  # 1000 * 0.7 / 100 is 6.999...
    assert effective_k(10, 0.01) == 1


def test_q_falls_from_everything_to_its_value() -> None:
    loss = TopKLoss(5, 200)
    assert [loss.q_at(step) for step in (0, 100, 200, 900)] == [100, 52.5, 5, 5]
    assert TopKLoss(5, 0).q_at(0) == 5


def test_distances_are_never_negative() -> None:
    """1 - cos of a vector with itself can be -6e-8, of which no root can be taken."""
    encoder, _ = features()
    assert (point_distances(encoder, [e * 1.1 for e in encoder]) >= 0).all()


# --- The network ----------------------------------------------------------------------------------


def test_the_network_is_anomalibs(tmp_path: Path) -> None:
    """Same encoder, same weights: features, map and score agree to float32's rounding, which
    differs because the bottleneck's input is the mean of two means instead of one of eight."""
    home = tmp_path / "small"  # anomalib reads the width off the name
    home.mkdir()
    shape = {"patch_size": 8, "depth": 10}
    config = {"input_size": [3, 32, 32], "num_classes": 0}
    (home / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_small_patch16_224",
                "num_classes": 0,
                "model_args": {**shape, "img_size": 32},
                "pretrained_cfg": config,
            }
        )
    )
    knobs = Params.model_validate(
        {
            **shape,
            "encoder": "vit_small_patch16_224",
            "weights": "random",
            "resize": 32,
            "crop": 32,
            "target_layers": list(range(2, 10)),
        }
    )
    encoder = build(knobs, knobs.target_layers, maps(), Context(tmp_path))
    save_file(encoder.vit.state_dict(), home / "model.safetensors")
    theirs = DinomalyModel(f"local-dir:{home}")
    theirs.encoder.eval()
    ours = DinomalyNet(encoder, knobs)
    ours.bottleneck.load_state_dict(theirs.bottleneck.state_dict())
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        expected = theirs(images)
        kept = ours.encode(images)
        torch.testing.assert_close(ours.score(kept, (32, 32)), expected.pred_score)
        torch.testing.assert_close(ours.anomaly_map(kept, (32, 32)), expected.anomaly_map)
        torch.testing.assert_close(ours(images).pred_score, expected.pred_score)


def test_gem_combines_the_anomaly_maps_too(tmp_path: Path) -> None:
    knobs = params()
    net = DinomalyNet(build(knobs, (0, 1), maps(), Context(tmp_path)), knobs).eval()
    torch.manual_seed(0)
    gem = DinomalyNet(net.encoder, params(variant="gem", gem_p=100)).eval()
    gem.load_state_dict(net.state_dict())
    with torch.no_grad():
        kept = net.encode(torch.rand(2, 3, 16, 12))
        _, scales = net.calculate_anomaly_maps(*net.reconstruct(kept, (4, 3)), out_size=(16, 12))
        high = torch.stack(scales).amax(dim=0)
        # The mean of two with exponent 100 is at least max / 2^(1/100).
        torch.testing.assert_close(gem.anomaly_map(kept, (16, 12)), high, rtol=0.01, atol=0)
        assert not torch.allclose(net.anomaly_map(kept, (16, 12)), high, rtol=0.01)


# --- Trials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, variant: str) -> None:
    first = trial(Context(tmp_path), **VARIANTS[variant])
    np.random.default_rng().random()
    second = trial(Context(tmp_path), **VARIANTS[variant])
    assert np.array_equal(first.predictions.score, second.predictions.score)
    other = trial(Context(tmp_path, seed=43), **VARIANTS[variant])
    assert not np.array_equal(first.predictions.score, other.predictions.score)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_a_resumed_trial_ends_like_one_that_was_not_stopped(
    tmp_path: Path, variant: str, stop_after: int
) -> None:
    straight = Context(tmp_path / "straight")
    expected = trial(straight, **VARIANTS[variant])
    home = tmp_path / "stopped"
    home.mkdir()
    with pytest.raises(StoppedError):
        trial(Context(home, stop_after=stop_after), **VARIANTS[variant])
    torch.manual_seed(0)
    resumed = Context(home)
    found = trial(resumed, **VARIANTS[variant])
    assert np.array_equal(found.predictions.score, expected.predictions.score)
    assert found.scalars == expected.scalars
    assert resumed.curve == [point for point in straight.curve if point[0] > stop_after]


def test_the_epoch_schedule_is_resumed_too(tmp_path: Path) -> None:
    expected = trial(Context(tmp_path / "s"), lr_interval="epoch")
    home = tmp_path / "stopped"
    home.mkdir()
    with pytest.raises(StoppedError):
        trial(Context(home, stop_after=5), lr_interval="epoch")
    found = trial(Context(home), lr_interval="epoch")
    assert np.array_equal(found.predictions.score, expected.predictions.score)


def test_features_read_anew_give_the_scores_of_features_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding: the encoder's matrix products depend on the batch that an image is in."""
    kept = trial(Context(tmp_path), grad_clip=1.0)
    monkeypatch.setattr(training, "KEEP_BYTES", 0)
    read = trial(Context(tmp_path), grad_clip=1.0)
    np.testing.assert_allclose(read.predictions.score, kept.predictions.score, rtol=1e-3)


def test_the_curve_tells_loss_learning_rate_and_gradient(tmp_path: Path) -> None:
    context = Context(tmp_path)
    trial(context, **VARIANTS["topk"])
    assert [step for step, _ in context.curve] == [1, 10, 12]
    first, last = context.curve[0][1], context.curve[-1][1]
    assert set(first) == {"loss", "lr", "grad/total_norm", "grad/nan_count", "k"}
    assert first["lr"] == 0  # the warm-up starts there
    assert first["k"] > last["k"]
    assert last["grad/nan_count"] == 0


def test_the_learning_rate_counts_what_it_is_told_to(tmp_path: Path) -> None:
    """12 maps in batches of 5 are epochs of 3 steps: after 9 steps the epoch schedule is at 3."""
    by_step, by_epoch = Context(tmp_path), Context(tmp_path)
    trial(by_step)
    trial(by_epoch, lr_interval="epoch")
    assert by_epoch.curve[1][1]["lr"] == pytest.approx(2e-3)  # the peak ends the warm-up of 3
    assert by_step.curve[1][1]["lr"] < 1e-3


def test_every_epoch_sees_every_map_once_in_another_order(tmp_path: Path) -> None:
    made = training.DinomalyTrial(params(), maps(), Context(tmp_path))
    epochs = [np.concatenate([made._batch(3 * e + s) for s in (1, 2, 3)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert not np.array_equal(*epochs)


def test_a_bright_row_scores_higher(tmp_path: Path) -> None:
    outcome = trial(Context(tmp_path), maps(24, 30), max_steps=60, lr_warmup_steps=10)
    found = outcome.predictions
    assert found.score[found.is_anomaly].min() > np.median(found.score[~found.is_anomaly])
    assert found.item == tuple(str(n) for n in range(300, 330))
    assert np.isfinite(outcome.scalars["final_loss"])


def test_nan_in_training_is_divergence(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss is not finite at step 1"):
        trial(Context(tmp_path), maps(broken=True))


def test_infinite_weights_are_divergence(tmp_path: Path) -> None:
    made = training.DinomalyTrial(params(), maps(), Context(tmp_path))
    with torch.no_grad():
        made.learned[0].fill_(torch.inf)
    with pytest.raises(Diverged) as raised:
        made.train()
    assert raised.value.step == 1


def test_a_gradient_that_is_not_finite_is_divergence_and_counted(tmp_path: Path) -> None:
    context = Context(tmp_path)
    made = training.DinomalyTrial(params(), maps(), context)
    made.learned[0].register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(Diverged, match="gradient norm is not finite at step 1"):
        made.train()
    assert context.curve[-1][1]["grad/nan_count"] == made.learned[0].numel()


# --- Knobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"q_percent": 10}, "variant 'baseline' does not use q_percent, a knob of 'topk'"),
        ({"gem_p": 5}, "variant 'baseline' does not use gem_p, a knob of 'gem'"),
        ({"variant": "gem", "factor": 0.2}, "variant 'gem' does not use factor"),
        ({"variant": "topk", "p": 0.5}, "variant 'topk' does not use p,"),
        ({"variant": "topk", "q_schedule": False, "warmup_steps": 9}, "warmup_steps is not used"),
        ({"variant": "gem", "gem_p": 0.5}, "gem_p"),
        ({"variant": "topk", "q_percent": 0}, "q_percent"),
        ({"variant": "topk", "q_percent": 101}, "q_percent"),
        ({"variant": "gme"}, "variant"),
        ({"q_percnt": 5}, "q_percnt"),
        ({"lr": float("nan")}, "lr"),
        ({"max_steps": 3}, "lr_warmup_steps 3 must be less than max_steps 3"),
        ({"decoder_depth": 3}, "decoder_depth"),
        ({"target_layers": [1]}, "an even number of encoder blocks"),
        ({"target_layers": [2, 1]}, "ascending"),
        ({"target_layers": []}, "an even number of encoder blocks"),
        ({"crop": "16x10"}, "width 10 is not a multiple of the patch size 4; use 8 or 12"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(**knobs)


def test_a_default_that_is_written_out_names_the_same_trial() -> None:
    written = params(q_percent=5, gem_p=3.0, variant="baseline", lr=0.002)
    assert written.identity() == params().identity()


def test_published_settings_are_the_defaults() -> None:
    published = Params()
    assert (published.resize, published.crop, published.max_steps) == ((448, 448), (392, 392), 1000)
    assert (published.lr, published.final_lr, published.grad_clip) == (2e-3, 2e-4, 0.1)


def test_importing_the_method_needs_no_torch() -> None:
    code = (
        "import sys; from hdsweep.method import load_method; load_method('dinomaly').params();"
        "assert not {'torch', 'timm', 'anomalib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
