"""Dinomaly: its losses against their definitions, its trials against themselves."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from hdsweep.method import Data, Diverged, Item, MethodError, Outcome
from tests.lending import Lent, StoppedError
from trainables.dinomaly import METHOD, VARIANTS, Params
from trainables.encoders.images import normalised
from trainables.encoders.tokens import Tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of anomalib's own imports
    from anomalib.models.image.dinomaly.components import CosineHardMiningLoss
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    from trainables.dinomaly import training
    from trainables.dinomaly.losses import (
        Reconstruction,
        effective_k,
        generalised_mean,
        objective_of,
        point_distances,
        q_at,
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
CASES: dict[str, dict[str, Any]] = {
    "baseline": {"p_schedule_steps": 10},
    "gem": {"variant": "gem", "p_schedule_steps": 10},
    "topk": {"variant": "topk", "warmup_steps": 5},
    "focal": {"variant": "focal"},
    "aux": {"variant": "aux", "p_schedule_steps": 10},
    "scale": {"variant": "scale", "p_schedule_steps": 10, "scale_weights": [0.8, 0.2]},
    "scale-learned": {"variant": "scale", "p_schedule_steps": 10},
}


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
            Item(str(n), "AB"[n % 2], is_anomaly=n % every == 0, path=Path())
            for n in range(first, first + count)
        )

    return Data(items(1, train, 10_000), items(300, test, 3), groups=("A", "B"), read=read)


def params(**knobs: object) -> Params:
    return Params.model_validate({**SMALL, **knobs})


def trial(context: Lent, data: Data | None = None, **knobs: object) -> Outcome:
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
    knobs: dict[str, Any], step: int, *, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor], Mapping[str, Any]]:
    """Value, gradients of the decoder's maps and what else belongs into the curve."""
    encoder, decoder = features(dtype=dtype)
    # A hook acts on the gradient that reaches the decoder's output, so look behind it.
    behind = [d.clone() for d in decoder]
    seen = Reconstruction(encoder, behind, torch.ones(3, 21, 8), torch.tensor([0, 1, 1]))
    value, shown = objective_of(params(**knobs), 8, ("A", "B"))(seen, step)
    value.backward()
    return value, [d.grad for d in decoder if d.grad is not None], shown


