"""Methods on a CUDA device: run with ``pytest -m gpu`` where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.lending import Lent, StoppedError
from tests.test_dinomaly import CASES, maps, params, training, trial
from trainables import patchcore
from trainables.bank.neighbours import nearest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(home: Path, **more: Any) -> Lent:
    context = Lent(home, **more)
    context.device = "cuda:0"
    return context


@pytest.mark.parametrize("variant", CASES)
def test_a_gpu_and_a_cpu_train_the_same_variant(tmp_path: Path, variant: str) -> None:
    """Dropout draws from another stream, so it is off; sums have another order: 1 % of a score."""
    knobs = CASES[variant] | {"dropout": 0.0, "tokens": "float32", "grad_clip": 1.0}
    cpu = trial(Lent(tmp_path / "cpu"), **knobs)
    gpu = trial(on_gpu(tmp_path / "gpu"), **knobs)
    np.testing.assert_allclose(gpu.predictions.score, cpu.predictions.score, rtol=1e-2)


def test_tokens_are_kept_on_the_gpu_if_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training.DinomalyTrial(params(), maps(), on_gpu(tmp_path))
    made.train()
    assert made.tokens._kept["train"].is_cuda
    full = training.DinomalyTrial(params(), maps(), on_gpu(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    full.train()
    assert not full.tokens._kept["train"].is_cuda
    assert np.array_equal(made.score(made.data.test), full.score(full.data.test))


def test_a_resumed_trial_ends_near_one_that_was_not_stopped(tmp_path: Path) -> None:
    """To the bit where the device's operations are deterministic, which is warned of if not."""
    straight = trial(on_gpu(tmp_path / "straight"))
    home = tmp_path / "stopped"
    home.mkdir()
    with pytest.raises(StoppedError):
        trial(on_gpu(home, stop_after=7))
    found = trial(on_gpu(home))
    np.testing.assert_allclose(found.predictions.score, straight.predictions.score, rtol=1e-5)


@pytest.mark.parametrize("knobs", [{"precision": "bfloat16"}, {"compile": True}])
def test_bfloat16_and_compiled_trials_find_the_bright_row(
    tmp_path: Path, knobs: dict[str, Any]
) -> None:
    found = trial(
        on_gpu(tmp_path), maps(24, 30), max_steps=60, lr_warmup_steps=10, **knobs
    ).predictions
    assert found.score[found.is_anomaly].min() > np.median(found.score[~found.is_anomaly])


def test_the_peak_is_what_the_device_allocated(tmp_path: Path) -> None:
    peak = trial(on_gpu(tmp_path)).scalars["peak_memory_mb"]
    assert 0 < peak < torch.cuda.get_device_properties(0).total_memory / 1e6


@pytest.mark.parametrize("rule", ["max_nn", "softmax_k9"])
def test_a_gpu_and_a_cpu_fill_the_same_bank_and_give_the_same_scores(
    tmp_path: Path, rule: str
) -> None:
    """The coreset is chosen on the CPU; features differ in their last bits, so 1 % of a score."""
    knobs = {"encoder": "resnet18", "weights": "random", "resize": 32, "crop": 32}
    asked = patchcore.Params.model_validate(
        {**knobs, "features": "float32", "coreset": "random", "score_rule": rule}
    )
    cpu = patchcore.METHOD.run(asked, maps(), Lent(tmp_path / "cpu"))
    gpu = patchcore.METHOD.run(asked, maps(), on_gpu(tmp_path / "gpu"))
    np.testing.assert_allclose(gpu.predictions.score, cpu.predictions.score, rtol=1e-2)
    assert gpu.scalars["latency_ms"] > gpu.scalars["search_ms"] > 0


def test_neighbours_on_a_gpu_are_those_on_a_cpu() -> None:
    rng = np.random.default_rng(0)
    queries, bank = (rng.normal(size=(n, 64)).astype(np.float32) for n in (300, 5000))
    for vectors in (bank, torch.from_numpy(bank).cuda()):
        distances, positions = nearest(queries, vectors, 9, device="cuda:0")
        expected, where = nearest(queries, bank, 9)
        np.testing.assert_allclose(distances, expected, rtol=1e-4)
        assert (positions == where).mean() > 0.99  # but for near ties
