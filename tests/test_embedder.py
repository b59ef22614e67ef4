"""Writers' embeddings: honest, shared, the same whoever makes them, and measured on fixed pairs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from hdsweep.context import Context
from hdsweep.method import Data, Infeasible, Item, MethodError
from tests.lending import Lent, StoppedError
from trainables.encoders.backbone import create
from trainables.encoders.images import CHUNK
from trainables.mil.embedder import Trained, train
from trainables.mil.embeddings import Embeddings
from trainables.mil.images import Words, distorted
from trainables.mil.verification import draw_pairs, verify
from trainables.mil.words import (
    SPLITS,
    WordParams,
    embedder_stage,
    embeddings_stage,
    require_disjoint,
    why_unfit,
)

SMALL: dict[str, Any] = {
    "encoder": "test_resnet",
    "weights": "random",
    "resize": [16, 24],
    "projection_dim": 16,
    "embedding_dim": 8,
    "embedder_lr": 3e-3,
    "embedder_epochs": 3,
    "embedder_batch_size": 16,
}
VIT: dict[str, Any] = {
    **SMALL,
    "encoder": "vit_tiny_patch16_224",
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}


def read(item: Item) -> NDArray[np.float32]:
    """Waves of the writer's own direction and length, in noise of each word's own."""
    hand = np.random.default_rng(sum(str(item.facts["writer"]).encode()))
    own = np.random.default_rng(list(item.name.encode()))
    down, right = hand.uniform(-1.5, 1.5, size=2)
    rows, columns = np.mgrid[:20, :30]
    wave = np.sin(down * rows + right * columns + own.uniform(0, 6.28))
    grey = np.clip(0.5 + 0.3 * wave + 0.1 * own.standard_normal(wave.shape), 0, 1)
    return np.repeat(grey[None].astype(np.float32), 3, axis=0)


def words(split: str, writers: str, each: int = 10) -> tuple[Item, ...]:
    return tuple(
        Item(
            f"{split}/{writer}/word_{n}.png",
            "words",
            is_anomaly=False,
            path=Path(),
            facts={"writer": writer, "word": "word", "repetition": n},
        )
        for writer in writers
        for n in range(each)
    )


def pages(**splits: tuple[Item, ...]) -> Data:
    made = {
        "train": words("train", "ABCDE"),
        "validation": words("validation", "KLM"),
        "test": words("test", "XYZ"),
    } | splits
    return Data(groups=("words",), read=read, **made)


def params(**knobs: Any) -> WordParams:
    return WordParams.model_validate(SMALL | knobs)


def weights(made: Trained) -> dict[str, torch.Tensor]:
    return dict(made.net.state_dict())


def same(one: Trained, other: Trained) -> bool:
    """To the last bit."""
    mine, others = weights(one), weights(other)
    assert mine.keys() == others.keys()
    return one.epochs == other.epochs and all(
        torch.equal(mine[name], others[name]) for name in mine
    )


# --- Knobs ----------------------------------------------------------------------------------------


def test_the_whole_word_is_seen_unless_a_crop_is_asked_for() -> None:
    assert WordParams().crop == (224, 224)
    assert WordParams.model_validate({"resize": "32x96"}).crop == (32, 96)
    cut = WordParams.model_validate({"resize": "48x96", "crop": "32x96"})
    assert cut.crop == (32, 96)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weights": "pretext"}, "weights 'pretext' are for encoders that stay frozen"),
        ({"margin": 0, "easy_margin": True}, "margin 0 does not use easy_margin"),
        ({"margin": 3.0}, "margin"),
        ({"embedder_batch_size": 1}, "embedder_batch_size"),
        ({"embedder_dropout": 1}, "embedder_dropout"),
    ],
)
def test_knobs_that_cannot_work_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(**knobs)


def test_planning_imports_no_torch() -> None:
    code = "import sys, trainables.mil.words; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- What cannot work -----------------------------------------------------------------------------


def without(fact: str) -> tuple[Item, ...]:
    first, *others = words("train", "AB")
    left = {name: value for name, value in first.facts.items() if name != fact}
    return (*others, replace(first, facts=left))


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"validation": ()}, "the data have no validation words"),
        ({"train": without("writer")}, "do not tell the writer of train/A/word_0.png"),
        ({"train": without("repetition")}, "do not tell the repetition of train/A/word_0.png"),
        ({"train": words("train", "A")}, "all train words are of writer A"),
        ({"test": words("test", "X")}, "all test words are of writer X"),
        ({"validation": words("validation", "KLM", 1)}, "no two validation words are of one"),
    ],
)
def test_data_without_several_writers_in_each_split_are_told_in_a_sentence(
    tmp_path: Path, splits: dict[str, tuple[Item, ...]], reason: str
) -> None:
    data = pages(**splits)
    assert reason in (why_unfit(data) or "")
    with pytest.raises(Infeasible, match=reason):
        Embeddings(params(), data, Lent(tmp_path))


def test_words_by_several_writers_in_each_split_will_do() -> None:
    assert why_unfit(pages()) is None
    require_disjoint(pages())
    assert why_unfit(pages(train=words("train", "AB", 1))) is None


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": words("test", "XAZ")}, "writer A has words in the train and in the test split"),
        ({"validation": words("validation", "KXM")}, "writer X .* the validation and in the test"),
        ({"validation": words("validation", "BK")}, "writer B .* the train and in the validation"),
    ],
)
def test_a_writer_in_two_splits_is_a_leak_and_stops_before_anything_is_trained(
    tmp_path: Path, splits: dict[str, tuple[Item, ...]], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        require_disjoint(pages(**splits))
    context = Lent(tmp_path)
    with pytest.raises(MethodError, match=message):
        Embeddings(params(), pages(**splits), context)
    assert context.built == []


# --- What names the stages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {"margin": 0.4},
        {"scale": 16},
        {"easy_margin": True},
        {"embedder_seed": 1},
        {"embedder_lr": 1e-3},
        {"embedder_epochs": 2},
        {"embedder_patience": 1},
        {"verification_pairs": 100},
        {"augment": "none"},
        {"embedding_dim": 4},
        {"resize": [32, 48]},
    ],
)
def test_another_knob_is_another_embedder_and_other_embeddings(knobs: dict[str, Any]) -> None:
    data = pages()
    assert embedder_stage(params(**knobs), data).inputs != embedder_stage(params(), data).inputs
    other = embeddings_stage(params(**knobs), data, "test")
    assert other.inputs != embeddings_stage(params(), data, "test").inputs


def test_an_embedder_is_named_by_the_words_and_writers_that_made_it() -> None:
    def renamed(split: str, writers: str, names: str) -> tuple[Item, ...]:
        items = words(split, writers)
        return tuple(
            replace(item, facts={**item.facts, "writer": names[writers.index(item.name[-12])]})
            for item in items
        )

    base = embedder_stage(params(), pages())
    assert embedder_stage(params(), pages()) == base  # other items in memory, of the same names
    other_writers = pages(train=renamed("train", "ABCDE", "ABCDD"))
    assert embedder_stage(params(), other_writers).inputs != base.inputs
    other_order = pages(train=words("train", "BACDE"))
    assert embedder_stage(params(), other_order).inputs != base.inputs
    other_end = pages(validation=words("validation", "KL"))
    assert embedder_stage(params(), other_end).inputs != base.inputs
    other_test = pages(test=words("test", "XY"))
    assert embedder_stage(params(), other_test) == base
    assert embeddings_stage(params(), other_test, "train") == embeddings_stage(
        params(), pages(), "train"
    )
    assert embeddings_stage(params(), other_test, "test") != embeddings_stage(
        params(), pages(), "test"
    )


# --- Words and their distortion -------------------------------------------------------------------


def test_words_kept_in_memory_and_words_read_anew_are_the_same() -> None:
    data = pages()
    order = np.random.default_rng(0).permutation(len(data.train))
    kept = Words(data.train, params(), data, threads=1)
    anew = Words(data.train, params(), data, threads=2, room_bytes=0)
    assert (kept._kept is None, anew._kept is None) == (False, True)
    for size in (7, 16, CHUNK + 1):
        pairs = zip(kept.batches(order, size), anew.batches(order, size), strict=True)
        found = [(one, other) for one, other in pairs]
        assert [len(one) for one, _ in found[:-1]] == [size] * (len(found) - 1)
        assert all(torch.equal(one, other) for one, other in found)
        assert sum(len(one) for one, _ in found) == len(order)
    image = torch.from_numpy(data.read(data.train[order[0]]))
    assert next(kept.batches(order, 7)).shape == (7, 3, 16, 24)
    assert abs(float(next(anew.batches(order, 7))[0].mean() - image.mean())) < 0.01


def test_a_word_is_distorted_in_its_own_way_in_each_epoch() -> None:
    data = pages()
    images = next(Words(data.train, params(), data, threads=1).in_order()).float()[:6]
    places = list(range(6))
    first = distorted(images, places, 0, 0)
    assert torch.equal(first, distorted(images, places, 0, 0))
    assert not torch.equal(first, distorted(images, places, 1, 0))
    assert not torch.equal(first, distorted(images, places, 0, 1))
    backwards = distorted(images.flip(0), places[::-1], 0, 0)
    assert torch.equal(first, backwards.flip(0))
    twice = distorted(images[:1].repeat(2, 1, 1, 1), [0, 1], 0, 0)
    assert not torch.equal(twice[0], twice[1])


def test_distortion_turns_and_moves_a_word_by_little() -> None:
    rows, columns = np.mgrid[:40, :120].astype(np.float32)
    where = torch.from_numpy(np.stack([rows, columns]))[None]  # each pixel tells its place
    moved = []
    for epoch in range(200):
        away = (distorted(where, [3], epoch, 0) - where)[0, :, 12:28, 20:100]
        moved.append(away)
    away = torch.stack(moved)
    assert away.abs().amax(dim=(1, 2, 3)).min() > 0
    # 5 % of 40 rows, 4 degrees or exp(.1) over half of the length
    assert away[:, 0].abs().max() < 0.05 * 40 + 40 * 0.07 + 20 * 0.11 + 1
    assert away[:, 1].abs().max() < 0.05 * 120 + 40 * 0.11 + 8 * 0.16 + 1
    assert away.mean(dim=(0, 2, 3)).abs().max() < 1  # to no side in particular
    # A turn is as wide in an image three times as wide as high; a shear goes along the line.
    climb, slant = away[:, 0].diff(dim=2).abs(), away[:, 1].diff(dim=1).abs()
    assert 0.06 < climb.max() < 1.11 * 0.07
    assert 0.12 < slant.max() < 1.11 * (0.07 + 0.08)


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [SMALL, VIT, VIT | {"weights": "random", "augment": "none"}])
def test_the_same_seed_gives_the_same_embedder_and_another_seed_another(
    tmp_path: Path, knobs: dict[str, Any]
) -> None:
    data, short = pages(), knobs | {"embedder_epochs": 1}
    torch.manual_seed(1)
    one = train(params(**short), data, Lent(tmp_path / "a", seed=1))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = train(params(**short), data, Lent(tmp_path / "b", seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, other)
    third = train(params(**short, embedder_seed=1), data, Lent(tmp_path / "c", seed=1))
    assert not same(one, third)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6, 9])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    data = pages()  # three steps an epoch: within one, at the end of one, at the end of all
    straight = train(params(), data, Lent(tmp_path / "straight"))
    torch.manual_seed(9)
    with pytest.raises(StoppedError):
        train(params(), data, Lent(tmp_path / "stopped", stop_after=stop_after))
    torch.manual_seed(10)
    resumed = train(params(), data, Lent(tmp_path / "stopped"))
    assert same(straight, resumed)
    assert straight.best == resumed.best


def test_training_ends_when_validation_gets_no_better_and_keeps_the_best(tmp_path: Path) -> None:
    wild = {"embedder_lr": 0.3, "embedder_epochs": 12}
    data = pages()
    patient = train(params(**wild, embedder_patience=12), data, Lent(tmp_path / "a"))
    auc = [epoch.validation_auc for epoch in patient.epochs]
    assert len(auc) == 12
    assert patient.best == 1 + int(np.argmax(auc))
    assert patient.best < 11  # else there is nothing to see
    hasty = train(params(**wild, embedder_patience=1), data, Lent(tmp_path / "b"))
    until = next(n for n in range(1, 12) if auc[n] <= max(auc[:n])) + 1
    assert [epoch.validation_auc for epoch in hasty.epochs] == auc[:until]
    assert hasty.best == 1 + int(np.argmax(auc[:until])) < until
    found = Embeddings(params(**wild, embedder_patience=1), data, Lent(tmp_path / "c"))
    assert found.verification("validation").auc == max(auc[:until])


def test_a_training_stopped_after_its_last_epoch_trains_no_further(tmp_path: Path) -> None:
    hasty, data = params(embedder_lr=0.3, embedder_epochs=12, embedder_patience=1), pages()
    straight = train(hasty, data, Lent(tmp_path / "straight"))
    last = 3 * len(straight.epochs)
    assert last < 36
    with pytest.raises(StoppedError):
        train(hasty, data, Lent(tmp_path / "stopped", stop_after=last))
    assert same(straight, train(hasty, data, Lent(tmp_path / "stopped")))


def test_training_starts_from_a_file_of_weights_and_changes_all_of_them(tmp_path: Path) -> None:
    started = create(params()).state_dict()
    save_file(started, tmp_path / "start.safetensors")
    file = {"weights": str(tmp_path / "start.safetensors"), "embedder_epochs": 1}
    still = weights(train(params(**file, embedder_lr=1e-12), pages(), Lent(tmp_path / "a")))
    moved = weights(train(params(**file), pages(), Lent(tmp_path / "b")))
    for name, value in started.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(still[f"backbone.{name}"], value, rtol=0, atol=1e-10)
            assert not torch.equal(moved[f"backbone.{name}"], value)


ANY: dict[str, Any] = {"resize": "32x64", "embedder_epochs": 1}
ANY |= dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads"))


@pytest.mark.parametrize("encoder", ["test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_any_network_of_timm_will_do(tmp_path: Path, encoder: str) -> None:
    made = train(params(**ANY, encoder=encoder), pages(), Lent(tmp_path))
    assert len(made.epochs) == 1
    assert all(torch.isfinite(value).all() for value in weights(made).values())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("convnxt_tiny", "is no network of timm .* did you mean 'convnext_tiny'"),
        ("swin_tiny_patch4_window7_224", "makes no vector of images of 32x64 .* set resize"),
    ],
)
def test_a_network_that_cannot_see_the_words_is_named(
    tmp_path: Path, encoder: str, message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        train(params(**ANY, encoder=encoder), pages(), Lent(tmp_path))


def test_a_diverged_training_says_what_to_do(tmp_path: Path) -> None:
    def blank(item: Item) -> NDArray[np.float32]:
        return np.full((3, 20, 30), np.nan if item.name.endswith("word_9.png") else 0.5, np.float32)

    data = replace(pages(), read=blank)
    with pytest.raises(MethodError, match="loss is not finite at step 1 of 9; lower embedder_lr"):
        train(params(), data, Lent(tmp_path))


def test_training_teaches_to_tell_unseen_writers_apart(tmp_path: Path) -> None:
    data = pages(train=words("train", "ABCDEFGHIJ"), test=words("test", "RSTUVWXYZ"))
    untaught = {"embedder_epochs": 1, "embedder_lr": 1e-9, "augment": "none"}
    taught = {"embedder_epochs": 8, "embedder_lr": 1e-2}
    # So short a training ends elsewhere on another processor; three of them, on the mean, do not.
    wrong: dict[str, list[float]] = {"untaught": [], "taught": []}
    for seed in (0, 2, 4):
        for name, knobs in (("untaught", untaught), ("taught", taught)):
            made = Embeddings(params(embedder_seed=seed, **knobs), data, Lent(tmp_path / f"{seed}"))
            found = made.verification("test")
            wrong[name].append((1 - found.auc) + found.eer)
    assert sum(wrong["taught"]) < 0.75 * sum(wrong["untaught"])


def test_each_epoch_is_logged_with_loss_and_verification(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = Lent(tmp_path)
    with caplog.at_level(logging.INFO):
        made = train(params(embedder_epochs=2), pages(), context)
    for n, epoch in enumerate(made.epochs, start=1):
        line = f"epoch {n}: loss {epoch.loss:.4f}, validation AUC {epoch.validation_auc:.4f}"
        assert line in caplog.text
    assert context.curve == []  # the stage is not one trial's


# --- Embeddings -----------------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_in_the_order_of_the_words(tmp_path: Path) -> None:
    data, context = pages(), Lent(tmp_path)
    found = Embeddings(params(embedder_epochs=1), data, context)
    found.prepare()
    assert sorted(context.built) == ["embedder", "embeddings", "embeddings", "embeddings"]
    for split in SPLITS:
        rows = found.of(split)
        assert rows.shape == (len(getattr(data, split)), 8)
        assert rows.dtype == np.float32
        assert isinstance(rows, np.memmap)
        assert not rows.flags.writeable
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert len(context.built) == 4
    alone = replace(data, test=data.test[::-1])
    backwards = Embeddings(params(embedder_epochs=1), alone, context).of("test")
    # A chunk's product of matrices may be summed in another order for other neighbours.
    np.testing.assert_allclose(backwards[::-1], found.of("test"), atol=1e-5)


def test_trials_of_all_seeds_share_one_embedder(tmp_path: Path) -> None:
    data, store = pages(), tmp_path / "store"
    first = Lent(tmp_path / "a", seed=1, stages=store)
    Embeddings(params(embedder_epochs=1), data, first).prepare()
    second = Lent(tmp_path / "b", seed=2, threads=2, stages=store)
    Embeddings(params(embedder_epochs=1), data, second).of("test")
    assert (len(first.built), second.built) == (4, [])
    third = Lent(tmp_path / "c", stages=store)
    Embeddings(params(embedder_epochs=1), pages(test=words("test", "PQ")), third).of("test")
    assert third.built == ["embeddings"]


@pytest.mark.parametrize("knobs", [SMALL, VIT])
def test_embeddings_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, knobs: dict[str, Any]
) -> None:
    data, before = pages(test=words("test", "XYZ", 30)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            context = Lent(tmp_path / str(threads), threads=threads)
            made = Embeddings(params(**knobs | {"embedder_epochs": 1}), data, context)
            found.append(made.of("test").tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_trial_goes_on_with_the_embedder_that_another_trial_was_stopped_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Checkpointing(Lent):
        """Keeps and finds checkpoints as the engine does."""

        def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
            self.checkpoint_interval_s = 0
            Context.checkpoint(self, step, save)
            if step == self.stop_after:
                raise StoppedError

        def resume(self) -> Path | None:
            return Context.resume(self)

    data, store = pages(), tmp_path / "store"
    with pytest.raises(StoppedError):
        Embeddings(
            params(), data, Checkpointing(tmp_path / "a", seed=1, stop_after=5, stages=store)
        ).prepare()
    assert list(store.glob("stages/embed*/*/stage.json")) == []
    other = Checkpointing(tmp_path / "b", seed=2, threads=2, stages=store)
    with caplog.at_level(logging.INFO):
        found = Embeddings(params(), data, other).of("test")
    assert "continues from step 5 of a stage half built" in caplog.text
    straight = Embeddings(params(), data, Lent(tmp_path / "c")).of("test")
    assert found.tobytes() == straight.tobytes()


def test_a_stage_tells_how_its_embedder_came_about(tmp_path: Path) -> None:
    context, data = Lent(tmp_path), pages()
    Embeddings(params(), data, context).of("test")
    (folder,) = (note.parent for note in tmp_path.glob("stages/embedder/*/stage.json"))
    told = json.loads((folder / "training.json").read_text())
    made = train(params(), data, Lent(tmp_path / "again"))
    assert told["best_epoch"] == made.best
    assert [one["validation_auc"] for one in told["epochs"]] == [
        epoch.validation_auc for epoch in made.epochs
    ]
    kept = load_file(folder / "embedder.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights(made).items())


def test_a_damaged_embedder_is_named(tmp_path: Path) -> None:
    context, data = Lent(tmp_path), pages()
    Embeddings(params(embedder_epochs=1), data, context).of("test")
    (file,) = tmp_path.glob("stages/embedder/*/embedder.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MethodError, match=r"embedder kept there is damaged .* trained anew"):
        Embeddings(params(embedder_epochs=1), data, Lent(tmp_path)).of("train")


# --- Verification ---------------------------------------------------------------------------------


def test_pairs_are_balanced_different_images_and_drawn_once() -> None:
    writers = [f"w{n % 7}" for n in range(140)]
    pairs = draw_pairs(writers, 1000)
    assert len(pairs.left) == len(pairs.right) == len(pairs.differ) == 1000
    assert pairs.differ.sum() == 500
    assert (pairs.left != pairs.right).all()
    names = np.array(writers)
    np.testing.assert_array_equal(names[pairs.left] != names[pairs.right], pairs.differ)
    unordered = {frozenset(pair) for pair in zip(pairs.left, pairs.right, strict=True)}
    assert len(unordered) == 1000
    again = draw_pairs(writers, 1000)
    np.testing.assert_array_equal(pairs.left, again.left)
    np.testing.assert_array_equal(pairs.right, again.right)
    for writer in names[:7]:  # every hand is in both kinds
        assert {"same", "other"} == {
            "other" if differ else "same"
            for left, right, differ in zip(pairs.left, pairs.right, pairs.differ, strict=True)
            if writer in (names[left], names[right])
        }


@pytest.mark.parametrize("writers", ["babcbab", "aabaab", "cabaabaa"])
def test_where_there_are_few_images_all_pairs_of_a_kind_are_taken(writers: str) -> None:
    pairs = draw_pairs(list(writers), 1000)
    every = set(combinations(range(len(writers)), 2))
    own = {pair for pair in every if writers[pair[0]] == writers[pair[1]]}
    listed = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    found = [(min(pair), max(pair)) for pair in listed]
    each = min(len(own), len(every - own))
    assert len(set(found[:each]) & own) == each
    assert len(set(found[each:]) & (every - own)) == each == len(found) - each
    assert pairs.differ.tolist() == [False] * each + [True] * each


@pytest.mark.parametrize("writers", ["abc", "aa"])
def test_without_pairs_of_both_kinds_nothing_is_verified(writers: str) -> None:
    with pytest.raises(Infeasible, match="make no pair of one writer or none of two"):
        draw_pairs(list(writers), 10)


def test_area_and_equal_error_rate_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    writers = [str(n % 9) for n in range(300)]
    centre = rng.standard_normal((9, 16))
    points = centre[[int(writer) for writer in writers]] + 1.5 * rng.standard_normal((300, 16))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    pairs = draw_pairs(writers, 2000)
    found = verify(unit, pairs)
    cosine = np.sum(unit[pairs.left].astype(float) * unit[pairs.right].astype(float), axis=1)
    assert found.auc == pytest.approx(roc_auc_score(~pairs.differ, cosine), abs=1e-12)
    fpr, tpr, _ = roc_curve(~pairs.differ, cosine, drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1)
    assert found.eer == pytest.approx(expected, abs=1e-9)
    assert 0.7 < found.auc < 0.99  # neither trivial nor chance
    assert found.pairs == 2000