def exact() -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The same features in float64 and, by the textbook, the distances of each scale."""
    encoder, decoder = features()
    e64 = [e.double() for e in encoder]
    d64 = [d.detach().double().requires_grad_() for d in decoder]
    return (
        e64,
        d64,
        torch.stack(
            [
                1 - (e * x).sum(1) / (e.norm(dim=1) * x.norm(dim=1))
                for e, x in zip(e64, d64, strict=True)
            ]
        ),
    )


def anomalibs(step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    encoder, decoder = features()
    behind = [d.clone() for d in decoder]
    value = CosineHardMiningLoss()(encoder, behind, global_step=step)
    value.backward()
    return value, [d.grad for d in decoder if d.grad is not None]


def agree(found: list[torch.Tensor], leaves: list[torch.Tensor], scale: Any = 1.0) -> None:
    """Gradients in float32 against those in float64, to float32's rounding."""
    for gradient, leaf in zip(found, leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(gradient.double(), leaf.grad * scale, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("step", [0, 1, 500, 1000, 5000])
def test_the_baseline_is_anomalibs_loss(step: int) -> None:
    ours, our_gradients, _ = gradients({}, step)
    theirs, their_gradients = anomalibs(step)
    assert torch.equal(ours, theirs)
    assert all(map(torch.equal, our_gradients, their_gradients))


@pytest.mark.parametrize("step", [0, 700])
def test_the_baseline_is_its_definition_too(step: int) -> None:
    """One minus the cosine of whole maps; per scale, gradients under its own threshold scaled."""
    value, found, shown = gradients({}, step)
    encoder, decoder, distances = exact()
    whole = [
        (1 - torch.cosine_similarity(e.flatten(1), d.flatten(1))).mean()
        for e, d in zip(encoder, decoder, strict=True)
    ]
    expected = torch.stack(whole).mean()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    kept = max(1, int(60 * (1 - shown["p"])))
    for gradient, leaf, d in zip(found, decoder, distances, strict=True):
        limit = d.flatten().sort(descending=True).values[kept - 1]
        agree([gradient], [leaf], torch.where(d < limit, 0.1, 1.0).unsqueeze(1))


@pytest.mark.parametrize("exponent", [1, 2, 3, 14, 100])
@pytest.mark.parametrize("step", [0, 700])
def test_gem_is_its_definition_with_easy_gradients_scaled(exponent: float, step: int) -> None:
    """Against the naive formula in float64, where exponents up to 100 still neither over- nor
    underflow for distances near 1; the tolerance is float32's."""
    value, found, _ = gradients({"variant": "gem", "gem_p": exponent}, step)
    _, decoder, distances = exact()
    combined = (distances**exponent).mean(0) ** (1 / exponent)
    combined.mean().backward()
    torch.testing.assert_close(value.double(), combined.mean(), rtol=1e-5, atol=0)
    kept = max(1, int(combined.numel() * (1 - min(0.9, 0.9 * step / 1000))))
    limit = combined.flatten().sort(descending=True).values[kept - 1]
    agree(found, decoder, torch.where(combined < limit, 0.3, 1.0).unsqueeze(1))


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


@pytest.mark.parametrize("q_percent", [100, 50, 5, 1, 0.001])
def test_topk_is_the_mean_of_the_largest_distances(q_percent: float) -> None:
    value, found, shown = gradients(
        {"variant": "topk", "q_percent": q_percent, "q_schedule": False}, 0
    )
    _, decoder, distances = exact()
    k = max(1, int(60 * q_percent / 100))
    expected = distances.mean(0).flatten().sort(descending=True).values[:k].mean()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    agree(found, decoder)
    assert all((gradient.abs().sum(1) > 0).sum() == k for gradient in found)
    assert shown["k"] == k


def test_topk_of_everything_has_no_hook_and_so_is_not_the_baseline() -> None:
    _, everything, _ = gradients({"variant": "topk", "q_percent": 100}, 1000)
    _, baseline = anomalibs(1000)
    assert not torch.allclose(everything[0], baseline[0])


def test_small_q_are_different_trials_on_small_images() -> None:
    assert [effective_k(96, q) for q in (1, 2, 5, 10)] == [1, 1, 4, 9]
    assert effective_k(1000, 0.7) == 7  # 1000 * 0.7 / 100 is 6.999...
    assert effective_k(10, 0.01) == 1


def test_q_falls_from_everything_to_its_value() -> None:
    scheduled = params(variant="topk", q_percent=5, warmup_steps=199)
    assert [q_at(scheduled, step) for step in (0, 199, 900)] == [100, 5, 5]
    assert q_at(scheduled, 100) == pytest.approx(100 - 95 * 100 / 199)
    assert q_at(params(variant="topk", q_percent=5, q_schedule=False), 0) == 5


@pytest.mark.parametrize("gamma", [0, 0.5, 2, 5])
def test_focal_weighs_each_distance_by_its_own_power(gamma: float) -> None:
    """The weights are constants: the gradient is that of a weighted mean."""
    value, found, _ = gradients({"variant": "focal", "gamma": gamma}, 0)
    _, decoder, distances = exact()
    d = distances.mean(0)
    weights = d.detach() ** gamma
    expected = (weights * d).mean() / weights.mean()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    agree(found, decoder)


@pytest.mark.parametrize("gamma", [0, 2, 5])
@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_focal_neither_under_nor_overflows_near_perfection(gamma: float, size: float) -> None:
    """At 1e-5 distances are below 1e-9 and their fifth powers below 1e-45, float32's smallest."""
    encoder, _ = features()
    leaves = [(e * (1 + size * torch.rand_like(e))).requires_grad_() for e in encoder]
    seen = Reconstruction(encoder, leaves, torch.ones(3, 21, 8), torch.zeros(3, dtype=torch.int64))
    value, _ = objective_of(params(variant="focal", gamma=gamma), 8, ("A",))(seen, 0)
    value.backward()
    distances = point_distances(encoder, leaves).mean(0)
    assert distances.mean().item() <= value.item() * (1 + 1e-5) + 1e-12
    assert value.item() <= distances.max().item() * (1 + 1e-5) + 1e-12
    assert all(d.grad is not None and torch.isfinite(d.grad).all() for d in leaves)


def test_aux_adds_the_cross_entropy_of_telling_groups_apart() -> None:
    objective = objective_of(params(variant="aux", aux_weight=0.4), 8, ("A", "B"))
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    pooled = torch.randn(3, 21, 8, generator=stream).requires_grad_()
    encoder, decoder = features()
    group = torch.tensor([0, 1, 1])
    seen = Reconstruction(encoder, [d.clone() for d in decoder], pooled, group)
    value, shown = objective(seen, 700)
    value.backward()
    weight, bias = (p.detach().double() for p in objective.parameters())
    x = pooled.detach().double().requires_grad_()
    logits = x.mean(1) @ weight.T + bias
    apart = -(logits[torch.arange(3), group] - logits.exp().sum(1).log()).mean()
    (0.4 * apart).backward()
    expected, their_gradients = anomalibs(700)
    torch.testing.assert_close(value.double(), expected.double() + 0.4 * apart, rtol=1e-5, atol=0)
    assert pooled.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(pooled.grad.double(), x.grad, rtol=1e-4, atol=1e-9)
    assert all(torch.equal(d.grad, g) for d, g in zip(decoder, their_gradients, strict=True))
    assert float(shown["aux/loss"]) == pytest.approx(apart.item(), rel=1e-5)


def test_aux_needs_two_groups() -> None:
    with pytest.raises(MethodError, match="tells groups apart and the data have 1"):
        objective_of(params(variant="aux"), 8, ("C",))


def test_aux_with_one_group_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    data, context = maps(), Lent(tmp_path)
    one = Data(data.train[1::2], data.test[::2], ("A",), data.read)
    with pytest.raises(
        MethodError, match=r"the data have 1 \(A\); use more, or variant 'baseline'"
    ):
        trial(context, one, variant="aux")
    assert context.built == []


def test_equal_scale_weights_are_the_baseline() -> None:
    value, found, _ = gradients({"variant": "scale", "scale_weights": [0.5, 0.5]}, 700)
    expected, theirs = anomalibs(700)
    torch.testing.assert_close(value, expected)
    assert all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(found, theirs, strict=True)
    )


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0)])
def test_fixed_scale_weights_weigh_the_baselines_scales(weights: tuple[float, float]) -> None:
    """Each scale's loss is half of the baseline's sum, so its gradient is 2 w times as large."""
    _, found, _ = gradients({"variant": "scale", "scale_weights": list(weights)}, 700)
    _, theirs = anomalibs(700)
    for gradient, other, weight in zip(found, theirs, weights, strict=True):
        torch.testing.assert_close(gradient, other * 2 * weight, rtol=1e-5, atol=1e-9)


