"""The synthetic handwriting: as hard as its documentation says, and the same every time."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from hdsweep.method import load_dataset
from trainables.data.synthetic.handwriting import COLUMNS, TEXT, Params, write, writer_images

Floats = NDArray[np.float64]
Whole = NDArray[np.intp]

SMALL = Params(writers=3, words=4, repetitions=2)
STATISTICS = ("slant", "ink", "darkness", "stroke", "height", "length")
KNOWN, UNSEEN = 30, 30  # writers to scale the statistics on, and to tell apart
GOLDEN = [0.297, 0.18, 0.604, 1.231, 17.5, 37.75]


def statistics(image: Image.Image) -> list[float]:
    ink = 1 - np.asarray(image).astype(np.float64) / 255
    dy, dx = np.gradient(ink, axis=0), np.gradient(ink, axis=1)
    upright = np.abs(dx) > np.abs(dy)
    height, length = (int((ink.max(axis) > 0.1).sum()) for axis in (1, 0))
    return [
        float((dx * dy)[upright].sum() / (dx * dx)[upright].sum()),
        float(ink.sum()) / (height * length),
        float(ink.max()),
        float(ink.sum() / np.hypot(dx, dy).sum()),
        height,
        length,
    ]


@lru_cache
def seen(spread: float = 1.0) -> tuple[Floats, Whole, Whole]:
    """Statistics of 12,000 words, scaled by their spread within the known writers."""
    params = Params(writers=KNOWN + UNSEEN, words=20, repetitions=10, spread=spread)
    found = [
        (statistics(image), writer, word)
        for writer in range(params.writers)
        for images in writer_images(params, writer)
        for word, image in enumerate(images)
    ]
    values = np.array([values for values, _, _ in found])
    writers, words = (np.array([one[k] for one in found]) for k in (1, 2))
    own = np.stack([values[writers == w].mean(0) for w in range(params.writers)])
    known = writers < KNOWN
    values /= (values - own[writers])[known].std(0)
    return values[~known], writers[~known], words[~known]


def verification_auc(columns: Iterable[int], spread: float = 1.0) -> float:
    """How often two different words of one hand are nearer than two of different hands."""
    values, writers, words = seen(spread)
    values = values[:, list(columns)]
    rng = np.random.default_rng(0)
    one, other = rng.integers(len(values), size=(2, 400_000))
    is_pair = words[one] != words[other]
    one, other = one[is_pair], other[is_pair]
    distance = ((values[one] - values[other]) ** 2).sum(1)
    same = writers[one] == writers[other]
    near, far = distance[same], np.sort(distance[~same])
    return 1 - float(np.searchsorted(far, near).mean()) / len(far)


def digest(root: Path) -> str:
    """Names and bytes of all that is below ``root``."""
    sha = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def written(params: Params, root: Path) -> Path:
    root.mkdir()
    write(params, root)
    return root


def first(params: Params, repetition: int = 0, writer: int = 0) -> list[bytes]:
    copies = itertools.islice(writer_images(params, writer), repetition, None)
    return [image.tobytes() for image in next(copies)]


def test_plain_statistics_tell_hands_apart_as_documented() -> None:
    # The words are the same every time, so nothing here is left to chance. The tolerance is for
    # edges that another version of Pillow draws in another way.
    assert verification_auc(range(6)) == pytest.approx(0.81, abs=0.015)
    alone = {name: verification_auc([column]) for column, name in enumerate(STATISTICS)}
    assert min(alone.values()) == alone["length"] == pytest.approx(0.53, abs=0.015)
    assert max(alone.values()) == alone["darkness"] == pytest.approx(0.74, abs=0.015)


def test_without_a_spread_only_the_drift_of_sessions_tells_hands_apart() -> None:
    assert verification_auc(range(6), spread=0.0) < 0.60


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    root = written(SMALL, tmp_path / "data")
    with (root / "words.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert tuple(heading) == COLUMNS == ("image_path", "label", "detected_word", "repetition")
    assert [tuple(row) for row in rows] == [
        (f"{writer}/{word}_{repetition}.png", writer, word, str(repetition))
        for writer in ("w000", "w001", "w002")
        for repetition in range(2)
        for word in ("the", "quick", "brown", "fox")
    ]
    assert {p.relative_to(root).as_posix() for p in root.rglob("*.png")} == {r[0] for r in rows}
    for row in rows:
        with Image.open(root / row[0]) as image:
            assert (image.mode, image.size) == ("L", (96, 32))


def test_no_word_is_in_the_text_twice() -> None:
    # A writer, a word and a repetition name one image.
    assert len(set(TEXT)) == len(TEXT) >= 65
    assert all(word.isascii() and word.isalpha() and word.islower() for word in TEXT)
    assert set("abcdefghijklmnopqrstuvwxyz") == set("".join(TEXT))


@pytest.mark.parametrize("size", [(16, 32), (32, 96), (64, 96), (48, 256)])
def test_a_word_is_dark_ink_on_white_paper_and_is_not_cut_off(size: tuple[int, int]) -> None:
    height, width = size
    params = Params(words=len(TEXT), repetitions=3, height=height, width=width)
    for writer in range(6):
        for image in itertools.chain(*writer_images(params, writer)):
            pixels = np.asarray(image)
            assert pixels.shape == size
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (border > 200).all()
            assert 0.005 < (pixels < 200).mean() < 0.5


def test_the_same_params_write_the_same_bytes(tmp_path: Path) -> None:
    one = written(SMALL, tmp_path / "one")
    assert digest(one) == digest(written(SMALL, tmp_path / "two"))


def test_another_seed_changes_every_image(tmp_path: Path) -> None:
    one = written(SMALL, tmp_path / "one")
    other = written(SMALL.model_copy(update={"seed": 2}), tmp_path / "other")
    names = [path.relative_to(one) for path in one.rglob("*.png")]
    assert len(names) == 3 * 4 * 2
    for name in names:
        assert (one / name).read_bytes() != (other / name).read_bytes()


def test_no_two_images_are_the_same() -> None:
    params = Params(words=10, repetitions=12)
    images = [i.tobytes() for w in range(4) for copy in writer_images(params, w) for i in copy]
    assert len(set(images)) == 4 * 10 * 12


def test_more_writers_or_repetitions_leave_the_others_as_they_are() -> None:
    more = SMALL.model_copy(update={"writers": 9, "repetitions": 5})
    assert first(SMALL, repetition=1, writer=2) == first(more, repetition=1, writer=2)


def test_a_session_has_a_hand_of_its_own() -> None:
    # Of one writer, mean ink of each repetition: sessions differ by more than their repetitions do.
    params = Params(words=len(TEXT), repetitions=18)
    ratios = []
    for writer in range(12):
        values = [[statistics(i) for i in copy] for copy in writer_images(params, writer)]
        mean = np.array(values).mean(1).reshape(2, 9, len(STATISTICS))
        within = mean.std(1, ddof=1).mean(0) / 3  # of a session's mean
        ratios.append(np.abs(mean[0].mean(0) - mean[1].mean(0)) / within)
    # Without a drift the ratio would be near 1.1, that of a difference of two normal means.
    assert np.mean(ratios) > 2


def test_the_words_of_the_default_seed_have_not_drifted() -> None:
    # Coarse, because the last bit of exp differs between machines, and edges with it.
    values = [statistics(image) for image in next(writer_images(SMALL, 1))]
    assert np.round(np.mean(values, axis=0), 3).tolist() == pytest.approx(GOLDEN, rel=0.01)


def test_a_picture_carries_nothing_but_its_pixels(tmp_path: Path) -> None:
    path = written(SMALL, tmp_path / "data") / "w001/fox_1.png"
    content, kinds, at = path.read_bytes(), [], 8
    while at < len(content):
        kinds.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_folder_says_that_it_is_synthetic_and_how_it_was_made(tmp_path: Path) -> None:
    root = written(SMALL, tmp_path / "data")
    assert Params.model_validate(json.loads((root / "synthetic.json").read_text())) == SMALL


def test_written_words_check_clean(tmp_path: Path) -> None:
    dataset = load_dataset("handwriting")
    root = written(Params(writers=6, words=5, repetitions=10), tmp_path / "data")
    found = dataset.check(dataset.params.model_validate({"root": root, "writers": [2, 2, 2]}))
    assert found.problems == ()
    assert [w for w in found.warnings if "synthetic" not in w] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"writers": 0},
        {"writers": 1000},
        {"words": len(TEXT) + 1},
        {"repetitions": 0},
        {"height": 8},
        {"width": 8},
        {"spread": -0.1},
        {"spread": float("nan")},
        {"seed": -1},
        {"images": 5},
    ],
)
def test_params_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=str(next(iter(wrong)))):
        Params.model_validate(wrong)
