"""ArcFace: the published formula, its two continuations, and gradients that stay finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from trainables.mil.arcface import ArcFace, with_margin

COSINES = np.concatenate([np.linspace(-1, 1, 401), [-0.8775, -0.8776, 1e-9, -1e-9, 0.0]])


def by_angles(cosine: NDArray[Any], margin: float, *, easy: bool) -> NDArray[Any]:
    """The definition, with angles instead of an addition theorem."""
    theta = np.arccos(cosine)
    if easy:
        return np.where(theta < np.pi / 2, np.cos(theta + margin), cosine)
    past = cosine - margin * np.sin(np.pi - margin)
    return np.where(theta + margin < np.pi, np.cos(theta + margin), past)


def drawn(batch: int = 64, dimension: int = 3, classes: int = 5) -> tuple[Any, Any, Any]:
    rng = torch.Generator().manual_seed(1)
    embedding = 3 * torch.randn(batch, dimension, generator=rng, dtype=torch.float64)
    centre = torch.randn(classes, dimension, generator=rng, dtype=torch.float64)
    return embedding, centre, torch.randint(classes, (batch,), generator=rng)


def head(centre: torch.Tensor, **knobs: Any) -> ArcFace:
    classes, dimension = centre.shape
    chosen = {"scale": 30.0, "margin": 0.5, "easy_margin": False} | knobs
    made = ArcFace(dimension, classes, **chosen).double()
    made.centre.data.copy_(centre)
    return made


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4, 0.5, 1.2, 2.0])
@pytest.mark.parametrize("easy", [False, True])
def test_the_margin_is_added_to_the_angle_or_continued_past_the_border(
    margin: float, easy: bool
) -> None:
    found = with_margin(torch.from_numpy(COSINES), margin, easy_margin=easy).numpy()
    # At +-1 the sine is the square root of the smallest number that has a finite slope: 1.5e-8.
    np.testing.assert_allclose(found, by_angles(COSINES, margin, easy=easy), rtol=0, atol=3e-8)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.2])
def test_the_wider_the_angle_the_smaller_the_logit(margin: float) -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    assert (with_margin(cosine, margin, easy_margin=False).diff() > 0).all()
    plain = torch.cos(torch.arccos(cosine) + margin)
    assert (plain.diff() < 0).any()  # what the continuation is for


@pytest.mark.parametrize("easy", [False, True])
def test_only_the_true_class_has_to_win_by_a_margin(easy: bool) -> None:
    embedding, centre, label = drawn()
    found = head(centre, easy_margin=easy)(embedding, label).detach().numpy()
    cosine = (F.normalize(embedding) @ F.normalize(centre).T).numpy()
    expected = 30 * cosine
    rows = np.arange(len(label))
    expected[rows, label] = 30 * by_angles(cosine[rows, label], 0.5, easy=easy)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert (cosine[rows, label] < -math.cos(0.5)).any()  # the draw reaches past the border


@pytest.mark.parametrize("easy", [False, True])
def test_without_a_margin_it_is_the_softmax_of_cosines(easy: bool) -> None:
    embedding, centre, label = drawn()
    found = head(centre, margin=0.0, easy_margin=easy, scale=7.0)(embedding, label)
    cosine = F.normalize(embedding) @ F.normalize(centre).T
    torch.testing.assert_close(found, 7 * cosine, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("margin", "scale"), [(0.5, 30.0), (0.4, 64.0), (1.2, 5.0)])
def test_loss_and_gradients_are_those_of_pytorch_metric_learning(
    margin: float, scale: float
) -> None:
    from pytorch_metric_learning.losses import ArcFaceLoss

    embedding, centre, label = drawn()
    ours, theirs = embedding.clone().requires_grad_(), embedding.clone().requires_grad_()
    made = head(centre, margin=margin, scale=scale)
    loss = F.cross_entropy(made(ours, label), label)
    kept = ArcFaceLoss(len(centre), centre.shape[1], margin=math.degrees(margin), scale=scale)
    kept.W.data = centre.T.clone()
    expected = kept(theirs, label)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.autograd.backward(loss)
    torch.autograd.backward(expected)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    assert kept.W.grad is not None
    torch.testing.assert_close(made.centre.grad, kept.W.grad.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("easy", [False, True])
def test_cosines_of_one_and_those_rounded_above_have_finite_gradients(
    kind: torch.dtype, easy: bool
) -> None:
    above = torch.nextafter(torch.ones((), dtype=kind), torch.full((), 2.0, dtype=kind))
    cosine = torch.tensor([1.0, -1.0, above, -above], dtype=kind, requires_grad=True)
    found = with_margin(cosine, 0.5, easy_margin=easy)
    torch.autograd.backward(found.sum())
    assert found.isfinite().all()
    assert cosine.grad is not None
    assert cosine.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_embedding_on_its_centre_or_opposite_has_a_finite_gradient(
    kind: torch.dtype, easy: bool, sign: int
) -> None:
    centre = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 1.0]], dtype=kind)
    made = head(centre, easy_margin=easy).to(kind)
    embedding = (sign * 7 * centre).requires_grad_()
    label = torch.tensor([0, 1])
    loss = F.cross_entropy(made(embedding, label), label)
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()
    assert made.centre.grad is not None
    assert made.centre.grad.isfinite().all()