def test_learned_scale_weights_go_to_the_softmax_of_losses_over_entropy() -> None:
    """Where sum w L - c H(w) is least, w is proportional to exp(-L / c)."""
    encoder, decoder = features()
    # An easier scale.
    decoder[1] = (encoder[1] + 0.3 * (decoder[1] - encoder[1])).detach().requires_grad_()
    seen = Reconstruction(encoder, decoder, torch.ones(3, 21, 8), torch.zeros(3, dtype=torch.int64))
    objective = objective_of(params(variant="scale", scale_entropy=0.3), 8, ("A",))
    assert [float(objective(seen, 0)[1][f"scale/weight_{n}"]) for n in (0, 1)] == [0.5, 0.5]
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    for _ in range(500):
        optimizer.zero_grad()
        objective(seen, 0)[0].backward()
        optimizer.step()
    losses = torch.stack(
        [CosineHardMiningLoss()([e], [d], 0) for e, d in zip(encoder, decoder, strict=True)]
    )
    expected = torch.softmax(-losses / 0.3, dim=0)
    found = [float(objective(seen, 0)[1][f"scale/weight_{n}"]) for n in (0, 1)]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert found[1] > 0.5


@pytest.mark.parametrize("variant", CASES)
def test_perfect_reconstruction_gives_no_nan(variant: str) -> None:
    encoder, _ = features()
    decoder = [e.clone().requires_grad_() for e in encoder]
    group = torch.zeros(3, dtype=torch.int64)
    seen = Reconstruction(encoder, [d.clone() for d in decoder], torch.ones(3, 21, 8), group)
    knobs = {"scale_weights": [0.8, 0.2]} if variant.startswith("scale") else {}
    loss, _ = objective_of(params(**CASES[variant] | knobs), 8, ("A", "B"))(seen, 5)
    loss.backward()
    apart = 0.1 * np.log(2) if variant == "aux" else 0  # a classifier of zeros knows nothing
    assert float(loss.detach()) == pytest.approx(apart, abs=1e-6)
    assert all(d.grad is not None and torch.isfinite(d.grad).all() for d in decoder)


@pytest.mark.parametrize("variant", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_give_the_loss_of_their_rounded_values(
    variant: str, dtype: torch.dtype
) -> None:
    """All is computed in float32: only the features, and at last the gradient, are rounded."""
    encoder, decoder = features(dtype=dtype)
    group = torch.tensor([0, 1, 1])
    results = []
    for kind in (dtype, torch.float32):
        leaves = [d.detach().to(kind).requires_grad_() for d in decoder]
        seen = Reconstruction(
            [e.to(kind) for e in encoder],
            [d.clone() for d in leaves],
            torch.ones(3, 21, 8, dtype=kind),
            group,
        )
        loss, _ = objective_of(params(**CASES[variant]), 8, ("A", "B"))(seen, 5)
        loss.backward()
        results.append((loss, [d.grad.float() for d in leaves if d.grad is not None]))
    (half, half_gradients), (full, full_gradients) = results
    assert half.dtype == torch.float32
    assert torch.equal(half, full)
    for a, b in zip(half_gradients, full_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)


def test_distances_are_never_negative() -> None:
    """1 - cos of a vector with itself can be -6e-8, of which no root can be taken."""
    encoder, _ = features()
    assert (point_distances(encoder, [e * 1.1 for e in encoder]) >= 0).all()


def test_a_variant_is_one_entry_and_one_function() -> None:
    assert {knobs.get("variant", "baseline") for knobs in CASES.values()} == set(VARIANTS)
    for variant, knobs in VARIANTS.items():
        assert isinstance(objective_of(params(variant=variant), 8, ("A", "B")), torch.nn.Module)
        assert set(knobs) <= set(Params.model_fields)


# --- The network ----------------------------------------------------------------------------------


def test_the_network_is_anomalibs(tmp_path: Path) -> None:
    """Same encoder, same weights, same images: loss, gradients, map and score agree to float32's
    rounding, which differs because the bottleneck's input is the mean of two means instead of one
    of eight."""
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
    tokens = Tokens(knobs, knobs.target_layers, maps(), Lent(tmp_path), None)
    save_file(tokens._encoder.vit.state_dict(), home / "model.safetensors")
    theirs = DinomalyModel(f"local-dir:{home}")
    theirs.encoder.eval()
    ours = DinomalyNet(tokens.shape, knobs, ("A",), (32, 32))
    ours.bottleneck.load_state_dict(theirs.bottleneck.state_dict())
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoded = tokens.encode(images)
    normal = normalised(images)
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        expected = theirs(normal)
        smooth = ours.smooth_map(encoded)
        torch.testing.assert_close(ours.score(smooth), expected.pred_score)
        torch.testing.assert_close(ours.anomaly_map(encoded), expected.anomaly_map)
    theirs.encoder.requires_grad_(requires_grad=False)
    for dropout in [m for net in (ours, theirs) for m in net.modules()]:
        if isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
    theirs.train()
    theirs.encoder.eval()
    group = torch.zeros(2, dtype=torch.int64)
    expected_loss = theirs(normal, global_step=700)
    loss, _ = ours.objective(ours.reconstruct(encoded, group), 700)
    torch.testing.assert_close(loss, expected_loss)
    expected_loss.backward()
    loss.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == their_gradients.keys()
    # Which points are easy is a comparison, so one on the threshold may differ: compare directions.
    for name, gradient in found.items():
        assert (
            torch.cosine_similarity(gradient.flatten(), their_gradients[name].flatten(), 0) > 0.999
        )


def untrained(tmp_path: Path, **knobs: Any) -> tuple[Tokens, DinomalyNet]:
    made = params(**knobs)
    tokens = Tokens(made, (0, 1), maps(), Lent(tmp_path), None)
    torch.manual_seed(0)
    return tokens, DinomalyNet(tokens.shape, made, ("A", "B"), made.crop).eval()


def test_gem_combines_the_anomaly_maps_too(tmp_path: Path) -> None:
    tokens, net = untrained(tmp_path)
    _, gem = untrained(tmp_path, variant="gem", gem_p=100)
    with torch.no_grad():
        kept = tokens.encode(torch.rand(2, 3, 16, 12))
        seen = net.reconstruct(kept, torch.zeros(2))
        _, scales = DinomalyModel.calculate_anomaly_maps(seen.encoded, seen.decoded, (16, 12))
        high = torch.stack(scales).amax(dim=0)
        # The mean of two with exponent 100 is at least max / 2^(1/100).
        torch.testing.assert_close(gem.anomaly_map(kept), high, rtol=0.01, atol=0)
        assert not torch.allclose(net.anomaly_map(kept), high, rtol=0.01)


def test_variants_of_one_seed_start_as_one_network(tmp_path: Path) -> None:
    _, first = untrained(tmp_path)
    after = torch.rand(1)
    for knobs in CASES.values():
        _, other = untrained(tmp_path, **knobs)
        assert torch.equal(torch.rand(1), after)
        for a, b in zip(first.decoder.parameters(), other.decoder.parameters(), strict=True):
            assert torch.equal(a, b)


def test_bfloat16_computes_nearly_the_same(tmp_path: Path) -> None:
    """bfloat16 has 8 bits of mantissa, an error of 0.4 % in each of some ten operations."""
    tokens, net = untrained(tmp_path)
    _, half = untrained(tmp_path, precision="bfloat16")
    with torch.no_grad():
        kept = tokens.encode(torch.rand(2, 3, 16, 12))
        seen = half.reconstruct(kept, torch.zeros(2))
        assert seen.decoded[0].dtype == torch.bfloat16
        found, expected = half.anomaly_map(kept), net.anomaly_map(kept)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


# --- Trials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", CASES)
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, variant: str) -> None:
    first = trial(Lent(tmp_path), **CASES[variant])
    np.random.default_rng().random()
    second = trial(Lent(tmp_path), **CASES[variant])
    assert np.array_equal(first.predictions.score, second.predictions.score)
    other = trial(Lent(tmp_path, seed=43), **CASES[variant])
    assert not np.array_equal(first.predictions.score, other.predictions.score)


@pytest.mark.parametrize("variant", CASES)
@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_a_resumed_trial_ends_like_one_that_was_not_stopped(
    tmp_path: Path, variant: str, stop_after: int
) -> None:
    straight = Lent(tmp_path / "straight")
    expected = trial(straight, **CASES[variant])
    home = tmp_path / "stopped"
    home.mkdir()
    with pytest.raises(StoppedError):
        trial(Lent(home, stop_after=stop_after), **CASES[variant])
    torch.manual_seed(0)
    resumed = Lent(home)
    found = trial(resumed, **CASES[variant])
    assert np.array_equal(found.predictions.score, expected.predictions.score)
    assert found.scalars["final_loss"] == expected.scalars["final_loss"]
    assert resumed.curve == [point for point in straight.curve if point[0] > stop_after]


def test_a_trial_that_goes_on_elsewhere_says_that_dropout_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        trial(Lent(tmp_path, stop_after=7))
    kept = tmp_path / "checkpoint/state.pt"
    state = torch.load(kept, weights_only=True)
    torch.save(state | {"rng_cuda": torch.get_rng_state()}, kept)  # as if stopped on a GPU
    assert np.isfinite(trial(Lent(tmp_path)).predictions.score).all()
    assert "continued on another kind of device" in caplog.text


def test_a_schedule_that_never_leaves_the_first_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"max_steps 12 ends within it \(12 steps of 1 images\)"):
        trial(Lent(tmp_path), lr_interval="epoch", batch_size=1)


def test_compiling_without_a_compiler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MethodError, match="needs a C\\+\\+ compiler, and no-such-compiler is not"):
        trial(Lent(tmp_path), compile=True)


def test_a_mask_that_the_grid_cannot_show_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = training.DinomalyTrial(params(), maps(), Lent(tmp_path))
    mask = np.zeros((1600, 1200), dtype=np.bool_)
    mask[800, 600] = True
    assert not made.mask_on_map(mask).any()
    assert "a mask of 1 pixels vanishes" in caplog.text


def test_the_epoch_schedule_is_resumed_too(tmp_path: Path) -> None:
    expected = trial(Lent(tmp_path / "s"), lr_interval="epoch")
    home = tmp_path / "stopped"
    home.mkdir()
    with pytest.raises(StoppedError):
        trial(Lent(home, stop_after=5), lr_interval="epoch")
    found = trial(Lent(home), lr_interval="epoch")
    assert np.array_equal(found.predictions.score, expected.predictions.score)


def test_with_and_without_the_stage_predictions_agree_in_float32(tmp_path: Path) -> None:
    """To rounding: the encoder's matrix products depend on the batch that an image is in, and
    twelve steps carry that on. Here 1e-4 of a score; half precision costs up to a percent."""
    encoded = trial(Lent(tmp_path / "off"), tokens="none", grad_clip=1.0).predictions.score
    found = {}
    for kind in ("float32", "float16", "bfloat16"):
        context = Lent(tmp_path / kind)
        found[kind] = trial(context, tokens=kind, grad_clip=1.0).predictions.score
        assert context.built == ["tokens", "tokens"]
    np.testing.assert_allclose(found["float32"], encoded, rtol=1e-4)
    np.testing.assert_allclose(found["float16"], encoded, rtol=1e-2)
    np.testing.assert_allclose(found["bfloat16"], encoded, rtol=5e-2)
    assert not np.array_equal(found["float16"], encoded)


def test_every_variant_and_seed_shares_one_encoding(tmp_path: Path) -> None:
    stages = tmp_path / "shared"
    built = []
    for n, knobs in enumerate(CASES.values()):
        context = Lent(tmp_path / str(n), seed=n, stages=stages)
        trial(context, **knobs)
        built += context.built
    assert built == ["tokens", "tokens"]  # of training and of test images


def test_augmented_images_are_encoded_in_each_step_and_test_images_once(tmp_path: Path) -> None:
    context = Lent(tmp_path)
    plain = trial(Lent(tmp_path / "plain"))
    rolled = trial(context, augment="roll")
    assert context.built == ["tokens"]
    assert not np.array_equal(rolled.predictions.score, plain.predictions.score)
    again = trial(Lent(tmp_path / "again"), augment="roll")
    assert np.array_equal(rolled.predictions.score, again.predictions.score)


def test_augmentation_moves_values_and_makes_none() -> None:
    image = torch.arange(24.0).reshape(1, 4, 6)
    rng = np.random.default_rng(0)
    for how in ("flip", "roll"):
        made = [training.augmented(image, how, rng) for _ in range(20)]
        assert all(torch.equal(m.flatten().sort().values, image.flatten()) for m in made)
        different = len({tuple(m.flatten().tolist()) for m in made})
        assert different == 4 if how == "flip" else different > 5


def test_the_curve_tells_loss_learning_rate_and_gradient_of_each_step(tmp_path: Path) -> None:
    context = Lent(tmp_path)
    trial(context, **CASES["topk"])
    assert [step for step, _ in context.curve] == list(range(1, 13))
    first, last = context.curve[0][1], context.curve[-1][1]
    assert set(first) == {"loss", "lr", "grad/total_norm", "grad/nan_count", "k"}
    assert first["lr"] == 0  # the warm-up starts there
    assert first["k"] > last["k"]
    assert last["grad/nan_count"] == 0


def test_the_values_of_the_first_batch_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trial(Lent(tmp_path))
    told = [r.message for r in caplog.records if r.message.startswith("first batch")]
    assert "5 images as stored: min 0.3804, mean 1.033, max 1.912, 0" in told[0]
    assert "as the encoder sees them: min" in told[1]


def test_validation_draws_the_same_items_for_each_seed_and_changes_nothing(tmp_path: Path) -> None:
    data = maps(12, 30)
    plain = trial(Lent(tmp_path / "1"), data)
    context = Lent(tmp_path / "2")
    knobs = {"validation": "from_test", "validate_every": 5, "validation_percent": 50}
    watched = trial(context, data, **knobs)
    assert np.array_equal(watched.predictions.score, plain.predictions.score)
    assert [step for step, point in context.curve if "val/auroc" in point] == [5, 10, 12]
    assert 0 <= context.curve[-1][1]["val/auroc"] <= 1
    items = [
        training.DinomalyTrial(params(**knobs), data, Lent(tmp_path / "3", seed=s)).validation
        for s in (1, 2)
    ]
    assert items[0] == items[1]
    assert {(item.group, item.is_anomaly) for item in items[0]} == {
        (group, anomalous) for group in "AB" for anomalous in (True, False)
    }


def test_validation_from_test_is_warned_of() -> None:
    (told,) = METHOD.warn(params(validation="from_test"))
    assert "validation is drawn from the test items (10 % of them)" in told
    assert METHOD.warn(params()) == ()


def test_the_peak_of_memory_is_measured(tmp_path: Path) -> None:
    code = (
        "import torch; from trainables.dinomaly.memory import Peak\n"
        "torch.ones(100_000_000).sum()\n"  # gone before the peak is watched
        "peak = Peak(torch.device('cpu')); before = peak.megabytes()\n"
        "torch.ones(50_000_000).sum(); print(peak.megabytes() - before)"
    )  # in a process of its own: here memory freed by other tests may be used again
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 190 < float(done.stdout) < 260
    assert trial(Lent(tmp_path)).scalars["peak_memory_mb"] > 50


@pytest.mark.long
def test_a_compiled_trial_agrees_with_a_plain_one(tmp_path: Path) -> None:
    """Fused operations round differently; dropout draws from another stream, so it is off."""
    plain = trial(Lent(tmp_path / "1"), dropout=0.0, grad_clip=1.0)
    compiled = trial(Lent(tmp_path / "2"), dropout=0.0, grad_clip=1.0, compile=True)
    np.testing.assert_allclose(compiled.predictions.score, plain.predictions.score, rtol=1e-3)
    # What one trial compiled counts against a limit after which torch compiles no more.
    code = DinomalyNet._pass.__code__
    assert torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
    training.DinomalyTrial(params(compile=True), maps(), Lent(tmp_path / "3"))
    assert not torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)


@pytest.mark.parametrize(
    ("variant", "knobs"),
    [
        ("baseline", {"lr": 1e-3}),
        ("baseline", {"final_lr": 1e-3}),
        ("baseline", {"lr_warmup_steps": 5}),
        ("baseline", {"weight_decay": 0.1}),
        ("baseline", {"grad_clip": 0.01}),
        ("baseline", {"dropout": 0.4}),
        ("baseline", {"decoder_depth": 4}),
        ("baseline", {"batch_size": 4}),
        ("baseline", {"max_steps": 11}),
        ("baseline", {"target_layers": [0, 3]}),
        ("baseline", {"score_top_percent": 5}),
        ("baseline", {"factor": 0.5}),
        ("baseline", {"p": 0.5}),
        ("baseline", {"p_schedule_steps": 5}),
        ("gem", {"gem_p": 5}),
        ("gem", {"gem_factor": 0.9}),
        ("gem", {"p_schedule_steps": 5}),
        ("topk", {"q_percent": 20}),
        ("topk", {"warmup_steps": 9}),
        ("topk", {"q_schedule": False, "warmup_steps": 200}),
        ("focal", {"gamma": 3}),
        ("aux", {"aux_weight": 0.9}),
        ("scale", {"scale_weights": [0.2, 0.8]}),
        ("scale-learned", {"scale_entropy": 0.01}),
    ],
)
def test_every_knob_acts(tmp_path: Path, variant: str, knobs: dict[str, Any]) -> None:
    stages = tmp_path / "shared"
    usual = trial(Lent(tmp_path, stages=stages), **CASES[variant]).predictions.score
    other = trial(Lent(tmp_path, stages=stages), **CASES[variant] | knobs).predictions.score
    assert not np.array_equal(other, usual)


def test_the_learning_rate_counts_what_it_is_told_to(tmp_path: Path) -> None:
    """12 maps in batches of 5 are epochs of 3 steps: after 9 steps the epoch schedule is at 3."""
    by_step, by_epoch = Lent(tmp_path), Lent(tmp_path)
    trial(by_step)
    trial(by_epoch, lr_interval="epoch")
    assert by_epoch.curve[9][1]["lr"] == pytest.approx(2e-3)  # the peak ends the warm-up of 3
    assert by_step.curve[9][1]["lr"] < 1e-3


def test_every_epoch_sees_every_map_once_in_another_order(tmp_path: Path) -> None:
    made = training.DinomalyTrial(params(), maps(), Lent(tmp_path))
    epochs = [np.concatenate([made._batch(3 * e + s) for s in (1, 2, 3)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert not np.array_equal(*epochs)


def test_a_bright_row_scores_higher(tmp_path: Path) -> None:
    outcome = trial(Lent(tmp_path), maps(24, 30), max_steps=60, lr_warmup_steps=10)
    found = outcome.predictions
    assert found.score[found.is_anomaly].min() > np.median(found.score[~found.is_anomaly])
    assert found.item == tuple(str(n) for n in range(300, 330))
    assert np.isfinite(outcome.scalars["final_loss"])


def test_nan_in_training_is_divergence(tmp_path: Path) -> None:
    context = Lent(tmp_path)
    with pytest.raises(Diverged, match="loss is not finite at step 1"):
        trial(context, maps(broken=True), tokens="none")
    assert np.isnan(context.curve[-1][1]["loss"])
    assert context.curve[-1][1]["grad/nan_count"] > 0


def test_nan_in_an_image_that_is_encoded_once_names_the_image(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"^300: the encoder's output is NaN"):
        trial(Lent(tmp_path), maps(broken=True))


def test_infinite_weights_are_divergence(tmp_path: Path) -> None:
    made = training.DinomalyTrial(params(), maps(), Lent(tmp_path))
    with torch.no_grad():
        made.learned[0].fill_(torch.inf)
    with pytest.raises(Diverged) as raised:
        made.train()
    assert raised.value.step == 1


def test_a_gradient_that_is_not_finite_is_divergence_and_counted(tmp_path: Path) -> None:
    context = Lent(tmp_path)
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
        (
            {"variant": "topk", "q_schedule": False, "warmup_steps": 9},
            "warmup_steps is used only where q_schedule is true",
        ),
        ({"variant": "gem", "gem_p": 0.5}, "gem_p"),
        ({"variant": "topk", "q_percent": 0}, "q_percent"),
        ({"variant": "topk", "q_percent": 101}, "q_percent"),
        ({"variant": "gme"}, "unknown variant; did you mean 'gem'"),
        ({"variant": "focal", "gamma": 5.5}, "gamma"),
        ({"variant": "focal", "factor": 0.2}, "variant 'focal' does not use factor"),
        ({"variant": "aux", "aux_weight": 1.1}, "aux_weight"),
        ({"gamma": 3}, "variant 'baseline' does not use gamma, a knob of 'focal'"),
        ({"variant": "scale", "scale_weights": [0.5, 0.6]}, "two numbers from 0 to 1 that sum"),
        ({"variant": "scale", "scale_weights": [1.5, -0.5]}, "two numbers from 0 to 1 that sum"),
        ({"variant": "scale", "scale_weights": [1.0]}, "two numbers from 0 to 1 that sum"),
        ({"variant": "scale", "scale_weights": "lerned"}, "write 'learned' or one number per"),
        (
            {"variant": "scale", "scale_weights": [0.4, 0.6], "scale_entropy": 1},
            "scale_entropy is used only where scale_weights is learned",
        ),
        ({"validate_every": 10}, "validate_every is used only where validation is from_test"),
        ({"tokens": "int8"}, "tokens"),
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
